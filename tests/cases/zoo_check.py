"""One case of the zoo: a posterior against its particles, one at a time."""

from __future__ import annotations

import copy
import math
import re
import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from zoo import ZOO
from zoo_base import Inputs
from zoo_oracle import (
    Factors,
    Leaves,
    caches,
    directions,
    gradients,
    leaves,
    run_plain,
    suffixes,
)

import bella

PARTICLES = 3
BATCHES = (4, 1, 3, 1)
TOLERANCE = 1e-5
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
        how: how it ran, where it ran: "folded", "prefix" (folded behind a shared prefix), "looped".
        said: what is wrong, or the sentence of the refusal.
    """

    batch: int
    kind: str
    how: str = ""
    said: str = ""


@cache
def network_of(architecture: str) -> nn.Module:
    return ZOO[architecture].network(architecture)


def cases(architecture: str) -> list[Case]:
    """Every suffix in both modes."""
    found = suffixes(network_of(architecture))
    return [Case(architecture, suffix, mode) for suffix in found for mode in (False, True)]


def some_cases(architecture: str) -> list[Case]:
    """A third of them: of three suffixes one in evaluation and the next in training."""
    found = cases(architecture)
    return [case for place, case in enumerate(found) if place % 6 in (0, 3)]


def check(case: Case) -> list[Verdict]:
    """A verdict for every call, or one for a posterior that is not made."""
    try:
        trial = Trial(case)
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

    def __init__(self, case: Case):
        self.architecture = ZOO[case.architecture]
        self.skips = self.architecture.skips_layers and case.training
        self.plain = copy.deepcopy(network_of(case.architecture))
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
        inputs = (own_args, given)
        args, kwargs = copy.deepcopy(inputs)
        torch.manual_seed(seed)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a slower way; what counts is what comes out
                outputs = self.posterior(*args, **kwargs)
            found, held = dict(leaves(outputs)), caches(outputs)
            if self.skips:
                said = self.compare_skipping(inputs, found)
            else:
                said = self.compare(inputs, found, held)
        except bella.BellaError as error:
            return Verdict(batch, "refused", said=str(error))
        except Exception as error:
            return Verdict(batch, "raised", said=short(error))
        kind = "wrong" if said else "right"
        return Verdict(batch, kind, how_it_ran(self.posterior), said or "")

    def compare(self, inputs: Inputs, found: Leaves, held: Leaves) -> str | None:
        """What differs from the loop: outputs, caches, a merged particle, gradients."""
        own = [self.particle(i) for i in range(PARTICLES)]
        runs = [run_plain(self.plain, factors, self.scale, inputs) for factors in own]
        alone = [outputs for outputs, _ in runs]
        expected = {path: torch.stack([one[path] for one in alone]) for path in alone[0]}
        if said := differ(found, expected):
            return said
        if not any(differs(value[0], value[1]) for value in expected.values()):
            return "the particles do not differ and nothing was said: the case shows nothing"
        for path, state in held.items():
            value = torch.stack([caches_of[path] for _, caches_of in runs])
            whole = state.numel() == value.numel()  # particles and batch may be one axis
            if said := differs(state.reshape(value.shape) if whole else state, value):
                return f"cache {path}: {said}"
        along = directions(alone[0], PARTICLES)
        want = [
            gradients(alone[i], {path: w[i] for path, w in along.items()}, own[i])
            for i in range(PARTICLES)
        ]
        stacked = {key: torch.stack([one[key] for one in want]) for key in self.factors}
        if said := gradients_differ(gradients(found, along, self.factors), stacked):
            return said
        return self.merged_differs(inputs, alone[1])

    def merged_differs(self, inputs: Inputs, expected: Leaves) -> str | None:
        """Whether particle 1 as a plain network is another one."""
        merged = self.posterior.particle(1).train(self.posterior.training)
        for module in merged.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        args, kwargs = copy.deepcopy(inputs)
        with torch.no_grad():
            said = differ(dict(leaves(merged(*args, **kwargs))), expected)
        return f"posterior.particle(1): {said}" if said else None

    def compare_skipping(self, inputs: Inputs, found: Leaves) -> str | None:
        """The same where layers are skipped at random: what each particle gives is what its network
        gives with some of its layers skipped, whichever."""
        along = directions({path: x[0] for path, x in found.items()}, PARTICLES)
        got = gradients(found, along, self.factors)
        for i in range(PARTICLES):
            mine = {path: x[i] for path, x in found.items()}
            own, said = self.particle(i), None
            for seed in range(TRIES):
                torch.manual_seed(seed)
                run, _ = run_plain(self.plain, own, self.scale, inputs)
                said = differ(mine, run)
                if said is None:
                    want = gradients(run, {path: w[i] for path, w in along.items()}, own)
                    said = gradients_differ({key: g[i] for key, g in got.items()}, want)
                    break
            if said:
                return f"particle {i} is no choice of its layers: {said}"
        return None


def differ(found: Leaves, expected: Leaves) -> str | None:
    """How outputs are not what they should be, or None."""
    if set(found) != set(expected):
        return f"outputs {sorted(found)} where {sorted(expected)} were expected"
    for path, value in expected.items():
        if said := differs(found[path], value):
            return f"output {path or 'tensor'}: {said}"
    return None


def differs(found: Tensor, expected: Tensor) -> str | None:
    """How a tensor is not what it should be, or None."""
    found, expected = found.detach(), expected.detach()
    if found.shape != expected.shape:
        return f"shape {tuple(found.shape)} where {tuple(expected.shape)} was expected"
    if not expected.is_floating_point():
        return None if torch.equal(found, expected) else "other whole numbers"
    if not expected.isfinite().all():
        raise ArithmeticError("the particles alone are not finite: mend the case")
    return off(float((found - expected).abs().max()), float(expected.abs().max()))


def gradients_differ(found: Leaves, expected: Leaves) -> str | None:
    """How gradients differ, measured by the largest of their kind (A or B)."""
    for part in "AB":
        keys = [key for key in expected if key.endswith(f".{part}")]
        largest = max(float(expected[key].abs().max()) for key in keys)
        for key in keys:
            if said := off(float((found[key] - expected[key]).abs().max()), largest):
                return f"gradient of {key}: {said}"
    return None


def off(distance: float, magnitude: float) -> str | None:
    if math.isnan(distance):
        return "NaN"
    relative = distance / max(magnitude, TOLERANCE)
    return f"off by {relative:.1e} of its size" if relative > TOLERANCE else None


def how_it_ran(posterior: bella.Posterior) -> str:
    """Where the posterior opened its axis in its last call."""
    return "prefix" if posterior.shared is not None else "folded"


def short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:160]
