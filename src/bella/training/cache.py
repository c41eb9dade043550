"""Keep what the shared prefix makes of a data set, so that training costs only the layers after it.

Only for data that are the same each time they are read, and a prefix without randomness. Whether
data are the same cannot be found out by reading them twice (a flip of one in ten is missed more
often than not), so it is known of tensors and of bella's own readers without augmentation, and of
all else the caller has to say it (``cache_prefix=True``).
"""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    default_collate,
)

from bella.data.collate import collate
from bella.data.loaders import Data, opened
from bella.errors import BellaError
from bella.inputs import Weighed, split, to, weights_of
from bella.kernels import fast_float32
from bella.particles.roles import with_roles
from bella.particles.stream import Stream, placeholder
from bella.posterior import Posterior
from bella.training.randomness import own_randomness
from bella.training.samplers import drawn
from bella.training.scratch import NoRoomError, tensors_on_disk


class CacheTooLargeError(BellaError):
    """The cache would take more bytes than are allowed."""


class UnevenError(BellaError):
    """What the prefix makes of the examples differs in shape, or from batch to batch."""


class CachedPrefix(Dataset):
    """The positions of a data set, and for a list of positions the stream and labels.

    Args:
        posterior: whose prefix to run.
        data: data set, pair of tensors or loader; of a loader the examples that its sampler draws
            from are kept, as its collate function makes them.
        batch_size: examples a pass while filling.
        limit: bytes; a larger cache lies in a temporary file that goes with this object.
        disk_limit: bytes; a still larger one is refused.
        device: where the network is.
        progress: a display to show a bar in.
        prefix: runs the prefix, for a caller who does more in the same pass; else the posterior's.

    Attributes:
        on_disk: whether it lies in a file.

    Raises:
        BellaError: the posterior shares no prefix, the data have no fixed items, or what the
            prefix makes of them is not of one shape.
        CacheTooLargeError: see ``disk_limit``.
        NoRoomError: the disk is full.
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
        prefix: Callable[..., Stream] | None = None,
    ):
        loader = opened(data, batch_size, shuffle=False)
        if posterior.shared is None or not _has_positions(loader):
            raise BellaError(
                "The prefix cannot be cached: the posterior shares none, or the data have no fixed "
                "items that a plain DataLoader puts into batches; pass cache_prefix=False."
            )
        self.size = len(loader.dataset)
        positions = drawn(loader)
        self.positions = range(self.size) if positions is None else positions
        self.rows = torch.full((self.size,), -1)
        self.rows[torch.as_tensor(self.positions)] = torch.arange(len(self.positions))
        self.device = device or next(posterior.network.parameters()).device
        self.limit = limit
        self.disk_limit = disk_limit
        self.on_disk = False
        self.kept: list[Tensor] = []
        self.prefix = prefix or posterior.prefix
        training = posterior.training
        posterior.eval()
        task = progress.add_task("shared prefix", total=len(self.positions)) if progress else None
        try:
            for done in self._fill(posterior, loader, batch_size):
                if progress and task is not None:
                    progress.advance(task, done)
        finally:
            posterior.train(training)
            if progress and task is not None:
                progress.remove_task(task)

    def _fill(self, posterior: Posterior, loader: DataLoader, batch_size: int) -> Any:
        """Run the prefix; yields how many examples were done."""
        count = len(self.positions)
        parts = max(1, -(-count // batch_size))  # of even sizes: none is a batch of one by chance
        bounds = [count * i // parts for i in range(parts + 1)]
        chunks = [list(self.positions[a:b]) for a, b in itertools.pairwise(bounds)]
        batches = DataLoader(
            loader.dataset,
            batch_sampler=chunks,
            collate_fn=loader.collate_fn,
            num_workers=loader.num_workers,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            timeout=loader.timeout,
        )
        labels, weights = [], []
        start = 0
        for chunk, batch in zip(chunks, batches, strict=True):
            args, kwargs, y = split(batch, posterior.network)
            # In inference mode a table that the network makes when it first needs it would stay
            # one that training may not use.
            with torch.no_grad(), fast_float32(posterior):
                stream = self.prefix(*to(args, self.device), **to(kwargs, self.device))
            if stream.batch != len(chunk) or y.shape[:1] != (len(chunk),):
                raise BellaError(
                    f"The prefix cannot be cached: the collate function made {stream.batch} rows "
                    f"of {len(chunk)} examples; pass cache_prefix=False."
                )
            if not self.kept:
                self._allocate(stream)
                self.template, self.shared = _template(stream), _shared(stream)
            self._check(stream)
            for kept, new in zip(self.kept, stream.carried(), strict=True):
                kept[start : start + len(chunk)].copy_(new)
            labels.append(y)
            weights.append(weights_of(batch))
            start += len(chunk)
            yield len(chunk)
        if len({y.shape[1:] for y in labels}) > 1:
            raise UnevenError(_uneven("labels of several shapes"))
        self.labels = torch.cat(labels)
        known = [w for w in weights if w is not None]
        self.weights = torch.cat(known) if len(known) == len(weights) else None

    def _allocate(self, stream: Stream) -> None:
        carried = stream.carried()
        count = len(self.positions)
        size = count * sum(x[0].numel() * x.element_size() for x in carried)
        if size > max(self.limit, self.disk_limit):
            raise CacheTooLargeError(
                f"The cached prefix would take {size:,} bytes: raise cache_disk_bytes, or pass "
                "cache_prefix=False."
            )
        self.on_disk = size > self.limit
        if self.on_disk:
            self.kept = tensors_on_disk(carried, count)
        else:
            self.kept = [torch.empty((count, *x.shape[1:]), dtype=x.dtype) for x in carried]

    def _check(self, stream: Stream) -> None:
        """Refuse what is of another shape than before (it would be broadcast into the cache), and
        what all examples share if it is not what it was: a mask of another length, say."""
        shapes = [(kept.shape[1:], kept.dtype) for kept in self.kept]
        found = [(x.shape[1:], x.dtype) for x in stream.carried()]
        if shapes != found:
            raise UnevenError(_uneven("examples of several shapes"))
        shared = _shared(stream)
        same = len(shared) == len(self.shared) and all(
            torch.equal(one, other) for one, other in zip(shared, self.shared, strict=True)
        )
        if not same:
            raise UnevenError(_uneven("what its examples share differs from batch to batch"))

    @property
    def bytes(self) -> int:
        """Size of what is kept."""
        return sum(x.numel() * x.element_size() for x in self.kept)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        return index

    def batch(self, positions: Sequence[int]) -> tuple[Stream, Tensor] | Weighed:
        """The stream and labels of the examples at ``positions``, and what they weigh if the data
        say it: a loader's collate function.

        Raises:
            BellaError: one of them is not among those that were kept.
        """
        rows = self.rows[torch.as_tensor(positions)]
        if (rows < 0).any():
            raise BellaError(
                "The sampler draws examples that it did not show when the prefix was cached: pass "
                "cache_prefix=False."
            )
        stream, labels = self.template.with_carried([x[rows] for x in self.kept]), self.labels[rows]
        return (
            (stream, labels)
            if self.weights is None
            else Weighed(stream, labels, self.weights[rows])
        )

    def loader(self, like: DataLoader) -> DataLoader:
        """A loader of streams and labels in the batches that the loader ``like`` would give: with
        its own batch sampler and generator."""
        return DataLoader(
            self,
            batch_sampler=like.batch_sampler,
            generator=like.generator,
            collate_fn=self.batch,
        )


def _has_positions(loader: Any) -> bool:
    """Whether a loader makes its batches from positions in a data set, and in no other way.

    A subclass may do to its batches what a cache would leave out.
    """
    return (
        type(loader) is DataLoader
        and loader.batch_sampler is not None
        and not isinstance(loader.dataset, IterableDataset)
        and hasattr(loader.dataset, "__len__")
        and len(loader.dataset) > 0
    )


def _template(stream: Stream) -> Stream:
    """A stream that holds shapes and no examples."""
    return stream.with_carried([placeholder(x, 0, 1) for x in stream.carried()])


def _shared(stream: Stream) -> list[Tensor]:
    """What arrived at the entrance and does not differ between examples."""
    arrived = with_roles(stream.arrived, stream.places.arrived)
    return [x for x, role in arrived if role is None]


def _uneven(what: str) -> str:
    return (
        f"The prefix cannot be cached, because of {what} (a collate function that pads to the "
        "longest?): pad all to one length, or pass cache_prefix=False."
    )


# ------------------------------------------------------------ what may be cached unasked


def is_fixed(posterior: Posterior, data: Data, device: torch.device) -> bool:
    """Whether data are known to be the same each time, and the prefix draws no random number.

    Args:
        posterior: in the mode that it trains in.
        data: data set, pair of tensors or loader.
        device: where the network is.
    """
    loader = opened(data, 2, shuffle=False)
    if posterior.shared is None or posterior.trains_base or not _reads_the_same(loader):
        return False
    positions = drawn(loader) or range(len(loader.dataset))
    examples = [loader.dataset[i] for i in positions[:2]]
    args, kwargs, _ = split(loader.collate_fn(examples), posterior.network)
    if args and isinstance(args[0], Stream):
        return False
    args, kwargs = to(args, device), to(kwargs, device)
    runs = []
    with own_randomness(), torch.no_grad():
        for _ in range(2):
            try:
                posterior.prove(*args, **kwargs)
                before = _states(device)
                stream = posterior.prefix(*args, **kwargs)
            except BellaError:
                if posterior.shared is None:  # its first pass has just shown that nothing is shared
                    return False
                raise
            # Even a rare draw, a dropout of one in a thousand, moves a generator's state.
            if not stream.outputs or _states(device) != before:
                return False
            runs.append([x.clone() for x in stream.carried()])
    # A network may have a generator of its own.
    return all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def _reads_the_same(loader: Any) -> bool:
    """Whether a loader is known to make the same of an example each time it reads it."""
    return (
        _has_positions(loader)
        and loader.collate_fn in (default_collate, collate)
        and are_fixed(loader.dataset)
    )


def are_fixed(data: Any) -> bool:
    """Whether examples are known to be the same each time: tensors, readers that say so
    (``fixed``), and parts of such."""
    if type(data) is Subset:
        return are_fixed(data.dataset)
    if type(data) is ConcatDataset:
        return all(map(are_fixed, data.datasets))
    return type(data) is TensorDataset or getattr(data, "fixed", False) is True


def _states(device: torch.device) -> tuple:
    """The states of the generators that a pass may draw from."""
    on_device = torch.cuda.get_rng_state(device).tolist() if device.type == "cuda" else []
    kind, keys, *rest = np.random.get_state()
    return (
        torch.get_rng_state().tolist(),
        on_device,
        random.getstate(),
        (kind, np.asarray(keys).tolist(), *rest),
    )


def cached(
    posterior: Posterior, loader: Any, wanted: bool | Literal["auto"], **options: Any
) -> Any:
    """The loader over a cache of its prefix where that is wanted and possible, or else itself.

    Args:
        posterior: in the mode that it trains in.
        loader: what `opened` returned.
        wanted: ``True``, ``False``, or ``auto``: where `is_fixed`.
        **options: those of `CachedPrefix`.

    Raises:
        BellaError: ``True`` was asked for, and there can be no cache.
    """
    if wanted is False:
        return loader
    device = options.get("device") or next(posterior.network.parameters()).device
    if wanted == "auto" and not is_fixed(posterior, loader, device):
        return loader
    try:
        return CachedPrefix(posterior, loader, **options).loader(loader)
    except NoRoomError as error:
        if wanted == "auto":
            warnings.warn(f"{error} This run goes on without a cache.", stacklevel=2)
            return loader
        raise
    except (CacheTooLargeError, UnevenError):
        if wanted == "auto":
            return loader
        raise
