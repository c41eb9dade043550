"""The examples of the documents run when they are pasted."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))]


def blocks(page: str) -> list[str]:
    """The Python blocks of a page, in order."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def paste(code: list[str], page: str) -> dict[str, object]:
    """Run blocks one after the other, from nothing."""
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in code:
        exec(compile(block, page, "exec"), names)
    return names


def test_the_readme_s_example_is_short_and_says_what_particles_dispute(capsys):
    (code,) = blocks("README.md")
    statements = re.sub(r"\(\n.*?\n\)", "()", code, flags=re.DOTALL).strip().splitlines()
    assert len([line for line in statements if line.strip()]) <= 15
    predictive = paste([code], "README.md")["predictive"]
    assert predictive.particle_probs.shape == (5, 16, 2)
    assert (predictive.mutual_information > 0).all()
    assert capsys.readouterr().out


WALKS = ("README.md", "docs/getting-started.md", "docs/text.md", "docs/serve.md", "docs/vqa.md")
"""Pages that other tests walk through: the one above, and test_walk.py of runs and of serve."""


@pytest.mark.parametrize("page", [page for page in PAGES if page not in WALKS and blocks(page)])
def test_the_examples_of_a_page_run_in_order(page, capsys, monkeypatch, tmp_path):
    if page == "docs/language.md":
        from language_cases import stand_in

        stand_in("smollm2-135m-instruct", (ROOT / page).read_text(), monkeypatch, tmp_path)
    if page == "docs/watching.md":
        for tracker in ("mlflow", "wandb"):  # they are asked for nothing but what they take
            monkeypatch.setitem(sys.modules, tracker, MagicMock())
    code = blocks(page)
    monkeypatch.chdir(tmp_path)  # what an example writes is written there
    paste(code, page)
    assert capsys.readouterr().out


def test_the_own_loop_trains_every_particle():
    names = paste(blocks("docs/own-loop.md")[:1], "start")
    start = {k: v.clone() for k, v in names["posterior"].stacked_parameters().items()}
    names = paste(blocks("docs/own-loop.md")[:2], "after")
    after = names["posterior"].stacked_parameters()
    assert all((after[k] != v).flatten(1).any(1).all() for k, v in start.items() if ".A" not in k)


def test_trackers_are_told_every_figure_of_every_step(monkeypatch):
    mlflow, wandb = MagicMock(), MagicMock()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    paste(blocks("docs/watching.md"), "docs/watching.md")
    for told in (mlflow.log_metrics, wandb.init.return_value.log):
        assert [call.kwargs["step"] for call in told.call_args_list] == [1, 2]
        for call in told.call_args_list:
            assert {"epoch", "loss", "distance", "repulsion_ratio"} <= set(call.args[0])
