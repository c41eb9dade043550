"""Posteriors from disk onto a network: what `bella.storage` read, checked against it."""

from __future__ import annotations

import inspect
import json
import typing
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, ValidationError, create_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import bella
from bella.errors import BellaError, nearest
from bella.files import shown
from bella.particles.surgery import undone_if_refused
from bella.posterior import Posterior
from bella.posteriors.laplace.posterior import How, LaplacePosterior
from bella.prediction import mixture
from bella.prediction.mixture import Mixture
from bella.storage import (
    DTYPES,
    NAMES,
    Saved,
    base_dtype_of,
    check_numbers,
    fingerprint,
    own_tensors,
    read,
    said_wrong,
)

LARGEST_SETTING = 2**40
"""No setting of a posterior that fits into a machine is larger."""


def load(folder: str | Path, network: nn.Module) -> Posterior:
    """Give ``network`` the particles of a saved posterior.

    Args:
        folder: what `save` wrote; it may be a stranger's. Nothing in it is executed, and everything
            in it is checked before it is used.
        network: a fresh copy of the network that the posterior was made from; adapted in place, or
            left as it was where the posterior is refused. In another floating dtype it is taken
            with a warning where it can be seen to be the same.

    Raises:
        BellaError: no posterior there, a damaged file, or one that belongs to another network.
    """
    saved = read(Path(folder))
    settings = check_settings(saved.kind, saved.settings)
    _check_particles(saved.folder, settings, saved.tensors)
    with undone_if_refused(network):
        posterior = build(saved, network)
        _unfreeze(posterior, saved)
        fill(posterior, saved)
    return posterior


def load_mixture(folder: str | Path, network: nn.Module) -> Mixture:
    """Give ``network`` the particles of a saved mixture, and put around them what belongs to it.

    Args:
        folder: what `Mixture.save` wrote, or a run folder; it may be a stranger's.
        network: a fresh copy of the network that it was made from; adapted in place.

    Raises:
        BellaError: see `load`; or no mixture there, a damaged one, or one of other particles.
    """
    if not mixture.is_there(folder):
        raise BellaError(f"{folder} holds no mixture: {mixture.FILE} is missing.")
    return mixture.read_mixture(folder, load(folder, network))


def check_settings(kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A stranger's settings of a kind of posterior, checked against that kind's own arguments.

    Raises:
        BellaError: an unknown kind or setting, or a value of another type.
    """
    make = builder(kind)
    hints = typing.get_type_hints(make)
    fields: dict[str, Any] = {}
    for name, parameter in list(inspect.signature(make).parameters.items())[1:]:
        required = parameter.default is inspect.Parameter.empty
        fields[name] = (hints[name], ... if required else parameter.default)
    config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )
    try:
        schema = create_model(f"Settings of {kind}", __config__=config, **fields)
        # Through JSON, where a list is as good as a tuple and True is no number.
        schema.model_validate_json(json.dumps(settings))
    except ValidationError as error:
        if error.errors()[0]["type"] == "extra_forbidden":
            name = str(error.errors()[0]["loc"][0])
            raise BellaError(
                f"The settings of a saved posterior hold {name[:80]!r}, unknown to {kind}: "
                f"near are {nearest(name[:80], fields)}."
            ) from None
        raise BellaError(f"The settings of a saved posterior: {said_wrong(error)}.") from None
    except (ValueError, RecursionError):
        raise BellaError("The settings of a saved posterior are nested too deeply.") from None
    for name, value in settings.items():
        if isinstance(value, int) and abs(value) > LARGEST_SETTING:
            raise BellaError(f"The settings of a saved posterior: {name}={shown(value)}.")
    return dict(settings)


def _check_particles(
    folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Refuse a number of particles that the tensors do not have, before memory is asked for."""
    for name in ("particles", "components"):
        count = settings.get(name, 1)
        if not any(value.dim() and len(value) == count for value in tensors.values()) and (
            count != 1
        ):
            raise BellaError(
                f"The posterior in {folder} cannot be read: its settings have {name}="
                f"{shown(count)} and its tensors have not."
            )


def build(saved: Saved, network: nn.Module) -> Posterior:
    """Adapt ``network`` by a folder's settings, without its particles.

    Raises:
        BellaError: the settings do not fit the network, or ask for more memory than their file
            could ever fill.
    """
    sizes = (value.nbytes for value in saved.tensors.values())
    held = sum(value.nbytes for value in network.state_dict().values())
    try:
        with _Bounded(2**26 + 64 * (sum(sizes) + held)):
            return builder(saved.kind)(network, **saved.settings)
    except BellaError:
        raise
    except (RuntimeError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise BellaError(
            f"The posterior in {saved.folder} does not fit this network: {shown(str(error))}."
        ) from error


def _unfreeze(posterior: Posterior, saved: Saved) -> None:
    """Let those parameters of the base train that did when the posterior was saved.

    Raises:
        BellaError: the network does not have one of them, or it is none that could train.
    """
    known = dict(posterior.network.named_parameters())
    for name in saved.unfrozen:
        if name not in known or not known[name].is_floating_point():
            raise BellaError(
                f"The posterior in {saved.folder} was trained together with {shown(name)}, which "
                "is no parameter of this network that could train: load it on the network that it "
                "was trained on."
            )
    posterior.unfreeze(saved.unfrozen)


class _Bounded(TorchDispatchMode):
    """Ends a computation that makes more bytes of new tensors than it may."""

    def __init__(self, limit: int):
        super().__init__()
        self.left = limit

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not func.is_view and out is not (args or (None,))[0]:
            self.left -= out.nbytes
            if self.left < 0:
                raise BellaError(
                    "The settings of a saved posterior ask for far more memory than its file has: "
                    "they are not its own."
                )
        return out


def fill(posterior: Posterior, saved: Saved) -> None:
    """Give a posterior the particles of a folder; nothing is changed before all is checked.

    Raises:
        BellaError: names, shapes, dtypes or numbers do not fit, or the base is another.
    """
    own = own_tensors(posterior)
    try:
        tensors = posterior.unpacked(saved.tensors)
    except BellaError:
        raise
    except (RuntimeError, IndexError, TypeError, ValueError, KeyError) as error:
        raise BellaError(
            f"The posterior in {saved.folder} cannot be read: {shown(str(error))}."
        ) from None
    difference = _difference(own, tensors)
    if difference:
        raise BellaError(
            f"The posterior in {saved.folder} was made from another network ({difference}): load "
            "it on the network that it was trained on."
        )
    for name, value in own.items():
        check_numbers(name, tensors[name], value, f"The posterior in {saved.folder} cannot be read")
    _check_base(posterior, saved)
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])


