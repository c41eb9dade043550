"""Attention in fewer bits: PyTorch's outputs bit for bit, gradients nearer to the exact ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bella
from bella.particles.attended import attending

BF16 = torch.bfloat16
CASES = {
    "plain": {},
    "causal": {"is_causal": True},
    "scaled": {"scale": 0.3},
    "bool mask": {"attn_mask": torch.arange(81).view(9, 9) % 4 != 1},
    "float mask": {"attn_mask": torch.linspace(-2, 2, 162).view(2, 1, 9, 9)},
}


def three(dtype):
    source = torch.Generator().manual_seed(0)
    made = [torch.randn(2, 3, 9, 8, generator=source).bfloat16().to(dtype) for _ in range(4)]
    return [x.requires_grad_() for x in made[:3]], made[3]


def attention(inputs, grad, dtype=None, **options):
    with torch.autocast("cpu", dtype or BF16, enabled=dtype is not torch.float64):
        output = F.scaled_dot_product_attention(*inputs, **options)
    return output, torch.autograd.grad(output, inputs, grad.to(output.dtype))


def error(found, exact):
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("given", [torch.float32, BF16])
def test_outputs_are_pytorchs_and_gradients_are_nearer_to_exact_ones(name, given):
    options = CASES[name]
    inputs, grad = three(given)
    theirs, their_gradients = attention(inputs, grad, **options)
    with torch.autocast("cpu", BF16), attending():
        ours = F.scaled_dot_product_attention(*inputs, **options)
    assert ours.grad_fn.name() == "AttendedBackward"
    assert torch.equal(ours, theirs)
    assert ours.dtype == theirs.dtype == BF16
    gradients = torch.autograd.grad(ours, inputs, grad.to(BF16))
    assert [x.dtype for x in gradients] == [given] * 3
    doubles, grad = three(torch.float64)
    if name == "float mask":
        options = {"attn_mask": options["attn_mask"].bfloat16().double()}
    _, exact = attention(doubles, grad, torch.float64, **options)
    for mine, other in zip(error(gradients, exact), error(their_gradients, exact), strict=True):
        assert mine < 0.01
        assert mine < 1.05 * other


def test_what_pytorch_would_not_fuse_in_fewer_bits_is_left_to_it():
    def run(inputs, enabled=True, **options):
        with torch.autocast("cpu", BF16, enabled=enabled), attending():
            return F.scaled_dot_product_attention(*inputs, **options).grad_fn

    inputs, _ = three(torch.float32)
    assert run(inputs).name() == "AttendedBackward"
    others = [
        run(inputs, dropout_p=0.5),
        run(inputs, enabled=False),
        run(three(torch.float64)[0]),
        run(inputs, attn_mask=torch.randn(9, 9, requires_grad=True)),
        run([inputs[0], inputs[1][:, :1], inputs[2][:, :1]], enable_gqa=True),
        run([torch.randn(1, 1, 257, 8, requires_grad=True) for _ in range(3)]),
    ]
    assert all(fn.name() != "AttendedBackward" for fn in others)
    assert run([x.detach() for x in inputs]) is None


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(8, 24)
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        heads = self.mix(x).unflatten(-1, (6, 4)).transpose(1, 2).chunk(3, 1)
        self.seen = F.scaled_dot_product_attention(*heads)
        return x + self.fc(self.seen.transpose(1, 2).flatten(2))


def posterior():
    torch.manual_seed(0)
    network = nn.Sequential(Attends(), Attends(), nn.Flatten(), nn.Linear(32, 3))
    return bella.low_rank(network, 3, 2, ("mix", "fc"), b_std=0.1, seed=1).train()


def grads_of(made):
    return {name: p.grad.clone() for name, p in made.stacked_parameters().items()}


def gradients_of(made, x):
    with torch.autocast("cpu", BF16):
        logits = made(x)
    logits.float().square().sum().backward()
    return logits, grads_of(made)


def test_a_pass_attends_so_and_nobody_else_does():
    made, x = posterior(), torch.randn(5, 4, 8)
    gradients_of(made, x)
    assert made.network[0].seen.grad_fn.name() == "AttendedBackward"
    inputs, _ = three(torch.float32)
    with torch.autocast("cpu", BF16):
        assert F.scaled_dot_product_attention(*inputs).grad_fn.name() != "AttendedBackward"
    made(x)  # in float32
    assert made.network[0].seen.grad_fn.name() != "AttendedBackward"


def test_what_runs_again_in_backward_attends_so_too():
    x = torch.randn(5, 4, 8, generator=torch.Generator().manual_seed(1))
    one, other = posterior(), posterior()
    bella.recompute(other, ("0", "1"))
    logits, gradients = gradients_of(one, x)
    again, same = gradients_of(other, x)
    assert torch.equal(logits, again)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, same[name]), name


def test_the_loop_gives_the_same_gradients():
    x = torch.randn(5, 4, 8, generator=torch.Generator().manual_seed(1))
    made = posterior()
    _, together = gradients_of(made, x)
    made.zero_grad()
    for i in range(3):
        with made.subset([i]):
            gradients_of(made, x)
    for name, gradient in grads_of(made).items():
        apart = (gradient - together[name]).norm() / together[name].norm()
        assert apart < 0.02, name  # bfloat16 sums other rows in another order
