"""Memory that was freed stays with the process: half the time of a step with large activations.

glibc gives every block above 32 MB back to the kernel, and the kernel hands it out again page by
page, each filled with zeros. On a CPU that can take longer than the arithmetic between.
"""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, as GPU allocators do; the commands of bella call it.

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
