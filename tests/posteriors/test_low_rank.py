"""Low-rank particles against PEFT, against their merged networks, and against dense formulas."""

from __future__ import annotations

import copy
import warnings
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
import transformers
from helpers import adapted, batch, changes, gradients, mlp
from network_cases import (
    NETWORKS,
    Skips,
    call,
    convnet,
    encoder,
    gpt2,
    images,
    make,
    tokens,
    vit,
)
from torch import nn

import bella
from bella.likelihood import logits_of
from bella.posteriors.low_rank.product import LowRankProduct


@pytest.mark.parametrize("name", NETWORKS)
def test_one_pass_is_every_merged_network_by_itself(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a fallback to no sharing would warn
        posterior, inputs = make(name)
        with torch.no_grad():
            together = call(posterior, inputs)
    assert together.shape[:2] == (3, 4)
    assert (together[0] - together[1]).abs().max() > 1e-4
    with torch.no_grad():
        for i in range(3):
            alone = call(posterior.particle(i), inputs)
            torch.testing.assert_close(together[i], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_shared_prefix_changes_nothing(name):
    found = []
    for shared in (True, False):
        posterior, inputs = make(name, shared_prefix=shared)
        outputs = call(posterior, inputs)
        outputs.square().sum().backward()
        found.append((outputs.detach(), gradients(posterior)))
        assert (posterior.shared is not None) == shared
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-5)
    for key, value in found[0][1].items():
        torch.testing.assert_close(value, found[1][1][key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "lite", "gpt2"])
def test_the_prefix_runs_once_for_all_particles(name):
    posterior, inputs = make(name)
    first = {
        "vit": "vit.layers.0" if hasattr(posterior.network, "vit") else "",
        "lite": "_blocks.3",
        "gpt2": "transformer.h.0",
    }[name]
    last = {"vit": "vit.layers.2", "lite": "_blocks.15", "gpt2": "transformer.h.2"}[name]
    rows = {first: [], last: []}
    for place in rows:
        posterior.network.get_submodule(place).register_forward_hook(
            lambda module, args, output, seen=rows[place]: seen.append(args[0].shape[0])
        )
    call(posterior, inputs)
    for place in rows.values():
        place.clear()  # what the proof ran
    for _ in range(2):
        call(posterior, inputs)
        placeholders = [r for r in rows[first] if r != 4]
        assert 4 in rows[first]
        assert set(placeholders) <= {12}
        assert rows[last][-1] == 12


def test_a_kept_stream_continues_to_the_same_outputs():
    posterior, inputs = make("vit")
    stream = posterior.prefix(*inputs["args"])
    again = stream.with_carried(stream.carried())
    expected = posterior(*inputs["args"]).logits
    torch.testing.assert_close(posterior(stream).logits, expected)
    torch.testing.assert_close(posterior(again).logits, expected)


def test_a_network_that_skips_past_the_entrance_shares_nothing_and_is_right():
    posterior = bella.low_rank(Skips(), 3, 2, ("blocks.2",), b_std=0.3)
    x = torch.randn(5, 4)
    with pytest.warns(UserWarning, match="shared_prefix=False"):
        outputs = posterior(x)
    for i in range(3):
        torch.testing.assert_close(outputs[i], posterior.particle(i)(x))
    outputs.sum().backward()
    assert all(p.grad is not None for p in posterior.stacked_parameters().values())


class Masks(Skips):
    """Compares its input before the entrance; a comparison hides that it is NaN."""

    def forward(self, x):
        mask = (x.abs().sum(-1) > 0).float()
        h = self.stem(x)
        for block in self.blocks:
            h = torch.tanh(block(h))
        return h * mask[:, None]


def test_a_comparison_past_the_entrance_is_noticed_too():
    posterior = bella.low_rank(Masks(), 3, 2, ("blocks.2",), b_std=0.3)
    x = torch.randn(5, 4)
    with pytest.warns(UserWarning, match="shared_prefix=False"):
        outputs = posterior(x)
    for i in range(3):
        torch.testing.assert_close(outputs[i], posterior.particle(i)(x))


@pytest.mark.parametrize("name", ["vit", "gpt2", "conv"])
def test_particles_are_peft_networks_forward_and_backward(name):
    import peft

    build, inputs, target = {
        "vit": (vit, images, ["fc1", "fc2", "query"]),
        "gpt2": (gpt2, tokens, ["c_attn", "c_fc"]),
        "conv": (convnet, images, ["0", "2", "4"]),
    }[name]
    torch.manual_seed(0)
    base = build().eval()
    if name == "vit" and not any("query" in n for n, _ in base.named_modules()):
        target = ["fc1", "fc2", "q_proj"]
    given = inputs()
    posterior = bella.low_rank(copy.deepcopy(base), 3, 4, target, alpha=8, b_std=0.1)
    ours = call(posterior, given)
    ours.square().sum().backward()
    for i in range(3):
        config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=target)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT tells that it set fan_in_fan_out for Conv1D
            theirs = peft.get_peft_model(copy.deepcopy(base), config)
        pairs = {}
        for place, layer in posterior.layers().items():
            lora = theirs.base_model.model.get_submodule(place)
            A, B = lora.lora_A["default"].weight, lora.lora_B["default"].weight
            A.data = layer.A.data[i].reshape(A.shape).clone()
            B.data = layer.B.data[i].reshape(B.shape).clone()
            pairs[place] = (A, B)
        outputs = call(theirs.eval(), given)
        torch.testing.assert_close(ours[i], outputs, rtol=1e-5, atol=1e-6)
        outputs.square().sum().backward()
        for place, (A, B) in pairs.items():
            layer = posterior.layers()[place]
            for one, two in ((layer.A.grad[i], A.grad), (layer.B.grad[i], B.grad)):
                near = 2e-6 * max(float(two.abs().max()), 1)
                torch.testing.assert_close(one, two.reshape(one.shape), rtol=0, atol=near)


