"""Train a projector alone: the first stage of a network that sees and writes.

Eye and language model stay as they are; what turns the eye's features into places of the text
learns to make answers likely. The eye runs once for every picture, and its features are kept.

Source: Liu et al., Visual Instruction Tuning, NeurIPS 2023, section 4.2 (stage 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor, nn

from bella.errors import BellaError
from bella.models.seeing import features_of, projector_of, read_with
from bella.posteriors.point import Point
from bella.precision import precision_for

LEARNING_RATE = 1e-3
"""LLaVA's own for this stage."""
WARMUP = 0.03
IGNORED = -100


def eye_features(
    network: nn.Module, pictures: Any, bar: Progress | None = None, batch_size: int = 64
) -> Tensor:
    """What the eye makes of pictures, (pictures, patches, width), on the CPU.

    Args:
        network: in LLaVA's shape.
        pictures: a sequence of tensors (3, height, width).
        bar: shows how far it is.
        batch_size: pictures in one pass.
    """
    task = bar.add_task("the eye", total=len(pictures)) if bar else None
    found = []
    for first in range(0, len(pictures), batch_size):
        rows = range(first, min(first + batch_size, len(pictures)))
        found.append(features_of(network, torch.stack([pictures[i] for i in rows])).cpu())
        if bar and task is not None:
            bar.advance(task, len(rows))
    if bar and task is not None:
        bar.remove_task(task)
    return torch.cat(found)


def train_projector(
    network: nn.Module,
    features: Tensor,
    questions: Sequence[dict[str, Tensor]],
    pictures: Sequence[int],
    *,
    epochs: int,
    batch_size: int = 16,
    learning_rate: float = LEARNING_RATE,
    precision: str = "float32",
    seed: int = 0,
    bar: Progress | None = None,
) -> list[float]:
    """Train the projector in place; AdamW, a cosine after a short rise.

    Args:
        network: in LLaVA's shape, in evaluation mode.
        features: what `eye_features` gave.
        questions: of each its ``input_ids`` and ``attention_mask`` (length,), all of one length,
            and the ``labels`` of its last places (kept,), -100 where nothing counts.
        pictures: of each question the row of ``features``.
        epochs: passes over the questions.
        batch_size: questions a step.
        learning_rate: at its peak.
        precision: see `bella.precision`; the projector's weights stay as they are.
        seed: of the order.
        bar: shows how far it is.

    Returns:
        The mean negative log-likelihood of the answers' tokens of each epoch, in nats.

    Raises:
        BellaError: the loss is no number any more.
    """
    projector = projector_of(network)
    device = next(network.parameters()).device
    steps = -(-len(questions) // batch_size) * epochs
    optimizer = torch.optim.AdamW(projector.parameters(), learning_rate, weight_decay=0.0)
    warm = max(1, round(WARMUP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda i: min((i + 1) / warm, 0.5 * (1 + math.cos(math.pi * max(i - warm, 0) / steps))),
    )
    multiplied = precision_for(Point(network), precision)
    generator = torch.Generator().manual_seed(seed)
    task = bar.add_task("projector", total=steps) if bar else None
    projector.requires_grad_(True)
    history = []
    try:
        for _ in range(epochs):
            total, count = 0.0, 0
            order = torch.randperm(len(questions), generator=generator).tolist()
            for first in range(0, len(order), batch_size):
                rows = order[first : first + batch_size]
                read = {
                    name: torch.stack([questions[i][name] for i in rows]).to(device)
                    for name in ("input_ids", "attention_mask", "labels")
                }
                labels = read.pop("labels")
                seen = features[torch.tensor([pictures[i] for i in rows])].to(device)
                with multiplied.autocast():
                    logits = read_with(network, seen, **read, kept=labels.shape[1])
                loss = F.cross_entropy(
                    logits[:, :-1].float().flatten(0, 1),
                    labels[:, 1:].flatten(),
                    ignore_index=IGNORED,
                )
                if not torch.isfinite(loss):
                    raise BellaError(
                        "The projector's loss is no number any more: lower its learning rate, or "
                        "train it with precision bf16 and not fp16."
                    )
                optimizer.zero_grad()
                multiplied.backward(loss)
                if multiplied.scaler is not None:
                    multiplied.scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(projector.parameters(), 1.0)
                if multiplied.scaler is None:
                    optimizer.step()
                else:
                    multiplied.scaler.step(optimizer)
                    multiplied.scaler.update()
                schedule.step()
                counted = int((labels[:, 1:] != IGNORED).sum())
                total, count = total + float(loss.detach()) * counted, count + counted
                if bar and task is not None:
                    bar.advance(task)
            history.append(total / count)
    finally:
        projector.requires_grad_(False)
        if bar and task is not None:
            bar.remove_task(task)
    return history
