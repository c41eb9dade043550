"""The pre-trained network as it is, where it needs no head: what fine-tuning starts from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bella.errors import BellaError
from bella.experiments.methods.base import Costs, Method, Outputs
from bella.posteriors.point import Point

if TYPE_CHECKING:
    from bella.experiments.bench import Bench


@dataclass(frozen=True, kw_only=True)
class Untrained(Method):
    """The network's own answers."""

    def run(self, bench: Bench, seed: int, place: Path) -> tuple[Outputs, Costs]:
        """Predict.

        Raises:
            BellaError: the network has a fresh head, which knows nothing.
        """
        opened = bench.open(seed)
        if opened.defaults.modules_to_save or not bench.task.pretrained:
            raise BellaError(
                f"The network of {bench.task.name} has a head that nobody trained: compare with "
                "the linear probe ('probe') instead."
            )
        posterior = Point(opened.network, shared_prefix=bench.entrance)
        outputs = bench.predict(posterior, seed)
        return outputs, {
            "trainable": 0,
            "bytes_on_disk": 0,
            "similarity": math.nan,
            "seconds_training": 0.0,
            "mb_training": 0.0,
            "ms_predicting": bench.milliseconds(posterior),
        }


ROWS = (Untrained(name="untrained", title="base model, not trained"),)
