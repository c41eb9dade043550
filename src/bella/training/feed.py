"""What a run is fed: training and validation data as batches, and what may take their place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from rich.progress import Progress

from bella.data.loaders import Data, check_collate, opened
from bella.errors import BellaError
from bella.posterior import Posterior
from bella.precision import Precision
from bella.training.batches import (
    batches_per_epoch,
    begin_epoch,
    for_training,
    grouped,
    own_batches,
)
from bella.training.cache import cached
from bella.training.settings import Settings


class Feed:
    """The data of a run.

    Args:
        train: see `bella.fit`.
        validation: the same, or ``None``.
        collate_fn: of data sets.
        settings: of the run.

    Attributes:
        train: the training batches.
        validation: those of the validation, or ``None``.
        batches: how many an epoch has.
        steps_per_epoch: of one or more batches each.

    Raises:
        BellaError: data that cannot be read in batches.
    """

    def __init__(
        self,
        train: Data,
        validation: Data | None,
        collate_fn: Callable[[list], Any] | None,
        settings: Settings,
    ):
        def loader(data: Data, shuffle: bool, what: str) -> Any:
            size = settings.batch_size
            return for_training(
                opened(data, size, shuffle=shuffle, collate_fn=collate_fn, what=what)
            )

        check_collate(collate_fn, train, validation)
        self.settings = settings
        self.train = loader(train, True, "training data")
        self.validation = (
            None if validation is None else loader(validation, False, "validation data")
        )
        self.batches = batches_per_epoch(self.train)
        self.steps_per_epoch = math.ceil(self.batches / settings.accumulate)

    def begin(self, epoch: int) -> None:
        """The order of an epoch's data follows from the seed and the epoch."""
        begin_epoch(self.train, self.settings.seed, epoch)

    def steps(self, particles: int) -> Iterator[list[Any]]:
        """An epoch: for each step its batches, which all particles share or have for themselves."""
        own = self.settings.minibatches == "own"
        batches = own_batches(self.train, particles) if own else self.train
        return grouped(batches, self.settings.accumulate, self.batches)

    def share_prefix(
        self, posterior: Posterior, precision: Precision, device: torch.device, bar: Progress
    ) -> None:
        """Put caches of the shared prefix in the place of the data, where that is allowed.

        Raises:
            BellaError: ``cache_prefix=True``, and it is not.
        """
        settings = self.settings
        if settings.minibatches == "own":
            return
        if outside := posterior.trained_outside():
            if settings.cache_prefix is True:
                raise BellaError(
                    f"Parameters of the base train ({', '.join(list(outside)[:3])}), so what comes "
                    "before the particles cannot be cached: pass cache_prefix=False, or freeze "
                    "them."
                )
            return

        def kept(data: Any) -> Any:
            with precision.once(posterior):
                return cached(
                    posterior,
                    data,
                    settings.cache_prefix,
                    limit=settings.cache_bytes,
                    disk_limit=settings.cache_disk_bytes,
                    device=device,
                    progress=bar,
                )

        posterior.train()  # a prefix with dropout shows itself only in training mode
        self.train = kept(self.train)
        if self.validation is not None:
            self.validation = kept(self.validation)
