"""Attacks within an L∞ ball, on the gradient of what all particles say together.

An attack moves every pixel by at most ``budget`` so that the loss L = -log p(y | x) of the right
class grows. Pixels are in [0, 1], before the network's own normalisation, and stay there.

FGSM  x' = clip(x + budget · sign ∇ₓL(x))
PGD   x' ← clip(x + clip(x' + step · sign ∇ₓL(x') - x, ±budget)), from a random point of the ball

The attacks take any callable from pictures to logits. `predictive_of` makes one of a posterior:
log p(y | x) = log mean_i p_i(y | x), whose gradient goes through all particles; and of a mixture,
through its readouts and distances too. An attack on one particle, or on the mean loss of the
particles, is a weaker one on the predictive, and one on the particles a weaker one on a mixture.

Source:
    Goodfellow, Shlens and Szegedy 2015, Explaining and harnessing adversarial examples (FGSM);
    Madry et al. 2018, Towards deep learning models resistant to adversarial attacks (PGD); Doan et
    al., Bella, Figure 3 and Table 8 (budgets of 0.001 to 0.03).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from rich.progress import Progress
from torch import Tensor

from bella.classes import ClassAxis
from bella.data.images import Preprocess
from bella.data.loaders import opened
from bella.errors import BellaError, nearest
from bella.evaluation.evaluate import collect
from bella.inputs import split
from bella.likelihood import Classes, logits_of, of_posterior
from bella.metrics import Labels, check_labels
from bella.posterior import Posterior
from bella.prediction.predict import Combined, evaluating, particles_of
from bella.prediction.predictive import Average, Predictive

Pictures = Float[Tensor, "batch ..."]
Logits = Callable[[Tensor], Tensor]
"""From pictures (batch, ...) in [0, 1] to logits or log-probabilities (batch, classes)."""

BUDGETS = (0.001, 0.003, 0.005, 0.01, 0.02, 0.03)
"""Of the paper's range."""


def fgsm(logits: Logits, x: Pictures, labels: Labels, budget: float) -> Pictures:
    """One step of the fast gradient sign method.

    Args:
        logits: what is attacked.
        x: pictures in [0, 1].
        labels: the right classes, (batch,).
        budget: the most that a pixel moves.

    Raises:
        BellaError: pixels outside [0, 1], a ``budget`` below 0, labels out of range, or a loss that
            no pixel moves.
    """
    _check(x, budget)
    return (x + budget * _uphill(logits, x, labels)).clamp(0, 1)


