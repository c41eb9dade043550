"""On a CUDA device: what the CPU says, to float32's rounding, and what only a device can get wrong.

    python -m pytest -m gpu

Rounding differs between devices, so a few steps are compared, not whole trainings.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
import transformers as hf
from fit_cases import Blocks, assert_same, fit, make, problem, values
from language_cases import small_writers
from torch.utils.data import DataLoader, TensorDataset

import bella
from bella.models.resnet import small_resnet
from bella.prediction.activations import find_places
from bella.training.fit import Run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CLOSE = {"rtol": 2e-4, "atol": 2e-5}
TRANSPORTS = ("ensemble", "repulsive", "svgd", "function")


@pytest.fixture(autouse=True)
def exact():
    """Products in float32: TF32 has ten bits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def on_both(make_one):
    """The same posterior on the CPU and on the device."""
    one = make_one()
    return one, copy.deepcopy(one).cuda()


@pytest.mark.parametrize("name", TRANSPORTS)
def test_steps_are_those_of_a_cpu(name):
    here, there = on_both(make)
    x, y = problem()
    for posterior in (here, there):
        move = getattr(bella.transport, name)(posterior, data_size=len(x))
        optimizer = torch.optim.SGD(posterior.parameters(), lr=0.05)
        device = next(posterior.parameters()).device
        for _ in range(4):
            optimizer.zero_grad()
            bella.nll(posterior(x.to(device)), y.to(device)).backward()
            move.step()
            optimizer.step()
    for key, value in values(here).items():
        torch.testing.assert_close(values(there)[key].cpu(), value, **CLOSE)


@pytest.mark.parametrize("name", TRANSPORTS)
def test_fit_takes_the_device_by_itself_and_learns(name):
    posterior = make()
    record = fit(
        posterior, transport=name, epochs=15, learning_rate=0.1, validation=problem(seed=1)
    )
    assert next(posterior.parameters()).device.type == "cuda"
    assert record.history[-1]["loss"] < 0.8 * record.history[0]["loss"]
    assert all(math.isfinite(point["distance"]) for point in record.trace)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(tmp_path, monkeypatch, precision):
    options = {"transport": "repulsive", "epochs": 4, "precision": precision}
    whole, stopped, again = (make(network=Blocks(0.3)) for _ in range(3))  # dropout on the device
    expected = fit(whole, folder=tmp_path / "whole", **options)
    original = Run.run_epoch

    def stops(self, epoch, *rest):
        if epoch == 2:
            raise KeyboardInterrupt
        return original(self, epoch, *rest)

    monkeypatch.setattr(Run, "run_epoch", stops)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, folder=tmp_path / "stopped", **options)
    monkeypatch.setattr(Run, "run_epoch", original)
    record = fit(again, folder=tmp_path / "stopped", **options)
    assert_same(whole, again)
    assert record.history == expected.history


def vision():
    torch.manual_seed(0)
    config = hf.ViTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=16,
        patch_size=4,
        num_labels=3,
    )
    return hf.ViTForImageClassification(config).eval()


def text():
    torch.manual_seed(0)
    config = hf.BertConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=3,
    )
    return hf.BertForSequenceClassification(config).eval()


def decoder():
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
    )
    return hf.LlamaForCausalLM(config).eval()


NETWORKS = {
    "vision": (vision, ("fc1", "fc2"), lambda: {"pixel_values": torch.randn(4, 3, 16, 16)}),
    "text": (
        text,
        ("query", "value"),
        lambda: {
            "input_ids": torch.randint(3, 40, (4, 7)),
            "attention_mask": torch.ones(4, 7).tril(3).long(),
        },
    ),
    "decoder": (
        decoder,
        ("q_proj", "up_proj"),
        lambda: {"input_ids": torch.randint(3, 40, (4, 7)), "use_cache": False},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_folded_pass_is_the_loop_and_what_a_cpu_gives(name):
    network, targets, inputs = NETWORKS[name]
    torch.manual_seed(3)
    x = inputs()
    here, there = on_both(lambda: bella.low_rank(network(), 3, 2, targets, b_std=0.3))
    moved = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in x.items()}
    with torch.no_grad():
        expected = here(**x).logits
        folded = there(**moved).logits
        loops = torch.stack([there.particle(i)(**moved).logits for i in range(3)])
    torch.testing.assert_close(folded, loops, **CLOSE)
    torch.testing.assert_close(folded.cpu(), expected, **CLOSE)
    assert "looped" not in str(there.plan())


def test_convolutions_fold_where_they_are_let_to_round_to_tf32():
    """As PyTorch lets them unasked; two ways to compute the same then differ by a thousandth."""
    torch.manual_seed(0)
    network = small_resnet().eval().cuda()
    posterior = bella.low_rank(
        network, 3, 2, (r"stages\.2\..*conv\d",), modules_to_save=("classifier",)
    )
    x = torch.randn(8, 1, 28, 28, device="cuda")
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    try:
        posterior.eval()(x)
        assert "looped" not in str(posterior.plan())
        assert find_places(posterior, (x,), {})
        assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


def test_generation_writes_what_a_cpu_writes():
    here, there = on_both(small_writers)
    prompt = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])
    asked = {"max_new_tokens": 6, "do_sample": False}
    mask = torch.ones_like(prompt)
    one = here.generate(prompt, attention_mask=mask, **asked)
    two = there.generate(prompt.cuda(), attention_mask=mask.cuda(), **asked)
    assert one.tokens.tolist() == two.tokens.tolist()
    torch.testing.assert_close(two.token_entropy.cpu(), one.token_entropy, **CLOSE)


