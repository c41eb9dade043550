"""Transports against autograd, dense formulas and a posterior that is known."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import adapted, batch, changes, gradients, mlp, off_diagonal_median, pairwise
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bella
from bella import transport
from bella.transport import gram, kernels

DENSE_KERNELS = {
    "rbf": lambda t, h: torch.exp(-t / (2 * h)),
    "imq": lambda t, h: (1 + t / (2 * h)) ** -0.5,
    "laplace": lambda t, h: torch.exp(-t.sqrt() / h.sqrt()),
}


def kernel_row(posterior, kernel, scope, normalize, layer, i, own):
    """k(i, j) of all j as a function of particle i's dense change `own` of one layer."""
    deltas = [d.detach() for d in changes(posterior)]
    d2 = [pairwise(d) for d in deltas]
    mine = [
        ((own if m == layer else d[i]) - d).flatten(1).square().sum(-1)
        for m, d in enumerate(deltas)
    ]
    if scope == "global":
        shares = [
            (1 / off_diagonal_median(d) if normalize else torch.ones(())) / len(d2) for d in d2
        ]
        total = sum(t * share for t, share in zip(mine, shares, strict=True))
        width = off_diagonal_median(sum(t * s for t, s in zip(d2, shares, strict=True)))
    else:
        total, width = mine[layer], off_diagonal_median(d2[layer])
    other = torch.arange(posterior.particles) != i
    safe = torch.where(other, total, torch.ones_like(total))
    return torch.where(other, DENSE_KERNELS[kernel](safe, width), torch.ones_like(total))


def loss_gradients(posterior, x, y):
    """Dense gradients of every particle's mean loss by the weights of layers 0 and 2."""
    found = []
    for i in range(posterior.particles):
        plain = posterior.particle(i).requires_grad_()
        F.cross_entropy(plain(x), y).backward()
        found.append([plain[0].weight.grad, plain[2].weight.grad])
    return found


def dense_direction(name, posterior, options, coefficient, layer, i, losses):
    own = changes(posterior)[layer][i].clone().requires_grad_()
    row = kernel_row(posterior, *options, layer, i, own)
    n = posterior.particles
    if name == "repulsive":
        (climb,) = torch.autograd.grad(row.sum().log(), own)
        return losses[i][layer] + coefficient * climb
    (climb,) = torch.autograd.grad(row.sum(), own)
    shared = sum(row[j].detach() * losses[j][layer] for j in range(n))
    return (shared + coefficient * climb) / n


@pytest.mark.parametrize("name", ["repulsive", "svgd"])
@pytest.mark.parametrize("kernel", list(DENSE_KERNELS))
@pytest.mark.parametrize(
    ("scope", "normalize"), [("global", True), ("global", False), ("layer", True)]
)
def test_closed_form_is_the_dense_update_pulled_back(name, kernel, scope, normalize):
    posterior = adapted()
    x, y = batch()
    move = transport.by_name(
        name,
        posterior,
        data_size=10,
        temperature=3.0,
        kernel=kernel,
        scope=scope,
        normalize=normalize,
    )
    bella.nll(posterior(x), y).backward()
    move.step()
    losses = loss_gradients(posterior, x, y)
    for index, layer in enumerate(posterior.layers().values()):
        for i in range(posterior.particles):
            options = (kernel, scope, normalize)
            dense = dense_direction(name, posterior, options, 0.3, index, i, losses)
            on_A = layer.scale * layer.B[i].mT @ dense
            on_B = layer.scale * dense @ layer.A[i].mT
            torch.testing.assert_close(layer.A.grad[i], on_A, rtol=0, atol=1e-10)
            torch.testing.assert_close(layer.B.grad[i], on_B, rtol=0, atol=1e-10)


