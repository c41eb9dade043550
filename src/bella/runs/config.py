"""What a run is asked for: the settings of `bella.fit`, and what to train on what."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from bella.data import OnBadImage
from bella.data.opening import whole_name as whole_data
from bella.errors import BellaError
from bella.models import full_name
from bella.models.towers import TEMPLATES
from bella.recipes import recipe_named
from bella.training.settings import Settings, checked, read_yaml

LOW_RANK = ("rank", "alpha", "gain")
"""Fields that are options of `bella.low_rank` alone."""


class RunConfig(Settings):
    """What ``bella fit`` takes.

    Where a field is not given, `complete` takes what the method's recipe says
    (`bella.recipes.KINDS`): the learning rate of ``full``, say, or the transport of ``low-rank``.

    Attributes:
        data: folder with one sub-folder a class (or train, val and test with such), a CSV of
            path,label, a data set's name (`bella.data.SETS`) or ``hf:NAME``.
        folder: where a data set by name lies.
        classes: to keep; all by default.
        left_out: classes that are left out; their test images are a shift.
        limit: training images to keep at most, by class.
        data_options: further ones of the data set, such as ``domain`` of ``domainnet``.
        network: ``efficientnet-lite0``, ``vit-s14``, ``hf:NAME``, ``timm:NAME``,
            ``open_clip:NAME/TAG``, a folder, or ``package.module:function``; see
            `bella.models.open_network`.
        quantised: hold the frozen base of a network of transformers as ``4bit`` or ``8bit``
            (bitsandbytes) or ``int8`` (torchao); heads and particles are float32 as ever.
        image_size: pixels; the network's own by default.
        method: the kind of posterior, a name of `bella.recipes.KINDS`.
        particles: how many; the method's habit by default (5 of ``low-rank``).
        rank: of each low-rank change.
        alpha: see `bella.low_rank`.
        target_modules: layers to adapt; the network's defaults if not given.
        modules_to_save: heads; the network's default if not given.
        gain: factor on the start of A.
        mixture: how the particles are pooled with readouts of the frozen network (`bella.mixture`):
            ``linear``, ``log``, or ``none``.
        head_init: ``probe`` starts heads as linear probes of the frozen features, on a resample for
            each particle, and trains them (as in every comparison); ``frozen`` leaves them so;
            ``copy`` takes the network's; ``zero-shot`` starts a CLIP's head as the texts of the
            classes; ``reset`` starts them anew by their own ``reset_parameters``. A head that is
            not one Linear cannot be a probe and starts as a copy.
        templates: prompts of ``zero-shot``, with ``{}`` for a class's name.
        from_adapters: folders of PEFT adapters (or ``hf:owner/name``) that the particles start as,
            with their ranks, layers and heads; see `bella.from_peft`.
        options: further arguments of the method's constructor, such as ``density`` of ``ssvi``.
        workers: processes that read images; 0 reads them in this one.
        on_bad_image: ``stop`` at an image that cannot be read, or ``skip`` and count such.
    """

    data: str
    folder: str | None = None
    classes: list[str] | None = None
    left_out: list[str] | None = None
    limit: int | None = Field(None, ge=1)
    data_options: dict[str, Any] = Field(default_factory=dict)
    network: str = "efficientnet-lite0"
    quantised: Literal["4bit", "8bit", "int8"] | None = None
    image_size: int | None = Field(None, ge=1)
    method: str = "low-rank"
    particles: int | None = Field(None, ge=1)
    rank: int = Field(4, ge=1)
    alpha: float | None = None
    target_modules: list[str] | None = None
    modules_to_save: list[str] | None = None
    gain: float = 1.0
    mixture: Literal["linear", "log", "none"] = "none"
    head_init: Literal["probe", "frozen", "copy", "zero-shot", "reset"] = "probe"
    templates: list[str] = Field(default_factory=lambda: list(TEMPLATES), min_length=1)
    from_adapters: list[str] | None = Field(None, min_length=1)
    options: dict[str, Any] = Field(default_factory=dict)
    workers: int = Field(0, ge=0)
    on_bad_image: OnBadImage = "stop"

    def data_arguments(self) -> dict[str, Any]:
        """Arguments of `bella.data.open_data` beside the preprocessing."""
        return {
            "data": self.data,
            "seed": self.seed,
            "folder": self.folder,
            "classes": self.classes or (),
            "left_out": self.left_out or (),
            "limit": self.limit,
            "options": self.data_options,
            "on_bad_image": self.on_bad_image,
        }

    def constructor_options(self) -> dict[str, Any]:
        """Arguments of the method's constructor."""
        own = {name: getattr(self, name) for name in LOW_RANK} if self._starts_anew else {}
        return own | ({"head_init": "reset"} if self.head_init == "reset" else {}) | self.options

    def written(self) -> dict[str, Any]:
        """What a configuration file holds: all fields that this method has."""
        return self.model_dump(exclude=None if self._starts_anew else set(LOW_RANK))

    def fit_settings(self) -> dict[str, Any]:
        """The settings of `bella.fit`."""
        return {name: getattr(self, name) for name in Settings.model_fields}

    @property
    def _starts_anew(self) -> bool:
        """Whether low-rank particles start by these settings, and not as adapters."""
        return recipe_named(self.method).constructor == "low_rank" and not self.from_adapters


