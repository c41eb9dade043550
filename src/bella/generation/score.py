"""`posterior.score`: what the particles think of a given answer to a prompt."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bella.errors import BellaError
from bella.generation.answers import Answers, Figures
from bella.generation.texts import (
    answer_tokens,
    check_length,
    check_tokens,
    prompt_tokens,
    right_padded,
    several,
)
from bella.kernels import fast_float32
from bella.particles.copies import as_given
from bella.particles.sober import evaluating
from bella.trees import map_tensors


def score(
    posterior: Any,
    prompts: Any,
    answers: Any,
    *,
    tokenizer: Any = None,
    ended: bool = False,
    batch_size: int = 8,
) -> Answers:
    """What the particles think of given answers.

    Every particle reads prompt and answer once, without a cache. An answer that `generate` wrote
    gets the figures here that it got there, up to rounding.

    Args:
        posterior: of a causal language model of transformers; left in the mode it was in.
        prompts: a text, the messages of a chat, or tokens (length,); or several of them in a list.
        answers: a text or tokens for each prompt; a text as it stands behind the prompt, with the
            space that it may begin with.
        tokenizer: the network's; texts need it.
        ended: whether each answer is followed by the end-of-text token, which then counts.
        batch_size: texts in one pass.

    Returns:
        The answers with their figures.

    Raises:
        BellaError: not as many answers as prompts, empty ones, texts without a tokenizer, more
            tokens than the network has positions or ones that it does not know, or a posterior that
            does not write text.
    """
    check_writes(posterior)
    if batch_size < 1:
        raise BellaError(f"batch_size={batch_size}: give a whole number of at least 1.")
    asked, said = several(prompts), several(answers)
    if len(asked) != len(said):
        raise BellaError(
            f"There are {len(asked)} prompts and {len(said)} answers: give one answer to each."
        )
    pairs = [
        (prompt_tokens(prompt, tokenizer), answer_tokens(answer, tokenizer, ended))
        for prompt, answer in zip(asked, said, strict=True)
    ]
    check_tokens(as_given(posterior.network), *(text for pair in pairs for text in pair))
    check_length(as_given(posterior.network), max(len(p) + len(a) for p, a in pairs))
    with evaluating(posterior), torch.no_grad(), fast_float32(posterior):
        parts = [
            score_tokens(posterior, pairs[first : first + batch_size], {})
            for first in range(0, len(pairs), batch_size)
        ]
    return Answers.cat(parts).read_by(tokenizer)


def score_tokens(
    posterior: Any, pairs: Sequence[tuple[Tensor, Tensor]], others: dict[str, Any]
) -> Answers:
    """The figures of answers in one pass.

    Args:
        posterior: in evaluation mode.
        pairs: the tokens of a prompt and of its answer, for each.
        others: what else the network is given with these prompts: pictures, say.
    """
    device = next(posterior.network.parameters()).device
    # Behind the text padding needs no positions of its own: whatever counts comes before it.
    ids, mask = right_padded([torch.cat((p, a.to(p.device))) for p, a in pairs], 0)
    begins = [len(prompt) - 1 for prompt, _ in pairs]
    first = min(begins)
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False} | others
    kept = 0
    if "logits_to_keep" in inspect.signature(as_given(posterior.network).forward).parameters:
        inputs["logits_to_keep"] = torch.arange(first, ids.shape[1] - 1)
        kept = first
    logits = posterior(**map_tensors(lambda x: x.to(device), inputs)).logits
    rows = []
    for row, ((_, answer), begin) in enumerate(zip(pairs, begins, strict=True)):
        tokens = answer.to(logits.device)
        places = slice(begin - kept, begin - kept + len(tokens))
        figures = [x.unsqueeze(-2) for x in Figures(logits[:, row, places]).of(tokens)]
        lengths = torch.tensor([len(tokens)], device=logits.device)
        rows.append(Answers.of(tokens[None], lengths, figures))
    return Answers.cat(rows)


def check_writes(posterior: Any) -> None:
    """Refuse a posterior that does not write text, or whose particles change from token to token.

    Raises:
        BellaError: it is one.
    """
    network = as_given(posterior.network)
    name = type(network).__name__
    if not callable(getattr(network, "generate", None)) or not network.can_generate():
        raise BellaError(
            f"{name} does not write text: bella.generation needs a causal language model of "
            "transformers, such as AutoModelForCausalLM opens."
        )
    if network.config.is_encoder_decoder:
        raise BellaError(
            f"{name} reads with an encoder and writes with a decoder: particles write with causal "
            "language models; call posterior.particle(i).generate for one particle's answers."
        )
    if posterior.stochastic or posterior.kind == "laplace":
        raise BellaError(
            f"A {posterior.kind} posterior draws other weights in every pass, so a text would be "
            "written by a different network at each token: use bella.low_rank or bella.full."
        )
