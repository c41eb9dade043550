"""`bella.cost`: what a posterior costs in parameters, bytes and memory."""

from __future__ import annotations

import ctypes
import math
import resource
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from bella.host import device_named
from bella.posterior import Posterior
from bella.prediction.predict import Combined, particles_of
from bella.storage import own_tensors


def cost(posterior: Posterior | Combined) -> dict[str, int]:
    """Count a posterior; of a mixture, or of what was distilled, its particles.

    Returns:
        ``particles``; ``trainable`` parameters in all and ``trainable_per_particle``, those of one
        particle alone; ``base`` parameters, frozen and shared; ``bytes_on_disk`` of what a file
        holds (without the header of about 100 bytes a tensor); ``peak_memory`` in bytes: of the GPU
        since its last reset where the posterior lies on one, else of this process.
    """
    posterior = particles_of(posterior)
    trainable = sum(p.numel() for p in posterior.network.parameters() if p.requires_grad)
    base = sum(p.numel() for p in posterior.network.parameters() if not p.requires_grad)
    own = posterior.packed(own_tensors(posterior)).values()
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


class PeakMemory:
    """Most bytes in use inside a ``with`` block, above those in use when it began.

    Of the GPU where that is the device, else of this process, where Linux says it.

    Args:
        device: where the block computes; the accelerator if there is one.

    Attributes:
        bytes: the figure, after the block; NaN where it cannot be had.
    """

    def __init__(self, device: str | torch.device | None = None) -> None:
        self.bytes = math.nan
        self._device = device_named(device)
        self._before = 0.0

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
            return self
        try:
            # Memory that was freed but kept by the process would hide what the block needs.
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak begins anew
            self._before = _status("VmRSS")
        except (OSError, AttributeError, TypeError):
            self._before = math.nan
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self._device) - self._before
        elif not math.isnan(self._before):
            self.bytes = _status("VmHWM") - self._before


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith(name))
