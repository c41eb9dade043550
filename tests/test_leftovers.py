"""Files that are written whole, and what killed writers leave of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from bella.files import write_json, write_whole

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes are asked by signal 0")

KILLED = """
import os, signal, sys
from pathlib import Path
from bella.files import write_whole

def write(path):
    path.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

write_whole(Path(sys.argv[1]), write)
"""


def kill_while_writing(path):
    died = subprocess.run([sys.executable, "-c", KILLED, str(path)])
    assert died.returncode == -signal.SIGKILL


def hidden(folder):
    return {path.name for path in folder.iterdir() if path.name.startswith(".")}


def test_the_next_write_takes_away_what_killed_writers_left(tmp_path):
    path = tmp_path / "run.json"
    write_json(path, {"before": 1})
    for _ in range(2):
        kill_while_writing(path)
    assert path.read_text() == '{\n  "before": 1\n}\n'
    assert len(hidden(tmp_path)) == 1  # the second took away what the first had left
    write_json(path, {"after": 2})
    assert hidden(tmp_path) == set()
    assert "after" in path.read_text()


def test_what_others_are_writing_and_foreign_files_stay(tmp_path):
    path = tmp_path / "run.json"
    with subprocess.Popen(["sleep", "60"]) as other:
        kept = {f".run.json.{other.pid}", ".run.json.swp", ".run.json.", ".other.json.999999999"}
        for name in kept:
            (tmp_path / name).write_text("half")
        (tmp_path / ".run.json.999999999").write_text("half")  # above the largest process number
        write_json(path, {})
        other.kill()
    assert hidden(tmp_path) == kept
    write_json(path, {})
    assert hidden(tmp_path) == kept - {f".run.json.{other.pid}"}


def test_an_exception_leaves_nothing_and_keeps_what_was_there(tmp_path):
    path = tmp_path / "run.json"
    write_json(path, {"before": 1})

    def write(unfinished):
        unfinished.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_whole(path, write)
    assert hidden(tmp_path) == set()
    assert "before" in path.read_text()
