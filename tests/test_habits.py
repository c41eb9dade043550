"""What the project says of its own tools is so."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import torch
import yaml

from bella.metrics import accuracy, brier

ROOT = Path(__file__).parents[1]
PINNED = {
    name.lower().replace("_", "-"): version
    for name, _, version in (
        line.partition("==") for line in (ROOT / "constraints.txt").read_text().split()
    )
}


def test_the_hooks_bring_their_own_tools_at_the_versions_of_the_project():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    for hook in repo["hooks"]:
        assert hook["language"] == "python"
        assert "/" not in hook["entry"]
        name, version = hook["additional_dependencies"][0].split("==")
        assert hook["entry"].startswith(name)
        assert version == PINNED[name]


def test_the_pinned_versions_are_among_the_allowed_ones():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = [line for group in groups for line in group]
    checked = 0
    for line in wanted:
        found = re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\w.]+)", line)
        if found is None:
            assert "bella-bnn[" in line or not re.search("[<>=]", line), line
            continue
        name, floor = found.groups()
        assert numbers(PINNED[name]) >= numbers(floor), line
        checked += 1
    assert checked > 15


def numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version.partition("post")[0])]


def test_an_argument_that_its_annotation_does_not_allow_is_found():
    """The checker of tests/conftest.py is at work, and leaves refusals to the functions."""
    from jaxtyping import TypeCheckError

    probs, labels = torch.full((4, 2), 0.5), torch.zeros(4, dtype=torch.long)
    assert accuracy(probs, labels) == 1
    with pytest.raises(TypeCheckError):
        brier(probs, labels.bool())  # torch would take it: a class number is no truth value
    with pytest.raises(ValueError, match="are not"):  # the function's own sentence
        accuracy(probs, labels[:3])
