"""Run `bella reference`: sample each problem once, then hold every method against the draws."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID

from bella.console import progress_bar
from bella.errors import BellaError
from bella.evaluation.reference import (
    BARS,
    Draws,
    answer_of,
    compare,
    require_sampler,
    sample_nuts,
)
from bella.experiments.reference.methods import METHODS, Budget, Method, methods_named
from bella.experiments.reference.problems import PROBLEMS, Problem, problem_named
from bella.files import write_json
from bella.folders import held
from bella.host import versions

Results = dict[str, Any]


def reference(
    folder: Path,
    *,
    problems: Sequence[str] = tuple(PROBLEMS),
    methods: Sequence[str] = tuple(METHODS),
    budget: Budget | None = None,
    chains: int = 4,
    warmup: int = 500,
    draws: int = 1000,
    progress: bool = True,
) -> Results:
    """Compare methods with long No-U-Turn runs.

    Args:
        folder: keeps the draws of every problem, which a second run takes from there, and
            ``results.json``.
        problems: names in `PROBLEMS`.
        methods: names in `METHODS`.
        budget: what methods may spend; its seed draws the data as well.
        chains: of the sampler.
        warmup: steps of each chain before it draws.
        draws: of each chain.
        progress: show a bar.

    Returns:
        The results, as they are written.

    Raises:
        BellaError: an unknown name, or numbers out of range.
        MissingExtraError: NumPyro or scikit-learn is not installed.
    """
    budget = budget or Budget()
    for name, value in {"particles": budget.particles, "steps": budget.steps}.items():
        if value < 2:
            raise BellaError(f"{name}={value}: give at least 2.")
    if not (problems and methods):
        raise BellaError("There is nothing to compare: name at least one problem and one method.")
    require_sampler()
    chosen = methods_named(methods)
    subjects = [problem_named(name, budget.seed) for name in problems]
    begun = time.perf_counter()
    each = budget.steps * (BARS + sum(method.trainings for method in chosen.values()))
    results: Results = {
        "budget": {
            "particles": budget.particles,
            "steps": budget.steps,
            "draws": budget.draws,
            "seed": budget.seed,
        },
        "sampler": {"chains": chains, "warmup": warmup, "draws": draws},
        "versions": versions(),
        "date": date.today().isoformat(),
        "problems": {},
    }
    with held(folder), progress_bar(progress) as bar:
        task = bar.add_task("sampling", total=each * len(subjects))
        for problem in subjects:
            bar.update(task, description=f"{problem.name}: NUTS")
            sampled = sample_nuts(
                problem.target,
                folder / problem.name,
                chains=chains,
                warmup=warmup,
                draws=draws,
                seed=budget.seed,
                told=partial(bar.advance, task, budget.steps),
            )
            found = beside(problem, sampled, chosen, budget, bar, task)
            results["problems"][problem.name] = found
    results["seconds"] = time.perf_counter() - begun
    write_json(folder / "results.json", results)
    return results


def beside(
    problem: Problem,
    sampled: Draws,
    methods: dict[str, Method],
    budget: Budget,
    bar: Progress,
    task: TaskID,
) -> dict[str, Any]:
    """All methods on one problem, and the sampler beside itself."""
    target = problem.target
    truth = answer_of(target, sampled.joined)
    half = next(iter(sampled.theta.values())).shape[0] // 2
    one, other = (
        answer_of(target, sampled.of_chains(part)) for part in (slice(half), slice(half, None))
    )
    rows: dict[str, dict[str, Any]] = {
        "nuts": {
            "title": "NUTS, half of the chains against the others",
            **compare(one, other, target.test_y),
            "nll": truth.said.nll(target.test_y),
            "seconds": sampled.facts["seconds"],
        }
    }
    for name, method in methods.items():
        bar.update(task, description=f"{problem.name}: {method.title}")
        ends = bar.tasks[task].completed + method.trainings * budget.steps
        begun = time.perf_counter()
        row: dict[str, Any] = {"title": method.title}
        try:
            answer = method.answer(problem, replace(budget, told=partial(bar.advance, task)))
            row |= compare(answer, truth, target.test_y)
        except BellaError as error:  # a method that is not defined here says so itself
            row["why_not"] = str(error)
        row["seconds"] = time.perf_counter() - begun
        rows[name] = row
        bar.update(task, completed=ends)
    return {
        "title": problem.title,
        "dimensions": target.dimensions,
        "train": len(target.y),
        "test": len(target.test_y),
        "converged": sampled.converged,
        "sampler": {
            name: value for name, value in sampled.facts.items() if name not in ("asked", "seconds")
        },
        "rows": rows,
    }
