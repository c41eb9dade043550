"""Low-rank particles: n changes B_i A_i of one frozen network (Bella, Eq. 3).

W_i = W0 + s B_i A_i with s = alpha / rank (rsLoRA: alpha / √rank). The layers are in
`bella.posteriors.low_rank.layers`.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from bella.errors import BellaError
from bella.particles import architectures, surgery, targets
from bella.particles.activated import activations
from bella.particles.axis import ParticleAxis
from bella.particles.copies import copies_of, why_no_head
from bella.particles.layer import ParticleLayer
from bella.particles.plan import Plan
from bella.particles.planner import BatchAxes, Folding
from bella.particles.prefix import check_prefix
from bella.particles.quantised import is_quantised, keep_gradients
from bella.particles.statistics import keep_statistics, moved_by
from bella.particles.stream import Stream
from bella.posterior import Posterior
from bella.posteriors.low_rank.kinds import kind_of, why_no_kind
from bella.posteriors.low_rank.layers import LowRankLayer
from bella.trees import map_tensors

Init = Literal["kaiming", "xavier", "normal"]


class LowRankPosterior(Posterior):
    """n low-rank changes of one frozen network. Made by `low_rank`."""

    kind = "low_rank"
    keeps_base = True
    _moved: tuple[str, ...] = ()
    _watched: frozenset[str] = frozenset()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """See `Posterior.forward`."""
        self._find_statistics(args, kwargs)
        return super().forward(*args, **kwargs)

    def plan_for(self, *args: Any, **kwargs: Any) -> Plan:
        """See `Posterior.plan_for`."""
        self._find_statistics(args, kwargs)
        return super().plan_for(*args, **kwargs)

    def prefix(self, *args: Any, **kwargs: Any) -> Stream:
        """See `Posterior.prefix`.

        Raises:
            BellaError: parameters of the base train, which what is held could not tell gradients.
        """
        if torch.is_grad_enabled() and (outside := self.trained_outside()):
            raise BellaError(
                f"Parameters of the base train ({', '.join(list(outside)[:3])}), so what comes "
                "before the particles cannot be held while training: call the posterior itself, "
                "or freeze them."
            )
        return super().prefix(*args, **kwargs)

    def begun(self, *args: Any, **kwargs: Any) -> tuple[tuple, dict[str, Any]]:
        """See `Posterior.begun`; the inputs as they are while parameters of the base train."""
        if torch.is_grad_enabled() and self.trained_outside():
            self.prove(*args, **kwargs)
            return args, kwargs
        return super().begun(*args, **kwargs)

    def train(self, mode: bool = True) -> LowRankPosterior:
        """Training mode; what keeps statistics of its own in the frozen base keeps them."""
        super().train(mode)
        if mode:
            for name in self._moved:
                self.network.get_submodule(name).training = False
            keep_statistics(self.network)
        return self

    def _plain(self, particle: int | None) -> nn.Module:
        """See `Posterior.particle`; of layers that hold codes it says what is lost."""
        coded = [
            layer
            for layer in self.layers().values()
            if isinstance(layer, LowRankLayer) and is_quantised(layer.base)
        ]
        if coded:
            kind = type(coded[0].base._parameters["weight"]).__name__
            warnings.warn(
                f"{len(coded)} of the layers hold codes ({kind}), which no change can be added to: "
                "in the merged network they are plain layers, computed without the codes' "
                "rounding, and take the memory of an unquantised one. Adapters beside the codes "
                "keep both (bella.to_peft).",
                stacklevel=3,
            )
        return super()._plain(particle)

    def _find_statistics(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Before the first pass that trains, run one particle to see which frozen modules keep
        statistics."""
        stream = args[0] if args and isinstance(args[0], Stream) else None
        kind = "inputs" if stream is None else "stream"
        if not self.training or kind in self._watched or torch.compiler.is_compiling():
            return

        def run() -> None:
            if stream is not None:
                self.passes.resume(stream, Plan("shared, looped"))
                return
            inputs = map_tensors(torch.clone, (args, kwargs))
            if self.axis.own_inputs:
                inputs = map_tensors(lambda x: x[0], inputs)
            self.passes.loop(Plan("looped"), *inputs)

        try:
            with torch.no_grad(), self.passes.turns, self.subset(self.axis.chosen[:1]):
                self._moved += moved_by(self.network, run)
        except BellaError:
            raise
        except Exception:
            return  # the pass itself will say what is wrong with its inputs
        self._watched |= {kind, "stream"}


