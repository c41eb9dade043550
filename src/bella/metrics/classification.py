"""Figures of a predictive: pure functions of tensors.

torchmetrics and scikit-learn compute what they compute well; the rest is a line or two.
Information is in nats. No figure depends on the order of the examples: where an order by confidence
or uncertainty has ties, tied examples count as their mean.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from bella.errors import BellaError, require

Probs = Float[Tensor, "batch classes"]
ParticleProbs = Float[Tensor, "particles *batch classes"]
Labels = Integer[Tensor, " batch"]
Scores = Float[Tensor, " batch"]
Weights = Float[Tensor, "particles *batch"] | None
"""What each particle counts for each example, with a sum of 1; ``None`` for all the same."""


# ------------------------------------------------------------ what fits together


def check_labels(labels: Tensor, classes: int, ignore_index: int | None = None) -> None:
    """Refuse class numbers that do not exist.

    Raises:
        BellaError: labels that are not integers, are negative or not below ``classes``.
    """
    if labels.is_floating_point() or labels.is_complex():
        raise BellaError(f"Labels are {labels.dtype}: give class numbers as integers.")
    labels = labels.long()
    wrong = (labels < 0) | (labels >= classes)
    if ignore_index is not None:
        wrong &= labels != ignore_index
    if wrong.any():
        raise BellaError(
            f"Label {int(labels[wrong][0])} is out of range: there are {classes} classes, so "
            f"labels go from 0 to {classes - 1}."
        )


def check(probs: Probs, labels: Labels) -> None:
    """Refuse probabilities and labels that do not belong together.

    Raises:
        BellaError: shapes that do not fit, no examples, values that are not probabilities, labels
            out of range.
    """
    if probs.dim() != 2 or labels.shape != probs.shape[:1]:
        raise BellaError(
            f"Probabilities of shape {tuple(probs.shape)} and labels of shape "
            f"{tuple(labels.shape)} are not (batch, classes) and (batch,)."
        )
    if not len(labels):
        raise BellaError("There are no examples to measure: the data are empty.")
    check_probs(probs)
    check_labels(labels, probs.shape[1])


def check_probs(probs: Float[Tensor, "*shape classes"]) -> None:
    """Refuse what cannot be probabilities.

    Raises:
        BellaError: values that are not finite, or not between 0 and 1.
    """
    if not probs.numel():
        return
    low, high = (float(x) for x in probs.detach().aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise BellaError("Probabilities are not finite: check the network's inputs and training.")
    if not -1e-3 < low <= high < 1 + 1e-3:
        raise BellaError(
            f"Probabilities go from {low:.3g} to {high:.3g}: apply softmax to logits first."
        )


def check_particles(particle_probs: ParticleProbs) -> None:
    """Refuse what cannot be the probabilities of several particles.

    Raises:
        BellaError: another shape, or values that are not probabilities.
    """
    if particle_probs.dim() < 3:
        raise BellaError(
            f"Probabilities of shape {tuple(particle_probs.shape)} are not "
            "(particles, batch, ..., classes)."
        )
    check_probs(particle_probs)


def precise(values: Tensor) -> Tensor:
    """The values in float32, or better where they are better."""
    return values.float() if values.element_size() < 4 else values


# ------------------------------------------------------------ uncertainty of each example


def entropy(probs: Float[Tensor, "*shape classes"]) -> Float[Tensor, "*shape"]:
    """H[p] = -sum_c p_c log p_c, where 0 log 0 is 0: the total uncertainty."""
    check_probs(probs)
    return torch.special.entr(precise(probs)).sum(-1)


def over_particles(values: Float[Tensor, "particles ..."], weights: Weights) -> Tensor:
    """The mean over the particles, by their weights where there are any.

    Taken from the first particle on, so that particles that say the same have exactly that for
    their mean.
    """
    first = values[:1]
    if weights is None:
        return (first + (values - first).mean(0, keepdim=True)).squeeze(0)
    weights = weights.to(values.dtype)
    weights = weights.reshape(*weights.shape, *[1] * (values.dim() - weights.dim()))
    return (first + (weights * (values - first)).sum(0, keepdim=True)).squeeze(0)


def expected_entropy(
    particle_probs: ParticleProbs, weights: Weights = None
) -> Float[Tensor, "*batch"]:
    """mean_i H[p_i]: the uncertainty that every particle sees (aleatoric)."""
    check_particles(particle_probs)
    return over_particles(entropy(particle_probs), weights)


def mutual_information(
    particle_probs: ParticleProbs, weights: Weights = None
) -> Float[Tensor, "*batch"]:
    """H[p] - mean_i H[p_i] >= 0 with p = mean_i p_i: what the particles dispute (epistemic).

    Computed as the equal mean_i KL(p_i || p), which keeps its digits where particles nearly agree:
    the difference of two entropies loses everything below 1e-7 nats in float32.

    Source:
        Houlsby et al. 2011, Bayesian active learning by disagreement, eq. 2.
    """
    check_particles(particle_probs)
    particles = precise(particle_probs)
    mean = over_particles(particles, weights)
    return over_particles(kl(particles, mean), weights).clamp_min(0)


def kl(p: Float[Tensor, "*#shape classes"], q: Float[Tensor, "*#shape classes"]) -> Tensor:
    """KL(p || q) = sum_c [p log(p/q) - p + q] for probabilities in float32 or better.

    One of the two may lack leading axes of the other: each particle against their mean.
    No term is negative, so close distributions do not cancel. A q below 1e-38 (the smallest normal
    float32) counts as that: without it one impossible class would make every mean infinite.
    """
    gap = p - q
    # A p far below q rounds to a ratio of -1, whose logarithm would make the term infinite.
    ratio = (gap / q.clamp_min(torch.finfo(torch.float32).tiny)).clamp_min(
        torch.finfo(p.dtype).eps - 1
    )
    return (p * torch.log1p(ratio) - gap).sum(-1)  # finite: the ratio is above -1


# ------------------------------------------------------------ quality of the predictive


def accuracy(probs: Probs, labels: Labels) -> float:
    """Share of examples whose most probable class is the label."""
    check(probs, labels)
    return (probs.argmax(-1) == labels.long()).double().mean().item()


def nll(log_probs: Float[Tensor, "batch classes"], labels: Labels) -> float:
    """Mean negative log-likelihood of the predictive.

    Args:
        log_probs: log-probabilities, of several particles by log-mean-exp (`Predictive.log_probs`):
            the logarithm of a rounded probability may be that of 0.
        labels: class numbers.
    """
    check(log_probs.exp(), labels)
    chosen = log_probs.gather(1, labels.long()[:, None])
    return -chosen.double().mean().item()


def brier(probs: Probs, labels: Labels) -> float:
    """Mean over examples of the squared distance to the one-hot label (from 0 to 2; Brier 1950)."""
    check(probs, labels)
    target = torch.nn.functional.one_hot(labels.long(), probs.shape[1])
    return (probs.double() - target).square().sum(-1).mean().item()


def ece(probs: Probs, labels: Labels, bins: int = 15) -> float:
    """Expected calibration error of the top class, equal-width bins (Guo et al. 2017)."""
    check(probs, labels)
    functional = require("torchmetrics.functional.classification", "fit")
    return functional.multiclass_calibration_error(
        _below_one(probs), labels.long(), num_classes=probs.shape[1], n_bins=bins, norm="l1"
    ).item()


def adaptive_ece(probs: Probs, labels: Labels, bins: int = 15) -> float:
    """Expected calibration error with bins of equal numbers of examples (Nixon et al. 2019).

    Examples of one confidence may fall into two bins; each is then right as often as all of them.
    """
    check(probs, labels)
    confidence, predictions = probs.double().max(-1)
    right = mean_of_ties((predictions == labels.long()).double(), confidence)
    gap = (confidence - right)[confidence.argsort()]
    return sum(part.sum().abs().item() for part in gap.tensor_split(bins)) / len(labels)


def reliability(
    probs: Probs, labels: Labels, bins: int = 15
) -> tuple[list[float], list[float], list[int]]:
    """Mean confidence, accuracy and number of examples of each bin of `ece` that has any."""
    check(probs, labels)
    confidence, predictions = _below_one(probs).max(-1)
    right = (predictions == labels.long()).double()
    inner = torch.linspace(0, 1, bins + 1, dtype=confidence.dtype, device=confidence.device)[1:-1]
    bin_of = torch.bucketize(confidence, inner, right=True)
    rows = [bin_of == b for b in range(bins)]
    rows = [row for row in rows if row.any()]
    return (
        [confidence[row].double().mean().item() for row in rows],
        [right[row].mean().item() for row in rows],
        [int(row.sum()) for row in rows],
    )


def mean_of_ties(values: Scores, score: Scores) -> Scores:
    """Each example's value, replaced by the mean of the examples that have its score."""
    _, group, count = score.unique(return_inverse=True, return_counts=True)
    total = values.new_zeros(len(count)).index_add_(0, group, values)
    return (total / count)[group]


