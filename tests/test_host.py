"""The process keeps what it frees, and says so; devices by their names."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from bella import host
from bella.errors import BellaError
from bella.evaluation.cost import PeakMemory

PROGRAM = """
import resource, sys, torch
from bella.host import keep_freed_memory
assert keep_freed_memory() if sys.argv[1] == "kept" else True
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):  # until the heap has found its shape
    torch.ones(2**24)
before = faults()
for _ in range(10):
    torch.ones(2**24)
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_large_tensor_is_not_fetched_from_the_kernel_again():
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", PROGRAM, how]))
        for how in ("kept", "returned")
    }
    assert faults["returned"] > 10 * 2**24 * 4 // 2**21  # fetched every time, in pages up to 2 MB
    assert faults["kept"] < faults["returned"] / 10


def test_elsewhere_nothing_is_set(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not host.keep_freed_memory()


PEAK = """
import torch
from bella.evaluation.cost import PeakMemory
with PeakMemory() as peak:
    for _ in range(3):
        torch.ones(2**25)  # 128 MiB, three times, one after another
print(peak.bytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own peak")
def test_peak_memory_is_what_was_needed_at_once():
    # In a process of its own: memory that earlier tests freed would be used again.
    peak = float(subprocess.check_output([sys.executable, "-c", PEAK]))
    # The kernel counts pages for each core by itself and adds them up late.
    assert 0.99 * 2**27 <= peak < 2**28


def test_what_ran_on_the_processor_is_measured_there_and_called_so(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: gpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"the GPU {device}")
    assert host.machine() == host.versions()["machine"] == "the GPU cuda"
    assert host.processor() in host.machine("cpu")
    assert host.versions("cpu")["machine"] == host.machine("cpu")
    with PeakMemory("cpu") as peak:  # a GPU would be asked, and there is none
        torch.ones(2**20)
    assert not peak.bytes < 0


def test_a_device_is_one_that_is_there():
    assert host.device_named("cpu") == torch.device("cpu")
    there = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    assert host.device_named(None) == there
    for name in ("abacus", "cuda:99"):
        with pytest.raises(BellaError, match=f"device='{name}' cannot be used here.*'cpu'"):
            host.device_named(name)
