"""What is built and handed on: distributions, licences, the citation, a public host's checks."""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import dist
import licences
import pytest
import yaml

import bella

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

USE = """
import torch
from torch import nn

import bella

network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
posterior = bella.low_rank(network, particles=3, rank=2, target_modules=("0",))
move = bella.transport.repulsive(posterior, data_size=8)
x, y = torch.randn(8, 4), torch.randint(0, 3, (8,))
optimizer = torch.optim.AdamW(posterior.parameter_groups(0.01), lr=0.01)
bella.nll(posterior(x), y).backward()
move.step()
optimizer.step()
assert bella.predict(posterior, x).probs.shape == (8, 3)
print(bella.__file__)
"""


def build(place, seed):
    """A build in another folder, at another time of its files."""
    clone = place / f"clone-{seed}"
    subprocess.run(["git", "clone", "-q", "--shared", ROOT, clone], check=True)
    for path in dist.tracked(ROOT):  # as it is here, committed or not
        (clone / path).parent.mkdir(parents=True, exist_ok=True)
        (clone / path).write_bytes((ROOT / path).read_bytes())
    subprocess.run(["git", "add", "-A"], cwd=clone, check=True)
    return dist.build(place / f"dist-{seed}", clone)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    if not (ROOT / ".git").exists():
        pytest.skip("what is built is what git tracks, and this is no checkout")
    place = tmp_path_factory.mktemp("dist")
    return build(place, 1), build(place, 2)


def test_two_builds_are_the_same_bytes(built):
    one, two = ([hashlib.sha256(path.read_bytes()).hexdigest() for path in made] for made in built)
    assert one == two


def test_the_wheel_holds_the_whole_package_and_nothing_else(built):
    wheel = zipfile.ZipFile(built[0][1])
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    ours = {name[4:] for name in dist.tracked(ROOT) if name.startswith("src/bella/")}
    assert held == ours
    assert "bella/py.typed" in held
    said = wheel.read(next(n for n in wheel.namelist() if n.endswith("/METADATA"))).decode()
    assert f"Version: {bella.__version__}" in said
    assert "License-Expression: Apache-2.0" in said
    with tarfile.open(built[0][0]) as archive:
        entries = archive.getmembers()
    assert {entry.uid for entry in entries} == {0}
    assert len({entry.mtime for entry in entries}) == 1
    inside = {entry.name.partition("/")[2] for entry in entries}
    assert {f"src/{name}" for name in ours} <= inside


@pytest.mark.slow
def test_both_install_into_an_empty_environment_and_run(built, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"

    def run(*arguments):
        done = subprocess.run(
            [python, *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    sdist, wheel = built[0]
    pinned = ("--constraint", ROOT / "constraints.txt")
    run("-m", "pip", "install", "-q", *pinned, wheel)
    for distribution in (None, sdist):
        if distribution is not None:  # torch has brought setuptools
            again = ("--no-deps", "--no-build-isolation", "--force-reinstall")
            run("-m", "pip", "install", "-q", *again, distribution)
        assert str(tmp_path / "venv") in run("-W", "error", "-c", USE)
        assert run("-m", "bella", "--version") == f"bella {bella.__version__}\n"
        assert "elpv" in run("-m", "bella", "data")


def test_every_dependency_has_its_licence_on_the_page():
    rows = [line.split("|") for line in licences.PAGE.read_text().splitlines() if "`" in line]
    said = {row[2].strip(" `"): row[3].strip() for row in rows if len(row) == 5}
    extras = PROJECT["optional-dependencies"]
    users = [
        line for name, group in extras.items() if name not in ("dev", "docs") for line in group
    ]
    asked = {licences.named(line) for line in (*PROJECT["dependencies"], *users)} - {licences.OURS}
    assert asked <= said.keys(), "python docs/licences.py --write"
    assert not [name for name, words in said.items() if words.startswith("not ") or not words]
    assert said["torch"].startswith("Apache-2.0")
    assert said["pyyaml"] == "MIT"


def test_the_citation_is_of_this_version():
    said = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert said["version"] == bella.__version__ == PROJECT["version"]
    assert said["license"] == PROJECT["license"]
    paper = said["preferred-citation"]["title"]
    assert paper.split(":")[0].replace("(", "").split()[0] == "Bayesian"


def test_the_public_host_runs_what_we_run():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    jobs = {name: job["steps"] for name, job in workflow["jobs"].items()}
    said = {name: " ".join(step.get("run", "") for step in jobs[name]) for name in jobs}
    makefile = (ROOT / "Makefile").read_text()
    same = {name: name for name in ("test", "check", "lowest", "docs")}
    for name, target in (same | {"long": "test-long"}).items():
        assert f"make {target}" in said[name]
        assert f"\n{target}:" in makefile
    assert "docs/dist.py" in said["dist"]
    assert "pip-audit" in said["audit"]
    used = [step["uses"] for steps in jobs.values() for step in steps if "uses" in step]
    assert used
    assert all("@v" in name for name in used)  # what others publish is named by its version


def test_types_are_told_to_type_checkers():
    assert (Path(bella.__file__).parent / "py.typed").exists()
