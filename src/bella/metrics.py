"""Figures of a predictive: pure functions of tensors.

torchmetrics and scikit-learn compute what they compute well; the rest is a line or two.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bella.errors import BellaError, require

Probs = Float[Tensor, "batch classes"]
ParticleProbs = Float[Tensor, "particles batch classes"]
Labels = Int[Tensor, " batch"]
Scores = Float[Tensor, " batch"]


def check(probs: Probs, labels: Labels) -> None:
    """Refuse probabilities and labels that do not belong together.

    Raises:
        BellaError: shapes that do not fit, values that are not finite, labels out of range.
    """
    if probs.dim() != 2 or labels.shape != probs.shape[:1]:
        raise BellaError(
            f"Probabilities of shape {tuple(probs.shape)} and labels of shape "
            f"{tuple(labels.shape)} are not (batch, classes) and (batch,)."
        )
    if not torch.isfinite(probs).all():
        raise BellaError("Probabilities are not finite: check the network's inputs and training.")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < probs.shape[1]:
        raise BellaError(
            f"Labels from {int(labels.min())} to {int(labels.max())} do not fit "
            f"{probs.shape[1]} classes: they go from 0 to {probs.shape[1] - 1}."
        )


def accuracy(probs: Probs, labels: Labels) -> float:
    """Share of examples whose most probable class is the label."""
    check(probs, labels)
    return (probs.argmax(-1) == labels).double().mean().item()


def brier(probs: Probs, labels: Labels) -> float:
    """Mean over examples of the squared distance to the one-hot label (from 0 to 2; Brier 1950)."""
    check(probs, labels)
    target = torch.nn.functional.one_hot(labels, probs.shape[1])
    return (probs.double() - target).square().sum(-1).mean().item()


def ece(probs: Probs, labels: Labels, bins: int = 15) -> float:
    """Expected calibration error of the top class, equal-width bins (Guo et al. 2017)."""
    check(probs, labels)
    functional = require("torchmetrics.functional.classification", "fit")
    return functional.multiclass_calibration_error(
        probs, labels, num_classes=probs.shape[1], n_bins=bins, norm="l1"
    ).item()


def adaptive_ece(probs: Probs, labels: Labels, bins: int = 15) -> float:
    """Expected calibration error with bins of equal numbers of examples (Nixon et al. 2019)."""
    check(probs, labels)
    confidence, predictions = probs.double().max(-1)
    order = confidence.argsort()
    gap = (confidence - (predictions == labels).double())[order]
    return sum(part.sum().abs().item() for part in gap.tensor_split(bins)) / len(labels)


def reliability(
    probs: Probs, labels: Labels, bins: int = 15
) -> tuple[list[float], list[float], list[int]]:
    """Mean confidence, accuracy and number of examples of each equal-width bin that has any."""
    check(probs, labels)
    confidence, predictions = probs.double().max(-1)
    right = (predictions == labels).double()
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    rows = [bin_of == b for b in range(bins)]
    rows = [row for row in rows if row.any()]
    return (
        [confidence[row].mean().item() for row in rows],
        [right[row].mean().item() for row in rows],
        [int(row.sum()) for row in rows],
    )


def auroc(score: Scores, positive: Bool[Tensor, " batch"]) -> float:
    """Probability that a positive example scores above a negative one.

    NaN where one of the two kinds is missing: there is then nothing to tell apart.
    """
    if score.shape != positive.shape:
        raise BellaError(
            f"Scores of shape {tuple(score.shape)} and flags of shape {tuple(positive.shape)} "
            "must be the same examples."
        )
    positive = positive.bool()
    if positive.all() or not positive.any():
        return math.nan
    sklearn = require("sklearn.metrics", "fit")
    return float(sklearn.roc_auc_score(positive.cpu().numpy(), score.double().cpu().numpy()))


def auroc_between(inside: Scores, outside: Scores) -> float:
    """How well a score tells outside examples (higher) from inside ones."""
    flags = torch.cat([torch.zeros(len(inside)), torch.ones(len(outside))]).bool()
    return auroc(torch.cat([inside, outside]).cpu(), flags)


def risk_coverage(
    probs: Probs, labels: Labels, uncertainty: Scores
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Error rate (risk) among the share (coverage) of the least uncertain examples."""
    check(probs, labels)
    wrong = (probs.argmax(-1) != labels).double()[uncertainty.argsort(stable=True)]
    count = torch.arange(1, len(wrong) + 1, dtype=torch.double, device=wrong.device)
    return count / len(wrong), wrong.cumsum(0) / count


def aurc(probs: Probs, labels: Labels, uncertainty: Scores) -> float:
    """Area under the risk-coverage curve: mean risk over all coverages (Geifman & El-Yaniv)."""
    return risk_coverage(probs, labels, uncertainty)[1].mean().item()


def diversity(particle_probs: ParticleProbs) -> float:
    """Mean over examples of mean_i KL(p || p_i), in nats (Bella, appendix A)."""
    particles = particle_probs.double()
    mean = particles.mean(0)
    tiny = torch.finfo(torch.float32).tiny
    logs = mean.clamp_min(tiny).log() - particles.clamp_min(tiny).log()
    return (mean * logs).sum(-1).mean().item()


def disagreement(particle_probs: ParticleProbs) -> float:
    """Share of examples on which two particles name different classes, mean over pairs."""
    votes = particle_probs.argmax(-1)
    n = len(votes)
    if n == 1:
        return 0.0
    differ = (votes[:, None] != votes[None]).double().mean(-1)
    return (differ.sum() / (n * (n - 1))).item()


def particle_similarity(particles: Float[Tensor, "particles size"]) -> float:
    """Mean cosine similarity of two particles' vectors (Bella, Table 9); NaN for one particle."""
    n = len(particles)
    if n == 1:
        return math.nan
    unit = torch.nn.functional.normalize(particles.double(), dim=-1)
    cosine = unit @ unit.mT
    return ((cosine.sum() - cosine.diagonal().sum()) / (n * (n - 1))).item()
