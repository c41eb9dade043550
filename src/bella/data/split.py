"""A stratified split that is the same on every machine."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import torch

from bella.errors import BellaError

FRACTIONS: Mapping[str, float] = {"train": 0.6, "validation": 0.15, "test": 0.25}
"""Shares of the parts where nobody asks for others."""


def _apportion(count: int, shares: Sequence[float]) -> list[int]:
    """Deal ``count`` items out by ``shares``, one each first when there are enough."""
    dealt = [int(count >= len(shares))] * len(shares)
    for _ in range(count - sum(dealt)):
        lacking = [share * count - given for share, given in zip(shares, dealt, strict=True)]
        dealt[lacking.index(max(lacking))] += 1
    return dealt


def stratified_split(
    labels: Sequence[int], fractions: Mapping[str, float], seed: int
) -> dict[str, list[int]]:
    """Split indices into named parts with the same mixture of classes.

    Every index is in exactly one part. Within a class the parts' sizes are the fractions rounded,
    and no part is without a class that has at least as many items as there are parts.

    Args:
        labels: class of each item.
        fractions: share of each part; they sum to 1.
        seed: fixes the split. It uses a generator of its own and torch's permutations alone.

    Returns:
        Ascending indices for each name of ``fractions``, in its order.

    Raises:
        BellaError: the fractions are not positive or do not sum to 1.
    """
    shares = list(fractions.values())
    if not shares or min(shares) <= 0 or not math.isclose(sum(shares), 1.0, abs_tol=1e-6):
        raise BellaError(
            f"The fractions {dict(fractions)} must be positive and sum to 1, not {sum(shares):g}."
        )
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(int(label), []).append(index)
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, list[int]] = {name: [] for name in fractions}
    for label in sorted(members):
        order = torch.randperm(len(members[label]), generator=generator).tolist()
        shuffled = iter([members[label][place] for place in order])
        for part, size in zip(parts.values(), _apportion(len(order), shares), strict=True):
            part.extend(next(shuffled) for _ in range(size))
    return {name: sorted(part) for name, part in parts.items()}


def grouped_split(
    groups: Sequence[Hashable], fractions: Mapping[str, float], seed: int
) -> dict[str, list[int]]:
    """Split indices into named parts so that no group stands in two of them.

    Args:
        groups: what each item belongs to: the image that a question is about, say.
        fractions: share of each part, of the groups; they sum to 1.
        seed: see `stratified_split`.

    Returns:
        Ascending indices for each name of ``fractions``.

    Raises:
        BellaError: the fractions are not positive or do not sum to 1.
    """
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    named = list(members.values())
    parts = stratified_split([0] * len(named), fractions, seed)
    return {
        name: sorted(index for place in part for index in named[place])
        for name, part in parts.items()
    }
