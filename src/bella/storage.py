"""Posteriors on disk: the particles as safetensors, the settings as JSON, the base by its hash.

``posterior.safetensors`` is the whole: its metadata hold the settings, so that particles and
settings are of one moment whenever a process is killed. ``posterior.json`` is the same record for
people (and for versions of bella that read it alone); it is looked at, too, and one that was
changed is refused. Folders of versions without checksums open as before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

import bella
from bella.errors import BellaError
from bella.files import SEAL, is_whole, plain, read_json, shown, write_json
from bella.particles.held import whole_of
from bella.sealed import bytes_of, read_sealed, write_sealed

if TYPE_CHECKING:
    from bella.posterior import Posterior

TENSORS = "posterior.safetensors"
SETTINGS = "posterior.json"
FORMAT = 2
"""1 had no checksums."""

DTYPES = {str(d)[6:]: d for d in (torch.bfloat16, torch.float16, torch.float32, torch.float64)}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


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


def own_values(posterior: Posterior) -> dict[str, Tensor]:
    """The values of `own_tensors`, detached; those that a block holds in fewer bits are whole.

    Where the base trains, what of it is frozen belongs to the particles as well.
    """
    whole = posterior.held.originals()
    return {
        name: whole_of(whole[id(value)]).to(value.device) if id(value) in whole else value.detach()
        for name, value in own_tensors(posterior).items()
    }


@torch.no_grad()
def put_back(posterior: Posterior, values: Mapping[str, Tensor]) -> None:
    """Write values by the names of `own_tensors`; what is held in fewer bits is frozen, and is what
    it was."""
    held = posterior.held.originals()
    for name, value in own_tensors(posterior).items():
        if id(value) not in held:
            value.copy_(values[name])


def fingerprint(posterior: Posterior, dtype: torch.dtype | None = None) -> str:
    """SHA-256 of the frozen base: its parameters and buffers, without what a file holds.

    Args:
        posterior: whose base.
        dtype: as if the base's floating tensors had been cast to this.
    """
    if dtype in posterior.known_base:
        return posterior.known_base[dtype]
    digest = hashlib.sha256()
    own = {id(value) for value in own_tensors(posterior).values()}
    whole = posterior.held.originals()
    for name, value in posterior.network.state_dict(keep_vars=True).items():
        if id(value) in own:
            continue
        if id(value) in whole:
            value = whole_of(whole[id(value)])
        for part in parts_of(value):
            if part.is_floating_point() and part is value:
                part = part.detach().to(dtype=dtype)
            digest.update(f"{name} {tuple(part.shape)} {part.dtype}".encode())
            digest.update(bytes_of(part))
    return digest.hexdigest()


def parts_of(value: Tensor) -> Iterator[Tensor]:
    """The tensor itself; of torchao's codes, which have no bytes of their own, what they are made
    of."""
    if not type(value).__module__.startswith("torchao"):
        yield value
        return
    for name in value.__tensor_flatten__()[0]:  # type: ignore[attr-defined]
        yield from parts_of(getattr(value, name))


# ---------------------------------------------------------------- writing


def save(
    posterior: Posterior,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    check: bool = False,
) -> Path:
    """Write ``posterior.safetensors`` and ``posterior.json`` to ``folder``.

    Args:
        posterior: what to save.
        folder: made if missing; files of an earlier save there are replaced whole.
        dtype: store floating tensors as this, e.g. ``torch.bfloat16`` for half the bytes.
        check: read the files back and compare settings and tensors, bit for bit.

    Returns:
        The folder.

    Raises:
        BellaError: a parameter is not finite, or the files cannot be written; what the folder held
            before is kept. Or (``check``) the disk holds something else than was written.
    """
    folder = Path(folder)
    own = own_tensors(posterior)
    tensors = {
        name: value.to(dtype=dtype if value.is_floating_point() else None).contiguous()
        for name, value in own_values(posterior).items()
    }
    for name, value in tensors.items():
        check_numbers(name, value, own[name], "The posterior is not saved")
    base = base_dtype_of(posterior)
    record = {
        "format": FORMAT,
        "kind": posterior.kind,
        "settings": posterior.settings,
        "base": fingerprint(posterior),
        "base_dtype": None if base is None else NAMES[base],
        # The same base in fewer bits is known by these.
        "base_cast": {
            NAMES[fewer]: fingerprint(posterior, fewer)
            for fewer in (torch.bfloat16, torch.float16)
            if base in (torch.float32, torch.float64)
        },
        "unfrozen": list(posterior.trained_outside()),
        "version": bella.__version__,
    }
    whole = write_sealed(folder / TENSORS, posterior.packed(tensors), record)
    write_json(folder / SETTINGS, whole)
    if check:
        check_saved(posterior, folder, tensors)
    return folder


def check_saved(posterior: Posterior, folder: Path, tensors: dict[str, Tensor]) -> None:
    """Read a folder back and compare it with what was to be written.

    Raises:
        BellaError: something differs, or cannot be read.
    """
    saved = read(folder)
    found = posterior.unpacked(saved.tensors)
    differ = [
        name
        for name, value in tensors.items()
        if name not in found
        or found[name].dtype != value.dtype
        or not torch.equal(found[name], value.cpu())
    ]
    if differ or found.keys() != tensors.keys() or saved.settings != plain(posterior.settings):
        what = repr(differ[0]) if differ else "its settings or names"
        raise BellaError(f"The posterior in {folder} is not as it was written: {what} differ.")


def base_dtype_of(posterior: Posterior) -> torch.dtype | None:
    """The dtype of the base's floating tensors; ``None`` if it has none or several."""
    own = {id(value) for value in own_tensors(posterior).values()}
    whole = posterior.held.originals()
    found = {
        torch.float32 if id(value) in whole else value.dtype  # as all that is held was
        for value in posterior.network.state_dict(keep_vars=True).values()
        if value.is_floating_point() and id(value) not in own
    }
    return found.pop() if len(found) == 1 and found <= NAMES.keys() else None


def check_numbers(name: str, value: Tensor, like: Tensor, what: str) -> None:
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
    return Saved(
        folder,
        checked.kind,
        checked.settings,
        checked.base,
        checked.base_dtype,
        checked.base_cast,
        checked.unfrozen,
        tensors,
    )


def _is_record(said: Any) -> bool:
    return isinstance(said, dict) and is_whole(said)


def said_wrong(error: ValidationError) -> str:
    """The first thing that pydantic found, in a few words."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])[:80]
    return f"{place}={shown(first['input'])}: {first['msg']}"
