"""Tensors and their record in one file with its checksum."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from helpers import adapted, batch, mlp
from safetensors.torch import load_file, save_file

import bella
from bella.errors import BellaError
from bella.sealed import bytes_of, digest, read_sealed, write_sealed

TENSORS = {
    "float": torch.randn(3, 2),
    "half": torch.randn(4).to(torch.bfloat16),
    "none": torch.zeros(0, 3),
    "one": torch.tensor(1.5, dtype=torch.float64),
    "truth": torch.tensor([True, False]),
    "whole": torch.arange(5, dtype=torch.int32),
}


def test_what_is_written_comes_back(tmp_path):
    path = tmp_path / "a.safetensors"
    write_sealed(path, TENSORS, {"said": ["ä", 1, None]})
    record, found = read_sealed(path)
    assert record["said"] == ["ä", 1, None]
    assert found.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def test_one_element_without_a_stride_has_bytes(tmp_path):
    # As the count of batches of a batch norm has it in a single particle's copy.
    count = torch.tensor(3).expand(1)
    assert bytes(bytes_of(count)) == bytes(bytes_of(torch.tensor([3])))
    assert bytes(bytes_of(torch.arange(6).reshape(2, 3).T)) == bytes(
        bytes_of(torch.tensor([0, 3, 1, 4, 2, 5]))
    )


def test_equal_contents_are_equal_files(tmp_path):
    for name in "ab":
        write_sealed(tmp_path / name, TENSORS, {"x": 1, "y": 2})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_every_bit_of_the_file_counts(tmp_path):
    path = tmp_path / "a"
    write_sealed(path, {"a": torch.randn(3), "b": torch.randn(3)}, {"said": 1})
    whole = path.read_bytes()
    silent = 0
    for place in range(len(whole)):
        for bit in (0, 3, 7):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            try:
                record, found = read_sealed(path)
            except BellaError:
                continue
            # Names of entries that nobody reads, or spaces, may differ; what is read may not.
            silent += record is not None and record["said"] != 1
            silent += record is not None and record["tensors"] != digest(found)
    assert silent == 0


@pytest.mark.parametrize("change", ["swap", "drop", "add", "rename", "dtype", "shape"])
def test_other_tensors_under_the_same_record_are_seen(tmp_path, change):
    path = tmp_path / "a"
    write_sealed(path, {"a": torch.ones(4), "b": torch.zeros(4)}, {})
    with_record = path.read_bytes()
    size = int.from_bytes(with_record[:8], "little")
    metadata = json.loads(with_record[8 : 8 + size])["__metadata__"]
    held = load_file(path)
    a, b = held["a"].clone(), held["b"].clone()
    other = {
        "swap": {"a": b, "b": a},
        "drop": {"a": a},
        "add": {"a": a, "b": b, "c": torch.ones(1)},
        "rename": {"a": a, "c": b},
        "dtype": {"a": a.view(torch.int32), "b": b},
        "shape": {"a": a.reshape(2, 2), "b": b},
    }[change]
    save_file(other, path, metadata=metadata)
    with pytest.raises(BellaError, match="not those that were written"):
        read_sealed(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 8, b"\xff" * 100, (2**40).to_bytes(8, "little") + b"{}", b"PK\x03\x04" * 50],
)
def test_foreign_files_are_refused(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(BellaError, match="cannot be read"):
        read_sealed(tmp_path / "a")


def killed_after(left, call):
    """``call``, until ``left`` runs out: then it is the last thing that this process does."""

    def step(*args, **kwargs):
        found = call(*args, **kwargs)
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    return step


def test_a_kill_at_any_step_of_a_save_leaves_one_moment(tmp_path):
    """The old posterior or the new one, its scale included, never a mixture."""
    x, _ = batch()
    old = adapted(alpha=2.0, seed=1)
    new = adapted(alpha=16.0, seed=2)
    answers = [bella.predict(p, x).probs for p in (old, new)]
    seen = set()
    for steps in range(1, 9):
        old.save(tmp_path)
        child = os.fork()
        if child == 0:
            left = iter(range(steps - 1))
            os.replace, os.fsync = killed_after(left, os.replace), killed_after(left, os.fsync)
            new.save(tmp_path)
            os._exit(0)
        os.waitpid(child, 0)
        got = bella.predict(bella.load(tmp_path, mlp()), x).probs
        which = [torch.equal(got, answer) for answer in answers]
        assert any(which)
        seen.add(which.index(True))
    assert seen == {0, 1}
