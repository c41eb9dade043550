"""Peak memory of training 100 particles on a base held in bfloat16: CLIP ViT-B/32, batch 32.

    python benchmarks/base_memory.py [--quick] [--device cuda]

Against one full fine-tune as people do it: in float32, and in bfloat16 with float32 master weights.
Each in a fresh process (see memory.py), the second of two steps; of 100 particles three passes run
(see training_memory.py). And of 100 particles in float32 at batch 2, whose memory is that of one
particle and what the other 99 keep: factors, gradients and two moments.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import torch
import torch.nn.functional as F

from alternatives import adamw
from bella.precision import base_in
from memory import megabytes, peak
from networks import VIT
from page import TARGETED, Options, Table, against, main
from timing import square
from training_memory import full, in_chunks

PARTICLES = 100
OPEN = ExitStack()
"""Blocks that are open until the process ends."""
atexit.register(OPEN.close)


def on_bf16_base(batch: int, options: Options) -> Callable[[], object]:
    """A training step of 100 particles, one a pass, with their base in bfloat16."""
    work = in_chunks(PARTICLES, 1, batch, replace(options, autocast=True))
    posterior = work.__self__.posterior  # type: ignore[attr-defined]
    OPEN.enter_context(base_in(posterior, torch.bfloat16, sparing=True))  # as `bella.fit` does
    return work


def in_float32(count: int, batch: int, options: Options) -> Callable[[], object]:
    """A step of so many particles, one a pass."""
    return in_chunks(count, 1, batch, options)


def full_bf16(batch: int, options: Options) -> Callable[[], object]:
    """A step of all parameters: the network and its gradients in bfloat16, AdamW on float32."""
    network = VIT.make().to(options.device, torch.bfloat16).eval()
    x, y = VIT.data(batch, options.device)
    x = x.bfloat16()
    parameters = list(network.parameters())
    masters = [p.detach().float().requires_grad_() for p in parameters]
    optimizer = adamw(masters)

    def step() -> None:
        F.cross_entropy(network(x).float(), y).backward()
        for p, master in zip(parameters, masters, strict=True):
            master.grad, p.grad = None if p.grad is None else p.grad.float(), None
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for p, master in zip(parameters, masters, strict=True):
                p.copy_(master)

    return step


def measure(options: Options) -> tuple[float, list[Table]]:
    """The ratios."""
    batch = 4 if options.quick else 32
    ours = peak(on_bf16_base, batch, options)
    float32, bf16 = peak(full, batch, options), peak(full_bf16, batch, options)
    rows = []
    for name, other, target in (("float32", float32, 0.7), ("bf16, float32 masters", bf16, 0.85)):
        shown = f"{ours / other:.3f} ({megabytes(ours)} of {megabytes(other)})"
        rows.append(
            against(
                f"n=100, 1 a pass, bf16 base / one full fine-tune, {name}",
                shown,
                ours / other,
                target,
            )
        )
    hundred, one = (peak(in_float32, count, 2, options) for count in (PARTICLES, 1))
    own = sum(p[0].numel() for p in VIT.posterior(1).stacked_parameters().values())
    sum_of = one + 16 * (PARTICLES - 1) * own  # four float32 numbers a parameter
    shown = f"{hundred / sum_of:.3f} ({megabytes(hundred)} of {megabytes(sum_of)})"
    name = "n=100, 1 a pass, float32, batch 2 / one particle and the state of 99"
    rows.append(against(name, shown, hundred / sum_of, 1.15))
    title = f"{VIT.title}, 12 blocks, batch {batch}, peak of a training step."
    machine = square(options.device, options.dtype)
    machine()
    return machine.rate, [Table(title, TARGETED, rows)]


if __name__ == "__main__":
    main("base_memory", __doc__, measure)
