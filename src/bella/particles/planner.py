"""How each kind of pass runs: proven once, decided by what is asked for, remembered by a run.

n passes of one particle are right for every network. Folding the particles into the batch, and
running a shared prefix once, are faster; each is used for a kind of pass (structure of the inputs,
dtypes, mode, flags, which axes have length 1; never other sizes; and what was done to the network
since, see `bella.particles.changes`) once `bella.particles.proof` has
seen it give the same. What is not proven loops, and one warning says why and what it costs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from bella.errors import BellaError
from bella.particles.axis import IdleError, ParticleAxis
from bella.particles.changes import BACKWARD, PASSING, Changes, lasting, with_changes
from bella.particles.evidence import REFUSALS, short
from bella.particles.held import HeldBase
from bella.particles.layer import ParticleLayer
from bella.particles.plan import BEGIN_ANEW, Plan, Plans, describe
from bella.particles.prefix import SharedPrefix, Turns
from bella.particles.proof import Prover
from bella.particles.roles import propose_roles
from bella.particles.stream import Stream
from bella.trees import structure, tensors_of

Proves = TypeVar("Proves", bound=Prover)
Folding = Literal["auto", "never", "always"]
BatchAxes = Mapping[str | int, int | None]
"""By an argument's name or position, the axis of its tensors that carries the batch; ``None`` for
an argument that is the same whatever the batch."""


MIXED = "a batch norm in training mode normalises over the rows of all particles"
TRAINS = "with gradients"
"""Part of the kind of a pass where there are hooks, which may hang others on tensors then."""


class Planner:
    """The plans of one posterior's passes.

    Args:
        network: with its particle layers in place.
        axis: their axis.
        prefix: what may run once for all particles; ``None`` where nothing may.
        turns: held while a proof hooks the network.
        folding: ``auto``, ``never``, or ``always``: fold without the proof.
        batch_axes: for a caller who knows better; see `BatchAxes`.
        by_design: why particles loop whatever is asked, without a warning.
        run_anyway: runs inputs that no proof could run, so that bad ones fail with the network's
            own error.

    Attributes:
        needs_examples: whether a layer has to know which rows are one example's, also where one
            particle runs.
        freezes_norms: whether batch norms belong to a frozen base and keep their statistics, unless
            somebody puts them into training mode by themselves.
        changes: what was done to the network since.

    Raises:
        BellaError: an unknown ``folding``.
    """

    def __init__(
        self,
        network: nn.Module,
        axis: ParticleAxis,
        prefix: SharedPrefix | None,
        turns: Turns,
        *,
        folding: Folding,
        batch_axes: BatchAxes | None,
        by_design: str,
        run_anyway: Callable[[tuple, dict[str, Any]], Any],
    ):
        if folding not in ("auto", "never", "always"):
            raise BellaError(f"folding={folding!r}: choose 'auto', 'never' or 'always'.")
        self.network = network
        self.axis = axis
        self.prefix = prefix
        self.entrances = () if prefix is None else prefix.entrances
        self.turns = turns
        self.folding = folding
        self.batch_axes = {str(key): value for key, value in (batch_axes or {}).items()}
        self.by_design = by_design
        self.run_anyway = run_anyway
        self.needs_examples = False
        self.freezes_norms = False
        self.changes = Changes(network)
        self.held = HeldBase()
        self.plans: dict[Any, Plan] = {}
        self.resumes: dict[Any, Plan] = {}
        self.texts: dict[Any, Plan] = {}  # how answers are written, see `bella.generation.proof`
        self.kept: dict[str, dict[str, Any]] = {}  # plans of an earlier session, by their kind
        self.idle: set[str] = set()

    def kind(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        """What decides how a pass runs."""
        return structure((args, kwargs)), *self.modes()

    def modes(self) -> tuple[Any, ...]:
        """The network's mode, whether its batch norms are in another one, and what was done to it
        since its posterior was made."""
        changes = self.changes.now()
        mixed = self.freezes_norms and any(norm.training for norm in self.changes.norms)
        trains = bool(lasting(changes)) and torch.is_grad_enabled()
        told = [text for text, so in ((MIXED, mixed), (TRAINS, trains)) if so]
        return self.network.training, *told, *changes

    def known(self, *, now: bool = False) -> Plans:
        """All plans so far, or those of the network as it is now, in any mode."""
        plans = self.plans | self.resumes | self.texts
        if now:
            changes = lasting(self.changes.now())
            plans = {kind: plan for kind, plan in plans.items() if lasting(kind) == changes}
        return Plans(other for plan in plans.values() for other in (plan, *plan.others.values()))

    def kinds(self) -> frozenset[str]:
        """The kinds of passes that have a plan, by this session or an earlier one."""
        return frozenset(self.kept) | {repr(kind) for kind in (*self.plans, *self.resumes)}

    def state(self, *, changed: bool = False) -> dict[str, Any]:
        """All plans as JSON values: a run that goes on takes them instead of proving anew.

        Args:
            changed: with those of a network with changes, for processes that run beside this one. A
                later session knows no more of a hook than its name, and proves anew.
        """
        found = {repr(kind): plan for kind, plan in (self.plans | self.resumes).items()}
        plans = self.kept | {kind: plan.to_json() for kind, plan in found.items()}
        if not changed:
            plans = {kind: plan for kind, plan in plans.items() if not PASSING.search(kind)}
        return {"folding": self.folding, "network": self.changes.began_as, "plans": plans}

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
        same = state.get("network", self.changes.began_as) == self.changes.began_as
        self.kept = dict(plans) if same else {}  # of a network with another flag all is proven anew
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
        self.forget()
        self.plans[kind] = plan
        plan.words = describe(args, kwargs, self.network.training) + with_changes(kind)
        return plan

    def forget(self) -> None:
        """Let go of plans for what is gone for good, such as the hook of one step."""
        gone = set(self.changes.gone)
        if not gone:
            return

        def living(plans: dict[Any, Plan]) -> dict[Any, Plan]:
            return {
                kind: plan for kind, plan in plans.items() if gone.isdisjoint((*kind, *kind[0]))
            }

        self.plans, self.resumes = living(self.plans), living(self.resumes)
        self.texts = living(self.texts)
        names = [repr(change) for change in gone]
        self.kept = {k: plan for k, plan in self.kept.items() if not any(n in k for n in names)}
        self.changes.gone -= gone

    def find(self, kind: Any, args: tuple, kwargs: dict[str, Any]) -> Plan:
        """A plan for a kind of pass."""
        batch, candidates = propose_roles(args, kwargs, self.batch_axes)
        if self.by_design or (self.folding == "never" and not self.needs_examples):
            return Plan("looped", self.by_design or "folding='never'")
        if MIXED in self.modes():
            return self.decide(Plan("looped", MIXED))
        hung = False
        with self.turns, self.changes.its_own_doing():
            try:
                prover = self.prover(Prover)
                plan = prover.prove(args, kwargs, kind, batch, candidates)
                hung = prover.hung
            except (torch.OutOfMemoryError, IdleError):
                raise
            except REFUSALS as error:
                # Bad inputs fail in the looped passes as well, with the network's own error, and
                # then no plan is kept.
                self.run_anyway(args, kwargs)
                plan = Plan("looped", short(error))
        return self.decide(self.heed_gradients(plan, hung))

    def heed_gradients(self, plan: Plan, hung: bool) -> Plan:
        """Loop where a hook meets gradients: the proof sees none, and in one pass the hook would
        meet those of all particles' rows.

        Args:
            plan: without them.
            hung: whether some change hangs hooks on tensors.
        """
        changes = self.changes.now()
        hooks = [change for change in changes if hung or change.what == BACKWARD]
        if hooks and (plan.folds or plan.shares or plan.from_inputs):
            what = "a hook on a tensor" if hung else hooks[0]
            plan.why = plan.why or f"{what} meets gradients, of which the proof sees none"
            places = plan.places if plan.shares else None
            once = places is not None and not any(hook.touches(places) for hook in hooks)
            plan.how, plan.from_inputs = "shared, looped" if once else "looped", False
        return plan

    def prover(self, sort: type[Proves]) -> Proves:
        """One of this sort, for the network as it is now."""
        made = sort(self.network, self.axis, self.prefix, self.turns, self.tell_idle)
        made.held = self.held
        made.listens = TRAINS in self.modes()
        return made

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
                f"{' or '.join(self.entrances)} ({plan.not_shared}). "
                "Pass shared_prefix=False to accept this, or name a module to open it at.",
                stacklevel=6,
            )
        return plan

    def plan_resuming(self, stream: Stream) -> Plan:
        """How the second half from a stream runs."""
        modes = self.modes()
        kind = (stream.places.kind, stream.entrance, min(stream.batch, 2), *modes)
        known = self.resumes.get(kind)
        if known is not None:
            return known
        plan = self.remembered(kind, stream.places.kind)
        if plan is not None:
            self.resumes[kind] = plan
            return plan
        made = self.plans.get((stream.places.kind[0], *modes))
        same = made is not None and made.places is stream.places
        if made is not None and same and (stream.batch == 1) == stream.places.single:
            return made
        if self.prefix is None:
            raise BellaError("This posterior opens its particle axis at the inputs: no prefix.")
        if self.folding == "never" and not self.needs_examples:
            plan = Plan("shared, looped", "folding='never'", places=stream.places)
        elif MIXED in modes:
            plan = self.decide(Plan("shared, looped", MIXED, places=stream.places))
        else:
            hung = False
            with self.turns, self.changes.its_own_doing():
                try:
                    prover = self.prover(Prover)
                    plan = prover.prove_resuming(stream)
                    hung = prover.hung
                except (torch.OutOfMemoryError, IdleError):
                    raise
                except REFUSALS as error:
                    plan = Plan("shared, looped", short(error), places=stream.places)
            if self.axis.particles > 1:
                plan = self.decide(self.heed_gradients(plan, hung))
        plan.words = f"{'training' if self.network.training else 'evaluation'}, from a prefix"
        plan.words += with_changes(kind)
        self.forget()
        self.resumes[kind] = plan
        return plan

    def check_stream(self, stream: Stream) -> None:
        """Refuse a stream that a changed prefix would not make again.

        Raises:
            BellaError: it would not.
        """
        if torch.compiler.is_compiling():
            return
        for change in sorted(lasting(stream.places.kind) ^ lasting(self.changes.now()), key=str):
            if change.touches(stream.places):
                raise BellaError(
                    f"What the particles share was computed before it changed ({change}): run the "
                    "prefix again (posterior.prefix), or keep none (cache_prefix=False)."
                )

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
