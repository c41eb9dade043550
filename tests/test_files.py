"""Files written whole and read within bounds."""

from __future__ import annotations

import json
import os
import re
import resource
import stat
import time

import pytest
import torch
from helpers import adapted
from hypothesis import given
from hypothesis import strategies as st

import bella
from bella import files
from bella.errors import BellaError
from bella.files import read_json, read_sealed_json, write_json, write_sealed_json, write_whole
from bella.training.settings import read_yaml

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_modes_follow_the_umask_whoever_writes(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        adapted().save(tmp_path)
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(before)
    found = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert found == {mode}


def test_a_full_disk_is_one_sentence_and_keeps_what_was_there(tmp_path):
    adapted().save(tmp_path)
    write_json(tmp_path / "a.json", {"is": "old"})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    child = os.fork()
    if child == 0:  # the limit cannot be raised again, so another process has it
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        status = 0
        for write in (
            lambda: adapted(seed=3).save(tmp_path),
            lambda: write_json(tmp_path / "a.json", list(range(1000))),
            lambda: bella.fit(adapted(), data(), folder=tmp_path / "run", progress=False, epochs=1),
        ):
            try:
                write()
                status = 1
            except BellaError as error:
                status |= "\n" in str(error) or "free some space" not in str(error)
        os._exit(int(status))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
    assert not list(tmp_path.rglob(".*"))


def data():
    return torch.randn(8, 4, dtype=torch.float64), torch.zeros(8, dtype=torch.long)


def test_an_unfinished_file_is_known_by_its_process_and_its_write(tmp_path):
    """What the dead left goes at the next write, a living writer's stays, and so does another's."""
    path = tmp_path / "a.json"
    dead, foreign = tmp_path / ".a.json.999999999.0a", tmp_path / ".b.json.999999999.0a"
    for left in (dead, foreign):
        left.write_text("half")
    seen = []

    def write(unfinished):
        write_json(path, {"by": "another thread"})  # meanwhile
        seen.append(unfinished)
        assert unfinished.exists()
        assert re.fullmatch(rf"\.a\.json\.{os.getpid()}\.[0-9a-f]+", unfinished.name)
        unfinished.write_text("whole")

    write_whole(path, write)
    write_whole(path, write)
    assert path.read_text() == "whole"
    assert seen[0] != seen[1]
    assert {found.name for found in tmp_path.iterdir()} == {"a.json", foreign.name}


def test_a_process_takes_away_what_an_earlier_one_of_its_number_left(tmp_path):
    """In containers the numbers begin anew: whoever is killed there comes back under his own."""
    left = tmp_path / f".a.json.{os.getpid()}.0a"
    left.write_text("half")
    write_json(tmp_path / "a.json", {})
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]


def test_nothing_but_an_ordinary_file_is_written_over(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for path, said in (
        (tmp_path / "pipe", "is a pipe"),
        (tmp_path / "folder", "is a folder"),
        (tmp_path / "file" / "below", "cannot be written"),
    ):
        with pytest.raises(BellaError, match=said):
            write_json(path, {})
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_failed_writer_leaves_nothing(tmp_path):
    def fails(path):
        path.write_text("half")
        raise KeyError("no")

    with pytest.raises(KeyError):
        write_whole(tmp_path / "a", fails)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": "\xff"}', "damaged"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "damaged"),
        (b'{"a": NaN}', "NaN is no JSON"),
        (b"", "damaged"),
        (b"[]", "no mapping"),
        (b" " * 2000, "more than the 1,000 bytes"),
    ],
)
def test_foreign_json_is_one_sentence(tmp_path, monkeypatch, content, said):
    if "1,000" in said:
        monkeypatch.setattr(files.read_bytes, "__defaults__", (1000,))
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(BellaError, match=said) as caught:
        read_sealed_json(tmp_path / "a.json")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_pipes_and_devices_are_not_read(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    for path, said in (
        (tmp_path / "pipe", "is a pipe"),
        (tmp_path, "is a folder"),
        ("/dev/zero", "is a device"),
    ):
        with pytest.raises(BellaError, match=said):
            read(type(tmp_path)(path))


@given(content=st.dictionaries(st.text(), VALUES), data=st.data())
def test_sealed_json_comes_back_and_shows_any_change(tmp_path_factory, content, data):
    path = tmp_path_factory.mktemp("sealed") / "a.json"
    content.pop(files.SEAL, None)
    write_sealed_json(path, content)
    assert read_sealed_json(path) == content
    changed = json.loads(path.read_text())
    name = data.draw(st.sampled_from(sorted(changed)))
    changed[name] = [changed[name]]
    path.write_text(json.dumps(changed))
    with pytest.raises(BellaError, match="not as it was written"):
        read_sealed_json(path)


def bomb(depth):
    rows = [f"  - &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, depth)]
    return "\n".join(["epochs: 3", "transport_options:", " many:", "  - &a0 [x]", *rows])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (bomb(9), "aliases of aliases"),
        ("a: &a [*a]", "aliases of aliases"),
        ("[" * 5000, "not valid YAML"),
        ("a: 2001-99-99", "not valid YAML"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("a: '" + "x" * 2**20 + "'", "more than the 1,048,576 bytes"),
        ("a: \xff\udcff", "not valid YAML"),
    ],
)
def test_yaml_beyond_reason_is_a_short_sentence_fast(tmp_path, text, said):
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    begun = time.perf_counter()
    with pytest.raises(BellaError, match=said) as caught:
        read_yaml(path)
    assert time.perf_counter() - begun < 5
    assert len(str(caught.value)) < 1000


def test_sentences_about_large_values_stay_short():
    with pytest.raises(BellaError) as caught:
        bella.fit(adapted(), data(), epochs=[["x" * 1000] * 1000] * 1000)
    assert len(str(caught.value)) < 1000
