"""Figures against scikit-learn, scipy, torchmetrics and closed forms."""

import itertools
import math

import numpy as np
import pytest
import scipy.spatial
import scipy.stats
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassCalibrationError

from bella import metrics
from bella.errors import BellaError


def softmax_of(*shape: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, dtype=torch.double, generator=generator)).softmax(-1)


def labels_of(batch: int, classes: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(classes, (batch,), generator=torch.Generator().manual_seed(seed))


PARTICLES = softmax_of(5, 300, 4)
PROBS = PARTICLES.mean(0)
LABELS = labels_of(300, 4)


# ------------------------------------------------------------ uncertainty of each example


def test_entropy_is_that_of_scipy():
    expected = scipy.stats.entropy(PROBS.numpy(), axis=-1)
    np.testing.assert_allclose(metrics.entropy(PROBS), expected, rtol=1e-12)


def test_entropy_of_certainty_is_0_and_of_ignorance_log_classes():
    found = metrics.entropy(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.25] * 4], dtype=torch.double))
    assert found.tolist() == pytest.approx([0.0, math.log(4)])


def test_mutual_information_is_the_difference_of_the_entropies():
    difference = metrics.entropy(PROBS) - metrics.expected_entropy(PARTICLES)
    torch.testing.assert_close(metrics.mutual_information(PARTICLES), difference)


def test_mutual_information_of_certain_particles_is_the_entropy_of_their_votes():
    votes = torch.eye(3, dtype=torch.double)[torch.tensor([0, 0, 1, 2])][:, None]
    found = metrics.mutual_information(votes).item()
    assert found == pytest.approx(scipy.stats.entropy([0.5, 0.25, 0.25]))


def test_mutual_information_in_float32_keeps_digits_that_entropies_lose():
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(1, 500, 10, generator=generator)
    logits = logits + 0.001 * torch.randn(5, 500, 10, generator=generator)
    exact = metrics.mutual_information(logits.double().softmax(-1))
    probs = logits.softmax(-1)
    found = metrics.mutual_information(probs)
    by_entropies = metrics.entropy(probs.mean(0)) - metrics.expected_entropy(probs)
    assert (found - exact).abs().max() < 1e-9 < 1e-8 < (by_entropies - exact).abs().max()


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 6),
    classes=st.integers(2, 8),
    scale=st.sampled_from([0.0, 1e-4, 1.0, 30.0, 300.0]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    seed=st.integers(0, 10_000),
)
def test_mutual_information_lies_between_0_and_log_particles(n, classes, scale, dtype, seed):
    found = metrics.mutual_information(softmax_of(n, 7, classes, seed=seed, scale=scale).to(dtype))
    assert found.dtype in (torch.float32, torch.float64)
    assert ((found >= 0) & (found <= math.log(n) + 1e-2)).all()


@pytest.mark.parametrize("scale", [10.0, 100.0, 1000.0])
def test_mutual_information_of_nearly_certain_particles_is_that_of_their_entropies(scale):
    logits = scale * torch.randn(5, 40, 4, generator=torch.Generator().manual_seed(0))
    probs = logits.softmax(-1)
    exact = logits.double().softmax(-1)
    difference = metrics.entropy(exact.mean(0)) - metrics.expected_entropy(exact)
    for found in (metrics.mutual_information(probs), metrics.mutual_information(exact)):
        torch.testing.assert_close(found.double(), difference, atol=1e-5, rtol=1e-5)


def test_one_particle_has_no_mutual_information_diversity_or_disagreement():
    one = PARTICLES[:1].float()
    assert metrics.mutual_information(one).abs().max() == 0
    assert metrics.diversity(one) == 0
    assert metrics.disagreement(one) == 0
    assert math.isnan(metrics.particle_similarity(torch.ones(1, 3)))


# ------------------------------------------------------------ quality of the predictive


def test_accuracy_nll_and_brier_are_those_of_scikit_learn():
    truth, probs = LABELS.numpy(), PROBS.numpy()
    expected = sklearn.metrics.accuracy_score(truth, probs.argmax(-1))
    assert metrics.accuracy(PROBS, LABELS) == pytest.approx(expected)
    expected = sklearn.metrics.log_loss(truth, probs, labels=range(4))
    assert metrics.nll(PROBS.log(), LABELS) == pytest.approx(expected)
    expected = sum(sklearn.metrics.brier_score_loss(truth == c, probs[:, c]) for c in range(4))
    assert metrics.brier(PROBS, LABELS) == pytest.approx(expected)


