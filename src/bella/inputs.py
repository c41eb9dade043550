"""The forms that inputs and batches come in."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bella.errors import BellaError
from bella.particles.prefix import Stream
from bella.trees import map_tensors


def arguments(inputs: Any) -> tuple[tuple, dict[str, Any]]:
    """Inputs as positional and named arguments."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    return (inputs,), {}


def split(batch: Any) -> tuple[tuple, dict[str, Any], Tensor]:
    """A batch as (args, kwargs, labels): from (inputs, labels), or a mapping with ``labels``.

    Labels that are a list of numbers or a NumPy array become a tensor.

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
        if labels is not None:
            return (), kwargs, _numbers(labels)
    elif isinstance(batch, tuple | list) and len(batch) == 2:
        inputs, labels = batch
        if isinstance(inputs, Mapping):
            return (), dict(inputs), _numbers(labels)
        args = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
        return args, {}, _numbers(labels)
    raise BellaError(
        "A batch must be a pair (inputs, labels) or a mapping with 'labels': change the data set's "
        "items or the loader's collate_fn."
    )


def check_names(network: nn.Module, kwargs: Mapping[str, Any]) -> None:
    """Refuse named inputs that a network has no argument for.

    Raises:
        BellaError: there is one, a column of a data set say.
    """
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


def rows(inputs: Any, chosen: Tensor, batch: int) -> Any:
    """The inputs of some examples, of a batch of a known size."""

    def some(x: Any) -> Any:
        if isinstance(x, Stream):
            return x.with_carried([carried[chosen] for carried in x.carried()])
        return map_tensors(lambda t: t[chosen] if t.dim() and len(t) == batch else t, x)

    args, kwargs = inputs
    return tuple(map(some, args)), {name: some(x) for name, x in kwargs.items()}


def to(tree: Any, device: torch.device) -> Any:
    """Move every tensor of a batch."""
    return map_tensors(lambda x: x.to(device, non_blocking=True), tree)
