"""Opening a run folder, whatever it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bella.files import read_sealed_json
from bella.interop.hub import FILES, local_folder
from bella.runs.opened import MODEL
from bella.runs.opened import open_run as open_image_run
from bella.runs.texts.opened import open_text_run
from bella.runs.vqa.opened import open_vqa_run


def open_run(
    folder: str | Path, *, device: Any = None, precision: str = "float32", **options: Any
) -> Any:
    """A run by its folder: a `TrainedRun` on images, a `TextRun` or a `VqaRun`.

    Args:
        folder: of the run, or ``hf:owner/name`` for one on the hub.
        device: where to run; the accelerator if there is one.
        precision: of predictions, see `bella.predict`.
        **options: of `bella.runs.opened.open_run`, for images.

    Raises:
        BellaError: no run folder, a damaged one, or one whose network cannot be opened any more.
    """
    place = local_folder(folder, *FILES)
    task = read_sealed_json(place / MODEL).get("task")
    if task == "vqa":
        return open_vqa_run(place, device=device, precision=precision)
    if task is not None:
        return open_text_run(place, device=device, precision=precision)
    return open_image_run(place, device=device, precision=precision, **options)
