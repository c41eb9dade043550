"""Where a stopped run goes on: all that its next epoch depends on, in the run folder.

One safetensors file: tensors as tensors, everything else as JSON in its metadata, both with their
checksum (`bella.sealed`). Nothing in it can be executed. It is replaced whole, so that it is always
of one moment. Random numbers follow from the seed and the epoch; in the middle of an epoch it holds
how far they were drawn (`bella.training.position`). Older ones, where they are kept, are called
``checkpoint.1.safetensors`` (the newest), ``checkpoint.2.safetensors`` and so on.
"""

from __future__ import annotations

import math
import os
import shutil
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from bella.errors import BellaError
from bella.files import shown, write_whole
from bella.kernels import DEFAULT
from bella.sealed import read_sealed, write_sealed
from bella.storage import SETTINGS, TENSORS, said_wrong
from bella.training.identity import refuse_another

CHECKPOINT = "checkpoint.safetensors"
PICKLED = "checkpoint.pt"
"""The checkpoint of earlier versions."""


MOST = 2**53
"""No count of a run is larger."""

Count = Annotated[int, Field(ge=0, le=MOST)]


class _Identity(BaseModel):
    """What `bella.training.identity.identity_of` makes; there are other entries."""

    model_config = ConfigDict(strict=True, extra="allow")

    settings: dict[str, Any]


class _Multiplied(BaseModel):
    """In what a run multiplies; files of earlier versions say nothing of it."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: Literal["float32", "bf16", "fp16"] = "float32"
    agreement: dict[str, float] | None = None


class _State(BaseModel):
    """The entries that every checkpoint has; there may be others."""

    model_config = ConfigDict(strict=True, extra="allow", arbitrary_types_allowed=True)

    identity: _Identity
    finished: bool
    epoch: Count
    step: Count
    own: dict[str, Tensor]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    move: dict[str, Any]
    movers: list[dict[str, Any]]
    passes: dict[str, Any]
    particles_per_pass: int | None = Field(ge=1, le=MOST)
    best: tuple[float, int, dict[str, Tensor]] | None
    position: dict[str, Any] | None = None
    finite: tuple[int, dict[str, Tensor]] | None = None
    history: list[dict[str, float]]
    trace: list[dict[str, float]]
    seconds: float = Field(ge=0, allow_inf_nan=False)


def write_checkpoint(folder: Path, state: dict[str, Any], *, keep: int = 1) -> None:
    """Replace the folder's checkpoint; what was there stays until the new one is whole.

    Args:
        folder: of the run.
        state: tensors and plain values.
        keep: how many checkpoints stay, this one among them.

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
    if keep > 1:
        _set_aside(folder, keep - 1)
    write_sealed(folder / CHECKPOINT, tensors, {"state": packed})
    for path in _older(folder)[keep - 1 :]:
        path.unlink(missing_ok=True)


def _older(folder: Path) -> list[Path]:
    """The checkpoints before the last one, the newest first."""
    begin, end = CHECKPOINT.split(".")
    found = {}
    for path in folder.glob(f"{begin}.*.{end}"):
        number = path.name.removeprefix(f"{begin}.").removesuffix(f".{end}")
        if number.isdecimal() and number.isascii() and len(number) < 9:
            found[int(number)] = path
    return [found[number] for number in sorted(found)]


def _set_aside(folder: Path, keep: int) -> None:
    """Let the last checkpoint be ``checkpoint.1`` as well, and so on: it also stays where it is
    until another takes its place.

    Raises:
        BellaError: the disk is full, or the place cannot be written.
    """
    last, begin = folder / CHECKPOINT, CHECKPOINT.partition(".")[0]
    if not last.exists():
        return
    try:
        for number, path in reversed(list(enumerate(_older(folder)[:keep], start=1))):
            path.replace(folder / f"{begin}.{number + 1}.safetensors")
        first = folder / f"{begin}.1.safetensors"
        try:
            os.link(last, first)
        except OSError:  # no hard links there
            write_whole(first, lambda place: shutil.copyfile(last, place))
    except OSError as error:
        raise BellaError(f"{last} cannot be set aside: {error.strerror}.") from error


