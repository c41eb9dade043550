"""Posteriors on disk: the particles as safetensors, the settings as JSON, the base by its hash.

``posterior.safetensors`` is the whole: its metadata hold the settings, so that particles and
settings are of one moment whenever a process is killed. ``posterior.json`` is the same record for
people (and for versions of bella that read it alone); it is looked at, too, and one that was
changed is refused. Folders of versions without checksums open as before.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
import typing
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import bella
from bella.errors import BellaError, nearest
from bella.files import SEAL, is_whole, read_json, shown, write_json
from bella.particles.surgery import undone_if_refused
from bella.sealed import read_sealed, write_sealed

if TYPE_CHECKING:
    from bella.posterior import Posterior

TENSORS = "posterior.safetensors"
SETTINGS = "posterior.json"
FORMAT = 2
"""1 had no checksums."""
LARGEST_SETTING = 2**40
"""No setting of a posterior that fits into a machine is larger."""

_DTYPES = {str(d)[6:]: d for d in (torch.bfloat16, torch.float16, torch.float32, torch.float64)}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def own_tensors(posterior: Posterior) -> dict[str, Tensor]:
    """What a file holds: every tensor that the particles own, and the base if it trains too.

    What a posterior holds beside its network (a curvature, say) is its own as well.
    """
    if posterior.trains_base:
        state = posterior.network.state_dict(keep_vars=True)
        first = {id(value): name for name, value in reversed(state.items())}
        # Tied weights are one tensor under several names: it is held under the first.
        return {name: value for name, value in state.items() if first[id(value)] == name}
    particles = {
        f"{name}.{key}" if name else key: value
        for name, layer in posterior.layers().items()
        for key, value in layer.state_dict(keep_vars=True).items()
        if not key.startswith("base.")
    }
    state = posterior.state_dict(keep_vars=True)
    beside = {name: value for name, value in state.items() if not name.startswith("network.")}
    return particles | posterior.trained_outside() | beside


def fingerprint(posterior: Posterior, dtype: torch.dtype | None = None) -> str:
    """SHA-256 of the frozen base: its parameters and buffers, without what a file holds.

    Args:
        posterior: whose base.
        dtype: as if the base's floating tensors had been cast to this.
    """
    digest = hashlib.sha256()
    own = {id(value) for value in own_tensors(posterior).values()}
    for name, value in posterior.network.state_dict(keep_vars=True).items():
        if id(value) in own:
            continue
        if value.is_floating_point():
            value = value.detach().to(dtype=dtype)
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()


# ---------------------------------------------------------------- writing


def save(posterior: Posterior, folder: str | Path, *, dtype: torch.dtype | None = None) -> Path:
    """Write ``posterior.safetensors`` and ``posterior.json`` to ``folder``.

    Args:
        posterior: what to save.
        folder: made if missing; files of an earlier save there are replaced whole.
        dtype: store floating tensors as this, e.g. ``torch.bfloat16`` for half the bytes.

    Returns:
        The folder.

    Raises:
        BellaError: a parameter is not finite, or the files cannot be written. What the folder held
            before is kept.
    """
    folder = Path(folder)
    own = own_tensors(posterior)
    tensors = {
        name: value.detach().to(dtype=dtype if value.is_floating_point() else None).contiguous()
        for name, value in own.items()
    }
    for name, value in tensors.items():
        _check_finite(name, value, own[name], "The posterior is not saved")
    base = _base_dtype(posterior)
    record = {
        "format": FORMAT,
        "kind": posterior.kind,
        "settings": posterior.settings,
        "base": fingerprint(posterior),
        "base_dtype": None if base is None else _NAMES[base],
        # The same base in fewer bits is known by these.
        "base_cast": {
            _NAMES[fewer]: fingerprint(posterior, fewer)
            for fewer in (torch.bfloat16, torch.float16)
            if base in (torch.float32, torch.float64)
        },
        "unfrozen": list(posterior.trained_outside()),
        "version": bella.__version__,
    }
    whole = write_sealed(folder / TENSORS, posterior.packed(tensors), record)
    write_json(folder / SETTINGS, whole)
    return folder


def _base_dtype(posterior: Posterior) -> torch.dtype | None:
    """The dtype of the base's floating tensors; ``None`` if it has none or several."""
    own = {id(value) for value in own_tensors(posterior).values()}
    found = {
        value.dtype
        for value in posterior.network.state_dict(keep_vars=True).values()
        if value.is_floating_point() and id(value) not in own
    }
    return found.pop() if len(found) == 1 and found <= _NAMES.keys() else None


