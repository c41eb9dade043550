"""A pool: groups of members, each tempered and weighted, speak as one, which is tempered again.

    p_g(y | x) = mean over the members m of group g of softmax(f_m(x) / T_g)
    linear:   q(y | x) = Σ_g w_g p_g(y | x)
    log:      q(y | x) ∝ Π_g exp(v_g mean_m log softmax(f_m(x) / T_g))
    predictive  p(y | x) ∝ q(y | x)^(1 / T(x)),    T(x)² = T² (1 + max(0, z(x) - 2))

All numbers are fitted on validation logits, and little is asked of a few examples: the temperatures
T_g and then T are maxima a posteriori (`bella.prediction.temperature`), the weights w come from
expectation-maximisation with half an example for each group, log v has a prior around log w. z is
how far an example is from the training data, in standard deviations of validation examples; the
novelty is the score by which they are noticed: with h the standardised log entropy,

    S(x) = -log Φ(-z(x)) - log Φ(-h(x)),

Fisher's sum over the chances of validation examples that are as far, and as doubtful, in nats. Its
mean over examples like those is about 2. What is nearer than usual takes nothing from S: a shift
may be seen by one of the two alone.

Source:
    linear pool by EM: the mixture model of Dempster, Laird & Rubin 1977; calibrating after pooling:
    Rahaman & Thiery 2020 (2007.08792); log-linear pool: Genest & Zidek 1986; groups of two kinds:
    Kumar et al. 2022, Calibrated ensembles; Fisher 1932, Statistical methods for research workers,
    section 21.1 (combining tests).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Integer
from torch import Tensor

from bella import metrics
from bella.errors import BellaError
from bella.prediction.predictive import Average, Predictive
from bella.prediction.temperature import SD, fit_temperature, minimise

Kind = Literal["linear", "log"]
Group = Float[Tensor, "members batch classes"]
"""Logits of the members of one group."""

FEWEST = 10
"""Validation examples to fit a pool to; with fewer the particles had better predict alone."""

NEAR = 2.0
"""Deviations from the training data that are still ordinary: beyond, the temperature grows, as the
deviation of logits does whose variance grows with the distance."""

FOLDS = 5
"""Parts of the validation data in `cross_fitted`."""


@dataclass(frozen=True)
class Pool:
    """What is fitted: how groups of members speak as one.

    Attributes:
        kind: ``linear`` or ``log``.
        weights: of the groups, with a sum of 1.
        temperatures: T_g of the groups.
        temperature: T of what they say together.
        distances: for each distance, mean and standard deviation of its logarithm on validation
            examples.
        distance_scale: standard deviation of the mean of the standardised distances there.
        log_entropy: mean and standard deviation of log H there.
    """

    kind: Kind
    weights: tuple[float, ...]
    temperatures: tuple[float, ...]
    temperature: float
    distances: tuple[tuple[float, float], ...] = ()
    distance_scale: float = 1.0
    log_entropy: tuple[float, float] = (0.0, 1.0)

    def __call__(
        self, groups: Sequence[Group], distances: Float[Tensor, "kinds batch"] | None = None
    ) -> Predictive:
        """The predictive of what the groups' members say of a batch.

        Args:
            groups: logits of each group, in the order they were fitted in.
            distances: log distances from the training data, where the pool has such.

        Raises:
            BellaError: other groups or distances than the pool was fitted to.
        """
        if len(groups) != len(self.weights):
            raise BellaError(f"The pool has {len(self.weights)} groups, and {len(groups)} came.")
        if (0 if distances is None else len(distances)) != len(self.distances):
            raise BellaError(
                f"The pool has {len(self.distances)} distances, and "
                f"{0 if distances is None else len(distances)} came."
            )
        pooled = pooled_by(self.kind, groups, self.weights, self.temperatures)
        even = torch.full_like(pooled.logits[0, :, 0], self.temperature)
        if distances is None:
            return with_temperature(pooled, even)
        distance = self.standardised(distances).to(even)
        log_entropy = log_of(with_temperature(pooled, even).entropy)
        mean, deviation = self.log_entropy
        doubt = (log_entropy - mean) / deviation
        return Predictive(
            pooled.logits,
            pooled.average,
            pooled.weights,
            temperature=even * (1 + (distance - NEAR).clamp_min(0)).sqrt(),
            distance=distance,
            novelty=-torch.special.log_ndtr(-distance) - torch.special.log_ndtr(-doubt),
        )

    def standardised(self, distances: Float[Tensor, "kinds batch"]) -> Float[Tensor, " batch"]:
        """z: the mean of the standardised log distances, itself of deviation 1."""
        like = distances.double()
        mean, deviation = like.new_tensor(self.distances).unbind(1)
        return ((like - mean[:, None]) / deviation[:, None]).mean(0) / self.distance_scale

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Pool:
        """What `to_json` made.

        Raises:
            BellaError: it is damaged.
        """
        try:
            pairs = [(float(a), float(b)) for a, b in record["distances"]]
            entropy_mean, entropy_deviation = map(float, record["log_entropy"])
            pool = cls(
                record["kind"],
                tuple(map(float, record["weights"])),
                tuple(map(float, record["temperatures"])),
                float(record["temperature"]),
                tuple(pairs),
                float(record["distance_scale"]),
                (entropy_mean, entropy_deviation),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BellaError("The record of a pool is damaged: fit it again.") from error
        positive = (*pool.weights, *pool.temperatures, pool.temperature, pool.distance_scale)
        positive += (*(deviation for _, deviation in pairs), entropy_deviation)
        sizes = len(pool.weights) == len(pool.temperatures) > 0
        if pool.kind not in ("linear", "log") or not sizes or not all(x > 0 for x in positive):
            raise BellaError("The record of a pool is damaged: fit it again.")
        return pool


# ------------------------------------------------------------ pooling


def with_temperature(pooled: Predictive, temperature: Float[Tensor, " batch"]) -> Predictive:
    """A pool's predictive, tempered."""
    return Predictive(pooled.logits, pooled.average, pooled.weights, temperature=temperature)


