"""What is scored: the logits of any network's outputs, and their negative log-likelihood.

The labels of a data set stand where its network's own loss wants them. `Likelihood.targets` puts
them where the logits are, so that all else compares logits and labels position by position:

``classes``
    a class number for each position of the logits, as they stand: classification, tokens, masked
    language models, and the decoder of an encoder-decoder network.
``tokens``
    the tokens themselves: position t is scored on token t + 1, the last one on none. Causal
    language models shift so inside their own loss.

A position whose label is -100 counts nowhere. `likelihood_of` names what a network is trained with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bella import metrics
from bella.classes import ClassAxis
from bella.errors import BellaError

__all__ = ["LIKELIHOODS", "likelihood_of", "logits_of", "losses", "nll"]

IGNORED = -100
"""Label of positions that do not count."""

Name = Literal["auto", "classes", "tokens"]

_EXIST = (
    "what exists are class numbers ('classes') and the next token ('tokens'); losses of real "
    "numbers and of several labels at once do not exist"
)


class Likelihood(NamedTuple):
    """One likelihood p(labels | logits).

    Attributes:
        targets: labels (..., as the data have them) -> labels at the logits' positions, of the
            same shape.
        losses: (logits (particles, ..., classes), targets (particles, ...)) -> the negative
            log-likelihood of each position in nats, 0 where it does not count.
    """

    targets: Callable[[Tensor, int], Tensor]
    losses: Callable[[Tensor, Tensor, int], Tensor]


def _as_they_stand(labels: Tensor, ignore_index: int) -> Tensor:
    return labels


def _next_ones(labels: Tensor, ignore_index: int) -> Tensor:
    return F.pad(labels[..., 1:], (0, 1), value=ignore_index)


def _cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
    flat = F.cross_entropy(
        logits.flatten(0, -2), targets.flatten(), ignore_index=ignore_index, reduction="none"
    )
    return flat.view(targets.shape)


LIKELIHOODS: dict[str, Likelihood] = {
    "classes": Likelihood(_as_they_stand, _cross_entropy),
    "tokens": Likelihood(_next_ones, _cross_entropy),
}
"""By the name that `nll` and `bella.fit` take."""


def by_name(name: str) -> Likelihood:
    """A likelihood of `LIKELIHOODS`.

    Raises:
        BellaError: there is none of this name.
    """
    if name not in LIKELIHOODS:
        known = ", ".join(map(repr, LIKELIHOODS))
        raise BellaError(f"likelihood={name!r} is unknown: choose one of {known}.")
    return LIKELIHOODS[name]


# ------------------------------------------------------------ which one a network has

# Decoders that transformers took out of an encoder-decoder network: their own loss does not shift,
# because their users hand in labels that are shifted already.
_UNSHIFTED = re.compile(
    "(Bart|MBart|PLBart|Mvp|Pegasus|BigBirdPegasus|Marian|Blenderbot|BlenderbotSmall|Whisper|TrOCR|"
    "CpmAnt)ForCausalLM|(Flaubert|XLM)WithLMHeadModel|XLNetLMHeadModel"
)
_CAUSAL = re.compile("CausalLM|LMHead|ForConditionalGeneration|Text2Text|ForCausalImageModeling")
# Their own loss is another than a cross-entropy of their logits.
_OTHER = re.compile(
    "ForCTC|ForRNNT|ForTDT|InstanceSegmentation|UniversalSegmentation|ForSegmentation|ObjectDetection|QuestionAnswering|DepthEstimation|XVector|"
    "ForPreTraining|DoubleHeads|Diffusion|^ProphetNet|^Musicgen|^SeamlessM4T|^PI0|TTS"
)
_CLASSES = re.compile(
    "Classification|SemanticSegmentation|MaskedLM|MultipleChoice|NextSentencePrediction"
)


def resolve(name: str, network: nn.Module) -> str | None:
    """The likelihood that is asked for: by its name, or with ``auto`` the network's own.

    Raises:
        BellaError: there is none of this name, or the network's own is none of ours.
    """
    if name == "auto":
        return likelihood_of(network)
    by_name(name)
    return name


def likelihood_of(network: nn.Module) -> str | None:
    """The name of the likelihood that a network's own loss is, by its kind.

    Certain for networks of transformers, by their class and configuration. A network without any
    of transformers' in it has ``classes``: its labels are scored as they stand.

    Returns:
        The name; ``None`` for a kind that is not known here, and where another network holds one
        of transformers': the outputs tell, see `likelihood_of_outputs`.

    Raises:
        BellaError: its own loss is one that bella does not have.
    """
    kind = type(network).__name__
    if not _of_transformers(network):
        return None if any(map(_of_transformers, network.modules())) else "classes"
    check_kind(network)
    if _OTHER.search(kind):
        raise BellaError(
            f"{kind} has a loss of its own that bella does not compute: {_EXIST}; name one with "
            "likelihood= if it is what you mean."
        )
    encoder_decoder = getattr(getattr(network, "config", None), "is_encoder_decoder", False)
    if encoder_decoder or _UNSHIFTED.fullmatch(kind) or _CLASSES.search(kind):
        return "classes"
    return "tokens" if _CAUSAL.search(kind) else None


def likelihood_of_outputs(outputs: Any) -> str:
    """The likelihood by the type of a network's outputs: causal language models have their own."""
    causal = _of_transformers(outputs) and "CausalLM" in type(outputs).__name__
    return "tokens" if causal else "classes"


