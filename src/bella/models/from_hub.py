"""Networks of transformers, on the hub or in a folder; adapters of PEFT merged into theirs.

Code that comes with a network is never run, whoever answers: without saying so, transformers asks
on the terminal, and ``yes |`` would be an answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from bella.errors import BellaError, require
from bella.files import read_json, shortened, shown
from bella.models.opened import seeded
from bella.particles.architectures import heads_of
from bella.particles.quantised import keep_gradients

ADAPTER = "adapter_config.json"

QUANTISED = ("4bit", "8bit", "int8")
"""How a base may be held: bitsandbytes' NF4 and LLM.int8, torchao's int8 weights."""


def load(
    auto: str,
    name: str,
    what: str,
    *,
    seed: int = 0,
    quantised: str | None = None,
    **options: Any,
) -> nn.Module:
    """A network by one of transformers' Auto classes, in evaluation mode.

    Args:
        auto: the class, such as ``AutoModelForCausalLM``.
        name: on the hub, or a folder: of a network, or of an adapter, which is merged into the
            network that it names.
        what: the network in words, for the message.
        seed: of a fresh head.
        quantised: hold the base's weights as one of `QUANTISED`.
        options: of ``from_pretrained``.

    Raises:
        BellaError: there is no such network.
        MissingExtraError: a library is not installed.
    """
    transformers = require("transformers", extra="hf")
    # A library that is missing is told of before the hub is asked for anything.
    codes = None if quantised is None else _quantisation(transformers, quantised)
    if (adapter := _adapter(name)) is not None:
        return _merged(adapter, auto, what, seed=seed, quantised=quantised, **options)
    try:
        if codes is not None:
            _leave_heads(codes, transformers, auto, name, options)
            options |= {"quantization_config": codes}
        with seeded(seed):
            network = getattr(transformers, auto).from_pretrained(
                name, trust_remote_code=False, **options
            )
    except Exception as error:  # a stranger's folder fails in as many ways as it can be damaged
        raise BellaError(
            f"{name!r} cannot be opened as {what} ({shortened(error)}): give the name of one on "
            "the hub, or a folder that `save_pretrained` wrote."
        ) from error
    if codes is not None:
        keep_gradients(network)
    return network.eval()


TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json")
"""Files of which a network's tokenizer has one; without any, transformers makes an empty one up."""


def tokenizer_of(name: str) -> Any:
    """A network's tokenizer, of an adapter that of its network; ``None`` where it has none.

    Raises:
        BellaError: it is damaged.
    """
    transformers = require("transformers", extra="hf")
    find: Any = transformers.utils.cached_file
    try:
        if any(find(name, x, _raise_exceptions_for_missing_entries=False) for x in TOKENIZERS):
            return transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        raise BellaError(
            f"The tokenizer of {name!r} cannot be read ({shortened(error)})."
        ) from error
    adapter = _adapter(name)
    return None if adapter is None else tokenizer_of(_base_of(adapter))


def _quantisation(transformers: Any, kind: str) -> Any:
    """A configuration for transformers.

    Raises:
        BellaError: an unknown kind.
        MissingExtraError: its library is not installed.
    """
    if kind not in QUANTISED:
        raise BellaError(
            f"quantised={kind!r} is unknown: choose {', '.join(map(repr, QUANTISED))}."
        )
    if kind == "int8":
        made = require("torchao.quantization", extra="quantised")
        return transformers.TorchAoConfig(made.Int8WeightOnlyConfig())
    require("bitsandbytes", extra="quantised")
    if kind == "8bit":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")


def _leave_heads(
    codes: Any, transformers: Any, auto: str, name: str, options: dict[str, Any]
) -> None:
    """Have a configuration leave the heads as they are: they train, and codes do not. Those that
    transformers leaves by itself are heads without a bias."""
    config, _ = transformers.AutoConfig.from_pretrained(
        name, trust_remote_code=False, return_unused_kwargs=True, **options
    )
    with torch.device("meta"):
        network = getattr(transformers, auto).from_config(config, trust_remote_code=False)
    if heads := heads_of(network):
        of = "modules_to_not_convert"
        setattr(codes, "llm_int8_skip_modules" if not hasattr(codes, of) else of, list(heads))


# ---------------------------------------------------------------- adapters as networks


def _adapter(name: str) -> Path | None:
    """The folder of an adapter, here or on the hub; ``None`` where the name is a network's."""
    if Path(name).is_dir():
        return Path(name) if (Path(name) / ADAPTER).exists() else None
    find: Any = require("transformers.utils", extra="hf").find_adapter_config_file
    try:
        found = find(name)
    except Exception:
        return None  # opening it as a network says what is wrong with the name
    return Path(found).parent if found else None


def _base_of(folder: Path) -> str:
    """The name of the network that an adapter belongs to.

    Raises:
        BellaError: it does not say.
    """
    config = read_json(folder / ADAPTER)
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(base, str) or not base:
        raise BellaError(
            f"The adapter in {folder} does not say which network it belongs to: write its name "
            f"as base_model_name_or_path into {ADAPTER}."
        )
    return base


def _merged(folder: Path, auto: str, what: str, **options: Any) -> nn.Module:
    """The network that an adapter names, with the adapter merged into it.

    Raises:
        BellaError: it names none, or one that it does not fit.
        MissingExtraError: PEFT is not installed.
    """
    base = _base_of(folder)
    if options.get("quantised"):
        raise BellaError(
            f"The adapter in {folder} would be merged into {shown(base)}, and codes cannot take "
            "it: leave out quantised, or open the network and start particles as the adapter."
        )
    peft = require("peft", extra="peft")
    network = load(auto, base, what, **options)
    try:
        merged = peft.PeftModel.from_pretrained(network, str(folder)).merge_and_unload()
    except Exception as error:
        raise BellaError(
            f"The adapter in {folder} does not fit {shown(base)} ({shortened(error)})."
        ) from error
    return merged.eval()
