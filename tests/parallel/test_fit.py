"""`bella.fit` in several processes goes the way of one."""

from __future__ import annotations

import functools

import pytest
import torch
from fit_cases import Blocks
from parallel_cases import posterior_of, trained
from process_cases import errors, results, start

import bella
from bella.parallel.mesh import Mesh, mesh_of
from bella.parallel.ranks import Ranks
from bella.training.settings import Settings
from bella.training.shares import check_can_share

CLOSE = {"rtol": 0, "atol": 1e-5}

CASES = {
    2: {
        "examples": {"transport": "repulsive", "accumulate": 2},
        "examples-cached": {"transport": "ensemble", "cache_prefix": True, "particles_per_pass": 2},
        "particles": {"transport": "repulsive", "particle_processes": 2},
        "particles-svgd": {"transport": "svgd", "particle_processes": 2, "accumulate": 2},
        "particles-function": {
            "transport": "function",
            "particle_processes": 2,
            "particles_per_pass": 1,
        },
        "particles-langevin": {
            "transport_options": {"langevin": True, "prior": "delta", "damping": 0.1},
            "particle_processes": 2,
        },
        "examples-sharded": {"shard": True, "transport": "svgd"},
        "particles-sharded": {"shard": True, "particle_processes": 2, "particles": 4},
        "full": {"kind": "full", "particle_processes": 2, "learning_rate": 0.005},
    },
    4: {
        "examples-svgd": {"transport": "svgd", "accumulate": 2},
        "both": {"transport": "svgd", "particle_processes": 2, "accumulate": 2},
        "particles": {"transport": "repulsive", "particle_processes": 4, "cache_prefix": True},
    },
}
NAMES = [(size, name) for size, cases in CASES.items() for name in cases]


def arguments(options, **without):
    """Of `trained`, from a case; leave out what one process has not."""
    options = {k: v for k, v in options.items() if k not in without}
    made = {k: options.pop(k) for k in ("kind", "particles") if k in options}
    return {"options": options} | made


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What every case gives in every process; each number of processes is started once."""

    @functools.cache
    def run(size):
        cases = [arguments(options) for options in CASES[size].values()]
        folder = tmp_path_factory.mktemp("processes")
        each = results(size, "parallel_cases", "several", folder, cases)
        return dict(zip(CASES[size], zip(*each, strict=True), strict=True))

    return run


@pytest.mark.filterwarnings("ignore:.* particles are one point:UserWarning")
@pytest.mark.parametrize(("size", "name"), NAMES, ids=[f"{size}-{name}" for size, name in NAMES])
def test_several_processes_train_as_one_does(found, size, name):
    alone = trained(**arguments(CASES[size][name], particle_processes=1, shard=False))
    for other in found(size)[name]:
        for key, value in alone["values"].items():
            torch.testing.assert_close(other["values"][key], value, **CLOSE)
        assert other["particles"] == alone["particles"]
        share = size if "shard" in CASES[size][name] else 1
        assert other["base"] <= alone["base"] / share + 64  # rows of small tensors are not divided
        assert torch.equal(other["random"], alone["random"])
        for ours, theirs in zip(other["history"], alone["history"], strict=True):
            assert ours.keys() == theirs.keys()
            for figure, value in theirs.items():
                near = pytest.approx(value, abs=1e-4, rel=1e-3, nan_ok=True)
                assert ours[figure] == near, figure


@pytest.mark.parametrize("size", CASES)
def test_all_processes_have_the_same_particles_and_plans(found, size):
    for name, (first, *others) in found(size).items():
        for other in others:
            for kind in other["plans"].keys() & first["plans"].keys():
                assert other["plans"][kind] == first["plans"][kind], name
            for key, value in first["values"].items():
                assert torch.equal(other["values"][key], value), name


def test_a_run_goes_on_in_another_number_of_processes(tmp_path):
    """One process stops after two epochs; two that share out particles go on for two more, and one
    reads what they wrote."""
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    for folder in (one, two):
        trained({"epochs": 2}, folder)
    alone = trained({"epochs": 4}, one)
    more = {"epochs": 4, "particle_processes": 2}
    found = results(2, "parallel_cases", "trained", tmp_path / "said", more, two)
    again = trained({"epochs": 4}, two)
    for key, value in alone["values"].items():
        for other in (*found, again):
            torch.testing.assert_close(other["values"][key], value, **CLOSE)
    assert [row["epoch"] for row in again["history"]] == [1, 2, 3, 4]
    head = bella.load(two, Blocks()).network.head.values["weight"]
    assert torch.equal(head, again["values"]["head.values.weight"])


def test_one_process_that_dies_ends_all_with_a_sentence(tmp_path):
    running = start(2, "parallel_cases", "killed", tmp_path)
    for process in running:
        process.join(timeout=120)
    assert [process.exitcode for process in running] == [1, -9]
    assert "BellaError: Another of the 2 processes of this run has ended" in errors(tmp_path)[0]


def together(size):
    ranks = Ranks()
    ranks.size = size
    return ranks


def test_what_one_process_alone_can_do_is_refused():
    posterior = posterior_of()
    data = Mesh(together(2), Ranks(), together(2))
    particles = Mesh(together(2), together(2), Ranks())

    def refused(mesh, match, movers=(), posterior=posterior, **settings):
        with pytest.raises(bella.BellaError, match=match):
            check_can_share(posterior, mesh, Settings(**settings), movers)

    refused(data, "whole batch", transport="function")
    check_can_share(posterior, particles, Settings(transport="function"), ())
    for mesh in (data, particles):
        refused(mesh, "minibatches='own'", minibatches="own")
        refused(mesh, "object moves", movers=[object()])
        check_can_share(posterior, mesh, Settings(), ())
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    refused(data, "batch norm", posterior=bella.full(network, 2))
    with pytest.raises(bella.BellaError, match="let it divide"):
        mesh_of(together(3), 2)


def test_particles_that_cannot_be_divided_are_refused():
    from bella.parallel.division import Division

    with pytest.raises(bella.BellaError, match="'rank1' cannot be divided"):
        Division(bella.rank1(Blocks(), 4), together(2))
    with pytest.raises(bella.BellaError, match="5 particles cannot be divided among 8"):
        Division(posterior_of(), together(8))
