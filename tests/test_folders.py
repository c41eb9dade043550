"""One run at a time in a folder, and nothing left of a run that never began."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from bella import folders
from bella.errors import BellaError
from bella.files import write_whole
from bella.folders import LOCK, Holder, held

HOLD = """
import sys
from pathlib import Path
from bella.folders import held

with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def another(tmp_path):
    """Another process that holds a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_until_the_first_ends(tmp_path, another):
    with pytest.raises(BellaError, match=rf"to .*run \(process {another.pid} on .*\): wait until"):
        held(tmp_path / "run").__enter__()
    another.kill()
    another.wait()
    with held(tmp_path / "run"):
        pass


def test_the_file_that_says_who_goes_with_its_block(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with held(folder):
        assert Holder.read(folder / LOCK) == Holder.of(os.getpid())
        folder.rename(tmp_path / "moved")
    assert not any((tmp_path / "moved").iterdir())


def test_a_killed_process_holds_nothing(tmp_path, another):
    another.kill()
    another.wait()
    assert Holder.read(tmp_path / "run" / LOCK).pid == another.pid
    with held(tmp_path / "run"):
        assert Holder.read(tmp_path / "run" / LOCK).pid == os.getpid()


@pytest.fixture
def no_locks(monkeypatch):
    """A file system that cannot lock: there the file decides."""

    def refuse(*_):
        raise OSError("no locks here")

    monkeypatch.setattr(folders.fcntl, "flock", refuse)


def test_where_the_system_has_no_locks_the_file_decides(tmp_path, another, no_locks):
    with pytest.raises(BellaError, match=rf"process {another.pid} on .*: wait until it ends"):
        held(tmp_path / "run").__enter__()
    path = tmp_path / "run" / LOCK
    living = Holder.read(path)
    boot, ticks = living.begun.split()
    # The number of a process that ended is given to another some day.
    for begun in (f"{boot} {int(ticks) - 1}", f"another-{boot} {ticks}"):
        path.write_text(json.dumps({**vars(living), "begun": begun}))
        assert not Holder.read(path).lives
    path.write_text(json.dumps(vars(living)))
    assert Holder.read(path).lives
    another.kill()
    another.wait()
    with held(tmp_path / "run"):
        pass
    assert not path.exists()


def test_a_process_on_another_machine_cannot_be_asked(tmp_path, no_locks):
    folder = tmp_path / "run"
    folder.mkdir()
    elsewhere = {"pid": 7, "machine": "elsewhere", "begun": ""}
    (folder / LOCK).write_text(json.dumps(elsewhere))
    with pytest.raises(BellaError, match=r"process 7 on elsewhere.*if that process has ended, rem"):
        held(folder).__enter__()
    assert json.loads((folder / LOCK).read_text()) == elsewhere


@pytest.mark.parametrize("content", ["", "[]", '{"pid": "x"}', '{"pid": -1}', "{" * 9])
def test_a_file_that_says_nothing_holds_nothing(tmp_path, no_locks, content):
    (tmp_path / LOCK).write_text(content)
    with held(tmp_path):
        pass


def test_forked_workers_do_not_hold_it(tmp_path):
    (tmp_path / "run").mkdir()
    ready, said = os.pipe()
    end, stop = os.pipe()
    with held(tmp_path / "run"):
        child = os.fork()
        if not child:
            os.write(said, b"1")
            os.read(end, 1)
            os._exit(0)
    os.read(ready, 1)
    with held(tmp_path / "run"):
        pass
    os.write(stop, b"1")
    os.waitpid(child, 0)
    for handle in (ready, said, end, stop):
        os.close(handle)


def test_an_empty_folder_that_it_made_is_taken_away_with_its_parents(tmp_path):
    with held(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not any(tmp_path.iterdir())
    with held(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").touch()
    assert (tmp_path / "a" / "b" / "file").exists()


def test_an_empty_folder_of_somebody_stays(tmp_path):
    with held(tmp_path):
        pass
    assert tmp_path.is_dir()


@pytest.mark.parametrize("change", ["moved", "removed", "exchanged"])
def test_a_folder_that_is_no_longer_there_is_noticed(tmp_path, change):
    folder = tmp_path / "run"
    with held(folder) as in_place:
        in_place()
        if change == "removed":
            shutil.rmtree(folder)
        else:
            folder.rename(tmp_path / "elsewhere")
        if change == "exchanged":
            folder.mkdir()
        with pytest.raises(BellaError, match="moved or removed while its run went on"):
            in_place()


def test_what_is_no_folder_is_refused(tmp_path):
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("mine")
    link.symlink_to(tmp_path / "gone")
    for place in (file, link):
        with pytest.raises(BellaError, match="is no folder"):
            held(place).__enter__()
    assert file.read_text() == "mine"
    for place in (file / "below", tmp_path / "x\0y", tmp_path / ("x" * 300)):
        with pytest.raises(BellaError, match="cannot be made"):
            held(place).__enter__()


def test_no_file_has_a_zero_byte_in_its_name(tmp_path):
    with pytest.raises(BellaError, match="zero byte"):
        write_whole(tmp_path / "a\0b", lambda place: place.write_text("x"))
