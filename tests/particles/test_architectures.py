"""What "auto" means, and that its particles are PEFT's LoRA networks, for every kind of network.

The zoo's own test looks at every suffix alone, against a loop that is written without PEFT. Here
PEFT itself is the judge, on what its users would adapt, in float32 and under bf16 autocast.
"""

from __future__ import annotations

import copy
import warnings

import peft
import pytest
import torch
from torch import nn
from zoo import ZOO
from zoo_compare import ROUNDING, gradients_differ, outputs_differ
from zoo_oracle import directions, leaves

import bella
from bella.models import Defaults, guess_defaults
from bella.particles import architectures
from bella.particles.architectures import heads_of, targets_of
from bella.particles.targets import find

EXPECTED = {
    "clip": (("q_proj", "v_proj"), ()),
    "siglip": (("q_proj", "v_proj"), ()),
    "vit": (("q_proj", "v_proj"), ("classifier",)),
    "deit": (("q_proj", "v_proj"), ("cls_classifier", "distillation_classifier")),
    "dinov2": (("q_proj", "v_proj"), ("classifier",)),
    "swin": (("q_proj", "v_proj"), ("classifier",)),
    "timm-vit": (("qkv",), ("head",)),
    "timm-swin": (("qkv",), ("head.fc",)),
    "bert": (("query", "value"), ("classifier",)),
    "roberta": (("query", "value"), ("classifier",)),
    "distilbert": (("q_lin", "v_lin"), ("pre_classifier", "classifier")),
    "deberta-v2": (("query_proj", "value_proj"), ("pooler", "classifier")),
    "modernbert": (("Wqkv",), ("head", "classifier")),
    "gpt2": (("c_attn",), ()),
    "gpt2-sequence": (("c_attn",), ("score",)),
    "llama": (("q_proj", "v_proj"), ()),
    "llama-sequence": (("q_proj", "v_proj"), ("score",)),
    "qwen2": (("q_proj", "v_proj"), ()),
    "qwen3-tokens": (("q_proj", "v_proj"), ("score",)),
    "gemma": (("q_proj", "v_proj"), ()),
    "mistral": (("q_proj", "v_proj"), ()),
    "mixtral": (("q_proj", "v_proj"), ()),
    "phi": (("q_proj", "v_proj", "fc1", "fc2"), ()),
    "mamba": (("in_proj", "x_proj"), ()),
    "t5": (("q", "v"), ()),
    "llava": ((r".*language_model\..*\.q_proj", r".*language_model\..*\.v_proj"), ()),
    "paligemma": ((r".*language_model\..*\.q_proj", r".*language_model\..*\.v_proj"), ()),
    "whisper": (("q_proj", "v_proj"), ()),
    "whisper-encoder": (("q_proj", "v_proj"), ("projector", "classifier")),
    "open-clip": (("c_fc", "c_proj"), None),
    "open-clip-split": (("q_proj", "v_proj"), None),
}
"""Targets and heads; ``None`` where no head is found."""

JUDGED = [*EXPECTED, "convnext", "resnet", "efficientnet", "timm-convnext", "timm-efficientnet"]


@pytest.mark.parametrize("name", EXPECTED)
def test_auto_is_what_users_of_lora_adapt(name):
    network = ZOO[name].network(name)
    targets, heads = EXPECTED[name]
    assert targets_of(network) == targets
    if heads is None:
        with pytest.raises(bella.BellaError, match="no head is found"):
            heads_of(network)
    else:
        assert heads_of(network) == heads
        assert guess_defaults(network) == Defaults(targets, heads)


