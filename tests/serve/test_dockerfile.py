"""The Dockerfile, where there is no docker: its commands, in an empty folder."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from serve_cases import Client

ROOT = Path(__file__).parents[2]
TOKEN = "0123456789abcdef0123456789abcdef"


def steps() -> list[tuple[str, str]]:
    """Instructions and what they say."""
    lines = [
        line for line in (ROOT / "Dockerfile").read_text().splitlines() if line[:1] not in "# "
    ]
    return [tuple(line.split(" ", 1)) for line in lines if line]


def test_it_copies_what_is_there_and_starts_by_a_list():
    copied = [shlex.split(said)[:-1] for name, said in steps() if name == "COPY"]
    assert all((ROOT / path).exists() for paths in copied for path in paths)
    said = dict(steps())
    assert json.loads(said["CMD"])[:2] == ["bella", "serve"]
    assert said["USER"] == "bella"


@pytest.mark.slow
def test_its_commands_make_a_service_that_answers(pictures, tmp_path):
    """In the place of the image: a folder, a fresh environment, and the package index of here."""
    app, environment = tmp_path / "app", tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    app.mkdir()
    shell = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    shell |= {"PATH": f"{environment / 'bin'}:{os.environ['PATH']}", "BELLA_TOKEN": TOKEN}
    start = health = None
    for name, said in steps():
        if name == "COPY":
            *sources, target = shlex.split(said)
            for source in sources:
                place = app / (source if target == "./" else target)
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
                copy(ROOT / source, place)
        elif name == "RUN" and said.startswith("pip"):
            command = re.sub(r" --index-url \S+", "", said)
            done = subprocess.run(
                command, shell=True, cwd=app, env=shell, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr[-2000:]
        elif name == "CMD":
            start = json.loads(said)
        elif name == "HEALTHCHECK":
            health = json.loads(said.partition("CMD ")[2])
    assert start is not None
    command = [str(pictures / "run") if word == "/run" else word for word in start]
    process = subprocess.Popen(
        [*command, "--port", "0"], cwd=tmp_path, env=shell, stdout=subprocess.PIPE, text=True
    )
    try:
        found = re.search(r":(\d+)/", process.stdout.readline())
        assert found
        check = [word.replace("8000", found[1]) for word in health]
        while subprocess.run(check, env=shell, capture_output=True).returncode:
            assert process.poll() is None
            time.sleep(0.5)
        image = next((pictures / "images" / "night").glob("*.png"))
        client = Client(int(found[1]), TOKEN)
        told = client.files("/v1/predict/files", [image.read_bytes()])
        assert told.json["predictions"][0]["class"] in ("day", "night")
        assert Client(int(found[1])).get("/v1/run").status == 401
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0
