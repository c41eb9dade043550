"""Tensors on disk: real blocks, and nothing left whatever happens."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from bella.training import scratch
from bella.training.scratch import NoRoomError, tensors_on_disk

LIKE = [
    torch.zeros(2, 3),
    torch.zeros(2, dtype=torch.int64),
    torch.zeros(2, 5, dtype=torch.bfloat16),
    torch.zeros(2, 0, 4),
]


def run(code, folder, **more):
    """A process of its own whose temporary files lie in ``folder``."""
    # torch makes an empty folder for its compiler, which is to lie elsewhere.
    compiler = folder.parent / "compiler"
    environment = os.environ | {"TMPDIR": str(folder), "TORCHINDUCTOR_CACHE_DIR": str(compiler)}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def test_they_hold_what_is_written_and_have_no_name(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    kept = tensors_on_disk(LIKE, 7)
    assert os.listdir(tmp_path) == []
    for tensor, like in zip(kept, LIKE, strict=True):
        assert tensor.shape == (7, *like.shape[1:])
        assert tensor.dtype == like.dtype
        values = torch.arange(tensor.numel()).view(tensor.shape).to(like.dtype)
        tensor.copy_(values)
        assert torch.equal(tensor, values)


@pytest.mark.parametrize("refused", [errno.EOPNOTSUPP, None])
def test_zeros_are_written_where_blocks_cannot_be_allocated(monkeypatch, tmp_path, refused):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(scratch, "STRIDE", 16)

    def fallocate(*_):
        raise OSError(refused, "no")

    if refused is None:
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", fallocate)
    kept = tensors_on_disk(LIKE, 7)
    assert [float(x.float().sum()) for x in kept] == [0.0] * 4
    kept[0].fill_(2.0)
    assert float(kept[0].sum()) == 42


def test_a_full_disk_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(NoRoomError, match=r"bytes on disk and .* free: set TMPDIR"):
        tensors_on_disk([torch.zeros(1, 2**20)], 2**40)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(NoRoomError, match="No space left on device") as error:
        tensors_on_disk(LIKE, 7)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="limits and signals of POSIX")
def test_blocks_that_the_system_refuses_do_not_end_the_process(tmp_path):
    process = run(
        """
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
        import torch
        from bella.training.scratch import NoRoomError, tensors_on_disk
        try:
            tensors_on_disk([torch.zeros(1, 2**20)], 4)
        except NoRoomError as error:
            print("said:", error)
        """,
        tmp_path,
    )
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    assert said.startswith("said: The cached prefix takes 16,777,216 bytes on disk")


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_nothing_is_left_of_runs_that_end_early(tmp_path):
    """One after another, each in a fork of a process that has imported torch."""
    process = run(
        f"""
        import os, signal, sys, torch
        sys.path.insert(0, {os.path.dirname(__file__) + "/../cases"!r})
        from fit_cases import make, problem
        from bella.training.cache import CachedPrefix
        for how in (signal.SIGTERM, signal.SIGKILL, None):
            child = os.fork()
            if not child:
                kept = CachedPrefix(make(), problem(4000), limit=0)
                assert kept.on_disk and kept.bytes >= 64_000
                print("made", flush=True)
                if how is None:
                    raise RuntimeError("ends early")
                os.kill(os.getpid(), how)
            _, status = os.waitpid(child, 0)
            print(os.waitstatus_to_exitcode(status), os.listdir({str(tmp_path)!r}), flush=True)
        """,
        tmp_path,
    )
    said, errors = process.communicate()
    ends = [-signal.SIGTERM, -signal.SIGKILL, 1]
    assert said.splitlines() == [line for end in ends for line in ("made", f"{end} []")], errors
    assert "RuntimeError: ends early" in errors