def _below_one(probs: Probs) -> Probs:
    """Put certain examples into the last bin: torchmetrics gives 1.0 a bin of its own, and takes
    anything above for logits."""
    probs = precise(probs)
    return probs.clamp(0, 1 - torch.finfo(probs.dtype).eps / 2)


# ------------------------------------------------------------ does the uncertainty know?


def auroc(score: Scores, positive: Bool[Tensor, " batch"]) -> float:
    """Probability that a positive example scores above a negative one; of equal scores, a half.

    NaN where one of the two kinds is missing: there is then nothing to tell apart.

    Raises:
        BellaError: scores and flags of different shapes, or scores that are not finite.
    """
    if score.dim() != 1 or score.shape != positive.shape:
        raise BellaError(
            f"Scores of shape {tuple(score.shape)} and flags of shape {tuple(positive.shape)} "
            "must be the same examples."
        )
    if not torch.isfinite(score).all():
        raise BellaError("Scores are not finite: check the network's inputs and training.")
    positive = positive.bool()
    if positive.all() or not positive.any():
        return math.nan
    sklearn = require("sklearn.metrics", "fit")
    return float(
        sklearn.roc_auc_score(positive.cpu().numpy(), score.detach().double().cpu().numpy())
    )


def auroc_between(inside: Float[Tensor, " inside"], outside: Float[Tensor, " outside"]) -> float:
    """How well a score tells outside examples (higher) from inside ones."""
    flags = torch.cat([torch.zeros(len(inside)), torch.ones(len(outside))]).bool()
    return auroc(torch.cat([inside.cpu(), outside.cpu()]), flags)


