"""Where a run computes and in what: its device, its precision, its kernel for float32 matrices.

A run goes on in what it began with, also where the machine it goes on at would choose otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from bella.host import device_named
from bella.inputs import split, to
from bella.kernels import DEFAULT, Kernel, fastest
from bella.likelihood import Likelihood
from bella.memory import undisturbed
from bella.parallel.ranks import Ranks, local_rank
from bella.posterior import Posterior
from bella.precision import precision_for
from bella.prediction.agreement import decide
from bella.prediction.predict import predict
from bella.prediction.said import Said
from bella.training.batches import first_of
from bella.training.settings import Settings


class Multiplying:
    """In what the products of a run are computed.

    Args:
        posterior: that trains; it is moved to its device.
        settings: of the run.
        world: the processes, which all do the same.

    Attributes:
        device: where it runs.
        precision: what the step goes by.
        kernel: of float32 matrices, by name; ``None`` before it is known.
        agreement: by how much fewer bits differ from float32 on the first batch, where both were
            tried.

    Raises:
        BellaError: a device or a precision that there is not.
    """

    def __init__(self, posterior: Posterior, settings: Settings, world: Ranks):
        self.posterior = posterior
        self.settings = settings
        self.world = world
        self.device = place_of(posterior, settings.device)
        posterior.to(self.device)
        self.precision = precision_for(posterior, settings.precision, settings.base_dtype)
        self.kernel: str | None = None
        self.agreement: dict[str, float] | None = None

    def settle(self, train: Any, likelihood: Likelihood | str) -> None:
        """Find out on the first batch whether fewer bits say what float32 says.

        Args:
            train: the batches.
            likelihood: what the labels are.
        """
        if self.precision.name == "float32":
            return
        asked, batch = self.settings, first_of(train)
        run = None if batch is None else partial(self._predicted, batch, likelihood)
        chosen, found = decide(self.posterior, asked.precision, asked.base_dtype, run)
        self.precision.become(self.world.first(chosen.name))
        self.agreement = None if found is None else asdict(found)

    def _predicted(self, batch: Any, likelihood: Likelihood | str) -> Said:
        """What the particles say of a training batch."""
        args, kwargs, labels = split(batch, self.posterior.network)
        inputs = to(kwargs or args, self.device)
        with undisturbed(self.posterior):
            return predict(self.posterior, inputs, likelihood=likelihood, labels=labels)

    @contextmanager
    def around(self) -> Iterator[Kernel]:
        """One kernel for float32 matrices in all steps, all processes and all parts of the run."""
        wanted = self.kernel
        if wanted is None and self.world.size > 1:
            wanted = self.world.first(fastest(self.posterior).name)
        with self.precision.around(self.posterior, wanted, sparing=True) as kernel:
            self.kernel = kernel.name
            yield kernel

    def facts(self) -> dict[str, Any]:
        """As JSON values, for the record of a run."""
        found = self.precision.facts()
        return found if self.agreement is None else found | {"differs_by": self.agreement}

    def state(self) -> dict[str, Any]:
        """As JSON values: a part of a checkpoint."""
        precision = {"name": self.precision.name, "agreement": self.agreement}
        return {"kernel": self.kernel, "precision": precision}

    def load(self, state: dict[str, Any]) -> None:
        """Multiply as the stopped run did; checkpoints of earlier versions do not say how."""
        self.kernel = state.get("kernel", DEFAULT)
        kept = state.get("precision", {})
        self.precision.become(kept.get("name", self.precision.name))
        self.agreement = kept.get("agreement")


def place_of(posterior: Posterior, wanted: str | None = None) -> torch.device:
    """Where training runs: on the device that is wanted, else where CUDA is available there, else
    where the posterior is."""
    if wanted is not None:
        return device_named(wanted)
    device = next(posterior.parameters()).device
    if torch.cuda.is_available() and device.type != "cuda":
        return torch.device("cuda", local_rank(torch.cuda.current_device()))
    return device
