"""What makes two runs the same run: a folder's run goes on only where all of it is as it was.

A checkpoint holds this identity. The network is known by the hash of its weights, data by names,
labels and sizes (tensors by their values), all else by its JSON values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

import bella
from bella.data.labelled import Labelled
from bella.errors import BellaError
from bella.files import plain
from bella.posterior import Posterior
from bella.sealed import bytes_of
from bella.storage import fingerprint

FREE = (
    "patience",
    "cache_bytes",
    "cache_disk_bytes",
    "checkpoint_every",
    "keep_checkpoints",
    "on_nonfinite",
    "device",
    "particle_processes",
)
"""Settings that may change while a run goes on: they decide where it runs, where it ends or what
it is kept in."""

WHOLE = 2**28
"""Tensors of more bytes are known by so many of them, taken at even distances."""


def identity_of(
    posterior: Posterior,
    *,
    train: Any,
    validation: Any,
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, Any],
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What decides a run, as JSON values.

    Args:
        posterior: as it starts.
        train: what it is trained on: a data set, a loader or tensors.
        validation: the same, or ``None``.
        optimizer: made, not yet stepped.
        settings: of `bella.fit`.
        more: what else decides it, by name.
    """
    return plain(
        {
            "settings": dict(settings),
            "network": network_of(posterior),
            "posterior": {"kind": posterior.kind, **posterior.settings},
            "training data": fingerprint_data(train),
            "validation data": fingerprint_data(validation),
            "optimizer": {
                "kind": type(optimizer).__name__,
                **{name: str(value) for name, value in optimizer.defaults.items()},
            },
            "version of bella": bella.__version__,
            **(more or {}),
        }
    )


def network_of(posterior: Posterior) -> str:
    """SHA-256 of the weights that a posterior starts from.

    Of low-rank particles the frozen base alone: their own start follows from their settings, and a
    fresh head is theirs. Where the particles are the network's own weights, those as they are now.
    """
    if not (posterior.trains_base or posterior.kind == "full"):
        return fingerprint(posterior)
    digest = hashlib.sha256()
    _add(digest, dict(posterior.network.state_dict()))
    return digest.hexdigest()


