"""The walks of docs/text.md, language.md and peft.md: commands are run, in order, as they stand."""

from __future__ import annotations

import json
import re
import shlex
import warnings
from pathlib import Path

import peft
import pytest
import torch
import transformers as hf
from language_cases import WORDS, small_language_model, small_tokenizer, stand_in
from typer.testing import CliRunner

from bella.cli.app import app
from bella.models import language

pytestmark = pytest.mark.long

DOCS = Path(__file__).parents[2] / "docs"


def blocks_of(page: str) -> list[tuple[str, str]]:
    """The blocks of a page that run, each with its language."""
    return re.findall(r"```(sh|python)\n(.*?)```", (DOCS / page).read_text("utf-8"), re.DOTALL)


def run_commands(block: str) -> list[str]:
    """Write a block's files, run its commands, and say which they were."""
    for name, content in re.findall(r"cat > (\S+) <<'END'\n(.*?)END\n", block, re.DOTALL):
        Path(name).write_text(content)
    commands = re.sub(r"cat > .*?\nEND\n", "", block, flags=re.DOTALL).replace("\\\n", " ")
    ran = []
    for line in commands.strip().splitlines():
        command, *arguments = shlex.split(line)
        assert command == "bella"
        quiet = [] if arguments[0] == "generate" else ["--quiet"]
        done = CliRunner().invoke(app, [*arguments, *quiet], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        ran.append(arguments[0])
    return ran


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
    folder = small_reader(tmp_path / "minilm", (DOCS / "text.md").read_text("utf-8"))
    monkeypatch.setitem(language.LANGUAGE, "minilm-l6", (lambda: folder, ("query", "value")))
    monkeypatch.chdir(tmp_path)
    ran = []
    for kind, block in blocks_of("text.md"):
        if kind == "python":
            exec(compile(block, "docs/text.md", "exec"), {})
            assert len(capsys.readouterr().out.splitlines()) == 3
        else:
            ran += run_commands(block)
    assert ran == ["fit", "evaluate", "predict", "compare"]
    said = [json.loads(line) for line in Path("said.jsonl").read_text().splitlines()]
    assert {row["class"] for row in said} <= {"delivery", "price", "quality"}
    methods = json.loads(Path("runs/compared/results.json").read_text())["methods"]
    assert list(methods) == ["probe", "lora", "lora+temperature"]


def test_five_questions_are_asked_by_the_command(tmp_path, monkeypatch):
    page = (DOCS / "language.md").read_text("utf-8")
    stand_in("smollm2-135m-instruct", page, monkeypatch, tmp_path / "network")
    monkeypatch.chdir(tmp_path)
    commands = [block for kind, block in blocks_of("language.md") if kind == "sh"]
    assert [name for block in commands for name in run_commands(block)] == ["fit", "generate"]
    rows = [json.loads(line) for line in Path("answers.jsonl").read_text("utf-8").splitlines()]
    asked = [json.loads(line) for line in Path("questions.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [line["prompt"] for line in asked]
    assert len(rows) == 5
    for row in rows:
        assert 0 <= row["mutual_information"] <= row["entropy"]


@pytest.fixture
def adapters(tmp_path):
    """A network with its tokenizer, and three adapters of it, as PEFT saves them."""
    small_language_model().save_pretrained(tmp_path / "base")
    small_tokenizer().save_pretrained(tmp_path / "base")
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    for number in range(3):
        base = small_language_model()
        torch.manual_seed(number)  # each its own
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT asks the hub for the base's configuration
            peft.get_peft_model(base, settings).save_pretrained(tmp_path / f"lora-{number}")
    return tmp_path


def test_three_adapters_of_a_language_model_come_and_leave(adapters, monkeypatch):
    monkeypatch.chdir(adapters)
    commands = [block for kind, block in blocks_of("peft.md") if kind == "sh"]
    ran = [name for block in commands for name in run_commands(block)]
    assert ran == ["fit", "export", "export"]
    from bella.runs import open_run

    opened = open_run("runs/chat", device="cpu")
    tokens = torch.randint(3, len(WORDS), (2, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = opened.posterior(input_ids=tokens).logits
        for number in range(3):
            network = peft.PeftModel.from_pretrained(
                small_language_model(), adapters / "adapters" / f"particle-{number}"
            ).eval()
            theirs = network(input_ids=tokens).logits
            torch.testing.assert_close(theirs, found[number], rtol=1e-5, atol=1e-5)
        soup = hf.AutoModelForCausalLM.from_pretrained(adapters / "soup").eval()
        own = opened.posterior.soup()(input_ids=tokens).logits
        torch.testing.assert_close(soup(input_ids=tokens).logits, own, rtol=1e-5, atol=1e-5)
    assert len(hf.AutoTokenizer.from_pretrained(adapters / "soup")) == len(WORDS) + 3
