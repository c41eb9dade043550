"""Steps of five particles in each precision, against PEFT in the same one.

    python benchmarks/precision.py [--quick] [--device cuda]

PEFT runs as a user runs it, and beside it with bella's kernel for float32, where that is not
PyTorch's own (else the two are one measurement). In bf16 both run under
autocast; bella holds the frozen base in bfloat16 as well, and computes attention's gradients in
float32 (`bella.particles.attended`), once with PyTorch's own beside it. The floor is that of
``step.py``, at the rate of each precision's own square product. Batch 8; ``small.py`` has batch 1,
and predictions.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from unittest.mock import patch

import torch

import bella
from alternatives import Alternative, Sequential, Together
from bella.kernels import DEFAULT, fastest
from bella.precision import base_in
from networks import VIT
from page import TARGETED, Options, Table, against, main
from step import counted
from timing import Seconds, Until, paired, ratios, spread, square

N = 5
BATCH = 8


class Inside:
    """An alternative whose steps run in float32 by bella's kernel, or on a base held in bf16."""

    def __init__(self, work: Alternative, network: torch.nn.Module, held: bool = False):
        self.work, self.network, self.held = work, network, held

    def run(self, call: Callable[[], object]) -> None:
        """A step or a prediction."""
        with bella.fast_float32(self.network):
            call()

    def step(self) -> None:
        """A step."""
        self.run(self.work.step)

    def predict(self) -> None:
        """A prediction."""
        self.run(self.work.predict)


class Unattended(Inside):
    """The same with PyTorch's own gradients of attention."""

    def run(self, call: Callable[[], object]) -> None:
        """A step or a prediction."""
        with patch("bella.particles.axis.attending", nullcontext):
            super().run(call)


