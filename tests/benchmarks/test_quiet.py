"""What others take of the processors, from figures whose answer is known."""

from __future__ import annotations

import sys

import pytest

import page
from quiet import Moment, Watch, busy_seconds, taken_by_others


def watch(moments):
    rest = iter(moments)
    return Watch(look=lambda: next(rest), sleep=lambda seconds: None, processors=2)


def test_others_are_all_that_was_busy_but_this_process():
    # ten seconds of two processors, eleven seconds of work, eight of them our own
    assert taken_by_others(Moment(0, 100, 50), Moment(10, 111, 58), 2) == pytest.approx(3 / 20)
    assert taken_by_others(Moment(0, 100, 50), Moment(10, 108, 58.01), 2) == 0  # clocks tick
    assert taken_by_others(Moment(0, None, 0), Moment(10, None, 8), 2) is None


def test_a_quiet_machine_and_a_busy_one_are_told_apart():
    start = [Moment(0, 0, 0), Moment(1, 0.02, 0)]
    quiet = watch([*start, Moment(101, 200.02, 199)])
    assert quiet.words() == (
        "A quiet machine: others took 1.0% of the processors' time before and 0.5% while it ran."
    )
    later = watch([*start, Moment(101, 180.02, 100)]).words()
    assert later.startswith("**Made on a busy machine**: others took 1.0%")
    assert "40.0% while it ran" in later
    before = watch([Moment(0, 0, 0), Moment(1, 1, 0), Moment(101, 101, 100)])
    assert before.words().startswith("**Made on a busy machine**: others took 50.0%")
    unknown = watch([Moment(0, None, 0), Moment(1, None, 0), Moment(101, None, 100)])
    assert "not known" in unknown.words()


def test_linux_counts_all_but_idle_and_waiting(tmp_path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 20 3 9999 888 4 5 60 7 8\ncpu0 1 2 3\n")
    ticks = busy_seconds(stat)
    stat.write_text("cpu  200 20 3 9999 888 4 5 60 7 8\ncpu0 1 2 3\n")
    assert busy_seconds(stat) / ticks == pytest.approx(292 / 192)  # what guests used is in user's
    assert busy_seconds(tmp_path / "none") is None


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells")
def test_this_machine_tells():
    seen = Watch(sleep=lambda seconds: sum(range(2_000_000)))
    assert 0 <= seen.before <= 1
    assert 0 <= seen.during() <= 1


def test_a_table_says_of_itself_what_machine_made_it(tmp_path, monkeypatch, capsys):
    file = tmp_path / "performance.md"
    file.write_text("before\n<!-- nothing -->\nold\n<!-- /nothing -->\nafter\n")
    moments = [Moment(0, 0, 0), Moment(1, 0, 0), Moment(11, 15, 5)]
    monkeypatch.setattr(page, "Watch", lambda: watch(moments))
    monkeypatch.setattr(sys, "argv", ["nothing.py"])
    monkeypatch.setattr(page.write, "__defaults__", (file,))
    table = page.Table("T.", ("a", "b"), [["1", "2"]])
    page.main("nothing", "Nothing.", lambda options: (1e9, [table]))
    text = file.read_text()
    assert "**Made on a busy machine**: others took 0.0%" in text
    assert "50.0% while it ran" in text
    assert text.startswith("before\n<!-- nothing -->\n\n`python benchmarks/nothing.py`")
    assert "old" not in text
    assert "busy machine" in capsys.readouterr().out.replace("\n", " ")
