"""VBL, or Laplace-LoRA: a Gaussian around one trained low-rank particle and its head.

    q(θ) = N(θ_MAP, (H + τ I)⁻¹)

H is the Gauss-Newton curvature by Kronecker factors, one block a matrix (`gauss_newton`); τ is the
precision of the prior N(0, I / τ). Of a factor with more than ``full_up_to`` rows only the leading
``factor_rank`` eigenvectors are held, and the prior rules elsewhere.

The general library for Laplace approximations, laplace-torch, holds every Kronecker factor whole,
keeps Jacobians of (batch, classes, all parameters), and hooks plain layers, which stacked factors
are not. For low-rank factors of a large network the first two do not fit into memory, so the form
here is the one of the paper; on a small head the two agree, and the tests compare them.

Source:
    Yang, Robeyns, Wang & Aitchison 2024, Bayesian low-rank adaptation for large language models;
    MacKay 1992 (probit; marginal likelihood).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bella.classes import ClassAxis
from bella.errors import BellaError
from bella.inputs import arguments
from bella.likelihood import Gaussian, Likelihood, by_name, likelihood_of, logits_of
from bella.particles.prefix import autocast_on
from bella.particles.sober import evaluating
from bella.particles.stream import Stream
from bella.posterior import Posterior
from bella.posteriors.laplace import gauss_newton, priors
from bella.posteriors.laplace.kronecker import KroneckerGaussian
from bella.posteriors.laplace.maps import LinearMap, maps_of
from bella.posteriors.laplace.second_moments import FullMoment, Moment, SketchedMoment
from bella.prediction.predict import PREDICTIVES
from bella.prediction.said import Said
from bella.trees import map_tensors, tensors_of

How = Literal["linearised", "probit", "weights"]


class LaplacePosterior(Posterior):
    """A Gaussian around a trained particle. Made by `laplace`; as it is made, of curvature 0.

    Called in the linearised ways it returns logits (1, batch, classes), whatever else the network
    returns: of a draw, or of the probit approximation, which draws nothing (so it has no mutual
    information). Draws are independent between examples. Gradients with respect to the inputs pass
    through the mean, and the spread counts as constant.

    Args:
        around: the trained posterior of one particle; its network is shared, not copied.
        predictive: ``linearised``: draws of N(f_MAP, JΣJᵀ); ``probit``: f_MAP / √(1 + π/8 diag
            JΣJᵀ); ``weights``: the network run with drawn weights.
        likelihood: ``classes`` (or ``softmax``, as it was called), ``bernoulli`` or ``gaussian``.
        variance: of the noise around numbers, whose outputs are the means alone; ``None``: the
            network's outputs are means and log variances.
        prior_precision: τ.
        log_likelihood: of the training data at the particle, in nats.
        full_up_to: Kronecker factors of so many rows are held whole.
        factor_rank: number of eigenvectors of larger ones.

    Raises:
        BellaError: more than one particle, layers that are not covered, or a bad option.
    """

    kind = "laplace"
    trains = False
    settles_passes = False

    def __init__(
        self,
        around: Posterior,
        *,
        predictive: How = "linearised",
        likelihood: str = "softmax",
        variance: float | None = 1.0,
        prior_precision: float = 1.0,
        log_likelihood: float = 0.0,
        full_up_to: int = 1024,
        factor_rank: int = 10,
    ):
        maps = maps_of(around)
        if predictive not in ("linearised", "probit", "weights"):
            raise BellaError(
                f"predictive={predictive!r}: choose 'linearised', 'probit' or 'weights'."
            )
        scored = by_name("classes" if likelihood == "softmax" else likelihood)
        scored = Gaussian(variance) if scored.name == "gaussian" else scored
        if full_up_to < 0 or factor_rank < 1:
            raise BellaError(
                f"full_up_to={full_up_to} and factor_rank={factor_rank}: give at least 0 and 1."
            )
        settings = {
            "around": {"kind": around.kind, "settings": around.settings},
            "predictive": predictive,
            "likelihood": likelihood,
            **({"variance": variance} if scored.name == "gaussian" else {}),
            "prior_precision": prior_precision,
            "log_likelihood": log_likelihood,
            "full_up_to": full_up_to,
            "factor_rank": factor_rank,
        }
        super().__init__(around.network, around.axis, settings, shared_prefix=False)
        self._around = [around]  # in a list it is no second owner of the network's parameters
        self.maps = maps
        self.likelihood: Likelihood = scored
        self.prior_precision = prior_precision
        self.stochastic = predictive != "probit"
        self.curvature = nn.ModuleList(self._gaussian(linear) for linear in maps)
        self._last: tuple[list[Any], Tensor, Tensor] | None = None

    # ------------------------------------------------------------ its parts

    @property
    def around(self) -> Posterior:
        """The trained posterior that this one lies around."""
        return self._around[0]

    @property
    def prior_precision(self) -> float:
        """τ; setting it costs nothing.

        Raises:
            BellaError: it is not above 0.
        """
        return self.settings["prior_precision"]

    @prior_precision.setter
    def prior_precision(self, value: float) -> None:
        if not 0 < value < math.inf:
            raise BellaError(f"prior_precision={value}: give a number above 0.")
        self.settings["prior_precision"] = float(value)

    def gaussians(self) -> list[tuple[LinearMap, KroneckerGaussian]]:
        """Each matrix with its Gaussian."""
        return list(zip(self.maps, self.curvature, strict=True))  # type: ignore[arg-type]

    def _rank(self, size: int) -> int:
        held = size if size <= self.settings["full_up_to"] else self.settings["factor_rank"]
        return min(size, held)

    def _gaussian(self, linear: LinearMap) -> KroneckerGaussian:
        matrix = linear.matrix()
        rows, columns = matrix.shape
        return KroneckerGaussian((rows, columns), (self._rank(rows), self._rank(columns)), matrix)

    def _sums(self, linear: LinearMap) -> gauss_newton.Sums:
        matrix = linear.matrix()

        def moment(size: int) -> Moment:
            if size <= self.settings["full_up_to"]:
                return FullMoment(matrix, size)
            return SketchedMoment(matrix, size, self._rank(size))

        rows, columns = matrix.shape
        return gauss_newton.Sums(moment(rows), moment(columns), matrix.new_zeros(()))

    def take_curvature(self, loader: Any) -> None:
        """Sum the curvature at the particle over ``loader``, in place of what was there.

        Raises:
            BellaError: see `gauss_newton.accumulate`.
        """
        with evaluating(self.around):
            sums, log_likelihood = gauss_newton.accumulate(
                self.around, self.maps, loader, self.likelihood, self._sums
            )
        for (_, gaussian), total in zip(self.gaussians(), sums, strict=True):
            values, vectors = total.inputs.eigen()
            gaussian.set(total.outputs.eigen(), (values / total.count.clamp_min(1), vectors))
        self.settings["log_likelihood"] = log_likelihood
        self._last = None

    def log_marginal_likelihood(self, prior_precision: Tensor | float | None = None) -> Tensor:
        """Laplace's approximation of log p(data | τ), in nats.

        log p(D | θ_MAP) - τ/2 ‖θ_MAP‖² - ½ log det(H + τ I) + ½ log det(τ I)

        Args:
            prior_precision: τ; the posterior's own for ``None``.
        """
        like = self.maps[0].matrix()
        tau = self.prior_precision if prior_precision is None else prior_precision
        tau = torch.as_tensor(tau, dtype=torch.double, device=like.device)
        square = sum((linear.matrix().square().sum() for linear in self.maps), like.new_zeros(()))
        volume = sum(
            (gaussian.log_volume(tau) for _, gaussian in self.gaussians()), like.new_zeros(())
        )
        return self.settings["log_likelihood"] - tau / 2 * square - volume / 2

    # ------------------------------------------------------------ calling it

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """One draw, or the probit approximation.

        Raises:
            BellaError: as the trained posterior does, or outputs that are no logits.
        """
        if self.settings["predictive"] == "weights":
            return torch.func.functional_call(self.around, self.drawn(), args, kwargs)
        mean, spread = self._mean_and_spread(args, kwargs)
        return self._logits(mean, spread, 1)

    def drawn(self) -> dict[str, Tensor]:
        """One draw of all weights, by their names in the trained posterior."""
        return {
            f"network.{name}": value
            for linear, gaussian in self.gaussians()
            for name, value in linear.split(
                linear.matrix() + gaussian.draw(self.prior_precision)
            ).items()
        }

    def linearised(
        self, args: tuple, kwargs: dict, *prior_precisions: float
    ) -> tuple[Float[Tensor, "batch classes"], list[Float[Tensor, "batch classes classes"]]]:
        """f_MAP, and J Σ Jᵀ for each prior precision."""
        with torch.inference_mode(False), torch.enable_grad():
            args, kwargs = map_tensors(_ordinary, (args, kwargs))
            passed = gauss_newton.run(self.around, self.maps, args, kwargs)
        jacobians = gauss_newton.jacobians(passed)
        gaussians = dict(self.gaussians())
        pairs = [(gaussians[m], j) for m, j in zip(passed.maps, jacobians, strict=True)]
        batch, classes = passed.logits.shape
        none = self.maps[0].matrix().new_zeros(batch, classes, classes)
        covariances = [
            sum((gaussian.covariance(j, tau) for gaussian, j in pairs), none)
            for tau in prior_precisions
        ]
        mean = passed.logits if torch.is_grad_enabled() else passed.logits.detach()
        return mean, covariances

    @torch.no_grad()
    def predictives(self, inputs: Any, prior_precisions: list[float], draws: int) -> Iterator[Said]:
        """The predictive of one batch under several prior precisions, from the same noise.

        Raises:
            BellaError: the outputs do not fit the likelihood.
        """
        args, kwargs = arguments(inputs)
        linear = self.settings["predictive"] != "weights"
        mean, covariances = (
            self.linearised(args, kwargs, *prior_precisions) if linear else (None, None)
        )
        own = self.prior_precision
        try:
            for i, tau in enumerate(prior_precisions):
                with torch.random.fork_rng():
                    torch.manual_seed(0)
                    if mean is not None and covariances is not None:
                        logits = self._logits(mean, self._spread(covariances[i]), draws)
                    else:
                        self.prior_precision = tau
                        runs = [logits_of(self(*args, **kwargs)) for _ in range(draws)]
                        logits = torch.cat(runs)
                scores = self.likelihood.scores(logits, logits, None, ClassAxis(-1))
                yield PREDICTIVES[self.likelihood.name](scores)
        finally:
            self.prior_precision = own

    def _mean_and_spread(self, args: tuple, kwargs: dict) -> tuple[Tensor, Tensor]:
        """Of one batch. Draws come in series, so the last batch's are kept."""
        network = self.network
        tensors = *tensors_of((args, kwargs)), *network.parameters(), *network.buffers()
        rest = map_tensors(lambda _: None, (args, kwargs))
        # Whatever else decides what the network answers: in which bits, and through which hooks.
        bits = (
            autocast_on(next(network.parameters()).device),
            self.held.dtype,
            self.around.held.dtype,
        )
        how = (self.prior_precision, bits, self.passes.planner.modes())
        key = [how, repr(rest), *((x, _version(x)) for x in tensors)]
        if self._last is not None and _same(self._last[0], key):
            return self._last[1], self._last[2]
        mean, (covariance,) = self.linearised(args, kwargs, self.prior_precision)
        spread = self._spread(covariance)
        # Neither a graph nor the outcome of dropout may serve twice.
        keep = not (torch.is_grad_enabled() or self.training)
        self._last = (key, mean, spread) if keep else None
        return mean, spread

    def _spread(self, covariance: Tensor) -> Tensor:
        """What `_logits` needs of the covariance: its diagonal, or a root."""
        if self.settings["predictive"] == "probit":
            return covariance.diagonal(dim1=-2, dim2=-1)
        # In float32 or better, and without what is not finite: for either there is no eigh. The
        # logits of such an example are not finite, and are told of where they are used.
        wide = covariance.to(torch.promote_types(covariance.dtype, torch.float32))
        values, vectors = torch.linalg.eigh(torch.where(wide.isfinite(), wide, 0))
        root = vectors * values.clamp_min(0).sqrt().unsqueeze(-2)
        finite = wide.isfinite().flatten(-2).all(-1)
        return root.masked_fill(~finite[:, None, None], math.nan)

    def _logits(self, mean: Tensor, spread: Tensor, draws: int) -> Tensor:
        """Logits (draws, batch, classes)."""
        if self.settings["predictive"] == "probit":
            return (mean / (1 + math.pi / 8 * spread).sqrt()).unsqueeze(0)
        noise = torch.randn(draws, *mean.shape, dtype=spread.dtype, device=spread.device)
        return mean + torch.einsum("bcd,sbd->sbc", spread, noise).to(mean.dtype)

    # ------------------------------------------------------------ as the trained posterior does it

    def prefix(self, *args: Any, **kwargs: Any) -> Stream:
        """See `Posterior.prefix`."""
        return self.around.prefix(*args, **kwargs)

    @contextmanager
    def own_inputs(self) -> Iterator[None]:
        """See `Posterior.own_inputs`."""
        with self.around.own_inputs():
            yield


