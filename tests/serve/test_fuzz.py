"""Schemathesis asks what the description allows, and what it does not; nothing may surprise it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from serve_cases import opened, served

from bella.serve import Limits, make_app

# Which bytes are an image, and what a network has room for, a schema cannot say: that is refused
# with 422 or 413.
CONFIG = """
[checks]
positive_data_acceptance.expected-statuses = ["2xx", 413, 422]
"""


@pytest.fixture(params=["images", "causal-lm"])
def fuzzed(request, networks):
    """A run of either kind."""
    if request.param == "images":
        return request.getfixturevalue("run")
    return opened(networks, "causal-lm", {"messages": "messages"}, {}, "llama")


@pytest.mark.slow
def test_the_description_says_what_happens(fuzzed, tmp_path):
    """Installed apart (`pip install schemathesis`): it brings a plugin into every pytest."""
    beside = Path(sys.executable).with_name("schemathesis")
    command = os.environ.get("SCHEMATHESIS") or shutil.which("schemathesis") or str(beside)
    if not Path(command).exists():
        pytest.skip("schemathesis is not installed: pip install schemathesis, or name SCHEMATHESIS")
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    with served(make_app(fuzzed, Limits(wait=0, tokens=8))) as client:
        done = subprocess.run(
            [
                *(command, "run", f"http://127.0.0.1:{client.port}/openapi.json"),
                *("--checks", "all", "--max-examples", "40", "--seed", "1"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stdout[-6000:]
