"""The proof that particles may write in one pass, with one cache that holds the rows of all.

As in `bella.particles.proof`: particles that differ in every factor write a few words of a few
prompts, one after another, which is the truth, and in one pass. The words are given, so that nobody
chooses; the logits that they would have chosen by must be the same within rounding at every step,
and a particle's must stay what they were, bit for bit, when another particle changes. The steps
after the first read the cache, so a row of it that belonged to another particle would be seen.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bella.errors import BellaError
from bella.generation.speaker import Speaker, answering
from bella.particles.axis import IdleError
from bella.particles.copies import as_given
from bella.particles.evidence import REFUSALS, independent, layers_of, not_foldable, short
from bella.particles.plan import Plan, describe
from bella.particles.proof import FEW, FEWER, Prover
from bella.particles.roles import MixedError, Role, examples, map_roles, propose_roles, roles_of
from bella.particles.verdict import compare
from bella.trees import structure

STEPS = 3
"""Words of a proof: the first comes from the prompt, the others from the cache."""
FORCED = {"max_new_tokens": STEPS, "do_sample": False, "eos_token_id": None}


@dataclass
class TextPlan(Plan):
    """How particles write: ``folded`` or ``looped``.

    Attributes:
        calls: by the structure of the arguments of a network's call, the roles of its tensors.
    """

    calls: dict[Any, tuple[Role, ...]] = field(default_factory=dict)

    def __str__(self) -> str:
        said = (
            "one particle after another, each with a key-value cache"
            if self.how == "looped"
            else "all particles in one pass, a row of the key-value cache for each"
        )
        return f"{self.words}: {said}" + (f" ({self.why})" if self.why else "")


def plan_of(posterior: Any, inputs: dict[str, Any], each: bool) -> TextPlan:
    """How such prompts are answered; proven first where that is not known yet.

    Args:
        posterior: in evaluation mode.
        inputs: of its network, by name.
        each: whether each particle writes an answer of its own.
    """
    planner = posterior.passes.planner
    mask = inputs.get("attention_mask")
    padded = mask is not None and not bool(mask.all())  # without padding generate drops the mask
    kind = (structure(inputs), each, padded, *planner.modes())
    plan = planner.texts.get(kind)
    if plan is None:
        plan = _find(posterior, inputs, each)
        what = "each its own" if each else "one of all"
        plan.words = f"answers, {what}, {describe((), inputs, False).partition(', ')[2]}"
        planner.texts[kind] = plan
    return plan


def _find(posterior: Any, inputs: dict[str, Any], each: bool) -> TextPlan:
    planner = posterior.passes.planner
    if planner.by_design or (planner.folding == "never" and not planner.needs_examples):
        return TextPlan("looped", planner.by_design or "folding='never'")
    if posterior.particles == 1 and not planner.needs_examples:
        return TextPlan("looped")
    with planner.turns, planner.changes.its_own_doing():
        try:
            batch, candidates = propose_roles((), inputs, planner.batch_axes)
            prover = planner.prover(TextProver)
            plan = prover.prove_text(inputs, each, batch, candidates)
        except (torch.OutOfMemoryError, IdleError):
            raise
        except REFUSALS as error:
            plan = TextPlan("looped", short(error))
    if plan.how == "looped" and posterior.particles > 1:
        if planner.folding == "always":
            raise BellaError(
                f"folding='always' cannot write these answers in one pass ({plan.why}): choose "
                "'auto'."
            )
        name = type(as_given(posterior.network)).__name__
        warnings.warn(
            f"The particles of this {name} write one after another, because {plan.why}. All "
            f"answers are right, at the price of {posterior.particles} passes a token instead of "
            "one; folding='never' accepts it.",
            stacklevel=6,
        )
    return plan


class TextProver(Prover):
    """Proves that particles may write in one pass."""

    def prove_text(
        self,
        inputs: dict[str, Any],
        each: bool,
        batch: int,
        candidates: Sequence[tuple[Role, ...]],
    ) -> TextPlan:
        """How such prompts may be answered.

        Args:
            inputs: of the network, by name.
            each: whether each particle writes an answer of its own.
            batch: number of prompts.
            candidates: which inputs may carry them, the likelier first.

        Raises:
            Exception: what the network raises on a few of these prompts.
        """
        few = min(batch, FEW)
        fewer = FEWER if few == FEW else few + 1
        order = _shortest_first(inputs.get("attention_mask"), batch)[:few]
        why, failed = "", BellaError("no argument carries the prompts")
        with self.without_chance(), torch.no_grad():
            for roles in candidates:
                some = self.take(inputs, roles, order, few, batch)
                less = self.take(inputs, roles, order, fewer, batch)
                met: list[Any] = []
                others: list[Any] = []
                try:
                    first = self.see(partial(self.alone, some, few, 0, met))
                    second = self.see(partial(self.alone, less, fewer, 0, others))
                    outputs = independent(first, second, few, fewer)
                    calls = _roles_of_calls(met, others, few, fewer)
                    break
                except MixedError as mixed:
                    why = why or str(mixed)
                except torch.OutOfMemoryError:
                    raise
                except REFUSALS as error:
                    failed = error  # type: ignore[assignment]
            else:
                if not why:
                    raise failed
                return TextPlan("looped", why)
            layers = layers_of(self.layers, first, second, few, fewer)
            plan = TextPlan("looped", "", inputs=roles, outputs=outputs, layers=layers, calls=calls)
            self.notice_idle(first)
            if not self.fold:
                return plan
            other = self.see(partial(self.alone, some, few, 1, []))
            plan.why = not_foldable(layers, first, other)
            if not plan.why:
                write = self.each_its_own if each else self.together
                plan.why = compare(
                    lambda which, fill: write(some, few, plan, which),
                    (first.outputs, other.outputs),
                    outputs,
                )
            if not plan.why:
                plan.how = "folded"
            return plan

    def take(
        self, inputs: dict[str, Any], roles: Sequence[Role], order: Tensor, count: int, batch: int
    ) -> dict[str, Any]:
        """So many prompts, from the first of an order on, and round it again."""
        rows = order[torch.arange(count) % len(order)]
        return map_roles(lambda x, role: examples(x, role, rows.to(x.device), batch), inputs, roles)

    def alone(self, inputs: dict[str, Any], batch: int, variant: int, met: list[Any]) -> Tensor:
        """What one particle says, and the arguments of the network's calls."""

        def forward(**kwargs: Any) -> Any:
            met.append(kwargs)
            return self.network(**kwargs)

        with self.axis.run(self.one(batch, (variant,), (variant,), is_open=True)):
            return _said(answering(as_given(self.network), forward), inputs)

    def each_its_own(
        self, inputs: dict[str, Any], batch: int, plan: TextPlan, which: tuple[int, ...]
    ) -> Tensor:
        """Two particles in one pass, each with its rows of prompts."""
        with self.axis.run(self.one(batch, (0, 1), which, plan.layers, is_open=True)):
            inputs = map_roles(
                lambda x, role: x if role is None else self.axis.repeat(x, role),
                inputs,
                plan.inputs,
            )
            return _said(answering(as_given(self.network), self.network), inputs)

    def together(
        self, inputs: dict[str, Any], batch: int, plan: TextPlan, which: tuple[int, ...]
    ) -> Tensor:
        """Two particles in one pass, asked for one answer."""
        steps: list[Tensor] = []

        def hear(logits: Tensor) -> Tensor:
            steps.append(logits.flatten(0, 1))
            return logits[0]

        def one(rows: tuple[int, ...], prompts: int) -> Any:
            return self.one(prompts, (0, 1), which, plan.layers, is_open=True)

        _said(Speaker(self.network, self.axis, one, 2, hear, plan.calls).twin(), inputs)
        return torch.stack(steps, 1)