def refuse_another(folder: Path, state: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse to go on from the checkpoint of another run.

    A finished run may be asked for more epochs: it goes on where a run of so many would stand.

    Args:
        folder: of the run, for the sentence.
        state: its checkpoint.
        asked: the identity of the run that is wanted.

    Raises:
        BellaError: something differs; the sentence names it.
    """
    ways = "name another folder, or begin anew with --fresh (resume=False)"
    found = state["identity"]
    known, wanted = dict(found["settings"]), dict(asked["settings"])
    for settings in (known, wanted):
        for name in FREE:
            settings.pop(name, None)
    had, epochs = known.get("epochs"), wanted.get("epochs")
    if isinstance(had, int) and epochs is not None and epochs > had:
        if not state.get("finished"):
            raise BellaError(
                f"{folder} holds a run of {had} epochs that is not finished: continue it with "
                f"epochs={had} first, and then ask for {epochs}; or {ways}."
            )
        known["epochs"] = epochs
    changed = differences({**found, "settings": known}, {**asked, "settings": wanted})
    if changed:
        raise BellaError(f"{folder} holds another run ({'; '.join(changed)}): {ways}.")


def differences(found: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """In words what differs between two identities, one entry a name; short values are shown."""
    changed = []
    for name in dict.fromkeys((*found, *asked)):
        old, new = found.get(name), asked.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            if old.get("kind") != new.get("kind"):  # all else about it is something else
                old, new = {"kind": old.get("kind")}, {"kind": new.get("kind")}
            inside = differences(old, new)
            changed += inside if name == "settings" else [f"{name} {word}" for word in inside]
        elif old != new:
            shown = _short(old), _short(new)
            changed.append(f"{name} was {shown[0]}, now {shown[1]}" if all(shown) else name)
    return changed


def _short(value: Any) -> str:
    """A value for a sentence; nothing where it is long, or a hash that tells a reader nothing."""
    text = str(value)
    return text if len(text) <= 40 else ""


# ---------------------------------------------------------------- data


class _Digest(Protocol):
    def update(self, data: Any, /) -> None: ...


def fingerprint_data(data: Any) -> str | None:
    """SHA-256 of what a data set is known by; ``None`` of none.

    Tensors and arrays by shape, dtype and values; bella's own readers by names, labels, sizes of
    the files, classes in order and preprocessing; a Hugging Face data set by its own fingerprint;
    loaders by their data and how they draw from them; any other data set by its kind, its length,
    the tensors that it holds, and its ``classes``, ``labels`` and ``targets``: no example is read.
    """
    if data is None:
        return None
    digest = hashlib.sha256()
    _add(digest, data)
    return digest.hexdigest()


def _add(digest: _Digest, data: Any) -> None:
    """Feed one thing, with a word before it that keeps two things apart."""
    if isinstance(data, DataLoader):
        drawn = type(data.sampler).__name__, data.batch_size, data.drop_last
        _say(digest, "loader", drawn)
        _add(digest, getattr(data.sampler, "indices", None))
        _add(digest, data.dataset)
    elif isinstance(data, Tensor):
        _add_bytes(digest, data.detach().cpu())
    elif isinstance(data, np.ndarray) and data.dtype != object:
        # torch warns of arrays that are read from a file and cannot be written to.
        _add_bytes(digest, torch.from_numpy(np.require(data, requirements=["C", "W"])))
    elif isinstance(data, TensorDataset):
        _say(digest, "tensors", len(data.tensors))
        for tensor in data.tensors:
            _add(digest, tensor)
    elif isinstance(data, Subset):
        _say(digest, "subset", list(data.indices))
        _add(digest, data.dataset)
    elif isinstance(data, ConcatDataset):
        _say(digest, "joined", len(data.datasets))
        for part in data.datasets:
            _add(digest, part)
    elif isinstance(data, Labelled):
        _add_labelled(digest, data)
    elif isinstance(getattr(data, "_fingerprint", None), str):  # Hugging Face's
        _say(digest, "fingerprint", data._fingerprint)
    elif data is None or isinstance(data, str | bytes | int | float | bool):
        _say(digest, "value", data)
    elif isinstance(data, Mapping):
        _say(digest, "mapping", len(data))
        for name, value in data.items():
            _say(digest, "name", name)
            _add(digest, value)
    elif isinstance(data, list | tuple | range):
        _say(digest, "sequence", len(data))
        for item in data:
            _add(digest, item)
    else:
        size = len(data) if hasattr(data, "__len__") else None
        _say(digest, type(data).__qualname__, size)
        for name, value in sorted(getattr(data, "__dict__", {}).items()):
            if isinstance(value, Tensor | np.ndarray):
                _say(digest, "name", name)
                _add(digest, value)
        for name in ("classes", "labels", "targets"):
            value = getattr(data, name, None)
            if isinstance(value, list | tuple):
                _add(digest, value)


def _add_bytes(digest: _Digest, tensor: Tensor) -> None:
    _say(digest, "tensor", (tuple(tensor.shape), str(tensor.dtype)))
    flat = tensor.reshape(-1)
    step = -(-flat.numel() * flat.element_size() // WHOLE)
    if step > 1:
        flat = flat[::step]
    digest.update(bytes_of(flat))


def _add_labelled(digest: _Digest, data: Labelled) -> None:
    """Names from the class folder on: a data set that is moved as a whole is the same."""
    preprocess = getattr(data, "preprocess", None)
    if preprocess is None:
        _say(digest, "labelled", data.classes)
    else:
        _say(digest, "images", (data.classes, preprocess.to_dict()))
    for column in data.columns:
        for entry in getattr(data, column):
            if isinstance(entry, Path):
                size = entry.stat().st_size if entry.exists() else None
                _say(digest, "file", (*entry.parts[-2:], size))
            else:
                _add(digest, entry)


def _say(digest: _Digest, word: str, value: Any) -> None:
    digest.update(f"{word} {value!r}\n".encode(errors="surrogateescape"))
