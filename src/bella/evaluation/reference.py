"""How good is a posterior? Its predictive beside that of long No-U-Turn runs on a small problem.

A `Target` is a posterior small enough to be sampled: of the weights of a head, or of a head and the
factors of one low-rank layer below it. `sample_nuts` draws from it (`bella.evaluation.nuts`) and
keeps the draws; `compare` holds what a method says against them:

agreement           share of the test on which both name the same class
total variation     mean over the test of ½ Σ_c |p(c) - q(c)|; of numbers ½ ∫ |p(y) - q(y)| dy
variance            of weights, and of what is said of the test (log-probabilities, means), over
                    the particles; divided by the sampler's, the median over dimensions

Source:
    Izmailov, Vikram, Hoffman & Wilson 2021, What are Bayesian neural network posteriors really
    like?
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from bella import metrics
from bella.errors import BellaError, MissingExtraError
from bella.files import read_json, write_json, write_whole
from bella.prediction.numbers import GaussianPredictive
from bella.prediction.predictive import Predictive
from bella.prediction.said import Said

CONVERGED = 1.01
"""R-hat of the predictions above which draws are called unfinished (Vehtari et al. 2021)."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Target:
    """p(θ | D) ∝ Π_n p(y_n | f(x_n, θ)) N(θ; 0, prior_std²), all in float64.

    f is ``head @ x``, or with a ``base`` ``head @ tanh((base + B A) x)``; biases are constant
    inputs. θ is ``head`` (outputs, in), and with a base A (rank, in) and B (hidden, rank).

    Attributes:
        x: training inputs (N, in).
        y: their numbers (N,) or classes (N,).
        test_x: inputs that are predicted.
        test_y: their labels.
        outputs: 1 for numbers, else the number of classes.
        prior_std: of every element of θ.
        variance: of the noise around numbers; ``None``: classes.
        base: frozen weight (hidden, in), or ``None``.
        rank: of the change of the base.
    """

    x: Float[Tensor, "N inputs"]
    y: Tensor
    test_x: Float[Tensor, "tested inputs"]
    test_y: Tensor
    outputs: int
    prior_std: float
    variance: float | None = None
    base: Float[Tensor, "hidden inputs"] | None = None
    rank: int = 0

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the parameters, by name."""
        inputs = self.x.shape[1]
        if self.base is None:
            return {"head": (self.outputs, inputs)}
        hidden = len(self.base)
        return {
            "A": (self.rank, inputs),
            "B": (hidden, self.rank),
            "head": (self.outputs, hidden),
        }

    @property
    def dimensions(self) -> int:
        """Number of parameters."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def network_outputs(
        self, theta: Mapping[str, Tensor], x: Float[Tensor, "batch inputs"]
    ) -> Float[Tensor, "draws batch outputs"]:
        """f(x, θ) for every draw (draws, ...) of θ."""
        if self.base is None:
            return x @ theta["head"].mT
        hidden = torch.tanh(x @ self.base.mT + (x @ theta["A"].mT) @ theta["B"].mT)
        return hidden @ theta["head"].mT

    def log_density(self, theta: Mapping[str, Tensor]) -> Float[Tensor, " draws"]:
        """log p(y | x, θ) + log p(θ) of every draw, in nats."""
        said = self.network_outputs(theta, self.x)
        if self.variance is None:
            chosen = torch.log_softmax(said, -1)[:, torch.arange(len(self.y)), self.y]
            fit = chosen.sum(-1)
        else:
            square = (self.y - said[..., 0]).square() / self.variance
            fit = -0.5 * (square + math.log(2 * math.pi * self.variance)).sum(-1)
        prior = sum(
            -0.5 * ((value / self.prior_std).square().flatten(1)).sum(-1)
            for value in theta.values()
        )
        return fit + prior - self.dimensions / 2 * math.log(2 * math.pi * self.prior_std**2)

    def said(self, outputs: Float[Tensor, "draws tested outputs"]) -> Said:
        """The predictive of outputs of the test."""
        if self.variance is None:
            return Predictive(outputs)
        mean = outputs[..., 0]
        return GaussianPredictive(
            torch.stack((mean, torch.full_like(mean, math.log(self.variance))), -1)
        )

    def weights_of(self, theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What no gauge changes of draws of θ: the head, and the change Δ = B A."""
        found = {"head": theta["head"]}
        if self.base is not None:
            found["delta"] = theta["B"] @ theta["A"]
        return found


@dataclass(frozen=True, eq=False)
class Answer:
    """What one method says of a target.

    Attributes:
        said: its predictive of the test.
        weights: draws or particles of the head and of Δ, (n, ...) by name; empty where there is
            nothing that compares.
    """

    said: Said
    weights: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Draws:
    """Draws of a target by chains.

    Attributes:
        theta: every parameter, (chains, draws, ...), by name.
        facts: how they came about: divergences, R-hat and effective sample sizes, versions.
    """

    theta: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    @cached_property
    def joined(self) -> dict[str, Tensor]:
        """All chains one after another."""
        return {name: value.flatten(0, 1) for name, value in self.theta.items()}

    def of_chains(self, chains: slice) -> dict[str, Tensor]:
        """Some of the chains, one after another."""
        return {name: value[chains].flatten(0, 1) for name, value in self.theta.items()}

    @property
    def r_hat(self) -> float:
        """The largest of the predictions."""
        return self.facts["diagnostics"]["predictions"]["r_hat_max"]

    @property
    def converged(self) -> bool:
        """Whether the chains say the same of the test."""
        return self.r_hat <= CONVERGED


# ------------------------------------------------------------ sampling


def sample_nuts(
    target: Target,
    folder: Path,
    *,
    chains: int = 4,
    warmup: int = 500,
    draws: int = 1000,
    max_tree_depth: int = 8,
    seed: int = 0,
    told: Callable[[], None] = lambda: None,
) -> Draws:
    """Draws of a target by the No-U-Turn sampler; those that the folder keeps are taken from there.

    The sampler is another process, so that what it imports stays out of this one.

    Args:
        target: what is sampled.
        folder: keeps ``draws.safetensors``, and ``draws.json`` with how they came about.
        chains: started from draws of the prior.
        warmup: steps of each, that set step size and metric and are dropped.
        draws: kept of each, rounded up to tens.
        max_tree_depth: a draw takes at most 2 to this power steps.
        seed: decides all.
        told: called eleven times as it goes on, of draws that are kept eleven times at once.

    Raises:
        MissingExtraError: NumPyro is not installed.
        BellaError: numbers out of range, or the sampler failed.
    """
    for name, value in {"chains": chains, "warmup": warmup, "draws": draws}.items():
        least = 2 if name == "chains" else 10
        if value < least:
            raise BellaError(f"{name}={value}: give at least {least}.")
    asked = {
        "shapes": target.shapes,
        "prior_std": target.prior_std,
        "variance": target.variance,
        "chains": chains,
        "warmup": warmup,
        "draws": draws,
        "max_tree_depth": max_tree_depth,
        "dense_metric": target.dimensions <= DENSE_UP_TO,
        "seed": seed,
    }
    given = {"x": target.x, "y": target.y, "test_x": target.test_x}
    if target.base is not None:
        given["base"] = target.base
    asked["data"] = fingerprint(given)
    if (kept := read_kept(folder, asked)) is not None:
        check_density(target, kept, folder)
        for _ in range(BARS):
            told()
        return kept
    require_sampler()
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: value.contiguous() for name, value in given.items()}
    write_whole(folder / "target.safetensors", lambda path: save_file(contiguous, path))
    write_json(folder / "target.json", asked)
    for name in ("draws.safetensors", "draws.json"):
        (folder / name).unlink(missing_ok=True)
    run(folder, told)
    facts = json.loads((folder / "draws.json").read_text())
    write_json(folder / "draws.json", {"asked": asked, **facts})
    found = read_kept(folder, asked)
    assert found is not None
    check_density(target, found, folder)
    return found


DENSE_UP_TO = 50
"""Dimensions up to which the sampler's metric is a whole covariance, and not its diagonal."""

BARS = 11
"""How often `sample_nuts` tells that it goes on."""


def require_sampler() -> None:
    """Refuse to begin without the sampler, and do not import it: JAX stays in its own process.

    Raises:
        MissingExtraError: NumPyro is not installed.
    """
    if importlib.util.find_spec("numpyro") is None:
        raise MissingExtraError(
            "numpyro, which samples, is not installed: install it with "
            "`pip install 'bella-bnn[reference]'`."
        )


def run(folder: Path, told: Callable[[], None]) -> None:
    """Run the sampler on what a folder asks for.

    Raises:
        BellaError: it failed.
    """
    # This very bella, wherever it was imported from.
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    errors: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-m", "bella.evaluation.nuts", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        # Read beside the other stream: a pipe that nobody reads would stop the sampler.
        reader = threading.Thread(target=errors.extend, args=(process.stderr,), daemon=True)
        reader.start()
        try:
            for _ in process.stdout:
                told()
        except BaseException:
            process.kill()
            raise
        finally:
            reader.join()
    if process.returncode:
        last = errors[-1].strip().rstrip(".") if errors else f"status {process.returncode}"
        raise BellaError(f"The sampler ended without draws ({last}): see {folder}.")


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Tells apart what is sampled."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def read_kept(folder: Path, asked: Mapping[str, Any]) -> Draws | None:
    """The draws that a folder keeps, if they are those that are asked for."""
    path = folder / "draws.json"
    if not path.exists() or not (folder / "draws.safetensors").exists():
        return None
    facts = read_json(path)
    if facts.get("asked") != json.loads(json.dumps(asked)):
        return None
    return Draws(load_file(folder / "draws.safetensors"), facts)


def check_density(target: Target, draws: Draws, folder: Path) -> None:
    """Refuse draws of another posterior than the networks': both log densities must be the same.

    Raises:
        BellaError: they are not.
    """
    theta = dict(draws.joined)
    theirs = theta.pop("log_density")
    ours = target.log_density(theta)
    if not torch.allclose(ours, theirs, rtol=1e-8, atol=1e-8):
        raise BellaError(
            f"The draws in {folder} have another log density than the target (apart by up to "
            f"{float((ours - theirs).abs().max()):.2g} nats): remove the folder and sample anew."
        )


# ------------------------------------------------------------ comparing


def answer_of(target: Target, theta: Mapping[str, Tensor]) -> Answer:
    """What draws of θ say of the test; entries that are no parameters are left out."""
    own = {name: theta[name] for name in target.shapes}
    return Answer(target.said(target.network_outputs(own, target.test_x)), target.weights_of(own))


def compare(answer: Answer, reference: Answer, labels: Tensor) -> dict[str, float]:
    """A method beside a reference on the same test.

    Args:
        answer: the method's.
        reference: the sampler's.
        labels: of the test.

    Returns:
        ``agreement`` (NaN of numbers), ``total_variation``, ``nll`` in nats, ``weight_variance``
        (NaN where no weights compare) and ``prediction_variance``, both over the reference's.
    """
    said, true = answer.said, reference.said
    figures = {"nll": said.nll(labels)}
    if isinstance(said, Predictive) and isinstance(true, Predictive):
        figures |= {
            "agreement": metrics.agreement(said.probs, true.probs),
            "total_variation": metrics.total_variation(said.probs, true.probs),
        }
    else:
        assert isinstance(said, GaussianPredictive)
        assert isinstance(true, GaussianPredictive)
        figures |= {
            "agreement": math.nan,
            "total_variation": metrics.regression.total_variation(
                *(said.particle_means, said.particle_variances),
                *(true.particle_means, true.particle_variances),
            ),
        }
    weights = [
        (value, reference.weights[name])
        for name, value in answer.weights.items()
        if name in reference.weights
    ]
    return figures | {
        "weight_variance": variance_ratio(
            torch.cat([x.flatten(1) for x, _ in weights], 1),
            torch.cat([y.flatten(1) for _, y in weights], 1),
        )
        if weights
        else math.nan,
        "prediction_variance": variance_ratio(predictions(said), predictions(true)),
    }


def predictions(said: Said) -> Float[Tensor, "n size"]:
    """What every particle says: its log-probabilities, or its means."""
    if isinstance(said, Predictive):
        return said.particle_log_probs.flatten(1)
    assert isinstance(said, GaussianPredictive)
    return said.particle_means.flatten(1)


def variance_ratio(draws: Float[Tensor, "n size"], reference: Float[Tensor, "m size"]) -> float:
    """The median over dimensions of the variance of draws over that of a reference; 0 for one."""
    if len(draws) < 2:
        return 0.0
    return float((draws.var(0) / reference.var(0).clamp_min(1e-300)).quantile(0.5))
