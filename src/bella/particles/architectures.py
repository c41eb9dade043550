"""What ``target_modules="auto"`` and ``modules_to_save="auto"`` mean in a network.

Targets are what LoRA's users adapt in that architecture: by the table here, by the one that PEFT
has (read from the PEFT that is installed), else by the network's structure: attention's query and
value projections, the MLPs of ``nn.MultiheadAttention``, or every matrix between the first and the
head. Heads are what a fine-tune starts anew. A name that a table has and the network has not is
passed over: libraries rename their layers.

Source: Hu et al. 2021 (LoRA), section 4.2, for query and value.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from bella.errors import BellaError
from bella.particles import targets
from bella.particles.linearity import family

AUTO = "auto"

Targets = TypeVar("Targets", targets.Targets, targets.Targets | None)

TARGETS: dict[str, tuple[str, ...]] = {
    # Their out_proj and convolution are read by fused kernels, past any adapter.
    "mamba": ("in_proj", "x_proj"),
    "mamba2": ("in_proj",),
}
"""By transformers' ``model_type``: names, suffixes or regular expressions. Add your own; it goes
before PEFT's table and the structure."""

HEADS: dict[str, tuple[str, ...]] = {}
"""By transformers' ``model_type``, where the structure does not tell. Add your own."""

ATTENTION = (
    ("q_proj", "v_proj"),
    ("query", "value"),
    ("q_lin", "v_lin"),
    ("query_proj", "value_proj"),
    ("q", "v"),
    ("qkv",),
    ("Wqkv",),
    ("query_key_value",),
    ("qkv_proj",),
    ("c_attn",),
)
"""Names of attention's query and value projections, or of the fused one."""

HEAD_NAMES = ("classifier", "score", "head", "fc", "qa_outputs", "projector")
"""Names of a head that stands beside layers that are not in one base model."""

LANGUAGE = "language_model"
"""The part of a network that sees and reads which is adapted: LoRA's habit there."""


def resolved(network: nn.Module, wanted: Targets, *, heads: bool = False) -> Targets:
    """Targets as they are, or what ``"auto"`` means in this network.

    Args:
        network: where.
        wanted: names, or ``"auto"`` as a word or as a file holds it.
        heads: whether they are ``modules_to_save``.

    Raises:
        BellaError: nothing is known to be meant.
    """
    if wanted is None or list(wanted) not in ([AUTO], list(AUTO)):
        return wanted
    return heads_of(network) if heads else targets_of(network)


# ---------------------------------------------------------------- targets


def targets_of(network: nn.Module) -> tuple[str, ...]:
    """Layers to give particles to.

    Raises:
        BellaError: nothing is found.
    """
    kind = str(getattr(getattr(network, "config", None), "model_type", ""))
    for names in (TARGETS.get(kind), _by_peft(kind)):
        if names and all(_means_layers(network, name) for name in names):
            return tuple(names)
    found = _attention(network) or _multihead(network) or _matrices(network)
    if not found:
        raise BellaError(
            f"Nothing in {type(network).__name__} is known to be adapted: name target_modules "
            "yourself."
        )
    return found


def _by_peft(kind: str) -> Sequence[str]:
    """What the installed PEFT adapts in this kind of network; empty without it."""
    if not kind or importlib.util.find_spec("peft") is None:
        return ()
    constants: Any = importlib.import_module("peft.utils.constants")
    table: Mapping[str, Any] = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    found = table.get(kind, ())
    return (found,) if isinstance(found, str) else tuple(found)


def _means_layers(network: nn.Module, name: str) -> bool:
    """Whether a target means layers here, and nothing else."""
    met = [module for path, module in network.named_modules() if targets.matches(path, name)]
    return bool(met) and all(family(module) is not None for module in met)


def _attention(network: nn.Module) -> tuple[str, ...]:
    """Query and value projections; of a network that sees and reads, the language model's."""
    modules = dict(network.named_modules())
    inside = _unreached(network)
    last = {
        path.rpartition(".")[2]
        for path, module in modules.items()
        if family(module) in ("Linear", "Conv1D") and path not in inside
    }
    for names in ATTENTION:
        if not last.issuperset(names):
            continue
        if any(path.rpartition(".")[2] == LANGUAGE for path in modules):
            within = tuple(rf".*{LANGUAGE}\..*\.{name}" for name in names)
            if all(_means_layers(network, name) for name in within):
                return within
        return names
    return ()


