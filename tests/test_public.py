"""The public names: lazy when bella is imported, typed for editors and type checkers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bella

pytestmark = pytest.mark.long

SOURCE = Path(bella.__file__).parents[1]

USER = """
import torch
from torch import nn

import bella

network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
x, y = torch.randn(8, 4), torch.zeros(8, dtype=torch.long)
posterior = bella.low_rank(network, particles=4, rank=2, target_modules=("0",))
reveal_type(posterior)  # LowRankPosterior
reveal_type(bella.rank1(network, 4))  # Rank1Posterior
reveal_type(bella.full(network, 4))  # FullPosterior
reveal_type(bella.sparse_subspace(network))  # SparsePosterior
reveal_type(bella.load("folder", network))  # Posterior
reveal_type(posterior.particle(0))  # Module
reveal_type(bella.transport.repulsive(posterior, data_size=8))  # Repulsive
reveal_type(bella.nll(posterior(x), y))  # Tensor
reveal_type(bella.predict(posterior, x))  # Predictive
reveal_type(bella.predict(posterior, x).mutual_information)  # Tensor
reveal_type(bella.fit(posterior, ()))  # Record
reveal_type(bella.evaluate(posterior, ()))  # dict
reveal_type(bella.cost(posterior))  # dict
reveal_type(bella.recompute(posterior))  # list
reveal_type(bella.checkpoint(posterior))  # list
"""

# Rooms of others that none of bella's public types comes from: reading them takes twice as long as
# all that is asked for.
UNREAD = """
[mypy]
[mypy-jax.*,jaxlib.*,sympy.*,torch._decomp.*,torch._dynamo.*,torch._export.*,torch._functorch.*,\
torch._higher_order_ops.*,torch._inductor.*,torch._prims.*,torch._refs.*,torch._subclasses.*,\
torch.ao.*,torch.distributed.*,torch.distributions.*,torch.export.*,torch.fx.*,torch.onnx.*,\
torch.package.*,torch.quantization.*,torch.testing.*]
follow_imports = skip
"""


@pytest.fixture
def mypy(pytestconfig, tmp_path):
    """Type-check a program as a user would, without this project's own settings."""

    def run(program: str) -> str:
        (tmp_path / "user.py").write_text(program)
        cache = pytestconfig.cache.mkdir("mypy")  # torch's own types take ten seconds to read
        (tmp_path / "unread.ini").write_text(UNREAD)
        command = [sys.executable, "-m", "mypy", "--config-file=unread.ini", "--no-error-summary"]
        command.append("--follow-imports=silent")  # bella's own lines are for `make check`
        done = subprocess.run(
            [*command, f"--cache-dir={cache}", "user.py"],
            cwd=tmp_path,
            env=os.environ | {"MYPYPATH": str(SOURCE), "COLUMNS": "300"},
            capture_output=True,
            text=True,
        )
        assert not done.stderr
        return done.stdout

    return run


def test_a_reader_s_editor_knows_what_the_public_names_return(mypy):
    output = mypy(USER)
    assert "error" not in output, output
    said = dict(re.findall(r'user\.py:(\d+): note: Revealed type is "(.*)"', output))
    wanted = {
        str(number): line.rpartition("# ")[2]
        for number, line in enumerate(USER.splitlines(), 1)
        if line.startswith("reveal_type")
    }
    assert said.keys() == wanted.keys(), output
    for number, kind in wanted.items():
        assert re.split(r"\[", said[number])[0].rpartition(".")[2] == kind, said[number]


def test_every_public_name_has_a_type_and_a_misspelt_one_is_an_error(mypy):
    lines = [f"reveal_type(bella.{name})" for name in bella.__all__]
    output = mypy("\n".join(["import bella", *lines, "bella.lowrank"]))
    said = re.findall(r'Revealed type is "(.*)"', output)
    assert len(said) == len(bella.__all__), output
    assert "Any" not in said
    assert [line for line in output.splitlines() if ": error: " in line] == [
        f"user.py:{len(lines) + 2}: error: "
        'Module has no attribute "lowrank"; maybe "low_rank"?  [attr-defined]'
    ]


def test_the_names_for_type_checkers_are_those_at_run_time():
    assert sorted(bella.__all__) == sorted([*bella._PLACES, *bella._MODULES])
    for name in bella.__all__:
        value = getattr(bella, name)
        place = bella._PLACES.get(name, f"bella.{name}")
        assert getattr(value, "__module__", value.__name__).startswith(place.rpartition(".")[0])
    assert set(bella.POSTERIORS) <= set(bella.__all__)
    assert set(bella.__all__) <= set(dir(bella))


def test_one_thing_under_its_old_name_is_the_same_thing():
    assert bella.checkpoint is bella.recompute


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="low_rnak"):
        bella.low_rnak  # noqa: B018


def test_bella_alone_loads_nothing_heavy():
    heavy = ("torch", "numpy", "pydantic", "rich", "transformers", "matplotlib")
    code = f"import sys, bella; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"