class _Forced:
    """Chooses for everybody, whatever the particles say: the numbers after the last token's."""

    def __init__(self, prompt: Tensor):
        self.prompt = prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.prompt.shape[1]
        words = (self.prompt[:, -1:] + 1 + step) % scores.shape[1]
        return torch.zeros(scores.shape, device=scores.device).scatter_(1, words, 1.0)


def _said(twin: Any, inputs: dict[str, Any]) -> Tensor:
    """The logits by which a network would choose the words that it is made to say, (rows, steps,
    vocabulary)."""
    from transformers import GenerationConfig

    twin.generation_config = GenerationConfig()
    said = twin.generate(
        **inputs,
        **FORCED,
        logits_processor=[_Forced(inputs["input_ids"])],
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(said.logits, 1)


def _roles_of_calls(
    met: Sequence[Any], others: Sequence[Any], few: int, fewer: int
) -> dict[Any, tuple[Role, ...]]:
    """Which tensors of a call carry the prompts, by the structure of the call.

    Raises:
        MixedError: calls of one structure differ in that.
    """
    found: dict[Any, tuple[Role, ...]] = {}
    for one, other in zip(met, others, strict=True):
        roles = roles_of(one, other, few, fewer)
        if found.setdefault(structure(one), roles) != roles:
            raise MixedError("what carries the prompts changes from token to token")
    return found


def _shortest_first(mask: Tensor | None, batch: int) -> Tensor:
    """The prompts' numbers, one with the most padding first: whether there is any decides what the
    network is given."""
    if mask is None or mask.dim() != 2 or len(mask) != batch:
        return torch.arange(batch)
    return mask.sum(1).argsort(stable=True).cpu()
