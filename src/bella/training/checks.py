"""What is refused before training and while it goes: tensors without gradients, numbers that left
the finite ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bella.errors import BellaError
from bella.likelihood import logits_of
from bella.particles.stream import Stream
from bella.posterior import Posterior
from bella.storage import own_tensors
from bella.trees import check_finite

MEND = "lower the learning rate or the temperature, or set clip"


class DivergedError(BellaError):
    """Training left the finite numbers.

    Attributes:
        what: what became NaN or infinite, and when.
    """

    def __init__(self, what: str):
        super().__init__(f"{what}: {MEND}.")
        self.what = what


def check_can_train(posterior: Posterior) -> None:
    """Refuse tensors that autograd cannot use.

    Raises:
        BellaError: inference mode is on or made some of the tensors, or they hold no numbers; a
            kind of posterior that no gradient moves, or one that is frozen as a whole; or see
            `check_everyone`.
    """
    if not posterior.trains:
        raise BellaError(
            f"A {posterior.kind} posterior is computed and does not train: train the one that it "
            "lies around, and compute it again."
        )
    if not any(p.requires_grad for p in posterior.parameters()):
        raise BellaError(
            "Nothing of this posterior trains, for all its parameters are frozen: give the network "
            "particles, or let some of them train by requires_grad_()."
        )
    check_everyone(posterior)
    if torch.is_inference_mode_enabled():
        raise BellaError(
            "Training needs gradients, which torch.inference_mode() turns off: call it outside."
        )
    for name, value in posterior.named_parameters():
        if value.is_inference():
            raise BellaError(
                f"{name!r} was made inside torch.inference_mode() and cannot be trained with: "
                "make the network and the posterior outside of it."
            )
        if value.is_meta:
            raise BellaError(
                f"{name!r} is on the meta device and holds no numbers: load the network's weights "
                "before it is given particles."
            )


def check_everyone(posterior: Posterior) -> None:
    """Refuse to train inside a block of `Posterior.subset`: a step moves all particles.

    Raises:
        BellaError: some are left out, or they are in another order.
    """
    if posterior.chosen != tuple(range(posterior.particles)):
        raise BellaError(
            f"A step trains all {posterior.particles} particles, and a block of posterior.subset "
            f"that is open asks for {list(posterior.chosen)}: leave that block first."
        )


def check_particles(posterior: Posterior, when: str) -> None:
    """Refuse particles that are not finite.

    Args:
        posterior: to look at.
        when: for the sentence.

    Raises:
        DivergedError: a tensor of theirs holds a NaN or an infinity.
    """
    own = {
        name: value.detach()
        for name, value in own_tensors(posterior).items()
        if value.is_floating_point()
    }
    finite = [torch.isfinite(value).all() for value in own.values()]
    if finite and not torch.stack(finite).all():
        raise DivergedError(
            f"The particles became NaN or infinite {when} ({where_not_finite(posterior, own)})"
        )


@contextmanager
def finite_predictions(posterior: Posterior) -> Iterator[None]:
    """Passes inside the block may not make infinite logits of finite inputs.

    Raises:
        DivergedError: one did: its particles are finite, and too large to predict with.
    """

    def look(_: Any, args: tuple, kwargs: dict[str, Any], outputs: Any) -> None:
        if torch.isfinite(logits_of(outputs)).all():
            return
        streams = [x.carried() for x in args if isinstance(x, Stream)]
        check_finite(streams or [args, kwargs], "The validation inputs")
        raise DivergedError("The predictions of the validation data became NaN or infinite")

    handle = posterior.register_forward_hook(look, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def where_not_finite(posterior: Posterior, tensors: dict[str, Tensor]) -> str:
    """The first tensor that is not finite, and its particles where it is stacked; else nothing."""
    stacked = set(posterior.stacked_parameters())
    for name, value in tensors.items():
        name = name.removeprefix("network.")
        wrong = ~torch.isfinite(value)
        if not wrong.any():
            continue
        if name in stacked and len(value) == posterior.particles:
            who = wrong.flatten(1).any(1).nonzero().flatten().tolist()
            return f"{name}, {particles_named(who)}"
        return name
    return ""


def particles_named(numbers: Sequence[int]) -> str:
    """One or more particles in words."""
    return f"particle{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
