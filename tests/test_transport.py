"""Transports against autograd, dense weight-space formulas, and posteriors known in closed form."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import (
    CASES,
    Blocks,
    assert_same,
    changes,
    features,
    grads_of,
    kernel_rows,
    median_of_pairs,
    nll,
    pulled_back,
    weight_gradients,
    written_kernel,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import bella
from bella.transport import TRANSPORTS, by_name, gram
from bella.transport.kernels import KERNELS, bandwidth, kernel_named, median

pytestmark = pytest.mark.usefixtures("double")

N, T, TAU = 10, 3.0, 0.7
SETTINGS = [
    pytest.param(kernel, scope, normalize, id=f"{kernel}-{scope}-{normalize}")
    for kernel, (scope, normalize) in itertools.product(
        ("rbf", "imq", "laplace"), [("global", True), ("global", False), ("layer", True)]
    )
]


def labels(batch: int = 6) -> Tensor:
    return torch.randint(3, (batch,))


def stepped(posterior: bella.Posterior, move: bella.transport.Transport, loss: Tensor) -> dict:
    """Gradients after backward and the transport's step."""
    posterior.zero_grad()
    loss.backward()
    move.step()
    return grads_of(posterior)


# ---------------------------------------------------------------- Gram matrices


def test_gram_distances_are_the_distances_of_the_changes() -> None:
    A, B, scale = torch.randn(3, 5, 2, 7), torch.randn(3, 5, 6, 2), 1.7
    dense = scale * B @ A
    expected = (dense[:, :, None] - dense[:, None]).square().sum((-1, -2))
    d2 = gram.square_distances(gram.inner_low_rank(A, B, scale))
    torch.testing.assert_close(d2, expected, rtol=1e-10, atol=1e-10)


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


# ---------------------------------------------------------------- repulsion


@pytest.mark.parametrize(("kernel", "scope", "normalize"), SETTINGS)
def test_repulsion_is_the_gradient_of_the_log_kernel_sum(
    kernel: str, scope: str, normalize: bool
) -> None:
    case = CASES["linear, shared input"]
    posterior, x, y = case.posterior(), case.inputs(), labels()
    move = bella.transport.repulsive(
        posterior, data_size=N, temperature=T, kernel=kernel, scope=scope, normalize=normalize
    )
    ours = stepped(posterior, move, nll(posterior(x), y))

    own = weight_gradients(posterior, x, y)
    delta = changes(posterior)
    rows = kernel_rows(list(delta.values()), kernel, scope, normalize)
    forces = {name: torch.empty_like(value) for name, value in delta.items()}
    for i in range(posterior.particles):
        here = [value[i].clone().requires_grad_() for value in delta.values()]
        repulsion = torch.autograd.grad(rows(i, here).sum(-1).log().sum(), here)
        for name, grad in zip(delta, repulsion, strict=True):
            forces[name][i] = own[name][i] + T / N * grad
    assert_same(ours, pulled_back(posterior, forces), 1e-10)


@pytest.mark.parametrize(("particles", "width"), [(2, "median"), (5, 50.0)])
def test_a_step_of_repulsion_moves_every_pair_apart_and_the_printed_sign_together(
    particles: int, width: str | float
) -> None:
    def pair_distances(sign: float) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        posterior = CASES["linear, shared input"].posterior(particles)
        move = bella.transport.repulsive(posterior, data_size=1, bandwidth=width)
        optimizer = torch.optim.SGD(posterior.parameters(), lr=1e-3)
        before = distances(posterior)
        for p in posterior.stacked_parameters().values():
            p.grad = torch.zeros_like(p)
        move.step()
        for p in posterior.stacked_parameters().values():
            p.grad.mul_(sign)
        optimizer.step()
        return before, distances(posterior)

    def distances(posterior: bella.Posterior) -> Tensor:
        flat = torch.cat([d.flatten(1) for d in changes(posterior).values()], 1)
        return torch.pdist(flat)

    before, after = pair_distances(1.0)
    assert (after > before).all()
    before, after = pair_distances(-1.0)  # Eq. 4 as it is printed climbs the kernel
    assert (after < before).all()


