"""Networks that read text, with their tokenizer: language models and text classifiers by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from bella.errors import BellaError, nearest, require
from bella.models.from_hub import load, tokenizer_of
from bella.models.minilm import minilm_folder
from bella.models.opened import Defaults, guess_defaults
from bella.models.smollm2 import smollm2_folder

LATE_BLOCKS = r"model\.layers\.2\d\.(self_attn\.[qv]_proj|mlp\.down_proj)"
"""Of SmolLM2's 30 blocks the last ten: the particles then share what 20 blocks compute."""

LANGUAGE: dict[str, tuple[Callable[[], Path], tuple[str, ...]]] = {
    "smollm2-135m-instruct": (smollm2_folder, (LATE_BLOCKS,)),
    "minilm-l6": (minilm_folder, ("query", "value")),
}
"""By a name: the folder of a network as transformers saves it, and what to adapt in it."""


class OpenedLanguage(NamedTuple):
    """A network that reads text, in evaluation mode, with what belongs to it."""

    network: nn.Module
    tokenizer: Any
    defaults: Defaults


def open_language(
    name: str, classes: int | None = None, seed: int = 0, *, quantised: str | None = None
) -> OpenedLanguage:
    """Open a language model, or a classifier of texts, for (network, tokenizer, defaults).

    Code that comes with a network is never run.

    Args:
        name: ``smollm2-135m-instruct``, ``minilm-l6``, or ``hf:`` and a name on the hub, a folder
            that transformers saved, or one of a PEFT adapter, which is merged.
        classes: size of a fresh head; without it, a causal language model.
        seed: of the fresh head.
        quantised: hold the base as ``4bit``, ``8bit`` or ``int8``, see `bella.models.open_task`.

    Raises:
        BellaError: the name is unknown, or what it names cannot do this.
        MissingExtraError: a library or package is not installed.
    """
    family, _, place = name.partition(":")
    known = [*LANGUAGE, "hf:"]
    if not (name in LANGUAGE or (family == "hf" and place)):
        raise BellaError(
            f"No network that reads text is called {name!r}: near are {nearest(name, known)}."
        )
    if classes is not None and classes < 2:
        raise BellaError(f"classes={classes}: a classifier needs at least two.")
    require("transformers", extra="hf")
    folder, targets = (place, ()) if place else (str(LANGUAGE[name][0]()), LANGUAGE[name][1])
    auto, what = "AutoModelForCausalLM", "a causal language model"
    head: dict[str, Any] = {}
    if classes is not None:
        auto = "AutoModelForSequenceClassification"
        what = f"a text classifier of {classes} classes"
        head = {"num_labels": classes, "ignore_mismatched_sizes": True}
    network = load(auto, folder, what, seed=seed, quantised=quantised, **head)
    tokenizer = tokenizer_of(folder)
    if tokenizer is None:
        raise BellaError(f"{name!r} comes without a tokenizer: save one beside the network.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    config: Any = network.config
    if config.get_text_config().pad_token_id is None:
        config.get_text_config().pad_token_id = tokenizer.pad_token_id
    heads = ("classifier",) if hasattr(network, "classifier") else ("score",)
    return OpenedLanguage(
        network.requires_grad_(False).eval(),
        tokenizer,
        Defaults(targets or guess_defaults(network).target_modules, heads if classes else ()),
    )
