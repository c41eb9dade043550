"""A task with fewer examples: what a first look, or a test, has time for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bella.data.split import stratified_split
from bella.errors import BellaError
from bella.experiments.tasks.task import Place, Task


def smaller(task: Task, seeds: int, *, train: int | None = None, others: int | None = None) -> Task:
    """A task with at most so many examples of each part, in equal shares of each class.

    Its pools hold the examples of these seeds alone, so that nothing is computed of others.

    Args:
        task: whose parts are cut.
        seeds: how many it will be split by; it is the same task for the first of them whatever
            this is.
        train: examples of the training part; ``None`` keeps all.
        others: examples of each other part; ``None`` keeps all.

    Raises:
        BellaError: less than one example is asked for.
    """
    if train is None and others is None:
        return task
    if 0 in (train, others) or min(train or 1, others or 1) < 1:
        raise BellaError(f"train={train}, others={others}: give whole numbers of at least 1.")
    labels = {name: list(pool.labels) for name, pool in task.pools.items()}
    splits: list[dict[str, Place]] = [
        {
            part: (pool, cut(rows, labels[pool], train if part == "train" else others))
            for part, (pool, rows) in task.split(seed).items()
        }
        for seed in range(max(seeds, 2))  # a comparison asks whether seeds differ in their splits
    ]
    used: dict[str, set[int]] = {}
    for split in splits:
        for pool, rows in split.values():
            used.setdefault(pool, set()).update(rows)
    kept = {pool: sorted(rows) for pool, rows in used.items()}
    place = {pool: {row: at for at, row in enumerate(rows)} for pool, rows in kept.items()}
    moved = [
        {part: (pool, [place[pool][row] for row in rows]) for part, (pool, rows) in split.items()}
        for split in splits
    ]
    return replace(
        task,
        pools={pool: task.pools[pool].select(rows) for pool, rows in kept.items()},
        split=lambda seed: moved[seed],
    )


def cut(rows: Sequence[int], labels: Sequence[int], most: int | None) -> list[int]:
    """At most so many rows, in equal shares of each label (rounded), in their order."""
    if most is None or len(rows) <= most:
        return list(rows)
    share = most / len(rows)
    own = [labels[row] for row in rows]
    chosen = stratified_split(own, {"in": share, "out": 1 - share}, 0)["in"]
    return [rows[at] for at in chosen]