def test_a_run_trained_on_the_device_is_read_on_a_cpu(tmp_path):
    posterior = make()
    fit(posterior, epochs=2)
    posterior.eval().save(tmp_path)
    read = bella.load(tmp_path, Blocks()).eval()
    x, _ = problem(seed=2)
    with torch.no_grad():
        torch.testing.assert_close(posterior(x.cuda()).cpu(), read(x), **CLOSE)


def test_chunks_are_measured_on_the_device_and_give_the_same_gradients():
    posterior = make(particles=6).cuda()
    x, y = (t.cuda() for t in problem())
    bella.nll(posterior(x), y).backward()
    expected = [p.grad.clone() for p in posterior.parameters() if p.grad is not None]
    posterior.zero_grad()
    for part in bella.chunks(posterior, x):
        with posterior.subset(part):
            bella.nll(posterior(x), y).backward()
    found = [p.grad for p in posterior.parameters() if p.grad is not None]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)
    fit(make(particles=6), particles_per_pass="auto", epochs=1)


def loader(seed=0):
    return DataLoader(TensorDataset(*problem(seed=seed)), batch_size=16)


def trained(kind):
    network = Blocks()
    if kind == "rank1":
        return bella.rank1(network, 2)
    if kind == "sparse":
        return bella.sparse_subspace(network, 0.5)
    if kind == "full":
        return bella.full(network, 2)
    return make()


@pytest.mark.parametrize("kind", ["low-rank", "rank1", "sparse", "full"])
def test_every_posterior_trains_predicts_and_is_evaluated_there(kind):
    posterior = trained(kind)
    fit(posterior, epochs=2, transport="ensemble")
    figures = bella.evaluate(posterior, loader(1), ood=loader(2))
    assert all(math.isfinite(figures[key]) for key in ("nll", "ece", "entropy", "entropy_ood"))
    x, _ = problem(seed=1)
    said = bella.predict(posterior, x.cuda(), draws=4)
    assert said.probs.device.type == "cuda"
    assert torch.isfinite(said.mutual_information).all()


@pytest.mark.parametrize("predictive", ["linearised", "probit", "weights"])
def test_laplace_says_what_it_says_on_a_cpu(predictive):
    here, there = on_both(lambda: make(particles=1))
    x, _ = problem(seed=1)
    a = bella.laplace(here, loader(), prior_precision=1.0, predictive=predictive)
    b = bella.laplace(there, loader(), prior_precision=1.0, predictive=predictive)
    p = bella.predict(a, x, draws=400).probs
    q = bella.predict(b, x.cuda(), draws=400).probs.cpu()
    close = CLOSE if predictive == "probit" else {"rtol": 0, "atol": 0.05}  # draws differ
    torch.testing.assert_close(q, p, **close)


def test_a_mixture_says_what_it_says_on_a_cpu(tmp_path):
    here, there = on_both(make)
    data = problem(), problem(40, 1)
    a, b = bella.mixture(here, *data), bella.mixture(there, *data)
    x, _ = problem(30, 2)
    one, two = bella.predict(a, x), bella.predict(b, x.cuda())
    torch.testing.assert_close(two.probs.cpu(), one.probs, rtol=2e-3, atol=1e-3)
    b.save(tmp_path)


def test_half_precision_counts_distances_in_float32():
    posterior = make(b_std=1e-3).cuda()
    options = {"precision": "bf16", "epochs": 1, "transport": "repulsive"}
    record = fit(posterior, **options)
    assert all(0 < point["distance"] < math.inf for point in record.trace)
