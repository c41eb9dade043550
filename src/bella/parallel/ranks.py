"""Processes that hold parts of one thing, and the few things that they say to each other.

Everything here is a call of torch.distributed. A process that has died is a sentence in all others:
their next message fails.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from bella.errors import BellaError

Value = TypeVar("Value")

BUCKET = 2**24
"""Numbers that are added up in one message."""


class Ranks:
    """Some processes in an order, this one among them.

    Args:
        group: torch's; ``None`` for this process alone.

    Attributes:
        size: how many there are.
        rank: the place of this one.
        sent: bytes that this process has given to messages so far, by their kind: of a sum the
            tensors, of a gathering its own part.
    """

    def __init__(self, group: dist.ProcessGroup | None = None):
        self.group = group
        self.size = 1 if group is None else dist.get_world_size(group)
        self.rank = 0 if group is None else dist.get_rank(group)
        self.sent = {"sum": 0, "gather": 0}

    @property
    def leads(self) -> bool:
        """Whether this is the first of them: the one that writes and speaks."""
        return self.rank == 0

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Add up each tensor over the processes, in place."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([x.detach().reshape(-1) for x in bucket])
            self._say(partial(dist.all_reduce, flat, group=self.group))
            self.sent["sum"] += flat.nbytes
            for x, part in zip(bucket, flat.split([x.numel() for x in bucket]), strict=True):
                x.detach().copy_(part.view_as(x))

    def gather(self, x: Tensor, total: int, axis: int = 0) -> Tensor:
        """The rows that all processes hold, one process after the other.

        Args:
            x: this process's rows along ``axis``, as many as `part` says.
            total: rows of all processes.
            axis: of the rows.
        """
        if self.size == 1:
            return x
        own = x.detach().movedim(axis, 0)
        most = -(-total // self.size)
        if len(own) < most:  # a message has one length
            own = torch.cat((own, own.new_zeros(most - len(own), *own.shape[1:])))
        own = own.contiguous()
        found = [torch.empty_like(own) for _ in range(self.size)]
        self._say(lambda: dist.all_gather(found, own, group=self.group))
        self.sent["gather"] += own.nbytes
        rows = [y[: len(self.part(total, rank))] for rank, y in enumerate(found)]
        return torch.cat(rows).movedim(0, axis)

    def part(self, total: int, rank: int | None = None) -> range:
        """The rows of so many that a process holds: runs of as equal length as can be."""
        rank = self.rank if rank is None else rank
        return range(total * rank // self.size, total * (rank + 1) // self.size)

    def first(self, value: Value) -> Value:
        """What the first process has."""
        if self.size == 1:
            return value
        held = [value]
        source = dist.get_global_rank(self.group, 0)  # type: ignore[arg-type]
        self._say(lambda: dist.broadcast_object_list(held, src=source, group=self.group))
        return held[0]

    def everyone(self, value: Value) -> list[Value]:
        """What each process has, in order."""
        found: list[Any] = [value] * self.size
        if self.size > 1:
            self._say(lambda: dist.all_gather_object(found, value, group=self.group))
        return found

    def check_same(self, value: Any, what: str) -> None:
        """Refuse what differs between the processes.

        Raises:
            BellaError: it does.
        """
        found = self.everyone(value)
        if any(other != found[0] for other in found):
            raise BellaError(
                f"The {self.size} processes of this run do not have the same {what}: start them "
                "with the same command, data and versions."
            )

    def _say(self, message: Callable[[], Any]) -> None:
        try:
            message()
        except RuntimeError as error:
            raise BellaError(
                f"Another of the {self.size} processes of this run has ended "
                f"({_first_line(error)}): see what it said last; the run folder holds the run up "
                "to its last checkpoint."
            ) from error


ALONE = Ranks()
"""This process alone: every message is an answer of its own."""


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one kind, at most `BUCKET` numbers together where one is not larger by itself."""
    kinds: dict[tuple, list[Tensor]] = {}
    for x in tensors:
        kinds.setdefault((x.dtype, x.device), []).append(x)
    for members in kinds.values():
        bucket: list[Tensor] = []
        size = 0
        for x in members:
            if bucket and size + x.numel() > BUCKET:
                yield bucket
                bucket, size = [], 0
            bucket.append(x)
            size += x.numel()
        yield bucket


def _first_line(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0].rstrip(".")
    return line if len(line) <= 160 else f"{line[:160]}..."


# ------------------------------------------------------------ the processes of a launch


def launched() -> int:
    """How many processes the launcher (torchrun) started; 1 without one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    try:
        return int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        return 1


def leads() -> bool:
    """Whether this process is the first of its launch, or the only one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return os.environ.get("RANK", "0") == "0" or launched() == 1


def local_rank(alone: int = 0) -> int:
    """The place of this process on its machine, which is the number of its GPU; ``alone`` without a
    launcher."""
    return int(os.environ.get("LOCAL_RANK", alone)) if launched() > 1 else alone


@contextmanager
def joined() -> Iterator[Ranks]:
    """All processes of this launch, inside the block.

    A process group that is there already is used and left; else one is made and ended.

    Raises:
        BellaError: they do not find each other.
    """
    if launched() == 1:
        yield ALONE
        return
    if dist.is_initialized():
        yield Ranks(dist.group.WORLD)
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        raise BellaError(
            f"The {launched()} processes of this run do not find each other "
            f"({_first_line(error)}): start them with torchrun."
        ) from error
    try:
        yield Ranks(dist.group.WORLD)
    finally:
        dist.destroy_process_group()