def holds_run(folder: Path) -> bool:
    """Whether a folder holds a run that could be continued or used."""
    return any((folder / name).exists() for name in (CHECKPOINT, PICKLED, TENSORS))


def read_checkpoint(
    folder: Path, identity: dict[str, Any], device: torch.device
) -> dict[str, Any] | None:
    """The state that `write_checkpoint` was given; ``None`` if the folder has none.

    Where it is damaged and an older one is kept, that one, with a warning: the run comes to the
    same bits from there.

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
        state = _read(path, device)
    except BellaError as error:
        for older in _older(folder):
            with suppress(BellaError):
                state = _read(older, device)
                warnings.warn(f"{error} It goes on from {older.name}.", stacklevel=3)
                break
        else:
            raise BellaError(f"{error} Begin the run anew with --fresh (resume=False).") from None
    refuse_another(folder, state, identity)
    return state


def _read(path: Path, device: torch.device) -> dict[str, Any]:
    """The state in one file.

    Raises:
        BellaError: it is damaged.
    """
    record, tensors = read_sealed(path)
    packed = None if record is None else record.get("state")
    try:
        state = _unpacked(packed, {name: value.to(device) for name, value in tensors.items()})
        _State.model_validate(state)
        _check(state)
    except (ValidationError, KeyError, TypeError, ValueError, RecursionError) as error:
        said = said_wrong(error) if isinstance(error, ValidationError) else shown(str(error))
        raise BellaError(f"{path} is damaged ({said}).") from None
    return state


def check_own(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not those of a posterior, by names, shapes and dtypes.

    Raises:
        ValueError: they differ.
    """
    if found.keys() != own.keys():
        raise ValueError(f"{shown(min(found.keys() ^ own.keys()))} is there or here alone")
    for name, value in own.items():
        check_alike(name, found[name], value)


def check_alike(place: str, found: Any, like: Any) -> None:
    """Refuse a part of a checkpoint that is not built as this run's own is, as it starts.

    The same containers with the same names in them; tensors of the same shapes and dtypes; finite
    numbers, and counts of at least 0, where there are numbers; else equal values.

    Args:
        place: where it stands, for the sentence.
        found: as it was read.
        like: this run's.

    Raises:
        ValueError: it is built otherwise.
    """
    if isinstance(like, dict):
        if not isinstance(found, dict) or found.keys() != like.keys():
            raise ValueError(f"{place}={shown(found)} has other entries than {list(like)}")
        for name, value in like.items():
            check_alike(f"{place}.{name}", found[name], value)
    elif isinstance(like, list | tuple):
        if type(found) is not type(like) or len(found) != len(like):
            raise ValueError(f"{place}={shown(found)} has not the {len(like)} entries that it has")
        for number, (item, value) in enumerate(zip(found, like, strict=True)):
            check_alike(f"{place}.{number}", item, value)
    elif isinstance(like, Tensor):
        _check_tensor(place, found, like)
    elif isinstance(like, int | float) and not isinstance(like, bool):
        number = isinstance(found, int | float) and not isinstance(found, bool)
        low = 0 if isinstance(like, int) else -MOST
        if not number or not low <= found <= MOST:  # NaN is not either
            raise ValueError(f"{place}={shown(found)} is no number that it can be")
    elif type(found) is not type(like) or found != like:
        raise ValueError(f"{place}={shown(found)} would be {shown(like)}")


def _check_tensor(place: str, found: Any, like: Tensor) -> None:
    if not isinstance(found, Tensor) or found.shape != like.shape or found.dtype != like.dtype:
        said = f"{tuple(found.shape)}" if isinstance(found, Tensor) else shown(found)
        raise ValueError(f"{place} is {said} and would be {tuple(like.shape)} of {like.dtype}")


