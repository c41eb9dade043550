"""Choosing and exchanging layers: one way for all kinds of posterior, and nothing half done."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from helpers import mlp
from network_cases import bert, encoder, gpt2, vit
from torch import nn

import bella
from bella.particles import surgery, targets


def plain():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


MAKERS = {
    "the same layers": lambda n: bella.low_rank(n, 3, 2, ("2",)),
    "other layers": lambda n: bella.low_rank(n, 3, 2, ("0",)),
    "all": lambda n: bella.low_rank(n, 3, 2, "all-linear"),
    "heads": lambda n: bella.low_rank(n, 3, 2, (), modules_to_save=("4",)),
    "rank-1": lambda n: bella.rank1(n, 3),
    "sparse": lambda n: bella.sparse_subspace(n),
    "full": lambda n: bella.full(n, 3),
}


def structure(network):
    """All that a refusal must leave as it was."""
    return (
        [(name, type(m), id(m), m.training) for name, m in network.named_modules()],
        [(name, id(p), p.requires_grad) for name, p in network.named_parameters()],
        [(name, id(b)) for name, b in network.named_buffers()],
        [sorted(vars(m)) for m in network.modules()],
        {name: value.clone() for name, value in network.state_dict().items()},
    )


def assert_unchanged(network, before):
    after = structure(network)
    assert after[:-1] == before[:-1]
    for name, value in before[-1].items():
        assert torch.equal(after[-1][name], value), name


@pytest.mark.parametrize("first", ["the same layers", "heads", "rank-1", "sparse", "full"])
@pytest.mark.parametrize("again", MAKERS)
def test_a_network_that_has_particles_gets_no_others(first, again):
    posterior = MAKERS[first](plain())
    x = torch.randn(4, 6)
    posterior.eval()
    torch.manual_seed(0)
    expected = posterior(x)
    for network in (posterior.network, posterior, nn.Sequential(posterior.network)):
        before = structure(network)
        with pytest.raises(bella.BellaError, match="already") as error:
            MAKERS[again](network)
        assert "\n" not in str(error.value)
        assert_unchanged(network, before)
    torch.manual_seed(0)
    assert torch.equal(posterior(x), expected)
    MAKERS[again](posterior.particle(0))  # a plain one may be converted again


@pytest.mark.parametrize("kind", MAKERS)
def test_a_refused_load_leaves_the_network_as_it_was(kind, tmp_path):
    MAKERS[kind](plain()).save(tmp_path)
    network = plain().train()
    network[2].eval()
    network[0].bias.requires_grad_(False)
    network[4].weight.data += 1  # no kind of posterior stands on these weights or this shape
    network.append(nn.BatchNorm1d(2))
    before, x = structure(network), torch.randn(4, 6)
    with pytest.raises(bella.BellaError):
        bella.load(tmp_path, network)
    assert_unchanged(network, before)
    assert network(x).shape == (4, 2)
    MAKERS[kind](network)


def test_a_refused_load_of_an_encoder_leaves_its_fused_path(tmp_path):
    torch.manual_seed(0)
    bella.low_rank(encoder(), 2, 2, (r"layers\.1\.linear1",)).save(tmp_path)
    network = encoder()
    before = structure(network)
    with pytest.raises(bella.BellaError, match="another network"):
        bella.load(tmp_path, network)
    assert_unchanged(network, before)
    assert network.layers[1].activation_relu_or_gelu == 1


REFUSALS = {
    "no such layer": lambda n: bella.low_rank(n, 2, 2, ("fc3",)),
    "no such head": lambda n: bella.low_rank(n, 2, 2, ("0",), modules_to_save=("head",)),
    "rank": lambda n: bella.low_rank(n, 2, 6, ("0", "4")),
    "prefix": lambda n: bella.low_rank(n, 2, 2, ("0",), shared_prefix="blocks"),
    "prefix of rank-1": lambda n: bella.rank1(n, 2, shared_prefix="blocks"),
    "prefix of sparse": lambda n: bella.sparse_subspace(n, shared_prefix="blocks"),
    "reset": lambda n: bella.low_rank(
        n, 2, 2, ("0",), modules_to_save=("norm",), head_init="reset"
    ),
    "rank-1": lambda n: bella.rank1(n, 2, target_modules=("1",)),
    "sparse": lambda n: bella.sparse_subspace(n, target_modules=("1",)),
    "full": lambda n: bella.full(n, 2, trainable=("0",), reset=("4",)),
    "full's reset": lambda n: bella.full(n, 2, trainable=("norm",), reset=("norm",)),
}


class Gain(nn.Module):
    """A parameter without a way to begin anew."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return x * self.gain


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", ["", "0"])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_what_torch_jit_compiled_is_refused(make, name):
    network = torch.jit.script(plain())
    network = nn.Sequential(network, nn.Linear(2, 2)) if name else network
    with pytest.raises(bella.BellaError, match=r"^('0'|The network) is compiled by torch\.jit"):
        make(network)


