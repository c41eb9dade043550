"""The walk of docs/text.md: every block is run, in order, as it stands."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import torch
import transformers as hf
from language_cases import small_tokenizer
from typer.testing import CliRunner

from bella.cli.app import app
from bella.models import language

PAGE = Path(__file__).parents[2] / "docs" / "text.md"


def small_reader(folder, page):
    """A small BERT that knows a page's words, in the place of MiniLM."""
    words = list(dict.fromkeys(page.replace('"', " ").replace(",", " ").split()))
    torch.manual_seed(0)
    config = hf.BertConfig(
        vocab_size=len(words) + 3,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        pad_token_id=0,
        initializer_range=0.3,
    )
    hf.BertModel(config).save_pretrained(folder)
    small_tokenizer(words).save_pretrained(folder)
    return folder


def test_every_block_of_the_walk_runs(tmp_path, monkeypatch, capsys):
    page = PAGE.read_text(encoding="utf-8")
    folder = small_reader(tmp_path / "minilm", page)
    monkeypatch.setitem(language.LANGUAGE, "minilm-l6", (lambda: folder, ("query", "value")))
    monkeypatch.chdir(tmp_path)
    ran = []
    for kind, block in re.findall(r"```(sh|python)\n(.*?)```", page, re.DOTALL):
        if kind == "python":
            exec(compile(block, str(PAGE), "exec"), {})
            assert len(capsys.readouterr().out.splitlines()) == 3
            continue
        for name, content in re.findall(r"cat > (\S+) <<'END'\n(.*?)END\n", block, re.DOTALL):
            Path(name).write_text(content)
        commands = re.sub(r"cat > .*?\nEND\n", "", block, flags=re.DOTALL).replace("\\\n", " ")
        for line in commands.strip().splitlines():
            command, *arguments = shlex.split(line)
            assert command == "bella"
            done = CliRunner().invoke(app, [*arguments, "--quiet"], catch_exceptions=False)
            assert done.exit_code == 0, done.output
            ran.append(arguments[0])
    assert ran == ["fit", "evaluate", "predict", "compare"]
    said = [json.loads(line) for line in Path("said.jsonl").read_text().splitlines()]
    assert {row["class"] for row in said} <= {"delivery", "price", "quality"}
    methods = json.loads(Path("runs/compared/results.json").read_text())["methods"]
    assert list(methods) == ["probe", "lora", "lora+temperature"]