@pytest.mark.parametrize("transport", ["ensemble", "repulsive", "svgd", "function"])
def test_one_particle_trains_as_peft_does(transport):
    import peft

    torch.manual_seed(0)
    base = vit()
    targets = ["fc1", "fc2"]
    posterior = bella.low_rank(copy.deepcopy(base), 1, 4, targets, alpha=8)
    theirs = peft.get_peft_model(
        copy.deepcopy(base), peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets)
    )
    for place, layer in posterior.layers().items():
        lora = theirs.base_model.model.get_submodule(place)
        lora.lora_A["default"].weight.data.copy_(layer.A.data[0])
        lora.lora_B["default"].weight.data.copy_(layer.B.data[0])
    x, y = torch.randn(6, 3, 16, 16), torch.randint(3, (6,))
    move = getattr(bella.transport, transport)(posterior, data_size=6)
    first = torch.optim.AdamW(posterior.stacked_parameters().values(), lr=1e-2)
    second = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(5):
        first.zero_grad()
        bella.nll(posterior(x), y).backward()
        move.step()
        first.step()
        second.zero_grad()
        F.cross_entropy(theirs(x).logits, y).backward()
        second.step()
    for place, layer in posterior.layers().items():
        lora = theirs.base_model.model.get_submodule(place)
        torch.testing.assert_close(layer.A[0], lora.lora_A["default"].weight, rtol=0, atol=2e-6)
        torch.testing.assert_close(layer.B[0], lora.lora_B["default"].weight, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("particles", "total"),
    [(1, 368_640), (3, 1_105_920), (5, 1_843_200), (20, 7_372_800), (100, 36_864_000)],
)
def test_clip_vit_b_32_has_the_papers_count(particles, total):
    with torch.device("meta"):
        network = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(patch_size=32))
        posterior = bella.low_rank(network, particles, 4, ("fc1", "fc2"))
    counted = sum(p.numel() for p in posterior.stacked_parameters().values())
    assert counted == total
    assert bella.cost(posterior)["trainable"] == total
    assert bella.cost(posterior)["trainable_per_particle"] == 368_640


def test_chunks_give_the_gradients_of_one_pass():
    x, y = batch()
    posterior = adapted()
    bella.nll(posterior(x), y).backward()
    whole = gradients(posterior)
    posterior.zero_grad()
    for chunk in ([0, 1], [2], [3]):
        with posterior.subset(chunk):
            bella.nll(posterior(x), y).backward()
    for key, value in gradients(posterior).items():
        torch.testing.assert_close(value, whole[key], rtol=0, atol=1e-12)


def test_a_subset_may_be_in_any_order():
    x, _ = batch()
    posterior = adapted()
    with posterior.subset([3, 1]):
        some = posterior(x)
    torch.testing.assert_close(some, posterior(x)[[3, 1]])
    assert posterior(x).shape[0] == 4