# ---------------------------------------------------------------- svgd


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
    own = posterior.stacked_parameters()
    weights = delta | {
        s.name: s.value.detach() for s in posterior.sites() if s.name not in delta
    }
    assert len(own) == 2 * len(delta) + len(weights) - len(delta)
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
def test_svgd_is_dense_svgd_over_weights_for_every_kind_of_layer(case, prior: str) -> None:
    posterior, x, y = case.posterior(), case.inputs(), labels()
    move = bella.transport.svgd(
        posterior, data_size=N, temperature=T, prior=prior, prior_std=TAU
    )
    ours = stepped(posterior, move, nll(posterior(x), y))
    assert_same(ours, dense_svgd(posterior, x, y, prior=prior), 1e-10)


@pytest.mark.parametrize(("kernel", "scope", "normalize"), SETTINGS)
def test_svgd_is_dense_svgd_for_every_kernel_and_scope(
    kernel: str, scope: str, normalize: bool
) -> None:
    case = CASES["later block"]
    posterior, x, y = case.posterior(), case.inputs(), labels()
    options = {"kernel": kernel, "scope": scope, "normalize": normalize}
    move = bella.transport.svgd(posterior, data_size=N, temperature=T, **options)
    ours = stepped(posterior, move, nll(posterior(x), y))
    assert_same(ours, dense_svgd(posterior, x, y, **options), 1e-10)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_svgd_in_chunks_of_particles_is_svgd_in_one_pass(case) -> None:
    posterior, x, y = case.posterior(), case.inputs(), labels()
    move = bella.transport.svgd(posterior, data_size=N, temperature=T, prior="delta")
    whole = stepped(posterior, move, nll(posterior(x), y))
    posterior.zero_grad()
    for chunk in ([3, 0], [2], [1]):
        with posterior.subset(chunk):
            nll(posterior(x), y).backward()
    move.step()
    assert_same(grads_of(posterior), whole, 1e-10)


def test_svgd_forgets_what_it_heard_with_each_step_and_follows_the_particles() -> None:
    case = CASES["later block"]
    posterior, x, y = case.posterior(), case.inputs(), labels()
    move = bella.transport.svgd(posterior, data_size=N, temperature=T)
    optimizer = torch.optim.SGD(posterior.parameters(), lr=0.1)
    for _ in range(3):
        ours = stepped(posterior, move, nll(posterior(x), y))
        assert_same(ours, dense_svgd(posterior, x, y), 1e-10)
        optimizer.step()


def test_svgd_unscales_what_it_heard_by_the_gradient_scaler() -> None:
    case = CASES["later block"]
    posterior, x, y = case.posterior(), case.inputs(), labels()
    move = bella.transport.svgd(posterior, data_size=N, temperature=T)
    plain = stepped(posterior, move, nll(posterior(x), y))
    move.loss_scale = 64.0
    posterior.zero_grad()
    (64 * nll(posterior(x), y)).backward()
    for p in posterior.parameters():
        if p.grad is not None:
            p.grad /= 64  # what scaler.unscale_ does
    move.step()
    assert_same(grads_of(posterior), plain, 1e-10)


def test_a_new_transport_takes_the_place_of_the_old_one() -> None:
    case = CASES["later block"]
    posterior, x, y = case.posterior(), case.inputs(), labels()
    bella.transport.svgd(posterior, data_size=N)
    alone = stepped(posterior, by_name("ensemble", posterior, data_size=N), nll(posterior(x), y))
    posterior.train()
    bella.transport.function(posterior, data_size=N, temperature=100.0)
    move = bella.transport.ensemble(posterior, data_size=N)
    assert_same(stepped(posterior, move, nll(posterior(x), y)), alone, 1e-12)


# ---------------------------------------------------------------- function


def test_function_adds_the_gradient_of_the_log_kernel_sum_over_log_probabilities() -> None:
    case = CASES["linear, shared input"]
    posterior, x, y = case.posterior().train(), case.inputs(), labels()
    for kernel in KERNELS:
        bella.transport.ensemble(posterior, data_size=N)
        plain = posterior(x)
        plain.retain_grad()
        nll(plain, y).backward()
        bella.transport.function(posterior, data_size=N, temperature=T, kernel=kernel)
        coupled = posterior(x)
        coupled.retain_grad()
        nll(coupled, y).backward()

        everyone = torch.log_softmax(plain.detach(), -1).flatten(1)
        h = median_of_pairs((everyone[:, None] - everyone[None]).square().sum(-1))
        for i in range(posterior.particles):
            own = plain[i].detach().clone().requires_grad_()
            others = [j for j in range(posterior.particles) if j != i]
            d2 = (torch.log_softmax(own, -1).flatten() - everyone[others]).square().sum(-1)
            density = 1 + written_kernel(kernel, d2, h).sum()
            (expected,) = torch.autograd.grad(T / N * density.log(), own)
            added = coupled.grad[i] - plain.grad[i]
            torch.testing.assert_close(added, expected, rtol=1e-10, atol=1e-10)