def _check_finite(name: str, value: Tensor, like: Tensor, what: str) -> None:
    """Refuse numbers that no network computes with. A network's own buffers may hold infinities,
    such as a mask."""
    if not value.is_floating_point():
        return
    bad = ~value.isfinite() if isinstance(like, nn.Parameter) else value.isnan()
    if bool(bad.any()):
        raise BellaError(
            f"{what}: {int(bad.sum())} of the {value.numel()} numbers of {name!r} are not finite "
            "(train again with a lower learning rate, or set clip)."
        )


# ---------------------------------------------------------------- reading


class Saved(NamedTuple):
    """What a folder holds, checked as far as it can be without its network.

    Attributes:
        folder: where it was read.
        kind: of the posterior, a name in `bella.POSTERIORS`.
        settings: of that kind.
        base: `fingerprint` of the network that it was made from.
        base_dtype: name of that network's dtype, where it has one.
        base_cast: that network's fingerprint in fewer bits, by names of dtypes.
        unfrozen: names of the base's parameters that train beside the particles.
        tensors: the particles as stored.
    """

    folder: Path
    kind: str
    settings: dict[str, Any]
    base: str
    base_dtype: str | None
    base_cast: dict[str, str]
    unfrozen: list[str]
    tensors: dict[str, Tensor]


class _Record(BaseModel):
    """The fields of ``posterior.json``."""

    model_config = ConfigDict(strict=True)

    format: int = Field(1, ge=1)
    kind: str = Field(max_length=100)
    settings: dict[str, Any]
    base: str = Field(max_length=64)
    base_dtype: str | None = None
    base_cast: dict[str, str] = Field(default_factory=dict)
    unfrozen: list[str] = Field(default_factory=list)
    version: str = Field("", max_length=100)


def load(folder: str | Path, network: nn.Module) -> Posterior:
    """Give ``network`` the particles of a saved posterior.

    Args:
        folder: what `save` wrote; it may be a stranger's. Nothing in it is executed, and everything
            in it is checked before it is used.
        network: a fresh copy of the network that the posterior was made from; adapted in place, or
            left as it was where the posterior is refused. In another floating dtype it is taken
            with a warning where it can be seen to be the same.

    Raises:
        BellaError: no posterior there, a damaged file, or one that belongs to another network.
    """
    saved = read(Path(folder))
    with undone_if_refused(network):
        posterior = build(saved, network)
        _unfreeze(posterior, saved)
        fill(posterior, saved)
    return posterior


def read(folder: Path) -> Saved:
    """Read and check what `save` wrote, all that can be checked without the network.

    Raises:
        BellaError: no posterior there, or a damaged file.
    """
    try:
        record, tensors = read_sealed(folder / TENSORS)
        said = read_json(folder / SETTINGS) if (folder / SETTINGS).exists() else None
    except FileNotFoundError:
        raise BellaError(f"{folder} holds no saved posterior: {TENSORS} is missing.") from None
    except (BellaError, OSError, ValueError) as error:
        raise BellaError(f"The posterior in {folder} cannot be read: {error}") from None
    if said is None and record is None:
        raise BellaError(f"{folder} holds no saved posterior: {SETTINGS} is missing.")
    if record is None and isinstance(said, dict) and SEAL not in said:
        record = said  # of a version without checksums
    elif record is None or (said is not None and not _is_record(said)):
        damaged, cure = (
            (TENSORS, "copy the folder anew or train again")
            if record is None
            else (SETTINGS, f"remove it, {TENSORS} holds the settings too")
        )
        raise BellaError(
            f"The posterior in {folder} cannot be read: {damaged} is not as it was written; {cure}."
        )
    # Where both are whole and differ, a save was stopped between the two: the first has it all.
    try:
        checked = _Record.model_validate(record)
    except ValidationError as error:
        raise BellaError(
            f"The posterior in {folder} cannot be read: {said_wrong(error)}."
        ) from None
    if checked.format > FORMAT:
        raise BellaError(
            f"The posterior in {folder} was saved by bella-bnn {checked.version}, which is newer: "
            f"upgrade bella-bnn (this is {bella.__version__})."
        )
    settings = check_settings(checked.kind, checked.settings)
    _check_particles(folder, settings, tensors)
    return Saved(
        folder,
        checked.kind,
        settings,
        checked.base,
        checked.base_dtype,
        checked.base_cast,
        checked.unfrozen,
        tensors,
    )


