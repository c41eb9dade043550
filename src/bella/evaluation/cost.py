"""`bella.cost`: what a posterior costs in parameters, bytes and memory."""

from __future__ import annotations

import resource
import sys

import torch

from bella.posterior import Posterior
from bella.storage import own_tensors


def cost(posterior: Posterior) -> dict[str, int]:
    """Count a posterior.

    Returns:
        ``particles``; ``trainable`` parameters in all and ``trainable_per_particle``, those of one
        particle alone; ``base`` parameters, frozen and shared; ``bytes_on_disk`` of what a file
        holds (without the header of about 100 bytes a tensor); ``peak_memory`` in bytes: of the GPU
        since its last reset where the posterior lies on one, else of this process.
    """
    trainable = sum(p.numel() for p in posterior.network.parameters() if p.requires_grad)
    base = sum(p.numel() for p in posterior.network.parameters() if not p.requires_grad)
    own = own_tensors(posterior).values()
    return {
        "particles": posterior.particles,
        "trainable": trainable,
        "trainable_per_particle": sum(
            p[0].numel() for p in posterior.stacked_parameters().values()
        ),
        "base": base,
        "bytes_on_disk": sum(x.numel() * x.element_size() for x in own),
        "peak_memory": peak_memory(next(posterior.network.parameters()).device),
    }


def peak_memory(device: torch.device) -> int:
    """Most bytes that were in use: on the GPU, or by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