def low_rank(
    network: nn.Module,
    particles: int = 5,
    rank: int = 4,
    target_modules: targets.Targets = ("fc1", "fc2"),
    *,
    alpha: float | None = None,
    rslora: bool = False,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    modules_to_save: targets.Targets = (),
    init: Init = "kaiming",
    gain: float = 1.0,
    b_std: float = 0.0,
    head_init: Literal["copy", "reset"] = "copy",
    shared_prefix: bool | str = True,
    folding: Folding = "auto",
    batch_axes: BatchAxes | None = None,
    seed: int = 0,
) -> LowRankPosterior:
    """Give a network n particles that differ by low-rank changes of chosen layers.

    The network is adapted in place and its own weights are frozen.

    Args:
        network: any ``nn.Module`` whose inputs have the batch as first axis.
        particles: number n of particles.
        rank: rank r of each change; r (in + out) parameters a layer and particle.
        target_modules: layers to change: names, suffixes or regular expressions; Linear, Conv1d,
            Conv2d, Conv3d, Embedding and Hugging Face's Conv1D. ``"all-linear"`` for every Linear
            and Conv1D that can be changed at this rank, but heads and what turns a language
            model's features into tokens. ``"auto"`` for what LoRA's users adapt in this
            architecture (`bella.particles.architectures`; ``settings`` say what it was). Empty for
            none (then ``modules_to_save`` alone differ).
        alpha: the change is (alpha / rank) B A; ``None`` means alpha = rank, a scale of 1.
        rslora: scale by alpha / √rank instead (Kalajdzievski 2023).
        rank_pattern: other ranks for some layers, by a name, its end or a regular expression, as
            in PEFT; the first that matches counts.
        alpha_pattern: other alphas for some layers, likewise.
        modules_to_save: heads of which each particle trains a full copy; ``"auto"`` for what a
            fine-tune of this network starts anew.
        init: distribution of A: ``kaiming`` uniform with a = √5 (LoRA's), ``xavier`` uniform, or
            ``normal`` with standard deviation 1 / √in.
        gain: factor on A's start.
        b_std: standard deviation of B's start; 0 starts every particle at the base network.
        head_init: heads start as copies of the network's, or ``reset`` by their own
            ``reset_parameters``, differently for each particle.
        shared_prefix: run what comes before the first adapted block once for all particles; the
            name of a module opens the axis there; ``False`` opens it at the inputs.
        folding: whether particles run in one pass: ``auto`` where that is proven to be right,
            ``never``, or ``always``; see `bella.Posterior`.
        batch_axes: which arguments carry the batch, for a caller who knows; see `bella.Posterior`.
        seed: decides every start; particle i starts the same whatever ``particles`` is.

    Returns:
        The posterior; call it as the network was called.

    Raises:
        BellaError: unknown or unsuitable targets, a rank that does not fit, no particles.

    Source:
        Doan et al., Bayesian Low-Rank LeArning (Bella), Eq. 3; Hu et al. 2021 (LoRA).
    """
    axis = ParticleAxis(particles)
    if init not in ("kaiming", "xavier", "normal"):
        raise BellaError(f"init={init!r} is unknown: choose 'kaiming', 'xavier' or 'normal'.")
    ranks, alphas = dict(rank_pattern or {}), dict(alpha_pattern or {})
    for what, given in {
        "rank": rank,
        **{f"rank_pattern[{k!r}]": r for k, r in ranks.items()},
    }.items():
        if not isinstance(given, int) or given < 1:
            raise BellaError(f"{what}={given!r}: give a whole number of at least 1.")
    surgery.check(network)
    keep_gradients(network)
    modules_to_save = architectures.resolved(network, modules_to_save, heads=True)
    target_modules = architectures.resolved(network, target_modules)
    reasons = surgery.bypassed(network)
    unheard = partial(why_no_head, network, surgery.unreached(network))
    heads = surgery.choose(network, modules_to_save, unheard, what="modules_to_save")
    names = surgery.choose(
        network, target_modules, partial(refusal, network, reasons), beside=heads
    )
    if not names and not heads:
        raise BellaError("Nothing to train: name layers in target_modules or modules_to_save.")
    check_patterns(names, {"rank_pattern": ranks, "alpha_pattern": alphas})

    check_prefix(network, shared_prefix)
    layers: dict[str, ParticleLayer] = {}
    for name in names:
        base = network.get_submodule(name)
        kind = kind_of(base)
        assert kind is not None
        own = targets.value_for(name, ranks, rank)
        strength = targets.value_for(name, alphas, own if alpha is None else alpha)
        try:
            layers[name] = kind(
                name, axis, base, own, strength / (math.sqrt(own) if rslora else own)
            )
        except BellaError:
            if not surgery.everything(target_modules):
                raise
    if not layers and not heads:
        raise BellaError(f"No Linear layer of {type(network).__name__} can have rank {rank}.")
    adapted = bool(layers)
    for name in heads:
        head = network.get_submodule(name)
        layers[name] = copies_of(name, axis, head, in_kernel=not adapted)

    for particle in range(particles):
        generator = torch.Generator().manual_seed((seed * 1_000_003 + particle) % 2**63)
        for layer in layers.values():
            if isinstance(layer, LowRankLayer):
                layer.start(particle, init, gain, b_std, generator)
    if head_init == "reset":
        for index, name in enumerate(heads):
            layers[name].reset((seed * 1_000_003 + index) % 2**63)  # type: ignore[operator]

    functions = activations(network, beside=(*names, *heads))
    surgery.install(network, functions | layers, freeze=True)
    settings = {
        "particles": particles,
        "rank": rank,
        "target_modules": targets.as_list(target_modules),
        "alpha": alpha,
        "rslora": rslora,
        "rank_pattern": ranks or None,
        "alpha_pattern": alphas or None,
        "modules_to_save": targets.as_list(modules_to_save),
        "init": init,
        "gain": gain,
        "b_std": b_std,
        "head_init": head_init,
        "seed": seed,
    }
    return LowRankPosterior(
        network, axis, settings, shared_prefix=shared_prefix, folding=folding, batch_axes=batch_axes
    )


def refusal(network: nn.Module, reasons: dict[str, str], name: str) -> str | None:
    """Why a layer gets no low-rank particles, as far as its class and place tell."""
    return why_no_kind(name, network.get_submodule(name)) or reasons.get(name)


def check_patterns(names: Sequence[str], patterns: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a key of a pattern that no adapted layer matches, or that is no expression.

    Raises:
        BellaError: either.
    """
    for what, pattern in patterns.items():
        for key, value in pattern.items():
            try:
                used = any(targets.value_for(name, {key: True}, False) for name in names)
            except re.error as error:
                raise BellaError(f"{what} has {key!r}, no regular expression ({error}).") from None
            if not used:
                raise BellaError(
                    f"{what} has {key!r}={value!r}, which no adapted layer matches: adapted are "
                    f"{', '.join(map(repr, names[:5]))}{' ...' if len(names) > 5 else ''}."
                )