def laplace(
    posterior: Posterior,
    loader: Any,
    *,
    prior_precision: float | Literal["marginal_likelihood", "validation"] = "marginal_likelihood",
    validation: Any = None,
    predictive: How = "linearised",
    likelihood: str = "auto",
    variance: float | None = None,
    full_up_to: int = 1024,
    factor_rank: int = 10,
) -> LaplacePosterior:
    """Lay a Gaussian around one trained particle, from one pass over its training data.

    Args:
        posterior: what `bella.low_rank` made with ``particles=1``, trained; left as it is. Heads
            are Linear layers.
        loader: the whole training data, as (inputs, labels) in batches; inputs may be streams of
            ``posterior.prefix``. The curvature is a sum over what it yields.
        prior_precision: τ, or how to choose it: the largest ``marginal_likelihood``, or the least
            NLL on ``validation``.
        validation: a loader, for that.
        predictive: see `LaplacePosterior`; draws are counted by ``bella.predict(draws=...)``.
        likelihood: ``classes``, ``bernoulli`` or ``gaussian``; ``auto``: the network's own.
        variance: of the noise around numbers, where the network gives their means alone; 1 if
            nothing is said. Not for one that gives their log variances too.
        full_up_to: see `LaplacePosterior`.
        factor_rank: see `LaplacePosterior`.

    Returns:
        The posterior. Every batch it predicts costs one backward pass a class (``weights``: none).

    Raises:
        BellaError: several particles, layers that are not covered, bad options or unusable data.
    """
    chosen = prior_precision if isinstance(prior_precision, str) else None
    if chosen not in (None, "marginal_likelihood", "validation"):
        raise BellaError(
            f"prior_precision={prior_precision!r}: give a number above 0, 'marginal_likelihood' or "
            "'validation'."
        )
    own = likelihood_of(posterior.network)
    if likelihood == "auto":
        likelihood = own or "classes"
    if likelihood == "tokens":
        raise BellaError(
            f"{type(posterior.network).__name__} is trained on the next token, and laplace scores "
            "each example on one label: it has no likelihood of tokens."
        )
    if own == "gaussian" and variance is not None:
        raise BellaError(
            f"variance={variance}: this network gives a log variance beside each mean, so leave it "
            "out."
        )
    if likelihood == "gaussian" and own != "gaussian":
        variance = 1.0 if variance is None else variance
    if chosen == "validation" and validation is None:
        raise BellaError("prior_precision='validation' needs validation=, a loader of such data.")
    made = LaplacePosterior(
        posterior,
        predictive=predictive,
        likelihood=likelihood,
        variance=variance,
        prior_precision=1.0 if isinstance(prior_precision, str) else prior_precision,
        full_up_to=full_up_to,
        factor_rank=factor_rank,
    )
    made.take_curvature(loader)
    if chosen == "marginal_likelihood":
        made.prior_precision = priors.by_marginal_likelihood(made.log_marginal_likelihood)
    elif chosen == "validation":
        made.prior_precision = priors.by_validation(made, validation)
    return made


def _ordinary(x: Tensor) -> Tensor:
    """A tensor that autograd may keep, also of one made in inference mode."""
    return x.clone() if x.is_inference() else x


def _version(x: Tensor) -> int | None:
    return None if x.is_inference() else x._version


def _same(a: list[Any], b: list[Any]) -> bool:
    """Whether two keys hold the same tensors, unchanged, and equal other things."""
    return (
        len(a) == len(b)
        and a[:2] == b[:2]
        and all(
            x is y and version == other and version is not None
            for (x, version), (y, other) in zip(a[2:], b[2:], strict=True)
        )
    )
