"""Table 2: what particles cost: trainable parameters, bytes of the file, memory of training.

Parameters and bytes are counted on torch's meta device, where a hundred whole networks weigh
nothing; files are written and memory is measured where the particles are really trained.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bella
from bella.errors import require
from bella.evaluation.cost import PeakMemory, cost
from bella.experiments.paper.item import Item, Setup
from bella.experiments.paper.product import Column, Picture, Product, Sheet, Value
from bella.experiments.paper.rows import GAMMA
from bella.experiments.tasks.task import Task
from bella.host import device_named
from bella.models.towers import Seen, Tower
from bella.posterior import Posterior
from bella.report.charts import Axis, Line
from bella.report.plotted import Panel, plotted
from bella.training.fit import fit

PUBLISHED = Sheet(
    (
        Column("model"),
        Column("particles"),
        Column("trainable parameters"),
        Column("memory", "GB"),
        Column("storage", "MB"),
    ),
    (
        ("SVGD base", "3", "340M", "6.71", "1321"),
        ("SVGD base", "5", "567M", "8.35", "2222"),
        ("SVGD base", "20", "1.76B", "26.08", "8868"),
        ("SVGD base", "40", "3.51B", "48.45", "17735"),
        ("SVGD Bella", "3", "1.10M", "4.48", "436"),
        ("SVGD Bella", "5", "1.84M", "4.50", "439"),
        ("SVGD Bella", "20", "7.37M", "4.63", "460"),
        ("SVGD Bella", "100", "36.86M", "5.19", "572"),
        ("Single", "1", "113M", "5.05", "433"),
    ),
)
"""CLIP ViT-B/32, on one A6000."""


@dataclass(frozen=True)
class Subject:
    """The network whose particles are counted.

    Attributes:
        title: for people.
        open: it, fresh.
        targets: layers that change.
        heads: layers of which every particle has its own.
        batch: so many examples with their labels.
        rank: of the changes, where nobody says.
    """

    title: str
    open: Callable[[], nn.Module]
    targets: Sequence[str]
    heads: Sequence[str]
    batch: Callable[[int], Any]
    rank: int = 4


def clip_vit_b_32(classes: int = 10) -> nn.Module:
    """The image encoder of CLIP ViT-B/32 with random weights, and a head for its classes.

    It maps (batch, 3, 224, 224) to logits (batch, classes).
    """
    transformers = require("transformers", "transformers")
    pair = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig())
    return Tower(Seen(pair), pair.config.projection_dim, classes)


def of_clip() -> Subject:
    """The paper's network, by its architecture: what is counted does not depend on weights."""

    def batch(count: int) -> Any:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(count, 3, 224, 224, generator=generator), torch.arange(count) % 10

    title = "the image encoder of CLIP ViT-B/32 (architecture alone), zero-shot head frozen"
    return Subject(title, clip_vit_b_32, (r".*\.mlp\.fc[12]",), (), batch)


def of_task(task: Task) -> Subject:
    """A task's network and its training examples."""
    opened = task.open(0)
    data = task.part("train", 0)

    def batch(count: int) -> Any:
        return [data[i % len(data)] for i in range(count)]

    return Subject(
        task.title,
        lambda: task.open(0).network,
        opened.defaults.target_modules,
        opened.defaults.modules_to_save,
        batch,
        task.rank,
    )


