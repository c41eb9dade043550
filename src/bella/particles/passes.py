"""How a posterior's passes run: one particle after another, or all at once where that is proven.

n passes of one particle are right for every network. Folding the particles into the batch, and
running a shared prefix once, are faster; each is used for a kind of pass (structure of the inputs,
dtypes, mode, flags, which axes have length 1; never other sizes) once `bella.particles.proof` has
seen it give the same. What is not proven loops, and one warning says why and what it costs.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bella.errors import BellaError
from bella.particles.axis import IdleError, ParticleAxis, Pass, UnprovenError
from bella.particles.layer import ParticleLayer
from bella.particles.plan import BEGIN_ANEW, Plan, Plans, describe
from bella.particles.prefix import SharedPrefix, Turns
from bella.particles.proof import REFUSALS, Prover, short
from bella.particles.roles import MixedError, Role, examples, map_roles, with_roles
from bella.particles.stream import Stream
from bella.trees import (
    PLAIN,
    fresh,
    holds_tensors,
    leaves_of,
    map_leaves,
    map_tensors,
    structure,
    tensors_of,
)

Folding = Literal["auto", "never", "always"]
BatchAxes = Mapping[str | int, int | None]
"""By an argument's name or position, the axis of its tensors that carries the batch; ``None`` for
an argument that is the same whatever the batch."""


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
        if folding not in ("auto", "never", "always"):
            raise BellaError(f"folding={folding!r}: choose 'auto', 'never' or 'always'.")
        self.network = network
        self.axis = axis
        self.turns = Turns()
        self.entrances = entrances
        self.prefix = SharedPrefix(network, axis, entrances, self.turns) if share else None
        self.folding = folding
        self.batch_axes = {str(key): value for key, value in (batch_axes or {}).items()}
        self.by_design = by_design
        self.needs_examples = False
        self.plans: dict[Any, Plan] = {}
        self.resumes: dict[Any, Plan] = {}
        self.texts: dict[Any, Plan] = {}  # how answers are written, see `bella.generation.proof`
        self.kept: dict[str, dict[str, Any]] = {}  # plans of an earlier session, by their kind
        self.not_shared = ""
        self.idle: set[str] = set()

    # ------------------------------------------------------------ plans

    def kind(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        """What decides how a pass runs."""
        return structure((args, kwargs)), self.network.training

    def known(self) -> Plans:
        """All plans so far."""
        plans = (*self.plans.values(), *self.resumes.values(), *self.texts.values())
        return Plans(other for plan in plans for other in (plan, *plan.others.values()))

    def state(self) -> dict[str, Any]:
        """All plans as JSON values: a run that goes on takes them instead of proving anew."""
        plans = {repr(kind): plan for kind, plan in (self.plans | self.resumes).items()}
        return {
            "folding": self.folding,
            "plans": self.kept | {kind: plan.to_json() for kind, plan in plans.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Run as the session that `state` was taken in.

        Raises:
            BellaError: it ran with another ``folding``, or is damaged.
        """
        folding, plans = state.get("folding"), state.get("plans")
        if folding not in ("auto", "never", "always") or not isinstance(plans, dict):
            raise BellaError(f"The plans of passes are damaged: {BEGIN_ANEW}.")
        if folding != self.folding:
            raise BellaError(
                f"The run was begun with folding={folding!r} and this posterior has "
                f"folding={self.folding!r}: make it with the same."
            )
        modules = {name for name, _ in self.network.named_modules()}
        for kept in plans.values():
            Plan.from_json(kept, None).check_names(modules, {*self.entrances, ""})
        self.kept = dict(plans)
        self.plans, self.resumes = {}, {}

    def remembered(self, kind: Any, places_kind: Any) -> Plan | None:
        """The plan of an earlier session for a kind of pass."""
        kept = self.kept.get(repr(kind))
        return None if kept is None else Plan.from_json(kept, places_kind)

    def plan(self, args: tuple, kwargs: dict[str, Any]) -> Plan:
        """How such a pass runs; proven first where that is not known yet.

        Raises:
            BellaError: no layer with particles ran.
        """
        kind = self.kind(args, kwargs)
        known = self.plans.get(kind)
        return self.prove(kind, args, kwargs) if known is None else known

    @torch.compiler.disable(
        reason="call posterior.prove(inputs) before compiling with fullgraph=True"
    )
    def prove(self, kind: Any, args: tuple, kwargs: dict[str, Any]) -> Plan:
        """Prove a kind of pass, or remember what was proven, and keep the plan."""
        plan = self.remembered(kind, kind)
        if plan is None:
            plan = self.find(kind, args, kwargs)
        else:
            plan.check_inputs([x.dim() for x in tensors_of((args, kwargs))])
        self.plans[kind] = plan
        plan.words = describe(args, kwargs, self.network.training)
        return plan

    def find(self, kind: Any, args: tuple, kwargs: dict[str, Any]) -> Plan:
        """A plan for a kind of pass."""
        if self.by_design or (self.folding == "never" and not self.needs_examples):
            return Plan("looped", self.by_design or "folding='never'")
        self.candidates(args, kwargs)  # refuses inputs without examples
        with self.turns:
            try:
                plan = Prover(self).prove(args, kwargs, kind)
            except (torch.OutOfMemoryError, IdleError):
                raise
            except REFUSALS as error:
                # Bad inputs fail in the looped passes as well, with the network's own error, and
                # then no plan is kept.
                self.loop(Plan("looped"), args, kwargs, keep=False)
                plan = Plan("looped", short(error))
        return self.decide(plan)

    def decide(self, plan: Plan) -> Plan:
        """What is done with what was found; tells what it costs.

        Raises:
            BellaError: ``folding="always"`` where the rows of particles cannot be found.
        """
        if self.folding == "never":
            plan.how, plan.why = "looped", "folding='never'"
            return plan
        if self.folding == "always" and not plan.folds:
            if not plan.layers or not plan.outputs:
                raise BellaError(
                    f"folding='always' cannot fold these inputs ({plan.why}): choose 'auto', or "
                    "say in batch_axes which arguments carry the batch."
                )
            plan.how, plan.from_inputs = "folded", True
            return plan
        if self.axis.particles == 1:
            return plan
        if not plan.folds:
            places = f" from {plan.entrance} on" if plan.shares else ""
            warnings.warn(
                f"The particles of this {type(self.network).__name__} run one after another"
                f"{places}, because {plan.why}. All outputs are right, at the price of "
                f"{self.axis.particles} passes instead of one; posterior.plan() lists what runs "
                "how, and folding='never' accepts it.",
                stacklevel=6,
            )
        elif self.prefix is not None and not plan.shares:
            warnings.warn(
                f"Nothing is shared between the particles: the axis cannot open at "
                f"{' or '.join(self.entrances)} ({self.not_shared}). "
                "Pass shared_prefix=False to accept this, or name a module to open it at.",
                stacklevel=6,
            )
        return plan

    def plan_resuming(self, stream: Stream) -> Plan:
        """How the second half from a stream runs."""
        kind = (
            stream.places.kind,
            stream.entrance,
            min(stream.batch, 2),
            self.network.training,
        )
        known = self.resumes.get(kind)
        if known is not None:
            return known
        plan = self.remembered(kind, stream.places.kind)
        if plan is not None:
            self.resumes[kind] = plan
            return plan
        made = self.plans.get((stream.places.kind[0], self.network.training))
        same = made is not None and made.places is stream.places
        if made is not None and same and (stream.batch == 1) == stream.places.single:
            return made
        if self.prefix is None:
            raise BellaError("This posterior opens its particle axis at the inputs: no prefix.")
        if self.folding == "never" and not self.needs_examples:
            plan = Plan("shared, looped", "folding='never'", places=stream.places)
        else:
            with self.turns:
                try:
                    plan = Prover(self).prove_resuming(stream)
                except (torch.OutOfMemoryError, IdleError):
                    raise
                except REFUSALS as error:
                    plan = Plan("shared, looped", short(error), places=stream.places)
            if self.axis.particles > 1:
                plan = self.decide(plan)
        plan.words = f"{'training' if self.network.training else 'evaluation'}, from a prefix"
        self.resumes[kind] = plan
        return plan

    def candidates(self, args: tuple, kwargs: dict[str, Any]) -> tuple[int, list[tuple[Role, ...]]]:
        """The number of examples, and which tensors may carry them: what shapes propose.

        The first tensor does, along its first axis. Others of the same length may, or may not.

        Raises:
            BellaError: there is no such tensor, or the batch is empty.
        """
        tensors: list[Tensor] = []
        told: list[Any] = []  # the axis, None, or "?" where nobody says
        for name, value in [*((str(i), x) for i, x in enumerate(args)), *kwargs.items()]:
            for x in tensors_of(value):
                tensors.append(x)
                told.append(self.batch_axes.get(name, "?"))
        leading = next((i for i, x in enumerate(tensors) if x.dim() and told[i] is not None), None)
        if leading is None:
            raise BellaError("A posterior needs at least one tensor whose first axis is the batch.")
        axis = 0 if told[leading] == "?" else told[leading]
        for x, role in zip(tensors, told, strict=True):
            if role not in ("?", None) and not 0 <= role < x.dim():
                raise BellaError(
                    f"batch_axes names axis {role} of a tensor of shape {tuple(x.shape)}: count "
                    "its axes from 0, or give None for one that is the same for any batch."
                )
        batch = tensors[leading].shape[axis]
        if not batch:
            raise BellaError("The batch is empty: give at least one example.")

        def proposed(others: bool) -> tuple[Role, ...]:
            roles = []
            for number, (x, role) in enumerate(zip(tensors, told, strict=True)):
                same = x.dim() > 0 and x.shape[0] == batch and (others or number == leading)
                roles.append((0 if same else None) if role == "?" else role)
            return tuple(roles)

        return batch, list(dict.fromkeys([proposed(True), proposed(False)]))

    def tell_idle(self, idle: list[str]) -> None:
        """Warn of particle layers that did not run.

        Raises:
            BellaError: none did.
        """
        fresh = set(idle) - self.idle
        if not fresh:
            return
        said = (
            f"Layers with particles that did not run: {', '.join(idle)}. Does the network read "
            "their weight without calling them? Then their particles make no difference."
        )
        layers = [m for m in self.network.modules() if isinstance(m, ParticleLayer)]
        if len(idle) == len(layers):
            raise IdleError(said)
        self.idle |= fresh
        warnings.warn(said, stacklevel=8)

    # ------------------------------------------------------------ passes

    def call(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Outputs of the chosen particles, (particles, batch, ...)."""
        if args and isinstance(args[0], Stream):
            return self.resume(args[0])
        refuse_caches((args, kwargs))
        if torch.compiler.is_compiling():
            plan = self.plan(args, kwargs)
            if plan.from_inputs and len(self.axis.asked) > 1:
                return self.folded(plan, args, kwargs)
            return self.loop(plan, args, kwargs)
        if self.axis.particles == 1 and not self.needs_examples:
            self.candidates(args, kwargs)  # refuses inputs without examples
            return self.loop(Plan("looped"), args, kwargs)
        plan = self.plan(args, kwargs)
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
            self.withdraw(plan, error)
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
        plan = self.plan(*own[0])
        if width > 1 and plan.from_inputs and all(role == 0 for role in plan.inputs):
            flat = map_tensors(lambda x: x.flatten(0, 1), (args, kwargs))
            try:
                return self.folded(plan, *flat, repeated=True)
            except (UnprovenError, MixedError) as error:
                self.withdraw(plan, error)
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
            other = self.find(plan.places.kind, args, kwargs)
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
        plan = self.plan(args, kwargs)
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
        needed = len(chosen) > 1 or self.needs_examples
        if plan is None:
            plan = self.plan_resuming(stream) if needed else Plan("shared, looped")
        prefix = self.prefix
        if prefix is None:
            raise BellaError("This posterior opens its particle axis at the inputs: no prefix.")
        if len(chosen) > 1 and plan.how == "shared":
            try:
                one = self.one(chosen, stream.batch, plan, False)
                return unfold(prefix.resume(stream.again(), one), plan.outputs, len(chosen))
            except (UnprovenError, MixedError) as error:
                self.withdraw(plan, error)
        return stack(
            [
                prefix.resume(stream.again(), self.one((i,), stream.batch, plan, False))
                for i in chosen
            ]
        )

    def loop(
        self,
        plan: Plan,
        args: tuple,
        kwargs: dict[str, Any],
        *,
        own: list[Any] | None = None,
        keep: bool = True,
    ) -> Any:
        """One particle after another: right for every network."""
        chosen = self.axis.asked
        batch = 1
        if plan.inputs:
            batch = self.batch(plan, *((args, kwargs) if own is None else own[0]))
        outputs = []
        for row, particle in enumerate(chosen):
            mine = fresh((args, kwargs) if own is None else own[row])
            if plan.in_place:
                mine = map_tensors(torch.clone, mine)
            with self.axis.run(self.one((particle,), batch, plan, True)):
                said = self.network(*mine[0], **mine[1])
            outputs.append(said)
        return stack(outputs) if keep else None

    def withdraw(self, plan: Plan, error: Exception) -> None:
        """A pass met what its proof had not: from now on its kind loops.

        Raises:
            BellaError: it was to be folded without a proof.
        """
        if self.folding == "always":
            raise BellaError(
                f"folding='always' cannot fold this pass ({short(error)}): choose 'auto'."
            ) from error
        plan.how, plan.why, plan.from_inputs = "looped", short(error), False
        self.decide(plan)


def _row(x: Tensor, row: int) -> Tensor:
    return x[row]


def unfold(outputs: Any, roles: tuple[Role, ...], width: int) -> Any:
    """Give every tensor of folded outputs its particle axis: (particles, batch, ...).

    Raises:
        MixedError: the outputs are not what the proof met.
    """
    rest = iter(roles)

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return plain(leaf)
        role = next(rest, -1)
        if role is None:
            return leaf.expand(width, *leaf.shape)
        if role < 0 or leaf.dim() <= role or leaf.shape[role] % width:
            raise MixedError(f"an output of shape {tuple(leaf.shape)} does not carry the particles")
        split = leaf.unflatten(role, (width, leaf.shape[role] // width))
        return split if role == 0 else split.movedim(role, 0)

    unfolded = map_leaves(one, outputs)
    if next(rest, rest) is not rest:
        raise MixedError("there are fewer outputs than in the proof")
    return unfolded


def stack(outputs: list[Any]) -> Any:
    """The outputs of several particles as one tree, its tensors (particles, ...).

    Raises:
        BellaError: they differ in kind or shape.
    """
    if len(outputs) == 1:
        return map_leaves(
            lambda x: x.unsqueeze(0) if isinstance(x, Tensor) else plain(x), outputs[0]
        )
    columns = [leaves_of(output) for output in outputs]
    joined = []
    for column in zip(*columns, strict=False):
        shapes = {x.shape if isinstance(x, Tensor) else type(x) for x in column}
        if len(shapes) > 1 or len({len(c) for c in columns}) > 1:
            raise BellaError(
                "The particles' outputs have different shapes or kinds, so they cannot be stacked: "
                f"{', '.join(str(shape) for shape in shapes)}. Call posterior.particle(i) for each."
            )
        tensor = isinstance(column[0], Tensor)
        joined.append(torch.stack(column) if tensor else plain(column[0]))
    rest = iter(joined)
    return map_leaves(lambda _: next(rest), outputs[0])


def plain(leaf: Any) -> Any:
    """An output that is no tensor: a plain value as it is, and nothing in place of an object.

    A key-value cache has rows of its own making; nobody could tell them apart by particle.
    """
    return leaf if isinstance(leaf, PLAIN) else None


def refuse_caches(inputs: Any) -> None:
    """Refuse objects that hold tensors of an earlier pass.

    Raises:
        BellaError: there is one.
    """
    for leaf in leaves_of(inputs):
        if not isinstance(leaf, (Tensor, *PLAIN)) and holds_tensors(leaf):
            raise BellaError(
                f"The inputs hold a {type(leaf).__name__} with tensors inside, such as the "
                "key-value cache of one network; particles have caches of their own: call with the "
                "whole text, and use_cache=False."
            )
