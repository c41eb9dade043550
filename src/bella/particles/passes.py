"""A posterior's passes: one particle after another, or all at once where `bella.particles.planner`
says that it gives the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bella.errors import BellaError
from bella.particles.axis import ParticleAxis, Pass, UnprovenError
from bella.particles.changes import HUNG
from bella.particles.outputs import stack, unfold
from bella.particles.plan import Plan
from bella.particles.planner import BatchAxes, Folding, Planner
from bella.particles.prefix import SharedPrefix, Turns
from bella.particles.roles import MixedError, examples, map_roles, propose_roles, with_roles
from bella.particles.stream import Stream
from bella.trees import fresh, holds_tensors, is_object, leaves_of, map_tensors, tensors_of


class Passes:
    """Runs a network's particles.

    Args:
        network: with its particle layers in place.
        axis: their axis.
        entrances: modules at which the axis may open.
        share: whether it may open there; otherwise it opens at the inputs.
        folding: ``auto``, ``never``, or ``always``: fold without the proof.
        batch_axes: for a caller who knows better; see `BatchAxes`.
        by_design: why particles loop whatever is asked, without a warning.

    Raises:
        BellaError: an unknown ``folding``.
    """

    def __init__(
        self,
        network: nn.Module,
        axis: ParticleAxis,
        entrances: tuple[str, ...],
        *,
        share: bool,
        folding: Folding = "auto",
        batch_axes: BatchAxes | None = None,
        by_design: str = "",
    ):
        self.network = network
        self.axis = axis
        self.turns = Turns()
        self.prefix = SharedPrefix(network, axis, entrances, self.turns) if share else None
        self.planner = Planner(
            network,
            axis,
            self.prefix,
            self.turns,
            folding=folding,
            batch_axes=batch_axes,
            by_design=by_design,
            run_anyway=self.run_anyway,
        )

    def call(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Outputs of the chosen particles, (particles, batch, ...)."""
        if args and isinstance(args[0], Stream):
            self.planner.check_stream(args[0])
            return self.resume(args[0])
        refuse_caches((args, kwargs))
        if torch.compiler.is_compiling():
            plan = self.planner.plan(args, kwargs)
            if plan.from_inputs and len(self.axis.asked) > 1:
                return self.folded(plan, args, kwargs)
            if any(change.what in HUNG.values() for change in self.planner.changes.now()):
                # Where a hook hangs another on a tensor, what torch compiles of one particle's pass
                # it takes for every particle's.
                return torch.compiler.disable(self.loop)(plan, args, kwargs)
            return self.loop(plan, args, kwargs)
        if self.axis.particles == 1 and not self.planner.needs_examples:
            propose_roles(args, kwargs, self.planner.batch_axes)  # refuses inputs without examples
            return self.loop(Plan("looped"), args, kwargs)
        plan = self.planner.plan(args, kwargs)
        if len(self.axis.asked) == 1:
            return self.loop(plan, args, kwargs)
        try:
            if plan.how == "folded":
                return self.folded(plan, args, kwargs)
            if plan.shares:
                plan, stream = self.first_half(plan, args, kwargs)
                if stream is not None:
                    return self.resume(stream, plan)
        except (UnprovenError, MixedError) as error:
            self.planner.withdraw(plan, error)
        return self.loop(plan, args, kwargs)

    def call_own(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The same where every particle has inputs of its own, (particles, batch, ...).

        Raises:
            BellaError: a tensor does not begin with the running particles.
        """
        width = len(self.axis.asked)
        for x in tensors_of((args, kwargs)):
            if x.dim() < 2 or x.shape[0] != width:
                raise BellaError(
                    f"own_inputs: a tensor of shape {tuple(x.shape)} does not begin with "
                    f"({width} running particles, batch)."
                )
        own = [map_tensors(partial(_row, row=row), (args, kwargs)) for row in range(width)]
        plan = self.planner.plan(*own[0])
        if width > 1 and plan.from_inputs and all(role == 0 for role in plan.inputs):
            flat = map_tensors(lambda x: x.flatten(0, 1), (args, kwargs))
            try:
                return self.folded(plan, *flat, repeated=True)
            except (UnprovenError, MixedError) as error:
                self.planner.withdraw(plan, error)
        return self.loop(plan, args, kwargs, own=own)

    def first_half(
        self, plan: Plan, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[Plan, Stream | None]:
        """Run what all particles share.

        Returns:
            The plan for what arrived at the entrance, and the stream if it shares one.
        """
        assert self.prefix is not None
        assert plan.places is not None
        batch = self.batch(plan, args, kwargs)
        if plan.in_place:
            args, kwargs = map_tensors(torch.clone, (args, kwargs))
        stream = self.prefix.run(args, kwargs, batch, plan.places)
        if stream.sort == plan.sort:
            return plan, stream
        other = plan.others.get(stream.sort)
        if other is None:
            other = self.planner.find(plan.places.kind, args, kwargs)
            if other.sort != stream.sort:
                other = Plan("looped", "what arrives at the entrance was seen in no proof")
                other.inputs = plan.inputs
            other.words = f"{plan.words}, otherwise masked"
            plan.others[stream.sort] = other
        if not other.shares:
            return other, None
        assert other.places is not None
        return other, self.prefix.run(args, kwargs, batch, other.places)

    def batch(self, plan: Plan, args: tuple, kwargs: dict[str, Any]) -> int:
        """Number of examples, by the first tensor that carries them."""
        for x, role in with_roles((args, kwargs), plan.inputs):
            if role is not None:
                if not x.shape[role]:
                    raise BellaError("The batch is empty: give at least one example.")
                return x.shape[role]
        raise BellaError("A posterior needs at least one tensor whose first axis is the batch.")

    def some(
        self, args: tuple, kwargs: dict[str, Any], rows: Tensor
    ) -> tuple[tuple, dict[str, Any]] | None:
        """The inputs of some examples; ``None`` where no proof told examples apart."""
        plan = self.planner.plan(args, kwargs)
        if not plan.inputs:
            return None
        batch = self.batch(plan, args, kwargs)
        return map_roles(
            lambda x, role: examples(x, role, rows.to(x.device), batch), (args, kwargs), plan.inputs
        )

    def one(self, chosen: tuple[int, ...], batch: int, plan: Plan, is_open: bool) -> Pass:
        """A pass of these particles."""
        trains = torch.is_grad_enabled() and self.network.training
        return Pass(chosen, batch, is_open=is_open, layers=plan.layers, trains=trains)

    def folded(
        self, plan: Plan, args: tuple, kwargs: dict[str, Any], *, repeated: bool = False
    ) -> Any:
        """All chosen particles in one pass from the inputs on."""
        axis, chosen = self.axis, self.axis.asked
        batch = self.batch(plan, args, kwargs) // (len(chosen) if repeated else 1)
        with axis.run(self.one(chosen, batch, plan, True)):
            if not repeated:
                args, kwargs = map_roles(
                    lambda x, role: x if role is None else axis.repeat(x, role),
                    (args, kwargs),
                    plan.inputs,
                )
            args, kwargs = fresh((args, kwargs))
            outputs = self.network(*args, **kwargs)
        return unfold(outputs, plan.outputs, len(chosen))

    def resume(self, stream: Stream, plan: Plan | None = None) -> Any:
        """The chosen particles from a stream on."""
        chosen = self.axis.asked
        needed = len(chosen) > 1 or self.planner.needs_examples
        if plan is None:
            plan = self.planner.plan_resuming(stream) if needed else Plan("shared, looped")
        prefix = self.prefix
        if prefix is None:
            raise BellaError("This posterior opens its particle axis at the inputs: no prefix.")
        if len(chosen) > 1 and plan.how == "shared":
            try:
                one = self.one(chosen, stream.batch, plan, False)
                return unfold(prefix.resume(stream.again(), one), plan.outputs, len(chosen))
            except (UnprovenError, MixedError) as error:
                self.planner.withdraw(plan, error)
        return stack(
            [
                prefix.resume(stream.again(), self.one((i,), stream.batch, plan, False))
                for i in chosen
            ]
        )

    def base(self, values: Mapping[int, Tensor], args: tuple, kwargs: dict[str, Any]) -> Any:
        """One pass of one particle with these values in place of its own, from the inputs or from
        a stream on; its outputs as the network makes them."""
        one = Pass((0,), 1, is_open=True, values=values, variants=(0,))
        if args and isinstance(args[0], Stream):
            assert self.prefix is not None
            self.planner.check_stream(args[0])
            one.batch, one.is_open = args[0].batch, False
            return self.prefix.resume(args[0].again(), one)
        with self.axis.run(one):
            args, kwargs = fresh((args, kwargs))
            return self.network(*args, **kwargs)

    def loop(
        self, plan: Plan, args: tuple, kwargs: dict[str, Any], *, own: list[Any] | None = None
    ) -> Any:
        """One particle after another: right for every network."""
        return stack(list(self.one_by_one(plan, args, kwargs, own)))

    def run_anyway(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Run inputs that no proof could run; bad ones fail with the network's own error."""
        for _ in self.one_by_one(Plan("looped"), args, kwargs):
            pass

    def one_by_one(
        self, plan: Plan, args: tuple, kwargs: dict[str, Any], own: list[Any] | None = None
    ) -> Iterator[Any]:
        """What each chosen particle says; ``own`` are the inputs of each, if it has its own."""
        batch = 1
        if plan.inputs:
            batch = self.batch(plan, *((args, kwargs) if own is None else own[0]))
        for row, particle in enumerate(self.axis.asked):
            mine = fresh((args, kwargs) if own is None else own[row])
            if plan.in_place:
                mine = map_tensors(torch.clone, mine)
            with self.axis.run(self.one((particle,), batch, plan, True)):
                outputs = self.network(*mine[0], **mine[1])
            yield outputs


def _row(x: Tensor, row: int) -> Tensor:
    return x[row]


def refuse_caches(inputs: Any) -> None:
    """Refuse objects that hold tensors of an earlier pass.

    Raises:
        BellaError: there is one.
    """
    for leaf in leaves_of(inputs):
        if is_object(leaf) and holds_tensors(leaf):
            raise BellaError(
                f"The inputs hold a {type(leaf).__name__} with tensors inside, such as the "
                "key-value cache of one network; particles have caches of their own: call with the "
                "whole text, and use_cache=False."
            )