def make(
    setup: Setup,
    *,
    particles: Sequence[int] = (3, 5, 20, 100),
    copies: Sequence[int] = (1, 3, 5, 20, 40),
    rank: int | None = None,
    batch: int = 1,
    at_once: int = 5,
    measure: Sequence[int] = (3, 5, 20, 100),
    measure_copies: Sequence[int] = (1,),
) -> Product:
    """Count low-rank particles and whole copies; train some of them for a step.

    Args:
        setup: of one task or none.
        particles: numbers of low-rank particles.
        copies: numbers of whole networks.
        rank: of the changes; the task's, or 4.
        batch: examples of the step.
        at_once: particles that run at once in it.
        measure: those of ``particles`` whose memory and file are measured.
        measure_copies: those of ``copies``.
    """
    subject = of_task(setup.task) if setup.tasks else of_clip()
    rank = subject.rank if rank is None else rank

    def low_rank(network: nn.Module, n: int) -> Posterior:
        heads = list(subject.heads)
        return bella.low_rank(network, n, rank, list(subject.targets), modules_to_save=heads)

    kinds: Mapping[str, tuple[Callable[[nn.Module, int], Posterior], Sequence[int], Sequence[int]]]
    kinds = {
        "whole copies": (bella.full, copies, measure_copies),
        "low-rank particles": (low_rank, particles, measure),
    }
    bare = copy.deepcopy(subject.open()).to("meta")
    base = sum(x.numel() for x in bare.parameters())
    rows: list[list[Value]] = []
    for kind, (build, counts, measured) in kinds.items():
        for n in counts:
            with torch.device("meta"):
                counted = cost(build(copy.deepcopy(bare), n))
            seen = {}
            if n in measured:
                seen = trained(subject, build, n, batch, at_once, setup.device)
            rows.append(
                [
                    kind,
                    theirs_of(kind, n),
                    n,
                    counted["trainable"],
                    counted["trainable_per_particle"],
                    counted["bytes_on_disk"],
                    seen.get("file"),
                    seen.get("memory"),
                ]
            )
    return Product(
        title=f"Table 2: what particles cost, {subject.title}",
        shows=(
            "Trainable parameters and the bytes of their tensors are counted exactly (rank "
            f"{rank}, layers `{', '.join(subject.targets)}`). The file is what `posterior.save` "
            f"wrote. Memory is what a step of training needs beyond the network itself ({base:,} "
            f"parameters, {4 * base / 1e6:,.0f} MB): parameters, gradients, AdamW's two moments "
            f"and the activations of {batch} example{'s'[: batch != 1]}, {at_once} particles at "
            "once."
        ),
        sheet=Sheet(
            (
                Column("what"),
                Column("in the paper"),
                Column("particles", form="{:,}"),
                Column("trainable parameters", form="{:,}"),
                Column("of one particle", form="{:,}"),
                Column("tensors", "bytes", "{:,}"),
                Column("file", "bytes", "{:,}"),
                Column("memory of a step", "MB", "{:,.0f}"),
            ),
            rows,
        ),
        theirs=PUBLISHED,
        comparable=(
            "On CLIP ViT-B/32 at rank 4 Bella's trainable parameters are the paper's, to the "
            "digit: 368,640 a particle. Its whole copies have 113M parameters each at n=3, 5 and "
            "88M at n=20, 40; here every copy has the encoder, its projection and the head. Its "
            "storage holds the base as well (433 MB for one), and these files do not: the base is "
            "named by its hash. Its memory is a GPU's, at a batch that it does not say."
        ),
        pictures=[picture(rows, subject.title)],
    )


def trained(
    subject: Subject,
    build: Callable[[nn.Module, int], Posterior],
    particles: int,
    batch: int,
    at_once: int,
    device: str | None = None,
) -> dict[str, float]:
    """Train for one step and save: ``memory`` in MB, NaN where it cannot be had, and the bytes of
    the ``file``."""
    # What trains there lies there before it begins: the network is no part of what is measured.
    network, examples = subject.open().to(device_named(device)), subject.batch(batch)
    with PeakMemory(device) as peak:
        posterior = build(network, particles)
        fit(
            posterior,
            examples,
            epochs=1,
            batch_size=batch,
            particles_per_pass=min(at_once, particles),
            transport="repulsive",
            transport_options={"gamma": GAMMA},
            cache_prefix=False,
            keep="last",
            progress=False,
            device=device,
        )
    with tempfile.TemporaryDirectory() as folder:
        posterior.save(folder)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    return {"memory": peak.bytes / 1e6, "file": size}


def theirs_of(kind: str, particles: int) -> str:
    """The paper's name of a row."""
    if kind == "low-rank particles":
        return "SVGD Bella"
    return "Single" if particles == 1 else "SVGD base"


def picture(rows: Sequence[Sequence[Any]], title: str) -> Picture:
    """Parameters, bytes and memory against the number of particles."""
    kinds = list(dict.fromkeys(row[0] for row in rows))
    panels, said = [], []
    for at, name, unit in (
        (3, "trainable parameters", "millions"),
        (5, "tensors on disk", "MB"),
        (7, "memory of a step beyond the network", "MB"),
    ):
        lines = []
        for place, kind in enumerate(kinds):
            known = [row for row in rows if row[0] == kind and row[at] is not None]
            scale = 1 if at == 7 else 1e6
            values = [row[at] / scale for row in known]
            lines.append(Line(kind, [row[2] for row in known], values, place, "marked"))
            if known:
                said.append(f"{name} of {known[-1][2]} {kind} {values[-1]:,.1f} {unit}")
        x = Axis("particles", "log")
        panels.append(Panel(name, x, Axis(f"{name} ({unit})", "log"), lines))
    return Picture("", f"{title}: {'; '.join(said)}.", plotted(panels, 3))


ITEM = Item(
    make=make,
    title="trainable parameters, bytes and memory by the number of particles",
    trains=False,
    cost="90 seconds",
)
