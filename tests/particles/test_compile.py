"""torch.compile gives the numbers of the posterior as it is."""

from __future__ import annotations

import shutil

import pytest
import torch
from deep_cases import Y, assert_same, deep, hugging_face, inputs
from layer_cases import grads_of

import bella

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("c++") is None and shutil.which("g++") is None,
        reason="torch.compile needs a C++ compiler",
    ),
]


PARTS = ([0, 1, 2, 3], [1], [3, 0])


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def numbers(posterior, x, transport="repulsive", call=None, parts=PARTS):
    """Outputs and gradients of all particles, and of some."""
    move = bella.transport.by_name(transport, posterior, data_size=10)
    posterior.eval().prove(x)  # without dropout, whose random numbers a compiler draws its own way
    found = {}
    for part in parts:
        posterior.zero_grad()
        with posterior.subset(part):
            outputs = posterior(x) if call is None else call(x)
            logits = getattr(outputs, "logits", outputs)
            bella.nll(logits, Y).backward()
        found[f"outputs {part}"] = logits.detach()
        move.step()
        found |= {f"{name} {part}": grad for name, grad in grads_of(posterior).items()}
    return found


@pytest.mark.parametrize("transport", ["repulsive", "svgd"])
def test_compiled_blocks_give_the_same_numbers(transport):
    x = torch.randn(5, 4)
    expected = numbers(deep(), x, transport)
    posterior = deep()
    for block in posterior.network.blocks:
        block.compile()
    assert_same(numbers(posterior, x, transport), expected)


def test_compiled_blocks_of_transformers_give_the_same_numbers():
    x = inputs("vit")
    expected = numbers(hugging_face("vit", False), x, parts=PARTS[:1])
    posterior = hugging_face("vit", False)
    for block in posterior.network.vit.layers[2:]:
        block.compile()
    assert_same(numbers(posterior, x, parts=PARTS[:1]), expected)


def test_a_compiled_posterior_gives_the_same_numbers():
    x = torch.randn(5, 4)
    expected = numbers(deep(), x)
    posterior = deep()
    assert_same(numbers(posterior, x, call=torch.compile(posterior)), expected)
