"""The forms that inputs and batches come in."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bella.errors import BellaError
from bella.particles.copies import as_given
from bella.trees import map_tensors


class Weighed(NamedTuple):
    """A batch, or an example, that says what it weighs in the loss (see `bella.nll`).

    Attributes:
        inputs: a tensor, a tuple of arguments or a mapping of named ones.
        labels: as ever.
        weights: one number an example.
    """

    inputs: Any
    labels: Any
    weights: Any


def arguments(inputs: Any) -> tuple[tuple, dict[str, Any]]:
    """Inputs as positional and named arguments."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    return (inputs,), {}


def split(batch: Any, network: nn.Module | None = None) -> tuple[tuple, dict[str, Any], Tensor]:
    """A batch as (args, kwargs, labels): from (inputs, labels), or a mapping with ``labels``.

    Labels that are a list of numbers or a NumPy array become a tensor. What each example weighs
    is left out: `weights_of` has it.

    Args:
        batch: as a loader makes it; `Weighed`, or a mapping with ``weights``, weighs its examples.
        network: the network that it is for. One that makes its decoder's inputs from the labels
            gets them, where it is an encoder-decoder network and the batch does not bring them.

    Raises:
        BellaError: another form, labels that are no numbers, or tokens that are no tensor.
    """
    if isinstance(batch, Mapping):
        kwargs = dict(batch)
        if isinstance(kwargs.get("input_ids"), list | tuple):
            raise BellaError(
                f"input_ids are a list of {len(kwargs['input_ids'])} and no tensor (torch's "
                "default_collate turns lists of token numbers around): give the loader a "
                "collate_fn that makes tensors, or the data set as tensors (with_format('torch'))."
            )
        labels = kwargs.pop("labels", kwargs.pop("label", None))
        kwargs.pop("weights", None)
        if labels is not None:
            labels = _numbers(labels)
            return (), _with_decoder_inputs(network, kwargs, labels), labels
    elif isinstance(batch, Weighed):
        return split((batch.inputs, batch.labels), network)
    elif isinstance(batch, tuple | list) and len(batch) == 2:
        inputs, labels = batch[0], _numbers(batch[1])
        if isinstance(inputs, Mapping):
            return (), _with_decoder_inputs(network, dict(inputs), labels), labels
        return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}, labels
    raise BellaError(
        "A batch must be a pair (inputs, labels) or a mapping with 'labels': change the data set's "
        "items or the loader's collate_fn."
    )


def weights_of(batch: Any) -> Tensor | None:
    """What each example of a batch weighs in the loss, (batch,), if the batch says it.

    Raises:
        BellaError: weights that are no numbers.
    """
    weights = batch.get("weights") if isinstance(batch, Mapping) else None
    weights = batch.weights if isinstance(batch, Weighed) else weights
    return None if weights is None else _numbers(weights)


def check_names(network: nn.Module, kwargs: Mapping[str, Any]) -> None:
    """Refuse named inputs that a network has no argument for.

    Raises:
        BellaError: there is one, a column of a data set say.
    """
    network = as_given(network)
    try:
        known = inspect.signature(network.forward).parameters
    except (TypeError, ValueError):  # written in another language
        return
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values()):
        return
    for name in kwargs:
        if name not in known:
            raise BellaError(
                f"The batches have {name!r}, which {type(network).__name__} does not take (it "
                f"takes {', '.join(known)}): take it out of the data, or rename it."
            )


def _numbers(labels: Any) -> Tensor:
    try:
        return torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        raise BellaError(
            f"The labels are a {type(labels).__name__} and no numbers: give class numbers, counted "
            "from 0, as one tensor a batch."
        ) from None


def _with_decoder_inputs(
    network: nn.Module | None, kwargs: dict[str, Any], labels: Any
) -> dict[str, Any]:
    """The decoder's inputs beside an encoder's: the labels, one place to the right.

    Raises:
        BellaError: the network does not say how its decoder begins.
    """
    given = {"decoder_input_ids", "decoder_inputs_embeds"} & kwargs.keys()
    network = None if network is None else as_given(network)
    if given or network is None or not _decodes_labels(network) or not isinstance(labels, Tensor):
        return kwargs
    own = getattr(network, "prepare_decoder_input_ids_from_labels", None)
    config: Any = network.config
    if own is not None:
        try:
            begun = own(labels=labels)
        except ValueError as error:
            raise BellaError(
                f"{type(network).__name__} cannot begin its decoder from the labels: "
                f"{' '.join(str(error).split())}"
            ) from error
        masked = {"decoder_attention_mask": (begun != config.pad_token_id).to(begun.dtype)}
        # This one masks them where it makes them itself.
        both = type(network).__name__ == "EncoderDecoderModel"
        return (masked if both else {}) | kwargs | {"decoder_input_ids": begun}
    start = getattr(config, "decoder_start_token_id", None)
    pad = getattr(config, "pad_token_id", None)
    if start is None or pad is None or labels.dim() != 2:
        raise BellaError(
            f"{type(network).__name__} does not say how its decoder begins: set "
            "config.decoder_start_token_id and config.pad_token_id, or put decoder_input_ids into "
            "the batches."
        )
    begun = torch.cat((labels.new_full((len(labels), 1), start), labels[:, :-1]), 1)
    return kwargs | {"decoder_input_ids": begun.masked_fill(begun == -100, pad)}


def _decodes_labels(network: nn.Module) -> bool:
    """Whether the network's own forward makes its decoder's inputs from labels."""
    kind = type(network)
    if not kind.__module__.startswith("transformers."):
        return False
    decodes = getattr(getattr(network, "config", None), "is_encoder_decoder", False)
    writes = hasattr(network, "prepare_decoder_input_ids_from_labels")
    return bool(decodes) and (writes or kind.__name__.endswith("ForConditionalGeneration"))


def to(tree: Any, device: torch.device) -> Any:
    """Move every tensor of a batch."""
    return map_tensors(lambda x: x.to(device, non_blocking=True), tree)