@pytest.mark.parametrize("prior", ["uniform", "delta"])
def test_svgd_is_dense_svgd_on_convolutions_and_heads(prior):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.Tanh(),
        nn.Conv2d(4, 5, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(45, 3),
    ).double()
    n, coefficient, std, size = 3, 0.2, 0.7, 10
    posterior = bella.low_rank(
        network, n, 2, ("0", "2"), modules_to_save=("5",), b_std=0.4, head_init="reset"
    )
    x = torch.randn(6, 3, 6, 6, dtype=torch.float64)
    y = torch.randint(3, (6,))
    move = transport.svgd(
        posterior, data_size=size, temperature=coefficient * size, prior=prior, prior_std=std
    )
    bella.nll(posterior(x), y).backward()
    move.step()
    deltas = [d.detach() for d in changes(posterior)]
    d2 = [pairwise(d) for d in deltas]
    total = sum(d / off_diagonal_median(d) for d in d2) / 2
    width = off_diagonal_median(total)
    k = torch.exp(-total / (2 * width))
    plains = [posterior.particle(i).requires_grad_() for i in range(n)]
    for plain in plains:
        F.cross_entropy(plain(x), y).backward()
    weight = 1 / (std**2 * size) if prior == "delta" else 0.0
    for index, (place, layer) in enumerate(
        zip((0, 2), list(posterior.layers().values())[:2], strict=True)
    ):
        slope = k / width / (2 * off_diagonal_median(d2[index]))
        for i in range(n):
            phi = (
                sum(
                    k[i, j]
                    * (
                        plains[j][place].weight.grad.flatten(1)
                        + weight * deltas[index][j].flatten(1)
                    )
                    - coefficient * slope[i, j] * (deltas[index][i] - deltas[index][j]).flatten(1)
                    for j in range(n)
                )
                / n
            )
            on_A, on_B = layer.scale * layer.B[i].mT @ phi, layer.scale * phi @ layer.A[i].mT
            torch.testing.assert_close(layer.A.grad[i], on_A, rtol=0, atol=1e-10)
            torch.testing.assert_close(layer.B.grad[i], on_B, rtol=0, atol=1e-10)
    head = posterior.parameters_of(0)
    assert any(name.startswith("5.") for name in head)
    heads = torch.stack([plain[5].weight.grad + weight * plain[5].weight for plain in plains])
    expected = torch.einsum("ij,joc->ioc", k, heads) / n
    given_ = next(p.grad for name, p in posterior.stacked_parameters().items() if "5." in name)
    torch.testing.assert_close(given_, expected.detach(), rtol=0, atol=1e-10)


