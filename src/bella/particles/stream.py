"""What arrives at the entrance of a shared prefix, which tensors of it carry the batch, and what a
second half needs beside it.

A stream goes on as it is, or with other examples in its place: what differs between examples is
kept for a whole data set, everything else once.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bella.particles.roles import MixedError, Role, examples, map_roles, roles_of, with_roles
from bella.trees import fresh, leaves_of, map_tensors, tensors_of


class Places:
    """Which tensors of a stream carry the batch; what a proof found for a kind of pass.

    Args:
        kind: the structure of the inputs, and what else decides how they run.
        inputs: roles of the network's inputs.
        entrance: name of the module that they arrive at.
        arrived: roles of that module's arguments.
        outputs: per module of the prefix, the roles of what each of its calls returns.
        single: whether this was found with a batch of one.
        real: name of a module of the prefix whose outputs count after the entrance as well, such as
            a projector whose features a network returns; empty where nothing goes past it.

    Attributes:
        draws: whether a first half drew torch's random numbers so far.
        draws_others: whether one drew Python's or numpy's.
    """

    def __init__(
        self,
        kind: Any,
        inputs: tuple[Role, ...],
        *,
        single: bool = False,
        entrance: str = "",
        arrived: tuple[Role, ...] = (),
        outputs: dict[str, list[tuple[Role, ...]]] | None = None,
        real: str = "",
    ):
        self.kind = kind
        self.inputs = inputs
        self.entrance = entrance
        self.arrived = arrived
        self.outputs = outputs or {}
        self.single = single
        self.real = real
        self.draws = self.draws_others = False

    def of(self, name: str, number: int) -> tuple[Role, ...]:
        """Roles of what the ``number``-th call of a module of the prefix returns.

        Raises:
            MixedError: it was called more often than in the proof, and not always alike.
        """
        known = self.outputs[name]
        if number < len(known):
            return known[number]
        if len(set(known)) > 1:
            raise MixedError(f"{name} was called more often than in the proof")
        return known[0]


class Dice:
    """Random numbers of a first half: the states before it, after its modules, and at its end."""

    def __init__(self, device: torch.device, others: bool):
        self.device = device
        self.before = self.now()
        self.others = others_now() if others else None
        self.after: dict[tuple[str, int], list[Tensor]] = {}

    def now(self) -> list[Tensor]:
        """The states of torch's generators."""
        states = [torch.get_rng_state()]
        if self.device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self.device))
        return states

    def set(self, states: Sequence[Tensor], others: Any = None) -> None:
        """Go on from these states."""
        torch.set_rng_state(states[0])
        if len(states) > 1:
            torch.cuda.set_rng_state(states[1], self.device)
        if others is not None:
            random.setstate(others[0])
            np.random.set_state(others[1])

    def fell(self) -> bool:
        """Whether torch's generators have moved since."""
        return any(not torch.equal(a, b) for a, b in zip(self.before, self.now(), strict=True))


def others_now() -> Any:
    """The states of Python's and numpy's generators, comparable."""
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), (kind, tuple(np.asarray(keys).tolist()), *rest)


