"""The walk of docs/vqa.md: every block is run, in order, as it stands, with a little network in the
place of the one that comes in packages."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner
from vqa_cases import save_llava

from bella.cli.app import app
from bella.models import seeing

pytestmark = pytest.mark.long

PAGE = Path(__file__).parents[2] / "docs" / "vqa.md"


def test_every_block_of_the_walk_runs(tmp_path, monkeypatch, capsys):
    folder = save_llava(tmp_path / "llava")

    def small(side: int, seed: int) -> seeing.Seeing:
        found = seeing.open_seeing(f"hf:{folder}")
        return replace(found, prompt="<image> question {question} answer", fresh=True)

    monkeypatch.setattr(seeing, "_llava_smollm2", small)
    monkeypatch.chdir(tmp_path)
    ran, said = [], []
    page = PAGE.read_text(encoding="utf-8")
    for kind, block in re.findall(r"```(sh|python)\n(.*?)```", page, re.DOTALL):
        if kind == "python":
            exec(compile(block, str(PAGE), "exec"), {})
            said.append(capsys.readouterr().out)
            continue
        for line in block.replace("\\\n", " ").strip().splitlines():
            command, *arguments = shlex.split(line)
            assert command == "bella"
            done = CliRunner().invoke(app, [*arguments, "--quiet"], catch_exceptions=False)
            assert done.exit_code == 0, done.output
            ran.append(arguments[0])
    assert ran == ["fit", "evaluate", "predict", "compare"]
    assert len(said[1].splitlines()) == 3
    low, high = (json.loads(part) for part in re.findall(r"\[.*?\]", said[2]))
    assert low == pytest.approx([1.0, 0.95])
    assert high == pytest.approx([0.6, 0.45])
    results = json.loads((tmp_path / "runs" / "vqa-compare" / "results.json").read_text())
    assert list(results["methods"]) == ["untrained", "lora", "lora-ensemble", "repulsive"]
    assert Path("runs/vqa/projector.safetensors").exists()
