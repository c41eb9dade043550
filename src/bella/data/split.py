"""Stratified splits that depend on a seed and on nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from bella.errors import BellaError


def stratified_split(
    labels: Sequence[int], fractions: Mapping[str, float], seed: int
) -> dict[str, list[int]]:
    """Divide positions into named parts, each class in the same proportions.

    Args:
        labels: class of each example.
        fractions: share of each part; they sum to 1.
        seed: decides the split.

    Returns:
        The sorted positions of each part: disjoint, and together all of them.

    Raises:
        BellaError: fractions that are not positive or do not sum to 1.
    """
    if abs(sum(fractions.values()) - 1) > 1e-9 or min(fractions.values()) <= 0:
        raise BellaError(f"Fractions {dict(fractions)} must be positive and sum to 1.")
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, list[int]] = {name: [] for name in fractions}
    values = torch.as_tensor(list(labels))
    for label in values.unique().tolist():
        members = (values == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)].tolist()
        start, share = 0, 0.0
        for name, fraction in fractions.items():
            share += fraction
            end = round(share * len(members))
            parts[name] += members[start:end]
            start = end
    return {name: sorted(members) for name, members in parts.items()}
