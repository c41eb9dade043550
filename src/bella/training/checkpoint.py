"""Where a stopped run goes on: all that its next epoch depends on, in the run folder.

Random numbers are not in it: they follow from the seed and the epoch.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from bella.errors import BellaError
from bella.files import write_whole
from bella.storage import SETTINGS, TENSORS
from bella.training.identity import refuse_another

CHECKPOINT = "checkpoint.pt"


def write_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Replace the folder's checkpoint; what was there stays until the new one is whole."""
    write_whole(folder / CHECKPOINT, lambda path: torch.save(state, path))


def read_checkpoint(
    folder: Path, identity: dict[str, Any], device: torch.device
) -> dict[str, Any] | None:
    """The state that `write_checkpoint` was given; ``None`` if the folder has none.

    Args:
        folder: of the run.
        identity: of the run that is wanted, see `bella.training.identity`.
        device: where its tensors go.

    Raises:
        BellaError: it is damaged, or of another run.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        state = torch.load(path, weights_only=True, map_location=device)
    except (RuntimeError, EOFError, pickle.UnpicklingError):
        raise BellaError(
            f"{path} is damaged: begin the run anew with --fresh (resume=False)."
        ) from None
    refuse_another(folder, state, identity)
    return state


def forget(folder: Path) -> None:
    """Take away what an earlier run left: stopped early, a new one must not go on from there."""
    for name in (CHECKPOINT, TENSORS, SETTINGS):
        (folder / name).unlink(missing_ok=True)