def pgd(
    logits: Logits,
    x: Pictures,
    labels: Labels,
    budget: float,
    *,
    steps: int = 10,
    step: float | None = None,
    seed: int | None = 0,
) -> Pictures:
    """Projected gradient descent on -L: FGSM's step again and again, kept within the ball.

    Args:
        logits: what is attacked.
        x: pictures in [0, 1].
        labels: the right classes, (batch,).
        budget: the most that a pixel moves.
        steps: how many.
        step: of each; 2.5 · budget / steps by default, so that the ball's edge is reached.
        seed: of the random start; ``None`` starts at ``x``.

    Raises:
        BellaError: as `fgsm`, or fewer than one step.
    """
    _check(x, budget)
    if steps < 1 or (step is not None and not step > 0):
        raise BellaError(f"steps={steps}, step={step}: give at least one step, and a size above 0.")
    size = 2.5 * budget / steps if step is None else step
    moved = x
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.rand(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        moved = (x + budget * (2 * noise - 1)).clamp(0, 1)
    for _ in range(steps):
        moved = moved + size * _uphill(logits, moved, labels)
        moved = (x + (moved - x).clamp(-budget, budget)).clamp(0, 1)
    return moved


Attack = Callable[[Logits, Tensor, Tensor, float], Tensor]
ATTACKS: dict[str, Attack] = {"fgsm": fgsm, "pgd": pgd}


def _uphill(logits: Logits, x: Pictures, labels: Labels) -> Pictures:
    """The sign of the gradient of each picture's loss."""
    with torch.enable_grad():
        moving = x.detach().clone().requires_grad_()
        said = logits(moving)
        check_labels(labels, said.shape[-1])
        loss = F.cross_entropy(said, labels.long().to(said.device), reduction="sum")
        if not loss.requires_grad:
            raise BellaError(
                "The loss does not depend on the pictures by any gradient: an attack needs a "
                "network that is differentiable in its inputs, called outside inference mode."
            )
        (gradient,) = torch.autograd.grad(loss, moving)
    return gradient.sign()


def attack_named(attack: str | Attack) -> Attack:
    """An attack by its name in `ATTACKS`; a function is one already.

    Raises:
        BellaError: there is none of that name.
    """
    if not isinstance(attack, str):
        return attack
    if attack not in ATTACKS:
        raise BellaError(f"attack={attack!r} is unknown: choose {nearest(attack, ATTACKS)}.")
    return ATTACKS[attack]


def check_budget(budget: float) -> None:
    """Refuse what pixels cannot move by.

    Raises:
        BellaError: it is below 0, or no number.
    """
    if not budget >= 0:
        raise BellaError(f"budget={budget}: give the most that a pixel may move, at least 0.")


def _check(x: Pictures, budget: float) -> None:
    check_budget(budget)
    low, high = float(x.min()), float(x.max())
    if not 0 <= low <= high <= 1:
        raise BellaError(
            f"Pixels go from {low:.3g} to {high:.3g}: an attack takes pictures in [0, 1], before "
            "the network's normalisation (Preprocess.unit undoes it)."
        )


# ------------------------------------------------------------ what all particles say


def predictive_of(
    posterior: Posterior | Combined,
    preprocess: Preprocess | None = None,
    *,
    draws: int = 1,
    average: Average = "probs",
) -> Logits:
    """What an attack takes of a posterior: from pictures in [0, 1] to log p(y | x), all particles.

    Call it inside `bella.prediction.predict.evaluating`: particles answer in the mode they are in.

    Args:
        posterior: any posterior or mixture over classes.
        preprocess: whose normalisation the network expects; ``None`` where pictures in [0, 1] are
            its inputs.
        draws: of a stochastic posterior, for each gradient.
        average: see `Predictive`.

    Raises:
        BellaError: the network says something else than one class a picture.
    """
    kind, axis, particles = Classes(), ClassAxis(), particles_of(posterior)
    scored = of_posterior(particles, "auto", scoring=False)
    if scored is not None and scored.name != kind.name:
        raise BellaError(f"An attack is on classes, and this network has {scored.name!r}.")
    draws = draws if particles.stochastic else 1

    def log_probs(x: Tensor) -> Tensor:
        inputs = x if preprocess is None else preprocess.normalised(x)
        found = []
        for _ in range(draws):
            outputs = particles(inputs)
            said = kind.scores(logits_of(outputs), outputs, None, axis)
            if said.dim() != 3:
                raise BellaError(
                    f"The network's logits have the shape {tuple(said.shape)}, and an attack needs "
                    "one class a picture: (particles, batch, classes)."
                )
            found.append(said)
        if isinstance(posterior, Combined):
            return posterior.around(torch.cat(found), inputs).log_probs
        return Predictive(torch.cat(found), average).log_probs

    return log_probs


def attacked(
    posterior: Posterior | Combined,
    data: Any,
    budget: float,
    *,
    attack: str | Attack = "fgsm",
    preprocess: Preprocess | None = None,
    batch_size: int = 32,
    collate_fn: Callable[[list], Any] | None = None,
    draws: int = 1,
    average: Average = "probs",
    progress: Progress | None = None,
    **options: Any,
) -> tuple[Predictive, Tensor]:
    """What a posterior says of attacked pictures, and their labels.

    The pictures move by gradients of float32, whatever ``precision`` they are predicted in: what
    fewer bits round to 0 would look like robustness.

    Args:
        posterior: any posterior or mixture over classes whose input is one tensor; left in its
            mode.
        data: labelled pictures in any form that `bella.evaluate` takes, normalised as the network
            expects them.
        budget: the most that a pixel moves, in [0, 1].
        attack: a name of `ATTACKS`, or a function of its own with the arguments of `fgsm`, such as
            ``functools.partial(pgd, steps=40)``.
        preprocess: whose normalisation the pictures have; ``None`` where those in [0, 1] are the
            inputs.
        batch_size: pictures a batch, where no loader was given.
        collate_fn: puts pictures into a batch, where no loader was given.
        draws: of a stochastic posterior, for each gradient and for the prediction.
        average: see `Predictive`; the gradient is that of the same average. Not of a mixture.
        progress: a display to show a bar in.
        **options: of `bella.evaluation.evaluate.collect`, such as ``precision``.

    Raises:
        BellaError: an unknown attack; inputs that are not one tensor of pictures; and as `fgsm`.
    """
    move = attack_named(attack)
    loader = opened(data, batch_size, shuffle=False, collate_fn=collate_fn)
    device = next(posterior.parameters()).device
    logits = predictive_of(posterior, preprocess, draws=draws, average=average)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in loader:
            args, kwargs, labels = split(batch, posterior.network)
            if kwargs or len(args) != 1 or not isinstance(args[0], Tensor):
                raise BellaError(
                    "An attack takes batches of (pictures, labels), and these have other inputs."
                )
            x = args[0].to(device)
            x = x if preprocess is None else preprocess.unit(x)
            with evaluating(particles_of(posterior)):
                x = move(logits, x, labels.to(device), budget)
            yield (x if preprocess is None else preprocess.normalised(x)), labels

    parts = []
    total = operator.length_hint(loader) or None
    task = progress.add_task("attacking", total=total) if progress else None
    for batch in batches():
        parts.append(collect(posterior, [batch], draws=draws, average=average, **options))
        if progress and task is not None:
            progress.advance(task)
    if progress and task is not None:
        progress.remove_task(task)
    if not parts:
        raise BellaError("There are no pictures to attack.")
    said, truth = zip(*parts, strict=True)
    return type(said[0]).cat(said), torch.cat(truth)
