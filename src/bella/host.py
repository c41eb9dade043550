"""What machine this is, what memory it has free, and memory that stays with the process."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from bella.errors import BellaError, Terminated

if TYPE_CHECKING:
    import torch

LIBRARIES = ("bella-bnn", "torch", "transformers", "timm", "torchmetrics", "numpy")
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # glibc's malloc.h


def terminate(number: int, frame: FrameType | None) -> None:
    """What SIGTERM does in bella's own processes: end as Ctrl-C does, with its own status."""
    raise Terminated


def versions(device: str | torch.device | None = None) -> dict[str, str]:
    """Versions of what a result depends on, and the machine: see `machine`."""
    found = {"python": platform.python_version(), "machine": machine(device)}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine(device: str | torch.device | None = None) -> str:
    """The processor or GPU that results were measured on, in words.

    Args:
        device: where it ran; the accelerator if there is one.
    """
    import torch

    device = device_named(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = torch.get_num_threads()
    return f"{processor()}, {count} thread{'s' if count > 1 else ''}"


def processor() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def device_named(name: str | torch.device | None) -> torch.device:
    """A device that is there; for ``None`` the accelerator, or the CPU where there is none. Of
    several processes that a launcher started each has an accelerator of its own.

    Raises:
        BellaError: no device is called so, or it is not in this machine.
    """
    import torch

    if name is None:
        found = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        if found.type != "cpu" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            return torch.device(found.type, int(os.environ.get("LOCAL_RANK", "0")))
        return found
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise BellaError(
            f"device={str(name)!r} cannot be used here ({reason}): choose 'cpu', or 'cuda' where "
            "there is a GPU."
        ) from None
    return device


def free_bytes(device: torch.device) -> int:
    """Free memory of an accelerator (what PyTorch holds unused counts as free) or of the host."""
    import torch

    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, as GPU allocators do; the commands of bella call it.

    glibc gives every block above 32 MB back to the kernel, and the kernel hands it out again page
    by page, each filled with zeros. On a CPU that can take longer than the arithmetic between: half
    the time of a step with large activations.

    It holds for the whole process, which then never gets smaller: a library that you import should
    not decide that, so `bella.fit` does not call it.

    Returns:
        Whether it could be set: on Linux with glibc.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another libc
        return False
    settings = {MMAP_MAX: 0, TRIM_THRESHOLD: -1, TOP_PAD: 2**26}
    return all([mallopt(name, value) for name, value in settings.items()])
