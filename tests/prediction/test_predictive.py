"""What particles say together: averages, shapes, chunks, draws, and the training loss."""

import math

import pytest
import torch
import torch.nn.functional as F
from fake_posterior import LinearParticles
from torch import nn

import bella
from bella.errors import BellaError
from bella.likelihood import logits_of, nll
from bella.prediction.predict import predict
from bella.prediction.predictive import Predictive


def logits_like(*shape: int, dtype=torch.double, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


LOGITS = logits_like(5, 20, 3)
X = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
Y = torch.arange(20) % 3


# ------------------------------------------------------------ Predictive


def test_probabilities_are_the_mean_of_the_particles():
    predictive = Predictive(LOGITS)
    torch.testing.assert_close(predictive.particle_probs, LOGITS.softmax(-1))
    torch.testing.assert_close(predictive.probs, LOGITS.softmax(-1).mean(0))
    torch.testing.assert_close(predictive.log_probs, LOGITS.softmax(-1).mean(0).log())


def test_average_of_logits_is_the_softmax_of_their_mean():
    predictive = Predictive(LOGITS, "logits")
    torch.testing.assert_close(predictive.probs, LOGITS.mean(0).softmax(-1))
    torch.testing.assert_close(predictive.log_probs, LOGITS.mean(0).log_softmax(-1))


def test_uncertainties_have_one_value_an_example_and_add_up():
    predictive = Predictive(LOGITS)
    assert predictive.entropy.shape == predictive.expected_entropy.shape == (20,)
    difference = predictive.entropy - predictive.expected_entropy
    torch.testing.assert_close(predictive.mutual_information, difference)


def test_mutual_information_is_information_with_averaged_logits_too():
    by_logits = Predictive(LOGITS, "logits")
    assert (by_logits.entropy - by_logits.expected_entropy).min() < 0
    torch.testing.assert_close(by_logits.mutual_information, Predictive(LOGITS).mutual_information)


def test_predictions_and_confidence_are_the_largest_probability():
    predictive = Predictive(LOGITS)
    confidence, predictions = LOGITS.softmax(-1).mean(0).max(-1)
    assert torch.equal(predictive.predictions, predictions)
    torch.testing.assert_close(predictive.confidence, confidence)


def test_nll_is_exact_where_probabilities_underflow():
    predictive = Predictive(torch.tensor([[[0.0, -300.0]], [[0.0, -300.0]]]))
    assert predictive.probs[0, 1] == 0
    assert predictive.nll(torch.tensor([1])) == pytest.approx(300)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_averaged_in_float32(dtype):
    logits = LOGITS.to(dtype)
    predictive = Predictive(logits)
    for name in ("logits", "probs", "log_probs", "entropy", "mutual_information"):
        assert getattr(predictive, name).dtype == torch.float32
    torch.testing.assert_close(
        predictive.probs, logits.double().softmax(-1).mean(0).float(), rtol=1e-5, atol=1e-7
    )


def test_float64_stays_float64():
    assert Predictive(LOGITS).mutual_information.dtype == torch.double


def test_cat_joins_batches_and_keeps_the_average():
    parts = [Predictive(LOGITS[:, :7], "logits"), Predictive(LOGITS[:, 7:], "logits")]
    whole = Predictive.cat(iter(parts))
    assert len(whole) == 20
    assert whole.average == "logits"
    torch.testing.assert_close(whole.probs, Predictive(LOGITS, "logits").probs)


def test_tempered_divides_the_logits():
    torch.testing.assert_close(
        Predictive(LOGITS).tempered(2.5).particle_probs, (LOGITS / 2.5).softmax(-1)
    )


def test_a_predictive_computes_each_quantity_once():
    predictive = Predictive(LOGITS)
    assert predictive.probs is predictive.probs
    assert predictive.mutual_information is predictive.mutual_information


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Predictive(LOGITS[0]), r"\(particles, batch, classes\)"),
        (lambda: Predictive(LOGITS, "median"), "'probs' or 'logits'"),
        (lambda: Predictive(LOGITS * math.inf), "not finite"),
        (lambda: Predictive(LOGITS).tempered(0), "above 0"),
        (lambda: Predictive(LOGITS).tempered(math.nan), "above 0"),
        (lambda: Predictive.cat([]), "empty"),
        (lambda: Predictive.cat([Predictive(LOGITS), Predictive(LOGITS[:2])]), "be joined"),
        (lambda: Predictive.cat([Predictive(LOGITS), Predictive(LOGITS, "logits")]), "be joined"),
        (lambda: Predictive(LOGITS).nll(torch.full((20,), 3)), "out of range"),
        (lambda: predict(LinearParticles(), X, draws=0), "draws=0"),
        (lambda: predict(LinearParticles(), X, particles_per_pass=0), "particles_per_pass=0"),
        (lambda: predict(LinearParticles(form="nothing"), X), "without logits"),
        (lambda: logits_of({"scores": LOGITS}), "without logits"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(BellaError, match=message):
        make()


# ------------------------------------------------------------ predict


@pytest.mark.parametrize("form", ["tensor", "object", "mapping", "tuple"])
def test_logits_are_found_in_every_form_of_output(form):
    expected = predict(LinearParticles(), X).logits
    assert torch.equal(predict(LinearParticles(form=form), X).logits, expected)


@pytest.mark.parametrize(
    "inputs", [(X, 1.5), [X, 1.5], {"x": X, "shift": 1.5}], ids=["tuple", "list", "mapping"]
)
def test_inputs_are_positional_or_named(inputs):
    expected = predict(LinearParticles(), X).logits + 1.5
    torch.testing.assert_close(predict(LinearParticles(), inputs).logits, expected)


@pytest.mark.parametrize(("size", "passes"), [(1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (9, [5])])
def test_chunks_of_particles_predict_the_same(size, passes):
    posterior = LinearParticles()
    expected = predict(posterior, X).logits
    posterior.passes.clear()
    chunked = predict(posterior, X, particles_per_pass=size).logits
    assert posterior.passes == passes
    torch.testing.assert_close(chunked, expected)


def test_draws_of_a_stochastic_posterior_are_further_particles():
    posterior = LinearParticles(stochastic=True)
    logits = predict(posterior, X, draws=3, particles_per_pass=2).logits
    assert logits.shape == (15, 20, 3)
    assert posterior.passes == [2, 2, 1] * 3
    assert not torch.equal(logits[:5], logits[5:10])


def test_point_particles_are_drawn_once():
    posterior = LinearParticles()
    assert predict(posterior, X, draws=3).logits.shape == (5, 20, 3)
    assert posterior.passes == [5]


def test_every_module_returns_to_its_mode():
    posterior = LinearParticles().train()
    posterior.frozen.eval()
    first, second = predict(posterior, X).logits, predict(posterior, X).logits
    assert torch.equal(first, second), "dropout was active"
    assert posterior.training
    assert posterior.dropout.training
    assert not posterior.frozen.training


def test_modes_return_after_an_error():
    posterior = LinearParticles().train()
    with pytest.raises(RuntimeError):
        predict(posterior, X[:, :2])
    assert posterior.dropout.training


def test_prediction_records_no_gradient():
    assert not predict(LinearParticles(), X).logits.requires_grad


def test_a_real_posterior_predicts_what_its_particles_predict_alone():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    posterior = bella.low_rank(network, particles=3, rank=2, target_modules=("0", "2"))
    with torch.no_grad():
        for value in posterior.stacked_parameters().values():
            value.normal_()
        alone = torch.stack([posterior.particle(i)(X) for i in range(3)])
    torch.testing.assert_close(bella.predict(posterior, X).logits, alone, rtol=1e-4, atol=1e-5)
    chunked = bella.predict(posterior, X, particles_per_pass=2)
    torch.testing.assert_close(chunked.logits, alone, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------ nll


def test_every_particle_gets_the_gradient_of_its_own_loss():
    logits = LOGITS.clone().requires_grad_()
    nll(logits, Y).backward()
    for i in range(5):
        own = LOGITS[i].clone().requires_grad_()
        F.cross_entropy(own, Y).backward()
        torch.testing.assert_close(logits.grad[i], own.grad)


def test_nll_is_the_sum_of_the_particles_losses():
    expected = sum(F.cross_entropy(particle, Y) for particle in LOGITS)
    torch.testing.assert_close(nll(LOGITS, Y), expected)
    torch.testing.assert_close(nll({"logits": LOGITS}, Y), expected)


def test_particles_may_have_labels_of_their_own():
    labels = torch.randint(3, (5, 20), generator=torch.Generator().manual_seed(2))
    expected = sum(F.cross_entropy(*pair) for pair in zip(LOGITS, labels, strict=True))
    torch.testing.assert_close(nll(LOGITS, labels), expected)


def test_sequences_average_over_the_positions_that_count():
    logits = logits_like(2, 3, 6, 4)
    labels = torch.randint(4, (3, 6), generator=torch.Generator().manual_seed(2))
    labels[0, 2:] = -100
    labels[2] = -100
    expected = sum(F.cross_entropy(one.flatten(0, 1), labels.flatten()) for one in logits)
    torch.testing.assert_close(nll(logits, labels), expected)
    per_particle = torch.stack([labels, labels])
    torch.testing.assert_close(nll(logits, per_particle), expected)


def test_nothing_that_counts_is_a_loss_of_0():
    assert nll(LOGITS, torch.full((20,), -100)) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nll_of_half_precision_is_computed_in_float32(dtype):
    logits = LOGITS.to(dtype).requires_grad_()
    loss = nll(logits, Y)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, nll(logits.detach().double(), Y).float())
    loss.backward()
    assert logits.grad.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_nll_takes_labels_of_any_integer_type(dtype):
    torch.testing.assert_close(nll(LOGITS, Y.to(dtype)), nll(LOGITS, Y))


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (LOGITS, Y + 1, "Label 3 is out of range: there are 3 classes, so labels go from 0 to 2"),
        (LOGITS, Y - 1, "Label -1 is out of range"),
        (LOGITS, Y.double(), "integers"),
        (LOGITS, Y[:5], "do not fit"),
        (LOGITS[0], Y, "must be \\(particles, batch"),
    ],
)
def test_labels_that_do_not_fit_are_named(logits, labels, message):
    with pytest.raises(BellaError, match=message):
        nll(logits, labels)