class Twice(nn.Module):
    """A network that calls one layer two times."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.first(torch.tanh(self.first(x))))


def test_svgd_of_a_layer_that_is_called_twice():
    torch.manual_seed(0)
    posterior = bella.low_rank(Twice().double(), 3, 2, ("first",), b_std=0.4)
    x, y = batch()
    move = transport.svgd(posterior, data_size=10, temperature=0.0)
    bella.nll(posterior(x), y).backward()
    move.step()
    layer = posterior.layers()["first"]
    k = move.coupling.measure().k[0][0]
    losses = []
    for i in range(3):
        plain = posterior.particle(i).requires_grad_()
        F.cross_entropy(plain(x), y).backward()
        losses.append(plain.first.weight.grad)
    for i in range(3):
        phi = sum(k[i, j] * losses[j] for j in range(3)) / 3
        torch.testing.assert_close(
            layer.A.grad[i], layer.scale * layer.B[i].mT @ phi, rtol=0, atol=1e-10
        )


@pytest.mark.parametrize("name", ["ensemble", "repulsive", "svgd", "function"])
def test_chunks_of_particles_give_the_same_gradients(name):
    x, y = batch()
    results = []
    for chunks in ([[0, 1, 2, 3]], [[0, 1], [2, 3]], [[3, 0], [1], [2]]):
        posterior = adapted()
        move = transport.by_name(name, posterior, data_size=10, temperature=3.0)
        if len(chunks) > 1:
            move.prepare(x)
        for chunk in chunks:
            with posterior.subset(chunk):
                bella.nll(posterior(x), y).backward()
        move.step()
        results.append(gradients(posterior))
    for other in results[1:]:
        for key, value in results[0].items():
            torch.testing.assert_close(other[key], value, rtol=0, atol=1e-10)


def test_gram_distance_is_the_dense_distance():
    posterior = adapted()
    for layer, delta in zip(posterior.layers().values(), changes(posterior), strict=True):
        inner = gram.inner_low_rank(layer.A.detach()[None], layer.B.detach()[None], layer.scale)
        torch.testing.assert_close(gram.square_distances(inner)[0], pairwise(delta))


@pytest.mark.parametrize("particles", [2, 5])
def test_a_step_of_pure_repulsion_drives_every_pair_apart(particles):
    posterior = adapted(particles=particles)
    before = [pairwise(d).detach() for d in changes(posterior)]
    # A wide kernel: every pair is felt, so the centre of the particles repels them all.
    move = transport.repulsive(posterior, data_size=1, scope="layer", bandwidth=100.0)
    for p in posterior.stacked_parameters().values():
        p.grad = torch.zeros_like(p)
    move.step()

    def moved(step):
        with torch.no_grad():
            for p in posterior.stacked_parameters().values():
                p.sub_(p.grad, alpha=step)
        after = [pairwise(d).detach() for d in changes(posterior)]
        with torch.no_grad():
            for p in posterior.stacked_parameters().values():
                p.add_(p.grad, alpha=step)
        return after

    off = ~torch.eye(particles, dtype=torch.bool)
    for old, away, printed in zip(before, moved(1.0), moved(-1.0), strict=True):
        assert (away[off] > old[off]).all()
        assert (printed[off] < old[off]).all()  # the sign of Eq. 4 as printed


def regauged(posterior):
    """The same particles in other gauges: (B G, G⁻¹ A)."""
    torch.manual_seed(3)
    other = adapted()
    turns = []
    for layer, twin in zip(posterior.layers().values(), other.layers().values(), strict=True):
        G = torch.eye(2, dtype=torch.float64) + 0.3 * torch.randn(4, 2, 2, dtype=torch.float64)
        twin.A.data = torch.linalg.solve(G, layer.A.data)
        twin.B.data = layer.B.data @ G
        turns.append(G)
    return other, turns


def test_another_gauge_leaves_distances_and_turns_forces():
    x, y = batch()
    posterior = adapted()
    other, turns = regauged(posterior)
    for one, two in zip(changes(posterior), changes(other), strict=True):
        torch.testing.assert_close(one, two)
    for p in (posterior, other):
        move = transport.svgd(p, data_size=10, temperature=3.0)
        bella.nll(p(x), y).backward()
        move.step()
    pairs = zip(posterior.layers().values(), other.layers().values(), turns, strict=True)
    for layer, twin, G in pairs:
        torch.testing.assert_close(twin.A.grad, G.mT @ layer.A.grad)
        torch.testing.assert_close(twin.B.grad, layer.B.grad @ torch.linalg.inv(G).mT)


def test_scaled_gradients_move_the_change_alike_in_every_gauge():
    x, y = batch()
    posterior = adapted()
    other, _ = regauged(posterior)
    motions = []
    for p, damping in ((posterior, 1e-14), (other, 1e-14), (posterior, None), (other, None)):
        p.zero_grad()
        move = transport.repulsive(p, data_size=10, temperature=3.0, damping=damping)
        bella.nll(p(x), y).backward()
        move.step()
        motions.append(
            [
                (layer.B.grad @ layer.A + layer.B @ layer.A.grad).detach()
                for layer in p.layers().values()
            ]
        )
    scaled, scaled_twin, plain, plain_twin = motions
    for a, b, c, d in zip(scaled, scaled_twin, plain, plain_twin, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
        assert not torch.allclose(c, d, rtol=1e-3)


@pytest.mark.parametrize("name", ["ensemble", "repulsive", "svgd", "function"])
def test_one_particle_is_plain_training(name):
    x, y = batch()
    posterior = adapted(particles=1)
    bella.nll(posterior(x), y).backward()
    plain = gradients(posterior)
    posterior.zero_grad()
    move = transport.by_name(name, posterior, data_size=10, temperature=7.0)
    bella.nll(posterior(x), y).backward()
    move.step()
    for key, value in gradients(posterior).items():
        assert torch.equal(value, plain[key])


def test_without_temperature_repulsive_is_the_ensemble():
    x, y = batch()
    found = []
    for name in ("ensemble", "repulsive", "function"):
        posterior = adapted()
        move = transport.by_name(name, posterior, data_size=10, temperature=0.0)
        bella.nll(posterior(x), y).backward()
        move.step()
        found.append(gradients(posterior))
    for key, value in found[0].items():
        assert torch.equal(found[1][key], value)
        torch.testing.assert_close(found[2][key], value, rtol=0, atol=1e-14)


def test_function_adds_the_gradient_of_the_kernel_density_of_predictions():
    x, y = batch()
    posterior = adapted()
    posterior.train()
    transport.function(posterior, data_size=10, temperature=3.0)
    logits = posterior(x)
    logits.retain_grad()
    bella.nll(logits, y).backward()
    free = logits.detach().clone().requires_grad_()
    logs = torch.log_softmax(free, -1).flatten(1)
    d2 = pairwise(logs.detach())
    width = off_diagonal_median(d2)
    t = (logs[:, None] - logs.detach()[None]).square().sum(-1)
    density = torch.exp(-t / (2 * width)).sum(1).log().sum()
    (bella.nll(free, y) + 0.3 * density).backward()
    torch.testing.assert_close(logits.grad, free.grad, rtol=0, atol=1e-10)


def test_function_refuses_to_guess_the_others():
    posterior = adapted()
    posterior.train()
    transport.function(posterior, data_size=10)
    with posterior.subset([0]), pytest.raises(bella.BellaError, match="prepare"):
        posterior(batch()[0])


@pytest.mark.parametrize("prior", ["factors", "delta"])
def test_priors_are_gradients_of_their_log_density(prior):
    posterior = adapted()
    move = transport.ensemble(posterior, data_size=20, prior=prior, prior_std=0.5)
    for p in posterior.stacked_parameters().values():
        p.grad = torch.zeros_like(p)
    move.step()
    found = gradients(posterior)
    posterior.zero_grad()
    if prior == "factors":
        energy = sum(p.square().sum() for p in posterior.stacked_parameters().values())
    else:
        energy = sum(
            (layer.scale * layer.B @ layer.A).square().sum()
            for layer in posterior.layers().values()
        )
    (energy / (2 * 0.5**2) / 20).backward()
    for key, value in gradients(posterior).items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-12)


def test_gamma_is_another_name_for_the_temperature():
    move = transport.repulsive(adapted(particles=5), data_size=40_000, gamma=0.01)
    assert move.temperature == pytest.approx(80)


def test_the_coupling_warms_up():
    move = transport.repulsive(adapted(), data_size=10, temperature=2.0, warmup=4)
    found = []
    for _ in range(6):
        found.append(move.coefficient)
        move.step()
    assert found == pytest.approx([0, 0.05, 0.1, 0.15, 0.2, 0.2])


@pytest.mark.parametrize("name", ["ensemble", "svgd"])
def test_langevin_noise_has_the_covariance_of_its_temperature(name):
    torch.manual_seed(0)
    rate, size, temperature = 0.1, 50, 2.0
    network = nn.Sequential(nn.Linear(200, 50, bias=False))
    posterior = bella.low_rank(network, 4, 2, (), modules_to_save=("0",), head_init="reset")
    value = next(iter(posterior.stacked_parameters().values()))
    options = {"data_size": size, "temperature": temperature}
    steps = []
    for langevin in (False, True):
        value.grad = torch.zeros_like(value)
        move = transport.by_name(name, posterior, langevin=langevin, **options)
        move.step(learning_rate=rate)
        steps.append(-rate * value.grad.flatten(1))
    noise = steps[1] - steps[0]
    shape = torch.eye(4)
    if name == "svgd":  # noise between particles is correlated as the kernel is
        shape = move.coupling.measure().k[0][0] / 4
    expected = 2 * rate * temperature / size * shape
    found = noise @ noise.mT / noise.shape[1]
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05 * float(expected.max()))


def test_langevin_noise_needs_the_learning_rate():
    move = transport.ensemble(adapted(), data_size=10, langevin=True)
    with pytest.raises(bella.BellaError, match="learning_rate"):
        move.step()


def regression_moments(name, particles=40, steps=500):
    """Particles of a two-weight linear regression, and the exact posterior N(mean, covariance)."""
    torch.manual_seed(0)
    count, noise = 30, 0.5
    x = torch.randn(count, 2, dtype=torch.float64) @ torch.tensor([[1.0, 0.3], [0, 0.6]]).double()
    y = x @ torch.tensor([0.7, -0.4]).double() + noise * torch.randn(count, dtype=torch.float64)
    precision = x.mT @ x / noise**2 + torch.eye(2)
    covariance = torch.linalg.inv(precision)
    mean = covariance @ (x.mT @ y) / noise**2
    network = nn.Sequential(nn.Linear(2, 1, bias=False)).double()
    posterior = bella.low_rank(network, particles, 1, (), modules_to_save=("0",), head_init="reset")
    move = transport.by_name(name, posterior, data_size=count, prior="delta")
    if name == "svgd":
        move = transport.svgd(posterior, data_size=count, prior="delta", bandwidth="liu-wang")
    optimizer = torch.optim.Adam(posterior.parameters(), lr=0.03)
    for _ in range(steps):
        optimizer.zero_grad()
        residual = posterior(x).squeeze(-1) - y
        (residual.square().mean(1) / (2 * noise**2)).sum().backward()
        move.step()
        optimizer.step()
    values = next(iter(posterior.stacked_parameters().values())).detach().reshape(particles, 2)
    return values, mean, covariance, move


def test_svgd_recovers_a_gaussian_posterior_of_low_dimension():
    values, mean, covariance, move = regression_moments("svgd")
    scale = covariance.diagonal().sqrt()
    assert ((values.mean(0) - mean).abs() < 0.1 * scale).all()
    ratio = torch.cov(values.mT) / (scale[:, None] * scale)
    exact = covariance / (scale[:, None] * scale)
    torch.testing.assert_close(ratio, exact, rtol=0, atol=0.25)
    assert move.log["stein_ratio"] == pytest.approx(1, abs=0.25)


def test_the_ensemble_collapses_to_the_mode_there():
    values, mean, covariance, _ = regression_moments("ensemble")
    assert (values.std(0) < 0.02 * covariance.diagonal().sqrt()).all()
    torch.testing.assert_close(values.mean(0), mean, rtol=0, atol=1e-3)


@given(
    st.lists(st.floats(0, 50), min_size=6, max_size=6),
    st.floats(0.01, 20),
    st.sampled_from(list(kernels.KERNELS)),
)
def test_kernels_are_kernels(values, width, name):
    points = torch.tensor(values, dtype=torch.float64).reshape(3, 2)
    d2 = pairwise(points)
    k, slope = kernels.kernel_named(name)(d2, torch.tensor(width, dtype=torch.float64))
    torch.testing.assert_close(k, k.mT)
    torch.testing.assert_close(k.diagonal(), torch.ones(3, dtype=torch.float64))
    assert (k >= 0).all()
    assert (k <= 1).all()
    assert (slope >= 0).all()
    assert torch.linalg.eigvalsh(k).min() > -1e-9


def test_bandwidth_rules():
    d2 = torch.tensor([[0.0, 1, 4], [1, 0, 9], [4, 9, 0]])
    assert kernels.bandwidth(d2, "median", 1e-9).item() == 4
    assert kernels.bandwidth(d2, "liu-wang", 1e-9).item() == pytest.approx(4 / (2 * math.log(4)))
    assert kernels.bandwidth(d2, 3, 1e-9).item() == 9
    assert kernels.bandwidth(torch.zeros(3, 3), "median", 0.5).item() == 0.5


def test_particles_at_one_point_feel_no_force():
    x, y = batch()
    for name in ("repulsive", "svgd"):
        posterior = adapted(b_std=0.0)
        move = transport.by_name(name, posterior, data_size=10, temperature=100.0)
        bella.nll(posterior(x), y).backward()
        move.step()
        assert all(g.isfinite().all() for g in gradients(posterior).values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data_size": 0}, "data_size"),
        ({"data_size": 10, "temperature": -1.0}, "temperature"),
        ({"data_size": 10, "temperature": math.nan}, "temperature"),
        ({"data_size": 10, "prior": "laplace"}, "prior"),
        ({"data_size": 10, "prior_std": 0.0}, "prior_std"),
        ({"data_size": 10, "kernel": "rbff"}, "rbf"),
        ({"data_size": 10, "bandwidth": "mean"}, "bandwidth"),
        ({"data_size": 10, "bandwidth": -1.0}, "bandwidth"),
        ({"data_size": 10, "scope": "all"}, "scope"),
        ({"data_size": 10, "colour": "red"}, "colour"),
    ],
)
def test_bad_options_get_one_sentence(options, words):
    with pytest.raises(bella.BellaError, match=words):
        transport.by_name("repulsive", adapted(), **options)


def test_unknown_transports_and_priors_are_refused():
    with pytest.raises(bella.BellaError, match="repulsive"):
        transport.by_name("repulsiv", adapted(), data_size=10)
    with pytest.raises(bella.BellaError, match="delta"):
        transport.svgd(adapted(), data_size=10, prior="factors")


@pytest.mark.parametrize("name", ["ensemble", "repulsive", "svgd"])
def test_what_is_frozen_stays_and_the_rest_moves_as_before(name):
    found = []
    for frozen in (False, True):
        posterior = bella.low_rank(mlp(), 3, 2, ("0",), modules_to_save=("2",), b_std=0.1, seed=0)
        head = posterior.layers()["2"]
        head.requires_grad_(not frozen)
        move = transport.by_name(name, posterior, data_size=8, prior="delta")
        x, y = batch()
        bella.nll(posterior(x), y).backward()
        move.step()
        found.append(posterior.layers()["0"].A.grad)
    torch.testing.assert_close(*found)
    assert all(p.grad is None for p in head.parameters())


def test_a_coupling_of_frozen_particles_is_refused():
    posterior = bella.low_rank(mlp(), 3, 2, ("0",), modules_to_save=("2",), b_std=0.1)
    posterior.layers()["0"].requires_grad_(False)
    with pytest.raises(bella.BellaError, match="is frozen"):
        transport.repulsive(posterior, data_size=8)


def test_a_new_transport_takes_over_from_the_old_one():
    x, y = batch()
    posterior = adapted()
    transport.svgd(posterior, data_size=10)
    move = transport.ensemble(posterior, data_size=10)
    bella.nll(posterior(x), y).backward()
    move.step()
    fresh = adapted(mlp())
    bella.nll(fresh(x), y).backward()
    for key, value in gradients(posterior).items():
        torch.testing.assert_close(value, gradients(fresh)[key])
    assert all(site.layer.listener is None for site in posterior.sites())