def seconds_at(
    batch: int, options: Options, stack: ExitStack, *, predictions: bool = False
) -> dict[str, dict[str, Seconds]]:
    """Steps, and predictions if wanted, of each way by its name, in rounds in which all take
    turns."""
    whole, fewer = replace(options, autocast=False), replace(options, autocast=True)
    peft, peft16 = (Sequential(VIT, N, batch, o) for o in (whole, fewer))
    one = Sequential(VIT, 1, batch, whole)
    ours, ours16, held = (Together(VIT, N, batch, o) for o in (whole, fewer, fewer))
    one16 = Sequential(VIT, 1, batch, fewer)
    stack.enter_context(base_in(held.posterior, torch.bfloat16))
    ways = {
        "PEFT, float32": peft,
        "PEFT, float32, bella's kernel": Inside(peft, peft.model),
        "PEFT, bf16 autocast": peft16,
        "bella, float32": Inside(ours, ours.posterior),
        "bella, float32, PyTorch's kernel": ours,
        "bella, bf16 autocast": ours16,
        "bella, bf16 base": held,
        "bella, bf16 base, PyTorch's attention": Unattended(held, held.posterior),
    }
    same = {
        "PEFT, float32, bella's kernel": "PEFT, float32",
        "bella, float32, PyTorch's kernel": "bella, float32",
    }
    if fastest(ours.posterior).name != DEFAULT:
        same = {}
    ways = {name: way for name, way in ways.items() if name not in same}
    squares = {dtype: square(options.device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    found: dict[str, dict[str, Seconds]] = {}
    kinds = {"step": {name: way.step for name, way in ways.items()}}
    if predictions:
        alone = {"one, float32": one.predict, "one, bf16 autocast": one16.predict}
        kinds["prediction"] = {name: way.predict for name, way in ways.items()} | alone
    for kind, calls in kinds.items():
        rates = {f"square {str(dtype)[6:]}": product for dtype, product in squares.items()}
        found[kind] = paired(f"{kind}, batch {batch}", calls, options.until(), beside=rates)
        found[kind] |= {name: found[kind][other] for name, other in same.items()}
    operations, _ = counted(VIT.make().to(options.device), peft.x)
    rounds = len(found["step"]["bella, float32"])
    for dtype, product in squares.items():
        found["step"][f"floor, {str(dtype)[6:]}"] = [2 * N * operations / product.rate] * rounds
    found["rate"] = {str(dtype)[6:]: [product.rate] for dtype, product in squares.items()}
    found["coupling"] = paired("coupling", {"bella, float32": ours.move.step}, Until(most=rounds))
    return found


def targets(batch: int, found: dict[str, dict[str, Seconds]]) -> list[list[str]]:
    """What is asked of each, as paired ratios."""
    step, prediction = found["step"], found.get("prediction", {})
    f32, bf16 = "bella, float32", "bella, bf16 base"
    if batch == 1:
        asked = [
            ("float32 step / 5 PEFT steps", step[f32], step["PEFT, float32"], 0.5),
            ("bf16 step / 5 PEFT steps, autocast", step[bf16], step["PEFT, bf16 autocast"], 0.5),
            *(
                (
                    f"{name} prediction / 5 single predictions",
                    prediction[ours],
                    [N * s for s in prediction[one]],
                    0.45,
                )
                for name, ours, one in (
                    ("float32", f32, "one, float32"),
                    ("bf16", bf16, "one, bf16 autocast"),
                )
            ),
        ]
    else:
        kernel = "PEFT, float32, bella's kernel"
        asked = [
            ("float32 step / 5 PEFT steps", step[f32], step["PEFT, float32"], 0.6),
            ("float32 step / 5 PEFT steps, the same kernel", step[f32], step[kernel], 0.88),
            ("bf16 step / 5 PEFT steps, autocast", step[bf16], step["PEFT, bf16 autocast"], 0.75),
            (
                "bf16 step / bf16 step, PyTorch's attention",
                step[bf16],
                step["bella, bf16 base, PyTorch's attention"],
                0.8,
            ),
            (
                "bf16 step / float32 step, PyTorch's kernel",
                step[bf16],
                step["bella, float32, PyTorch's kernel"],
                0.31,
            ),
            ("float32 step / floor", step[f32], step["floor, float32"], 1.35),
            ("bf16 step / floor", step[bf16], step["floor, bfloat16"], 1.4),
        ]
    return [
        against(f"{name}, batch {batch}", spread(r := ratios(a, b)), statistics.median(r), target)
        for name, a, b, target in asked
    ]


def milliseconds(values: Seconds) -> str:
    """Median and range."""
    return spread([1000 * value for value in values], 1)


def table(batch: int, found: dict[str, dict[str, Seconds]]) -> Table:
    """What each way takes."""
    kinds = [kind for kind in ("step", "prediction") if kind in found]
    names = dict.fromkeys(name for kind in kinds for name in found[kind])
    rows = [
        [name, *(milliseconds(found[k][name]) if name in found[k] else "-" for k in kinds)]
        for name in names
        if not name.startswith("square")
    ]
    alone = ", 'one' a single prediction" if len(kinds) > 1 else ""
    return Table(
        f"Batch {batch}, milliseconds; PEFT is {N} runs{alone}.", (f"n = {N}", *kinds), rows
    )


def measure(options: Options) -> tuple[float, list[Table]]:
    """All of it."""
    batch = 2 if options.quick else BATCH
    with ExitStack() as stack:
        found = seconds_at(batch, options, stack)
    kernel = fastest(VIT.make().to(options.device)).facts()
    rates = found["rate"]
    facts = [
        ["kernel for float32", kernel["kernel"]],
        *([f"square product, {name}, GFLOP/s", f"{r[0] / 1e9:,.0f}"] for name, r in rates.items()),
        [f"coupling, batch {batch}, ms", milliseconds(found["coupling"]["bella, float32"])],
    ]
    return rates["float32"][0], [
        Table(f"{VIT.title}, 12 blocks, n={N}.", TARGETED, targets(batch, found)),
        table(batch, found),
        Table("What it ran on.", ("", ""), facts),
    ]


if __name__ == "__main__":
    main("precision", __doc__, measure)