@pytest.mark.parametrize("refused", REFUSALS.values(), ids=REFUSALS)
def test_every_check_comes_before_the_first_change(refused):
    network = plain()
    network.add_module("norm", Gain())
    before = structure(network)
    with pytest.raises(bella.BellaError) as error:
        refused(network)
    assert "\n" not in str(error.value)
    assert_unchanged(network, before)


# ---------------------------------------------------------------- the choices


@pytest.mark.parametrize(
    ("build", "wanted", "listed"),
    [
        (bert, ("fc1", "fc2"), ("query", "key", "value", "dense", "classifier")),
        (gpt2, ("fc1",), ("wte", "c_attn", "c_proj", "c_fc", "score")),
        (vit, ("query_key_value",), ("projection", "q_proj", "fc1", "classifier")),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.Tanh()), ("1",), ("0",)),
        (lambda: nn.Sequential(nn.Tanh()), ("fc1",), ("no layer",)),
    ],
)
@pytest.mark.parametrize("make", [bella.low_rank, bella.rank1, bella.sparse_subspace])
def test_a_wrong_target_is_answered_with_the_layers_that_can_be_named(make, build, wanted, listed):
    with pytest.raises(bella.BellaError, match="adapted") as error:
        make(build(), target_modules=wanted)
    said = str(error.value)
    tables = {"wte", "c_attn", "c_proj", "c_fc"} if make is not bella.low_rank else set()
    if make is bella.sparse_subspace and build is gpt2:
        listed = ("score",)  # it has no Conv1D
    assert all(name in said for name in listed if name != "wte" or not tables), said


def test_long_lists_of_choices_are_cut():
    said = targets.choices([f"blocks.0.layer{i}" for i in range(30)])
    assert "'layer11'" in said
    assert "'layer12'" not in said
    assert said.endswith("and 18 more")


def test_a_layer_that_could_not_be_chosen_is_not_among_the_choices():
    with pytest.raises(bella.BellaError, match="adapted") as error:
        bella.low_rank(encoder(), target_modules=("fc1",))
    assert "linear1" in str(error.value)
    assert "out_proj" not in str(error.value)


# ---------------------------------------------------------------- all-linear


def test_all_linear_is_every_linear_layer_but_heads_and_outputs():
    posterior = bella.low_rank(vit(), 2, 2, "all-linear", modules_to_save=("classifier",))
    assert sum(name.endswith("fc1") for name in posterior.layers()) == 3
    assert type(posterior.layers()["classifier"]).__name__ == "LinearCopies"
    kinds = {type(m) for m in posterior.network.modules() if not hasattr(m, "axis")}
    left = [n for n, m in posterior.network.named_modules() if isinstance(m, nn.Linear)]
    assert all(name.endswith(".base") for name in left)
    assert nn.Conv2d in kinds  # the patches are no Linear

    config = transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2)
    language = transformers.GPT2LMHeadModel(config)
    language.lm_head.weight = nn.Parameter(language.lm_head.weight.detach().clone())  # untied
    posterior = bella.low_rank(language, 2, 2, "all-linear")
    assert "lm_head" not in posterior.layers()
    assert len(posterior.layers()) == 4


