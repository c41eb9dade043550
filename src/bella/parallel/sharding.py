"""A frozen base that lies in shares on all processes, by torch's FSDP2.

    bella.parallel.sharding.shard_base(posterior)
    bella.fit(posterior, ...)

Each process keeps its share of every block's weights; a block gathers them when it runs and lets go
of them afterwards. Particles are not sharded: they are replicated, or divided among the processes
(``particle_processes``). A pass then needs all processes, so all of them call the posterior alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

from bella.errors import BellaError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from bella.posterior import Posterior


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The outermost repeated blocks: what lists of modules hold."""
    found: list[nn.Module] = []
    inside: set[int] = set()
    for module in network.modules():
        if id(module) in inside or not isinstance(module, nn.ModuleList):
            continue
        found += module
        inside |= {id(part) for block in module for part in block.modules()}
    return found


def shard_base(posterior: Posterior, mesh: DeviceMesh | None = None) -> None:
    """Shard what a posterior's particles share, in place.

    Args:
        posterior: the same in all processes, on the device that it computes on.
        mesh: the processes, one axis; all of them by default.

    Raises:
        BellaError: there is one process only, or part of the base trains.
    """
    from torch.distributed.fsdp import fully_shard

    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        raise BellaError(
            "A base is sharded over several processes: start them with torchrun, and call "
            "torch.distributed.init_process_group() first."
        )
    outside = posterior.trained_outside()
    if outside or posterior.trains_base:
        raise BellaError(
            f"The base trains ({next(iter(outside), posterior.kind)}), and what is sharded here is "
            "a frozen one: freeze it, or leave it whole."
        )
    if mesh is None:
        from torch.distributed.device_mesh import init_device_mesh

        mesh = init_device_mesh(next(posterior.parameters()).device.type, (dist.get_world_size(),))
    posterior.remember_base()  # no process has all of it afterwards
    own = {p for p in posterior.parameters() if p.requires_grad}
    own |= {
        p
        for layer in posterior.layers().values()
        for site in layer.sites()
        for p in site.parameters
    }
    for block in blocks_of(posterior.network):
        fully_shard(block, mesh=mesh, ignored_params=own)
    fully_shard(posterior.network, mesh=mesh, ignored_params=own)


def is_sharded(posterior: Posterior) -> bool:
    """Whether `shard_base` was here."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(p, DTensor) for p in posterior.parameters())


def bytes_of_base(posterior: Posterior) -> int:
    """Bytes of the base's weights that this process keeps."""
    from torch.distributed.tensor import DTensor

    kept = 0
    for p in posterior.network.parameters():
        if not p.requires_grad:
            local: torch.Tensor = p.to_local() if isinstance(p, DTensor) else p
            kept += local.nbytes
    return kept
