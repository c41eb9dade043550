"""The settings of a run, checked once, written to the run folder, read from YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from bella.errors import BellaError
from bella.files import count_values, read_bytes, shown
from bella.likelihood import Mean, Name
from bella.precision import BaseDtype

LARGEST_YAML = 2**20
"""Bytes of a configuration."""
MOST_VALUES = 10_000
"""Values of a configuration, those of aliases counted where they are used."""
PerPass = Annotated[int, Field(ge=1)] | Literal["auto"] | None


class Settings(BaseModel):
    """How particles are trained. Every field is an argument of `bella.fit`.

    Attributes:
        epochs: passes over the training data.
        batch_size: examples a step (only for data given as a data set; a loader has its own).
        learning_rate: peak learning rate of AdamW.
        weight_decay: AdamW's, on all trained parameters (but not on rank-1 factors, which have
            a prior of their own): a prior on low-rank factors and not on their product. With an
            optimiser of your own 0 leaves the choice to it.
        warmup: fraction of the steps over which the learning rate rises from 0; it then falls to 0
            as a cosine.
        clip: largest gradient norm of one particle; ``None`` for no limit.
        precision: ``float32`` (as the parameters are; ``no`` is the same), ``bf16`` or ``fp16`` by
            autocast, or ``auto``: bf16 where the device multiplies it, the network gains and the
            first batch agrees (docs/performance.md), else float32.
        base_dtype: what the frozen base is held in: ``auto`` is the dtype of the products,
            ``float32`` leaves it as it is.
        likelihood: what the labels are (a name in `bella.likelihood.LIKELIHOODS`), or ``auto``: as
            the network's own loss takes them.
        mean_over: the ``labels`` of a step that count, or its ``examples``, each by the mean over
            its own labels; see `bella.nll`.
        class_weights: what labels of each class weigh, or of several labels each; see `bella.nll`.
            What each example weighs comes with the data (docs/data.md).
        accumulate: batches a step. They are one batch: labels weigh in it what they weigh.
        particles_per_pass: run so many particles at once (less memory, the same gradients);
            ``auto`` for as many as fit into ``memory_budget``, measured on the first batch.
        memory_budget: bytes for what a step makes and drops again, beside parameters, gradients and
            the optimiser's state; ``None`` for the default of `bella.memory.at_once`.
        checkpoint: run modules a second time in the backward pass, for less memory: their names, or
            ``True`` for the blocks with particles (see `bella.recompute`). ``recompute`` is the
            same setting by its better name; give one of them.
        minibatches: all particles see the ``shared`` batch, or each its ``own``.
        patience: stop after so many epochs without a better validation NLL.
        on_nonfinite: ``stop`` where a loss, a gradient or a distance of particles is not finite, or
            ``skip`` that step; the history counts such steps. An epoch of nothing else stops.
        checkpoint_every: save so many steps apart within an epoch too, so that a long one is not
            lost; a run goes on in the middle of an epoch to the same bits. ``None``: after each
            epoch, and when it is stopped by Ctrl-C or SIGTERM.
        keep_checkpoints: the newest so many stay; where the last is damaged, the run goes on from
            the one before.
        keep: the ``best`` epoch by validation NLL, or the ``last``.
        cache_prefix: keep what the shared prefix makes of the data: ``False``, ``True`` (what is
            random in data or prefix is then frozen as it was read first), or ``auto``: of tensors
            and bella's own readers without augmentation, if the prefix is not random. A data set
            of your own that is the same each time may say so by an attribute ``fixed = True``.
        cache_bytes: above this size the cache lies on disk, in a nameless temporary file.
        cache_disk_bytes: above this size there is none (with ``auto``), or an error.
        transport: name in `bella.transport.TRANSPORTS`.
        transport_options: its arguments (temperature, kernel, prior, ...).
        coupling_warmup: fraction of the steps over which the coupling rises to its strength.
        kl_weight: factor on the KL divergence of stochastic posteriors, over N beside the mean over
            particles of the negative log-likelihood (docs/methods.md).
        kl_warmup: epochs over which that factor rises from 0; no more than there are.
        particle_processes: of several processes (torchrun) so many neighbours share out the
            particles, and the sets of them the examples of a batch; 1: all hold all particles.
        device: where it runs, such as ``cpu`` or ``cuda``; the GPU if there is one.
        seed: decides every random number of the run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(5, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    warmup: float = Field(0.1, ge=0, le=1)
    clip: float | None = Field(1.0, gt=0)
    precision: Literal["auto", "float32", "bf16", "fp16"] = "float32"
    base_dtype: BaseDtype = "auto"
    likelihood: Name = "auto"
    mean_over: Mean = "labels"
    class_weights: list[float] | None = Field(None, min_length=1)
    accumulate: int = Field(1, ge=1)
    particles_per_pass: PerPass = None
    memory_budget: int | None = Field(None, ge=1)
    checkpoint: bool | list[str] = Field(
        False, validation_alias=AliasChoices("checkpoint", "recompute")
    )
    minibatches: Literal["shared", "own"] = "shared"
    patience: int | None = Field(None, ge=1)
    on_nonfinite: Literal["stop", "skip"] = "stop"
    checkpoint_every: int | None = Field(None, ge=1)
    keep_checkpoints: int = Field(1, ge=1, le=100)
    keep: Literal["best", "last"] = "best"
    cache_prefix: bool | Literal["auto"] = "auto"
    cache_bytes: int = Field(2**30, ge=0)
    cache_disk_bytes: int = Field(2**35, ge=0)
    transport: str = "repulsive"
    transport_options: dict[str, Any] = Field(default_factory=dict)
    coupling_warmup: float = Field(0.1, ge=0, le=1)
    kl_weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    kl_warmup: int = Field(0, ge=0)
    particle_processes: int = Field(1, ge=1)
    device: str | None = None
    seed: int = Field(0, ge=0, lt=2**63)

    @field_validator("precision", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        """``no`` is float32 by its older name; YAML reads it as false."""
        return "float32" if value is False or value == "no" else value

    @model_validator(mode="after")
    def _together(self) -> Self:
        """What one setting says of another."""
        own = self.minibatches == "own"
        if own and self.transport == "function":
            raise BellaError("transport 'function' compares predictions on one batch: share it.")
        if own and self.cache_prefix is True:
            raise BellaError(
                "cache_prefix=True caches what the particles share, and with minibatches='own' "
                "they share no batch: leave out one of the two."
            )
        if self.kl_warmup > self.epochs:
            raise BellaError(
                f"kl_warmup={self.kl_warmup} is longer than the training (epochs={self.epochs}): "
                "the divergence would never count whole, so give at most as many."
            )
        if self.memory_budget is not None and self.particles_per_pass != "auto":
            raise BellaError(
                "memory_budget is for particles_per_pass='auto': give both, or neither."
            )
        return self


def checked(kind: type[BaseModel], values: dict[str, Any]) -> Any:
    """Build settings, or say in one sentence which is wrong.

    Raises:
        BellaError: an unknown name, one setting by both its names, a value out of range, or two
            settings that cannot be together.
    """
    for name, value in values.items():
        field = kind.model_fields.get(name)
        taken = () if field is None else (field.annotation, *get_args(field.annotation))
        if isinstance(value, bool) and bool not in taken and {int, float} & set(taken):
            raise BellaError(f"{name}={value}: give a number.")  # and not the 1 that True equals
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        sentence = first.get("ctx", {}).get("error")
        if isinstance(sentence, BellaError):
            raise sentence from None
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            for name, field in kind.model_fields.items():
                alias = field.validation_alias
                if isinstance(alias, AliasChoices) and place in alias.choices:
                    raise BellaError(
                        f"{name!r} and {place!r} are one setting: give one of them."
                    ) from None
            known = ", ".join(kind.model_fields)
            raise BellaError(f"{place[:80]!r} is no setting; known settings are {known}.") from None
        raise BellaError(f"{place[:80]}={shown(first['input'])}: {first['msg']}.") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        BellaError: no file, no YAML, no mapping, or one beyond any reason.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(read_bytes(path, LARGEST_YAML))
    except FileNotFoundError:
        raise BellaError(f"There is no configuration file {path}.") from None
    except BellaError:
        raise
    except (yaml.YAMLError, RecursionError, ValueError, OSError) as error:
        # ValueError: no UTF-8, a date that does not exist, a number of thousands of digits.
        said = " ".join(str(error).split())[:300].rstrip(".")
        raise BellaError(f"{path} is not valid YAML: {said}.") from None
    if not isinstance(content, dict):
        raise BellaError(f"{path} must hold a mapping of settings, such as 'epochs: 5'.")
    if count_values(content) >= MOST_VALUES:
        raise BellaError(
            f"{path} stands for more than {MOST_VALUES:,} values (aliases of aliases?): write a "
            "configuration of a page."
        )
    return content
