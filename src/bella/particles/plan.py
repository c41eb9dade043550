"""What a proof found for one kind of pass: how it runs, and why."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr, ValidationError

from bella.errors import BellaError
from bella.files import shortened
from bella.particles.roles import Layer, Role
from bella.particles.stream import Places

How = Literal["shared", "folded", "looped", "shared, looped"]
WORDS: dict[str, str] = {
    "shared": "folded from {entrance} on; what comes before runs once",
    "folded": "folded from the inputs on",
    "looped": "one particle after another",
    "shared, looped": "one particle after another from {entrance} on; what comes before runs once",
}
BEGIN_ANEW = "begin the run anew with --fresh (resume=False)"


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
        in_place: whether the network may change its inputs.
        sort: what kinds of things arrive at the entrance; see `Stream.sort`.
        others: plans for the same inputs where other things arrive.
        not_shared: what stood in the way of a shared prefix; empty where nothing did.
    """

    how: How
    why: str = ""
    words: str = ""
    inputs: tuple[Role, ...] = ()
    outputs: tuple[Role, ...] = ()
    layers: dict[str, Layer] = field(default_factory=dict)
    places: Places | None = None
    from_inputs: bool = False
    in_place: bool = True
    sort: tuple[str, ...] = ()
    others: dict[tuple[str, ...], Plan] = field(default_factory=dict)
    not_shared: str = ""

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

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values, for a run folder and a checkpoint."""
        places = self.places
        return {
            "how": self.how,
            "why": self.why,
            "words": self.words,
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "layers": {name: asdict(layer) for name, layer in self.layers.items()},
            "places": None
            if places is None
            else {
                "inputs": list(places.inputs),
                "single": places.single,
                "entrance": places.entrance,
                "arrived": list(places.arrived),
                "outputs": {k: [list(c) for c in calls] for k, calls in places.outputs.items()},
                "real": places.real,
            },
            "from_inputs": self.from_inputs,
            "in_place": self.in_place,
            "sort": list(self.sort),
            "others": [[list(sort), plan.to_json()] for sort, plan in self.others.items()],
        }

    @staticmethod
    def from_json(kept: dict[str, Any], kind: Any) -> Plan:
        """What `to_json` gave.

        Raises:
            BellaError: it is something else.
        """
        try:
            return _read(_Kept.model_validate(kept), kind)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            said = shortened(ValueError(f"{place}: {first['msg']}"))
            raise BellaError(f"A plan of passes is damaged ({said}): {BEGIN_ANEW}.") from None

    def check_names(self, modules: Container[str], entrances: Container[str]) -> None:
        """Refuse a plan, taken from a file, that names what a network does not have.

        Args:
            modules: names of all modules of the network.
            entrances: names of those that the axis may open at.

        Raises:
            BellaError: it does.
        """
        places = self.places
        named = [*self.layers, *(places.outputs if places else ())]
        if (
            any(name not in modules for name in named)
            or (places is None and self.shares)
            or (places and places.entrance not in entrances)
            or (places and places.real and places.real not in places.outputs)
        ):
            raise BellaError(f"A plan of passes is of another network: {BEGIN_ANEW}.")
        for plan in self.others.values():
            plan.check_names(modules, entrances)

    def check_inputs(self, dimensions: Sequence[int]) -> None:
        """Refuse a plan, taken from a file, whose inputs are not those of a pass.

        Args:
            dimensions: of the pass's tensors.

        Raises:
            BellaError: there are more or fewer, or one lacks the axis that carries the batch.
        """
        if not self.inputs and self.how == "looped":
            return  # it needs no roles
        fits = len(self.inputs) == len(dimensions) and all(
            role is None or -count <= role < count
            for role, count in zip(self.inputs, dimensions, strict=True)
        )
        if not fits:
            raise BellaError(f"A plan of passes is of other inputs: {BEGIN_ANEW}.")


KeptRole = Annotated[int, Field(strict=True, ge=-64, le=64)] | None
Roles = list[KeptRole]


class _KeptLayer(BaseModel):
    """A `Layer` as JSON values."""

    inputs: Roles
    outputs: Roles
    by_example: StrictBool
    why_not: StrictStr


class _KeptPlaces(BaseModel):
    """`Places` as JSON values."""

    inputs: Roles
    single: StrictBool
    entrance: StrictStr
    arrived: Roles
    outputs: dict[StrictStr, list[Roles]]
    real: StrictStr = ""


class _Kept(BaseModel):
    """A `Plan` as JSON values."""

    model_config = ConfigDict(extra="forbid")

    how: How
    why: StrictStr
    words: StrictStr
    inputs: Roles
    outputs: Roles
    layers: dict[StrictStr, _KeptLayer]
    places: _KeptPlaces | None
    from_inputs: StrictBool
    in_place: StrictBool
    sort: list[StrictStr]
    others: list[tuple[list[StrictStr], _Kept]]


def _read(kept: _Kept, kind: Any) -> Plan:
    told = kept.places
    places = None
    if told is not None:
        places = Places(
            kind,
            tuple(told.inputs),
            single=told.single,
            entrance=told.entrance,
            arrived=tuple(told.arrived),
            outputs={name: [tuple(c) for c in calls] for name, calls in told.outputs.items()},
            real=told.real,
        )
    layers = {
        name: Layer(tuple(layer.inputs), tuple(layer.outputs), layer.by_example, layer.why_not)
        for name, layer in kept.layers.items()
    }
    return Plan(
        kept.how,
        kept.why,
        kept.words,
        tuple(kept.inputs),
        tuple(kept.outputs),
        layers,
        places,
        kept.from_inputs,
        kept.in_place,
        tuple(kept.sort),
        {tuple(sort): _read(plan, kind) for sort, plan in kept.others},
    )


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