def test_function_prepared_and_in_chunks_is_function_in_one_pass() -> None:
    case = CASES["later block"]
    posterior, x, y = case.posterior(5).train(), case.inputs(), labels()
    move = bella.transport.function(posterior, data_size=N, temperature=T)
    whole = stepped(posterior, move, nll(posterior(x), y))
    posterior.zero_grad()
    move.prepare(x)
    for chunk in ([4, 1], [0], [2, 3]):
        with posterior.subset(chunk):
            nll(posterior(x), y).backward()
    move.step()
    assert_same(grads_of(posterior), whole, 1e-10)


def test_function_refuses_chunks_that_were_not_prepared() -> None:
    posterior = CASES["later block"].posterior().train()
    bella.transport.function(posterior, data_size=N)
    with posterior.subset([0, 1]), pytest.raises(bella.BellaError, match="prepare"):
        posterior(features())


# ---------------------------------------------------------------- what ties transports together


@pytest.mark.parametrize("name", TRANSPORTS)
def test_one_particle_trains_like_a_plain_network(name: str) -> None:
    case = CASES["later block"]
    posterior, x, y = case.posterior(1).train(), case.inputs(), labels()
    posterior.zero_grad()
    nll(posterior(x), y).backward()
    plain = grads_of(posterior)
    move = by_name(name, posterior, data_size=N, temperature=T)
    assert_same(stepped(posterior, move, nll(posterior(x), y)), plain, 0.0)
    assert any(bool(grad.any()) for grad in plain.values())


@pytest.mark.parametrize("name", ["repulsive", "function"])
def test_no_temperature_means_no_coupling(name: str) -> None:
    case = CASES["later block"]
    posterior, x, y = case.posterior().train(), case.inputs(), labels()
    move = by_name("ensemble", posterior, data_size=N)
    alone = stepped(posterior, move, nll(posterior(x), y))
    cold = by_name(name, posterior, data_size=N, temperature=0.0)
    assert_same(stepped(posterior, cold, nll(posterior(x), y)), alone, 0.0)
    warm = by_name(name, posterior, data_size=N, temperature=T)
    coupled = stepped(posterior, warm, nll(posterior(x), y))
    assert any(not torch.equal(coupled[key], alone[key]) for key in alone)


def test_gamma_is_a_temperature_and_warm_up_a_ramp() -> None:
    posterior = CASES["later block"].posterior(4)
    move = bella.transport.repulsive(posterior, data_size=50_000, gamma=0.01, warmup=4)
    assert move.temperature == pytest.approx(0.01 * 50_000 / 4)
    seen = []
    for _ in range(6):
        seen.append(move.coefficient * move.data_size / move.temperature)
        move.step()
    assert seen == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])
    resumed = bella.transport.repulsive(posterior, data_size=50_000, gamma=0.01, warmup=4)
    resumed.load_state_dict({"steps": 2})
    assert resumed.coefficient == pytest.approx(move.coefficient / 2)
    assert move.state_dict() == {"steps": 6}


