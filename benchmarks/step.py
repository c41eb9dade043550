"""A training step of CLIP ViT-B/32 (random weights), fc1 and fc2 of all blocks, rank 4.

    python benchmarks/step.py [--rounds 5] [--batch 8] [--particles 5] [--write]

n particles in one pass against n single steps and n sequential PEFT steps, the share of the
coupling, and the distance from the floor: forward, and backward without weight gradients, at the
rate of a plain matrix product in this process. ``--write`` puts the table into docs/performance.md.
"""

from __future__ import annotations

import argparse
import copy
import re
import statistics
import time
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path

import peft
import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import bella
from bella.training.record import machine
from timing import gemm_rate, paired, ratio

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
TARGETS = ["fc1", "fc2"]


def pooled(outputs: object) -> torch.Tensor:
    """The images' vectors, which stand for logits here."""
    return outputs.pooler_output  # type: ignore[attr-defined]


def trainer(posterior: bella.Posterior, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    """One step: forward, backward, repulsion, AdamW."""
    move = bella.transport.repulsive(posterior, data_size=1000)
    optimizer = torch.optim.AdamW(posterior.stacked_parameters().values(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        bella.nll(pooled(posterior(x)), y).backward()
        move.step()
        optimizer.step()

    return step


def peft_trainer(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    """The same with PEFT's LoRA."""
    model = peft.get_peft_model(network, peft.LoraConfig(r=4, target_modules=TARGETS))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(pooled(model(x)), y).backward()
        optimizer.step()

    return step


def base_flops(network: nn.Module, x: torch.Tensor) -> float:
    """Operations of one forward pass of the base, counted by PyTorch."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x)
    return counter.get_total_flops()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--particles", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    n, batch = options.particles, options.batch
    torch.manual_seed(0)
    base = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(patch_size=32))
    x, y = torch.randn(batch, 3, 224, 224), torch.randint(768, (batch,))
    flops = base_flops(base, x)

    def posterior(particles: int) -> bella.Posterior:
        return bella.low_rank(copy.deepcopy(base), particles, 4, TARGETS, b_std=0.01)

    together = posterior(n)
    one = trainer(posterior(1), x, y)
    theirs = peft_trainer(copy.deepcopy(base), x, y)
    seconds = paired(
        {
            "n in one pass": trainer(together, x, y),
            "n single steps": lambda: [one() for _ in range(n)],
            "n PEFT steps": lambda: [theirs() for _ in range(n)],
        },
        options.rounds,
        warmup=1,
    )
    ours = seconds["n in one pass"]
    coupling = []
    for _ in range(10):
        begun = time.perf_counter()
        together.mover.step()
        coupling.append(time.perf_counter() - begun)
    rate = gemm_rate()
    floor = 2 * n * flops / rate
    share = statistics.median(coupling) / statistics.median(ours)
    rows = [
        ("step, seconds (median)", f"{statistics.median(ours):.2f}"),
        ("one pass / n single steps", ratio(ours, seconds["n single steps"])),
        ("one pass / n sequential PEFT steps", ratio(ours, seconds["n PEFT steps"])),
        ("coupling / step", f"{share:.2%}"),
        ("step / floor", f"{statistics.median(ours) / floor:.2f}"),
    ]
    title = f"ViT-B/32, n={n}, batch {batch}: {machine()}, {rate / 1e9:.0f} GFLOP/s, {date.today()}"
    table = Table(title=title, show_header=False)
    for row in rows:
        table.add_row(*row)
    Console(width=110).print(table)
    if options.write:
        name = f"step-{n}-{batch}"
        lines = [f"`python benchmarks/step.py --batch {batch} --particles {n} --write`", ""]
        lines += [title, "", "| | |", "|:--|--:|", *(f"| {a} | {b} |" for a, b in rows)]
        text = "\n".join(lines)
        page = PAGE.read_text()
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        PAGE.write_text(pattern.sub(lambda m: f"{m[1]}\n{text}\n\n{m[2]}", page))


if __name__ == "__main__":
    main()