@pytest.mark.parametrize("wrong", [[], [4], [-1], [0, 0]])
def test_wrong_subsets_are_refused(wrong):
    with pytest.raises(bella.BellaError), adapted().subset(wrong):
        pass


Pair = namedtuple("Pair", "logits hidden")


@dataclass
class Answer:
    logits: torch.Tensor
    note: str = "kept"


class Wraps(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.body = nn.Linear(4, 3)
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.body(x))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: y,
        lambda y: (y, y + 1),
        lambda y: [y, None],
        lambda y: {"logits": y},
        lambda y: Pair(y, y),
        lambda y: Answer(y),
        lambda y: transformers.modeling_outputs.ImageClassifierOutput(logits=y),
    ],
)
def test_outputs_keep_their_type(wrap):
    network = Wraps(wrap)
    x = torch.randn(5, 4)
    plain = network(x)
    posterior = bella.low_rank(network, 3, 2, ("body",))
    outputs = posterior(x)
    assert type(outputs) is type(plain)
    assert logits_of(outputs).shape == (3, 5, 3)
    if isinstance(outputs, Answer):
        assert outputs.note == "kept"


def test_each_particle_may_have_inputs_of_its_own():
    posterior = adapted()
    x = torch.randn(4, 7, 4, dtype=torch.float64)
    with posterior.own_inputs():
        outputs = posterior(x)
    for i in range(4):
        torch.testing.assert_close(outputs[i], posterior.particle(i)(x[i]))
    with posterior.own_inputs(), pytest.raises(bella.BellaError, match="own_inputs"):
        posterior(x[:2])


def test_the_soup_averages_products_and_not_factors():
    posterior = adapted()
    base = mlp()
    soup = posterior.soup()
    assert [type(m) for m in soup] == [type(m) for m in base]
    for place, delta in zip((0, 2), changes(posterior), strict=True):
        torch.testing.assert_close(soup[place].weight, base[place].weight + delta.mean(0))
    layer = posterior.layers()["0"]
    factors = layer.scale * layer.B.mean(0) @ layer.A.mean(0)
    assert not torch.allclose(soup[0].weight, base[0].weight + factors, atol=1e-3)


@pytest.mark.parametrize("name", ["gpt2", "resnet", "lite"])
def test_soups_of_transposed_and_convolution_weights(name):
    posterior, _ = make(name)
    build = NETWORKS[name][0]
    torch.manual_seed(0)
    base = build()
    soup = posterior.soup()
    for place, layer in posterior.layers().items():
        if not hasattr(layer, "change"):
            continue
        mean = torch.stack([layer.change(i) for i in range(3)]).mean(0)
        weight = base.get_submodule(place).weight
        shaped = mean.mT if type(layer.base).__name__ == "Conv1D" else mean.reshape(weight.shape)
        torch.testing.assert_close(soup.get_submodule(place).weight, weight + shaped)


def test_plain_networks_run_without_the_library():
    posterior, inputs = make("vit")
    for plain in (posterior.particle(1), posterior.soup()):
        assert type(plain) is type(posterior.network)
        assert not any(type(m).__module__.startswith("bella") for m in plain.modules())
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in plain.modules())
        assert call(plain, inputs).shape == (4, 3)
    with pytest.raises(bella.BellaError, match="no particle 3"):
        posterior.particle(3)


def test_the_base_is_frozen_and_batch_norm_keeps_its_statistics():
    posterior, inputs = make("resnet")
    posterior.train()
    before = {k: v.clone() for k, v in posterior.network.named_buffers()}
    call(posterior, inputs).sum().backward()
    trained = set(posterior.stacked_parameters())
    for name, p in posterior.network.named_parameters():
        assert (p.grad is not None) == (name in trained)
    for name, value in posterior.network.named_buffers():
        assert torch.equal(value, before[name])


def test_dropout_differs_between_particles_and_repeats_with_a_seed():
    network = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 2))
    posterior = bella.low_rank(network, 2, 2, ("0",))  # B = 0: the particles are equal
    posterior.train()
    x = torch.randn(3, 4)
    torch.manual_seed(0)
    first = posterior(x)
    torch.manual_seed(0)
    assert torch.equal(posterior(x), first)
    assert not torch.allclose(first[0], first[1])
    posterior.eval()
    # A batched product may round its rows differently.
    assert torch.allclose(posterior(x)[0], posterior(x)[1], atol=1e-6)


