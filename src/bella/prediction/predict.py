"""`bella.predict`: every particle on a batch, in passes that fit into memory.

Or as many particles as the examples need: where the first agree, the others are skipped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from bella import metrics
from bella.classes import ClassAxis
from bella.errors import BellaError
from bella.inputs import arguments
from bella.kernels import device_of, fast_float32
from bella.likelihood import Likelihood, by_name, likelihood_of_outputs, logits_of, of_posterior
from bella.memory import at_once, parts
from bella.particles.sober import evaluating
from bella.particles.stream import Stream
from bella.posterior import Posterior
from bella.precision import Precision
from bella.prediction.agreement import decide
from bella.prediction.labels import MultiLabelPredictive
from bella.prediction.numbers import GaussianPredictive
from bella.prediction.predictive import IGNORED, Average, Predictive, agree, early_weights
from bella.prediction.said import Said
from bella.trees import tensors_of

PREDICTIVES: dict[str, type[Said]] = {
    "classes": Predictive,
    "tokens": Predictive,
    "bernoulli": MultiLabelPredictive,
    "gaussian": GaussianPredictive,
}
"""What is predicted, by the name of its likelihood."""


class Combined(nn.Module, ABC):
    """A posterior with more beside it, that predicts in a way of its own: `predict` asks it.

    Attributes:
        posterior: the particles.
    """

    posterior: Posterior

    @abstractmethod
    def predict(self, inputs: Any, **options: Any) -> Predictive:
        """See `bella.predict`, whose options these are."""

    @abstractmethod
    def around(self, logits: Tensor, inputs: Any) -> Predictive:
        """What it says of inputs of which its particles say these logits (particles, batch,
        classes); gradients go through both."""

    @property
    def network(self) -> nn.Module:
        """The network that the particles share."""
        return self.posterior.network


def particles_of(posterior: Posterior | Combined) -> Posterior:
    """The particles of a posterior, or of one that has more beside it."""
    return posterior.posterior if isinstance(posterior, Combined) else posterior


@overload
def predict(
    posterior: Posterior, inputs: Any, *, likelihood: Literal["gaussian"], **options: Any
) -> GaussianPredictive: ...
@overload
def predict(
    posterior: Posterior, inputs: Any, *, likelihood: Literal["bernoulli"], **options: Any
) -> MultiLabelPredictive: ...
@overload
def predict(
    posterior: Posterior | Combined,
    inputs: Any,
    *,
    likelihood: str | Likelihood = "auto",
    **options: Any,
) -> Predictive: ...
def predict(  # type: ignore[misc]  # the options stand here alone
    posterior: Posterior | Combined,
    inputs: Any,
    *,
    likelihood: str | Likelihood = "auto",
    draws: int = 1,
    particles_per_pass: int | Literal["auto"] | None = None,
    memory: int | None = None,
    average: Average = "probs",
    stop: float | None = None,
    first: int = 2,
    class_axis: int | ClassAxis | None = None,
    labels: Tensor | None = None,
    ignore_index: int = IGNORED,
    precision: str = "float32",
    base_dtype: str = "auto",
) -> Any:
    """Predict a batch with every particle, or with as many as the examples need.

    Args:
        posterior: any posterior or mixture; left in the mode it was in.
        inputs: a tensor, a tuple of arguments, a mapping of named ones, or a stream from
            ``posterior.prefix``.
        likelihood: what the outputs are, see `bella.nll`; ``auto``: what the network's kind says.
        draws: samples of the weights of a stochastic posterior; they count as further particles,
            draw by draw. Point particles say the same each time and are run once.
        particles_per_pass: run so many particles at once, for less memory; ``auto`` for as many as
            fit into ``memory``, measured on these inputs.
        memory: bytes for what a pass makes and drops again; see `bella.memory.at_once`.
        average: see `Predictive`.
        stop: examples on which the mutual information of the ``first`` particles is below this
            bound (in nats) skip all others, and their predictive is that of the first. 0 skips
            nothing. Of an example with several positions the most disputed one decides. See
            `Predictive.saved` and `bella.evaluation.early_stop`.
        first: how many particles run on every example, at least 2.
        class_axis: where the network's own outputs have their classes, for tokens and pixels: 1 as
            in torch's cross_entropy, -1 for the last. ``None``: as the kind of the outputs or the
            labels' shape show (see `bella.classes.ClassAxis`).
        labels: of these inputs, (batch, positions...), where there are any. Only their shape is
            used, to find the classes' axis, and for ``stop`` which positions count.
        ignore_index: label of positions that do not count.
        precision: ``float32`` multiplies as the parameters are, and as the caller's own autocast
            has it; ``bf16`` and ``fp16`` in fewer bits, ``auto`` in bf16 where that gains and the
            first batch agrees (see `bella.prediction.agreement`). Whoever predicts often in fewer
            bits does so inside `bella.in_precision`, which casts the base once.
        base_dtype: see `bella.precision.Precision`.

    Returns:
        The predictive by `PREDICTIVES`: of classes and tokens a `Predictive`, (particles, batch,
        positions..., classes) whatever the network's own order; of several labels a
        `MultiLabelPredictive`, of numbers a `GaussianPredictive`.

    Raises:
        BellaError: an empty batch; ``draws``, ``particles_per_pass`` or ``first`` out of range;
            outputs that do not fit the likelihood or are not finite (rows of the inputs that are
            not are named); a class axis that nothing decides; several draws together with ``stop``,
            or ``stop`` for numbers; ``stop`` or ``average`` with a mixture; or a ``memory`` too
            small for one particle.
    """
    if precision not in ("float32", "no"):
        particles = particles_of(posterior)
        in_float32 = partial(
            predict,
            *(posterior, inputs),
            likelihood=likelihood,
            draws=draws,
            particles_per_pass=particles_per_pass,
            memory=memory,
            average=average,
            stop=stop,
            first=first,
            class_axis=class_axis,
            labels=labels,
            ignore_index=ignore_index,
        )
        chosen = _agreed(particles, precision, base_dtype, in_float32)
        with chosen.around(particles), chosen.autocast():
            return in_float32()
    if isinstance(posterior, Combined):
        if stop is not None or average != "probs":
            raise BellaError(
                "A mixture pools its members in its own way, all of them: leave out stop and "
                "average, or predict with mixture.posterior."
            )
        with fast_float32(posterior):
            return posterior.predict(
                inputs,
                likelihood=likelihood,
                draws=draws,
                particles_per_pass=particles_per_pass,
                memory=memory,
                class_axis=class_axis,
            )
    kind = of_posterior(posterior, likelihood, scoring=False)
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
    if stop is not None and kind is not None and not kind.of_classes:
        raise BellaError("stop compares probabilities of classes, and numbers have none: leave it.")
    draws = draws if posterior.stochastic else 1
    if stop is not None and draws > 1:
        raise BellaError("stop skips particles and not draws: leave out draws, or stop.")
    args, kwargs = _arguments(inputs)
    axis = ClassAxis.of(class_axis)
    everyone = posterior.chosen
    # A table that the network makes in inference mode when it first needs it would be one that
    # training may not use: the network is the caller's, so it runs without gradients instead.
    with evaluating(posterior), torch.no_grad(), fast_float32(posterior):
        if particles_per_pass == "auto":
            args, kwargs = posterior.begun(*args, **kwargs)
            particles_per_pass = _at_once(posterior, args, kwargs, memory)
        size = particles_per_pass or len(everyone)
        if size < len(everyone) or stop:
            args, kwargs = posterior.begun(*args, **kwargs)

        def said(
            particles: Sequence[int],
            args: tuple,
            kwargs: dict[str, Any],
            labels: Tensor | None,
            numbers: Sequence[int] | None = None,
        ) -> Tensor:
            nonlocal kind
            logits = []
            for part in parts(particles, size):
                alone = len(part) == len(everyone)
                with nullcontext() if alone else posterior.subset(part):
                    outputs = posterior(*args, **kwargs)
                    if kind is None:
                        kind = by_name(likelihood_of_outputs(outputs))
                    logits.append(kind.scores(logits_of(outputs), outputs, labels, axis))
            joined = metrics.precise(torch.cat(logits))
            refuse_not_finite(joined, (args, kwargs), numbers)
            return joined

        if not stop or first >= len(everyone):
            drawn = [said(everyone, args, kwargs, labels) for _ in range(draws)]
            return _predictive(kind)(torch.cat(drawn), average)
        begin = said(everyone[:first], args, kwargs, labels)
        counted = None if labels is None else labels.long() != ignore_index
        early = agree(begin, stop, counted=counted)
        rest = begin.new_zeros(len(everyone) - first, *begin.shape[1:])
        if not early.all():
            doubtful = (~early).nonzero().flatten()
            fewer = posterior.some(args, kwargs, doubtful)
            if fewer is None:  # each example needs the others beside it
                rest = said(everyone[first:], args, kwargs, labels)
            else:
                some = None if labels is None else labels.to(doubtful.device)[doubtful]
                rest[:, doubtful] = said(everyone[first:], *fewer, some, doubtful.tolist())
        logits = torch.cat((begin, rest))
        return _predictive(kind)(logits, average, early_weights(logits, early, first))


@contextmanager
def in_precision(
    posterior: Posterior | Combined,
    precision: str = "auto",
    inputs: Any = None,
    *,
    base_dtype: str = "auto",
    kernel: str | None = None,
) -> Iterator[Precision]:
    """Let a posterior multiply in a precision, in a loop of your own or for many predictions.

    Inside the block float32 is multiplied by the fastest kernel (`bella.fast_float32`), and with
    ``bf16`` or ``fp16`` the frozen base is held in that dtype. Forward passes then run inside
    ``with chosen.autocast():``, and `bella.predict` as well; backward, transport and optimiser
    outside of autocast, but before this block ends: backward multiplies with the base as it is
    held. The base is as it was after the block.

    Args:
        posterior: any posterior or mixture.
        precision: ``float32``, ``bf16``, ``fp16``, or ``auto``: bf16 where the device has units for
            it, the network gains, and predictions of ``inputs`` agree.
        inputs: a batch to compare predictions on, see `bella.prediction.agreement`.
        base_dtype: what the frozen base is held in; ``float32`` leaves it as it is.
        kernel: see `bella.fast_float32`.

    Yields:
        The precision that was chosen.

    Raises:
        BellaError: an unknown name, or a block that is open holds the base in another dtype.
    """
    particles = particles_of(posterior)
    run = None if inputs is None else partial(predict, posterior, inputs)
    chosen = _agreed(particles, precision, base_dtype, run)
    with chosen.around(particles, kernel):
        yield chosen


def _agreed(
    posterior: Posterior, name: str, base_dtype: str, run: Callable[[], Said] | None
) -> Precision:
    """What `decide` says; asked once for each name, dtype and device, until values change."""
    key = (name, base_dtype, device_of(posterior))
    found, then = posterior.agreed.get(key, (None, None))
    if run is None or posterior.held.dtype is not None:
        return found or decide(posterior, name, base_dtype)[0]
    now: tuple[int, ...] = ()
    if name != "float32":  # which is right whatever the values are
        now = tuple(p._version for p in posterior.parameters() if not p.is_inference())
    if found is None or now != then:
        found, _ = decide(posterior, name, base_dtype, run)
        posterior.agreed[key] = found, now
    return found


def _predictive(kind: Likelihood | None) -> type[Said]:
    assert kind is not None  # the first pass has told
    return PREDICTIVES[kind.name]


class NotFiniteError(BellaError):
    """Some rows of a batch gave logits that are not finite."""


def refuse_not_finite(logits: Tensor, inputs: Any, numbers: Sequence[int] | None = None) -> None:
    """Refuse logits that are not finite, and name the rows of the inputs that are to blame.

    Args:
        logits: (particles, batch, ...).
        inputs: what they came from, as (args, kwargs) of tensors or streams.
        numbers: of the rows in the caller's batch, if these are some of them.

    Raises:
        NotFiniteError: they are not.
    """
    if torch.isfinite(logits).all():
        return
    args, kwargs = inputs
    held = [x.carried() if isinstance(x, Stream) else x for x in (*args, *kwargs.values())]
    bad = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
    for x in tensors_of(held):
        if x.is_floating_point() and x.dim() and len(x) == len(bad):
            bad |= ~torch.isfinite(x).reshape(len(x), -1).all(1).to(bad.device)
    if bad.any():
        rows_are, verb = _rows(bad, numbers)
        raise NotFiniteError(f"{rows_are} of the inputs {verb} not finite: clean the data first.")
    bad = ~logits.movedim(1, 0).flatten(1).isfinite().all(1)
    rows_are, verb = _rows(bad, numbers)
    raise NotFiniteError(
        f"{rows_are} of the network's logits {verb} not finite, though its inputs are: are they in "
        "range, and did training converge?"
    )


def _rows(bad: Tensor, numbers: Sequence[int] | None, most: int = 5) -> tuple[str, str]:
    found = [numbers[row] if numbers else row for row in bad.nonzero().flatten().tolist()]
    named = ", ".join(map(str, found[:most]))
    if len(found) == 1:
        return f"Row {named}", "is"
    return f"Rows {named}{f' and {len(found) - most} more' if len(found) > most else ''}", "are"


def particles_at_once(
    posterior: Posterior | Combined, inputs: Any, memory: int | None = None
) -> int:
    """How many particles predict these inputs within a budget of memory, in equal passes.

    Raises:
        BellaError: ``memory`` is not enough for one particle, or an empty batch.
    """
    posterior = particles_of(posterior)
    args, kwargs = _arguments(inputs)
    with evaluating(posterior), torch.no_grad():
        args, kwargs = posterior.begun(*args, **kwargs)
        return _at_once(posterior, args, kwargs, memory)


def _arguments(inputs: Any) -> tuple[tuple, dict[str, Any]]:
    """Inputs as positional and named arguments, with at least one example in them."""
    args, kwargs = arguments(inputs)
    first = next((x for x in tensors_of((args, kwargs)) if x.dim()), None)
    if first is not None and len(first) == 0:
        raise BellaError(
            f"The batch is empty (its first tensor has the shape {tuple(first.shape)}): give at "
            "least one example."
        )
    return args, kwargs


def _at_once(posterior: Posterior, args: tuple, kwargs: dict[str, Any], memory: int | None) -> int:
    begun = [*args, *kwargs.values()]
    carried = [x.carried() if isinstance(x, Stream) else tensors_of(x) for x in begun]
    shapes = tuple((x.shape, x.dtype) for some in carried for x in some)
    device = next(posterior.parameters()).device.type
    like = (shapes, torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device))
    return at_once(posterior, lambda: posterior(*args, **kwargs), memory, like)
