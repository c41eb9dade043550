"""What a proof found for one kind of pass: how it runs, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from bella.particles.prefix import Places
from bella.particles.roles import Layer, Role

How = Literal["shared", "folded", "looped", "shared, looped"]
WORDS: dict[str, str] = {
    "shared": "folded from {entrance} on; what comes before runs once",
    "folded": "folded from the inputs on",
    "looped": "one particle after another",
    "shared, looped": "one particle after another from {entrance} on; what comes before runs once",
}


@dataclass
class Plan:
    """How passes of one kind run.

    Attributes:
        how: ``shared`` (a prefix, then all particles in one pass), ``folded`` (all particles from
            the inputs on), ``looped`` (one particle after another), or ``shared, looped``.
        why: what stands in the way of the faster ones; empty where nothing does.
        words: the kind of pass, for people.
        inputs: roles of the network's inputs.
        outputs: roles of its outputs.
        layers: what each particle layer meets.
        places: roles of what a shared prefix holds.
        from_inputs: whether folding from the inputs on is proven, whatever is done by default.
        sort: what kinds of things arrive at the entrance; see `Stream.sort`.
        others: plans for the same inputs where other things arrive.
    """

    how: How
    why: str = ""
    words: str = ""
    inputs: tuple[Role, ...] = ()
    outputs: tuple[Role, ...] = ()
    layers: dict[str, Layer] = field(default_factory=dict)
    places: Places | None = None
    from_inputs: bool = False
    sort: tuple[str, ...] = ()
    others: dict[tuple[str, ...], Plan] = field(default_factory=dict)

    @property
    def folds(self) -> bool:
        """Whether all particles run in one pass."""
        return self.how in ("shared", "folded")

    @property
    def shares(self) -> bool:
        """Whether what comes before the entrance runs once."""
        return self.how in ("shared", "shared, looped")

    @property
    def entrance(self) -> str:
        """Where the axis opens; empty for the inputs."""
        return self.places.entrance if self.shares and self.places else ""

    def __str__(self) -> str:
        said = WORDS[self.how].format(entrance=self.entrance)
        return f"{self.words}: {said}" + (f" ({self.why})" if self.why else "")


class Plans(tuple[Plan, ...]):
    """All plans of a posterior; printed, a line each."""

    def __str__(self) -> str:
        if not self:
            return "No pass has run yet: call the posterior, or posterior.prove(inputs)."
        return "\n".join(str(plan) for plan in self)

    __repr__ = __str__


def describe(args: tuple, kwargs: dict[str, Any], training: bool) -> str:
    """A kind of pass in words: its inputs by name, batches of one, and the mode."""
    import torch

    from bella.trees import tensors_of

    named = {str(number): x for number, x in enumerate(args)} | kwargs
    parts = []
    for name, value in named.items():
        tensors = tensors_of(value)
        if tensors:
            shown = ", ".join(f"{str(x.dtype).removeprefix('torch.')}/{x.dim()}" for x in tensors)
            parts.append(f"{name} {shown}")
        elif value is not None:
            parts.append(f"{name}={value!r:.20}")
    first = next((x for x in tensors_of((args, kwargs)) if x.dim()), torch.empty(0))
    one = " of one example" if first.dim() and first.shape[0] == 1 else ""
    return f"{'training' if training else 'evaluation'}, {'; '.join(parts)}{one}"
