"""One case of the zoo: a posterior against its particles, one at a time."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn
from zoo import ZOO
from zoo_base import Inputs
from zoo_compare import (
    ROUNDING,
    Fault,
    caches_differ,
    differs,
    gradients_differ,
    outputs_differ,
)
from zoo_oracle import Factors, Leaves, caches, directions, gradients, leaves, run_plain, suffixes

import bella

PARTICLES = 3
BATCHES = (4, 1, 3, 1)
CALLS = 6  # in training, of a network that skips layers at random; each with a seed of its own
TRIES = 40  # in which the layers that were kept must be met


@dataclass(frozen=True)
class Case:
    """One suffix of one architecture in one mode."""

    architecture: str
    suffix: str
    training: bool

    @property
    def name(self) -> str:
        return f"{self.architecture}/{self.suffix}/{'training' if self.training else 'evaluation'}"


@dataclass(frozen=True)
class Verdict:
    """How one call went.

    Attributes:
        batch: its size; 0 where no posterior was made.
        kind: "right", "refused", "wrong" or "raised" (an error that is not bella's).
        how: how it ran, where it ran, in the words of `bella.particles.plan`.
        said: what is wrong, or the sentence of the refusal.
        size: by how much of a tensor's size it is off.
    """

    batch: int
    kind: str
    how: str = ""
    said: str = ""
    size: float = 0.0


@dataclass(frozen=True)
class Truth:
    """What particles give one at a time, each tensor (particles, ...).

    Attributes:
        outputs: of the network, by place.
        states: the caches among them.
        along: the directions of the gradients.
        gradients: of the outputs along these, by factor.
    """

    outputs: Leaves
    states: Leaves
    along: Leaves
    gradients: Leaves


@cache
def network_of(architecture: str) -> nn.Module:
    return ZOO[architecture].network(architecture)


def cases(architecture: str) -> list[Case]:
    """Every suffix in both modes."""
    found = suffixes(network_of(architecture))
    return [Case(architecture, suffix, mode) for suffix in found for mode in (False, True)]


def some_cases(architecture: str) -> list[Case]:
    """A quarter of them: of four suffixes one in evaluation and the next in training."""
    found = cases(architecture)
    return [case for place, case in enumerate(found) if place % 8 in (0, 3)]


def check(case: Case) -> list[Verdict]:
    """A verdict for every call, or one for a posterior that is not made."""
    found = run(case, torch.float32)
    if any(verdict.kind == "wrong" and verdict.size < ROUNDING for verdict in found):
        again = run(case, torch.float64)
        found = [
            replace(exact, how=verdict.how) if 0 < verdict.size < ROUNDING else verdict
            for verdict, exact in zip(found, again, strict=True)
        ]
    return found


def run(case: Case, dtype: torch.dtype) -> list[Verdict]:
    """`check` in one dtype."""
    try:
        trial = Trial(case, dtype)
    except bella.BellaError as error:
        return [Verdict(0, "refused", said=str(error))]
    except ImportError:
        raise  # a library is not installed
    except Exception as error:
        return [Verdict(0, "raised", said=short(error))]
    seeds = CALLS if trial.skips else 1
    return [trial.call(batch, seed) for batch in BATCHES for seed in range(seeds)]


class Trial:
    """A posterior and the plain network that it was made of.

    Raises:
        BellaError: the posterior is refused.
    """

    def __init__(self, case: Case, dtype: torch.dtype = torch.float32):
        self.architecture, self.dtype = ZOO[case.architecture], dtype
        self.skips = self.architecture.skips_layers and case.training
        self.plain = copy.deepcopy(network_of(case.architecture)).to(dtype)
        names = suffixes(self.plain)[case.suffix]
        weights = [self.plain.get_submodule(name).weight for name in names]
        rank = min(2, *(min(weight.shape[0], weight[0].numel()) for weight in weights))
        self.scale = 2.0
        exactly = [f"(?:{re.escape(name)})" for name in names]  # never meant as a suffix
        self.posterior = bella.low_rank(
            copy.deepcopy(self.plain), PARTICLES, rank, exactly, alpha=2 * rank, b_std=0.5
        )
        stacked = self.posterior.stacked_parameters()
        self.factors = {
            f"{name}.{part}": stacked[f"{name}.{part}"] for name in names for part in "AB"
        }
        self.truths: dict[int, Truth] = {}
        self.posterior.train(case.training)
        self.plain.train(case.training)
        for module in self.plain.modules():  # a frozen base's statistics are left alone
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()

    def particle(self, i: int) -> Factors:
        """One particle's factors, as leaves of its own graph."""
        return {key: p.detach()[i].clone().requires_grad_() for key, p in self.factors.items()}

    def call(self, batch: int, seed: int = 0, **other: Any) -> Verdict:
        """Compare one call with the particles.

        Args:
            batch: number of examples.
            seed: of what the network draws.
            other: arguments beside or instead of the architecture's own; ``None``
                takes one away.
        """
        own_args, own_kwargs = self.architecture.inputs(batch)
        given = {key: x for key, x in {**own_kwargs, **other}.items() if x is not None}
        inputs = map_floats(lambda x: x.to(self.dtype), (own_args, given))
        args, kwargs = copy.deepcopy(inputs)
        torch.manual_seed(seed)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a slower way; what counts is what comes out
                outputs = self.posterior(*args, **kwargs)
            found, held = dict(leaves(outputs)), caches(outputs)
            if self.skips:
                fault = self.compare_skipping(inputs, found)
            else:
                truth = None if other else self.truths.get(batch)
                if truth is None:
                    truth = self.truth(inputs)
                if not other:  # such inputs come again
                    self.truths[batch] = truth
                fault = self.compare(inputs, found, held, truth)
        except bella.BellaError as error:
            return Verdict(batch, "refused", said=str(error))
        except Exception as error:
            return Verdict(batch, "raised", said=short(error))
        if fault:
            return Verdict(batch, "wrong", self.how(inputs), fault.said, fault.size)
        return Verdict(batch, "right", self.how(inputs))

    def how(self, inputs: Inputs) -> str:
        """How particles run on these inputs."""
        args, kwargs = copy.deepcopy(inputs)
        return self.posterior.plan_for(*args, **kwargs).how

    def truth(self, inputs: Inputs) -> Truth:
        """The particles one at a time, without bella's passes."""
        own = [self.particle(i) for i in range(PARTICLES)]
        runs = [run_plain(self.plain, factors, self.scale, inputs) for factors in own]
        alone, states = zip(*runs, strict=True)
        along = directions(alone[0], PARTICLES)
        found = [
            gradients(alone[i], {path: w[i] for path, w in along.items()}, own[i])
            for i in range(PARTICLES)
        ]
        outputs = {path: x.detach() for path, x in stacked(alone).items()}
        return Truth(outputs, stacked(states), along, stacked(found))

    def compare(self, inputs: Inputs, found: Leaves, held: Leaves, truth: Truth) -> Fault | None:
        """What differs from the loop: outputs, caches, gradients, a merged particle."""
        if fault := outputs_differ(found, truth.outputs):
            return fault
        if not any(differs(value[0], value[1]) for value in truth.outputs.values()):
            return Fault("the particles do not differ and nothing was said: the case shows nothing")
        got = gradients(found, truth.along, self.factors)
        return (
            caches_differ(held, truth.states)
            or gradients_differ(got, truth.gradients)
            or self.merged_differs(inputs, {path: x[1] for path, x in truth.outputs.items()})
        )

    @cached_property
    def merged(self) -> nn.Module:
        """Particle 1 as a plain network."""
        merged = self.posterior.particle(1).train(self.posterior.training)
        for module in merged.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return merged

    def merged_differs(self, inputs: Inputs, expected: Leaves) -> Fault | None:
        """Whether particle 1 as a plain network is another one."""
        args, kwargs = copy.deepcopy(inputs)
        with torch.no_grad():
            fault = outputs_differ(dict(leaves(self.merged(*args, **kwargs))), expected)
        return fault.at("posterior.particle(1)") if fault else None

    def compare_skipping(self, inputs: Inputs, found: Leaves) -> Fault | None:
        """The same where layers are skipped at random: what each particle gives is what its network
        gives with some of its layers skipped, whichever."""
        along = directions({path: x[0] for path, x in found.items()}, PARTICLES)
        got = gradients(found, along, self.factors)
        for i in range(PARTICLES):
            mine = {path: x[i] for path, x in found.items()}
            own, fault = self.particle(i), None
            for seed in range(TRIES):
                torch.manual_seed(seed)
                run, _ = run_plain(self.plain, own, self.scale, inputs)
                fault = outputs_differ(mine, run)
                if fault is None:
                    want = gradients(run, {path: w[i] for path, w in along.items()}, own)
                    fault = gradients_differ({key: g[i] for key, g in got.items()}, want)
                    break
            if fault:
                return Fault(f"particle {i} is no choice of its layers: {fault.said}")
        return None


def stacked(of_particles: Sequence[Leaves]) -> Leaves:
    """Tensors of each particle with a particle axis before the others."""
    return {path: torch.stack([one[path] for one in of_particles]) for path in of_particles[0]}


def map_floats(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """A tree of tuples and dicts with its floating tensors exchanged."""
    if isinstance(tree, Tensor):
        return function(tree) if tree.is_floating_point() else tree
    if isinstance(tree, dict):
        return {key: map_floats(function, value) for key, value in tree.items()}
    return tuple(map_floats(function, x) for x in tree) if isinstance(tree, tuple) else tree


def short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:160]
