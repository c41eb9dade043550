"""Keep what the shared prefix makes of a data set, so that training costs only the layers after it.

Only for data that are the same each time they are read, and a prefix without randomness.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bella.errors import BellaError
from bella.inputs import split, to
from bella.particles.prefix import Stream, placeholder
from bella.posterior import Posterior
from bella.training.batches import Data, as_dataset
from bella.trees import map_tensors, tensors_of


class CacheTooLargeError(BellaError):
    """The cache would take more bytes than are allowed."""


class CachedPrefix(Dataset):
    """The positions of a data set, and for a list of positions the stream and labels.

    Args:
        posterior: whose prefix to run.
        data: data set or loader; a loader's collate function is used.
        batch_size: examples a pass while filling.
        limit: bytes; a larger cache lies in a temporary file that goes with this object.
        disk_limit: bytes; a still larger one is refused.
        device: where the network is.

    Raises:
        BellaError: the posterior shares no prefix, or the data have no fixed items.
    """

    def __init__(
        self,
        posterior: Posterior,
        data: Data,
        *,
        batch_size: int = 64,
        limit: int = 2**30,
        disk_limit: int = 2**35,
        device: torch.device | None = None,
        progress: Progress | None = None,
    ):
        dataset = as_dataset(data)
        if posterior.shared is None or dataset is None:
            raise BellaError(
                "The prefix cannot be cached: the posterior shares none, or the data have no fixed "
                "items; pass cache_prefix=False."
            )
        self.size = len(dataset)  # type: ignore[arg-type]
        self.device = device or next(posterior.network.parameters()).device
        self.limit = limit
        self.disk_limit = disk_limit
        self.folder: tempfile.TemporaryDirectory | None = None
        self.kept: list[Tensor] = []
        collate = data.collate_fn if isinstance(data, DataLoader) else None
        batches = DataLoader(dataset, batch_size=batch_size, collate_fn=collate)
        training = posterior.training
        posterior.eval()
        task = progress.add_task("shared prefix", total=self.size) if progress else None
        start = 0
        labels = []
        for batch in batches:
            args, kwargs, y = split(batch)
            with torch.inference_mode():
                stream = posterior.prefix(*to(args, self.device), **to(kwargs, self.device))
            if not self.kept:
                self._allocate(stream)
                self.template = _shapes(stream)
            for kept, new in zip(self.kept, stream.carried(), strict=True):
                kept[start : start + stream.batch].copy_(new)
            labels.append(y)
            start += stream.batch
            if progress and task is not None:
                progress.advance(task, stream.batch)
        if progress and task is not None:
            progress.remove_task(task)
        self.labels = torch.cat([torch.as_tensor(y) for y in labels])
        posterior.train(training)

    def _allocate(self, stream: Stream) -> None:
        carried = stream.carried()
        bytes_each = sum(x[0].numel() * x.element_size() for x in carried)
        if bytes_each * self.size > max(self.limit, self.disk_limit):
            raise CacheTooLargeError(
                f"The cached prefix would take {bytes_each * self.size:,} bytes: raise "
                "cache_disk_bytes, or pass cache_prefix=False."
            )
        if bytes_each * self.size > self.limit:
            self.folder = tempfile.TemporaryDirectory(prefix="bella-prefix-")
        for number, x in enumerate(carried):
            shape = (self.size, *x.shape[1:])
            if self.folder is None:
                self.kept.append(torch.empty(shape, dtype=x.dtype))
            else:
                path = str(Path(self.folder.name) / f"{number}.bin")
                flat = torch.from_file(path, shared=True, size=math.prod(shape), dtype=x.dtype)
                self.kept.append(flat.view(shape))

    @property
    def bytes(self) -> int:
        """Size of what is kept."""
        return sum(x.numel() * x.element_size() for x in self.kept)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        return index

    def batch(self, positions: list[int]) -> tuple[Stream, Tensor]:
        """The stream and labels of the examples at ``positions``: a loader's collate function."""
        rows = torch.tensor(positions)
        return self.template.with_carried([x[rows] for x in self.kept]), self.labels[rows]


def _shapes(stream: Stream) -> Stream:
    """A stream that holds shapes and no examples."""
    empty = stream.with_carried([placeholder(x, 0, 1) for x in stream.carried()])
    # Tensors made in inference mode would be refused in training.
    return map_tensors(lambda x: x if x.stride() and not any(x.stride()) else x.clone(), empty)


@torch.no_grad()
def is_fixed(posterior: Posterior, data: Data, device: torch.device) -> bool:
    """Whether an example read twice, and the prefix run twice, give the same bits all through."""
    dataset = as_dataset(data)
    if dataset is None or posterior.shared is None or len(dataset) == 0:  # type: ignore[arg-type]
        return False
    if posterior.trains_base:
        return False
    collate = data.collate_fn if isinstance(data, DataLoader) else torch.utils.data.default_collate
    probe = range(min(2, len(dataset)))  # type: ignore[arg-type]
    before = torch.random.get_rng_state()
    runs: list[list[Tensor]] = []
    for _ in range(2):
        args, kwargs, _ = split(collate([dataset[i] for i in probe]))
        if args and isinstance(args[0], Stream):
            return False
        try:
            stream = posterior.prefix(*to(args, device), **to(kwargs, device))
        except BellaError:
            if posterior.shared is None:  # its first pass has just shown that nothing is shared
                return False
            raise
        if not stream.outputs:
            return False  # nothing comes before the entrance: nothing to keep
        runs.append([*tensors_of((args, kwargs)), *stream.carried()])
    torch.random.set_rng_state(before)
    return all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def cached(posterior: Posterior, data: Any, **options: Any) -> DataLoader:
    """A loader of streams and labels in the data's order, for prediction and evaluation."""
    kept = CachedPrefix(posterior, data, **options)
    size = data.batch_size if isinstance(data, DataLoader) else options.get("batch_size", 64)
    return DataLoader(kept, batch_size=size, collate_fn=kept.batch)