def test_nll_of_impossible_labels_stays_finite_from_log_probabilities():
    log_probs = torch.tensor([[0.0, -500.0]])
    assert metrics.nll(log_probs, torch.tensor([1])) == 500
    assert log_probs.exp().log()[0, 1] == -math.inf


def test_ece_is_that_of_torchmetrics():
    reference = MulticlassCalibrationError(num_classes=4, n_bins=15, norm="l1")
    assert metrics.ece(PROBS, LABELS) == pytest.approx(reference(PROBS, LABELS).item())


def test_ece_bins_certain_answers_with_nearly_certain_ones():
    probs = torch.tensor([[1.0, 0.0], [0.99, 0.01]])
    assert metrics.ece(probs, torch.tensor([1, 0])) == pytest.approx(0.495, abs=1e-6)


def test_ece_does_not_take_a_rounded_1_for_a_logit():
    probs = torch.tensor([[1.0 + 2**-22, 0.0], [0.2, 0.8]])
    assert metrics.ece(probs, torch.tensor([0, 1])) == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize("bins", [5, 15])
def test_reliability_adds_up_to_the_ece(bins):
    confidence, right, count = map(np.array, metrics.reliability(PROBS, LABELS, bins))
    assert count.sum() == len(LABELS)
    gap = (count * abs(confidence - right)).sum() / len(LABELS)
    assert metrics.ece(PROBS, LABELS, bins) == pytest.approx(gap)


def test_reliability_puts_a_bin_edge_where_the_ece_puts_it():
    probs = torch.tensor([[0.75, 0.25], [0.9, 0.1]])
    labels = torch.tensor([0, 1])
    assert metrics.reliability(probs, labels, bins=4)[2] == [2]
    assert metrics.ece(probs, labels, bins=4) == pytest.approx((0.75 + 0.9) / 2 - 0.5)


def test_adaptive_ece_is_the_gap_of_equally_many_examples():
    confidence = torch.tensor([0.9, 0.6, 0.8, 0.7], dtype=torch.double)
    probs = torch.stack([confidence, 1 - confidence], 1)
    labels = torch.tensor([0, 1, 1, 0])  # right, wrong, wrong, right
    lower = abs((0.6 + 0.7) / 2 - 0.5)
    upper = abs((0.8 + 0.9) / 2 - 0.5)
    assert metrics.adaptive_ece(probs, labels, bins=2) == pytest.approx((lower + upper) / 2)


def test_calibration_errors_vanish_on_labels_drawn_from_the_probabilities():
    probs = softmax_of(40_000, 5)
    # Another seed than the logits': the same stream of noise would tie labels to logits.
    labels = probs.multinomial(1, generator=torch.Generator().manual_seed(1))[:, 0]
    assert metrics.ece(probs, labels) < 0.01
    assert metrics.adaptive_ece(probs, labels) < 0.01
    assert metrics.ece(probs.square() / probs.square().sum(-1, keepdim=True), labels) > 0.1


# ------------------------------------------------------------ does the uncertainty know?


def test_auroc_is_the_share_of_pairs_in_order_and_ties_count_half():
    score, positive = torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([False, True, False, True])
    assert metrics.auroc(score, positive) == pytest.approx((1 + 1 + 0.5 + 1) / 4)


def test_auroc_with_one_kind_only_is_nan():
    assert math.isnan(metrics.auroc(torch.rand(3), torch.ones(3, dtype=torch.bool)))
    assert math.isnan(metrics.auroc(torch.rand(3), torch.zeros(3, dtype=torch.bool)))


def test_auroc_between_is_1_where_all_outside_examples_score_higher():
    assert metrics.auroc_between(torch.rand(5), 1 + torch.rand(9)) == 1
    assert metrics.auroc_between(1 + torch.rand(5), torch.rand(9)) == 0


def test_auroc_of_errors_is_that_of_scikit_learn():
    score = metrics.entropy(PROBS)
    wrong = (PROBS.argmax(-1) != LABELS).numpy()
    expected = sklearn.metrics.roc_auc_score(wrong, score.numpy())
    assert metrics.auroc_errors(PROBS, LABELS, score) == pytest.approx(expected)