# ---------------------------------------------------------------- gauge


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
    before, measured = stepped(posterior, move, nll(posterior(x), y)), move.coupling.measure()
    gauges = regauged(posterior)
    move = by_name(name, posterior, data_size=N, temperature=T)
    after, again = stepped(posterior, move, nll(posterior(x), y)), move.coupling.measure()
    torch.testing.assert_close(measured.distance, again.distance, rtol=1e-10, atol=0)
    for ours, theirs in zip(measured.k, again.k, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for layer, G in gauges.items():
        expected_A = G.mT @ before[f"{layer}.A"]
        expected_B = before[f"{layer}.B"] @ torch.linalg.inv(G).mT
        torch.testing.assert_close(after[f"{layer}.A"], expected_A, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(after[f"{layer}.B"], expected_B, rtol=1e-8, atol=1e-10)


def motion(posterior: bella.Posterior, grads: dict[str, Tensor]) -> dict[str, Tensor]:
    """First-order motion of Δ under a gradient step: ∇B A + B ∇A."""
    return {
        name: grads[f"{name}.B"] @ posterior.layers()[name].A.detach()
        + posterior.layers()[name].B.detach() @ grads[f"{name}.A"]
        for name in changes(posterior)
    }


@pytest.mark.parametrize("name", ["ensemble", "repulsive", "svgd"])
def test_scaled_gradients_move_the_change_alike_in_every_gauge(name: str) -> None:
    case = CASES["linear, shared input"]

    def moved(damping: float | None) -> dict[str, Tensor]:
        move = by_name(name, posterior, data_size=N, temperature=T, damping=damping)
        return motion(posterior, stepped(posterior, move, nll(posterior(x), y)))

    posterior, x, y = case.posterior(), case.inputs(), labels()
    scaled, plain = moved(1e-13), moved(None)
    regauged(posterior)
    assert_same(moved(1e-13), scaled, 1e-7)
    assert any(
        not torch.allclose(other, plain[key], rtol=0.01) for key, other in moved(None).items()
    )


# ---------------------------------------------------------------- priors and noise


@pytest.mark.parametrize("name", ["ensemble", "repulsive"])
@pytest.mark.parametrize("prior", ["uniform", "factors", "delta"])
def test_a_prior_adds_the_gradient_of_its_negative_log_density(name: str, prior: str) -> None:
    posterior = CASES["3x3 convolution"].posterior()
    move = by_name(
        name, posterior, data_size=N, temperature=0.0, prior=prior, prior_std=TAU
    )
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


def test_langevin_noise_without_a_learning_rate_is_refused() -> None:
    posterior = CASES["later block"].posterior()
    move = bella.transport.ensemble(posterior, data_size=N, langevin=True)
    with pytest.raises(bella.BellaError, match=r"step\(learning_rate"):
        move.step()


# ---------------------------------------------------------------- a posterior known in closed form


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


def head_only(features: int, particles: int) -> bella.Posterior:
    network = nn.Sequential(nn.Linear(features, 1, bias=False))
    return bella.low_rank(
        network, particles, target_modules=(), modules_to_save=("0",), head_init="reset"
    )


def low_rank_at_full_rank(features: int, particles: int) -> bella.Posterior:
    network = nn.Sequential(nn.Linear(features, 1, bias=False))
    nn.init.zeros_(network[0].weight)  # so that the prior on Δ is the prior on w
    return bella.low_rank(network, particles, rank=1, target_modules=("0",), b_std=0.5)


@pytest.mark.parametrize("make", [head_only, low_rank_at_full_rank])
@pytest.mark.parametrize("features", [1, 2])
def test_svgd_samples_a_known_gaussian_and_the_ensemble_collapses(make, features: int) -> None:
    x, y, mean, covariance = regression(features)
    spread = covariance.diagonal().sqrt()

    sample = settle(make(features, 40), "svgd", x, y, 600)
    assert ((sample.mean(0) - mean).abs() < 0.1 * spread).all()
    assert (sample.var(0) / covariance.diagonal()).sub(1).abs().max() < 0.2

    collapsed = settle(make(features, 40), "ensemble", x, y, 600)
    torch.testing.assert_close(collapsed.mean(0), mean, rtol=1e-3, atol=1e-3)
    assert collapsed.std(0).max() < 1e-2 * spread.min()


# ---------------------------------------------------------------- the figures of a step


def test_the_log_reports_distance_bandwidth_kernel_and_ratio_of_repulsion() -> None:
    case = CASES["linear, shared input"]
    posterior, x, y = case.posterior(), case.inputs(), labels()
    bare = bella.transport.ensemble(posterior, data_size=N)
    own = stepped(posterior, bare, nll(posterior(x), y))
    move = bella.transport.repulsive(posterior, data_size=N, temperature=T, normalize=False)
    coupled = stepped(posterior, move, nll(posterior(x), y))
    size = lambda grads: sum(g.square().sum() for g in grads.values()).sqrt()  # noqa: E731
    added = {key: coupled[key] - own[key] for key in own}
    assert move.log["repulsion_ratio"] == pytest.approx(float(size(added) / size(own)), rel=1e-6)

    flat = [d.flatten(1) for d in changes(posterior).values()]
    pairs = torch.stack([torch.pdist(f).square() for f in flat])
    assert move.log["distance"] == pytest.approx(float(pairs.mean().sqrt()))
    h = pairs.mean(0).quantile(0.5)
    assert move.log["bandwidth"] == pytest.approx(float(h.sqrt()))
    assert move.log["mean_kernel"] == pytest.approx(float((-pairs.mean(0) / 2 / h).exp().mean()))


def test_the_stein_ratio_is_one_for_samples_of_the_posterior() -> None:
    x, y, mean, covariance = regression(2)
    posterior = head_only(2, 4000)
    draws = torch.distributions.MultivariateNormal(mean, covariance).sample((4000,))
    posterior.layers()["0"].values["weight"].data.copy_(draws.unsqueeze(1))
    move = bella.transport.ensemble(posterior, data_size=len(x))
    loss = 0.5 * (posterior(x) - y).square().mean((1, 2)).sum()
    loss = loss + 0.5 * draws.new_tensor(0.0) + 0.5 * posterior.layers()["0"].values[
        "weight"
    ].square().sum() / len(x)
    stepped(posterior, move, loss)
    assert move.log["stein_ratio"] == pytest.approx(1.0, abs=0.06)


# ---------------------------------------------------------------- kernels


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(KERNELS)),
    rule=st.sampled_from(["median", "liu-wang", 0.3, 2]),
    n=st.integers(2, 7),
    spread=st.floats(1e-2, 1e2),
    seed=st.integers(0, 10_000),
)
def test_a_kernel_is_symmetric_one_at_home_and_falls_with_distance(
    name: str, rule: str | float, n: int, spread: float, seed: int
) -> None:
    points = spread * torch.randn(2, n, 3, generator=torch.Generator().manual_seed(seed))
    d2 = gram.square_distances(gram.inner_dense(points))
    h = bandwidth(d2, rule, 1e-12)
    k, slope = kernel_named(name)(d2, h)
    assert torch.equal(k, k.mT)
    assert torch.equal(k.diagonal(dim1=-2, dim2=-1), torch.ones(2, n))
    assert ((k >= 0) & (k <= 1)).all()
    assert (k[d2 < 20 * h] > 0).all()
    assert (slope >= 0).all()


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_a_slope_is_minus_twice_the_derivative_by_the_square_distance(name: str) -> None:
    d2 = torch.linspace(0.1, 9, 12).view(1, 3, 4).requires_grad_()
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


