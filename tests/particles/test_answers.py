"""What layers with particles answer to parents that look at them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
import transformers
from network_cases import VISION
from torch import Tensor, nn

import bella
from bella.particles.answers import StandIn, stand_in_for

MAKERS = {
    "low-rank": lambda net: bella.low_rank(net, 3, 2, ("inner",), b_std=0.3),
    "heads": lambda net: bella.low_rank(net, 3, 2, (), modules_to_save=("inner",)),
    "rank-1": lambda net: bella.rank1(net, 3, target_modules=("inner",)),
    "sparse": lambda net: bella.sparse_subspace(net, target_modules=("inner",)),
}


class Parent(nn.Module):
    """Asks the layer before it calls it."""

    def __init__(self, inner, ask):
        super().__init__()
        self.inner, self.ask = inner, ask

    def forward(self, x):
        return self.ask(self.inner, x)


ASKED = {
    "dtype": lambda inner, x: inner(x.to(inner.weight.dtype)),
    "the tensor itself": lambda inner, x: inner(x.to(inner.weight)),
    "type_as": lambda inner, x: inner(x.type_as(inner.weight)),
    "its kind": lambda inner, x: inner(x if isinstance(inner.weight, Tensor) else 0 * x),
    "device": lambda inner, x: inner(x.to(device=inner.weight.device)),
    "data": lambda inner, x: inner(x.to(inner.weight.data.dtype)),
    "shape": lambda inner, x: inner(x[..., : inner.weight.shape[1]]),
    "size": lambda inner, x: inner(x[..., : inner.weight.size(-1)]),
    "zeros": lambda inner, x: inner(x + torch.zeros_like(inner.weight).sum()),
    "new zeros": lambda inner, x: inner(x + inner.weight.new_zeros(4)),
    "width": lambda inner, x: inner(x.reshape(-1, inner.in_features))[:, : inner.out_features],
}
COMPUTED = {
    "linear": lambda inner, x: inner(x) + F.linear(x, inner.weight),
    "matmul": lambda inner, x: inner(x) + x @ inner.weight.mT,
    "a cast first": lambda inner, x: inner(x) + x @ inner.weight.float().T,
    "cat": lambda inner, x: inner(x) + F.linear(x, torch.cat([inner.weight, inner.weight])[:5]),
    "norm": lambda inner, x: inner(x) * inner.weight.norm(),
    "sum": lambda inner, x: inner(x) + inner.weight.sum(),
    "item": lambda inner, x: inner(x) + inner.weight.max().item(),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_parent_may_ask_what_kind_of_weight_it_is(make, ask):
    plain = make(Parent(nn.Linear(4, 5), lambda inner, x: inner(x))).eval()
    asking = copy.deepcopy(plain)
    asking.network.ask = ask
    x = torch.randn(6, 4)
    torch.manual_seed(0)
    expected = plain(x)
    torch.manual_seed(0)
    torch.testing.assert_close(asking(x), expected)


@pytest.mark.parametrize("compute", COMPUTED.values(), ids=COMPUTED)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_parent_that_computes_with_the_weight_is_told_so(make, compute):
    posterior = make(Parent(nn.Linear(4, 5), compute))
    with pytest.raises(bella.BellaError, match="weight of layer 'inner' itself") as error:
        posterior(torch.randn(6, 4))
    assert "\n" not in str(error.value)


def test_a_shared_bias_is_answered_and_copies_of_it_are_not():
    ask = lambda inner, x: inner(x) + inner.bias  # noqa: E731
    x, layer = torch.randn(6, 4), nn.Linear(4, 5)
    bias = layer.bias.detach().clone()
    posterior = bella.low_rank(Parent(layer, lambda inner, x: inner(x)), 3, 2, ("inner",), b_std=1)
    plain = posterior(x)
    posterior.network.ask = ask
    torch.testing.assert_close(posterior(x), plain + bias)
    heads = bella.low_rank(Parent(nn.Linear(4, 5), ask), 3, 2, (), modules_to_save=("inner",))
    with pytest.raises(bella.BellaError, match="weight of layer 'inner' itself"):
        heads(x)
    bare = Parent(nn.Linear(4, 5, bias=False), lambda inner, x: inner(x * (inner.bias is None)))
    assert bella.low_rank(bare, 3, 2, (), modules_to_save=("inner",))(x).any()


def test_a_convolution_answers_its_geometry():
    conv = nn.Conv2d(2, 4, 3, stride=2, padding=1, dilation=1)
    posterior = bella.low_rank(nn.Sequential(conv), 2, 2, ("0",))
    layer = posterior.layers()["0"]
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"):
        assert getattr(layer, name) == getattr(conv, name), name
    assert layer.groups == 1
    assert layer.padding_mode == "zeros"
    assert layer.weight.shape == conv.weight.shape
    assert layer.scale == 1.0
    assert layer.name == "0"
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        layer.nothing_of_the_kind  # noqa: B018


def test_a_stand_in_follows_casts_and_holds_nothing():
    like = stand_in_for("fc", torch.Size([3, 2]), dtype=torch.float64, device=torch.device("cpu"))
    assert type(like) is StandIn
    assert like.float().dtype == torch.float32
    assert like.detach() is like
    assert (like.ndim, like.numel(), like.requires_grad) == (2, 6, False)
    assert "fc" in repr(like)
    with pytest.raises(bella.BellaError, match="fc"):
        like + 1


def test_compiled_parents_may_ask_as_well():
    torch._dynamo.reset()
    parent = Parent(nn.Linear(4, 5), ASKED["dtype"])
    options = {"b_std": 0.3, "shared_prefix": False}
    posterior = bella.low_rank(parent, 2, 2, ("inner",), **options).eval()
    x = torch.randn(6, 4)
    with torch.no_grad():
        expected = posterior(x)
        compiled = torch.compile(posterior, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected)


# ---------------------------------------------------------------- networks that ask


def t5():
    sizes = {"vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2}
    network = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, num_heads=4))
    ids = torch.randint(2, 97, (4, 9))
    return network, {"input_ids": ids, "decoder_input_ids": ids}


def mamba():
    config = transformers.MambaConfig(
        vocab_size=50, hidden_size=16, state_size=4, num_hidden_layers=2, time_step_rank=4
    )
    return transformers.MambaForCausalLM(config), {"input_ids": torch.randint(2, 50, (4, 7))}


def pictures(kind, config, **sizes):
    network = kind(config(**(VISION | sizes)))
    return lambda: (network, {"pixel_values": torch.randn(4, 3, 16, 16)})


ASKING = {
    "T5": (t5, ("wi", "wo")),
    "Mamba": (mamba, ("x_proj", "out_proj")),
    "ViT": (
        pictures(transformers.ViTForImageClassification, transformers.ViTConfig),
        ("projection", "fc1"),
    ),
    "CLIP": (
        pictures(transformers.CLIPVisionModel, transformers.CLIPVisionConfig),
        ("patch_embedding", "fc1"),
    ),
    "SigLIP": (
        pictures(transformers.SiglipVisionModel, transformers.SiglipVisionConfig),
        ("patch_embedding", "fc1"),
    ),
    "DINOv2": (
        pictures(transformers.Dinov2Model, transformers.Dinov2Config),
        ("projection", "fc1"),
    ),
}


@pytest.mark.parametrize("name", ASKING)
def test_real_networks_that_look_at_a_weight_run(name):
    torch.manual_seed(0)
    build, targets = ASKING[name]
    network, inputs = build()
    posterior = bella.low_rank(network.eval(), 3, 2, targets, b_std=0.2)
    with torch.no_grad():
        y = posterior(**inputs)[0]
        assert (y[0] - y[1]).abs().max() > 1e-4
        for i in range(3):
            alone = posterior.particle(i)(**inputs)[0]
            torch.testing.assert_close(y[i], alone, rtol=1e-4, atol=1e-5)


def test_a_state_space_layer_that_is_multiplied_by_is_refused():
    network, inputs = mamba()
    posterior = bella.low_rank(network.eval(), 3, 2, ("dt_proj",), b_std=0.2)
    with pytest.raises(bella.BellaError, match="dt_proj' itself"):
        posterior(**inputs)