def test_all_linear_leaves_out_what_does_not_take_the_rank_and_what_is_bypassed():
    network = plain()
    network.add_module("attention", nn.MultiheadAttention(8, 2))
    posterior = bella.low_rank(network, 2, 4, "all-linear")
    assert list(posterior.layers()) == ["0", "2"]
    with pytest.raises(bella.BellaError, match="rank 40"):
        bella.low_rank(plain(), 2, 40, "all-linear")
    with pytest.raises(bella.BellaError, match="Nothing to train"):
        bella.low_rank(nn.Sequential(nn.Tanh()), 2, 2, "all-linear")


def test_all_linear_comes_back_from_a_file(tmp_path):
    posterior = bella.low_rank(mlp(), 2, 2, "all-linear", b_std=0.3)
    posterior.save(tmp_path)
    x = torch.randn(3, 4, dtype=torch.float64)
    assert torch.equal(bella.load(tmp_path, mlp())(x), posterior(x))


# ---------------------------------------------------------------- one layer in several places


class Shared(nn.Module):
    """Holds one layer under two names, and one block in two places."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 4)
        self.second = self.first
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.Tanh())] * 3)
        self.head = nn.Linear(4, 3)
        self.also = self.head

    def forward(self, x):
        x = self.second(torch.tanh(self.first(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x) + self.also(2 * x)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: bella.low_rank(n, 3, 2, ("first",), modules_to_save=("head",), b_std=0.5),
        lambda n: bella.low_rank(n, 3, 2, (r"blocks\.0\.0",), modules_to_save=("also",), b_std=0.5),
        lambda n: bella.rank1(n, 3, "deterministic", random_sign_init=-0.5),
    ],
)
def test_a_layer_in_several_places_has_its_particles_in_all_of_them(make):
    posterior = make(Shared().eval()).eval()
    x = torch.randn(5, 4)
    for layer in posterior.layers().values():
        for site in layer.sites():
            for value in site.parameters:
                value.data += 0.1 * torch.randn_like(value)
    y = posterior(x)
    assert (y[0] - y[1]).abs().max() > 1e-2
    for i in range(3):
        torch.testing.assert_close(posterior.particle(i)(x), y[i])


class Holds(nn.Module):
    """Keeps a layer's weight as a parameter of its own as well."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.kept = self.inner.weight

    def forward(self, x):
        return self.inner(x) @ self.kept


@pytest.mark.parametrize(
    "make",
    [
        lambda n: bella.low_rank(n, 2, 2, ("inner",)),
        lambda n: bella.rank1(n, 2, target_modules=("inner",)),
        lambda n: bella.sparse_subspace(n, target_modules=("inner",)),
    ],
)
def test_a_weight_that_a_parent_holds_too_is_tied(make):
    network = Holds()
    before = structure(network)
    with pytest.raises(bella.BellaError, match="shares its weight with 'kept'"):
        make(network)
    assert_unchanged(network, before)


@pytest.mark.parametrize("what", ["target_modules", "modules_to_save"])
def test_nothing_in_multihead_attention_gets_particles(what):
    options = {"target_modules": (r"layers\.0\.linear1",)} | {what: ("out_proj",)}
    with pytest.raises(bella.BellaError, match="MultiheadAttention"):
        bella.low_rank(encoder(), 2, 2, **options)


def test_undoing_puts_back_whatever_happened():
    network = plain()
    before = structure(network)

    def attempt():
        with surgery.undone_if_refused(network):
            network[0].register_parameter("bias", None)
            network[2] = nn.Identity()
            network[4].note = "new"
            network.requires_grad_(False).eval()
            raise bella.BellaError("no")

    with pytest.raises(bella.BellaError, match="no"):
        attempt()
    assert_unchanged(network, before)


def test_copies_of_a_converted_network_are_apart():
    posterior = bella.low_rank(plain(), 2, 2, ("0",), modules_to_save=("4",), b_std=0.3)
    twin = copy.deepcopy(posterior)
    x = torch.randn(3, 6)
    expected = posterior(x)
    for p in twin.parameters():
        p.data.zero_()
    assert torch.equal(posterior(x), expected)
