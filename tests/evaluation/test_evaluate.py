"""Figures over loaders, and temperature scaling."""

import math

import pytest
import torch
import torch.nn.functional as F
from fake_posterior import LinearParticles
from rich.progress import Progress
from torch.utils.data import DataLoader, TensorDataset

import bella
from bella.errors import BellaError
from bella.evaluation import evaluate as module
from bella.evaluation.evaluate import (
    collect,
    evaluate,
    evaluate_predictive,
    flat_name,
    known_figures,
    shifted_figures,
)
from bella.prediction.predict import predict
from bella.prediction.predictive import Predictive
from bella.prediction.temperature import fit_temperature


def data_of(batch: int, seed: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(batch, 4, generator=generator)
    return x, torch.randint(3, (batch,), generator=generator)


def loader_of(x: torch.Tensor, y: torch.Tensor) -> DataLoader:
    return DataLoader(TensorDataset(x, y), batch_size=16)


X, Y = data_of(50, 1)
FAR, FAR_Y = data_of(30, 2, scale=0.1)


def test_collect_joins_all_batches_in_order():
    posterior = LinearParticles()
    predictive, labels = collect(posterior, loader_of(X, Y))
    torch.testing.assert_close(predictive.logits, predict(posterior, X).logits)
    assert torch.equal(labels, Y)


@pytest.mark.parametrize(
    "form", [lambda x, y: {"x": x, "labels": y}, lambda x, y: ({"x": x}, y), lambda x, y: [x, y]]
)
def test_collect_takes_batches_of_every_form(form):
    batches = [form(X[:30], Y[:30]), form(X[30:], Y[30:])]
    predictive, labels = collect(LinearParticles(), batches)
    torch.testing.assert_close(predictive.logits, predict(LinearParticles(), X).logits)
    assert torch.equal(labels, Y)


def test_collect_names_an_empty_loader():
    with pytest.raises(BellaError, match="empty"):
        collect(LinearParticles(), [])


@pytest.mark.parametrize(("patience", "visible"), [(0.0, True), (60.0, False)])
def test_a_bar_appears_only_when_waiting_is_long(monkeypatch, patience, visible):
    monkeypatch.setattr(module, "PATIENCE", patience)
    progress, seen = Progress(disable=True), []
    update = progress.update
    monkeypatch.setattr(
        progress, "update", lambda task, **now: (update(task, **now), seen.append(now["visible"]))
    )
    collect(LinearParticles(), iter(loader_of(X, Y)), progress=progress)
    assert seen == [visible] * 4
    assert not progress.tasks


def test_figures_have_the_names_of_the_contract():
    found = evaluate(LinearParticles(), loader_of(X, Y), ood={"far": loader_of(FAR, FAR_Y)})
    inside = (
        "accuracy nll ece adaptive_ece brier auroc_errors_entropy auroc_errors_mi aurc entropy "
        "fpr95_errors_entropy fpr95_errors_mi auroc_errors_confidence mutual_information "
        "mi_correct mi_wrong diversity disagreement"
    )
    far = (
        "auroc_{0}_entropy auroc_{0}_mi auroc_{0}_novelty fpr95_{0}_entropy fpr95_{0}_mi "
        "entropy_{0} mi_{0} accuracy_{0} nll_{0} ece_{0}"
    )
    assert set(found) == {*inside.split(), *far.format("far").split()}
    assert all(isinstance(value, float) and math.isfinite(value) for value in found.values())


def test_figures_are_those_of_the_tensors():
    posterior = LinearParticles()
    found = evaluate(posterior, loader_of(X, Y))
    probs = predict(posterior, X).logits.double().softmax(-1)
    mean = probs.mean(0)
    assert found["accuracy"] == pytest.approx((mean.argmax(-1) == Y).double().mean().item())
    assert found["nll"] == pytest.approx(F.nll_loss(mean.log(), Y).item(), rel=1e-5)
    total = torch.special.entr(mean).sum(-1)
    mi = total - torch.special.entr(probs).sum(-1).mean(0)
    assert found["entropy"] == pytest.approx(total.mean().item(), rel=1e-5)
    assert found["mutual_information"] == pytest.approx(mi.mean().item(), rel=1e-5)
    right = mean.argmax(-1) == Y
    assert found["mi_correct"] == pytest.approx(mi[right].mean().item(), rel=1e-5)
    assert found["mi_wrong"] == pytest.approx(mi[~right].mean().item(), rel=1e-5)


def test_evaluating_collected_predictions_gives_the_same_figures():
    posterior = LinearParticles()
    expected = evaluate(posterior, loader_of(X, Y), ood=loader_of(FAR, FAR_Y))
    found = evaluate_predictive(
        *collect(posterior, loader_of(X, Y)), ood={"ood": collect(posterior, loader_of(FAR, FAR_Y))}
    )
    assert found == expected


def test_figures_by_part_are_those_by_their_flat_names():
    generator = torch.Generator().manual_seed(0)
    known, other = (Predictive(torch.randn(3, 20, 2, generator=generator)) for _ in range(2))
    labels = torch.randint(2, (20,), generator=generator)
    flat = evaluate_predictive(known, labels, ood={"far": (other, labels)})
    shifted = shifted_figures(known, labels, other, labels)
    by_part = known_figures(known, labels) | {
        flat_name("far", name): value for name, value in shifted.items()
    }
    assert flat == pytest.approx(by_part)
    assert {"auroc_far_entropy", "auroc_far_mi", "mi_far", "nll_far"} <= set(flat)
    assert "nll" not in shifted_figures(known, labels, other, torch.full((20,), -1))


def test_options_reach_the_prediction():
    posterior = LinearParticles()
    evaluate(posterior, loader_of(X, Y), particles_per_pass=2)
    assert posterior.passes == [2, 2, 1] * 4
    noisy = LinearParticles(stochastic=True)
    evaluate(noisy, loader_of(X, Y), draws=2)
    assert noisy.passes == [5] * 8
    by_logits = evaluate(posterior, loader_of(X, Y), average="logits")
    expected = F.cross_entropy(predict(posterior, X).logits.mean(0), Y).item()
    assert by_logits["nll"] == pytest.approx(expected, rel=1e-5)


def test_the_temperature_divides_the_logits():
    posterior = LinearParticles()
    found = evaluate(posterior, loader_of(X, Y), ood=loader_of(FAR, FAR_Y), temperature=3.0)
    with torch.no_grad():
        posterior.weight /= 3
    expected = evaluate(posterior, loader_of(X, Y), ood=loader_of(FAR, FAR_Y))
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_temperature_of_0_is_refused():
    with pytest.raises(BellaError, match="temperature=0"):
        evaluate(LinearParticles(), loader_of(X, Y), temperature=0)


def test_a_set_without_labels_has_only_uncertainties():
    unlabelled = loader_of(FAR, torch.full_like(FAR_Y, -1))
    found = evaluate(LinearParticles(), loader_of(X, Y), ood={"far": unlabelled})
    assert {name for name in found if "far" in name} == {
        "auroc_far_entropy",
        "auroc_far_mi",
        "auroc_far_novelty",
        "fpr95_far_entropy",
        "fpr95_far_mi",
        "entropy_far",
        "mi_far",
    }


def test_small_inputs_of_linear_particles_are_told_by_entropy():
    found = evaluate(LinearParticles(), loader_of(X, Y), ood=loader_of(FAR, FAR_Y))
    assert found["auroc_ood_entropy"] > 0.9, "logits near 0 mean probabilities near uniform"
    assert found["auroc_ood_mi"] < 0.1, "and particles that agree on that"


def test_without_errors_what_tells_errors_is_nan():
    predictive = predict(LinearParticles(), X)
    found = evaluate_predictive(predictive, predictive.predictions)
    assert found["accuracy"] == 1
    for name in ("auroc_errors_entropy", "auroc_errors_mi", "mi_wrong"):
        assert math.isnan(found[name])


def test_labels_that_do_not_fit_are_named():
    with pytest.raises(BellaError, match="do not fit predictions"):
        evaluate_predictive(predict(LinearParticles(), X), Y[:7])
    with pytest.raises(BellaError, match="Label 3 is out of range"):
        evaluate(LinearParticles(), loader_of(X, Y + 1))


def test_a_real_posterior_is_evaluated_by_the_public_name():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    with torch.no_grad():
        expected = F.cross_entropy(network(X), Y).item()
    posterior = bella.low_rank(network, particles=2, rank=2, target_modules=("0",), seed=0)
    with torch.no_grad():
        for name, value in posterior.stacked_parameters().items():
            if name.endswith("B"):
                value.zero_()
    found = bella.evaluate(posterior, loader_of(X, Y))
    assert found["nll"] == pytest.approx(expected, rel=1e-5), "particles at B=0 are the network"
    assert found["mutual_information"] == pytest.approx(0, abs=1e-7)


# ------------------------------------------------------------ temperature scaling


def calibrated(batch: int = 20_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn from their softmax: the best temperature is 1."""
    logits = 2 * torch.randn(batch, 5, generator=torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(1)
    return logits, logits.softmax(-1).multinomial(1, generator=draw)[:, 0]


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0, 4.0, 50.0])
def test_a_known_temperature_is_recovered(temperature):
    logits, labels = calibrated()
    assert fit_temperature(temperature * logits, labels) == pytest.approx(temperature, rel=0.03)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_gradient_of_the_nll_vanishes_at_the_temperature(dtype):
    logits, labels = calibrated(2000)
    logits = (3 * logits).to(dtype)
    found = torch.tensor(fit_temperature(logits, labels), dtype=torch.double, requires_grad=True)
    F.cross_entropy(logits.double() / found, labels).backward()
    assert abs(found.grad) < 1e-6


def test_particles_share_the_temperature_of_their_mean_probability():
    logits, labels = calibrated(2000)
    noise = torch.randn(4, *logits.shape, generator=torch.Generator().manual_seed(2))
    particles = 3 * logits + noise
    found = fit_temperature(particles, labels)
    best = Predictive(particles).tempered(found).nll(labels)
    for other in (0.97 * found, 1.03 * found):
        assert best < Predictive(particles).tempered(other).nll(labels)


def test_without_errors_the_temperature_stays_above_its_bound():
    logits, _ = calibrated(500)
    assert 0.01 <= fit_temperature(logits, logits.argmax(-1)) < 0.2


def test_labels_against_the_logits_want_the_highest_temperature():
    logits, _ = calibrated(500)
    assert fit_temperature(logits, logits.argmin(-1)) == pytest.approx(100)


def test_logits_of_inference_mode_can_be_scaled_inside_and_outside_of_it():
    with torch.inference_mode():
        logits = LinearParticles().double()(X.double())
        inside = fit_temperature(logits, Y)
    assert logits.is_inference()
    assert inside == fit_temperature(logits, Y) > 1


def test_temperature_names_bad_input():
    logits, labels = calibrated(10)
    with pytest.raises(BellaError, match="Label 5 is out of range"):
        fit_temperature(logits, torch.full_like(labels, 5))
    with pytest.raises(BellaError, match="not finite"):
        fit_temperature(logits * math.nan, labels)
    with pytest.raises(BellaError, match="at least one example"):
        fit_temperature(logits, labels[:4])
