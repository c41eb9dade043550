"""`posterior.generate`: one answer of all particles, or each particle its own.

One answer is written from the averaged next-token distribution mean_i p_i(y_t | y_<t, x). What
chooses from it (greedy, temperature, top-k, top-p, penalties, stop tokens) is transformers' own
`generate`, and of one particle the answer is what transformers gives, token for token.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bella.errors import BellaError
from bella.files import shortened
from bella.generation.answers import Answers, Figures
from bella.generation.proof import TextPlan, plan_of
from bella.generation.score import check_writes, score_tokens
from bella.generation.speaker import Speaker, answering
from bella.generation.texts import (
    check_length,
    check_tokens,
    left_padded,
    prompt_tokens,
    several,
    unpadded,
)
from bella.kernels import fast_float32
from bella.particles.axis import Pass, UnprovenError
from bella.particles.copies import as_given
from bella.particles.passes import refuse_caches
from bella.particles.roles import MixedError, map_roles
from bella.particles.sober import evaluating
from bella.particles.stream import Dice
from bella.particles.strips import few_rows
from bella.trees import map_tensors

COLDEST = 1e-30
"""Of temperatures: scores of any network, divided by it, are numbers of float32."""
OWN = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "streamer")
"""What a caller may write himself; it sees the prompts of one particle, or of all as one."""
REFUSED = {
    "num_beams": "beams of several particles are not defined here",
    "num_return_sequences": "repeat a prompt as often as it is to be answered",
    "assistant_model": "an assistant guesses for one network",
    "prompt_lookup_num_tokens": "guessing ahead is for one network",
    "cache_implementation": "particles have caches of their own, of transformers' dynamic kind",
    "prefill_chunk_size": "a prompt is read in one pass",
    "return_dict_in_generate": "the answers come with their figures",
    "output_scores": "the answers come with their figures",
    "output_logits": "the answers come with their figures",
    "output_attentions": "particles have attentions of their own",
    "output_hidden_states": "particles have states of their own",
    "past_key_values": "particles have caches of their own",
    "position_ids": "they follow from the attention_mask",
    "inputs_embeds": "give token numbers, which can be scored",
    "guidance_scale": "it runs the network outside the particles' passes",
    "custom_generate": "the loop is transformers' own",
}


def generate(
    posterior: Any,
    prompts: Any = None,
    *,
    tokenizer: Any = None,
    each: bool = False,
    seed: int | None = None,
    **options: Any,
) -> Answers | list[Answers]:
    """Answer prompts, with what the particles think of every token.

    Args:
        posterior: of a causal language model of transformers; left in the mode it was in.
        prompts: a text, the messages of a chat, or tokens (length,); or several of them, of any
            lengths, in a list. ``None`` where ``input_ids`` are among the options.
        tokenizer: the network's; texts need it, and the answers are then texts as well.
        each: ``False``: one answer from the averaged next-token distribution. ``True``: each
            particle answers by itself; all throw the same dice, so that what differs between their
            answers is what they believe. Particle i's answers are then those of
            ``posterior.particle(i)``'s own ``generate``.
        seed: of sampled answers; ``None`` draws from torch's generator as it is, as transformers
            does. A sampled answer depends on which prompts stand beside it, a greedy one does not.
        options: of transformers' ``generate`` (``max_new_tokens``, ``do_sample``, ``temperature``,
            ``top_k``, ``top_p``, ``eos_token_id``, ``stop_strings``, ``generation_config``, ...),
            and further inputs of the network, such as ``pixel_values``. ``input_ids`` of several
            lengths want padding on the left and an ``attention_mask``.

    Returns:
        The answers; with ``each`` a list of them, one a particle, of which each is scored by all.

    Raises:
        BellaError: a posterior that does not write text, prompts that are no such, padding on the
            right, tokens that the network does not know or more than it has positions, a base held
            in fewer bits outside of autocast, or an option that is not defined for several
            particles.
    """
    check_writes(posterior)
    posterior.held.check(posterior)
    network = as_given(posterior.network)
    device = next(posterior.network.parameters()).device
    options = dict(options)
    inputs = {name: options.pop(name) for name in list(options) if _is_input(network, name)}
    _refuse(network, options)
    ends = _ends(network, options)
    inputs = _tokens(prompts, tokenizer, inputs, network, options, ends)
    check_tokens(network, inputs["input_ids"])
    check_length(network, inputs["input_ids"].shape[1] + _asked_length(options))
    inputs = map_tensors(lambda x: x.to(device), inputs)
    if options.get("stop_strings") is not None:
        if tokenizer is None:
            raise BellaError("stop_strings need the network's tokenizer: give tokenizer=.")
        options["tokenizer"] = tokenizer
    with (
        evaluating(posterior),
        torch.no_grad(),
        _seeded(seed, device),
        fast_float32(posterior),
        few_rows(posterior.network),
    ):
        write = _each_its_own if each else _together
        plan = plan_of(posterior, inputs, each)
        start = Dice(device, False)
        try:
            answers = write(posterior, inputs, options, ends, plan)
        except (UnprovenError, MixedError) as error:
            plan.how, plan.why = "looped", str(error)
            start.set(start.before)
            answers = write(posterior, inputs, options, ends, plan)
    found = [part.read_by(tokenizer) for part in answers]
    return found if each else found[0]


# ------------------------------------------------------------ the two ways


def _together(
    posterior: Any, inputs: dict[str, Any], options: dict[str, Any], ends: Tensor, plan: TextPlan
) -> list[Answers]:
    """One answer of all chosen particles."""
    axis, passes = posterior.axis, posterior.passes
    chosen = axis.asked
    listener = Listener(ends, options)

    def one(rows: tuple[int, ...], prompts: int) -> Pass:
        return passes.one(tuple(chosen[row] for row in rows), prompts, plan, True)

    folds = plan.how == "folded" and len(chosen) > 1
    speaker = Speaker(
        posterior.network, axis, one, len(chosen), listener.hear, plan.calls if folds else None
    )
    written = _write(speaker.twin(), inputs, options, listener)
    return [listener.answers(written)]


def _each_its_own(
    posterior: Any, inputs: dict[str, Any], options: dict[str, Any], ends: Tensor, plan: TextPlan
) -> list[Answers]:
    """An answer of each chosen particle, scored by all of them."""
    axis, passes, network = posterior.axis, posterior.passes, posterior.network
    chosen = axis.asked
    dice = Dice(inputs["input_ids"].device, False)
    prompts = len(inputs["input_ids"])
    twin = answering(as_given(network), network)
    written: list[tuple[Tensor, Tensor]] = []
    if plan.how == "folded" and len(chosen) > 1 and not any(options.get(name) for name in OWN):
        listener = Listener(ends, options)
        with axis.run(passes.one(chosen, prompts, plan, True)), SameDice(dice, len(chosen)):
            repeated = map_roles(
                lambda x, role: x if role is None else axis.repeat(x, role), inputs, plan.inputs
            )
            tokens = listener.tokens(_write(twin, repeated, options, listener))
        written = list(
            zip(tokens.chunk(len(chosen)), listener.lengths.chunk(len(chosen)), strict=True)
        )
    else:
        for particle in chosen:
            dice.set(dice.before)
            listener = Listener(ends, options)
            with axis.run(passes.one((particle,), prompts, plan, True)):
                tokens = listener.tokens(_write(twin, inputs, options, listener))
            written.append((tokens, listener.lengths))
    others = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
    asked = unpadded(inputs["input_ids"], inputs.get("attention_mask"))
    return [
        score_tokens(
            posterior,
            [
                (prompt, row[:length])
                for prompt, row, length in zip(asked, tokens, lengths.tolist(), strict=True)
            ],
            others,
        )
        for tokens, lengths in written
    ]


def _write(
    twin: Any, inputs: dict[str, Any], options: dict[str, Any], listener: Listener
) -> Tensor:
    """What transformers' own loop writes, with the prompts before it.

    Raises:
        BellaError: an option has a value that transformers refuses.
    """
    ours = ("stopping_criteria", "stop_strings", "tokenizer")  # the listener has them
    own = {name: value for name, value in options.items() if name not in ours}
    try:
        return twin.generate(**inputs, **own, stopping_criteria=[listener])
    except ValueError as error:
        if isinstance(error, BellaError):
            raise
        raise BellaError(f"transformers' generate refuses this ({shortened(error)}).") from error


class Listener:
    """Hears every token that is written: its figures, and whether it ends an answer.

    It stands where transformers has its stopping criteria, behind those that a caller wrote.

    Args:
        ends: tokens that end an answer.
        options: of ``generate``.
    """

    def __init__(self, ends: Tensor, options: dict[str, Any]):
        self.ends: Tensor = ends
        self.criteria: list[Any] = list(options.get("stopping_criteria") or ())
        if options.get("stop_strings") is not None:
            self.criteria.append(_stops_at(options["stop_strings"], options["tokenizer"]))
        self.begin = 0
        self.lengths = self.running = torch.empty(0, dtype=torch.long)
        self.said: Figures | None = None
        self.figures: list[tuple[Tensor, ...]] = []

    def hear(self, logits: Tensor) -> Tensor:
        """From the particles' logits to those that the next token is chosen by."""
        self.said = Figures(logits)
        return self.said.logits()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Which answers end with the token that was written last."""
        token = input_ids[:, -1]
        if not self.begin:
            self.begin = input_ids.shape[1] - 1
            self.lengths = torch.zeros_like(token)
            self.running = torch.ones_like(token, dtype=torch.bool)
        if self.said is not None:
            self.figures.append(self.said.of(token))
            self.said = None
        self.lengths = self.lengths + self.running
        ended = torch.isin(token, self.ends.to(token.device))
        for criterion in self.criteria:
            ended = ended | criterion(input_ids, scores, **kwargs)
        self.running = self.running & ~ended
        return ~self.running

    def tokens(self, written: Tensor) -> Tensor:
        """The answers without their prompts; 0 behind their ends."""
        tokens = written[:, self.begin :]
        return tokens.masked_fill(~_counts(tokens, self.lengths), 0)

    def answers(self, written: Tensor) -> Answers:
        """The answers with the figures that were heard."""
        tokens = self.tokens(written)
        counts = _counts(tokens, self.lengths)
        figures = [
            torch.stack(steps, -1).where(counts, 0) for steps in zip(*self.figures, strict=True)
        ]
        return Answers.of(tokens, self.lengths, figures)


def _stops_at(strings: Any, tokenizer: Any) -> Any:
    """transformers' own criterion for texts that end an answer.

    Raises:
        BellaError: the tokenizer's tokens are no pieces of text to it.
    """
    from transformers import StopStringCriteria

    try:
        return StopStringCriteria(tokenizer, strings)
    except ValueError as error:
        raise BellaError(
            f"transformers cannot stop this tokenizer at texts ({shortened(error)}): give "
            "eos_token_id, or stopping_criteria of your own."
        ) from error


def _counts(tokens: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]


class SameDice(TorchFunctionMode):
    """Inside the block each particle's rows draw what they would draw alone, all from one state.

    Args:
        dice: torch's generators.
        width: how many particles' rows stand one after another.
    """

    def __init__(self, dice: Dice, width: int):
        super().__init__()
        self.dice = dice
        self.width = width

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function; a draw of tokens for each particle by itself."""
        kwargs = kwargs or {}
        if func is not torch.multinomial:
            return func(*args, **kwargs)
        before, drawn = self.dice.now(), []
        for rows in args[0].chunk(self.width):
            self.dice.set(before)
            drawn.append(func(rows, *args[1:], **kwargs))
        return torch.cat(drawn)


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Draw from a seed inside the block; the caller's random state is afterwards as it was."""
    with (
        nullcontext()
        if seed is None
        else torch.random.fork_rng([device] if device.type == "cuda" else [])
    ):
        if seed is not None:
            torch.manual_seed(seed)
        yield


