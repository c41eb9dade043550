"""Frozen activations: what is read is what the network that particles began as computes."""

from __future__ import annotations

import copy

import network_cases as cases
import pytest
import torch
from fit_cases import Blocks, make, problem
from torch import nn

import bella
from bella.errors import BellaError
from bella.prediction.activations import (
    POOLINGS,
    Reader,
    Reading,
    arrivals,
    find_places,
    mask_of,
    pooled,
    poolings_of,
)


def moved(posterior):
    """Particles far from where they began."""
    torch.manual_seed(3)
    with torch.no_grad():
        for p in posterior.stacked_parameters().values():
            p.add_(torch.randn_like(p))
    return posterior.eval()


def plain_arrivals(network, names, args, kwargs):
    """What arrives at modules of an ordinary network."""
    found = {}

    def keep(name):
        def hook(module, args, kwargs):
            arrived = [x.clone() for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
            found.setdefault(name, arrived)

        network.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)

    for name in names:
        keep(name)
    with torch.no_grad():
        network(*args, **kwargs)
    return found


@pytest.mark.parametrize("name", sorted(cases.NETWORKS))
def test_what_is_read_is_what_the_frozen_network_computes(name):
    build, inputs, target, heads = cases.NETWORKS[name]
    torch.manual_seed(0)
    network = build().eval()
    plain = copy.deepcopy(network)
    posterior = moved(
        bella.low_rank(network, 3, 2, target, modules_to_save=heads, b_std=0.2, seed=1)
    )
    torch.manual_seed(1)
    kwargs = dict(inputs())
    args = kwargs.pop("args", ())
    places = find_places(posterior, args, kwargs)
    assert places
    expected = plain_arrivals(plain, places, args, kwargs)
    for begun in (False, True):
        start = posterior.begun(*args, **kwargs) if begun else (args, kwargs)
        read, *_ = arrivals(posterior, list(places), *start)
        entered = set(read)
        for place in entered:
            wanted = expected[place]
            for mine, theirs in zip(read[place], wanted, strict=False):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        assert entered == set(places) or begun  # what lies before a stream is not in it


def test_particles_do_not_move_what_is_read_and_nothing_of_them_is_moved():
    x, _ = problem()
    posterior = make().eval()
    places = find_places(posterior, (x,), {})
    assert list(places) == ["blocks.0", "blocks.1", "blocks.2", "head"]
    reader = Reader(posterior, places.values())
    before, *_ = reader((x,), {})
    moved(posterior)
    said = posterior(x)
    after, args, kwargs = reader((x,), {})
    for name in places:
        assert torch.equal(before[name], after[name])
    assert torch.equal(posterior(x), said)
    torch.testing.assert_close(posterior(*args, **kwargs), said)  # from the stream on


def test_a_posterior_of_one_particle_and_one_that_loops_are_read_alike():
    x, _ = problem()
    wanted, *_ = arrivals(make(3).eval(), ["blocks.2", "head"], (x,), {})
    for other in (make(1), make(3, folding="never"), make(3, shared_prefix=False)):
        found, *_ = arrivals(moved(other), ["blocks.2", "head"], (x,), {})
        assert torch.equal(found["head"][0], wanted["head"][0])


def test_rows_that_are_not_examples_are_no_place():
    class TimeMajor(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            x = x.transpose(0, 1)
            x = self.blocks[0](x).flatten(0, 1)  # tokens x examples rows
            x = self.blocks[1](x).unflatten(0, (5, -1))
            return self.head(self.blocks[2](x).mean(0))

    torch.manual_seed(0)
    network = TimeMajor()
    posterior = bella.low_rank(network, 1, 2, (r"blocks\.2",), modules_to_save=("head",))
    x = torch.randn(6, 5, 4)
    places = find_places(posterior.eval(), (x,), {})
    assert places["blocks.0"].role == places["blocks.2"].role == 1
    assert "blocks.1" not in places
    read, *_ = Reader(posterior, places.values())((x,), {})
    assert torch.equal(read["blocks.0"], x)


def test_kinds_without_a_frozen_base_are_refused():
    x, _ = problem()
    posterior = bella.full(Blocks(), 2)
    with pytest.raises(BellaError, match=r"no frozen activations are left.*anchors=\(\)"):
        find_places(posterior, (x,), {})
    unfrozen = make()
    unfrozen.unfreeze(["blocks.0.0.weight"])
    with pytest.raises(BellaError, match="base was unfrozen"):
        find_places(unfrozen, (x,), {})


def test_what_cannot_be_read_is_refused():
    x, _ = problem()
    posterior = make().eval()
    with pytest.raises(BellaError, match=r"'blocks\.7' is no module"):
        find_places(posterior, (x,), {}, ["blocks.7"])
    with pytest.raises(BellaError, match="two or more in a batch"):
        find_places(posterior, (x[:1],), {})
    stream = posterior.prefix(x)
    with pytest.raises(BellaError, match="lies before the stream"):
        find_places(posterior, (stream,), {}, ["blocks.0"])
    with pytest.raises(BellaError, match="is no reading"):
        Reading.parse("blocks.1:median")
    with pytest.raises(BellaError, match="choose flat"):
        pooled(x, "mean")


def test_poolings_are_what_they_say():
    x = torch.arange(24.0).reshape(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert torch.equal(pooled(x, "flat"), x.reshape(2, 12))
    assert torch.equal(pooled(x, "mean"), x.mean(1))
    assert torch.equal(pooled(x, "first"), x[:, 0])
    assert torch.equal(pooled(x, "last"), x[:, 2])
    assert torch.equal(pooled(x, "mean", mask), torch.stack([x[0, :2].mean(0), x[1, 1:].mean(0)]))
    assert torch.equal(pooled(x, "first", mask), torch.stack([x[0, 0], x[1, 1]]))
    assert torch.equal(pooled(x, "last", mask), torch.stack([x[0, 1], x[1, 2]]))
    assert "flat" not in poolings_of(x, mask)
    pixels = torch.randn(2, 3, 4, 5)
    assert torch.equal(pooled(pixels, "mean"), pixels.mean((2, 3)))
    assert torch.equal(pooled(pixels, "mean-last"), pixels.mean((1, 2)))
    for shape in ((2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 3, 4, 5, 6)):
        for pooling in poolings_of(torch.zeros(shape), None):
            assert pooling in POOLINGS
            assert pooled(torch.zeros(shape), pooling).dim() == 2


def test_padding_does_not_change_a_text_s_features():
    posterior, inputs = cases.make("bert")
    posterior.eval()
    short = {name: value[:, :5].clone() for name, value in inputs.items()}
    short["attention_mask"][:] = 1
    padded = {
        "input_ids": torch.cat([short["input_ids"], torch.zeros(4, 3, dtype=torch.long)], 1),
        "attention_mask": torch.cat([short["attention_mask"], torch.zeros(4, 3).long()], 1),
    }
    places = find_places(posterior, (), short)
    reader = Reader(posterior, places.values())
    readings = [Reading(name, p) for name in places for p in ("mean", "last", "first")]
    readings = [r for r in readings if not r.place.startswith("classifier")]
    one, *_ = reader.features(readings, (), short)
    two, *_ = reader.features(readings, (), padded)
    for reading in readings:
        torch.testing.assert_close(one[reading], two[reading], rtol=1e-4, atol=1e-5)
    stream = posterior.begun(**short)[0][0]
    assert torch.equal(mask_of(posterior.network, (stream,), {}), short["attention_mask"])