def check_optimizer(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimiser's state that only the next step would stumble over.

    Its groups have to be this optimiser's. Of Adam's moments shapes and completeness are known;
    what other optimisers keep has names and shapes of their own, and is as complete for one
    parameter as for another.

    Args:
        state: an optimiser's ``state_dict()``.
        optimizer: this run's.

    Raises:
        ValueError: a part is another.
    """
    groups = optimizer.state_dict()["param_groups"]
    check_alike("param_groups", state["param_groups"], groups)
    if any(a["params"] != b["params"] for a, b in zip(state["param_groups"], groups, strict=True)):
        raise ValueError("its groups hold other parameters")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    names: set[frozenset[str]] = set()
    for number, held in state["state"].items():
        if type(number) is not int or not 0 <= number < len(parameters):
            raise ValueError(f"there is no parameter {shown(number)}")
        if held:
            names.add(frozenset(held))
        for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            if name in held:
                _check_moment(f"{name} {number}", held[name], parameters[number])
    if len(names) > 1:
        raise ValueError("parameters have moments of several kinds")
    moments = {"step", "exp_avg", "exp_avg_sq"}
    adam = isinstance(optimizer, torch.optim.Adam)  # AdamW is one
    if adam and any(not moments <= held for held in names):
        raise ValueError(f"Adam has {', '.join(sorted(moments))} of every parameter")
    for number, held in state["state"].items():
        step = held.get("step", 0)
        if isinstance(step, Tensor) and step.shape == () and not step.dtype.is_complex:
            step = step.item()
        if isinstance(step, bool | Tensor) or not 0 <= step <= MOST:
            raise ValueError(f"step {number} is no count")


def _check_moment(place: str, found: Any, parameter: Tensor) -> None:
    if not isinstance(found, Tensor) or found.shape != parameter.shape:
        said = tuple(found.shape) if isinstance(found, Tensor) else shown(found)
        raise ValueError(f"{place} is {said} and would be {tuple(parameter.shape)}")
    if not found.is_floating_point() or bool(found.isnan().any()):
        raise ValueError(f"{place} is not a number")


def forget(folder: Path) -> None:
    """Take away what an earlier run left: stopped early, a new one must not go on from there."""
    named = (folder / name for name in (CHECKPOINT, PICKLED, TENSORS, SETTINGS))
    for path in (*named, *_older(folder)):
        path.unlink(missing_ok=True)


def _check(state: dict[str, Any]) -> None:
    """Refuse a state whose parts cannot be of one run.

    Raises:
        ValueError: a count does not fit, or particles are not finite.
    """
    epoch, best, epochs = state["epoch"], state["best"], state["identity"]["settings"].get("epochs")
    counted = [row.get("epoch") for row in state["history"]]
    if len(counted) != epoch or counted != [*range(1, epoch + 1)]:
        raise ValueError(f"its history is not of the {epoch} epochs that it has")
    if isinstance(epochs, int) and epoch > epochs:
        raise ValueError(f"{epoch} epochs of {epochs}")
    if best is not None and not 0 <= best[1] < epoch:
        raise ValueError(f"the best epoch is {best[1] + 1} of {epoch}")
    if best is not None and math.isnan(best[0]):
        raise ValueError("the best score is not a number")
    if best is not None:
        check_own(best[2], state["own"])
    if not isinstance(state.get("kernel", DEFAULT), str):
        raise ValueError(f"kernel={shown(state['kernel'])} is no name")
    _Multiplied.model_validate(state.get("precision", {}))
    finite = state.get("finite")
    if finite is not None:
        if best is not None or finite[0] != epoch:
            raise ValueError(f"the particles that are kept are of epoch {finite[0]} of {epoch}")
        check_own(finite[1], state["own"])
    kept = [values[-1] for values in (best, finite) if values is not None]
    for own in (state["own"], *kept):
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
