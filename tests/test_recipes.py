"""Recipes: kinds of posteriors from a network and a plan."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict

import pytest
import torch
from fit_cases import Blocks
from torch import nn

import bella
from bella.recipes import KINDS, Plan, linear_head, make, recipe_named
from bella.training.probe import Probe

PLAN = Plan(particles=2, target_modules=(r"blocks\.2\.0",), heads=("head",))
X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def probes(count):
    generator = torch.Generator().manual_seed(1)
    return [
        Probe(torch.randn(3, 4, generator=generator), torch.randn(3, generator=generator))
        for _ in range(count)
    ]


def plan_for(kind, **more):
    recipe = KINDS[kind]
    particles = 1 if recipe.alone else 2
    started = probes(recipe.probes(particles))
    return dataclasses.replace(PLAN, particles=particles, head="head", probes=started, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_start_from_probes_and_the_rest_from_the_network(kind):
    """Each particle's logits are its probe's on what the network brings to the head."""
    plan = plan_for(kind)
    posterior = make(kind, Blocks(), plan).eval()
    network, features = Blocks(), X
    for block in network.blocks:
        features = block(features)
    for particle in range(plan.particles):
        probe = plan.probes[particle if not KINDS[kind].one_probe else 0]
        found = posterior.particle(particle)
        if kind == "rank1":  # whose factors start around 1
            alike = torch.cosine_similarity(found.head.weight, probe.weight)
            assert alike.min() > 0.9
            continue
        # Sparse layers keep a tenth of the adapted block alone, and all of the head.
        torch.testing.assert_close(found.head.weight, probe.weight)
        torch.testing.assert_close(found.head.bias, probe.bias)
        if kind in ("low-rank", "full", "laplace"):
            torch.testing.assert_close(found(X), probe.logits(features)[0])


def test_what_laplace_does_not_cover_is_refused_before_it_trains():
    head = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    network = nn.Sequential(OrderedDict(body=nn.Linear(4, 4), head=head))
    plan = Plan(particles=1, target_modules=("body",), heads=("head",))
    with pytest.raises(bella.BellaError, match="Laplace approximation covers"):
        make("laplace", network, plan)


@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_before_the_adapted_layers_stays_frozen(kind):
    posterior = make(kind, Blocks(), plan_for(kind))
    trained = {name for name, p in posterior.network.named_parameters() if p.requires_grad}
    assert trained
    if kind != "full":
        assert not [name for name in trained if name.startswith(("blocks.0", "blocks.1"))]


@pytest.mark.parametrize("kind", ["full", "rank1", "ssvi"])
def test_a_network_that_is_not_trained_is_taken_as_a_whole(kind):
    recipe = KINDS[kind]
    plan = Plan(particles=1 if recipe.alone else 2, pretrained=False)
    posterior = make(kind, Blocks(), plan)
    assert all(p.requires_grad for p in posterior.stacked_parameters().values())
    assert posterior(X).shape[1:] == (5, 3)


@pytest.mark.parametrize(
    ("options", "start"),
    [({}, (0.3, 0.7)), ({"posterior": "cauchy"}, (1e-3, 0.1)), ({"dropout_rate": 0.1}, (0.1, 0.7))],
)
def test_rank1_from_scratch_starts_wide_but_where_tails_are_wide_already(options, start):
    plan = Plan(particles=2, pretrained=False, options=options)
    settings = make("rank1", Blocks(), plan).settings
    assert (settings["dropout_rate"], settings["prior_std"]) == start


def test_frozen_heads_do_not_train():
    posterior = make("low-rank", Blocks(), plan_for("low-rank", frozen_heads=True))
    heads = posterior.layers()["head"].values
    assert not any(p.requires_grad for p in heads.values())


def test_options_reach_the_constructor():
    plan = plan_for("low-rank", options={"rank": 3, "alpha": 6.0})
    assert make("low-rank", Blocks(), plan).settings["alpha"] == 6.0
    plan = plan_for("ssvi", options={"density": 0.5})
    assert make("ssvi", Blocks(), plan).settings["density"] == 0.5


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        ("vi", {}, "choose 'low-rank', 'rank1', 'ssvi', 'full', 'laplace'"),
        ("low-rank", {"options": {"rnak": 2}}, "has no option 'rnak': near names are 'rank'"),
        ("full", {"options": {"rank": 2}}, "bella.full has no option 'rank'"),
        ("low-rank", {"options": {"seed": 2}}, "no option 'seed'"),
        ("ssvi", {"particles": 2}, "has one particle, and particles=2"),
    ],
)
def test_what_a_kind_does_not_have_is_refused(kind, more, said):
    with pytest.raises(bella.BellaError, match=said) as caught:
        make(kind, Blocks(), dataclasses.replace(PLAN, **more))
    assert "\n" not in str(caught.value)


def test_every_kind_has_a_constructor_of_the_library():
    for kind, recipe in KINDS.items():
        assert recipe_named(kind) is recipe
        assert recipe.constructor in bella.POSTERIORS


def test_only_one_linear_head_can_be_a_probe():
    assert linear_head(Blocks(), ("head",)) == "head"
    assert linear_head(Blocks(), (r"blocks\.2",)) is None
    assert linear_head(Blocks(), ("head", r"blocks\.2\.0")) is None
    assert linear_head(Blocks(), ()) is None
    network = Blocks()
    network.head = torch.nn.Linear(4, 3, bias=False)
    assert linear_head(network, ("head",)) is None
