"""Six ways to have n networks, side by side: time, memory and bytes.

    python benchmarks/compare.py [--quick] [--device cuda] [--autocast]

All on the same network, data, rank 4 and targets: n LoRA trainings of PEFT one after the other,
one PEFT network with n adapters that are switched, LoRA stacked by ``torch.func.vmap``, n full
copies, and bella in one pass and in chunks. Times take turns in one process; memory is that of
fresh processes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import torch

from alternatives import ALTERNATIVES, Alternative, Copies, Together
from memory import fresh, megabytes, peak
from networks import DEMO, VIT, Case
from page import Options, Table, main
from timing import Seconds, paired, ratios, spread, square

MEMBERS = (1, 3, 5, 20, 100)
BATCHES = ((VIT, 2), (DEMO, 8))


def needed(case: Case, members: int) -> float:
    """Bytes of full copies: weights, gradients and two moments."""
    return 16 * members * sum(p.numel() for p in case.make().parameters())


def available(device: str) -> float:
    """Bytes that are free."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    with open("/proc/meminfo") as lines:
        return next(1024 * int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))


def training(
    kind: type[Alternative], case: Case, members: int, batch: int, options: Options
) -> Callable[[], object]:
    """The step whose memory is measured."""
    warnings.simplefilter("ignore")
    return kind(case, members, batch, options).step


@cache
def memory_of(
    kind: type[Alternative], case: Case, members: int, batch: int, options: Options
) -> int:
    """Peak of a training step."""
    return peak(training, kind, case, members, batch, options)


def cells(seconds: dict[str, Seconds], titles: list[str]) -> list[str]:
    """bella's seconds, and how many times as long the others took."""
    ours = seconds[Together.title]
    return [
        f"{spread(ours)} s"
        if title == Together.title
        else f"{spread(ratios(seconds[title], ours), 2)} x"
        if title in seconds
        else "-"
        for title in titles
    ]


def ours_first(ways: dict[str, Alternative]) -> list[tuple[str, Alternative]]:
    """The ratios that are to be known are those to bella."""
    return sorted(ways.items(), key=lambda item: item[0] != Together.title)


def side_by_side(
    kinds: list[type[Alternative]], case: Case, members: int, batch: int, options: Options
) -> tuple[dict[str, Seconds], dict[str, Seconds], dict[str, int]]:
    """Seconds of steps and of predictions, and bytes of files."""
    warnings.simplefilter("ignore")  # vmap says where it loops
    torch.manual_seed(0)
    ways = {kind.title: kind(case, members, batch, options) for kind in kinds}
    label = f"{case.title}, n={members}"
    steps, passes = (
        paired(
            f"{label}, {what}", {k: getattr(w, what) for k, w in ours_first(ways)}, options.until(4)
        )
        for what in ("step", "predict")
    )
    return steps, passes, {title: way.file() for title, way in ways.items()}


def compare(case: Case, members: int, batch: int, options: Options) -> list[list[str]]:
    """The rows of one n."""
    titles = [kind.title for kind in ALTERNATIVES]
    room = needed(case, members) < 0.8 * available(options.device)
    kinds = [kind for kind in ALTERNATIVES if room or kind is not Copies]
    # In a process of its own: what a hundred members leave behind would be missing for the next.
    steps, passes, files = fresh(side_by_side, kinds, case, members, batch, options)
    peaks = {}
    for kind in kinds:
        count = 1 if kind.one_in_memory else members
        peaks[kind.title] = memory_of(kind, case, count, batch, options)
    absent = f"needs {megabytes(needed(case, members))}"
    memory = [megabytes(peaks[title]) if title in peaks else absent for title in titles]
    disk = [megabytes(files[title]) if title in files else "-" for title in titles]
    return [
        [f"{members}", "training step", *cells(steps, titles)],
        [f"{members}", "prediction", *cells(passes, titles)],
        [f"{members}", "peak memory", *memory],
        [f"{members}", "files", *disk],
    ]


def measure(options: Options) -> tuple[float, list[Table]]:
    """Both networks."""
    machine = square(options.device, options.dtype)
    header = ("n", "", *(kind.title for kind in ALTERNATIVES))
    tables = []
    for case, batch in BATCHES:
        rows = [
            row
            for members in ((3,) if options.quick else MEMBERS)
            for row in compare(case, members, batch, options)
        ]
        machine()
        title = f"{case.title}, batch {batch}; times as multiples of bella's."
        tables.append(Table(title, header, rows))
    return machine.rate, tables


if __name__ == "__main__":
    main("compare", __doc__, measure)
