"""What particles say together: the predictive distribution and its uncertainties.

p(y | x) = mean_i p_i(y | x)        (or, by choice, the softmax of the mean logits)
total uncertainty   H[p]            expected entropy   mean_i H[p_i]   (aleatoric)
mutual information  H[p] - mean_i H[p_i] >= 0                          (epistemic)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bella import metrics
from bella.errors import BellaError
from bella.inputs import arguments, rows
from bella.memory import at_once, parts
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
        weights: what each particle counts for each example, (particles, batch) with a sum of 1; 0
            for those that were skipped. ``None``: all ran on all and count the same.

    Raises:
        BellaError: logits of another shape, or not finite.
    """

    logits: Float[Tensor, "particles batch classes"]
    average: Average = "probs"
    weights: metrics.Weights = None

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
            return torch.log_softmax(metrics.over_particles(self.logits, self.weights), -1)
        if self.weights is None:
            return torch.logsumexp(self.particle_log_probs, 0) - math.log(self.logits.shape[0])
        return torch.logsumexp(self.particle_log_probs + self.weights.log().unsqueeze(-1), 0)

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
        return metrics.expected_entropy(self.particle_probs, self.weights)

    @cached_property
    def mutual_information(self) -> Float[Tensor, " batch"]:
        """H[mean_i p_i] - mean_i H[p_i] >= 0, in nats: what the particles dispute.

        With averaged logits too: H[p] - mean_i H[p_i] may be negative there and is no information.
        """
        return metrics.mutual_information(self.particle_probs, self.weights)

    @property
    def predictions(self) -> Int[Tensor, " batch"]:
        """The most probable classes."""
        return self.log_probs.argmax(-1)

    @property
    def confidence(self) -> Float[Tensor, " batch"]:
        """The largest probability of each example."""
        return self.probs.amax(-1)

    @property
    def saved(self) -> float:
        """Share of the passes of a particle over an example that were skipped."""
        return 0.0 if self.weights is None else (self.weights == 0).double().mean().item()

    def stopped(self, bound: float, first: int = 2) -> Predictive:
        """What `predict` says with ``stop=bound``, told from what all particles said."""
        early = agree(self.logits[:first], bound)
        if first >= len(self.logits) or not early.any():
            return self
        return replace(self, weights=early_weights(self.logits, early, first))

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
        return replace(self, logits=self.logits / temperature)

    def cpu(self) -> Predictive:
        """The same on the CPU."""
        weights = None if self.weights is None else self.weights.cpu()
        return Predictive(self.logits.cpu(), self.average, weights)

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
        weights = None
        if any(part.weights is not None for part in parts):
            weights = torch.cat([part.all_weights() for part in parts], 1)
        return Predictive(torch.cat([part.logits for part in parts], 1), parts[0].average, weights)

    def all_weights(self) -> Float[Tensor, "particles batch"]:
        """The weights, where all particles count the same too."""
        if self.weights is not None:
            return self.weights
        return self.logits.new_full(self.logits.shape[:2], 1 / len(self.logits))