def test_risk_coverage_of_a_known_order():
    probs = torch.eye(2)[torch.tensor([0, 1, 0, 1])]
    labels = torch.tensor([0, 1, 1, 1])  # the third answer is wrong
    coverage, risk = metrics.risk_coverage(probs, labels, torch.tensor([0.1, 0.2, 0.9, 0.3]))
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk.tolist() == [0, 0, 0, 0.25]
    assert metrics.aurc(probs, labels, torch.tensor([0.1, 0.2, 0.9, 0.3])) == 0.25 / 4
    assert metrics.aurc(probs, labels, torch.tensor([0.3, 0.2, 0.1, 0.4])) == pytest.approx(
        (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4
    )


# ------------------------------------------------------------ how different are the particles?


def test_diversity_is_the_mean_divergence_of_scipy():
    expected = np.mean([scipy.stats.entropy(PROBS, p, axis=-1) for p in PARTICLES])
    assert metrics.diversity(PARTICLES) == pytest.approx(expected)


def test_diversity_of_opposite_certainties_is_finite():
    probs = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert 10 < metrics.diversity(probs) < 100


def test_disagreement_counts_pairs():
    votes = torch.eye(3)[torch.tensor([[0, 1], [0, 2], [1, 1]])]  # three particles, two examples
    assert metrics.disagreement(votes) == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_similarity_of_equal_orthogonal_and_opposite_particles():
    vector = torch.tensor([3.0, 4.0])
    assert metrics.particle_similarity(torch.stack([vector, 7 * vector])) == pytest.approx(1)
    assert metrics.particle_similarity(torch.eye(3)) == pytest.approx(0)
    assert metrics.particle_similarity(torch.stack([vector, -vector])) == pytest.approx(-1)


# ------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("probs", "labels", "message"),
    [
        (torch.full((2, 3), math.nan), torch.tensor([0, 1]), "not finite"),
        (torch.full((2, 3), 1 / 3), torch.tensor([0, 3]), "Label 3 is out of range"),
        (torch.full((2, 3), 1 / 3), torch.tensor([-1, 2]), "Label -1 is out of range"),
        (torch.full((2, 3), 1 / 3), torch.tensor([0, 1, 2]), r"\(batch, classes\)"),
        (torch.full((2, 3), 1 / 3), torch.tensor([0.0, 1.0]), "integers"),
        (torch.tensor([[4.0, -2.0]]), torch.tensor([0]), "softmax"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), "no examples"),
    ],
)
@pytest.mark.parametrize(
    "metric", [metrics.accuracy, metrics.brier, metrics.ece, metrics.adaptive_ece]
)
def test_bad_input_is_named(metric, probs, labels, message):
    with pytest.raises(BellaError, match=message):
        metric(probs, labels)


def test_particle_figures_want_three_axes_and_probabilities():
    for metric in (metrics.mutual_information, metrics.diversity, metrics.disagreement):
        with pytest.raises(BellaError, match=r"particles, batch, \.\.\., classes"):
            metric(PROBS)
        with pytest.raises(BellaError, match="not finite"):
            metric(torch.full((2, 3, 4), math.nan))


def test_scores_must_be_finite_and_fit():
    with pytest.raises(BellaError, match="not finite"):
        metrics.auroc(torch.tensor([0.0, math.nan]), torch.tensor([True, False]))
    with pytest.raises(BellaError, match="same examples"):
        metrics.auroc(torch.rand(3), torch.tensor([True, False]))
    with pytest.raises(BellaError, match="do not fit"):
        metrics.aurc(PROBS, LABELS, torch.rand(3))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_of_any_integer_type_count(dtype):
    labels = LABELS.to(dtype)
    for metric in (metrics.accuracy, metrics.brier, metrics.ece, metrics.adaptive_ece):
        assert metric(PROBS, labels) == metric(PROBS, LABELS)
    assert metrics.nll(PROBS.log(), labels) == metrics.nll(PROBS.log(), LABELS)


# ------------------------------------------------------------ ties


