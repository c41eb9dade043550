"""One run at a time in a folder, and nothing left of a run that never began."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bella.errors import BellaError
from bella.files import write_whole
from bella.folders import held

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
    with pytest.raises(BellaError, match=r"Another run is writing to .*run: wait until it ends"):
        held(tmp_path / "run").__enter__()
    another.kill()
    another.wait()
    with held(tmp_path / "run"):
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
            folder.rmdir()
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
