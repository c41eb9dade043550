"""Quantised bases: particles beside codes are PEFT's, and what is lost when they merge is said.

bitsandbytes and torchao lie in a folder of their own (`make test` installs them there): the other
tests run without them, as most users do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bella
from bella.errors import BellaError, MissingExtraError
from bella.models import open_network, open_task
from bella.models.seeing import open_seeing
from bella.runs import read_config

pytestmark = pytest.mark.long

APART = Path(sys.prefix) / "quantised"
CASES = Path(__file__).parents[1] / "cases" / "quantised_cases.py"
KINDS = {"4bit": "Params4bit", "8bit": "Int8Params", "int8": "Int8Tensor"}


@pytest.fixture(scope="module")
def judged():
    """What the process found, by kind."""
    if not APART.is_dir():
        pytest.skip("bitsandbytes and torchao are not installed: make test does it")
    source = Path(bella.__file__).parents[1]
    path = os.pathsep.join([str(source), str(APART)])
    done = subprocess.run(
        [sys.executable, str(CASES), *KINDS],
        env=os.environ | {"PYTHONPATH": path, "BNB_CUDA_VERSION": ""},
        capture_output=True,
        text=True,
    )
    lines = [line[5:] for line in done.stdout.splitlines() if line.startswith("JSON ")]
    assert len(lines) == 2 * len(KINDS), done.stderr[-3000:]
    both = [json.loads(line) for line in lines]
    return {
        found["kind"]: found | fitted for found, fitted in zip(both[::2], both[1::2], strict=True)
    }


@pytest.mark.parametrize("kind", KINDS)
def test_particles_beside_codes_are_peft_s_networks(judged, kind):
    found = judged[kind]
    assert found["layer"] == KINDS[kind]
    assert found["factors"] == "torch.float32"
    # LLM.int8 rounds the inputs as well: what is before a layer moves it by whole steps.
    bound = 2e-2 if kind == "8bit" else 1e-5
    assert found["outputs"] < bound
    assert found["gradients"] < 5 * bound
    assert found["loaded"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_particle_is_plain_and_that_is_said(judged, kind):
    found = judged[kind]
    assert found["merged"] < (2e-2 if kind == "8bit" else 1e-5)
    (said,) = found["said"]
    assert "4 of the layers" in said
    assert "codes" in said
    assert "another network" in found["refused"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_holds_its_base_as_codes_and_is_found_again(judged, kind):
    found = judged[kind]
    assert found["fitted"] == kind
    assert found["codes"] == 13  # six a block and the pooler; the head trains
    assert not found["fit_head"]
    assert found["found_again"] < 1e-6
    # bitsandbytes' layers would round their biases for good.
    assert ("biases" in found["fit_refused"]) == (kind != "int8")
    assert "no library opens" in found["unwritten"]
    assert found["adapters"] == 3  # two particles and the soup


def test_codes_are_for_networks_of_transformers():
    with pytest.raises(BellaError, match=r"quantised='4bit' is for networks of transformers"):
        open_network("efficientnet-lite0", quantised="4bit")
    with pytest.raises(BellaError, match="leave out quantised"):
        open_seeing("llava-smollm2", quantised="8bit")
    with pytest.raises(BellaError, match="'4bit', '8bit' or 'int8'"):
        read_config(None, {"data": "x", "quantised": "2bit"})


def test_a_missing_library_names_the_extra(monkeypatch):
    for kind, module in (("4bit", "bitsandbytes"), ("8bit", "bitsandbytes"), ("int8", "torchao")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingExtraError, match=rf"{module} .*bella-bnn\[quantised\]"):
            open_task("hf:x", "causal-lm", quantised=kind)
    with pytest.raises(BellaError, match=r"quantised='2bit' is unknown: choose '4bit', '8bit'"):
        open_task("hf:x", "causal-lm", quantised="2bit")