def _is_record(said: Any) -> bool:
    return isinstance(said, dict) and is_whole(said)


def check_settings(kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A stranger's settings of a kind of posterior, checked against that kind's own arguments.

    Raises:
        BellaError: an unknown kind or setting, or a value of another type.
    """
    make = builder(kind)
    hints = typing.get_type_hints(make)
    fields: dict[str, Any] = {}
    for name, parameter in list(inspect.signature(make).parameters.items())[1:]:
        required = parameter.default is inspect.Parameter.empty
        fields[name] = (hints[name], ... if required else parameter.default)
    config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )
    try:
        schema = create_model(f"Settings of {kind}", __config__=config, **fields)
        # Through JSON, where a list is as good as a tuple and True is no number.
        schema.model_validate_json(json.dumps(settings))
    except ValidationError as error:
        if error.errors()[0]["type"] == "extra_forbidden":
            name = str(error.errors()[0]["loc"][0])
            raise BellaError(
                f"The settings of a saved posterior hold {name[:80]!r}, unknown to {kind}: "
                f"near are {nearest(name[:80], fields)}."
            ) from None
        raise BellaError(f"The settings of a saved posterior: {said_wrong(error)}.") from None
    except (ValueError, RecursionError):
        raise BellaError("The settings of a saved posterior are nested too deeply.") from None
    for name, value in settings.items():
        if isinstance(value, int) and abs(value) > LARGEST_SETTING:
            raise BellaError(f"The settings of a saved posterior: {name}={shown(value)}.")
    return dict(settings)


def said_wrong(error: ValidationError) -> str:
    """The first thing that pydantic found, in a few words."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])[:80]
    return f"{place}={shown(first['input'])}: {first['msg']}"


def _check_particles(
    folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Refuse a number of particles that the tensors do not have, before memory is asked for."""
    for name in ("particles", "components"):
        count = settings.get(name, 1)
        if not any(value.dim() and len(value) == count for value in tensors.values()) and (
            count != 1
        ):
            raise BellaError(
                f"The posterior in {folder} cannot be read: its settings have {name}="
                f"{shown(count)} and its tensors have not."
            )


# ---------------------------------------------------------------- onto a network


def build(saved: Saved, network: nn.Module) -> Posterior:
    """Adapt ``network`` by a folder's settings, without its particles.

    Raises:
        BellaError: the settings do not fit the network, or ask for more memory than their file
            could ever fill.
    """
    sizes = (value.nbytes for value in saved.tensors.values())
    held = sum(value.nbytes for value in network.state_dict().values())
    try:
        with _Bounded(2**26 + 64 * (sum(sizes) + held)):
            return builder(saved.kind)(network, **saved.settings)
    except BellaError:
        raise
    except (RuntimeError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise BellaError(
            f"The posterior in {saved.folder} does not fit this network: {shown(str(error))}."
        ) from error


def _unfreeze(posterior: Posterior, saved: Saved) -> None:
    """Let those parameters of the base train that did when the posterior was saved.

    Raises:
        BellaError: the network does not have one of them, or it is none that could train.
    """
    known = dict(posterior.network.named_parameters())
    for name in saved.unfrozen:
        if name not in known or not known[name].is_floating_point():
            raise BellaError(
                f"The posterior in {saved.folder} was trained together with {shown(name)}, which "
                "is no parameter of this network that could train: load it on the network that it "
                "was trained on."
            )
    posterior.unfreeze(saved.unfrozen)


class _Bounded(TorchDispatchMode):
    """Ends a computation that makes more bytes of new tensors than it may."""

    def __init__(self, limit: int):
        super().__init__()
        self.left = limit

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not func.is_view and out is not (args or (None,))[0]:
            self.left -= out.nbytes
            if self.left < 0:
                raise BellaError(
                    "The settings of a saved posterior ask for far more memory than its file has: "
                    "they are not its own."
                )
        return out


def fill(posterior: Posterior, saved: Saved) -> None:
    """Give a posterior the particles of a folder; nothing is changed before all is checked.

    Raises:
        BellaError: names, shapes, dtypes or numbers do not fit, or the base is another.
    """
    own = own_tensors(posterior)
    try:
        tensors = posterior.unpacked(saved.tensors)
    except BellaError:
        raise
    except (RuntimeError, IndexError, TypeError, ValueError, KeyError) as error:
        raise BellaError(
            f"The posterior in {saved.folder} cannot be read: {shown(str(error))}."
        ) from None
    difference = _difference(own, tensors)
    if difference:
        raise BellaError(
            f"The posterior in {saved.folder} was made from another network ({difference}): load "
            "it on the network that it was trained on."
        )
    for name, value in own.items():
        _check_finite(name, tensors[name], value, f"The posterior in {saved.folder} cannot be read")
    _check_base(posterior, saved)
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])


def _difference(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str | None:
    """What tells a file's tensors from those that a posterior has, in words."""
    missing, foreign = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing:
        return f"the file lacks {missing[0]!r}"
    if foreign:
        return f"the file holds {foreign[0][:200]!r}, which this one has not"
    for name, value in own.items():
        if value.shape != tensors[name].shape:
            return f"{name!r} is {tuple(tensors[name].shape)} and would be {tuple(value.shape)}"
        if value.dtype != tensors[name].dtype and not (
            value.is_floating_point() and tensors[name].is_floating_point()
        ):
            return f"{name!r} is {tensors[name].dtype} and would be {value.dtype}"
    return None


def _check_base(posterior: Posterior, saved: Saved) -> None:
    """Refuse a base of other weights; the same ones in another dtype get a warning.

    Raises:
        BellaError: they are others, or cannot be seen to be the same.
    """
    if fingerprint(posterior) == saved.base:
        return
    here, there = _base_dtype(posterior), saved.base_dtype
    if here is None or there is None or _NAMES[here] == there or there not in _DTYPES:
        raise BellaError(
            f"The posterior in {saved.folder} was made from another network: load it on the "
            "weights it was trained on."
        )
    # The larger of the two dtypes can be cast to the smaller one, never back.
    same = saved.base_cast.get(_NAMES[here]) == fingerprint(posterior) or (
        fingerprint(posterior, _DTYPES[there]) == saved.base
    )
    if not same:
        raise BellaError(
            f"The posterior in {saved.folder} was made from a network in {there} and this one is "
            f"in {_NAMES[here]}, with other weights than rounding explains: load it on the weights "
            f"it was trained on, in {there}."
        )
    warnings.warn(
        f"The posterior in {saved.folder} was trained on this network in {there}, and the network "
        f"is in {_NAMES[here]} now: predictions differ by rounding.",
        stacklevel=4,
    )


def builder(kind: str) -> Callable[..., Posterior]:
    """The constructor of a kind of posterior, from a network and settings.

    It is the function of that name, or ``rebuild`` of its module where that function asks for more
    than a network.

    Raises:
        BellaError: no such kind.
    """
    if kind not in bella.POSTERIORS:
        raise BellaError(
            f"Posteriors of kind {kind!r} are unknown here: upgrade bella-bnn (this is "
            f"{bella.__version__})."
        )
    make = getattr(bella, kind)
    return getattr(sys.modules[make.__module__], "rebuild", make)
