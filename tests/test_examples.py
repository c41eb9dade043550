"""The scripts of examples/ run, and the gallery shows them as they are."""

from __future__ import annotations

import re
import runpy
import sys

import gallery
import pytest

SHORT = ("own_loop", "peft_in_and_out")
"""Seconds: they run among all tests, and the others in `make test-long`."""


def shape(text: str) -> list[str]:
    """Lines without their numbers, which differ from machine to machine."""
    return re.sub(r"-?[\d.]+(e-?\d+)?", "#", text).strip().splitlines()


def test_the_gallery_shows_every_script_as_it_is():
    assert sorted(gallery.ORDER) == sorted(
        path.stem for path in (gallery.ROOT / "examples").glob("*.py")
    )
    printed = {name: gallery.recorded(name) for name in gallery.ORDER}
    assert all(printed.values())
    assert gallery.page(printed) == gallery.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SHORT)
def test_a_short_example_prints_what_the_gallery_says(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", str(tmp_path)])
    runpy.run_path(str(gallery.ROOT / "examples" / f"{name}.py"), run_name="__main__")
    assert shape(capsys.readouterr().out) == shape(gallery.recorded(name))
    assert (gallery.PICTURES / f"{name}.png").exists() == (tmp_path / f"{name}.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in gallery.ORDER if name not in SHORT])
def test_a_longer_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "PICTURES", tmp_path)
    said = gallery.run(name)
    assert len(said.splitlines()) == len(gallery.recorded(name).splitlines())
    assert (tmp_path / f"{name}.png").exists() or name == "ask_a_service"