def check_kind(network: nn.Module) -> None:
    """Refuse a network of transformers that is configured for outputs that are no class logits.

    Raises:
        BellaError: it is one for real numbers, or for several labels at once.
    """
    problem = getattr(getattr(network, "config", None), "problem_type", None)
    if problem in ("regression", "multi_label_classification"):
        raise BellaError(f"The network's config.problem_type is {problem!r}: {_EXIST}.")


def check_predicts_classes(posterior: nn.Module) -> None:
    """Refuse a posterior whose outputs are no logits of classes, whatever their shape.

    Raises:
        BellaError: its network is one for numbers or several labels, or its likelihood Gaussian.
    """
    check_kind(getattr(posterior, "network", posterior))
    if getattr(posterior, "settings", {}).get("likelihood") == "gaussian":
        raise BellaError(
            "This posterior has a Gaussian likelihood, and a predictive of classes is all that "
            "bella.predict and bella.evaluate have: call the posterior for draws of its outputs."
        )


def _of_transformers(thing: Any) -> bool:
    return type(thing).__module__.startswith("transformers.")


# ------------------------------------------------------------ scoring


def check_logits(logits: Tensor) -> None:
    """Refuse logits whose softmax says nothing.

    Raises:
        BellaError: there is one class only.
    """
    if logits.dim() and logits.shape[-1] == 1:
        raise BellaError(
            "The network has one output, and the softmax of one is always 1: give it two logits "
            f"for two classes; {_EXIST}."
        )