def predict(
    posterior: Posterior,
    inputs: Any,
    *,
    draws: int = 1,
    particles_per_pass: int | Literal["auto"] | None = None,
    memory: int | None = None,
    average: Average = "probs",
    stop: float | None = None,
    first: int = 2,
) -> Predictive:
    """Predict a batch with every particle, or with as many as the examples need.

    Args:
        posterior: any posterior; left in the mode it was in.
        inputs: a tensor, a tuple of arguments, a mapping of named ones, or a stream from
            ``posterior.prefix``.
        draws: samples of the weights of a stochastic posterior; they count as further particles,
            draw by draw. Point particles say the same each time and are run once.
        particles_per_pass: run so many particles at once, for less memory; ``auto`` for as many as
            fit into ``memory``, measured on these inputs.
        memory: bytes for what a pass makes and drops again; see `bella.memory.at_once`.
        average: see `Predictive`.
        stop: examples on which the mutual information of the ``first`` particles is below this
            bound (in nats) skip all others, and their predictive is that of the first. 0 skips
            nothing. See `Predictive.saved` and `bella.evaluation.early_stop`.
        first: how many particles run on every example, at least 2.

    Raises:
        BellaError: ``draws``, ``particles_per_pass`` or ``first`` out of range, outputs without
            logits, several draws together with ``stop``, or a ``memory`` too small for one
            particle.
    """
    if draws < 1:
        raise BellaError(f"draws={draws}: give a whole number of at least 1.")
    if particles_per_pass not in (None, "auto") and particles_per_pass < 1:  # type: ignore[operator]
        raise BellaError(
            f"particles_per_pass={particles_per_pass}: give a whole number of at least 1."
        )
    if memory is not None and particles_per_pass != "auto":
        raise BellaError("memory is for particles_per_pass='auto': give both, or neither.")
    if stop is not None and not stop >= 0:
        raise BellaError(f"stop={stop}: give a bound in nats, of at least 0.")
    if stop is not None and first < 2:
        raise BellaError(f"first={first}: one particle agrees with itself, so give at least 2.")
    draws = draws if posterior.stochastic else 1
    if stop is not None and draws > 1:
        raise BellaError("stop skips particles and not draws: leave out draws, or stop.")
    args, kwargs = arguments(inputs)
    everyone = range(posterior.particles)
    with evaluating(posterior), torch.inference_mode():
        if particles_per_pass == "auto":
            particles_per_pass = particles_at_once(posterior, inputs, memory)
        size = particles_per_pass or len(everyone)
        if size < len(everyone) or stop:
            args, kwargs = posterior.begun(*args, **kwargs)

        def said(particles: Sequence[int], args: tuple, kwargs: dict[str, Any]) -> Tensor:
            logits = []
            for part in parts(particles, size):
                alone = len(part) == len(everyone)
                with nullcontext() if alone else posterior.subset(part):
                    logits.append(logits_of(posterior(*args, **kwargs)))
            return metrics.precise(torch.cat(logits))

        if not stop or first >= len(everyone):
            return Predictive(
                torch.cat([said(everyone, args, kwargs) for _ in range(draws)]), average
            )
        begin = said(everyone[:first], args, kwargs)
        early = agree(begin, stop)
        rest = begin.new_zeros(len(everyone) - first, *begin.shape[1:])
        if not early.all():
            doubtful = (~early).nonzero().flatten()
            rest[:, doubtful] = said(everyone[first:], *rows((args, kwargs), doubtful, len(early)))
        logits = torch.cat((begin, rest))
        return Predictive(logits, average, early_weights(logits, early, first))


def particles_at_once(posterior: Posterior, inputs: Any, memory: int | None = None) -> int:
    """How many particles predict these inputs within a budget of memory, in equal passes.

    Raises:
        BellaError: ``memory`` is not enough for one particle.
    """
    args, kwargs = arguments(inputs)
    with evaluating(posterior), torch.inference_mode():
        args, kwargs = posterior.begun(*args, **kwargs)
        return at_once(posterior, lambda: posterior(*args, **kwargs), memory)


def agree(logits: Float[Tensor, "first batch classes"], bound: float) -> Bool[Tensor, " batch"]:
    """The examples on which particles have a mutual information below a bound in nats."""
    return metrics.mutual_information(logits.softmax(-1)) < bound


def early_weights(
    logits: Float[Tensor, "particles batch classes"], early: Bool[Tensor, " batch"], first: int
) -> Float[Tensor, "particles batch"]:
    """1 / particles, and on early examples 1 / first for the first ones and 0 for the others."""
    weights = logits.new_full(logits.shape[:2], 1 / len(logits))
    weights[:first, early] = 1 / first
    weights[first:, early] = 0
    return weights


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
