"""Pictures of the method pages that need real data: the digits that come with scikit-learn.

A network has learnt them turned by a quarter; what is trained here meets them upright, 0 to 7, and
8 and 9 are strange to it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from drawing import (
    BLUE,
    FAINT,
    GUIDE,
    INK,
    PAPER,
    RED,
    YELLOW,
    Drawn,
    bare,
    hills,
    panels,
    two_sided,
)
from sklearn.datasets import load_digits
from torch import Tensor, nn

import bella
from bella import metrics
from bella.evaluation.landscape import landscape, plane_through, points_of, steps_over
from bella.posteriors.sparse.topology import Topology
from bella.prediction.activations import Reading
from bella.prediction.temperature import fit_temperature
from bella.training.anchors import Activations, fit_anchor

Pairs = tuple[Tensor, Tensor]


@cache
def digits() -> dict[str, Pairs]:
    """Upright digits by part: 200 to train on, 300 to validate, the rest, and 8 and 9."""
    found = load_digits()
    x = torch.tensor(found.data / 16, dtype=torch.float32)
    y = torch.tensor(found.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    known, strange = (x[y < 8], y[y < 8]), (x[y >= 8], y[y >= 8])
    ends = {"train": slice(0, 200), "validation": slice(200, 500), "test": slice(500, None)}
    return {part: (known[0][s], known[1][s]) for part, s in ends.items()} | {"strange": strange}


def network(classes: int = 8) -> nn.Sequential:
    """Three layers, nothing learnt."""
    return nn.Sequential(
        *(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, classes))
    )


@cache
def learnt() -> dict[str, Tensor]:
    """Weights of a network that knows digits turned by a quarter."""
    torch.manual_seed(0)
    found = load_digits()
    x = torch.tensor(found.images / 16, dtype=torch.float32).rot90(1, (1, 2)).flatten(1)
    y = torch.tensor(found.target)
    turned = network(10)
    optimizer = torch.optim.Adam(turned.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(turned(x), y).backward()
        optimizer.step()
    return {name: value for name, value in turned.state_dict().items() if not name.startswith("4")}


def pre_trained() -> nn.Sequential:
    """What was learnt, under a fresh head for eight classes."""
    torch.manual_seed(0)
    fresh = network()
    fresh.load_state_dict(learnt(), strict=False)
    return fresh


def fitted(posterior: bella.Posterior, part: str = "train", **settings: Any) -> bella.Posterior:
    """Trained on the digits."""
    given = {"epochs": 30, "learning_rate": 5e-3, "progress": False, "seed": 0} | settings
    bella.fit(posterior, digits()[part], **given)
    return posterior


@cache
def particles(count: int = 5) -> bella.Posterior:
    """Low-rank ones of the network that knows turned digits, under heads of their own."""
    where = {"target_modules": ("0", "2"), "modules_to_save": ("4",), "gain": 5.0}
    return fitted(bella.low_rank(pre_trained(), count, 4, head_init="reset", **where))


# ------------------------------------------------------------ kinds of posteriors


def rank1() -> Drawn:
    """One shared weight, and the rank-1 pattern by which each component multiplies it."""
    torch.manual_seed(0)
    posterior = bella.rank1(network(), 4, random_sign_init=0.5, prior_mean="sign")
    fitted(posterior, transport="ensemble", epochs=40)
    layer = posterior.layers()["2"]
    titles = ["Shared weights W", *(f"s rᵀ of component {k + 1}" for k in range(4))]
    figure, axes = panels(titles, width=9.6, height=2.35)
    shown = [layer.base.weight, *(layer.s.mean[k][:, None] * layer.r.mean[k] for k in range(4))]
    for axis, values in zip(axes, shown, strict=True):
        seen = values.detach()[:32, :32]
        two_sided(axis, seen / seen.abs().quantile(0.98))
        axis.title.set_fontsize(10.5)
        bare(axis)
    return figure, "A matrix of weights, and four patterns of stripes that cross."


def ssvi() -> Drawn:
    """How many active weights read each pixel, before and after training."""
    torch.manual_seed(0)
    posterior = bella.sparse_subspace(network(), 0.1, dense_modules=(), prior_std=0.1)
    layer = posterior.layers()["0"]

    def readers() -> Tensor:
        pixel = layer.index.long() % 64
        return torch.bincount(pixel, minlength=64).view(8, 8)

    before = readers()
    epochs, x = 150, digits()["train"][0]
    steps = epochs * -(-len(x) // 32)
    movers = [Topology(posterior, steps, interval=max(1, steps // 20))]
    fitted(posterior, movers=movers, epochs=epochs, transport="ensemble", kl_weight=0.01)
    titles = ["A digit, on average", "Active weights: at first", "At the end"]
    figure, axes = panels(titles, width=7.4, height=2.7)
    for axis, values in zip(axes, (x.mean(0).view(8, 8), before, readers()), strict=True):
        axis.imshow(values.numpy(), cmap="bone_r", vmin=0, interpolation="none")
        bare(axis)
    axes[1].set_xlabel("a tenth, at random")
    axes[2].set_xlabel(f"as many ({int(before.sum())})")
    return figure, "Active weights lie anywhere at first, and over the digits at the end."


# ------------------------------------------------------------ what is made of particles


def soup() -> Drawn:
    """NLL over the plane through three networks, and their mean."""
    x, y = digits()["validation"]

    def score(one: nn.Module) -> dict[str, dict[str, float]]:
        with torch.no_grad():
            return {"validation": {"nll": float(nn.functional.cross_entropy(one(x), y))}}

    torch.manual_seed(0)
    anew = fitted(bella.full(network(), 3, reset=(".*",)), transport="ensemble", learning_rate=3e-3)
    kinds = {"Particles of one network": particles(), "Networks from three starts": anew}
    figure, axes = panels(list(kinds), width=7.6, height=3.3)
    for axis, posterior in zip(axes, kinds.values(), strict=True):
        corners = points_of(posterior, [0, 1, 2])
        plane = plane_through(corners)
        across, up = steps_over(plane.corners, 22)
        found = landscape(posterior.particle(0), plane, across, up, score)
        hills(axis, across, up, found.figures["validation"]["nll"].clamp_max(2.5))
        axis.plot(*plane.corners.mT, "o", color=INK, markersize=6)
        middle = plane.corners.mean(0)
        nll = score_at(plane, posterior, middle, score)
        theirs = [score_at(plane, posterior, corner, score) for corner in plane.corners]
        axis.plot(*middle, "*", color=PAPER, markeredgecolor=INK, markersize=15)
        axis.set(aspect="equal")
        axis.set_xlabel(f"NLL {sum(theirs) / 3:.2f} on average, of the soup {nll:.2f}")
        bare(axis)
    return figure, "Three dots in one valley with a star between; three dots with a star on a hill."


def score_at(plane: Any, posterior: bella.Posterior, place: Tensor, score: Callable) -> float:
    """NLL at one point of a plane."""
    found = landscape(posterior.particle(0), plane, place[:1], place[1:], score)
    return float(found.figures["validation"]["nll"])


def distillation() -> Drawn:
    """What five particles dispute, and what one says that they dispute."""
    teacher, parts = particles(), digits()
    student = bella.distill(teacher, parts["train"], epochs=60, progress=False)
    figure, axes = panels(["Taught on 200 digits, 0 to 7"], 5.2, 3.5)
    axis = axes[0]
    axis.plot([1e-3, 1], [1e-3, 1], color=GUIDE, linewidth=1.2)
    for part, colour in (("test", BLUE), ("strange", RED)):
        x = parts[part][0][:100]
        theirs = bella.predict(teacher, x).mutual_information
        own = bella.predict(student, x).mutual_information
        label = {"test": "0 to 7", "strange": "8 and 9"}[part]
        axis.plot(theirs, own, "o", color=colour, markersize=3, alpha=0.6, label=label)
    axis.set(xscale="log", yscale="log", xlim=(1e-3, 1), ylim=(1e-3, 1))
    axis.set(xlabel="mutual information of five particles", ylabel="what one pass says")
    axis.legend(loc="upper left", handletextpad=0.1)
    return figure, "Dots about a diagonal: digits that were taught low, strange ones high."


def stopping_early() -> Drawn:
    """What two particles dispute, and what five do."""
    figure, axes = panels(["Two particles run, then three more where these dispute"], 6.2, 3.4)
    axis, posterior, parts, bound = axes[0], particles(), digits(), 0.03
    for part, colour in (("test", BLUE), ("strange", RED)):
        x = parts[part][0]
        with posterior.subset([0, 1]):
            two = bella.predict(posterior, x).mutual_information
        five = bella.predict(posterior, x).mutual_information
        saved = float(bella.predict(posterior, x, stop=bound).saved)
        name = {"test": "0 to 7", "strange": "8 and 9"}[part]
        label = f"{name}: {saved:.0%} of the passes saved"
        axis.plot(two[:100], five[:100], "o", color=colour, markersize=2.8, alpha=0.6, label=label)
    axis.axvline(bound, color=FAINT, linewidth=1.2)
    axis.text(bound * 0.85, 1.3e-3, "stop", color=FAINT, ha="right")
    axis.text(bound * 1.2, 1.3e-3, "go on", color=FAINT)
    axis.set(xscale="log", yscale="log", xlim=(1e-4, 1), ylim=(1e-3, 1.2))
    axis.set(xlabel="mutual information of two", ylabel="of five")
    axis.legend(loc="upper left", handletextpad=0.1)
    return figure, "Dots that rise together, and a line that parts few from many."


def mixture() -> Drawn:
    """Where strange digits stand among known ones, by three scores."""
    parts = digits()
    pool = bella.mixture(particles(), parts["train"], parts["validation"])
    kinds = {
        "One LoRA: entropy": (particles(1), "entropy"),
        "Five particles: entropy": (particles(), "entropy"),
        "The mixture: novelty": (pool, "novelty"),
    }
    figure, axes = panels(list(kinds), width=9.0, height=2.7, sharey=True)
    for axis, (posterior, score) in zip(axes, kinds.values(), strict=True):
        known, strange = (
            getattr(bella.predict(posterior, parts[part][0]), score) for part in ("test", "strange")
        )
        place = torch.bucketize(strange, known.sort().values) / len(known)
        axis.hist(100 * place, bins=20, range=(0, 100), color=RED, density=True)
        axis.axhline(0.01, color=FAINT, linewidth=1.2)
        axis.set_xlabel(f"more doubtful than so many in 100\nAUROC {float(place.mean()):.2f}")
        axis.set(xlim=(0, 100), yticks=[])
        axis.spines["left"].set_visible(False)
    return figure, "Bars of 8s and 9s that gather on the right, the more the later the panel."


# ------------------------------------------------------------ controls


def baselines() -> Drawn:
    """NLL against the temperature, and confidence before and after it."""
    titles = ["One number, chosen on validation", "What it says, and how often it is right"]
    figure, axes = panels(titles, width=8.0, height=3.2)
    parts = digits()
    x, y = (value[:60] for value in parts["train"])
    torch.manual_seed(0)
    one = network()
    optimizer = torch.optim.Adam(one.parameters(), 1e-2)
    for _ in range(400):  # long after all sixty are right
        optimizer.zero_grad()
        nn.functional.cross_entropy(one(x), y).backward()
        optimizer.step()
    posterior = bella.Point(one)
    logits = {
        part: bella.predict(posterior, parts[part][0]).logits[0] for part in ("validation", "test")
    }
    grid = torch.logspace(-0.3, 1.1, 40)
    for (part, said), colour in zip(logits.items(), (BLUE, RED), strict=True):
        y = parts[part][1]
        loss = [float(nn.functional.cross_entropy(said / t, y)) for t in grid]
        axes[0].plot(grid, loss, color=colour, label=part)
    best = fit_temperature(logits["validation"], parts["validation"][1], sd=0.2)
    axes[0].axvline(best, color=FAINT, linewidth=1.2)
    axes[0].set(xscale="log", xlabel="temperature", ylabel="NLL")
    axes[0].set_xticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
    axes[0].minorticks_off()
    axes[0].legend()
    axes[1].plot([0.3, 1], [0.3, 1], color=GUIDE, linewidth=1.2)
    for name, t, colour in (("as trained", 1.0, YELLOW), (f"T = {best:.2f}", best, RED)):
        probs = (logits["test"] / t).softmax(1)
        confidence, accuracy, _ = metrics.reliability(probs, parts["test"][1], bins=8)
        axes[1].plot(confidence, accuracy, "o-", color=colour, markersize=4, label=name)
    axes[1].set(xlabel="confidence", ylabel="accuracy", xlim=(0.3, 1.01), ylim=(0.3, 1.02))
    axes[1].legend()
    return (
        figure,
        "A valley of NLL to the right of 1; a line below the diagonal, and one nearer.",
    )


def multi_depth() -> Drawn:
    """NLL of linear readouts of one depth, the other, and both."""
    parts = digits()
    body = pre_trained()
    places = {
        "early": (1, "what enters the adapted layer"),
        "late": (3, "what arrives at the head"),
    }

    def read(part: str, count: int | None = None) -> Activations:
        x, y = (value[:count] for value in parts[part])
        with torch.no_grad():
            held = {Reading(name, "flat"): body[: end + 1](x) for name, (end, _) in places.items()}
        return Activations(held, y)

    kinds = {words: [Reading(name, "flat")] for name, (_, words) in places.items()}
    kinds["both, side by side"] = [Reading(name, "flat") for name in places]
    figure, axes = panels(["A linear readout of"], 5.6, 3.3)
    counts = (30, 50, 100, 200)
    for (words, readings), colour in zip(kinds.items(), (YELLOW, BLUE, RED), strict=True):
        validation = read("validation")
        loss = [fit_anchor(readings, read("train", n), validation, 8).nll for n in counts]
        axes[0].plot(counts, loss, "o-", color=colour, markersize=4, label=words)
    axes[0].set(xscale="log", xlabel="training digits", ylabel="NLL on validation", ylim=(0, None))
    axes[0].set_xticks(counts, map(str, counts))
    axes[0].minorticks_off()
    axes[0].legend()
    return figure, "Three lines that fall with more digits."


IDEAS: dict[str, Callable[[], Drawn]] = {
    "mixture": mixture,
    "rank1": rank1,
    "ssvi": ssvi,
    "soup": soup,
    "distillation": distillation,
    "stopping-early": stopping_early,
    "baselines": baselines,
    "multi-depth": multi_depth,
}
"""By the page that shows each."""