def tied(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Forty examples with few different confidences and uncertainties, and another order."""
    generator = torch.Generator().manual_seed(seed)
    sure = torch.randint(5, 10, (40,), generator=generator).double() / 10
    probs = torch.stack([sure, 1 - sure], -1)
    return probs, torch.randint(2, (40,), generator=generator), torch.randperm(40)


@given(st.integers(0, 500))
def test_no_figure_depends_on_the_order_of_the_examples(seed):
    probs, labels, order = tied(seed)
    doubt = metrics.entropy(probs)
    for name in ("aurc", "auroc_errors"):
        metric = getattr(metrics, name)
        there = metric(probs, labels, doubt)
        assert metric(probs[order], labels[order], doubt[order]) == pytest.approx(there)
    for name in ("adaptive_ece", "ece", "accuracy", "brier"):
        metric = getattr(metrics, name)
        assert metric(probs[order], labels[order]) == pytest.approx(metric(probs, labels))


def test_ties_count_as_the_mean_over_their_orders():
    probs, labels = torch.tensor([[0.9, 0.1]] * 6), torch.tensor([0, 1, 0, 1, 1, 0])
    doubt = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 2.0])
    risks = []
    for one in itertools.permutations(range(2)):
        for two in itertools.permutations(range(2, 5)):
            wrong = (labels != 0)[[*one, *two, 5]].double()
            risks.append(wrong.cumsum(0) / torch.arange(1, 7))
    expected = torch.stack(risks).mean(0)
    torch.testing.assert_close(metrics.risk_coverage(probs, labels, doubt)[1], expected)
    assert metrics.aurc(probs, labels, torch.zeros(6)) == pytest.approx(0.5)
    assert metrics.auroc(torch.ones(6), labels == 1) == 0.5


def test_adaptive_ece_of_one_confidence_is_its_distance_from_the_accuracy():
    probs = torch.tensor([[0.7, 0.3]]).repeat(40, 1)
    labels = (torch.arange(40) >= 20).long()
    assert metrics.adaptive_ece(probs, labels) == pytest.approx(0.2)


def test_uncertainties_that_are_not_finite_are_refused():
    with pytest.raises(BellaError, match="Uncertainties are not finite"):
        metrics.aurc(torch.tensor([[0.9, 0.1]]), torch.tensor([0]), torch.tensor([math.nan]))


FIGURES = {
    "accuracy": lambda probs, particles, labels: metrics.accuracy(probs, labels),
    "nll": lambda probs, particles, labels: metrics.nll(probs.log(), labels),
    "brier": lambda probs, particles, labels: metrics.brier(probs, labels),
    "ece": lambda probs, particles, labels: metrics.ece(probs, labels),
    "adaptive_ece": lambda probs, particles, labels: metrics.adaptive_ece(probs, labels),
    "reliability": lambda probs, particles, labels: metrics.reliability(probs, labels),
    "auroc": lambda probs, particles, labels: metrics.auroc(metrics.entropy(probs), labels > 1),
    "auroc_between": lambda probs, particles, labels: metrics.auroc_between(
        metrics.entropy(probs), metrics.mutual_information(particles)
    ),
    "aurc": lambda probs, particles, labels: metrics.aurc(probs, labels, metrics.entropy(probs)),
    "diversity": lambda probs, particles, labels: metrics.diversity(particles),
    "disagreement": lambda probs, particles, labels: metrics.disagreement(particles),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_of_tensors_that_carry_a_gradient_are_the_same_without_a_warning(name):
    torch.manual_seed(0)
    particles = torch.randn(4, 50, 3).softmax(-1)
    labels = torch.randint(3, (50,))
    expected = FIGURES[name](particles.mean(0), particles, labels)
    particles.requires_grad_()
    assert FIGURES[name](particles.mean(0), particles, labels) == expected


def test_predictives_beside_each_other():
    p = torch.tensor([[0.7, 0.3], [0.5, 0.5], [0.2, 0.8]]).double()
    q = torch.tensor([[0.4, 0.6], [0.5, 0.5], [0.1, 0.9]]).double()
    assert metrics.agreement(p, q) == pytest.approx(2 / 3)
    assert metrics.total_variation(p, q) == pytest.approx((0.3 + 0 + 0.1) / 3)
    assert metrics.total_variation(p, p) == 0
    assert metrics.total_variation(torch.eye(3), torch.eye(3).roll(1, 0)) == 1
    # Half the L1 distance, as scipy counts it.
    one, other = softmax_of(40, 5), softmax_of(40, 5, seed=3)
    halved = [scipy.spatial.distance.cityblock(a, b) / 2 for a, b in zip(one, other, strict=True)]
    assert metrics.total_variation(one, other) == pytest.approx(np.mean(halved))
    for figure in (metrics.agreement, metrics.total_variation):
        with pytest.raises(BellaError, match="same examples"):
            figure(p, q[:2])