def test_starts_follow_the_seed_and_not_the_number_of_particles():
    few, many = adapted(particles=2, seed=3), adapted(particles=5, seed=3)
    other = adapted(particles=2, seed=4)
    for one, two, three in zip(
        few.layers().values(), many.layers().values(), other.layers().values(), strict=True
    ):
        assert torch.equal(one.A, two.A[:2])
        assert torch.equal(one.B, two.B[:2])
        assert not torch.equal(one.A, three.A)
        assert not torch.equal(one.A[0], one.A[1])


def test_kinds_of_starts():
    wide = lambda **o: bella.low_rank(nn.Sequential(nn.Linear(400, 300)), 2, 8, ("0",), **o)  # noqa: E731
    A = {init: wide(init=init).layers()["0"].A for init in ("kaiming", "xavier", "normal")}
    assert A["kaiming"].abs().max() <= 1 / 20  # √(6 / (1 + 5) / 400)
    assert A["xavier"].abs().max() <= (6 / 408) ** 0.5
    assert A["normal"].std().item() == pytest.approx(1 / 20, rel=0.05)
    torch.testing.assert_close(wide(gain=10.0).layers()["0"].A, 10 * A["kaiming"])
    assert not wide().layers()["0"].B.any()
    assert wide(b_std=0.3).layers()["0"].B.std().item() == pytest.approx(0.3, rel=0.05)
    assert wide(alpha=16).layers()["0"].scale == 2
    assert wide(alpha=16, rslora=True).layers()["0"].scale == pytest.approx(16 / 8**0.5)


def test_heads_are_copies_that_may_start_apart():
    x = torch.randn(5, 4)
    same = bella.low_rank(mlp(dtype=torch.float32), 3, 2, ("0",), modules_to_save=("2",))
    apart = bella.low_rank(
        mlp(dtype=torch.float32), 3, 2, ("0",), modules_to_save=("2",), head_init="reset"
    )
    assert torch.equal(same(x)[0], same(x)[1])
    assert not torch.allclose(apart(x)[0], apart(x)[1])
    for i in range(3):
        torch.testing.assert_close(apart(x)[i], apart.particle(i)(x))


def test_a_head_may_be_any_module():
    body = nn.Linear(4, 6)
    head = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3))
    network = nn.Sequential()
    network.add_module("body", body)
    network.add_module("head", head)
    posterior = bella.low_rank(
        network, 3, 2, ("body",), modules_to_save=("head",), b_std=0.3, head_init="reset"
    )
    x = torch.randn(5, 4)
    outputs = posterior(x)
    outputs.square().sum().backward()
    for i in range(3):
        torch.testing.assert_close(outputs[i], posterior.particle(i)(x))
        assert all(p.grad[i].abs().sum() > 0 for p in posterior.stacked_parameters().values())


@pytest.mark.parametrize("channels_first", [False, True])
def test_the_fused_product_has_the_right_gradients(channels_first):
    torch.manual_seed(0)
    options = {"dtype": torch.float64, "requires_grad": True}
    x = torch.randn(*((6, 4, 2, 2) if channels_first else (6, 3, 4)), **options)
    A, B = torch.randn(2, 2, 4, **options), torch.randn(2, 5, 2, **options)
    weight, bias = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, A, B: LowRankProduct.apply(x, weight, bias, A, B, 1.7, channels_first), (x, A, B)
    )


def test_gradients_of_the_factors_have_the_layout_of_the_factors():
    torch.manual_seed(0)
    A, B = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 5, 3, requires_grad=True)
    y = LowRankProduct.apply(torch.randn(6, 7, 4), torch.randn(5, 4), None, A, B, 1.0, False)
    for factor, gradient in zip((A, B), torch.autograd.grad(y.sum(), (A, B)), strict=True):
        assert gradient.stride() == factor.stride()


@pytest.mark.parametrize("transport", ["ensemble", "svgd"])
def test_activations_may_work_in_place(transport):
    def build(inplace):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 1),
            nn.ReLU(inplace),
            nn.Conv2d(4, 4, 1),
            nn.ReLU(inplace),
            nn.Conv2d(4, 4, 3),
            nn.ReLU(inplace),
            nn.Flatten(),
            nn.Linear(16, 5),
            nn.ReLU(inplace),
            nn.Linear(5, 3),
        )

    x, y = torch.randn(4, 3, 4, 4), torch.randint(3, (4,))
    found = []
    for inplace in (False, True):
        targets = ("0", "2", "4", "7", "9")
        posterior = bella.low_rank(build(inplace), 2, 2, targets, b_std=0.3)
        move = getattr(bella.transport, transport)(posterior, data_size=10)
        bella.nll(posterior(x), y).backward()
        move.step()
        found.append(gradients(posterior))
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key])


