"""docs/getting-started.md: every block is run, in order, as it stands."""

from __future__ import annotations

import csv
import re
import shlex
import tomllib
from functools import partial
from pathlib import Path

import pytest
from language_cases import small_reader
from own_images import write_network
from typer.testing import CliRunner

from bella.cli.app import app
from bella.models import language
from bella.models.hugging_face import open_hugging_face
from bella.models.registry import registry

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "getting-started.md"


def rows_of(path: str) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run_commands(block: str) -> list[str]:
    """Write a block's files, run its commands, and say which they were."""
    for name, content in re.findall(r"cat > (\S+) <<'END'\n(.*?)END\n", block, re.DOTALL):
        Path(name).write_text(content)
    ran = []
    for line in re.sub(r"cat > .*?\nEND\n", "", block, flags=re.DOTALL).strip().splitlines():
        command, *arguments = shlex.split(line)
        assert command == "bella"
        done = CliRunner().invoke(app, [*arguments, "--quiet"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        ran.append(arguments[0])
    return ran


def test_every_block_of_the_first_page_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("plotly")
    page = PAGE.read_text(encoding="utf-8")
    words = list(dict.fromkeys(page.replace('"', " ").replace(",", " ").split()))
    reader = small_reader(tmp_path / "minilm", words).removeprefix("hf:")
    small = partial(open_hugging_face, str(write_network(tmp_path / "vit")))
    monkeypatch.setitem(registry, "efficientnet-lite0", lambda name, *rest: small(*rest))
    monkeypatch.setitem(language.LANGUAGE, "minilm-l6", (lambda: reader, ("query", "value")))
    monkeypatch.chdir(tmp_path)
    ran, printed = [], []
    for kind, block in re.findall(r"```(sh|python)\n(.*?)```", page, re.DOTALL):
        if kind == "sh":
            ran += run_commands(block)
        else:
            capsys.readouterr()
            exec(compile(block, str(PAGE), "exec"), {"__name__": "__main__"})
            printed.append(capsys.readouterr().out.splitlines())
    assert ran == ["fit", "evaluate", "report", "predict", "fit", "predict"]
    assert [len(lines) for lines in printed[:2]] == [0, 10]
    assert [line.split()[0] for line in printed[1]] == [str(rank) for rank in range(1, 11)]
    assert Path("runs/digits/report.html").exists()
    predictions = rows_of("predictions.csv")
    assert len(predictions) == 10
    assert {row["class"] for row in predictions} <= set("01234567")
    named = {"class", "probability", "entropy", "mutual_information", "novelty", "rank"}
    assert named <= set(predictions[0])
    assert {row["class"] for row in rows_of("said.csv")} <= {"delivery", "quality"}


def test_what_the_first_page_installs_is_there_to_install():
    page = PAGE.read_text(encoding="utf-8")
    (block,) = re.findall(r"## Install.*?```\n(.*?)```", page, re.DOTALL)
    (extras,) = re.findall(r"'\.\[(.*)\]'", block)
    with open(ROOT / "pyproject.toml", "rb") as file:
        assert set(extras.split(",")) <= set(tomllib.load(file)["project"]["optional-dependencies"])
    pinned = re.findall(r"^([\w-]+)==", (ROOT / "requirements-demo.txt").read_text(), re.MULTILINE)
    (packages,) = re.findall(r"--no-deps (.*)", block)
    assert set(packages.split()) <= set(pinned)