# ------------------------------------------------------------ what is given


def _is_input(network: Any, name: str) -> bool:
    """Whether an argument goes to the network, and not to ``generate``."""
    from transformers import GenerationConfig

    if name in OWN or name in REFUSED or name == "generation_config":
        return False
    if hasattr(GenerationConfig(), name):
        return False
    parameters = inspect.signature(network.forward).parameters
    if name in parameters:
        return True
    raise BellaError(
        f"{name} is no option of transformers' generate and no input of {type(network).__name__}."
    )


def _refuse(network: Any, options: dict[str, Any]) -> None:
    """Refuse options that are not defined for several particles, wherever they were set.

    Raises:
        BellaError: there is one.
    """
    from transformers import GenerationConfig

    length = options.get("max_new_tokens")
    if length is not None and length < 1:
        raise BellaError(f"max_new_tokens={length}: an answer has at least one.")
    temperature = options.get("temperature")
    if temperature is not None and not (temperature <= 0 or COLDEST <= temperature < math.inf):
        raise BellaError(
            f"temperature={temperature}: scores are divided by it, so give a number of at least "
            f"{COLDEST:g}; the likeliest tokens are what do_sample=False (no --sample) writes."
        )
    top_p = options.get("top_p")
    if top_p is not None and not 0 <= top_p <= 1:
        raise BellaError(f"top_p={top_p}: it is a probability, from 0 (the likeliest token) to 1.")
    plain = GenerationConfig()
    defaults = plain._get_default_generation_params()
    for name, why in REFUSED.items():
        value = options.get(name)
        for config in (options.get("generation_config"), network.generation_config):
            value = getattr(config, name, None) if value is None else value
        if name == "cache_implementation" and value == "dynamic":
            continue
        if value is not None and value is not False and value != defaults.get(name):
            raise BellaError(f"{name}={value!r:.30} is not for particles: {why}.")


