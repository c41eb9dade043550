"""Which process holds which particles and which examples.

    mesh = mesh_of(world, particles=2)

With W processes and ``particles=p`` each set of p neighbours holds all particles between them and
runs the same examples; the W / p sets share the examples of every batch. Coupling is said among
neighbours, gradients are said across sets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.distributed.device_mesh import init_device_mesh

from bella.errors import BellaError
from bella.parallel.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Mesh:
    """The place of one process.

    Attributes:
        world: all processes.
        particles: those that hold the other particles, for the same examples.
        data: those that hold the same particles, for other examples.
    """

    world: Ranks = ALONE
    particles: Ranks = ALONE
    data: Ranks = ALONE


def mesh_of(world: Ranks, particles: int = 1, device: str = "cpu") -> Mesh:
    """Divide the processes of a launch.

    Args:
        world: all of them.
        particles: so many processes share out the particles; 1: every process holds all.
        device: type of the devices that they compute on.

    Raises:
        BellaError: their number is no multiple of ``particles``.
    """
    if particles < 1 or world.size % particles:
        raise BellaError(
            f"particle_processes={particles} and {world.size} processes: let it divide their "
            "number."
        )
    if particles == 1:
        return Mesh(world, ALONE, world)
    if particles == world.size:
        return Mesh(world, world, ALONE)
    device = device if device == "cuda" and torch.cuda.is_available() else "cpu"
    grid = init_device_mesh(
        device, (world.size // particles, particles), mesh_dim_names=("data", "particles")
    )
    return Mesh(world, Ranks(grid.get_group("particles")), Ranks(grid.get_group("data")))
