"""The proof that a kind of pass may be folded, or may share its prefix.

n passes of one particle are the truth: with one particle running every row is that particle's. A
faster way is used only where it was seen to give the same, for a few examples, with particles that
differ in every factor (their own start alike and would prove nothing), without chance, and on other
placeholders. Of the other way's rows

- those of a particle equal that particle's own pass within rounding, and
- changing one particle leaves the others' bit for bit as they were.

It takes at most eight passes of up to three examples (one more where hooks hang), uses up no random
number and leaves buffers as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bella.errors import BellaError
from bella.particles.axis import ParticleAxis, Pass
from bella.particles.changes import comes_from
from bella.particles.copies import Copies
from bella.particles.evidence import (
    REFUSALS,
    Seen,
    clean,
    independent,
    layers_of,
    not_foldable,
    telling,
)
from bella.particles.held import HeldBase
from bella.particles.layer import ParticleLayer
from bella.particles.plan import Plan
from bella.particles.prefix import SharedPrefix, Turns
from bella.particles.roles import (
    Layer,
    MixedError,
    Role,
    differ,
    examples,
    map_roles,
    with_roles,
)
from bella.particles.sober import Sober, TensorHooks, Watch, seed_all, undisturbed
from bella.particles.stream import Places, Stream, others_now, places_of
from bella.particles.verdict import compare, compare_alone
from bella.trees import fresh, map_tensors, tensors_of

PAST = 2
"""Modules of the prefix that are tried, the likelier first, as what goes past the entrance."""

FEW, FEWER = 3, 2
"""Examples of the two calls that show which tensors follow the batch."""


class Prover:
    """Proves kinds of passes of one posterior.

    Args:
        network: with its particle layers in place.
        axis: their axis.
        prefix: what may run once for all particles; ``None`` where nothing may.
        turns: held while the network is hooked.
        tell_idle: told the layers that did not run, and refuses if none did.
    """

    def __init__(
        self,
        network: nn.Module,
        axis: ParticleAxis,
        prefix: SharedPrefix | None,
        turns: Turns,
        tell_idle: Callable[[list[str]], None],
    ):
        self.network, self.axis = network, axis
        self.prefix, self.turns, self.tell_idle = prefix, turns, tell_idle
        self.layers: dict[str, ParticleLayer] = {
            name: module
            for name, module in self.network.named_modules()
            if isinstance(module, ParticleLayer)
        }
        generator = torch.Generator().manual_seed(20_201)
        self.values: dict[int, Tensor] = {}
        for layer in self.layers.values():
            self.values |= layer.distinct(3, generator)
        self.fold = self.axis.particles > 1
        self.in_place = False  # whether the network changed its inputs
        self.listens = False  # whether it is asked for hooks on tensors
        self.hung = False  # whether a pass hangs any
        self.held = HeldBase()  # a base in fewer bits is proven with all of them

    # ------------------------------------------------------------ whole proofs

    def prove(
        self,
        args: tuple,
        kwargs: dict[str, Any],
        kind: Any,
        batch: int,
        candidates: Sequence[tuple[Role, ...]],
    ) -> Plan:
        """How passes like this one may run.

        Args:
            args: inputs by position.
            kwargs: inputs by name.
            kind: of the pass.
            batch: number of examples.
            candidates: which inputs may carry them, the likelier first.

        Raises:
            Exception: what the network raises on a few of these examples.
        """
        few = min(batch, FEW)
        fewer = FEWER if few == FEW else few + 1
        inputs = map_tensors(clean, (args, kwargs))
        chosen = telling(inputs, candidates[0], batch, few)
        # The same examples and one of them again: whatever the data decide, they decide alike.
        rows = [chosen[torch.arange(count) % few] for count in (few, fewer, few + 1)]

        def take(roles: Sequence[Role], which: int) -> tuple[tuple, dict[str, Any]]:
            return map_roles(
                lambda x, role: examples(x, role, rows[which].to(x.device), batch), inputs, roles
            )

        with self.without_chance():
            why = ""
            failed: Exception = BellaError("no argument carries the batch")
            for roles in candidates:
                try:
                    first = self.see(partial(self.single, *take(roles, 0), few, 0))
                    second = self.see(partial(self.single, *take(roles, 1), fewer, 0))
                    outputs = independent(first, second, few, fewer)
                    break
                except MixedError as mixed:
                    why = why or str(mixed)
                except torch.OutOfMemoryError:
                    raise
                except REFUSALS as error:
                    failed = error
            else:
                if not why:
                    raise failed
                return Plan("looped", why)
            layers = layers_of(self.layers, first, second, few, fewer)
            plan = Plan("looped", "", inputs=roles, outputs=outputs, layers=layers)
            plan.in_place = self.in_place
            self.notice_idle(first)
            some = take(roles, 0)
            self.look_for_hooks(lambda: self.single(*some, few, 0))
            other = self.see(lambda: self.single(*some, few, 1)) if self.fold else first
            plan.why = not_foldable(layers, first, other)
            if self.prefix is not None:
                self.prove_sharing(plan, some, take(roles, 2), (few, few + 1), kind, first, other)
            if self.fold and not plan.why:
                truths = first.outputs, other.outputs
                tried = compare(
                    lambda which, fill: self.folded(*some, few, plan, which),
                    truths,
                    outputs,
                    twice=not plan.folds,
                )
                plan.from_inputs = not tried
                if not plan.folds and not plan.shares:
                    plan.how, plan.why = ("looped", tried) if tried else ("folded", "")
            return plan

    def prove_sharing(
        self,
        plan: Plan,
        some: tuple[tuple, dict],
        more: tuple[tuple, dict],
        counts: tuple[int, int],
        kind: Any,
        first: Seen,
        other: Seen,
    ) -> None:
        """Whether what comes before the entrance may run once; notes it in the plan."""
        prefix = self.prefix
        assert prefix is not None
        try:
            raw, streams = Places(kind, plan.inputs), []
            for inputs, count in zip((some, more), counts, strict=True):
                seed_all()
                thrown = others_now()
                with Sober():
                    streams.append(prefix.run(*inputs, count, raw))
            places = places_of(streams[0], streams[1], kind)
            places.draws_others = thrown != others_now()
            stream = replace(streams[0], places=places)
            plan.sort = stream.sort
        except torch.OutOfMemoryError:
            raise
        except REFUSALS as error:
            plan.not_shared = str(error)
            return
        truths = first.outputs, other.outputs
        tried = plan.why
        past = ("", *may_go_past(stream, first.outputs))
        for places.real in past if self.fold and not plan.why else ():
            found = compare(
                lambda which, fill: prefix.resume(
                    stream.again(), self.one(counts[0], (0, 1), which, plan.layers), fill
                ),
                truths,
                plan.outputs,
                held=True,
            )
            if not found:
                plan.how, plan.places = "shared", places
                return
            tried = tried or found
        for places.real in past:
            alone = compare_alone(
                lambda: prefix.resume(
                    stream.again(), self.one(counts[0], (int(self.fold),), (int(self.fold),))
                ),
                other.outputs,
            )
            if not alone:
                plan.how, plan.places, plan.why = "shared, looped", places, tried
                return
            plan.not_shared = plan.not_shared or tried or alone

    def prove_resuming(self, stream: Stream) -> Plan:
        """How second halves from a stream like this one may run, whoever made the stream."""
        prefix = self.prefix
        assert prefix is not None
        few = min(stream.batch, FEW)
        fewer = FEWER if few == FEW else few + 1
        cleaned = replace(stream, arrived=map_tensors(clean, stream.arrived), dice=None)
        some, less = (cleaned.some(torch.arange(count) % stream.batch) for count in (few, fewer))

        def single(part: Stream, variant: int) -> Any:
            return prefix.resume(part.again(), self.one(part.batch, (variant,), (variant,)))

        plan = Plan("shared, looped", places=stream.places)
        with self.without_chance():
            try:
                first = self.see(lambda: single(some, 0))
                second = self.see(lambda: single(less, 0))
                plan.outputs = independent(first, second, few, fewer)
                plan.layers = layers_of(self.layers, first, second, few, fewer)
            except MixedError as mixed:
                plan.why = str(mixed)
                return plan
            self.notice_idle(first)
            if not self.fold:
                return plan
            self.look_for_hooks(lambda: single(some, 0))
            other = self.see(lambda: single(some, 1))
            plan.why = not_foldable(plan.layers, first, other) or compare(
                lambda which, fill: prefix.resume(
                    some.again(), self.one(few, (0, 1), which, plan.layers), fill
                ),
                (first.outputs, other.outputs),
                plan.outputs,
                held=True,
            )
            if not plan.why:
                plan.how = "shared"
        return plan

    # ------------------------------------------------------------ its passes

    def one(
        self,
        batch: int,
        chosen: tuple[int, ...],
        variants: tuple[int, ...],
        layers: dict[str, Layer] | None = None,
        is_open: bool = False,
    ) -> Pass:
        """A pass of particles with values of the proof's own."""
        chosen = tuple(i if i < self.axis.particles else 0 for i in chosen)
        return Pass(
            chosen, batch, is_open=is_open, layers=layers, values=self.values, variants=variants
        )

    def single(self, args: tuple, kwargs: dict, batch: int, variant: int) -> Any:
        """The network of one particle."""
        args, kwargs = fresh(map_tensors(torch.clone, (args, kwargs)))
        before = versions((args, kwargs))
        with self.axis.run(self.one(batch, (variant,), (variant,), is_open=True)):
            outputs = self.network(*args, **kwargs)
        self.in_place |= None in before or versions((args, kwargs)) != before
        return outputs

    def folded(
        self, args: tuple, kwargs: dict, batch: int, plan: Plan, which: tuple[int, ...]
    ) -> Any:
        """Two particles in one pass from the inputs on."""
        one = self.one(batch, (0, 1), which, plan.layers, is_open=True)
        with self.axis.run(one):
            args, kwargs = map_roles(
                lambda x, role: x.clone() if role is None else self.axis.repeat(x, role),
                (args, kwargs),
                plan.inputs,
            )
            args, kwargs = fresh((args, kwargs))
            return self.network(*args, **kwargs)

    def see(self, run: Callable[[], Any]) -> Seen:
        """Run one particle, and note what its layers meet."""
        seen = Seen()
        frames: list[bool] = []  # of the modules that run now: whether data decided something there

        def told() -> None:
            if frames:
                frames[-1] = True

        watch = Watch(told)

        def before(module: nn.Module, args: tuple) -> None:
            frames.append(False)

        def after(module: nn.Module, args: tuple, output: Any) -> None:
            frames.pop()

        def met(name: str) -> Any:
            def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
                tensors = tensors_of((args, kwargs)), tensors_of(output)
                seen.calls.setdefault(name, []).append(tensors)
                watch.touch(output)
                if any(frames[:-1]):
                    seen.dependent.add(name)

            return hook

        with ExitStack() as hooks:
            for module in self.network.modules():
                hooks.callback(module.register_forward_pre_hook(before).remove)
            for name, layer in self.layers.items():
                hooks.callback(layer.register_forward_hook(met(name), with_kwargs=True).remove)
            for module in self.network.modules():
                hooks.callback(module.register_forward_hook(after).remove)
            seed_all()
            with watch:
                seen.outputs = run()
        return seen

    def look_for_hooks(self, run: Callable[[], Any]) -> None:
        """Note whether a pass that trains hangs hooks on tensors: they meet gradients, of which
        nothing else here is seen."""
        if not (self.listens and self.fold):
            return

        def told(hook: Any) -> None:
            # Those of torch's own, as of a sharded base, gather weights and leave gradients alone.
            self.hung |= not comes_from(hook, "torch.", "bella.")

        for value in self.values.values():
            value.requires_grad_()
        try:
            seed_all()
            with Sober(), TensorHooks(told):
                run()
        except torch.OutOfMemoryError:
            raise
        except REFUSALS:
            pass  # what is wrong with it was told of without gradients, or will be with them
        finally:
            for value in self.values.values():
                value.requires_grad_(False)

    @contextmanager
    def without_chance(self) -> Iterator[None]:
        """Nothing is left of what runs inside: no random number, no buffer, nothing heard."""
        norms = [
            module
            for module in self.network.modules()
            if module.training
            and (
                isinstance(module, nn.modules.batchnorm._BatchNorm)
                or (isinstance(module, Copies) and module.normalises)
            )
        ]
        device = next(iter(self.network.parameters()), torch.empty(0)).device.type
        with ExitStack() as stack:
            stack.enter_context(self.turns)
            stack.enter_context(self.held.whole())
            dtypes = {p.dtype for p in self.network.parameters() if p.is_floating_point()}
            if dtypes == {torch.float32}:  # what a row means does not depend on how it is rounded
                stack.enter_context(torch.autocast(device, enabled=False))
            stack.enter_context(undisturbed(self.network))
            for layer in self.layers.values():
                if getattr(layer, "listener", None) is not None:
                    stack.callback(setattr, layer, "listener", layer.listener)
                    layer.listener = None  # type: ignore[assignment]
            # What a training batch norm mixes, it mixes on purpose: over all that runs.
            for norm in norms:
                norm.training = False
                stack.callback(setattr, norm, "training", True)
            yield

    def notice_idle(self, seen: Seen) -> None:
        """Tell the layers that did not run.

        Raises:
            BellaError: none did.
        """
        self.tell_idle(sorted(set(self.layers) - seen.calls.keys()))


def may_go_past(stream: Stream, outputs: Any) -> list[str]:
    """Modules of the prefix of which something may be seen after the entrance: first those that
    made something that the network returns, wherever they stand in it, then the last."""
    places, returned = stream.places, [x.flatten() for x in tensors_of(outputs)]

    def follows(name: str) -> list[Tensor]:
        calls = enumerate(stream.outputs[name])
        found = [pair for i, call in calls for pair in with_roles(call, places.of(name, i))]
        return [x.flatten() for x, role in found if role is not None and x.is_floating_point()]

    def is_returned(name: str) -> bool:
        return any(
            x.shape == y.shape and x.dtype == y.dtype and not differ(x, y)
            for x in follows(name)
            for y in returned
        )

    found = [name for name in reversed(stream.outputs) if follows(name)]
    return sorted(found, key=lambda name: not is_returned(name))[:PAST]


def versions(inputs: Any) -> list[int | None]:
    """How often each tensor was changed in place; ``None`` where torch does not count."""
    return [None if x.is_inference() else x._version for x in tensors_of(inputs)]