def targets_of(labels: Tensor, likelihood: str, *, ignore_index: int = IGNORED) -> Tensor:
    """The labels at the positions of the logits that are scored on them.

    Args:
        labels: class or token numbers of any integer type.
        likelihood: a name in `LIKELIHOODS`.
        ignore_index: the label of positions that do not count.

    Returns:
        Of the same shape, int64.

    Raises:
        BellaError: labels that are not whole numbers.
    """
    if not isinstance(labels, Tensor):
        raise BellaError(f"Labels are a {type(labels).__name__}: give a tensor; {_EXIST}.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise BellaError(f"Labels are {labels.dtype}: give class numbers as integers; {_EXIST}.")
    return by_name(likelihood).targets(labels.long(), ignore_index)


def losses(
    outputs: Any,
    labels: Tensor,
    *,
    likelihood: str | None = None,
    own: bool | None = None,
    ignore_index: int = IGNORED,
    class_axis: int | ClassAxis | None = None,
) -> tuple[Tensor, Tensor]:
    """Each particle's negative log-likelihood, summed, and the number of labels that count.

    Args:
        outputs: see `nll`.
        labels: see `nll`.
        likelihood: see `nll`.
        own: whether every particle has labels of its own; ``None`` reads it from their shape.
        ignore_index: see `nll`.
        class_axis: see `nll`.

    Returns:
        Sums in nats and counts, both (particles,).

    Raises:
        BellaError: see `nll`.
    """
    name = likelihood or likelihood_of_outputs(outputs)
    logits = metrics.precise(ClassAxis.of(class_axis).place(logits_of(outputs), outputs, labels))
    check_logits(logits)
    if name == "tokens" and logits.dim() < 4:
        raise BellaError(
            f"Logits of shape {tuple(logits.shape)} have no positions that tokens could be shifted "
            "along: pass likelihood='classes' if every row has its label."
        )
    targets = targets_of(labels, name, ignore_index=ignore_index)
    if not own and targets.dim() == logits.dim() - 2:
        targets = targets.expand(logits.shape[0], *targets.shape)
    elif own is False:
        raise _misfit(labels, logits)
    if logits.dim() < 3 or targets.shape != logits.shape[:-1]:
        raise _misfit(labels, logits)
    if targets.device.type == "cpu":
        metrics.check_labels(targets, logits.shape[-1], ignore_index)
    each = by_name(name).losses(logits, targets, ignore_index)
    return each.flatten(1).sum(1), (targets != ignore_index).flatten(1).sum(1)


def logits_of(outputs: Any) -> Tensor:
    """The logits among a network's outputs.

    Args:
        outputs: the logits, an object or mapping with ``logits``, or a tuple that begins with them
            and holds no narrower tensor of their kind: features come before logits then.

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
        like = [x for x in outputs if isinstance(x, Tensor) and _alike(x, outputs[0])]
        if any(x.shape[-1] < outputs[0].shape[-1] for x in like):
            raise BellaError(
                f"The network returned tensors of shapes "
                f"{', '.join(str(tuple(x.shape)) for x in like)}, of which the first may be "
                "features and no logits: return the logits alone, or in a mapping or object as "
                "logits."
            )
        return outputs[0]
    raise BellaError(
        f"The network returned a {type(outputs).__name__} without logits: return a tensor of "
        "logits, or an object with .logits."
    )


def _alike(x: Tensor, other: Tensor) -> bool:
    """Whether two outputs have as many axes and the same examples, and so could be each other."""
    return x.is_floating_point() and x.dim() == other.dim() and x.shape[:2] == other.shape[:2]


def nll(
    outputs: Any,
    labels: Tensor,
    *,
    likelihood: str | None = None,
    ignore_index: int = IGNORED,
    class_axis: int | ClassAxis | None = None,
) -> Tensor:
    """Negative log-likelihood: MEAN over the labels that count, SUM over the particles.

    The sum keeps every particle's gradient its own; a mean would divide each by n. It is n times
    the mean of the losses that the n networks would compute themselves from these labels.

    Args:
        outputs: a posterior's outputs; logits (particles, batch, ..., classes), or with the classes
            on another axis where the labels' shape shows which.
        labels: class numbers (batch, ...), or (particles, batch, ...) where each particle has its
            own examples.
        likelihood: ``classes``: every position has its label; ``tokens``: position t is scored on
            label t + 1. ``None`` goes by the outputs: ``tokens`` for the outputs of a causal
            language model of transformers, else ``classes``. A bare tensor of logits does not say
            where it comes from, and the decoders of encoder-decoder networks alone
            (``BartForCausalLM``) do not shift: name it there.
        ignore_index: label of positions that do not count; a particle without any other has 0.
        class_axis: where the network's own outputs have their classes, if their kind and the
            labels' shape leave it open; see `bella.classes.ClassAxis`.

    Returns:
        A scalar, in nats.

    Raises:
        BellaError: labels of another shape or type, one logit, or labels out of range (checked on
            CPU tensors; on a GPU the check would wait for the device).
    """
    sums, counts = losses(
        outputs,
        labels,
        likelihood=likelihood,
        ignore_index=ignore_index,
        class_axis=class_axis,
    )
    return (sums / counts.clamp_min(1)).sum()


def _misfit(labels: Tensor, logits: Tensor) -> BellaError:
    return BellaError(
        f"Labels of shape {tuple(labels.shape)} do not fit logits of shape "
        f"{tuple(logits.shape)}, which must be (particles, batch, ..., classes): give one class "
        "number an example or position (of one-hot rows their argmax(-1))."
    )