def test_bandwidth_rules() -> None:
    points = torch.randn(2, 5, 3)
    d2 = gram.square_distances(gram.inner_dense(points))
    for layer in range(2):
        middle = median_of_pairs(d2[layer])
        torch.testing.assert_close(median(d2)[layer, 0, 0], middle)
        liu_wang = bandwidth(d2, "liu-wang", 1e-12)[layer, 0, 0]
        torch.testing.assert_close(liu_wang, middle / (2 * torch.log(torch.tensor(6.0))))
    assert torch.equal(bandwidth(d2, 3.0, 1e-12), torch.full((2, 1, 1), 9.0))
    assert torch.equal(bandwidth(0 * d2, "median", 1e-3), torch.full((2, 1, 1), 1e-3))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kernel": "rfb"}, "kernel='rfb' is unknown: choose 'rbf'"),
        ({"bandwidth": "mean"}, "bandwidth='mean'"),
        ({"bandwidth": -1.0}, "bandwidth=-1.0"),
        ({"scope": "network"}, "scope='network'"),
        ({"prior": "delta2"}, "prior='delta2'"),
        ({"prior_std": 0.0}, "prior_std=0.0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"data_size": 0}, "data_size=0"),
        ({"banwidth": 1.0}, "does not take these options"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(options: dict, words: str) -> None:
    posterior = CASES["later block"].posterior()
    with pytest.raises(bella.BellaError) as caught:
        by_name("repulsive", posterior, **({"data_size": N} | options))
    assert words in str(caught.value)
    assert str(caught.value).endswith(".")


def test_unknown_transports_and_unsuited_priors_are_refused() -> None:
    posterior = CASES["later block"].posterior()
    with pytest.raises(bella.BellaError, match="near names are 'repulsive'"):
        by_name("repulsion", posterior, data_size=N)
    with pytest.raises(bella.BellaError, match="prior='delta'"):
        bella.transport.svgd(posterior, data_size=N, prior="factors")
    move = bella.transport.function
    with pytest.raises(bella.BellaError, match="bandwidth='mean'"):
        move(posterior, data_size=N, bandwidth="mean")
