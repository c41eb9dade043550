"""The README's example runs as it is written."""

from __future__ import annotations

import re
from pathlib import Path

import torch

README = Path(__file__).parents[1] / "README.md"


def test_the_example_runs_as_written(capsys):
    text = README.read_text()
    block = re.search(r"<!-- readme-example.*?-->\n```python\n(.*?)```", text, re.DOTALL)
    assert block is not None
    code = block.group(1)
    statements = code.replace("(\n    ", "(").replace("\n)", ")").strip().splitlines()
    assert len([line for line in statements if line.strip()]) <= 15
    torch.manual_seed(0)
    names = {"images": torch.randn(8, 3, 224, 224), "labels": torch.randint(2, (8,))}
    exec(compile(code, "README.md", "exec"), names)
    predictive = names["predictive"]
    assert predictive.particle_probs.shape == (5, 8, 2)
    assert (predictive.mutual_information >= 0).all()
    assert capsys.readouterr().out
