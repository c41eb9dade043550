"""The settings of a run, checked once, written to the run folder, read from YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from bella.errors import BellaError

PerPass = Annotated[int, Field(ge=1)] | Literal["auto"] | None


class Settings(BaseModel):
    """How particles are trained. Every field is an argument of `bella.fit`.

    Attributes:
        epochs: passes over the training data.
        batch_size: examples a step (only for data given as a data set; a loader has its own).
        learning_rate: peak learning rate of AdamW.
        weight_decay: AdamW's, on all trained parameters (but not on rank-1 factors, which have
            a prior of their own): a prior on low-rank factors and not on their product.
        warmup: fraction of the steps over which the learning rate rises from 0; it then falls to 0
            as a cosine.
        clip: largest gradient norm of one particle; ``None`` for no limit.
        precision: ``no`` (as the parameters are), ``bf16`` or ``fp16``.
        accumulate: batches a step.
        particles_per_pass: run so many particles at once (less memory, the same gradients);
            ``auto`` for as many as fit into ``memory_budget``, measured on the first batch.
        memory_budget: bytes for what a step makes and drops again, beside parameters, gradients and
            the optimiser's state; ``None`` for the default of `bella.memory.at_once`.
        checkpoint: run modules a second time in the backward pass, for less memory: their names, or
            ``True`` for the blocks with particles (see `bella.recompute`). ``recompute`` is the
            same setting by its better name; give one of them.
        minibatches: all particles see the ``shared`` batch, or each its ``own``.
        patience: stop after so many epochs without a better validation NLL.
        keep: the ``best`` epoch by validation NLL, or the ``last``.
        cache_prefix: keep what the shared prefix makes of the training data: ``True``, ``False``,
            or ``auto``: if neither data nor prefix are random.
        cache_bytes: above this size the cache lies on disk.
        cache_disk_bytes: above this size there is none (with ``auto``), or an error.
        transport: name in `bella.transport.TRANSPORTS`.
        transport_options: its arguments (temperature, kernel, prior, ...).
        coupling_warmup: fraction of the steps over which the coupling rises to its strength.
        kl_weight: factor on the KL divergence of stochastic posteriors.
        kl_warmup: epochs over which that factor rises from 0.
        seed: decides every random number of the run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(5, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup: float = Field(0.1, ge=0, le=1)
    clip: float | None = Field(1.0, gt=0)
    precision: Literal["no", "bf16", "fp16"] = "no"
    accumulate: int = Field(1, ge=1)
    particles_per_pass: PerPass = None
    memory_budget: int | None = Field(None, ge=1)
    checkpoint: bool | list[str] = Field(
        False, validation_alias=AliasChoices("checkpoint", "recompute")
    )
    minibatches: Literal["shared", "own"] = "shared"
    patience: int | None = Field(None, ge=1)
    keep: Literal["best", "last"] = "best"
    cache_prefix: bool | Literal["auto"] = "auto"
    cache_bytes: int = Field(2**30, ge=0)
    cache_disk_bytes: int = Field(2**35, ge=0)
    transport: str = "repulsive"
    transport_options: dict[str, Any] = Field(default_factory=dict)
    coupling_warmup: float = Field(0.1, ge=0, le=1)
    kl_weight: float = Field(1.0, ge=0)
    kl_warmup: int = Field(0, ge=0)
    seed: int = Field(0, ge=0)


def checked(kind: type[BaseModel], values: dict[str, Any]) -> Any:
    """Build settings, or say in one sentence which is wrong.

    Raises:
        BellaError: an unknown name, one setting by both its names, or a value out of range.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            for name, field in kind.model_fields.items():
                alias = field.validation_alias
                if isinstance(alias, AliasChoices) and place in alias.choices:
                    raise BellaError(
                        f"{name!r} and {place!r} are one setting: give one of them."
                    ) from None
            known = ", ".join(kind.model_fields)
            raise BellaError(f"{place!r} is no setting; known settings are {known}.") from None
        raise BellaError(f"{place}={first['input']!r}: {first['msg']}.") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        BellaError: no file, no YAML, or no mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise BellaError(f"There is no configuration file {path}.") from None
    except yaml.YAMLError as error:
        raise BellaError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict):
        raise BellaError(f"{path} must hold a mapping of settings, such as 'epochs: 5'.")
    return content
