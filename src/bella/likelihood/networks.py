"""Which likelihood a network has, and a posterior."""

from __future__ import annotations

import re
from typing import Any, Literal

from torch import nn

from bella.errors import BellaError
from bella.likelihood.base import EXIST, Likelihood
from bella.likelihood.bernoulli import Bernoulli
from bella.likelihood.classes import Classes
from bella.likelihood.gaussian import Gaussian
from bella.likelihood.tokens import Tokens
from bella.particles.copies import as_given

Name = Literal["auto", "classes", "tokens", "bernoulli", "gaussian"]

LIKELIHOODS: dict[str, type[Likelihood]] = {
    kind.name: kind for kind in (Classes, Tokens, Bernoulli, Gaussian)
}
"""By the name that `nll` and `bella.fit` take."""


def by_name(name: str | Likelihood) -> Likelihood:
    """A likelihood of `LIKELIHOODS`, or the one that is given.

    Raises:
        BellaError: there is none of this name.
    """
    if isinstance(name, Likelihood):
        return name
    if name not in LIKELIHOODS:
        known = ", ".join(map(repr, LIKELIHOODS))
        raise BellaError(f"likelihood={name!r} is unknown: choose one of {known}.")
    return LIKELIHOODS[name]()


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


_NUMBERS = re.compile("(Sequence|Image|Video)Classification")


def resolve(name: str | Likelihood, network: nn.Module) -> Likelihood | None:
    """The likelihood that is asked for: by its name, or with ``auto`` the network's own.

    Raises:
        BellaError: there is none of this name, or the network's own is none of ours.
    """
    if name == "auto":
        own = likelihood_of(network)
        return None if own is None else by_name(own)
    return by_name(name)


def of_posterior(
    posterior: nn.Module, name: str | Likelihood = "auto", *, scoring: bool = True
) -> Likelihood | None:
    """The likelihood that a posterior is asked by: what was named, or what it was laid around its
    particles with, or its network's own. ``None``: its outputs tell, see `likelihood_of_outputs`.

    Args:
        posterior: or a network.
        name: see `resolve`.
        scoring: whether labels are scored; a network whose own loss is none of ours can be asked
            for its outputs all the same.

    Raises:
        BellaError: see `resolve`.
    """
    own = getattr(posterior, "likelihood", None)
    if name == "auto" and isinstance(own, Likelihood):
        return own
    network = as_given(getattr(posterior, "network", posterior))
    if name == "auto" and not scoring and _has_another_loss(network):
        return None
    return resolve(name, network)


def likelihood_of(network: nn.Module) -> str | None:
    """The name of the likelihood that a network's own loss is, by its kind.

    Certain for networks of transformers, by their class and configuration (``problem_type``, and
    one label alone is a number), and for those that say it themselves, by an attribute
    ``likelihood`` (`bella.with_variance` puts it there). Another network without any of
    transformers' in it has ``classes``: its labels are scored as they stand.

    Returns:
        The name; ``None`` for a kind that is not known here, and where another network holds one
        of transformers': the outputs tell, see `likelihood_of_outputs`.

    Raises:
        BellaError: its own loss is one that bella does not have.
    """
    network = as_given(network)
    kind = type(network).__name__
    said = getattr(network, "likelihood", None)
    if isinstance(said, str) and said in LIKELIHOODS:
        return said
    if not _of_transformers(network):
        return None if any(map(_of_transformers, network.modules())) else "classes"
    config = getattr(network, "config", None)
    problem = getattr(config, "problem_type", None)
    if problem == "multi_label_classification":
        return "bernoulli"
    alone = getattr(config, "num_labels", None) == 1 and _NUMBERS.search(kind) is not None
    if problem == "regression" or (alone and problem is None):
        return "gaussian"
    if _has_another_loss(network):
        raise BellaError(
            f"{kind} has a loss of its own that bella does not compute: {EXIST}; name one with "
            "likelihood= if it is what you mean."
        )
    encoder_decoder = getattr(config, "is_encoder_decoder", False)
    if encoder_decoder or _UNSHIFTED.fullmatch(kind) or _CLASSES.search(kind):
        return "classes"
    return "tokens" if _CAUSAL.search(kind) else None


def likelihood_of_outputs(outputs: Any) -> str:
    """The likelihood by the type of a network's outputs: causal language models have their own."""
    causal = _of_transformers(outputs) and "CausalLM" in type(outputs).__name__
    return "tokens" if causal else "classes"


def _has_another_loss(network: nn.Module) -> bool:
    return _of_transformers(network) and _OTHER.search(type(network).__name__) is not None


def _of_transformers(thing: Any) -> bool:
    return type(thing).__module__.startswith("transformers.")
