"""Problems small enough to be sampled, on data that come with scikit-learn. A function each.

To add one, write a function from a seed to a `Problem` and put it in `PROBLEMS`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bella.errors import BellaError, nearest, require
from bella.evaluation.reference import Target
from bella.models.opened import seeded


@dataclass(frozen=True, eq=False)
class Problem:
    """A target, and the plain network that methods adapt.

    Attributes:
        name: what a user types.
        title: for tables.
        target: what is sampled.
    """

    name: str
    title: str
    target: Target

    @property
    def low_rank(self) -> bool:
        """Whether a layer below the head changes by low-rank factors."""
        return self.target.base is not None

    def network(self, seed: int) -> nn.Module:
        """``head``, or ``layer``, tanh and ``head``, without biases, in float64."""
        target = self.target
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        width = target.x.shape[1]
        with seeded(seed):
            if target.base is not None:
                layer = nn.Linear(width, len(target.base), bias=False).double()
                layer.weight.data.copy_(target.base)
                width = len(target.base)
                parts |= {"layer": layer, "act": nn.Tanh()}
            parts["head"] = nn.Linear(width, target.outputs, bias=False).double()
        return nn.Sequential(parts)


def linear(seed: int) -> Problem:
    """Bayesian linear regression of 100 patients' diabetes progression on ten measurements: the
    posterior is a Gaussian in closed form."""
    found = require("sklearn.datasets", extra="fit").load_diabetes()
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(found.target)))
    train, test = order[:100], order[100:]
    x, y = (torch.from_numpy(np.asarray(v, dtype=np.float64)) for v in (found.data, found.target))
    x = with_constant((x - x[train].mean(0)) / x[train].std(0))
    y = (y - y[train].mean()) / y[train].std()
    target = Target(
        x=x[train],
        y=y[train],
        test_x=x[test],
        test_y=y[test],
        outputs=1,
        prior_std=1.0,
        variance=0.5,
    )
    return Problem("linear", "linear regression, diabetes", target)


def logistic(seed: int) -> Problem:
    """Bayesian logistic regression of the ten digits on the first 20 principal components."""
    x, y = digits(seed)
    x = x - x.mean(0)
    _, _, axes = torch.linalg.svd(x, full_matrices=False)
    x = x @ axes[:20].mT
    x = with_constant(x / x.std())
    target = Target(
        x=x[:200],
        y=y[:200],
        test_x=x[200:700],
        test_y=y[200:700],
        outputs=10,
        prior_std=1.0,
    )
    return Problem("logistic", "logistic regression, digits", target)


def low_rank(seed: int) -> Problem:
    """A head and one low-rank layer: a network trained on the digits 5 to 9 learns 0 to 4.

    The prior's deviation 1/√2 gives the elements of Δ = B A at rank 2 the same one.
    """
    x, y = digits(seed)
    x = (x - x.mean(0)) / 4
    base = pretrained(x[y >= 5], y[y >= 5] - 5, seed)
    x, y = x[y < 5], y[y < 5]
    target = Target(
        x=x[:100],
        y=y[:100],
        test_x=x[100:600],
        test_y=y[100:600],
        outputs=5,
        prior_std=0.5**0.5,
        base=base,
        rank=2,
    )
    return Problem("low-rank", "low-rank layer and head, digits 0-4", target)


PROBLEMS: dict[str, Callable[[int], Problem]] = {
    "linear": linear,
    "logistic": logistic,
    "low-rank": low_rank,
}


def problem_named(name: str, seed: int) -> Problem:
    """One of `PROBLEMS`.

    Raises:
        BellaError: there is none of that name.
        MissingExtraError: scikit-learn is not installed.
    """
    if name not in PROBLEMS:
        raise BellaError(f"Problem {name!r} is unknown: choose {nearest(name, PROBLEMS)}.")
    return PROBLEMS[name](seed)


# ------------------------------------------------------------ data


def digits(seed: int) -> tuple[Tensor, Tensor]:
    """1,797 images of 64 grey values from 0 to 1, and their classes, in an order by the seed."""
    images, classes = require("sklearn.datasets", extra="fit").load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    return torch.from_numpy(images[order] / 16), torch.from_numpy(classes[order]).long()


def with_constant(x: Tensor) -> Tensor:
    """A column of ones beside the inputs: the bias is one more weight, with its prior."""
    return torch.cat((x, x.new_ones(len(x), 1)), 1)


def pretrained(x: Tensor, y: Tensor, seed: int, hidden: int = 16) -> Tensor:
    """The first weight (hidden, in) of a network of two layers, trained on some classes."""
    with seeded(seed), torch.enable_grad():
        network = nn.Sequential(
            nn.Linear(x.shape[1], hidden, bias=False), nn.Tanh(), nn.Linear(hidden, 5, bias=False)
        ).double()
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=1e-2)
        for _ in range(200):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()
    first = network[0]
    assert isinstance(first, nn.Linear)
    return first.weight.detach().clone()
