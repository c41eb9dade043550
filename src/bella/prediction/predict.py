"""`bella.predict`: every particle on a batch, in passes that fit into memory.

Or as many particles as the examples need: where the first agree, the others are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bella import metrics
from bella.errors import BellaError
from bella.inputs import arguments, rows
from bella.likelihood import logits_of
from bella.memory import at_once, parts
from bella.particles.prefix import Stream
from bella.posterior import Posterior
from bella.prediction.predictive import Average, Predictive, agree, early_weights
from bella.trees import tensors_of


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
            args, kwargs = posterior.begun(*args, **kwargs)
            particles_per_pass = _at_once(posterior, args, kwargs, memory)
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
        return _at_once(posterior, args, kwargs, memory)


def _at_once(posterior: Posterior, args: tuple, kwargs: dict[str, Any], memory: int | None) -> int:
    begun = [*args, *kwargs.values()]
    carried = [x.carried() if isinstance(x, Stream) else tensors_of(x) for x in begun]
    shapes = tuple((x.shape, x.dtype) for some in carried for x in some)
    device = next(posterior.parameters()).device.type
    like = (shapes, torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device))
    return at_once(posterior, lambda: posterior(*args, **kwargs), memory, like)


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
