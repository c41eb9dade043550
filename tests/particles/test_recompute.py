"""Activation checkpointing: the same gradients from less memory, whoever asks for it."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from deep_cases import (
    CHUNKS,
    NETWORKS,
    TRANSPORTS,
    Deep,
    Y,
    assert_same,
    checkpointed_by_transformers,
    deep,
    hugging_face,
    inputs,
    stepped,
    vit,
)
from fit_cases import Blocks as Plain
from fit_cases import assert_same as assert_same_particles
from fit_cases import fit, make

import bella
from bella.memory import LiveBytes


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_transformers_own_checkpointing_changes_no_gradient(name, chunks, transport):
    x = inputs(name)
    expected = stepped(hugging_face(name, False), x, transport, chunks)
    assert_same(stepped(hugging_face(name, True), x, transport, chunks), expected)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_checkpointed_blocks_change_no_gradient(chunks, transport):
    x = torch.randn(5, 4)
    expected = stepped(deep(), x, transport, chunks)
    for modules, count in ((None, 4), ((r"blocks\.\d\.0",), 6)):
        posterior = deep()
        assert len(bella.checkpoint(posterior, modules)) == count
        assert_same(stepped(posterior, x, transport, chunks), expected)


def test_a_stream_with_a_cache_of_keys_serves_several_passes():
    posterior, x = hugging_face("gpt", False).eval(), inputs("gpt")
    assert posterior.network.config.use_cache
    expected = posterior(x).logits
    stream = posterior.prefix(x)
    for part in ([0, 1], [2, 3], [3, 1, 2]):
        with posterior.subset(part):
            torch.testing.assert_close(posterior(stream).logits, expected[part])


def counted(posterior, module):
    """Runs of a module's inner layer."""
    runs = []
    posterior.network.get_submodule(module).register_forward_hook(lambda *_: runs.append(1))
    return runs


def test_blocks_run_again_only_in_training_and_only_where_asked():
    posterior, x = deep(), torch.randn(5, 4)
    bella.checkpoint(posterior, (r"blocks\.4",))
    asked, other = counted(posterior, "blocks.4.0.up"), counted(posterior, "blocks.5.0.up")
    posterior.prove(x)
    with torch.no_grad():
        posterior.eval().prove(x)
    posterior.train()
    asked.clear()
    other.clear()
    bella.nll(posterior(x), Y).backward()
    assert (len(asked), len(other)) == (2, 1)
    bella.predict(posterior, x)
    assert (len(asked), len(other)) == (3, 2)
    bella.checkpoint(posterior, ())
    bella.nll(posterior(x), Y).backward()
    assert (len(asked), len(other)) == (4, 3)


def test_blocks_of_transformers_may_be_named():
    x = inputs("vit")
    posterior = hugging_face("vit", False)
    names = bella.checkpoint(posterior)
    assert [name.rpartition(".")[2] for name in names] == ["2", "3"]
    runs = counted(posterior, f"{names[0]}.mlp.fc1")
    found = stepped(posterior, x, "svgd", CHUNKS[0])
    assert len(runs) >= 2
    assert_same(found, stepped(hugging_face("vit", False), x, "svgd", CHUNKS[0]))
    told = [getattr(m, "gradient_checkpointing", False) for m in posterior.network.modules()]
    assert not any(told)


@pytest.mark.parametrize("transport", ["ensemble", "svgd"])
def test_less_memory_lives_until_backward(transport):
    def bytes_of(posterior):
        move = bella.transport.by_name(transport, posterior, data_size=10)
        x = torch.randn(64, 4)
        posterior.prove(x)
        with LiveBytes() as live:
            loss = bella.nll(posterior(x), torch.arange(64) % 3)
            gc.collect()
            held = live.now
        loss.backward()
        move.step()
        return held

    plain, checkpointed = deep(), deep()
    bella.checkpoint(checkpointed)
    assert bytes_of(checkpointed) < 0.4 * bytes_of(plain)


def test_an_error_inside_leaves_the_axis_and_the_network_as_they_were():
    posterior = deep()
    bella.checkpoint(posterior)
    loss = bella.nll(posterior(torch.randn(5, 4)), Y)
    with pytest.raises(RuntimeError):
        posterior(torch.randn(5, 3))
    assert (posterior.axis.batch, posterior.axis.is_open) == (0, False)
    assert all("forward" not in vars(module) for module in posterior.network.modules())
    with posterior.subset([1]):
        loss.backward(retain_graph=True)
        loss.backward()
        assert posterior.axis.chosen == (1,)
    assert (posterior.axis.batch, posterior.axis.is_open) == (0, False)


def test_particles_of_a_checkpointed_posterior_are_plain():
    posterior = deep().eval()
    bella.checkpoint(posterior)
    x = torch.randn(5, 4)
    plain = posterior.particle(1)
    torch.testing.assert_close(plain(x), posterior(x)[1])
    assert copy.deepcopy(posterior).recomputed == posterior.recomputed


@pytest.mark.parametrize("name", TRANSPORTS)
def test_fit_checkpoints_the_same_training(name):
    options = {"transport": name, "epochs": 2, "cache_prefix": False}
    plain, checkpointed = (make(network=Plain(0.2)) for _ in range(2))
    fit(plain, **options)
    fit(checkpointed, checkpoint=True, particles_per_pass="auto", **options)
    assert checkpointed.recomputed == ("blocks.2",)
    assert_same_particles(plain, checkpointed, rtol=0, atol=1e-6)
    fit(make(), checkpoint=["head"], epochs=1)


@pytest.mark.parametrize("kind", ["full", "rank1"])
def test_other_posteriors_of_a_network_that_checkpoints(kind):
    def gradients(checkpointed):
        network = vit()
        if checkpointed:
            checkpointed_by_transformers(network)
        torch.manual_seed(4)
        posterior = getattr(bella, kind)(network, 3).train()
        for value in posterior.stacked_parameters().values():
            value.data.add_(0.1 * torch.randn_like(value))
        x = inputs("vit")
        posterior.prove(x)
        torch.manual_seed(3)
        bella.nll(posterior(x).logits, Y).backward()
        return {name: p.grad for name, p in posterior.network.named_parameters()}

    expected, found = gradients(False), gradients(True)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value is not None:
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_bad_names_get_one_sentence():
    with pytest.raises(bella.BellaError, match="modules='stage' names no module"):
        bella.checkpoint(deep(), ("stage",))
    head = bella.low_rank(Deep(), 2, 2, ("stem",))
    with pytest.raises(bella.BellaError, match="no repeated blocks"):
        bella.checkpoint(head)
