"""Split attention is torch's own, whatever it is asked for."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

import bella
from bella.models import split_attention

B, L, S, E, H = 3, 4, 5, 8, 2


def whole(**options):
    torch.manual_seed(0)
    made = nn.MultiheadAttention(E, H, dtype=torch.float64, **options).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn_like(p))
    return made


def split(module):
    network = nn.ModuleDict({"attention": copy.deepcopy(module)})
    assert split_attention(network) == ["attention"]
    return network["attention"]


def draw(*shape):
    return torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape))
    )


MASKS = {
    "none": None,
    "bool": torch.ones(L, S, dtype=torch.bool).triu(2),
    "float": draw(L, S),
    "each": draw(B * H, L, S),
}
PADDINGS = {"none": None, "bool": torch.arange(S) >= torch.tensor([[5], [3], [4]])}

KINDS = ({}, {"batch_first": True}, {"bias": False}, {"kdim": 6, "vdim": 7})


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.filterwarnings("ignore:Support for mismatched")
def test_it_computes_what_torch_computes(options, mask, padding):
    theirs = whole(**options)
    ours = split(theirs)
    first = options.get("batch_first", False)
    q = draw(B, L, E)
    k, v = draw(B, S, options.get("kdim", E)), draw(B, S, options.get("vdim", E))
    inputs = (q, k, v) if first else tuple(x.transpose(0, 1) for x in (q, k, v))
    for need, average in itertools.product((True, False), repeat=2):
        asked = {
            "attn_mask": MASKS[mask],
            "key_padding_mask": PADDINGS[padding],
            "need_weights": need,
            "average_attn_weights": average,
        }
        for one, two in zip(ours(*inputs, **asked), theirs(*inputs, **asked), strict=True):
            assert (one is None) == (two is None)
            if one is not None:
                torch.testing.assert_close(one, two)


def test_one_sequence_and_gradients():
    theirs = whole()
    ours = split(theirs)
    q, k = draw(L, E), draw(S, E)
    torch.testing.assert_close(ours(q, k, k)[0], theirs(q, k, k)[0])
    x, y = draw(B, L, E).requires_grad_(), draw(B, L, E).requires_grad_()
    ours(x, x, x)[0].square().sum().backward()
    theirs(y, y, y)[0].square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    grads = [getattr(ours, f"{name}_proj").weight.grad for name in "qkv"]
    torch.testing.assert_close(torch.cat(grads), theirs.in_proj_weight.grad)


def test_it_stands_in_torch_s_encoder_in_both_modes():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(E, H, 12, dropout=0.0, batch_first=True)
    theirs = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    ours = copy.deepcopy(theirs)
    assert len(split_attention(ours)) == 2
    x = torch.randn(B, L, E)
    for mode in (True, False):
        with torch.no_grad():
            torch.testing.assert_close(ours.train(mode)(x), theirs.train(mode)(x))
    posterior = bella.low_rank(ours.eval(), 3, 2, ("q_proj", "out_proj"), b_std=0.5)
    found = posterior(x)
    for i in range(3):
        torch.testing.assert_close(found[i], posterior.particle(i)(x), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_split_is_refused_and_left():
    network = nn.ModuleList([whole(), whole(add_zero_attn=True)])
    with pytest.raises(bella.BellaError, match="add_zero_attn cannot be split"):
        split_attention(network)
    assert type(network[0]) is nn.MultiheadAttention
    with pytest.raises(bella.BellaError, match=r"call bella\.models\.split_attention"):
        bella.low_rank(nn.Sequential(whole()), 2, 1, ("out_proj",))
    with pytest.raises(bella.BellaError, match="give the mask as well"):
        split(whole())(draw(L, B, E), draw(L, B, E), draw(L, B, E), is_causal=True)
