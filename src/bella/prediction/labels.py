"""What particles say of several labels at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from bella.prediction.predictive import Predictive


@dataclass(frozen=True, eq=False)
class MultiLabelPredictive(Predictive):
    """The predictive of several labels: each is a position with the classes 0 and 1.

    So ``probs`` is (batch, labels, 2), and ``entropy``, ``mutual_information`` and ``predictions``
    are (batch, labels); `by_example` takes the mean over an example's labels. What it says of a
    label it says of that label by itself.
    """

    likelihood: ClassVar[str] = "bernoulli"

    @property
    def label_probs(self) -> Float[Tensor, "*batch"]:
        """p(label = 1 | x) of each label."""
        return self.probs[..., 1]
