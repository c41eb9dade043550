"""Low-rank particles: n changes B_i A_i of one frozen network (Bella, Eq. 3).

W_i = W0 + s B_i A_i with s = alpha / rank (rsLoRA: alpha / √rank). The layers are in
`bella.posteriors.low_rank.layers`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from bella.errors import BellaError
from bella.particles import targets
from bella.particles.axis import ParticleAxis
from bella.particles.copies import copies_of
from bella.particles.layer import ParticleLayer
from bella.posterior import Posterior, check_prefix
from bella.posteriors.low_rank.layers import LowRankLayer, layer_kind

Init = Literal["kaiming", "xavier", "normal"]


def refuse_bypassed(network: nn.Module, name: str) -> None:
    """Refuse layers whose parent reads their weight and never calls them.

    Raises:
        BellaError: the layer stands in ``nn.MultiheadAttention``, or its weight is tied.
    """
    parts = name.split(".")
    for depth in range(len(parts)):
        if isinstance(network.get_submodule(".".join(parts[:depth])), nn.MultiheadAttention):
            raise BellaError(
                f"Layer {name!r} stands in nn.MultiheadAttention, which reads its weight and never "
                "calls it, so its particles would be ignored: target other layers."
            )
    weight = getattr(network.get_submodule(name), "weight", None)
    sharing = [
        other
        for other, module in network.named_modules(remove_duplicate=False)
        if other != name and weight is not None and getattr(module, "weight", None) is weight
    ]
    if sharing:
        raise BellaError(
            f"Layer {name!r} shares its weight with {sharing[0]!r}, which a merged particle would "
            "change as well: target other layers, or untie the two first."
        )


def leave_fused_path(network: nn.Module) -> None:
    """Keep ``nn.TransformerEncoderLayer`` on the path that calls its layers.

    In evaluation it otherwise hands its weights to one fused kernel, past any particle layer.
    """
    for module in network.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and any(
            isinstance(child, ParticleLayer) for child in module.modules()
        ):
            module.activation_relu_or_gelu = 0


class LowRankPosterior(Posterior):
    """n low-rank changes of one frozen network. Made by `low_rank`."""

    kind = "low_rank"


def low_rank(
    network: nn.Module,
    particles: int = 5,
    rank: int = 4,
    target_modules: targets.Targets = ("fc1", "fc2"),
    *,
    alpha: float | None = None,
    rslora: bool = False,
    modules_to_save: targets.Targets = (),
    init: Init = "kaiming",
    gain: float = 1.0,
    b_std: float = 0.0,
    head_init: Literal["copy", "reset"] = "copy",
    shared_prefix: bool | str = True,
    seed: int = 0,
) -> LowRankPosterior:
    """Give a network n particles that differ by low-rank changes of chosen layers.

    The network is adapted in place and its own weights are frozen.

    Args:
        network: any ``nn.Module`` whose inputs have the batch as first axis.
        particles: number n of particles.
        rank: rank r of each change; r (in + out) parameters a layer and particle.
        target_modules: layers to change: names, suffixes or regular expressions; Linear, Conv2d
            and Hugging Face's Conv1D. Empty for none (then ``modules_to_save`` alone differ).
        alpha: the change is (alpha / rank) B A; ``None`` means alpha = rank, a scale of 1.
        rslora: scale by alpha / √rank instead (Kalajdzievski 2023).
        modules_to_save: heads of which each particle trains a full copy.
        init: distribution of A: ``kaiming`` uniform with a = √5 (LoRA's), ``xavier`` uniform, or
            ``normal`` with standard deviation 1 / √in.
        gain: factor on A's start.
        b_std: standard deviation of B's start; 0 starts every particle at the base network.
        head_init: heads start as copies of the network's, or ``reset`` by their own
            ``reset_parameters``, differently for each particle.
        shared_prefix: run what comes before the first adapted block once for all particles; the
            name of a module opens the axis there; ``False`` opens it at the inputs.
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
    if not isinstance(rank, int) or rank < 1:
        raise BellaError(f"rank={rank!r}: give a whole number of at least 1.")
    scale = (rank if alpha is None else alpha) / (math.sqrt(rank) if rslora else rank)
    heads = targets.find(network, modules_to_save, what="modules_to_save")
    names = [
        name
        for name in targets.find(network, target_modules)
        if not any(name == head or name.startswith(f"{head}.") for head in heads)
    ]
    if not names and not heads:
        raise BellaError("Nothing to train: name layers in target_modules or modules_to_save.")

    check_prefix(network, shared_prefix)
    # Every check comes before the first change: a refused network is left as it was.
    layers: dict[str, ParticleLayer] = {}
    for name in names:
        refuse_bypassed(network, name)
        base = network.get_submodule(name)
        layers[name] = layer_kind(name, base)(name, axis, base, rank, scale)
    for name in heads:
        head = network.get_submodule(name)
        if not any(True for _ in head.parameters()):
            raise BellaError(
                f"modules_to_save names {name!r}, a {type(head).__name__} without parameters: "
                "name a module that has some."
            )
        layers[name] = copies_of(name, axis, head, in_kernel=not names)

    for particle in range(particles):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + particle)
        for layer in layers.values():
            if isinstance(layer, LowRankLayer):
                start_(layer.A.data[particle], init, gain, generator)
                if b_std:
                    layer.B.data[particle].copy_(
                        b_std * torch.randn(layer.B.shape[1:], generator=generator)
                    )
    if head_init == "reset":
        for index, name in enumerate(heads):
            layers[name].reset(seed * 1_000_003 + index)  # type: ignore[operator]

    network.requires_grad_(False)
    for name, layer in layers.items():
        targets.replace(network, name, layer)
    leave_fused_path(network)
    settings = {
        "particles": particles,
        "rank": rank,
        "target_modules": targets.as_list(target_modules),
        "alpha": alpha,
        "rslora": rslora,
        "modules_to_save": targets.as_list(modules_to_save),
        "init": init,
        "gain": gain,
        "b_std": b_std,
        "head_init": head_init,
        "shared_prefix": shared_prefix,
        "seed": seed,
    }
    return LowRankPosterior(network, axis, settings, shared_prefix=shared_prefix)


def start_(A: Tensor, init: Init, gain: float, generator: torch.Generator) -> None:
    """Draw one particle's A (rank, in) in place.

    Drawn on the CPU, so that one seed gives one start on every device.
    """
    rank, inputs = A.shape
    draw = torch.empty(rank, inputs, dtype=torch.float32)
    if init == "kaiming":
        nn.init.kaiming_uniform_(draw, a=math.sqrt(5), generator=generator)
    elif init == "xavier":
        nn.init.xavier_uniform_(draw, generator=generator)
    else:
        nn.init.normal_(draw, std=1 / math.sqrt(inputs), generator=generator)
    A.copy_(gain * draw)