def pooled_by(
    kind: Kind, groups: Sequence[Group], weights: Sequence[float], temperatures: Sequence[float]
) -> Predictive:
    """The pool before it is tempered: every member's logits over its group's T, with its share."""
    logits = torch.cat([metrics.precise(x) / t for x, t in zip(groups, temperatures, strict=True)])
    shares = [w / len(x) for x, w in zip(groups, weights, strict=True) for _ in x]
    average: Average = "logits" if kind == "log" else "probs"
    each = logits.new_tensor(shares)[:, None].expand(logits.shape[:2])
    return Predictive(logits, average, each)


def log_probs_of(group: Group, temperature: float) -> Float[Tensor, "batch classes"]:
    """log p_g(y | x) of one group, in float64."""
    return Predictive(group.detach().double() / temperature).log_probs


def log_of(entropy: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """log H; an entropy of 0 counts as that of one chance in a million."""
    return entropy.clamp_min(1e-5).log()


# ------------------------------------------------------------ fitting


def fit_pool(
    groups: Sequence[Group],
    labels: Integer[Tensor, " batch"],
    *,
    kind: Kind = "linear",
    distances: Float[Tensor, "kinds batch"] | None = None,
    sd: float = SD,
) -> Pool:
    """The pool that suits validation data: temperatures, weights, the temperature after pooling.

    Args:
        groups: of each group the members' logits on validation data.
        labels: class numbers.
        kind: ``linear``: the weighted mean of probabilities; ``log``: of their logarithms.
        distances: log distances from the training data, several kinds or one.
        sd: standard deviation of the priors on log T and on log v.

    Raises:
        BellaError: no group, an unknown kind, logits and labels that do not fit, or fewer than two
            examples.
    """
    if kind not in ("linear", "log"):
        raise BellaError(f"pool={kind!r}: choose 'linear' or 'log'.")
    if not groups or len(labels) < 2:
        raise BellaError("A pool needs at least one group of members and two validation examples.")
    labels = labels.cpu().long()
    groups = [group.cpu() for group in groups]
    temperatures = tuple(fit_temperature(group, labels, sd=sd) for group in groups)
    found = torch.stack([log_probs_of(g, t) for g, t in zip(groups, temperatures, strict=True)])
    weights = em_weights(found[:, torch.arange(len(labels)), labels])
    sharper = 1.0
    if kind == "log":
        means = torch.stack(
            [
                torch.log_softmax(g.detach().double() / t, -1).mean(0)
                for g, t in zip(groups, temperatures, strict=True)
            ]
        )
        free = log_pool_weights(means, labels, weights, sd=sd)
        sharper = float(free.sum())  # weights of another sum than 1 are a temperature
        weights = free / sharper
    shares = tuple(weights.tolist())
    pooled = pooled_by(kind, [group.double() for group in groups], shares, temperatures)
    after = fit_temperature(sharper * pooled.log_probs, labels, sd=sd) / sharper
    bare = Pool(kind, shares, temperatures, after)
    return bare if distances is None else with_distance(bare, groups, distances.cpu())


def em_weights(
    log_scores: Float[Tensor, "groups examples"], tolerance: float = 1e-12
) -> Float[Tensor, " groups"]:
    """Weights of a linear pool by expectation-maximisation.

    r_ng = w_g p_g(y_n | x_n) / Σ_h w_h p_h(y_n | x_n),   w_g ∝ Σ_n r_ng + 1/2

    The half example a group is a Dirichlet(3/2) prior: no weight ends at 0, and a few examples
    decide little.

    Args:
        log_scores: log p_g(y_n | x_n).
        tolerance: of the weights, where it ends.
    """
    scores = log_scores.double()
    groups, count = scores.shape
    weights = scores.new_full((groups,), 1 / groups)
    for _ in range(10_000):
        shares = torch.softmax(scores + weights.log()[:, None], 0)
        before, weights = weights, (shares.sum(1) + 0.5) / (count + groups / 2)
        if float((weights - before).abs().max()) < tolerance:
            break
    return weights


@torch.inference_mode(False)
@torch.enable_grad()
def log_pool_weights(
    log_probs: Float[Tensor, "groups examples classes"],
    labels: Int[Tensor, " examples"],
    around: Float[Tensor, " groups"],
    *,
    sd: float = SD,
) -> Float[Tensor, " groups"]:
    """Weights v of a log-linear pool, of any sum: min Σ NLL + Σ_g (log v_g - log w_g)² / (2 sd²).

    Args:
        log_probs: of each group, the logarithms that are pooled.
        labels: class numbers.
        around: w, those of the linear pool.
        sd: how far the logarithms may go from there.
    """
    scores = log_probs.detach().double().clone()
    centre = around.detach().double().log()
    log_v = centre.clone().requires_grad_()

    def loss() -> Tensor:
        pooled = torch.einsum("g,gnc->nc", log_v.exp(), scores)
        prior = (log_v - centre).square().sum() / (2 * sd**2)
        return F.cross_entropy(pooled, labels) + prior / len(labels)

    minimise(loss, log_v)
    return log_v.detach().exp()


def with_distance(
    pool: Pool, groups: Sequence[Group], distances: Float[Tensor, "kinds batch"]
) -> Pool:
    """The same pool, with how far validation examples are from the training data."""
    values = distances.double()
    deviations = values.std(1).clamp_min(1e-6)
    pairs = tuple(zip(values.mean(1).tolist(), deviations.tolist(), strict=True))
    scaled = (values - values.mean(1, keepdim=True)) / deviations[:, None]
    entropy = log_of(pool(groups).entropy.double())
    return Pool(
        pool.kind,
        pool.weights,
        pool.temperatures,
        pool.temperature,
        pairs,
        float(scaled.mean(0).std().clamp_min(1e-6)),
        (float(entropy.mean()), float(entropy.std().clamp_min(1e-6))),
    )


def cross_fitted(
    groups: Sequence[Group],
    labels: Integer[Tensor, " batch"],
    *,
    kind: Kind = "linear",
    distances: Float[Tensor, "kinds batch"] | None = None,
    folds: int = FOLDS,
    seed: int = 0,
) -> Predictive:
    """What the pool says of its own validation data, each fifth by a pool of the other four.

    A figure on the data that a pool was fitted to would flatter it. (What was chosen on them
    before, such as an anchor's penalty, still does a little.)

    Args:
        groups: see `fit_pool`.
        labels: see `fit_pool`.
        kind: see `fit_pool`.
        distances: see `fit_pool`.
        folds: how many parts.
        seed: of who is in which.

    Returns:
        The predictive, in the order of the examples.
    """
    said, order = [], []
    for left_out, rest in parts_of(len(labels), folds, seed):
        pool = fit_pool(
            [group[:, rest] for group in groups],
            labels[rest],
            kind=kind,
            distances=None if distances is None else distances[:, rest],
        )
        said.append(
            pool(
                [group[:, left_out] for group in groups],
                None if distances is None else distances[:, left_out],
            )
        )
        order.append(left_out)
    return Predictive.cat(said).rows(torch.cat(order).argsort())


def parts_of(count: int, folds: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Numbers of the examples of each part, and those of all others."""
    folds = min(folds, count // 2)
    mixed = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    if folds < 2:
        raise BellaError(f"{count} validation examples cannot be cross-fitted: give at least 4.")
    for fold in range(folds):
        inside = torch.arange(count) % folds == fold
        yield mixed[inside], mixed[~inside]