def test_convolutional_networks_adapt_every_matrix_between_the_first_and_the_head():
    network = ZOO["resnet"].network("resnet")
    found = find(network, targets_of(network))
    every = [name for name, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    assert found == every[1:]
    assert heads_of(network) == ("classifier.1",)  # the Linear behind a Flatten
    network = ZOO["timm-regnet"].network("timm-regnet")
    assert all(network.get_submodule(n).groups == 1 for n in find(network, targets_of(network)))


def test_settings_say_what_auto_was_and_rebuild_it(tmp_path):
    base = ZOO["bert"].network("bert")
    posterior = bella.low_rank(copy.deepcopy(base), 2, 2, "auto", modules_to_save="auto")
    assert posterior.settings["target_modules"] == ["query", "value"]
    assert posterior.settings["modules_to_save"] == ["classifier"]
    posterior.save(tmp_path)
    bella.load(tmp_path, copy.deepcopy(base))
    other = bella.rank1(copy.deepcopy(base), 2, target_modules=["auto"])
    assert other.settings["target_modules"] == ["query", "value"]
    sparse = bella.sparse_subspace(copy.deepcopy(base), target_modules="auto")
    assert sparse.settings["target_modules"] == ["query", "value"]


def test_the_table_is_extensible_and_goes_first(monkeypatch):
    network = ZOO["bert"].network("bert")
    monkeypatch.setitem(architectures.TARGETS, "bert", ("key",))
    monkeypatch.setitem(architectures.HEADS, "bert", ())
    assert targets_of(network) == ("key",)
    assert heads_of(network) == ()
    monkeypatch.setitem(architectures.TARGETS, "bert", ("renamed",))
    assert targets_of(network) == ("query", "value")


def test_without_peft_the_structure_tells(monkeypatch):
    monkeypatch.setattr(architectures.importlib.util, "find_spec", lambda name: None)
    for name in ("gpt2", "llama", "t5", "bert", "deberta-v2", "bloom", "falcon"):
        network = ZOO[name].network(name)
        monkeypatch.setattr(network.config, "model_type", "unknown", raising=False)
        with_structure = targets_of(network)
        assert find(network, with_structure)
        if name in EXPECTED:
            assert with_structure == EXPECTED[name][0]


def test_what_has_nothing_to_adapt_is_refused():
    with pytest.raises(bella.BellaError, match="name target_modules yourself"):
        bella.low_rank(nn.Sequential(nn.Linear(3, 2)), 2, 1, "auto", modules_to_save=("0",))
    with pytest.raises(bella.BellaError, match="no Linear layer after its blocks"):
        bella.low_rank(nn.Sequential(nn.Conv2d(3, 4, 1)), 2, 1, ("0",), modules_to_save="auto")


# ---------------------------------------------------------------- against PEFT


class Pair:
    """A posterior, and each of its particles as PEFT's network."""

    def __init__(self, name, targets, folder, *, particles=2, dtype=torch.float32, **options):
        architecture = ZOO[name]
        self.inputs = cast(architecture.inputs(3), dtype)
        base = architecture.network(name).to(dtype)
        self.posterior = bella.low_rank(
            copy.deepcopy(base), particles, 2, targets, alpha=4, b_std=0.5, **options
        ).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT tells what it sets by itself
            self.theirs = [
                peft.PeftModel.from_pretrained(
                    copy.deepcopy(base), str(path), is_trainable=True, autocast_adapter_dtype=False
                ).eval()
                for path in bella.to_peft(self.posterior, folder, soup="none")
            ]

    def fault(self):
        """What differs between the particles and PEFT's networks, if anything does."""
        for found, want, ours, theirs in self.both():
            if fault := outputs_differ(found, want) or gradients_differ(ours, theirs):
                return fault
        return None

    def both(self):
        """Outputs and gradients of each particle: ours, PEFT's."""
        args, kwargs = copy.deepcopy(self.inputs)
        found = dict(leaves(self.posterior(*args, **kwargs)))
        along = directions({path: x[0] for path, x in found.items()}, len(self.theirs))
        parameters = {
            key: p for key, p in self.posterior.stacked_parameters().items() if p.requires_grad
        }
        ours = grads(found, along, parameters)
        for i, network in enumerate(self.theirs):
            args, kwargs = copy.deepcopy(self.inputs)
            outputs = dict(leaves(network(*args, **kwargs)))
            named = dict(network.named_parameters())
            own = {key: named[adapter_name(key)] for key in parameters}
            want = grads(outputs, {path: w[i] for path, w in along.items()}, own)
            got = {key: g[i].reshape(want[key].shape) for key, g in ours.items()}
            yield {path: x[i] for path, x in found.items()}, outputs, got, want


def adapter_name(key: str) -> str:
    """A factor's name in PEFT's network."""
    layer, _, factor = key.rpartition(".")
    return f"base_model.model.{layer}.lora_{factor}.default.weight"


def cast(inputs, dtype):
    args, kwargs = inputs

    def one(x):
        return x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x

    return tuple(map(one, args)), {key: one(value) for key, value in kwargs.items()}


def grads(outputs, along, parameters):
    loss = sum((outputs[k] * w).sum() for k, w in along.items() if outputs[k].requires_grad)
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        key: torch.zeros_like(p) if g is None else g
        for (key, p), g in zip(parameters.items(), found, strict=True)
    }


@pytest.mark.filterwarnings("ignore::UserWarning")  # of a slower way
@pytest.mark.parametrize("name", JUDGED)
def test_particles_are_n_peft_networks(name, tmp_path):
    fault = Pair(name, "auto", tmp_path / "a").fault()
    if fault and fault.size < ROUNDING:  # a ReLU at its corner, or rounding: float64 decides
        fault = Pair(name, "auto", tmp_path / "b", dtype=torch.float64).fault()
    assert fault is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", JUDGED)
@pytest.mark.parametrize(
    ("targets", "options"), [("all-linear", {}), ("auto", {"shared_prefix": False})]
)
def test_particles_are_n_peft_networks_on_all_layers_and_without_a_prefix(
    name, targets, options, tmp_path
):
    if (name, targets) == ("mamba", "all-linear"):
        pytest.skip("PEFT refuses its out_proj")
    fault = Pair(name, targets, tmp_path / "a", **options).fault()
    if fault and fault.size < ROUNDING:
        fault = Pair(name, targets, tmp_path / "b", dtype=torch.float64, **options).fault()
    assert fault is None


HALF, HALF_GRADIENT = 0.03, 0.06
"""How far bfloat16's eight bits may part the two, of the largest element: they round in another
order (PEFT adds the change to the rounded product, we within it). Where a network makes more of
rounding, twice what it makes of PEFT's own."""


def apart(one: torch.Tensor, two: torch.Tensor) -> float:
    largest = max(float(two.abs().max()), 1e-3)
    return float((one.float() - two.float()).abs().max()) / largest


QUICK = ("vit", "bert", "llama", "t5", "timm-vit", "convnext")
"""Those that `make test` looks at under bf16 autocast; `make test-long` looks at all."""


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in JUDGED],
)
def test_under_bf16_autocast_they_are_as_near_as_its_bits_allow(name, tmp_path):
    pair = Pair(name, "auto", tmp_path)
    exact = list(pair.both())
    with torch.autocast("cpu", torch.bfloat16):
        for (found, want, ours, theirs), (_, said, _, grown) in zip(
            pair.both(), exact, strict=True
        ):
            for path, value in want.items():
                assert apart(found[path], value) < max(HALF, 2 * apart(value, said[path]))
            for part in "AB":
                keys = [key for key in theirs if key.endswith(part)]
                largest = max(float(theirs[key].abs().max()) for key in keys)
                worst = max(float((ours[key] - theirs[key]).abs().max()) for key in keys)
                lost = max(float((theirs[key] - grown[key]).abs().max()) for key in keys)
                assert worst < max(HALF_GRADIENT * largest, 2 * lost)
