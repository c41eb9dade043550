"""A folder with one LoRA adapter, as PEFT reads and writes it.

``adapter_config.json`` says what the numbers mean, ``adapter_model.safetensors`` holds them. PEFT
itself is not needed for either. What a configuration asks for and bella does not do is refused by
name: a setting that is not known here may change what the adapter computes.

Source: the format of PEFT 0.18 to 0.21 (``peft.LoraConfig``, ``get_peft_model_state_dict``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from bella.errors import BellaError
from bella.files import check_ordinary, read_json, shortened, shown, write_json, write_whole
from bella.particles.targets import value_for
from bella.sealed import read_sealed

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
PREFIX = "base_model.model."

A_NAMES, B_NAMES = ("lora_A", "lora_embedding_A"), ("lora_B", "lora_embedding_B")

STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Ways to start factors that leave the base as it is; PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA change
its weights, so that their factors alone mean another network."""

REFUSED = {
    "use_dora": "DoRA, which scales whole rows of the weight",
    "lora_bias": "a bias in its factors",
    "trainable_token_indices": "single tokens that train",
    "target_parameters": "stacked weights, as of experts, in place of layers",
    "layer_replication": "layers that stand in the network several times",
    "alora_invocation_tokens": "an adapter that acts after some tokens alone (aLoRA)",
    "use_qalora": "QA-LoRA",
}
"""Settings of PEFT that mean something else than a low-rank change of a layer, in words."""

