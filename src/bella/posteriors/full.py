"""Full-parameter particles: n whole copies of a network, for the baselines.

Ensembles and SVGD on all weights are what low-rank particles are compared with. The copies move
through the same transports; each parameter is one stacked tensor (particles, ...).
"""

from __future__ import annotations

import torch
from torch import nn

from bella.errors import BellaError, nearest
from bella.particles import surgery, targets
from bella.particles.axis import ParticleAxis
from bella.particles.copies import copies_of
from bella.posterior import Posterior


class FullPosterior(Posterior):
    """n whole copies of one network. Made by `full`."""

    kind = "full"

    settles_passes = False
    loops_by_design = "each particle is a whole copy of the network"


def full(
    network: nn.Module,
    particles: int = 5,
    *,
    trainable: targets.Targets | None = None,
    reset: targets.Targets = (),
    start_std: float = 0.0,
    seed: int = 0,
) -> FullPosterior:
    """Copy a network n times, all weights and statistics of its own for each particle.

    Copies run one after another, so that any network can be copied and batch norm sees one copy at
    a time. The network lends its code and its frozen weights; leave it alone afterwards.

    Args:
        network: any ``nn.Module`` whose inputs have the batch as first axis.
        particles: number n of copies.
        trainable: parameters that are copied and train: names, suffixes or regular expressions, of
            parameters or of modules around them. The rest is frozen and shared. ``None`` for all.
        reset: modules that start anew by their ``reset_parameters``, differently in each copy;
            a head, say, or ``".*"`` for all: the members of an ensemble trained from scratch.
        start_std: standard deviation of noise on each copy's start. Copies that start as one point
            and see the same batches stay one point unless dropout or this parts them.
        seed: decides every start.

    Returns:
        The posterior; call it as the network was called.

    Raises:
        BellaError: unknown targets, nothing that trains, or no particles.
    """
    axis = ParticleAxis(particles)
    if start_std < 0:
        raise BellaError(f"start_std={start_std}: give a number of at least 0.")
    surgery.check(network)
    chosen = None if trainable is None else parameters_named(network, trainable)
    if not any(True for _ in network.parameters()):
        raise BellaError(f"{type(network).__name__} has no parameters, so nothing would train.")
    anew = targets.find(network, reset, what="reset")
    for name in anew:
        held = [path for path, _ in network.get_submodule(name).named_parameters(prefix=name)]
        if chosen is not None and not set(held) <= set(chosen):
            raise BellaError(f"reset names {name!r}, which is frozen: name it in trainable too.")
    copies = copies_of("", axis, network, in_kernel=True, trainable=chosen)
    copies.train(network.training)
    if anew:
        copies.reset(seed, anew)
    if start_std:
        for particle in range(particles):
            generator = torch.Generator().manual_seed((seed * 1_000_003 + particle) % 2**63)
            for value in copies.values.values():
                noise = torch.randn(value.shape[1:], generator=generator)
                value.data[particle] += start_std * noise.to(value)
    copies.base.requires_grad_(False)
    settings = {
        "particles": particles,
        "trainable": targets.as_list(trainable),
        "start_std": start_std,
        "seed": seed,
    }
    return FullPosterior(copies, axis, settings, shared_prefix=False)


def parameters_named(network: nn.Module, wanted: targets.Targets) -> list[str]:
    """Names of the parameters that targets mean, by their own name or a module's around them.

    Raises:
        BellaError: a target means none; the message lists near names.
    """
    known = [name for name, _ in network.named_parameters()]
    found: set[str] = set()
    for target in [wanted] if isinstance(wanted, str) else wanted:
        hits = [
            name
            for name in known
            if any(targets.matches(around, target) for around in _and_around(name))
        ]
        if not hits:
            near = nearest(target, {part for name in known for part in _and_around(name)}, count=5)
            raise BellaError(
                f"trainable={target!r} names no parameter of {type(network).__name__}: near names "
                f"are {near}."
            )
        found.update(hits)
    if not found:
        raise BellaError("Nothing to train: name parameters in trainable, or give None for all.")
    return [name for name in known if name in found]


def _and_around(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
