"""Small trainings that one process and several make the same."""

from __future__ import annotations

import os
import signal
import warnings

import torch
from fit_cases import Blocks, problem
from torch.utils.data import DataLoader, TensorDataset

import bella
from bella.parallel.sharding import bytes_of_base, shard_base


def posterior_of(particles: int = 5, kind: str = "low_rank", rate: float = 0.0):
    network = Blocks(rate)
    if kind == "full":
        return bella.full(network, particles, seed=0)
    return bella.low_rank(
        network, particles, 2, (r"blocks\.[12]\.0",), modules_to_save=("head",), b_std=0.1, seed=0
    )


def trained(options: dict, folder: str | None = None, kind: str = "low_rank", particles: int = 5):
    """A whole training: its particles, history, plans, and the random numbers that come next."""
    options = dict(options)
    torch.manual_seed(7)
    posterior = posterior_of(particles, kind, options.pop("rate", 0.0))
    if options.pop("shard", False):
        shard_base(posterior)
    x, y = problem(45)  # batches of 8, and one of 5: no number of processes divides it
    y = y.clone()
    y[3] = y[17] = -100
    loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
    settings = {"epochs": 2, "learning_rate": 0.02, "clip": 0.5, "progress": False} | options
    record = bella.fit(posterior, loader, validation=problem(16, 1), folder=folder, **settings)
    values = {k: v.detach().clone() for k, v in posterior.stacked_parameters().items()}
    return {
        "values": values,
        "history": record.history,
        "particles": posterior.particles,
        "base": bytes_of_base(posterior),
        "random": torch.get_rng_state(),
        "plans": posterior.passes.planner.state()["plans"],
    }


def several(cases: list[dict]) -> list[dict]:
    """Trainings one after the other, in a process group that is there already."""
    torch.distributed.init_process_group("gloo")
    # FSDP2 warns of outputs that are views, which somebody could change in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
    warnings.filterwarnings("ignore", ".* particles are one point", UserWarning)
    found = [trained(**case) for case in cases]
    assert torch.distributed.is_initialized()
    torch.distributed.destroy_process_group()
    return found


def killed() -> None:
    """A training of which the second process ends without a word in the middle."""
    x, y = problem(45)

    class Deadly(TensorDataset):
        def __getitem__(self, i):
            if os.environ["RANK"] == "1" and i == 40:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(i)

    loader = DataLoader(Deadly(x, y), batch_size=8)
    bella.fit(posterior_of(), loader, epochs=50, progress=False, cache_prefix=False)


def weighed(particle_processes: int, width: int = 16, particles: int = 4) -> dict:
    """Three steps after a first one: bytes given to messages a step, and bytes that arrived at all
    processes of this machine in each."""
    from pathlib import Path

    from torch import nn

    from bella.parallel.division import Division
    from bella.parallel.mesh import mesh_of
    from bella.parallel.ranks import joined
    from bella.training.gradients import Gradients
    from bella.training.step import Step

    def arrived() -> int:
        lines = Path("/proc/net/dev").read_text().splitlines()
        return next(int(x.split(":")[1].split()[0]) for x in lines if x.strip().startswith("lo:"))

    with joined() as world:
        mesh = mesh_of(world, particle_processes)
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width), nn.Linear(width, 3)
        )
        posterior = bella.low_rank(
            network, particles, 8, ("0", "2"), modules_to_save=("3",), b_std=0.5
        )
        division = Division(posterior, mesh.particles)
        move = bella.transport.repulsive(posterior, data_size=64)
        optimizer = torch.optim.SGD(posterior.parameter_groups(0.0), lr=0.01)
        step = Step(posterior, optimizer, move, gradients=Gradients(posterior, move, mesh=mesh))
        batch = ((torch.randn(16, width),), {}, torch.randint(3, (16,)))
        given, came = [], []
        for _ in range(4):
            before = {k: dict(getattr(mesh, k).sent) for k in ("particles", "data")}
            torch.distributed.barrier()
            start = arrived()
            step([batch])
            torch.distributed.barrier()
            came.append(arrived() - start)
            given.append(
                {
                    f"{k} {name}": getattr(mesh, k).sent[name] - count
                    for k, counts in before.items()
                    for name, count in counts.items()
                }
            )
        division.end()
    return {"given": given[1:], "arrived": came[1:]}