def _asked_length(options: dict[str, Any]) -> int:
    """Tokens of an answer at most, where the user says it; a token is what every answer has."""
    config = options.get("generation_config")
    return options.get("max_new_tokens") or getattr(config, "max_new_tokens", None) or 1


def _ends(network: Any, options: dict[str, Any]) -> Tensor:
    """The tokens that end an answer, as ``generate`` finds them."""
    found: Any = options.get("eos_token_id")
    if "eos_token_id" not in options:
        for config in (options.get("generation_config"), network.generation_config):
            found = getattr(config, "eos_token_id", None) if found is None else found
    if found is None:
        return torch.empty(0, dtype=torch.long)
    return torch.as_tensor(found).reshape(-1).long()


def _tokens(
    prompts: Any,
    tokenizer: Any,
    inputs: dict[str, Any],
    network: Any,
    options: dict[str, Any],
    ends: Tensor,
) -> dict[str, Any]:
    """The network's inputs, with tokens and a mask.

    Raises:
        BellaError: prompts twice or never, or padding on the right.
    """
    if (prompts is None) == ("input_ids" not in inputs):
        raise BellaError("Give either prompts or input_ids.")
    refuse_caches(inputs)
    pad = options.get("pad_token_id", network.generation_config.pad_token_id)
    if prompts is not None:
        rows = [prompt_tokens(prompt, tokenizer) for prompt in several(prompts)]
        padded = left_padded(rows, 0 if pad is None else int(pad))
        return inputs | dict(zip(("input_ids", "attention_mask"), padded, strict=True))
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    if not isinstance(ids, Tensor) or ids.dim() != 2 or not ids.numel():
        raise BellaError("input_ids must be a tensor (prompts, length) with a token in it.")
    if mask is None:
        if len(ids) > 1 and pad is not None and bool((ids[:, 0] == pad).any()):
            raise BellaError(
                "Some input_ids begin with the padding token and there is no attention_mask to say "
                "whether it counts: give one, as the tokenizer makes it."
            )
        return inputs | {"attention_mask": torch.ones_like(ids)}
    if mask.shape != ids.shape or not bool((mask.diff(dim=1) >= 0).all() & (mask[:, -1] > 0).all()):
        raise BellaError(
            "The attention_mask does not have its padding on the left, where a text that goes on "
            "wants it: make the tokens with tokenizer(..., padding=True, padding_side='left')."
        )
    return inputs
