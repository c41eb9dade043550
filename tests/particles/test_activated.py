"""Activation functions keep their input alone: the same outputs bit for bit, the same gradients."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch import nn
from transformers.activations import ACT2FN

import bella
from bella.particles.activated import Activated, Activation, activations, derivative_of

WRITTEN_OUT = {"quick_gelu": "quick", "gelu_new": "tanh", "gelu_fast": "tanh"}


@pytest.mark.parametrize("name", WRITTEN_OUT)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_outputs_are_the_modules_and_gradients_those_of_autograd(name, dtype):
    module = ACT2FN[name]
    assert derivative_of(module) == WRITTEN_OUT[name]
    source = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(40, 30, generator=source, dtype=torch.float64)).to(dtype)
    grad = torch.randn(40, 30, generator=source, dtype=torch.float64).to(dtype)
    plain, ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    output = Activation(module, WRITTEN_OUT[name])(ours)
    expected = module(plain)
    assert output.grad_fn.name() == "ActivatedBackward"
    assert torch.equal(output, expected)
    output.backward(grad)
    exact = x.double().requires_grad_()
    module(exact).backward(grad.double())
    # The constant of gelu_fast has ten digits.
    bound = {torch.float64: 1e-10, torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=bound, atol=bound)


def test_gradients_are_those_of_finite_differences():
    x = torch.linspace(-4, 4, 9, dtype=torch.float64, requires_grad=True)
    for name, kind in WRITTEN_OUT.items():
        assert torch.autograd.gradcheck(
            lambda x, n=name, k=kind: Activated.apply(x, ACT2FN[n], k), x
        )


def test_only_what_is_such_a_function_is_taken():
    class GeluOfPairs(nn.Module):
        def forward(self, x):
            a, b = x.chunk(2, -1)
            return a * b

    class SwishWithChance(nn.Module):
        def forward(self, x):
            return x * torch.rand_like(x)

    class GeluThatFails(nn.Module):
        def forward(self, x, y):
            return x

    class SteeperGelu(nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(1.703 * x)

    class Plain(nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(1.702 * x)

    before = torch.get_rng_state()
    others = [GeluOfPairs(), SwishWithChance(), GeluThatFails(), SteeperGelu(), Plain(), nn.GELU()]
    assert [derivative_of(module) for module in others] == [None] * 6
    assert torch.equal(torch.get_rng_state(), before)
    heard = copy.deepcopy(ACT2FN["quick_gelu"])
    heard.register_forward_hook(lambda module, args, output: None)
    assert derivative_of(heard) is None
    network = nn.Sequential(ACT2FN["quick_gelu"], nn.Sequential(ACT2FN["quick_gelu"]))
    assert set(activations(network, beside=("1",))) == {"0"}


def clip():
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    return transformers.CLIPVisionModel(config).double()


def test_a_posterior_runs_them_and_gives_plain_networks_back():
    posterior = bella.low_rank(clip(), 3, 2, ("fc1", "fc2"), b_std=0.1)
    assert [f.kind for f in posterior.functions()] == ["quick"] * 2
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    outputs = posterior(pixel_values=x).pooler_output
    outputs.square().sum().backward()
    for i in range(3):
        plain = posterior.particle(i)
        assert not any(isinstance(module, Activation) for module in plain.modules())
        names = [type(module).__name__ for module in plain.modules()]
        assert names.count("QuickGELUActivation") == 2
        said = plain(pixel_values=x).pooler_output
        torch.testing.assert_close(said, outputs[i].detach())
    other = copy.deepcopy(posterior)
    assert torch.equal(other(pixel_values=x).pooler_output, outputs)


def test_gradients_are_those_of_the_network_as_it_was():
    one, other = (bella.low_rank(clip(), 3, 2, ("fc1", "fc2"), b_std=0.1) for _ in range(2))
    for function in other.functions():
        function.forward = function.base.forward
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    for made in (one, other):
        made(pixel_values=x).pooler_output.square().sum().backward()
    theirs = other.stacked_parameters()
    for name, p in one.stacked_parameters().items():
        torch.testing.assert_close(p.grad, theirs[name].grad, rtol=1e-9, atol=1e-12)


def test_the_loop_and_what_is_recomputed_give_the_same():
    made = [
        bella.low_rank(clip(), 3, 2, ("fc1", "fc2"), b_std=0.1, folding=f)
        for f in ("auto", "never")
    ]
    made.append(bella.low_rank(clip(), 3, 2, ("fc1", "fc2"), b_std=0.1))
    bella.recompute(made[2].train(), ("activation_fn",))
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    for posterior in made:
        posterior(pixel_values=x).pooler_output.square().sum().backward()
    for other in made[1:]:
        theirs = other.stacked_parameters()
        for name, p in made[0].stacked_parameters().items():
            torch.testing.assert_close(p.grad, theirs[name].grad, rtol=1e-9, atol=1e-12)


def test_a_refused_conversion_leaves_them(tmp_path):
    network = clip()
    with pytest.raises(bella.BellaError):
        bella.low_rank(network, 3, 2, ("nothing",))
    assert not any(isinstance(module, Activation) for module in network.modules())