def _unreached(network: nn.Module) -> set[str]:
    """Names of what stands in ``nn.MultiheadAttention``, which never calls it."""
    around = [n for n, m in network.named_modules() if isinstance(m, nn.MultiheadAttention)]
    return {n for n, _ in network.named_modules() if any(n.startswith(f"{a}.") for a in around)}


def _multihead(network: nn.Module) -> tuple[str, ...]:
    """The Linear layers beside ``nn.MultiheadAttention`` in its block: the MLP."""
    inside, heads, found = _unreached(network), _heads(network), []
    for path, module in network.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            block = path.rpartition(".")[0]
            for name, layer in network.get_submodule(block).named_modules(prefix=block):
                if family(layer) == "Linear" and name not in inside and name not in heads:
                    found.append(name)
    return tuple(targets.exactly(network, list(dict.fromkeys(found))))


def _matrices(network: nn.Module) -> tuple[str, ...]:
    """Every Linear and ungrouped convolution between the first and the head."""
    heads = _heads(network)
    found = [
        path
        for path, module in network.named_modules()
        if (
            (family(module) in ("Linear", "Conv1D") or getattr(module, "groups", 0) == 1)
            and family(module) is not None
            and not any(path == head or path.startswith(f"{head}.") for head in heads)
        )
    ]
    return tuple(targets.exactly(network, found[1:])) if found[1:] else ()


# ---------------------------------------------------------------- heads


def heads_of(network: nn.Module) -> tuple[str, ...]:
    """Modules of which every particle has its own: what a fine-tune starts anew.

    A network of transformers that is for no task of its own, and a language model, which is
    fine-tuned with the head that it has, have none.

    Raises:
        BellaError: another network without a Linear after its blocks that could be its head.
    """
    found = _heads(network)
    if not found and not hasattr(network, "base_model_prefix"):
        raise BellaError(
            f"{type(network).__name__} has no Linear layer after its blocks, so no head is found: "
            "name target_modules and modules_to_save yourself."
        )
    return found


def _heads(network: nn.Module) -> tuple[str, ...]:
    """`heads_of`, or nothing."""
    kind = str(getattr(getattr(network, "config", None), "model_type", ""))
    if kind in HEADS:
        return HEADS[kind]
    if callable(getattr(network, "get_classifier", None)):  # timm's
        classifier = network.get_classifier()  # type: ignore[operator]
        return tuple(name for name, module in network.named_modules() if module is classifier)
    if hasattr(network, "base_model_prefix"):  # transformers'
        return _of_transformers(network)
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    blocks = [name for name, module in network.named_modules() if isinstance(module, nn.ModuleList)]
    last = linear[-1:]
    within = any(name.startswith(f"{block}.") for name in last for block in blocks)
    return () if within or set(last) & _unreached(network) else tuple(last)


def _of_transformers(network: nn.Module) -> tuple[str, ...]:
    """What stands beside the base model in a network for a task other than language."""
    name = type(network).__name__
    if "For" not in name or name.endswith(("LM", "ConditionalGeneration", "PreTraining")):
        return ()
    base = getattr(network, str(network.base_model_prefix), None)
    beside = {
        path: module
        for path, module in network.named_children()
        if module is not base and any(True for _ in module.parameters())
    }
    if base is None:
        beside = {path: module for path, module in beside.items() if path in HEAD_NAMES}
    return tuple(_linear_in(path, module) for path, module in beside.items())


def _linear_in(path: str, module: nn.Module) -> str:
    """The name of a head; of a Sequential the one Linear in it, where nothing else there trains:
    probes start it, and every kind of particle is a change of a Linear."""
    if isinstance(module, nn.Sequential):
        held = [name for name, part in module.named_modules() if part._parameters]
        if len(held) == 1 and isinstance(module.get_submodule(held[0]), nn.Linear):
            return f"{path}.{held[0]}"
    return path
