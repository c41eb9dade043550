"""Posteriors on disk: the particles as safetensors, the settings as JSON, the base by its hash."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import bella
from bella.errors import BellaError
from bella.files import write_whole
from bella.particles.surgery import undone_if_refused

if TYPE_CHECKING:
    from bella.posterior import Posterior

TENSORS = "posterior.safetensors"
SETTINGS = "posterior.json"


def own_tensors(posterior: Posterior) -> dict[str, Tensor]:
    """What a file holds: every tensor that the particles own, and what of the base trains too.

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


def fingerprint(posterior: Posterior) -> str:
    """SHA-256 of the frozen base: its parameters and buffers, without what a file holds."""
    digest = hashlib.sha256()
    own = {id(value) for value in own_tensors(posterior).values()}
    for name, value in posterior.network.state_dict(keep_vars=True).items():
        if id(value) in own:
            continue
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()


def save(posterior: Posterior, folder: str | Path, *, dtype: torch.dtype | None = None) -> Path:
    """Write ``posterior.safetensors`` and ``posterior.json`` to ``folder``.

    Args:
        posterior: what to save.
        folder: made if missing; files of an earlier save there are replaced whole.
        dtype: store floating tensors as this, e.g. ``torch.bfloat16`` for half the bytes.

    Returns:
        The folder.
    """
    folder = Path(folder)
    tensors = {
        name: value.detach().to(dtype=dtype if value.is_floating_point() else None).contiguous()
        for name, value in own_tensors(posterior).items()
    }
    record = {
        "kind": posterior.kind,
        "settings": posterior.settings,
        "base": fingerprint(posterior),
        "unfrozen": list(posterior.trained_outside()),
        "version": bella.__version__,
    }
    packed = posterior.packed(tensors)
    write_whole(folder / TENSORS, lambda path: save_file(packed, path))
    write_whole(
        folder / SETTINGS, lambda path: path.write_text(json.dumps(record, indent=2) + "\n")
    )
    return folder


def load(folder: str | Path, network: nn.Module) -> Posterior:
    """Give ``network`` the particles of a saved posterior.

    Args:
        folder: what `save` wrote.
        network: a fresh copy of the network that the posterior was made from; adapted in place, or
            left as it was where the posterior is refused.

    Raises:
        BellaError: no posterior there, a damaged file, or one that belongs to another network.
    """
    folder = Path(folder)
    try:
        record = json.loads((folder / SETTINGS).read_text())
        tensors = load_file(folder / TENSORS)
        kind, settings, base = record["kind"], record["settings"], record["base"]
    except FileNotFoundError as error:
        raise BellaError(
            f"{folder} holds no saved posterior: {Path(error.filename or '').name or 'a file'} is "
            "missing."
        ) from None
    except (json.JSONDecodeError, KeyError, TypeError, SafetensorError) as error:
        raise BellaError(f"The posterior in {folder} cannot be read: {error}.") from None
    with undone_if_refused(network):
        posterior = builder(kind)(network, **settings)
        posterior.unfreeze(record.get("unfrozen", []))
        own = own_tensors(posterior)
        tensors = posterior.unpacked(tensors)
        fits = own.keys() == tensors.keys() and all(own[k].shape == tensors[k].shape for k in own)
        if not fits or fingerprint(posterior) != base:
            raise BellaError(
                f"The posterior in {folder} was made from another network: load it on the weights "
                "it was trained on."
            )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])
    return posterior


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
