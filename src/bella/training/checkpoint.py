"""Where a stopped run goes on: all that its next epoch depends on, in the run folder.

One safetensors file: tensors as tensors, everything else as JSON in its metadata, both with their
checksum (`bella.sealed`). Nothing in it can be executed. It is replaced whole, so that it is always
of one moment. Random numbers are not in it: they follow from the seed and the epoch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from bella.errors import BellaError
from bella.files import shown
from bella.sealed import read_sealed, write_sealed
from bella.storage import SETTINGS, TENSORS, said_wrong
from bella.training.identity import refuse_another

CHECKPOINT = "checkpoint.safetensors"
PICKLED = "checkpoint.pt"
"""The checkpoint of earlier versions."""


class _State(BaseModel):
    """The entries that every checkpoint has; there may be others."""

    model_config = ConfigDict(strict=True, extra="allow", arbitrary_types_allowed=True)

    identity: dict[str, Any]
    finished: bool
    epoch: int = Field(ge=0)
    step: int = Field(ge=0)
    own: dict[str, Tensor]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    move: dict[str, Any]
    movers: list[dict[str, Any]]
    passes: dict[str, Any]
    particles_per_pass: int | None = Field(ge=1)
    best: tuple[float, int, dict[str, Tensor]] | None
    history: list[dict[str, Any]]
    trace: list[dict[str, Any]]
    seconds: float = Field(ge=0, allow_inf_nan=False)


def write_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Replace the folder's checkpoint; what was there stays until the new one is whole.

    Raises:
        BellaError: the state holds what is neither a tensor nor a plain value, or the file cannot
            be written.
    """
    tensors: dict[str, Tensor] = {}
    packed = _packed(state, "", tensors)
    seen: set[int] = set()
    for name, value in tensors.items():
        pointer = value.untyped_storage().data_ptr()
        if value.numel() and pointer in seen:  # a file holds each tensor by itself
            tensors[name] = value.clone()
        seen.add(pointer)
    write_sealed(folder / CHECKPOINT, tensors, {"state": packed})


def read_checkpoint(
    folder: Path, identity: dict[str, Any], device: torch.device
) -> dict[str, Any] | None:
    """The state that `write_checkpoint` was given; ``None`` if the folder has none.

    Args:
        folder: of the run.
        identity: of the run that is wanted, see `bella.training.identity`.
        device: where its tensors go.

    Raises:
        BellaError: it is damaged, of an earlier version, or of another run.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        if (folder / PICKLED).exists():
            raise BellaError(
                f"{folder} holds a run of an earlier version ({PICKLED}), which can be used but "
                "not continued: name another folder, or begin anew with --fresh (resume=False)."
            )
        return None
    try:
        record, tensors = read_sealed(path)
    except BellaError as error:
        raise BellaError(f"{error} Begin the run anew with --fresh (resume=False).") from None
    packed = None if record is None else record.get("state")
    try:
        state = _unpacked(packed, {name: value.to(device) for name, value in tensors.items()})
        _State.model_validate(state)
        _check(state)
    except (ValidationError, KeyError, TypeError, ValueError, RecursionError) as error:
        said = said_wrong(error) if isinstance(error, ValidationError) else shown(str(error))
        raise BellaError(
            f"{path} is damaged ({said}): begin the run anew with --fresh (resume=False)."
        ) from None
    refuse_another(folder, state, identity)
    return state


def check_optimizer(state: dict[str, Any], parameters: Sequence[Tensor]) -> None:
    """Refuse moments of Adam that do not have their parameters' shapes: only the next step would
    stumble over them. Other optimisers' states have shapes of their own.

    Args:
        state: an optimiser's ``state_dict()``.
        parameters: in the optimiser's order.

    Raises:
        ValueError: a shape is another.
    """
    for number, held in state["state"].items():
        for name in ("exp_avg", "exp_avg_sq"):
            if name in held and held[name].shape != parameters[number].shape:
                raise ValueError(
                    f"{name} {number} is {tuple(held[name].shape)} and would be "
                    f"{tuple(parameters[number].shape)}"
                )


def forget(folder: Path) -> None:
    """Take away what an earlier run left: stopped early, a new one must not go on from there."""
    for name in (CHECKPOINT, PICKLED, TENSORS, SETTINGS):
        (folder / name).unlink(missing_ok=True)


def _check(state: dict[str, Any]) -> None:
    """Refuse a state whose parts cannot be of one run.

    Raises:
        ValueError: a count does not fit, or particles are not finite.
    """
    epoch, best = state["epoch"], state["best"]
    if len(state["history"]) != epoch:
        raise ValueError(f"{len(state['history'])} epochs of history after {epoch}")
    if best is not None and not 0 <= best[1] < epoch:
        raise ValueError(f"the best epoch is {best[1] + 1} of {epoch}")
    for own in (state["own"], *([] if best is None else [best[2]])):
        for name, value in own.items():
            if value.is_floating_point() and bool(value.isnan().any()):
                raise ValueError(f"{name} is not a number")


# ---------------------------------------------------------------- tensors out of nested values


def _packed(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """JSON values in the place of nested ones; tensors go to ``tensors`` under their place.

    What JSON lacks is a mapping of one entry: {"tensor": name}, {"tuple": [...]},
    {"pairs": [[key, value], ...]} for a mapping, {"float": "nan"}.
    """
    if isinstance(value, Tensor):
        tensors[place] = value.detach().contiguous()
        return {"tensor": place}
    if isinstance(value, dict):
        return {
            "pairs": [
                [_packed(key, "", tensors), _packed(item, f"{place}.{key}".strip("."), tensors)]
                for key, item in value.items()
            ]
        }
    if isinstance(value, list | tuple):
        items = [_packed(item, f"{place}.{i}", tensors) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, np.generic):
        return _packed(value.item(), place, tensors)
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise BellaError(
        f"A checkpoint holds tensors and plain values, and {place!r} is a "
        f"{type(value).__name__}: keep it out of state_dict()."
    )


def _unpacked(value: Any, tensors: dict[str, Tensor]) -> Any:
    """What `_packed` was given.

    Raises:
        ValueError: it is not what that makes.
        KeyError: a tensor is missing.
    """
    if isinstance(value, list):
        return [_unpacked(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError("a mapping of several entries")
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(_unpacked(item, tensors) for item in content)
    if kind == "pairs":
        return {_unpacked(key, tensors): _unpacked(item, tensors) for key, item in content}
    if kind == "float" and content in ("nan", "inf", "-inf"):
        return float(content)
    raise ValueError(f"an entry {kind!r}")