def read_config(
    path: str | Path | None,
    flags: dict[str, Any],
    kinds: Mapping[str, type[RunConfig]] | None = None,
) -> Any:
    """A YAML file's settings with the flags that were given over them.

    Args:
        path: of the file, if there is one.
        flags: by the fields' names.
        kinds: of the settings, by the task that is named, those of texts by ``""``; of images
            alone by default.

    Raises:
        BellaError: no such file, no data, an unknown setting or a value out of range.
    """
    values = read_yaml(path) if path is not None else {}
    for name, value in flags.items():
        if isinstance(value, dict) and isinstance(values.get(name), dict):
            values[name] |= value  # one option of the transport leaves the others
        elif value is not None:
            values[name] = value
    if "data" not in values:
        raise BellaError(
            "Nothing to train on: give --data FOLDER (or a data set's name; `bella data` lists "
            "them), or 'data:' in the configuration."
        )
    if "task" not in values or kinds is None:
        return checked(RunConfig, values)
    return checked(kinds.get(str(values["task"]), kinds[""]), values)


Config = TypeVar("Config", bound=RunConfig)


def complete(config: Config) -> Config:
    """The same with the method's own settings where none were given, and with whole paths, so that
    a run does not depend on the folder that it was started from.

    Raises:
        BellaError: an unknown method, or a field that the method does not have.
    """
    recipe, given = recipe_named(config.method), config.model_fields_set
    strange = [name for name in LOW_RANK if name in given and recipe.constructor != "low_rank"]
    if strange:
        raise BellaError(
            f"{strange[0]} is a setting of the methods low-rank and laplace: leave it out with "
            f"method {config.method!r}."
        )
    if config.head_init in ("frozen", "reset") and recipe.constructor != "low_rank":
        raise BellaError(
            f"head_init={config.head_init!r} is for the methods low-rank and laplace: choose "
            f"'probe' or 'copy' with method {config.method!r}."
        )
    if config.from_adapters is not None:
        config = _with_adapters(config)
    if config.mixture != "none" and not recipe.mixes:
        raise BellaError(
            f"mixture={config.mixture!r} is for the method low-rank, whose particles began as one "
            f"frozen network: leave it out with method {config.method!r}."
        )
    recipe.refuse_unknown(config.options)
    values = {name: value for name, value in recipe.settings.items() if name not in given}
    if config.transport != recipe.settings.get("transport") and "transport" in given:
        values.pop("transport_options", None)  # a temperature is chosen for one transport
    elif "transport_options" in given:
        values["transport_options"] = {
            **recipe.settings.get("transport_options", {}),
            **config.transport_options,
        }
    values |= {name: value for name, value in recipe.build.items() if name not in given}
    if recipe.mixes and "mixture" not in given:
        values["mixture"] = "linear"
    values |= {
        "particles": recipe.particles if config.particles is None else config.particles,
        "data": whole_data(config.data, config.folder),
        "folder": None if config.folder is None else str(Path(config.folder).absolute()),
        "network": full_name(config.network),
    }
    return checked(type(config), config.model_dump(exclude_unset=True) | values)


def _with_adapters(config: Config) -> Config:
    """A run whose particles start as adapters: as many as there are, heads as they are there.

    Raises:
        BellaError: a method without low-rank particles, or a setting that the adapters decide.
    """
    folders, given = config.from_adapters or [], config.model_fields_set
    if recipe_named(config.method).constructor != "low_rank":
        raise BellaError(
            f"from_adapters is for the methods low-rank and laplace: leave it out with method "
            f"{config.method!r}."
        )
    decided = [name for name in LOW_RANK if name in given]
    decided += [name for name in config.options if name not in ("folding", "batch_axes")]
    if config.target_modules is not None:
        decided.append("target_modules")
    if "particles" in given and config.particles != len(folders):
        decided.append("particles")
    if "head_init" in given and config.head_init != "copy":
        decided.append("head_init")
    if decided:
        raise BellaError(
            f"{decided[0]} is decided by the {len(folders)} adapter{'s' * (len(folders) > 1)} of "
            "from_adapters: leave it out."
        )
    whole = [name if name.startswith("hf:") else str(Path(name).absolute()) for name in folders]
    own = {"from_adapters": whole, "particles": len(folders), "head_init": "copy"}
    return checked(type(config), config.model_dump(exclude_unset=True) | own)
