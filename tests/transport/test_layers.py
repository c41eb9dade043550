"""Transports over every kind of layer, against dense weight-space formulas and autograd."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from helpers import off_diagonal_median, pairwise
from layer_cases import (
    CASES,
    Blocks,
    Case,
    assert_same,
    changes,
    grads_of,
    kernel_rows,
    pulled_back,
    weight_gradients,
    written_kernel,
)
from torch import Tensor, nn

import bella
from bella.transport import by_name, gram
from bella.transport.kernels import KERNELS, kernel_named

N, T, TAU = 10, 3.0, 0.7
SETTINGS = [
    pytest.param(kernel, scope, normalize, id=f"{kernel}-{scope}-{normalize}")
    for kernel, (scope, normalize) in itertools.product(
        ("rbf", "imq", "laplace"), [("global", True), ("global", False), ("layer", True)]
    )
]


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    """Mathematics is compared in float64, from one random state."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def labels(batch: int = 6) -> Tensor:
    return torch.randint(3, (batch,))


def stepped(posterior: bella.Posterior, move: bella.transport.Transport, loss: Tensor) -> dict:
    """Gradients after backward and the transport's step."""
    posterior.zero_grad()
    loss.backward()
    move.step()
    return grads_of(posterior)


def test_a_layer_axis_fuses_what_each_layer_gives_alone() -> None:
    A, B, M = torch.randn(3, 5, 2, 7), torch.randn(3, 5, 6, 2), torch.randn(3, 5, 5)
    value = torch.randn(3, 5, 8)
    fused = [
        gram.inner_low_rank(A, B, 2.0),
        *gram.pull_low_rank(A, B, 2.0, M),
        gram.inner_dense(value),
        gram.pull_dense(value, M),
        gram.differences(M),
        gram.square_distances(gram.inner_dense(value)),
    ]
    for layer in range(3):
        a, b, m, v = (x[layer : layer + 1] for x in (A, B, M, value))
        alone = [
            gram.inner_low_rank(a, b, 2.0),
            *gram.pull_low_rank(a, b, 2.0, m),
            gram.inner_dense(v),
            gram.pull_dense(v, m),
            gram.differences(m),
            gram.square_distances(gram.inner_dense(v)),
        ]
        for together, single in zip(fused, alone, strict=True):
            torch.testing.assert_close(together[layer], single[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["repulsive", "svgd"])
def test_layers_of_one_shape_couple_alike_in_one_batch_and_in_pieces(name, monkeypatch) -> None:
    posterior = bella.low_rank(Blocks(), 4, 2, "all-linear", modules_to_save=["head"], b_std=0.3)
    x, y = torch.randn(6, 4), labels()
    found = []
    for piece in (2**23, 1):
        monkeypatch.setattr("bella.transport.coupling.PIECE", piece)
        move = by_name(name, posterior, data_size=N)
        found.append((len(move.groups), stepped(posterior, move, bella.nll(posterior(x), y))))
    (few, whole), (many, pieces) = found
    assert few < many
    assert_same(pieces, whole, 1e-12)


def test_a_pulled_force_is_the_chain_rule_through_the_factors() -> None:
    A = torch.randn(1, 4, 2, 5, requires_grad=True)
    B = torch.randn(1, 4, 3, 2, requires_grad=True)
    M = torch.randn(1, 4, 4)
    delta = 1.3 * B @ A
    force = torch.einsum("lij,ljab->liab", M, delta.detach())
    expected = torch.autograd.grad((force * delta).sum(), (A, B))
    for ours, theirs in zip(
        gram.pull_low_rank(A.detach(), B.detach(), 1.3, M), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def dense_svgd(
    posterior: bella.Posterior,
    x: Tensor,
    y: Tensor,
    *,
    kernel: str = "rbf",
    scope: str = "global",
    normalize: bool = True,
    prior: str = "uniform",
) -> dict[str, Tensor]:
    """φ(i) = (1/n) Σ_j [k_ij (G_j + W_j / (τ² N)) + (T/N) ∇_i k_ij] on formed weights, pulled back.

    Copies move with the mean kernel and feel no repulsion.
    """
    n = posterior.particles
    loss = weight_gradients(posterior, x, y)
    delta = changes(posterior)
    weights = delta | {s.name: s.value.detach() for s in posterior.sites() if s.name not in delta}
    rows = kernel_rows(list(delta.values()), kernel, scope, normalize)
    forces = {name: torch.zeros_like(value) for name, value in weights.items()}
    for i in range(n):
        here = [value[i].clone().requires_grad_() for value in delta.values()]
        k = rows(i, here)
        repulsion = torch.autograd.grad(k.sum(), here)
        k = k.detach()
        for number, name in enumerate(weights):
            copied = name not in delta
            mine = k.mean(0) if copied or len(k) == 1 else k[number]
            for j in range(n):
                drive = loss[name][j]
                if prior == "delta":
                    drive = drive + weights[name][j] / (TAU**2 * N)
                forces[name][i] += mine[j] * drive / n
            if not copied:
                forces[name][i] += T / N * repulsion[number] / n
    return pulled_back(posterior, forces)


@pytest.mark.parametrize("prior", ["uniform", "delta"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_svgd_is_dense_svgd_over_weights_for_every_kind_of_layer(case: Case, prior: str) -> None:
    posterior, x, y = case.posterior(), case.inputs(), labels()
    move = bella.transport.svgd(posterior, data_size=N, temperature=T, prior=prior, prior_std=TAU)
    ours = stepped(posterior, move, bella.nll(posterior(x), y))
    assert_same(ours, dense_svgd(posterior, x, y, prior=prior), 1e-10)


@pytest.mark.parametrize(("kernel", "scope", "normalize"), SETTINGS)
def test_svgd_is_dense_svgd_for_every_kernel_and_scope(
    kernel: str, scope: str, normalize: bool
) -> None:
    case = CASES["later block"]
    posterior, x, y = case.posterior(), case.inputs(), labels()
    options = {"kernel": kernel, "scope": scope, "normalize": normalize}
    move = bella.transport.svgd(posterior, data_size=N, temperature=T, **options)
    ours = stepped(posterior, move, bella.nll(posterior(x), y))
    assert_same(ours, dense_svgd(posterior, x, y, **options), 1e-10)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_svgd_in_chunks_of_particles_is_svgd_in_one_pass(case: Case) -> None:
    posterior, x, y = case.posterior(), case.inputs(), labels()
    move = bella.transport.svgd(posterior, data_size=N, temperature=T, prior="delta")
    whole = stepped(posterior, move, bella.nll(posterior(x), y))
    posterior.zero_grad()
    for chunk in ([3, 0], [2], [1]):
        with posterior.subset(chunk):
            bella.nll(posterior(x), y).backward()
    move.step()
    assert_same(grads_of(posterior), whole, 1e-10)


def test_svgd_forgets_what_it_heard_with_each_step_and_follows_the_particles() -> None:
    case = CASES["later block"]
    posterior, x, y = case.posterior(), case.inputs(), labels()
    move = bella.transport.svgd(posterior, data_size=N, temperature=T)
    optimizer = torch.optim.SGD(posterior.parameters(), lr=0.1)
    for _ in range(3):
        ours = stepped(posterior, move, bella.nll(posterior(x), y))
        assert_same(ours, dense_svgd(posterior, x, y), 1e-10)
        optimizer.step()


def test_svgd_unscales_what_it_heard_by_the_gradient_scaler() -> None:
    case = CASES["later block"]
    posterior, x, y = case.posterior(), case.inputs(), labels()
    move = bella.transport.svgd(posterior, data_size=N, temperature=T)
    plain = stepped(posterior, move, bella.nll(posterior(x), y))
    move.loss_scale = 64.0
    posterior.zero_grad()
    (64 * bella.nll(posterior(x), y)).backward()
    for p in posterior.parameters():
        if p.grad is not None:
            p.grad /= 64  # what scaler.unscale_ does
    move.step()
    assert_same(grads_of(posterior), plain, 1e-10)


def test_function_adds_the_gradient_of_the_log_kernel_sum_over_log_probabilities() -> None:
    case = CASES["linear, shared input"]
    posterior, x, y = case.posterior().train(), case.inputs(), labels()
    for kernel in KERNELS:
        bella.transport.ensemble(posterior, data_size=N)
        plain = posterior(x)
        plain.retain_grad()
        bella.nll(plain, y).backward()
        bella.transport.function(posterior, data_size=N, temperature=T, kernel=kernel)
        coupled = posterior(x)
        coupled.retain_grad()
        bella.nll(coupled, y).backward()

        everyone = torch.log_softmax(plain.detach(), -1).flatten(1)
        h = off_diagonal_median(pairwise(everyone))
        for i in range(posterior.particles):
            own = plain[i].detach().clone().requires_grad_()
            others = [j for j in range(posterior.particles) if j != i]
            d2 = (torch.log_softmax(own, -1).flatten() - everyone[others]).square().sum(-1)
            density = 1 + written_kernel(kernel, d2, h).sum()
            (expected,) = torch.autograd.grad(T / N * density.log(), own)
            added = coupled.grad[i] - plain.grad[i]
            torch.testing.assert_close(added, expected, rtol=1e-10, atol=1e-10)


def regauged(posterior: bella.Posterior) -> dict[str, Tensor]:
    """Replace (B, A) by (B G, G⁻¹ A), with another G for every layer and particle."""
    gauges = {}
    for name in changes(posterior):
        layer = posterior.layers()[name]
        n, rank, _ = layer.A.shape
        G = torch.randn(n, rank, rank) + 2 * torch.eye(rank)
        layer.B.data = layer.B.data @ G
        layer.A.data = torch.linalg.solve(G, layer.A.data)
        gauges[name] = G
    return gauges


@pytest.mark.parametrize("name", ["repulsive", "svgd"])
def test_forces_follow_a_change_of_gauge_and_distances_ignore_it(name: str) -> None:
    case = CASES["linear, shared input"]
    posterior, x, y = case.posterior(), case.inputs(), labels()
    move = by_name(name, posterior, data_size=N, temperature=T)
    before, measured = stepped(posterior, move, bella.nll(posterior(x), y)), move.coupling.measure()
    gauges = regauged(posterior)
    move = by_name(name, posterior, data_size=N, temperature=T)
    after, again = stepped(posterior, move, bella.nll(posterior(x), y)), move.coupling.measure()
    torch.testing.assert_close(measured.distance, again.distance, rtol=1e-10, atol=0)
    for ours, theirs in zip(measured.k, again.k, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for layer, G in gauges.items():
        expected_A = G.mT @ before[f"{layer}.A"]
        expected_B = before[f"{layer}.B"] @ torch.linalg.inv(G).mT
        torch.testing.assert_close(after[f"{layer}.A"], expected_A, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(after[f"{layer}.B"], expected_B, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["ensemble", "repulsive"])
@pytest.mark.parametrize("prior", ["uniform", "factors", "delta"])
def test_a_prior_adds_the_gradient_of_its_negative_log_density(name: str, prior: str) -> None:
    posterior = CASES["3x3 convolution"].posterior()
    move = by_name(name, posterior, data_size=N, temperature=0.0, prior=prior, prior_std=TAU)
    move.step()
    own = posterior.stacked_parameters()
    elements = list(own.values())
    if prior == "delta":
        layers = [layer for layer in posterior.layers().values() if hasattr(layer, "A")]
        elements = [layer.scale * layer.B @ layer.A for layer in layers]
        elements += [s.value for s in posterior.sites() if s.name.startswith("head")]
    density = sum(torch.distributions.Normal(0, TAU).log_prob(e).sum() for e in elements)
    weight = 0.0 if prior == "uniform" else -1 / N
    expected = torch.autograd.grad(weight * density, list(own.values()))
    assert_same(grads_of(posterior), dict(zip(own, expected, strict=True)), 1e-10)


@pytest.mark.parametrize("name", ["ensemble", "repulsive", "svgd"])
def test_langevin_noise_has_the_variance_of_the_posterior_temperature(name: str) -> None:
    posterior = bella.low_rank(
        nn.Sequential(nn.Linear(60, 60)), 3, rank=10, target_modules=("0",), b_std=0.1
    )
    rate, draws = 0.05, 40
    move = by_name(name, posterior, data_size=N, temperature=T, langevin=True)
    kernels = move.kernels().k[0][0] if name == "svgd" else None
    optimizer = torch.optim.SGD(posterior.parameters(), lr=rate)
    start = {key: p.detach().clone() for key, p in posterior.stacked_parameters().items()}
    steps = []
    for _ in range(draws):
        optimizer.zero_grad()
        move.step(learning_rate=rate)
        optimizer.step()
        with torch.no_grad():
            change = {k: p - start[k] for k, p in posterior.stacked_parameters().items()}
            steps.append(torch.cat([value.flatten(1) for value in change.values()], 1))
            for key, p in posterior.stacked_parameters().items():
                p.copy_(start[key])
    noise = torch.stack(steps)
    noise = (noise - noise.mean(0)).transpose(0, 1).flatten(1)  # particles, draws x elements
    covariance = noise @ noise.mT / (noise.shape[1] * (draws - 1) / draws)
    expected = 2 * rate * T / N * (torch.eye(3) if kernels is None else kernels / 3)
    # 48,000 draws an entry: one standard error is 0.7 % of the variance.
    assert (covariance - expected).abs().max() < 0.03 * expected.diagonal().max()


def regression(features: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs, targets, and mean and covariance of w in y = x w + noise, w ~ N(0, 1)."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(20, features, generator=generator)
    y = x @ torch.tensor([[0.8], [-0.5]])[:features] + torch.randn(20, 1, generator=generator)
    covariance = torch.linalg.inv(x.mT @ x + torch.eye(features))
    return x, y, (covariance @ x.mT @ y).squeeze(1), covariance


def weights_of(posterior: bella.Posterior) -> Tensor:
    return torch.stack(
        [posterior.particle(i)[0].weight.flatten() for i in range(posterior.particles)]
    )


def settle(posterior: bella.Posterior, name: str, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """Move particles until they rest; (particles, weights)."""
    move = by_name(name, posterior, data_size=len(x), prior="delta", prior_std=1.0)
    optimizer = torch.optim.Adam(posterior.parameters(), lr=0.03)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (posterior(x) - y).square().mean((1, 2)).sum()).backward()
        move.step()
        optimizer.step()
        decay.step()
    return weights_of(posterior)


def low_rank_at_full_rank(features: int, particles: int) -> bella.Posterior:
    network = nn.Sequential(nn.Linear(features, 1, bias=False))
    nn.init.zeros_(network[0].weight)  # so that the prior on Δ is the prior on w
    return bella.low_rank(network, particles, rank=1, target_modules=("0",), b_std=0.5)


@pytest.mark.parametrize("features", [1, 2])
def test_svgd_on_factors_samples_a_known_gaussian_and_the_ensemble_collapses(
    features: int,
) -> None:
    x, y, mean, covariance = regression(features)
    spread = covariance.diagonal().sqrt()

    sample = settle(low_rank_at_full_rank(features, 40), "svgd", x, y, 450)
    assert ((sample.mean(0) - mean).abs() < 0.1 * spread).all()
    assert (sample.var(0) / covariance.diagonal()).sub(1).abs().max() < 0.2

    collapsed = settle(low_rank_at_full_rank(features, 40), "ensemble", x, y, 300)
    torch.testing.assert_close(collapsed.mean(0), mean, rtol=1e-3, atol=1e-3)
    assert collapsed.std(0).max() < 1e-2 * spread.min()


def test_the_log_reports_distance_bandwidth_kernel_and_ratio_of_repulsion() -> None:
    case = CASES["linear, shared input"]
    posterior, x, y = case.posterior(), case.inputs(), labels()
    bare = bella.transport.ensemble(posterior, data_size=N)
    own = stepped(posterior, bare, bella.nll(posterior(x), y))
    move = bella.transport.repulsive(posterior, data_size=N, temperature=T, normalize=False)
    coupled = stepped(posterior, move, bella.nll(posterior(x), y))
    added = sum((coupled[key] - own[key]).square().sum() for key in own)
    ratio = (added / sum(value.square().sum() for value in own.values())).sqrt()
    assert move.log["repulsion_ratio"] == pytest.approx(float(ratio), rel=1e-6)

    flat = [d.flatten(1) for d in changes(posterior).values()]
    pairs = torch.stack([torch.pdist(f).square() for f in flat])
    assert move.log["distance"] == pytest.approx(float(pairs.sum(0).mean().sqrt()))
    assert move.distance() == pytest.approx(move.log["distance"])
    h = pairs.mean(0).quantile(0.5)
    assert move.log["bandwidth"] == pytest.approx(float(h.sqrt()))
    assert move.log["mean_kernel"] == pytest.approx(float((-pairs.mean(0) / 2 / h).exp().mean()))


def test_the_stein_ratio_is_one_for_samples_of_the_posterior() -> None:
    x, y, mean, covariance = regression(2)
    network = nn.Sequential(nn.Linear(2, 1, bias=False))
    posterior = bella.low_rank(network, 4000, target_modules=(), modules_to_save=("0",))
    weight = posterior.layers()["0"].values["weight"]
    draws = torch.distributions.MultivariateNormal(mean, covariance).sample((4000,))
    weight.data.copy_(draws.unsqueeze(1))
    move = bella.transport.ensemble(posterior, data_size=len(x))
    loss = 0.5 * (posterior(x) - y).square().mean((1, 2)).sum()
    loss = loss + 0.5 * weight.square().sum() / len(x)
    stepped(posterior, move, loss)
    assert move.log["stein_ratio"] == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_a_slope_is_minus_twice_the_derivative_by_the_square_distance(name: str) -> None:
    d2 = torch.linspace(0.1, 9, 16).view(1, 4, 4).requires_grad_()
    h = torch.tensor(1.7)
    k, slope = kernel_named(name)(d2, h)
    torch.testing.assert_close(k, written_kernel(name, d2, h))
    (derivative,) = torch.autograd.grad(k.sum(), d2)
    torch.testing.assert_close(slope, -2 * derivative, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_particles_at_one_point_get_finite_slopes_and_no_force(name: str) -> None:
    posterior = bella.low_rank(Blocks(), 3, rank=2, target_modules=("up",))  # B = 0
    move = bella.transport.repulsive(posterior, data_size=N, temperature=T, kernel=name)
    move.step()
    assert all(not grad.any() for grad in grads_of(posterior).values())
    assert move.log["mean_kernel"] == 1.0


@pytest.mark.parametrize("name", ["repulsive", "svgd", "function"])
@pytest.mark.parametrize("options", [{"bandwidth": "mean"}, {"kernel": "rfb"}])
def test_a_coupling_refuses_its_options_before_training_begins(name: str, options: dict) -> None:
    posterior = CASES["later block"].posterior()
    with pytest.raises(bella.BellaError, match=next(iter(options))):
        by_name(name, posterior, data_size=N, **options)