def auroc_errors(probs: Probs, labels: Labels, uncertainty: Scores) -> float:
    """How well an uncertainty tells wrong answers (higher) from right ones; NaN without errors."""
    check(probs, labels)
    return auroc(uncertainty, probs.argmax(-1) != labels.long())


def risk_coverage(
    probs: Probs, labels: Labels, uncertainty: Scores
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """The coverages 1/b, 2/b, ..., 1 and the error rate (risk) of so many least uncertain answers.

    Answers of one uncertainty may come in any order: theirs is the risk that is expected over all
    of those orders.

    Raises:
        BellaError: an uncertainty of another shape than the labels or not finite, and as `check`.
    """
    check(probs, labels)
    if uncertainty.shape != labels.shape:
        raise BellaError(
            f"Uncertainties of shape {tuple(uncertainty.shape)} do not fit labels of shape "
            f"{tuple(labels.shape)}."
        )
    if not torch.isfinite(uncertainty).all():
        raise BellaError("Uncertainties are not finite: check the network's inputs and training.")
    wrong = mean_of_ties((probs.argmax(-1) != labels.long()).double(), uncertainty)
    wrong = wrong[uncertainty.argsort()]
    count = torch.arange(1, len(wrong) + 1, dtype=torch.double, device=wrong.device)
    return count / len(wrong), wrong.cumsum(0) / count


def aurc(probs: Probs, labels: Labels, uncertainty: Scores) -> float:
    """Area under the risk-coverage curve: mean risk over all coverages (Geifman & El-Yaniv)."""
    return risk_coverage(probs, labels, uncertainty)[1].mean().item()


# ------------------------------------------------------------ how different are the particles?


def diversity(particle_probs: ParticleProbs, weights: Weights = None) -> float:
    """Mean over examples of mean_i KL(p || p_i) with p = mean_i p_i (Bella, appendix A)."""
    check_particles(particle_probs)
    particles = precise(particle_probs)
    apart = kl(over_particles(particles, weights), particles)
    return over_particles(apart.double(), weights).mean().item()


def agreement(probs: Probs, reference: Probs) -> float:
    """Share of examples on which two predictives name the same class.

    Source:
        Izmailov et al. 2021, section 4.3.
    """
    _check_same(probs, reference)
    return (probs.argmax(-1) == reference.argmax(-1)).double().mean().item()


def total_variation(probs: Probs, reference: Probs) -> float:
    """Mean over examples of ½ Σ_c |p(c) - q(c)|: 0 for the same predictives, 1 for disjoint ones.

    Source:
        Izmailov et al. 2021, section 4.3.
    """
    _check_same(probs, reference)
    return (probs.double() - reference.double()).abs().sum(-1).mean().item() / 2


def _check_same(probs: Probs, reference: Probs) -> None:
    check_probs(probs)
    check_probs(reference)
    if probs.shape != reference.shape or not len(probs):
        raise BellaError(
            f"Predictives of shapes {tuple(probs.shape)} and {tuple(reference.shape)} must be of "
            "the same examples and classes, and of at least one."
        )


def disagreement(particle_probs: ParticleProbs, weights: Weights = None) -> float:
    """Share of examples on which two particles name different classes, mean over pairs."""
    check_particles(particle_probs)
    votes = particle_probs.argmax(-1).flatten(1)
    n = len(votes)
    if n == 1:
        return 0.0
    counts = torch.ones_like(votes, dtype=torch.double)
    if weights is not None:
        counts = weights.double().flatten(1)
    pairs = counts[:, None] * counts[None]
    pairs.diagonal().zero_()
    differ = pairs * (votes[:, None] != votes[None])
    return (differ.sum((0, 1)) / pairs.sum((0, 1))).mean().item()


def particle_similarity(particles: Float[Tensor, "particles size"]) -> float:
    """Mean cosine similarity of two particles' vectors (Bella, Table 9); NaN for one particle."""
    n = len(particles)
    if n == 1:
        return math.nan
    unit = torch.nn.functional.normalize(particles.double(), dim=-1)
    cosine = unit @ unit.mT
    return ((cosine.sum() - cosine.diagonal().sum()) / (n * (n - 1))).item()
