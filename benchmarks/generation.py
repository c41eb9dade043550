"""Tokens that five particles write as one, against one model: a network shaped as SmolLM2-135M.

    python benchmarks/generation.py [--quick] [--device cuda] [--autocast]

Greedy answers to a prompt of 16 tokens, with the key-value cache; random weights take as long as
any others. "One model" is transformers' own ``generate`` of the plain network. The floor is the
time in which all weights are read once, at the rate of a plain copy: a token multiplies each of
them once, whoever asks.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
import transformers

import bella
from page import TARGETED, Options, Table, against, main
from timing import paired, ratios, spread, square, timed

N = 5
PROMPT = 16


def smollm2() -> transformers.LlamaForCausalLM:
    """SmolLM2-135M's architecture."""
    config = transformers.LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config).eval()


def ways(tokens: int, options: Options) -> dict[str, Callable[[], object]]:
    """Who writes so many tokens."""
    asked = torch.randint(1000, (1, PROMPT), device=options.device)
    length = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    one = smollm2().to(options.device)
    posterior = bella.low_rank(smollm2(), N, 4, ("q_proj", "v_proj"), b_std=0.01)
    posterior = posterior.to(options.device).eval()

    def alone() -> None:
        with options.precision():
            one.generate(asked, attention_mask=torch.ones_like(asked), pad_token_id=0, **length)

    def together() -> None:
        with options.precision():
            posterior.generate(input_ids=asked, **length)

    return {"one model": alone, "bella": together}


def measure(options: Options) -> tuple[float, list[Table]]:
    """Milliseconds a token."""
    tokens = 4 if options.quick else 32
    machine = square(options.device, options.dtype)
    there, here = torch.randn(2, 2**25, device=options.device)
    copying: list[float] = []
    seconds = paired(
        "tokens",
        ways(tokens, options),
        options.until(),
        beside={
            "product": machine,
            "copy": lambda: copying.append(timed(lambda: there.copy_(here))),
        },
    )
    ours, one = seconds["bella"], seconds["one model"]
    weights = sum(p.numel() for p in smollm2().parameters()) * options.dtype.itemsize
    floor = weights * min(copying) / (2 * here.numel() * here.element_size())
    rows = [
        (f"{N} particles / one model, a token", ratios(ours, one), 1.8),
        (f"{N} particles / {N} models, a token", ratios(ours, [N * s for s in one]), 0.36),
    ]
    times = {"one model": one, f"bella, {N} particles": ours}
    return machine.rate, [
        Table(
            f"SmolLM2-135M's shape, n={N}, one prompt.",
            TARGETED,
            [against(name, spread(r), statistics.median(r), target) for name, r, target in rows],
        ),
        Table(
            "Milliseconds a token.",
            ("who writes", "milliseconds"),
            [
                *(
                    [name, spread([1000 * s / tokens for s in took], 1)]
                    for name, took in times.items()
                ),
                ["floor: the weights read once", f"{1000 * floor:.1f}"],
            ],
        ),
    ]


if __name__ == "__main__":
    main("generation", __doc__, measure)
