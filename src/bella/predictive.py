"""What particles say together: the predictive distribution and its uncertainties.

p(y | x) = mean_i p_i(y | x)        (or, by choice, the softmax of the mean logits)
total uncertainty   H[p]            expected entropy   mean_i H[p_i]   (aleatoric)
mutual information  H[p] - mean_i H[p_i] >= 0                          (epistemic)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from bella import metrics
from bella.errors import BellaError
from bella.inputs import arguments
from bella.posterior import Posterior

Average = Literal["probs", "logits"]


def logits_of(outputs: Any) -> Tensor:
    """The logits among a network's outputs.

    Args:
        outputs: the logits, an object or mapping with ``logits``, or a tuple that begins with them.

    Raises:
        BellaError: none of these.
    """
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping) and "logits" in outputs:
        return outputs["logits"]
    if isinstance(getattr(outputs, "logits", None), Tensor):
        return outputs.logits
    if isinstance(outputs, tuple | list) and outputs and isinstance(outputs[0], Tensor):
        return outputs[0]
    raise BellaError(
        f"The network returned a {type(outputs).__name__} without logits: return a tensor of "
        "logits, or an object with .logits."
    )


def nll(outputs: Any, labels: Tensor, *, ignore_index: int = -100) -> Tensor:
    """Negative log-likelihood: MEAN over the batch, SUM over the particles.

    The sum keeps every particle's gradient its own; a mean would divide each by n.

    Args:
        outputs: a posterior's outputs; logits (particles, batch, ..., classes).
        labels: class numbers (batch, ...), or (particles, batch, ...) where each particle has its
            own examples.
        ignore_index: label of positions that do not count; a particle without any other has 0.

    Returns:
        A scalar, in nats.

    Raises:
        BellaError: labels of another shape or type, or out of range (checked on CPU tensors; on a
            GPU the check would wait for the device).
    """
    logits = metrics.precise(logits_of(outputs))
    if labels.is_floating_point():
        raise BellaError(f"Labels are {labels.dtype}: give class numbers as integers.")
    labels = labels.long()
    if labels.dim() == logits.dim() - 2:
        labels = labels.expand(logits.shape[0], *labels.shape)
    if logits.dim() < 3 or labels.shape != logits.shape[:-1]:
        raise BellaError(
            f"Labels of shape {tuple(labels.shape)} do not fit logits of shape "
            f"{tuple(logits.shape)}, which must be (particles, batch, ..., classes)."
        )
    if labels.device.type == "cpu":
        metrics.check_labels(labels, logits.shape[-1], ignore_index)
    losses = F.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), ignore_index=ignore_index, reduction="none"
    ).view(logits.shape[0], -1)
    counts = (labels != ignore_index).flatten(1).sum(1).clamp_min(1)
    return (losses.sum(1) / counts).sum()


@dataclass(frozen=True, eq=False)
class Predictive:
    """The predictive distribution of a batch, from every particle's logits.

    Attributes:
        logits: (particles, batch, classes), in float32 or better.
        average: ``probs``: the mean of the particles' probabilities; ``logits``: the softmax of
            their mean logits. Never mix the two in one table.

    Raises:
        BellaError: logits of another shape, or not finite.
    """

    logits: Float[Tensor, "particles batch classes"]
    average: Average = "probs"

    def __post_init__(self) -> None:
        if self.logits.dim() != 3:
            raise BellaError(
                f"Logits of shape {tuple(self.logits.shape)} are not (particles, batch, classes)."
            )
        if self.average not in ("probs", "logits"):
            raise BellaError(f"average={self.average!r}: choose 'probs' or 'logits'.")
        object.__setattr__(self, "logits", metrics.precise(self.logits))
        if not torch.isfinite(self.logits).all():
            raise BellaError(
                "The network's logits are not finite: are the inputs, and did training converge?"
            )

    @cached_property
    def particle_log_probs(self) -> Float[Tensor, "particles batch classes"]:
        """log p_i(y | x)."""
        return torch.log_softmax(self.logits, -1)

    @cached_property
    def log_probs(self) -> Float[Tensor, "batch classes"]:
        """log p(y | x), by log-mean-exp."""
        if self.average == "logits":
            return torch.log_softmax(self.logits.mean(0), -1)
        return torch.logsumexp(self.particle_log_probs, 0) - math.log(self.logits.shape[0])

    @cached_property
    def particle_probs(self) -> Float[Tensor, "particles batch classes"]:
        """p_i(y | x)."""
        return self.particle_log_probs.exp()

    @cached_property
    def probs(self) -> Float[Tensor, "batch classes"]:
        """p(y | x)."""
        return self.log_probs.exp()

    @cached_property
    def entropy(self) -> Float[Tensor, " batch"]:
        """H[p], total uncertainty in nats."""
        return metrics.entropy(self.probs)

    @cached_property
    def expected_entropy(self) -> Float[Tensor, " batch"]:
        """mean_i H[p_i], in nats."""
        return metrics.expected_entropy(self.particle_probs)

    @cached_property
    def mutual_information(self) -> Float[Tensor, " batch"]:
        """H[mean_i p_i] - mean_i H[p_i] >= 0, in nats: what the particles dispute.

        With averaged logits too: H[p] - mean_i H[p_i] may be negative there and is no information.
        """
        return metrics.mutual_information(self.particle_probs)

    @property
    def predictions(self) -> Int[Tensor, " batch"]:
        """The most probable classes."""
        return self.log_probs.argmax(-1)

    @property
    def confidence(self) -> Float[Tensor, " batch"]:
        """The largest probability of each example."""
        return self.probs.amax(-1)

    def nll(self, labels: Int[Tensor, " batch"]) -> float:
        """Mean negative log-likelihood of the predictive, in nats.

        Raises:
            BellaError: labels of another shape, or out of range.
        """
        return metrics.nll(self.log_probs, labels)

    def tempered(self, temperature: float) -> Predictive:
        """The same logits divided by a temperature (see `bella.evaluation.temperature`).

        Raises:
            BellaError: the temperature is not above 0.
        """
        if not temperature > 0:
            raise BellaError(f"temperature={temperature}: give a number above 0.")
        return Predictive(self.logits / temperature, self.average)

    def __len__(self) -> int:
        return self.logits.shape[1]

    @staticmethod
    def cat(parts: Iterable[Predictive]) -> Predictive:
        """Join batches.

        Raises:
            BellaError: there are none, or they differ in particles, classes or average.
        """
        parts = list(parts)
        if not parts:
            raise BellaError("There is nothing to predict: the data are empty.")
        kinds = {(p.logits.shape[0], p.logits.shape[2], p.average) for p in parts}
        if len(kinds) > 1:
            raise BellaError(
                f"Batches of different (particles, classes, average) cannot be joined: "
                f"{sorted(kinds)}."
            )
        return Predictive(torch.cat([part.logits for part in parts], 1), parts[0].average)


def predict(
    posterior: Posterior,
    inputs: Any,
    *,
    draws: int = 1,
    particles_per_pass: int | None = None,
    average: Average = "probs",
) -> Predictive:
    """Predict a batch with every particle.

    Args:
        posterior: any posterior; left in the mode it was in.
        inputs: a tensor, a tuple of arguments, a mapping of named ones, or a stream from
            ``posterior.prefix``.
        draws: samples of the weights of a stochastic posterior; they count as further particles,
            draw by draw. Point particles say the same each time and are run once.
        particles_per_pass: run so many particles at once, for less memory.
        average: see `Predictive`.

    Raises:
        BellaError: ``draws`` or ``particles_per_pass`` below 1, or outputs without logits.
    """
    if draws < 1:
        raise BellaError(f"draws={draws}: give a whole number of at least 1.")
    if particles_per_pass is not None and particles_per_pass < 1:
        raise BellaError(
            f"particles_per_pass={particles_per_pass}: give a whole number of at least 1."
        )
    args, kwargs = arguments(inputs)
    everyone = list(range(posterior.particles))
    size = particles_per_pass or posterior.particles
    chunks = [everyone[i : i + size] for i in everyone[::size]]
    parts = []
    with evaluating(posterior), torch.inference_mode():
        for _ in range(draws if posterior.stochastic else 1):
            for chunk in chunks:
                with nullcontext() if len(chunks) == 1 else posterior.subset(chunk):
                    parts.append(logits_of(posterior(*args, **kwargs)))
    return Predictive(torch.cat(parts), average)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every module is in the mode it was in."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training