def _difference(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str | None:
    """What tells a file's tensors from those that a posterior has, in words."""
    missing, foreign = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing:
        return f"the file lacks {missing[0]!r}"
    if foreign:
        return f"the file holds {foreign[0][:200]!r}, which this one has not"
    for name, value in own.items():
        if value.shape != tensors[name].shape:
            return f"{name!r} is {tuple(tensors[name].shape)} and would be {tuple(value.shape)}"
        if value.dtype != tensors[name].dtype and not (
            value.is_floating_point() and tensors[name].is_floating_point()
        ):
            return f"{name!r} is {tensors[name].dtype} and would be {value.dtype}"
    return None


def _check_base(posterior: Posterior, saved: Saved) -> None:
    """Refuse a base of other weights; the same ones in another dtype get a warning.

    Raises:
        BellaError: they are others, or cannot be seen to be the same.
    """
    if fingerprint(posterior) == saved.base:
        return
    here, there = base_dtype_of(posterior), saved.base_dtype
    if here is None or there is None or NAMES[here] == there or there not in DTYPES:
        raise BellaError(
            f"The posterior in {saved.folder} was made from another network: load it on the "
            "weights it was trained on."
        )
    # The larger of the two dtypes can be cast to the smaller one, never back.
    same = saved.base_cast.get(NAMES[here]) == fingerprint(posterior) or (
        fingerprint(posterior, DTYPES[there]) == saved.base
    )
    if not same:
        raise BellaError(
            f"The posterior in {saved.folder} was made from a network in {there} and this one is "
            f"in {NAMES[here]}, with other weights than rounding explains: load it on the weights "
            f"it was trained on, in {there}."
        )
    warnings.warn(
        f"The posterior in {saved.folder} was trained on this network in {there}, and the network "
        f"is in {NAMES[here]} now: predictions differ by rounding.",
        stacklevel=4,
    )


def builder(kind: str) -> Callable[..., Posterior]:
    """The constructor of a kind of posterior, from a network and settings.

    It is the function of that name, or that of `REBUILT` where that function asks for more than a
    network.

    Raises:
        BellaError: no such kind.
    """
    if kind not in bella.POSTERIORS:
        raise BellaError(
            f"Posteriors of kind {kind!r} are unknown here: upgrade bella-bnn (this is "
            f"{bella.__version__})."
        )
    return REBUILT.get(kind) or getattr(bella, kind)


def rebuild_laplace(
    network: nn.Module,
    around: dict[str, Any],
    *,
    predictive: How = "linearised",
    likelihood: str = "softmax",
    variance: float | None = 1.0,
    prior_precision: float = 1.0,
    log_likelihood: float = 0.0,
    full_up_to: int = 1024,
    factor_rank: int = 10,
) -> LaplacePosterior:
    """An empty Laplace posterior from its settings, around one that is built from its own.

    Raises:
        BellaError: the settings of the posterior that it lies around are not right.
    """
    kind, settings = around.get("kind"), around.get("settings")
    if not isinstance(kind, str) or not isinstance(settings, dict) or kind == "laplace":
        raise BellaError("The settings of a saved Laplace posterior do not say what it is around.")
    trained = builder(kind)(network, **check_settings(kind, settings))
    return LaplacePosterior(
        trained,
        predictive=predictive,
        likelihood=likelihood,
        variance=variance,
        prior_precision=prior_precision,
        log_likelihood=log_likelihood,
        full_up_to=full_up_to,
        factor_rank=factor_rank,
    )


REBUILT: dict[str, Callable[..., Posterior]] = {"laplace": rebuild_laplace}
"""Kinds whose function asks for more than a network."""
