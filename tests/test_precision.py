"""A frozen base in the dtype that autocast multiplies in: the same numbers without the casts."""

from __future__ import annotations

import copy
import json
import math
import pickle
import threading

import fit_cases
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

import bella
from bella import precision, storage
from bella.errors import BellaError
from bella.particles.halves import Halves
from bella.precision import Precision, base_in, precision_for
from bella.prediction import agreement
from bella.recipes import KINDS as KINDS_OF
from bella.recipes import Plan, make

BF16 = torch.bfloat16


class Pooled(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(pixel_values=x).pooler_output


def plain_vit():
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    return Pooled(transformers.CLIPVisionModel(config))


def vit():
    return bella.low_rank(plain_vit(), 3, 2, ("fc1", "fc2"), b_std=0.1)


def gpt2():
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(**sizes, **dropout, **tokens)
    return bella.low_rank(transformers.GPT2LMHeadModel(config), 3, 2, ("c_fc",), b_std=0.1)


def convolutions():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    return bella.low_rank(network, 3, 2, ("3",), modules_to_save=("7",), b_std=0.1)


IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
TOKENS = torch.arange(32).view(4, 8)
KINDS = pytest.mark.parametrize(
    ("make", "inputs"), [(vit, IMAGES), (gpt2, TOKENS), (convolutions, IMAGES)]
)


def outputs_and_gradients(posterior, inputs):
    posterior.zero_grad()
    with torch.autocast("cpu", BF16):
        outputs = posterior(inputs)
    outputs = getattr(outputs, "logits", outputs)
    outputs.float().square().mean().backward()
    return [outputs.detach(), *(p.grad.clone() for p in posterior.stacked_parameters().values())]


SPARING = pytest.mark.parametrize("sparing", [False, True], ids=["whole", "sparing"])


@SPARING
@KINDS
def test_the_numbers_are_those_of_autocast_bit_for_bit(make, inputs, sparing):
    posterior = make()
    truth = outputs_and_gradients(posterior, inputs)
    before = {name: p.detach().clone() for name, p in posterior.named_parameters()}
    with base_in(posterior, BF16, sparing=sparing):
        held = [p for p in posterior.parameters() if p.dtype == BF16]
        assert held
        assert not any(p.requires_grad for p in held)
        found = outputs_and_gradients(posterior, inputs)
    for one, other in zip(truth, found, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    for name, p in posterior.named_parameters():
        assert p.dtype == torch.float32
        assert torch.equal(p, before[name]), name


@SPARING
@KINDS
def test_how_passes_run_is_proven_with_the_whole_weights(make, inputs, sparing):
    one, other = make(), make()
    one(inputs)
    with base_in(other, BF16, sparing=sparing), torch.autocast("cpu", BF16):
        other(inputs)
    assert str(one.plan()) == str(other.plan())


def test_what_is_tied_or_trains_or_is_no_product_stays_as_it_is():
    posterior = gpt2()
    network = posterior.network
    network.transformer.h[0].attn.c_attn.weight.requires_grad_(True)
    with base_in(posterior, BF16):
        assert network.lm_head.weight.dtype == torch.float32  # the embedding's too
        assert network.transformer.h[0].attn.c_attn.weight.dtype == torch.float32
        assert network.transformer.h[0].attn.c_proj.weight.dtype == BF16
        assert network.transformer.ln_f.weight.dtype == torch.float32
        assert all(p.dtype == torch.float32 for p in posterior.stacked_parameters().values())


@SPARING
def test_files_and_copies_are_of_the_base_as_it_was(tmp_path, sparing):
    posterior = vit()
    hashes = [storage.fingerprint(posterior, dtype) for dtype in (None, BF16)]
    plain = posterior.particle(1)
    with base_in(posterior, BF16, sparing=sparing):
        assert [storage.fingerprint(posterior, dtype) for dtype in (None, BF16)] == hashes
        posterior.save(tmp_path)
        inside = posterior.particle(1)
        copied = [copy.deepcopy(posterior), pickle.loads(pickle.dumps(posterior))]
        state = posterior.state_dict()
    for one, other in zip(plain.parameters(), inside.parameters(), strict=True):
        assert torch.equal(one, other)
    copied.append(vit())
    copied[-1].load_state_dict(state)
    for other in copied:  # of no block, so that they run
        assert storage.fingerprint(other) == hashes[0]
        assert {p.dtype for p in other.parameters()} == {torch.float32}
        assert torch.equal(other(IMAGES), posterior(IMAGES))
        with base_in(other, BF16), torch.autocast("cpu", BF16):
            other(IMAGES)
    loaded = bella.load(tmp_path, plain_vit())  # warns of another base if the hash were another
    assert torch.equal(loaded(IMAGES), posterior(IMAGES))


def test_a_training_keeps_beside_the_held_base_only_what_it_lacks(monkeypatch):
    made = []

    class Seen(Halves):
        def __init__(self, *parts):
            made.append(self)
            super().__init__(*parts)

    monkeypatch.setattr("bella.particles.held.Halves", Seen)
    posterior = vit()
    before = storage.fingerprint(posterior)
    data = (IMAGES, torch.zeros(len(IMAGES), dtype=torch.long))
    bella.fit(posterior, data, epochs=1, batch_size=2, precision="bf16", progress=False)
    assert made
    assert storage.fingerprint(posterior) == before


def test_a_write_to_a_weight_that_cannot_be_put_back_is_told_of():
    posterior = vit()
    block = base_in(posterior, BF16, sparing=True)
    block.__enter__()
    next(p for p in posterior.parameters() if p.dtype == BF16).data.mul_(2)
    with pytest.raises(BellaError, match=r"Frozen weights \(1\) were written to"):
        block.__exit__(None, None, None)
    assert {p.dtype for p in posterior.parameters()} == {torch.float32}


@SPARING
@pytest.mark.parametrize("write", ["load_state_dict", "add", "cast"])
def test_a_write_inside_a_block_is_not_lost_in_silence(sparing, write):
    posterior = vit()
    before = storage.fingerprint(posterior)
    state = {name: 2 * value for name, value in posterior.state_dict().items()}
    block = base_in(posterior, BF16, sparing=sparing)
    block.__enter__()
    if write == "load_state_dict":
        posterior.load_state_dict(state)
    elif write == "cast":
        posterior.double()
    else:
        with torch.no_grad():
            next(p for p in posterior.parameters() if p.dtype == BF16).add_(1)
    with pytest.raises(BellaError, match=r"Frozen weights \(\d+\) were written to"):
        block.__exit__(None, None, None)
    assert posterior.held.dtype is None
    if not sparing and write == "add":
        assert storage.fingerprint(posterior) == before
    with base_in(vit(), BF16, sparing=sparing):
        pass


def test_blocks_are_counted_over_threads_and_put_back_after_errors():
    posterior = vit()
    inside, leave = threading.Event(), threading.Event()

    def other():
        with base_in(posterior, BF16):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait(10)
    with pytest.raises(ZeroDivisionError), base_in(posterior, BF16):
        raise ZeroDivisionError
    assert posterior.held.dtype == BF16  # the other thread is inside
    with (
        pytest.raises(BellaError, match="leave that block first"),
        base_in(posterior, torch.float16),
    ):
        pass
    leave.set()
    thread.join(10)
    assert posterior.held.dtype is None
    assert {p.dtype for p in posterior.parameters()} == {torch.float32}


def test_a_pass_without_autocast_is_refused():
    posterior = vit()
    with base_in(posterior, BF16):
        with pytest.raises(BellaError, match=r"run passes inside torch.autocast\('cpu'"):
            posterior(IMAGES)
        with pytest.raises(BellaError, match="run passes inside"):
            posterior.prefix(IMAGES)
    posterior(IMAGES)


def test_names():
    assert Precision("no").name == "float32"
    assert Precision("bf16").base == BF16
    assert Precision("bf16", base_dtype="float32").base is None
    with pytest.raises(BellaError, match="choose 'auto', 'float32' or the dtype"):
        Precision("float32", base_dtype="bf16")
    with pytest.raises(BellaError, match="precision='int8'"):
        Precision("int8")


def test_auto_is_bf16_where_it_gains(monkeypatch):
    posterior = vit()
    monkeypatch.setattr(precision, "multiplies_bf16", lambda _: True)
    assert precision_for(posterior, "auto").name == "float32"  # too small to gain
    monkeypatch.setattr(precision, "FEWEST", 1)
    assert precision_for(posterior, "auto").name == "bf16"
    assert precision_for(convolutions(), "auto").name == "float32"
    assert precision_for(vit().double(), "auto").name == "float32"
    monkeypatch.setattr(precision, "multiplies_bf16", lambda _: False)
    assert precision_for(posterior, "auto").name == "float32"
    assert precision_for(posterior, "no").name == "float32"
    assert precision_for(posterior, "fp16").name == "fp16"
    with pytest.raises(BellaError, match="name the dtype of the products as well"):
        precision_for(posterior, "auto", "bf16")


def test_training_is_that_of_autocast_with_the_base_as_it_was(tmp_path):
    one, other = fit_cases.make(), fit_cases.make()
    fit_cases.fit(one, precision="bf16", base_dtype="float32")
    fit_cases.fit(other, precision="bf16", folder=tmp_path)
    fit_cases.assert_same(one, other)
    assert {p.dtype for p in other.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", ["rank1", "ssvi"])
def test_what_is_frozen_of_a_base_that_trains_is_whole_in_every_file(kind, tmp_path):
    """Frozen blocks before the first particles are held in bf16 like any base."""

    def fresh():
        heads = {"target_modules": (r"blocks\.2\.0",), "heads": ("head",)}
        return make(kind, fit_cases.Blocks(), Plan(particles=KINDS_OF[kind].particles, **heads))

    def train(posterior, folder, epochs):
        validation = fit_cases.problem()
        settings = {"precision": "bf16", "kl_weight": 0.01, "epochs": epochs, "folder": folder}
        fit_cases.fit(posterior, validation=validation, **settings)
        return posterior

    def assert_whole(posterior, folder):
        before = dict(fit_cases.Blocks().named_parameters())
        tensors = load_file(folder / "posterior.safetensors")
        for place in ("blocks.0.0", "blocks.1.0"):
            for name in ("weight", "bias"):
                whole = before[f"{place}.{name}"]
                assert torch.equal(posterior.network.get_parameter(f"{place}.{name}"), whole)
                assert torch.equal(tensors[f"{place}.{name}"], whole)

    straight = train(fresh(), tmp_path / "straight", 2)
    assert_whole(straight, tmp_path / "straight")
    train(fresh(), tmp_path / "stopped", 1)
    gone_on = train(fresh(), tmp_path / "stopped", 2)
    assert_whole(gone_on, tmp_path / "stopped")
    opened = bella.load(tmp_path / "stopped", fit_cases.Blocks())
    for name, value in storage.own_tensors(gone_on).items():
        assert torch.equal(storage.own_tensors(opened)[name], value), name


# ---------------------------------------------------------------- predictions in both, compared


def far(monkeypatch):
    monkeypatch.setattr(agreement, "LIMITS", dict.fromkeys(agreement.LIMITS, -1.0))


@pytest.fixture
def gaining(monkeypatch):
    """A machine and networks that gain."""
    monkeypatch.setattr(precision, "multiplies_bf16", lambda _: True)
    monkeypatch.setattr(precision, "FEWEST", 1)


def test_what_differs_is_said_as_means_over_examples():
    one = bella.Predictive(torch.tensor([[[0.0, 1.0], [2.0, 0.0]], [[1.0, 0.0], [2.0, 0.0]]]))
    other = bella.Predictive(torch.tensor([[[0.0, 1.0], [2.0, 0.0]], [[0.0, 1.0], [2.0, 0.0]]]))
    found = agreement.Agreement.of(one, other)
    assert found.predictions == pytest.approx((torch.tensor(1.0).sigmoid() - 0.5).item() / 2)
    assert found.mutual_information == pytest.approx(float(one.mutual_information.mean()))
    assert set(found.too_far) == {"predictions", "entropy", "mutual_information"}
    assert agreement.Agreement.of(one, one).too_far == []
    lost = agreement.Agreement(math.nan, 0.0, 0.0)
    assert lost.too_far == ["predictions"]
    numbers = bella.GaussianPredictive(torch.tensor([[[1.0, 0.0]]]))
    moved = bella.GaussianPredictive(torch.tensor([[[1.5, 0.0]]]))
    assert agreement.Agreement.of(numbers, moved).predictions == pytest.approx(0.5)


def test_predictions_in_fewer_bits_are_those_under_autocast():
    posterior = vit()
    with torch.autocast("cpu", BF16):
        truth = bella.predict(posterior, IMAGES).logits
    assert torch.equal(bella.predict(posterior, IMAGES, precision="bf16").logits, truth)
    with bella.in_precision(posterior, "bf16", IMAGES) as chosen, chosen.autocast():
        assert chosen.name == "bf16"
        assert posterior.held.dtype == BF16
        assert torch.equal(bella.predict(posterior, IMAGES).logits, truth)
    assert posterior.held.dtype is None
    assert not torch.equal(bella.predict(posterior, IMAGES).logits, truth)
    labels = torch.zeros(4, dtype=torch.long)
    whole = bella.evaluate(posterior, (IMAGES, labels), batch_size=2)
    fewer = bella.evaluate(posterior, (IMAGES, labels), batch_size=2, precision="bf16")
    assert whole["nll"] != fewer["nll"]
    assert whole["nll"] == pytest.approx(fewer["nll"], abs=0.02)
    assert posterior.held.dtype is None


def test_auto_falls_back_where_a_batch_says_something_else(gaining, monkeypatch):
    posterior = vit()
    with bella.in_precision(posterior, "auto", IMAGES) as chosen:
        assert chosen.name == "bf16"
    far(monkeypatch)
    posterior = vit()
    with (
        pytest.warns(UserWarning, match=r"bf16 changes predictions by .*: it is left at float32"),
        bella.in_precision(posterior, "auto", IMAGES) as chosen,
    ):
        assert (chosen.name, posterior.held.dtype) == ("float32", None)
    with pytest.warns(UserWarning, match="would leave it at float32"):
        bella.predict(vit(), IMAGES, precision="bf16")


@pytest.mark.parametrize("frozen", [False, True])
def test_what_agreed_is_asked_again_once_particles_changed(gaining, monkeypatch, frozen):
    posterior = vit().requires_grad_(False) if frozen else vit()
    bella.predict(posterior, IMAGES, precision="auto")
    far(monkeypatch)
    bella.predict(posterior, IMAGES, precision="auto")  # decided: no second question, no warning
    if frozen:
        posterior.load_state_dict({k: v.clone() for k, v in posterior.state_dict().items()})
    else:
        with torch.no_grad():
            next(iter(posterior.stacked_parameters().values())).add_(0.01)  # a step
    with pytest.warns(UserWarning, match="it is left at float32"):
        exact = bella.predict(posterior, IMAGES, precision="auto")
    assert torch.equal(exact.logits, bella.predict(posterior, IMAGES).logits)


def test_a_mixture_predicts_in_fewer_bits():
    posterior = fit_cases.make()
    mixed = bella.mixture(posterior, fit_cases.problem(), fit_cases.problem(seed=1))
    x, _ = fit_cases.problem(seed=2)
    whole, fewer = (bella.predict(mixed, x, precision=name) for name in ("float32", "bf16"))
    assert not torch.equal(whole.probs, fewer.probs)
    assert (whole.probs - fewer.probs).abs().max() < 0.05


def test_a_run_says_what_it_multiplied_in_and_goes_on_so(gaining, monkeypatch, tmp_path):
    straight = fit_cases.make()
    fit_cases.fit(straight, precision="auto", epochs=4)
    posterior = fit_cases.make()
    record = fit_cases.fit(posterior, precision="auto", epochs=2, folder=tmp_path)
    said = record.precision
    assert (said["products"], said["base"]) == ("bf16", "bfloat16")
    assert 0 <= said["differs_by"]["predictions"] < 0.02
    assert json.loads((tmp_path / "run.json").read_text())["precision"] == said
    monkeypatch.setattr(precision, "multiplies_bf16", lambda _: False)  # another machine
    other = fit_cases.make()
    record = fit_cases.fit(other, precision="auto", epochs=4, folder=tmp_path)
    assert record.precision == said
    assert fit_cases.fit(fit_cases.make(), epochs=1).precision["products"] == "float32"


def test_a_run_that_falls_back_is_one_in_float32(gaining, monkeypatch, tmp_path):
    whole = fit_cases.make()
    fit_cases.fit(whole)
    far(monkeypatch)
    posterior = fit_cases.make()
    with pytest.warns(UserWarning, match="it is left at float32"):
        record = fit_cases.fit(posterior, precision="auto", folder=tmp_path)
    fit_cases.assert_same(posterior, whole)
    assert record.precision["products"] == "float32"
    assert record.precision["differs_by"]["predictions"] > 0
    monkeypatch.undo()
    record = fit_cases.fit(fit_cases.make(), precision="auto", epochs=5, folder=tmp_path)
    assert record.precision["products"] == "float32"


def test_looking_at_a_batch_leaves_no_trace():
    """The order of the data is that of a run that looks at none."""
    data = torch.utils.data.TensorDataset(*fit_cases.problem())
    seen = []
    for name in ("float32", "bf16"):
        generator = torch.Generator().manual_seed(3)
        loader = torch.utils.data.DataLoader(data, 8, shuffle=True, generator=generator)
        batches = []
        posterior = fit_cases.make()
        hook = posterior.register_forward_pre_hook(
            lambda _, args, kept=batches: kept.append(args[0]) if torch.is_grad_enabled() else None
        )
        fit_cases.fit(posterior, loader, precision=name, epochs=1, cache_prefix=False)
        hook.remove()
        seen.append(torch.cat(batches))
    assert torch.equal(*seen)