def test_bfloat16_by_autocast_and_as_the_bases_own():
    torch.manual_seed(0)
    base = vit()
    x = torch.randn(4, 3, 16, 16)
    y = torch.randint(3, (4,))
    build = {"rank": 4, "target_modules": ("fc1", "fc2"), "modules_to_save": ("classifier",)}
    exact = bella.low_rank(copy.deepcopy(base), 2, b_std=0.1, **build)
    reference = exact(x).logits
    with torch.autocast("cpu", torch.bfloat16):
        loss = bella.nll(exact(x), y)
    loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in exact.stacked_parameters().values())
    half = bella.low_rank(copy.deepcopy(base).bfloat16(), 2, b_std=0.1, **build)
    outputs = half(x.bfloat16()).logits
    assert outputs.dtype == torch.bfloat16
    assert half.layers()[next(iter(half.layers()))].A.dtype == torch.float32
    assert "folded from" in str(half.plan())  # its rounding is not taken for a difference
    torch.testing.assert_close(outputs.float(), reference, rtol=0, atol=0.05)


def test_transformer_encoder_layers_use_their_particles_in_evaluation():
    posterior, inputs = make("encoder")
    with torch.inference_mode():
        outputs = call(posterior.eval(), inputs)
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-3)


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = (self.weight - self.weight.mean()) / (self.weight.std() + 1e-6)
        return F.conv2d(x, weight, self.bias, padding=1)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.out = nn.Linear(4, 10, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x):
        return self.out(self.embed(x))


@pytest.mark.parametrize(
    ("build", "options", "words"),
    [
        (mlp, {"target_modules": ("fc3",)}, "that can be adapted are '0', '2'"),
        (mlp, {"target_modules": ("0",), "rank": 0}, "rank=0"),
        (mlp, {"target_modules": ("0",), "rank": 5}, "from 1 to 4"),
        (mlp, {"target_modules": ("0",), "particles": 0}, "at least 1"),
        (mlp, {"target_modules": ("1",)}, "Tanh"),
        (mlp, {"target_modules": ()}, "Nothing to train"),
        (mlp, {"target_modules": ("0",), "init": "zeros"}, "init"),
        (mlp, {"target_modules": ("0",), "modules_to_save": ("head",)}, "modules_to_save"),
        (mlp, {"target_modules": ("0",), "shared_prefix": "block"}, "shared_prefix"),
        (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), {"target_modules": ("0",)}, "groups"),
        (lambda: nn.Sequential(Standardised(3, 4, 3)), {"target_modules": ("0",)}, "additive"),
        (encoder, {"target_modules": ("out_proj",)}, "MultiheadAttention"),
        (Tied, {"target_modules": ("out",)}, "shares its weight"),
    ],
)
def test_bad_input_gets_one_sentence_and_changes_nothing(build, options, words):
    network = build()
    before = [type(m) for m in network.modules()]
    trained = [p.requires_grad for p in network.parameters()]
    with pytest.raises(bella.BellaError, match=words) as error:
        bella.low_rank(network, **({"rank": 2} | options))
    assert "\n" not in str(error.value)
    assert [type(m) for m in network.modules()] == before
    assert [p.requires_grad for p in network.parameters()] == trained


def test_the_network_by_itself_refuses_to_run():
    posterior = adapted()
    with pytest.raises(bella.BellaError, match="call the posterior"):
        posterior.network(batch()[0])
    with pytest.raises(bella.BellaError, match="at least one tensor"):
        posterior()


class Bypasses(nn.Module):
    """Reads a layer's width and never calls the layer."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x):
        return F.linear(x, torch.ones(self.inner.out_features, 4))


@pytest.mark.filterwarnings("ignore:Nothing is shared")
def test_a_layer_that_never_runs_is_reported():
    posterior = bella.low_rank(Bypasses(), 2, 2, ("inner",))
    with pytest.raises(bella.BellaError, match="without calling"):
        posterior(torch.randn(5, 4))


def test_errors_of_the_network_itself_come_through():
    posterior, _ = make("vit")
    with pytest.raises(ValueError, match="channel"):
        posterior(torch.randn(4, 2, 16, 16))