@dataclass
class Stream:
    """What arrived at the entrance, and what the second half needs beside it.

    Attributes:
        batch: number of examples.
        inputs: the network's own (args, kwargs).
        places: which of all these tensors carry the batch.
        entrance: name of the module that it arrived at.
        arrived: that module's (args, kwargs).
        outputs: per prefix module, the outputs of its calls, of which only shapes matter (but of
            `Places.real`).
        dice: the random numbers of the first half; ``None`` if it drew none.
        autocast: what autocast computed the first half in; ``None`` without.
    """

    batch: int
    inputs: Any
    places: Places
    entrance: str = ""
    arrived: Any = None
    outputs: dict[str, list[Any]] = field(default_factory=dict)
    dice: Dice | None = None
    autocast: torch.dtype | None = None

    @property
    def sort(self) -> tuple[str, ...]:
        """What kinds of things arrived: the data may decide whether there is a mask among them."""
        return tuple([type(leaf).__name__ for leaf in leaves_of(self.arrived)])

    def carried(self) -> list[Tensor]:
        """The tensors that differ between examples: what to keep to continue from here later.

        Each has the examples as its first axis. Floating inputs of the network are not among them;
        only their shape is needed again.
        """
        inputs = with_roles(self.inputs, self.places.inputs)
        kept = [pair for pair in inputs if not pair[0].is_floating_point()]
        past = self.outputs.get(self.places.real, ())
        real = [
            pair
            for number, call in enumerate(past)
            for pair in with_roles(call, self.places.of(self.places.real, number))
        ]
        both = (*kept, *with_roles(self.arrived, self.places.arrived), *real)
        return [first(x, role, self.batch) for x, role in both if role is not None]

    def with_carried(self, tensors: Sequence[Tensor]) -> Stream:
        """The same stream for other examples, given what `carried` returned for them."""
        batch, rest = tensors[0].shape[0], iter(tensors)

        def shape_only(x: Tensor, role: Role) -> Tensor:
            return x if role is None else placeholder(x, role, batch, self.batch)

        def exchange(x: Tensor, role: Role) -> Tensor:
            return x if role is None else back(next(rest), x, role, self.batch)

        def inputs(x: Tensor, role: Role) -> Tensor:
            return shape_only(x, role) if x.is_floating_point() else exchange(x, role)

        return Stream(
            batch,
            map_roles(inputs, self.inputs, self.places.inputs),
            self.places,
            self.entrance,
            map_roles(exchange, self.arrived, self.places.arrived),
            {
                name: [
                    map_roles(
                        exchange if name == self.places.real else shape_only,
                        call,
                        self.places.of(name, number),
                    )
                    for number, call in enumerate(calls)
                ]
                for name, calls in self.outputs.items()
            },
            autocast=self.autocast,
        )

    def some(self, rows: Tensor) -> Stream:
        """The same stream for some of its examples."""
        batch = len(rows)

        def pick(x: Tensor, role: Role) -> Tensor:
            return examples(x, role, rows.to(x.device), self.batch)

        return Stream(
            batch,
            map_roles(pick, self.inputs, self.places.inputs),
            self.places,
            self.entrance,
            map_roles(pick, self.arrived, self.places.arrived),
            {
                name: [
                    map_roles(pick, call, self.places.of(name, number))
                    for number, call in enumerate(calls)
                ]
                for name, calls in self.outputs.items()
            },
            autocast=self.autocast,
        )

    def going_on_in(self, autocast: torch.dtype | None, own: torch.dtype) -> Stream:
        """The same stream for a second half in another precision than its first: layers do not read
        what autocast left in other bits than theirs. The rounding of the first half stays.

        Args:
            autocast: what it computes the second half in.
            own: the network's dtype, which it computes in without autocast.
        """
        if self.autocast in (None, autocast):
            return self
        left, read = (self.autocast, torch.float32), own if autocast is None else torch.float32

        def cast(x: Tensor) -> Tensor:
            return x.to(read) if x.dtype in left else x

        arrived, outputs = map_tensors(cast, (self.arrived, self.outputs))
        return dataclasses.replace(self, arrived=arrived, outputs=outputs, autocast=autocast)

    def readable(self) -> Stream:
        """The same stream outside of inference mode, whose tensors backward cannot keep."""
        if torch.is_inference_mode_enabled():
            return self
        whole = self.inputs, self.arrived, self.outputs
        if not any(x.is_inference() for x in tensors_of(whole)):
            return self

        def ordinary(x: Tensor) -> Tensor:
            return x.clone() if x.is_inference() else x

        inputs, arrived, outputs = map_tensors(ordinary, whole)
        return dataclasses.replace(self, inputs=inputs, arrived=arrived, outputs=outputs)

    def again(self) -> Stream:
        """The same stream for one more pass: a pass fills the key-value cache that it is given."""
        return dataclasses.replace(self, arrived=fresh(self.arrived))


def places_of(one: Stream, other: Stream, kind: Any) -> Places:
    """What two first halves on other numbers of examples show about a kind of pass.

    Raises:
        MixedError: a tensor that is carried follows the batch in no simple way.
    """
    if one.entrance != other.entrance or one.outputs.keys() != other.outputs.keys():
        raise MixedError("other layers run for another number of examples")
    sizes = one.batch, other.batch
    outputs = {}
    for name, calls in one.outputs.items():
        pairs = zip(calls, other.outputs[name], strict=True)
        outputs[name] = [roles_of(a, b, *sizes) for a, b in pairs]
    return Places(
        kind,
        one.places.inputs,
        single=one.batch == 1,
        entrance=one.entrance,
        arrived=roles_of(one.arrived, other.arrived, *sizes),
        outputs=outputs,
    )


def placeholder(
    like: Tensor, role: int, rows: int, batch: int = 1, fill: float = math.nan
) -> Tensor:
    """A tensor of ``like``'s shape but for ``rows`` examples instead of ``batch``, along the axis
    ``role``. It takes no memory: NaN everywhere, or 0 if integer."""
    value = like.new_full((), fill if like.is_floating_point() else 0)
    shape = list(like.shape)
    shape[role] = shape[role] // batch * rows
    return value.expand(shape)


def first(x: Tensor, role: int, batch: int) -> Tensor:
    """The tensor with its examples on the first axis."""
    each = x.shape[role] // batch
    if each == 1:
        return x if role == 0 else x.movedim(role, 0)
    return x.unflatten(role, (batch, each)).movedim(role, 0)


def back(x: Tensor, like: Tensor, role: int, batch: int) -> Tensor:
    """What `first` was given, from what it made of ``like`` or of other examples."""
    each = like.shape[role] // batch
    if each == 1:
        return x if role == 0 else x.movedim(0, role)
    return x.movedim(0, role).flatten(role, role + 1)