NEUTRAL = {
    *("auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode"),
    *("peft_version", "target_modules", "exclude_modules", "lora_dropout", "fan_in_fan_out"),
    *("layers_to_transform", "layers_pattern", "megatron_config", "megatron_core"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size"),
    *("runtime_config", "ensure_weight_tying"),
}
"""Settings that decide how an adapter was made, or what its file holds; the file is looked at."""


class Config(BaseModel):
    """The fields of ``adapter_config.json`` that decide what an adapter computes."""

    model_config = ConfigDict(extra="allow")

    peft_type: str
    r: int = Field(8, ge=1)
    lora_alpha: float = 8
    use_rslora: bool = False
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    modules_to_save: list[str] | None = None
    init_lora_weights: Any = True
    bias: str = "none"

    def scale(self, name: str, rank: int) -> float:
        """What B A of a layer is multiplied by."""
        alpha = value_for(name, self.alpha_pattern or {}, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


@dataclass(frozen=True)
class Factors:
    """One layer's change s B A, its matrices as PEFT shapes them.

    Attributes:
        A: (rank, in), or (rank, in, *kernel) of a convolution.
        B: (out, rank), or (out, rank, 1, ...).
        scale: s.
    """

    A: Tensor
    B: Tensor
    scale: float


@dataclass(frozen=True)
class Adapter:
    """What a folder holds.

    Attributes:
        folder: where it was read.
        config: its settings.
        layers: changes by the layers' names in the network.
        others: further tensors by their names in the network: of modules that are saved whole.
    """

    folder: Path
    config: Config
    layers: dict[str, Factors] = field(default_factory=dict)
    others: dict[str, Tensor] = field(default_factory=dict)


# ---------------------------------------------------------------- reading


def read(folder: Path) -> Adapter:
    """Read and check an adapter, all that can be checked without its network.

    Nothing in the folder is executed: weights are safetensors, or a pickle of tensors alone.

    Raises:
        BellaError: no adapter there, a damaged file, or one that is more than low-rank changes and
            whole modules.
    """
    config, tensors = _read_config(folder), _read_tensors(folder)
    halves: dict[str, dict[str, Tensor]] = {}
    adapter = Adapter(folder, config)
    for key, value in tensors.items():
        if not key.startswith(PREFIX):
            raise BellaError(f"{folder} holds {shown(key)}, which is no part of a LoRA adapter.")
        name = key.removeprefix(PREFIX)
        parts = name.removesuffix(".weight").rpartition(".")
        if parts[2] in A_NAMES + B_NAMES:
            halves.setdefault(parts[0], {})["A" if parts[2] in A_NAMES else "B"] = value
        elif any(word.startswith("lora_") for word in name.split(".")):
            raise BellaError(
                f"{folder} holds {shown(key)}: bella knows the factors lora_A and lora_B alone."
            )
        else:
            adapter.others[name.replace(".modules_to_save.", ".")] = value
    for name, half in halves.items():
        adapter.layers[name] = _factors(folder, config, name, half)
    return adapter


def _factors(folder: Path, config: Config, name: str, half: Mapping[str, Tensor]) -> Factors:
    """The two halves of a layer's change.

    Raises:
        BellaError: one is missing, they do not fit each other, or hold other than finite numbers.
    """
    said = f"{folder} cannot be read: the factors of {shown(name)}"
    if half.keys() != {"A", "B"}:
        raise BellaError(f"{said} are not both there.")
    A, B = half["A"], half["B"]
    rank = value_for(name, config.rank_pattern or {}, config.r)
    if A.dim() < 2 or B.dim() < 2 or len(A) != rank or B.shape[1] != rank:
        raise BellaError(
            f"{said} are {tuple(A.shape)} and {tuple(B.shape)}, and its settings say rank {rank}."
        )
    scale = config.scale(name, rank)
    if not (math.isfinite(scale) and scale):
        raise BellaError(f"{said} are multiplied by {scale}: no lora_alpha of a trained adapter.")
    for factor in (A, B):
        if not (factor.is_floating_point() and factor.isfinite().all()):
            raise BellaError(f"{said} are not finite numbers.")
    return Factors(A, B, scale)


def _read_config(folder: Path) -> Config:
    if not (folder / CONFIG).exists():
        raise BellaError(f"{folder} holds no PEFT adapter: {CONFIG} is missing.")
    content = read_json(folder / CONFIG)
    try:
        config = Config.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])[:80]
        raise BellaError(
            f"{folder / CONFIG} cannot be used ({place}={shown(first['input'])}: {first['msg']})."
        ) from None
    if config.peft_type != "LORA":
        raise BellaError(
            f"{folder} holds an adapter of kind {shown(config.peft_type)}: particles start from "
            "LORA adapters alone."
        )
    if config.bias != "none":
        raise BellaError(
            f"{folder} has bias={shown(config.bias)}: its biases train too, and particles share "
            "theirs; start from an adapter with bias='none'."
        )
    if config.init_lora_weights not in STARTS:
        raise BellaError(
            f"{folder} has init_lora_weights={shown(config.init_lora_weights)}, which changed the "
            "base: save it again with PEFT's path_initial_model_for_weight_conversion."
        )
    for name, value in (config.model_extra or {}).items():
        if value and name not in NEUTRAL:
            known = REFUSED.get(name, "a setting that bella does not know")
            raise BellaError(
                f"{folder} has {name[:80]}={shown(value)} ({known}): particles start from plain "
                "LoRA adapters."
            )
    return config


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of safetensors, else of a pickle that may hold nothing but tensors."""
    try:
        if (folder / WEIGHTS).exists() or not (folder / PICKLED).exists():
            return read_sealed(folder / WEIGHTS)[1]
        check_ordinary(folder / PICKLED)
        found = torch.load(folder / PICKLED, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BellaError(f"{folder} holds no PEFT adapter: {WEIGHTS} is missing.") from None
    except BellaError:
        raise
    except Exception as error:  # a stranger's pickle fails in any way
        raise BellaError(f"{folder / PICKLED} cannot be read ({shortened(error)}).") from None
    if not isinstance(found, dict) or not all(isinstance(x, Tensor) for x in found.values()):
        raise BellaError(f"{folder / PICKLED} holds something else than tensors by name.")
    return found


# ---------------------------------------------------------------- writing


def write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write an adapter's two files.

    Args:
        folder: made if missing.
        config: fields of ``peft.LoraConfig``.
        tensors: by their names in the network.
    """
    named = {f"{PREFIX}{name}": value.contiguous() for name, value in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / WEIGHTS, lambda path: save_file(named, path, metadata={"format": "pt"}))
    write_json(folder / CONFIG, config)


def check_written(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Compare an adapter's files with what was to be written, bit for bit.

    Raises:
        BellaError: the disk holds something else.
    """
    read(folder)
    found = {k.removeprefix(PREFIX): v for k, v in _read_tensors(folder).items()}
    differ = [n for n in {**found, **tensors} if not same(found.get(n), tensors.get(n))]
    if differ:
        raise BellaError(f"{folder} is not as it was written: {differ[0]!r} differs.")


def same(one: Tensor | None, two: Tensor | None) -> bool:
    """Whether two tensors hold the same numbers in the same dtype and shape."""
    if one is None or two is None or one.dtype != two.dtype:
        return False
    return torch.equal(one.cpu(), two.cpu())


def matching(names: Iterable[str], wanted: Iterable[str]) -> set[str]:
    """The modules that ``modules_to_save`` means to PEFT: those whose names end so."""
    ends = tuple(wanted)
    return {name for name in names if name.endswith(ends)}
