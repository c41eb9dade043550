"""Any images by name: somebody's own, a data set that has a name, or Hugging Face's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bella.data import Preprocess, shifts_of
from bella.data.opening import any_known, open_images_by_name, preprocessed, whole_name
from bella.experiments.tasks.task import Task, Words, fixed, opener


def images_task(
    data: str | Path, network: str, *, image_size: int | None = None, **how: Any
) -> Task:
    """Any images: their shifted parts are told from the test images.

    Args:
        data: see `bella.data.open_data`.
        network: name of a pre-trained network.
        image_size: pixels; the network's own by default.
        **how: further arguments of `bella.data.open_data`.

    Raises:
        BellaError: see there.
    """
    read = open_images_by_name(str(data), Preprocess(32), **how)
    open_it = opener(network, len(read["train"].classes), image_size)
    parts = preprocessed(read, open_it(0).preprocess)
    shifts = shifts_of(parts)
    folder = how.get("folder")
    source = {
        "data": whole_name(str(data), None if folder is None else str(folder)),
        "network": network,
        "image_size": image_size,
        **how,
        "folder": None if folder is None else str(Path(folder).absolute()),
    }
    return Task(
        Path(data).stem,
        f"{data}, {network}",
        open_it,
        parts,
        fixed(parts),
        {name: name for name in shifts},
        words=Words(unscored=tuple(name for name in shifts if not any_known(parts[name]))),
        source=source,
    )
