"""`bella fit` under torchrun: one run, one voice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bella


@pytest.mark.slow
def test_fit_under_torchrun_is_one_run(tmp_path):
    drawn = np.random.default_rng(0)
    for part in ("train", "val", "test"):
        for label, mean in (("dark", 60), ("light", 160)):
            folder = tmp_path / "photos" / part / label
            folder.mkdir(parents=True)
            for i in range(5):
                pixels = drawn.normal(mean, 30, (40, 40, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    flags = ["--image-size", "32", "--epochs", "1", "--particles", "3", "--json"]
    places = ["--data", str(tmp_path / "photos"), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [*launcher, "-m", "bella", "fit", *places, *flags, "--particle-processes", "2"],
        env=os.environ
        | {"PYTHONPATH": str(Path(bella.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)  # said once
    assert figures == json.loads((tmp_path / "run" / "figures.json").read_text())
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["settings"]["particle_processes"] == 2
    assert len(record["history"]) == 1
