"""Laplace around a trained particle, against exact posteriors and dense Gauss-Newton matrices."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import adapted, batch, mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import MultivariateNormal

import bella
from bella.errors import BellaError
from bella.posteriors.laplace import gauss_newton
from bella.posteriors.laplace.kronecker import KroneckerGaussian
from bella.posteriors.laplace.posterior import LaplacePosterior
from bella.posteriors.laplace.priors import GRID
from bella.posteriors.laplace.second_moments import FullMoment, SketchedMoment


class Tokens(nn.Module):
    """Logits that pool over tokens, by sum or by the first alone."""

    def __init__(self, pool="sum"):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 5)
        self.head = nn.Linear(5, 3)
        self.pool = pool

    def forward(self, x):
        tokens = torch.tanh(self.fc2(torch.relu_(self.fc1(x))))
        return self.head(tokens.sum(1) if self.pool == "sum" else tokens[:, 0])


class Pixels(nn.Sequential):
    """A small convolutional network, with a pointwise convolution as well."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(2, 4, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 5, 1),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(5, 3),
        )


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return x + torch.tanh(self.fc(x))


class Late(nn.Module):
    """Two blocks before the one that adapts: a network with a shared prefix."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Residual() for _ in range(3))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Unshared(nn.Module):
    """Its first pass shows that nothing can be shared: the skip goes round the adapted layer."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = self.fc1(x)
        return self.head(x + torch.tanh(self.fc2(x)))


def double(network):
    torch.manual_seed(3)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    return network.double()


def particle(kind="mlp"):
    """A posterior of one particle, and inputs and labels for it."""
    torch.manual_seed(7)
    y = torch.randint(3, (6,))
    if kind == "mlp":
        posterior = adapted(mlp(), 1, target_modules=("0",), modules_to_save=("2",))
        return posterior, torch.randn(6, 4).double(), y
    if kind == "pixels":
        posterior = adapted(double(Pixels()), 1, target_modules=("0", "2"), modules_to_save=("6",))
        return posterior, torch.randn(6, 2, 5, 5).double(), y
    posterior = adapted(
        double(Tokens()), 1, target_modules=("fc1", "fc2"), modules_to_save=("head",)
    )
    return posterior, torch.randn(6, 5, 4).double(), y


def dense_jacobian(posterior, x):
    """(batch, classes, all parameters), by torch.func, each matrix's elements row by row."""
    found = []
    for linear in posterior.maps:

        def outputs(matrix, linear=linear):
            values = {f"network.{name}": v for name, v in linear.split(matrix).items()}
            return torch.func.functional_call(posterior.around, values, (x,))[0]

        matrix = linear.matrix()
        found.append(torch.autograd.functional.jacobian(outputs, matrix).flatten(2))
    return found


def dense_factors(gaussian):
    G = gaussian.out_vectors * gaussian.out_values @ gaussian.out_vectors.mT
    S = gaussian.in_vectors * gaussian.in_values @ gaussian.in_vectors.mT
    return G, S


def dense_curvature(gaussian):
    return torch.kron(*(side.contiguous() for side in dense_factors(gaussian)))


def dense_covariance(gaussian, tau):
    H = dense_curvature(gaussian)
    return torch.linalg.inv(H + tau * torch.eye(len(H)).to(H))


def fisher(logits):
    p = logits.softmax(-1)
    return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)


def trained(seed=0, noise=0.5, steps=150):
    """A particle trained on 30 examples of noisy labels, with training and validation data."""
    posterior = adapted(mlp(), 1, target_modules=("0",), modules_to_save=("2",), b_std=0.1)
    torch.manual_seed(seed)
    x = torch.randn(330, 4).double()
    clean = x @ torch.randn(4, 3).double()
    y = (clean + noise * torch.randn_like(clean)).argmax(-1)
    optimizer = torch.optim.Adam(posterior.stacked_parameters().values(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        bella.nll(posterior(x[:30]), y[:30]).backward()
        optimizer.step()
    return posterior, [(x[:15], y[:15]), (x[15:30], y[15:30])], [(x[30:], y[30:])]


# ---------------------------------------------------------------- exact posteriors


def linear_gaussian(tau):
    """A Linear layer at the exact posterior mean of a linear-Gaussian model, and its data."""
    torch.manual_seed(2)
    x, y = torch.randn(9, 4).double(), torch.randn(9, 3).double()
    design = torch.cat([x, torch.ones(9, 1).double()], 1)
    precision = design.mT @ design + tau * torch.eye(5).double()
    mean = torch.linalg.solve(precision, design.mT @ y)
    network = nn.Sequential(nn.Linear(4, 3)).double()
    posterior = bella.low_rank(network, 1, target_modules=(), modules_to_save=("0",))
    head = posterior.layers()["0"]
    head.values["weight"].data[0] = mean[:4].mT
    head.values["bias"].data[0] = mean[4]
    return posterior, x, y, design, torch.linalg.inv(precision).contiguous()


@pytest.mark.parametrize("tau", [0.3, 5.0])
def test_it_is_the_exact_posterior_of_a_linear_gaussian_model(tau):
    posterior, x, y, _, covariance = linear_gaussian(tau)
    la = bella.laplace(posterior, [(x, y)], prior_precision=tau, likelihood="gaussian")
    dense = dense_covariance(la.curvature[0], tau)
    assert torch.allclose(dense, torch.kron(torch.eye(3).double(), covariance), atol=1e-12)
    new = torch.randn(5, 4).double()
    mean, (spread,) = la.linearised((new,), {}, tau)
    design = torch.cat([new, torch.ones(5, 1).double()], 1)
    variance = torch.einsum("bi,ij,bj->b", design, covariance, design)
    assert torch.allclose(mean, posterior(new)[0])
    assert torch.allclose(spread, variance[:, None, None] * torch.eye(3).double(), atol=1e-12)


@pytest.mark.parametrize("tau", [0.3, 5.0])
def test_the_marginal_likelihood_is_the_exact_evidence_of_a_linear_gaussian_model(tau):
    posterior, x, y, design, _ = linear_gaussian(tau)
    la = bella.laplace(posterior, [(x, y)], prior_precision=tau, likelihood="gaussian")
    evidence = MultivariateNormal(
        torch.zeros(9).double(), torch.eye(9).double() + design @ design.mT / tau
    )
    exact = evidence.log_prob(y.mT).sum()
    assert torch.allclose(la.log_marginal_likelihood(), exact, rtol=1e-10)


# ---------------------------------------------------------------- curvature


@pytest.mark.parametrize("likelihood", ["softmax", "gaussian"])
def test_one_example_has_the_dense_gauss_newton_of_every_matrix(likelihood):
    posterior, x, y = particle()
    targets = y[:1] if likelihood == "softmax" else torch.randn(1, 3).double()
    la = bella.laplace(posterior, [(x[:1], targets)], likelihood=likelihood)
    hessian = fisher(posterior(x[:1])[0])[0] if likelihood == "softmax" else torch.eye(3).double()
    for gaussian, J in zip(la.curvature, dense_jacobian(la, x[:1]), strict=True):
        assert torch.allclose(dense_curvature(gaussian), J[0].mT @ hessian @ J[0], atol=1e-10)


def test_the_head_after_frozen_features_of_equal_size_has_the_dense_gauss_newton():
    """Where all examples have the same inputs the factorisation is exact for any number of them."""
    posterior, x, _ = particle()
    rows = x[:1].repeat(4, 1)
    la = bella.laplace(posterior, [(rows, torch.tensor([0, 1, 2, 2]))])
    dense = sum(
        J.mT @ H @ J
        for J, H in zip(dense_jacobian(la, rows)[-1], fisher(posterior(rows)[0]), strict=True)
    )
    assert torch.allclose(dense_curvature(la.curvature[-1]), dense, atol=1e-10)


def test_g_is_the_sum_and_s_the_mean_over_the_examples_whatever_the_batches():
    posterior, x, y = particle()
    whole = bella.laplace(posterior, [(x, y)])
    parts = bella.laplace(posterior, [(x[:1], y[:1]), (x[1:], y[1:])])
    single = [bella.laplace(posterior, [(x[i : i + 1], y[i : i + 1])]) for i in range(6)]
    for m, gaussian in enumerate(whole.curvature):
        ones = [dense_factors(one.curvature[m]) for one in single]
        expected = sum(G for G, _ in ones), sum(S for _, S in ones) / 6
        for other in (gaussian, parts.curvature[m]):
            for found, wanted in zip(dense_factors(other), expected, strict=True):
                assert torch.allclose(found, wanted, atol=1e-10)


def test_positions_are_further_examples():
    posterior, x, _ = particle("tokens")
    whole = bella.laplace(posterior, [(x, torch.zeros(6, 3))], likelihood="gaussian")
    rows = x.reshape(30, 1, 4)
    apart = bella.laplace(posterior, [(rows, torch.zeros(30, 3))], likelihood="gaussian")
    for tokens, examples in zip(whole.curvature[:4], apart.curvature, strict=False):
        for found, wanted in zip(dense_factors(tokens), dense_factors(examples), strict=True):
            assert torch.allclose(found, wanted, atol=1e-10)
            assert wanted.abs().max() > 1e-3


def test_positions_that_no_output_feels_do_not_count():
    posterior, x, y = particle("tokens")
    posterior.network.pool = "first"
    whole = bella.laplace(posterior, [(x, y)])
    first = bella.laplace(posterior, [(x[:, :1], y)])
    for found, wanted in zip(whole.curvature, first.curvature, strict=True):
        assert torch.allclose(dense_curvature(found), dense_curvature(wanted), atol=1e-12)


@pytest.mark.parametrize("kind", ["mlp", "tokens", "pixels"])
def test_jacobians_are_autograds(kind):
    posterior, x, y = particle(kind)
    la = bella.laplace(posterior, [(x, y)])
    passed = gauss_newton.run(posterior, la.maps, (x,), {})
    for jacobian, dense in zip(gauss_newton.jacobians(passed), dense_jacobian(la, x), strict=True):
        if not isinstance(jacobian, torch.Tensor):
            jacobian = torch.einsum("cbo,bi->cboi", *jacobian)
        assert torch.allclose(jacobian.flatten(2).transpose(0, 1), dense, atol=1e-10)


def test_a_layer_called_twice_has_the_sum_of_both_gradients():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(torch.tanh(self.inside(torch.tanh(self.inside(x)))))

    posterior = adapted(double(Twice()), 1, target_modules=("inside",), shared_prefix=False)
    x, y = batch(3)
    la = bella.laplace(posterior, [(x, y)])
    passed = gauss_newton.run(posterior, la.maps, (x,), {})
    for jacobian, dense in zip(gauss_newton.jacobians(passed), dense_jacobian(la, x), strict=True):
        assert torch.allclose(jacobian.flatten(2).transpose(0, 1), dense, atol=1e-10)


# ---------------------------------------------------------------- the low-rank form


def decaying(rows=400, size=30):
    generator = torch.Generator().manual_seed(4)
    scales = 0.8 ** torch.arange(size)
    turn = torch.linalg.qr(torch.randn(size, size, generator=generator).double()).Q
    return (torch.randn(rows, size, generator=generator) * scales).double() @ turn


def test_a_sketch_approaches_the_whole_matrix_from_below_as_its_rank_grows():
    rows = decaying()
    full = FullMoment(rows, 30)
    full.add(rows)
    errors = []
    for rank in (1, 3, 6, 12, 30):
        sketch = SketchedMoment(rows, 30, rank)
        sketch.add(rows[:100])
        sketch.add(rows[100:])
        values, vectors = sketch.eigen()
        assert len(values) == rank
        rest = full.total - vectors * values @ vectors.mT
        assert torch.linalg.eigvalsh(rest)[0] > -1e-9
        errors.append(
            float(torch.linalg.matrix_norm(rest, 2) / torch.linalg.matrix_norm(full.total, 2))
        )
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1
    assert errors[-1] < 1e-10


@given(st.integers(0, 1000), st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_a_sketch_of_vectors_from_a_small_space_is_exact(seed, rank):
    torch.manual_seed(seed)
    rows = torch.randn(50, rank).double() @ torch.randn(rank, 40).double()
    sketch = SketchedMoment(rows, 40, 6)
    sketch.add(rows)
    values, vectors = sketch.eigen()
    dense = rows.mT @ rows
    assert torch.allclose(vectors * values @ vectors.mT, dense, atol=1e-8 * float(dense.trace()))


def test_large_factors_are_held_at_low_rank_and_agree_with_whole_ones_at_full_rank():
    posterior, x, y = particle("tokens")
    whole = bella.laplace(posterior, [(x, y)], prior_precision=0.5)
    small = bella.laplace(posterior, [(x, y)], prior_precision=0.5, full_up_to=3, factor_rank=2)
    same = bella.laplace(posterior, [(x, y)], prior_precision=0.5, full_up_to=0, factor_rank=6)
    a_of_fc1 = small.curvature[0]
    assert a_of_fc1.in_vectors.shape == (4, 2)
    assert a_of_fc1.out_vectors.shape == (2, 2)
    wanted, cut, full = (p.linearised((x,), {}, 0.5)[1][0] for p in (whole, small, same))
    assert torch.allclose(full, wanted, atol=1e-8)
    assert torch.linalg.eigvalsh(cut - wanted).min() > -1e-9  # curvature left out: never surer
    assert (cut - wanted).abs().max() > 1e-3


# ---------------------------------------------------------------- the Gaussian


@pytest.mark.parametrize("options", [{}, {"full_up_to": 3, "factor_rank": 2}])
@pytest.mark.parametrize("kind", ["mlp", "tokens", "pixels"])
def test_the_spread_of_the_logits_is_the_dense_j_sigma_j(kind, options):
    posterior, x, y = particle(kind)
    la = bella.laplace(posterior, [(x, y)], **options)
    for tau, found in zip((0.2, 3.0), la.linearised((x,), {}, 0.2, 3.0)[1], strict=True):
        dense = sum(
            J @ dense_covariance(gaussian, tau) @ J.mT
            for gaussian, J in zip(la.curvature, dense_jacobian(la, x), strict=True)
        )
        assert torch.allclose(found, dense, atol=1e-8 * float(dense.abs().max()))


@pytest.mark.parametrize("tau", [0.1, 2.0])
@pytest.mark.parametrize("options", [{}, {"full_up_to": 3, "factor_rank": 2}])
def test_the_marginal_likelihood_is_the_dense_formula(tau, options):
    posterior, x, y = particle()
    la = bella.laplace(posterior, [(x[:4], y[:4]), (x[4:], y[4:])], **options)
    theta = torch.cat([linear.matrix().flatten() for linear in la.maps])
    H = torch.block_diag(*(dense_curvature(gaussian) for gaussian in la.curvature))
    d = len(theta)
    log_likelihood = -F.cross_entropy(posterior(x)[0], y, reduction="sum")
    log_prior = d / 2 * math.log(tau / (2 * math.pi)) - tau / 2 * theta.square().sum()
    log_volume = (
        d / 2 * math.log(2 * math.pi) - torch.linalg.slogdet(H + tau * torch.eye(d)).logabsdet / 2
    )
    assert torch.allclose(la.log_marginal_likelihood(tau), log_likelihood + log_prior + log_volume)


def gaussian_of(rows=3, columns=4, like=None, scale=1.0):
    generator = torch.Generator().manual_seed(8)
    like = torch.zeros((), dtype=torch.double) if like is None else like
    gaussian = KroneckerGaussian((rows, columns), (rows, 2), like)
    sides = []
    for size, rank in ((rows, rows), (columns, 2)):
        draw = torch.randn(size, size, generator=generator).double()
        values, vectors = torch.linalg.eigh(draw @ draw.mT)
        sides.append((scale * values[-rank:].to(like), vectors[:, -rank:].to(like)))
    gaussian.set(*sides)
    return gaussian


def test_draws_of_a_matrix_have_the_stated_covariance():
    torch.manual_seed(0)
    gaussian = gaussian_of()
    draws = torch.stack([gaussian.draw(0.7).flatten() for _ in range(20_000)])
    dense = dense_covariance(gaussian, 0.7)
    assert torch.allclose(draws.mean(0), torch.zeros(12).double(), atol=0.04)
    assert torch.allclose(draws.mT.cov(), dense, atol=0.06)
    assert dense.diagonal().max() > 3 * dense.diagonal().min()


def test_whitening_is_the_symmetric_root():
    gaussian = gaussian_of()
    units = torch.eye(12).double().reshape(12, 3, 4)
    root = gaussian.whiten(units, 0.7).flatten(1)
    assert torch.allclose(root, root.mT)
    assert torch.allclose(root @ root, dense_covariance(gaussian, 0.7), atol=1e-12)


@pytest.mark.parametrize("formed", [True, False])
def test_float32_keeps_its_digits_where_the_curvature_is_far_above_the_prior(formed):
    sharp = gaussian_of(scale=300.0)
    rough = gaussian_of(scale=300.0, like=torch.zeros(()))
    sharp.in_vectors, rough.in_vectors = (
        torch.linalg.qr(torch.ones(4, 2).triu().to(g.in_vectors)).Q for g in (sharp, rough)
    )
    torch.manual_seed(0)
    g = torch.randn(5, 2, 3).double()
    a = torch.randn(2, 2).double() @ sharp.in_vectors.mT  # inside what the eigenvectors hold
    spreads = []
    for gaussian in (sharp, rough):
        parts = g.to(gaussian.in_values), a.to(gaussian.in_values)
        outer = gauss_newton.Outer(*parts)
        jacobian = torch.einsum("cbo,bi->cboi", *parts) if formed else outer
        spreads.append(gaussian.covariance(jacobian, 1e-3).double())
    assert torch.allclose(spreads[1], spreads[0], rtol=0.02, atol=0.02 * float(spreads[0].max()))


# ---------------------------------------------------------------- predictives


def test_linearised_draws_have_the_mean_and_covariance_of_the_linearised_gaussian():
    posterior, x, y = particle()
    la = bella.laplace(posterior, [(x, y)], prior_precision=2.0)
    torch.manual_seed(0)
    logits = bella.predict(la, x[:3], draws=8_000).logits
    mean, (covariance,) = la.linearised((x[:3],), {}, 2.0)
    centred = logits - logits.mean(0)
    assert torch.allclose(logits.mean(0), mean, atol=0.06)
    found = torch.einsum("sbc,sbd->bcd", centred, centred) / len(logits)
    assert torch.allclose(found, covariance, atol=0.08 * float(covariance.abs().max()))


def test_probit_shrinks_the_logits_and_draws_nothing():
    posterior, x, y = particle()
    la = bella.laplace(posterior, [(x, y)], prior_precision=2.0, predictive="probit")
    assert not la.stochastic
    mean, (covariance,) = la.linearised((x,), {}, 2.0)
    variance = covariance.diagonal(dim1=1, dim2=2)
    assert torch.allclose(
        bella.predict(la, x, draws=9).logits, (mean / (1 + math.pi * variance / 8).sqrt())[None]
    )


def test_weight_draws_run_the_network_with_the_drawn_weights():
    posterior, x, y = particle("tokens")
    la = bella.laplace(posterior, [(x, y)], predictive="weights")
    before = posterior(x)
    torch.manual_seed(4)
    found = bella.predict(la, x).logits
    torch.manual_seed(4)
    drawn = la.drawn()
    assert torch.equal(posterior(x), before)
    own = posterior.stacked_parameters()
    assert drawn.keys() == {f"network.{name}" for name in own}
    for name, value in own.items():
        assert not torch.allclose(value, drawn[f"network.{name}"])
        value.data.copy_(drawn[f"network.{name}"])
    assert torch.allclose(posterior(x), found)


def test_an_infinitely_sharp_prior_leaves_the_trained_particle():
    posterior, x, y = particle("pixels")
    for how in ("linearised", "probit", "weights"):
        la = bella.laplace(posterior, [(x, y)], prior_precision=1e14, predictive=how)
        assert torch.allclose(bella.predict(la, x).logits, posterior(x), atol=1e-5)


def test_a_series_of_draws_linearises_a_batch_once_and_anew_when_anything_changed():
    posterior, x, y = particle()
    la = bella.laplace(posterior, [(x, y)], prior_precision=1.0)
    passes = []
    posterior.network[1].register_forward_hook(lambda *_: passes.append(1))
    posterior.eval().prove(x)
    passes.clear()
    bella.predict(la, x, draws=7)
    assert len(passes) == 1
    spread = bella.predict(la, x, draws=300).logits.std(0).mean()
    la.prior_precision = 100.0
    assert bella.predict(la, x, draws=300).logits.std(0).mean() < spread / 2
    assert len(passes) == 2
    posterior.layers()["2"].values["bias"].data.add_(5.0)
    with torch.no_grad():
        posterior.layers()["2"].values["bias"].add_(5.0)
    assert bella.predict(la, x).logits.mean() > 5
    x.mul_(2)
    bella.predict(la, x)
    assert len(passes) == 4


def test_inputs_may_come_from_inference_mode_and_gradients_reach_them():
    posterior, x, y = particle("tokens")
    la = bella.laplace(posterior, [(x, y)], prior_precision=1e12).eval()
    with torch.inference_mode():
        made = x * 1
        assert torch.allclose(la(made), posterior(x), atol=1e-4)
    moved = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(la(moved).square().sum(), moved)
    other = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(posterior(other).square().sum(), other)
    assert torch.allclose(found, wanted, atol=1e-3)


def test_streams_serve_as_inputs_in_the_curvature_and_in_prediction():
    posterior = adapted(
        double(Late()), 1, target_modules=("blocks.2.fc",), modules_to_save=("head",)
    )
    x, y = batch()
    plain = bella.laplace(posterior, [(x, y)])
    stream = posterior.prefix(x)
    assert stream.entrance == "blocks.2"
    kept = bella.laplace(posterior, [(stream, y)], validation=[(stream, y)])
    for found, wanted in zip(kept.curvature, plain.curvature, strict=True):
        assert torch.allclose(dense_curvature(found), dense_curvature(wanted))
    wanted = plain.linearised((x,), {}, 1.0)[1][0]
    assert torch.allclose(kept.linearised((kept.prefix(x),), {}, 1.0)[1][0], wanted)


def test_a_network_that_can_share_nothing_is_listened_to_after_its_first_pass():
    x, y = batch()
    found = []
    for shared in (True, False):
        posterior = adapted(double(Unshared()), 1, target_modules=("fc2",), shared_prefix=shared)
        found.append(bella.laplace(posterior, [(x, y)]).curvature[0])
    assert torch.allclose(*(dense_curvature(gaussian) for gaussian in found))


def test_evaluate_and_mappings_work():
    posterior, train, held = trained()
    la = bella.laplace(posterior, train)
    figures = bella.evaluate(la, held, draws=20)
    assert figures["mutual_information"] > 0
    assert figures["accuracy"] > 0.5
    network = nn.Sequential(nn.Linear(4, 3)).double()

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = network

        def forward(self, pixels):
            return {"logits": self.inside(pixels)}

    x, y = batch()
    posterior = bella.low_rank(Named(), 1, target_modules=(), modules_to_save=("inside.0",))
    la = bella.laplace(posterior, [{"pixels": x, "labels": y}])
    assert bella.predict(la, {"pixels": x}, draws=3).logits.shape == (3, 8, 3)


# ---------------------------------------------------------------- the prior


def test_the_marginal_likelihood_is_at_its_maximum():
    posterior, train, _ = trained()
    la = bella.laplace(posterior, train, prior_precision="marginal_likelihood")
    here = float(la.log_marginal_likelihood())
    for factor in (0.7, 0.95, 1.05, 1.4):
        assert float(la.log_marginal_likelihood(factor * la.prior_precision)) < here


@pytest.mark.parametrize("how", ["linearised", "probit", "weights"])
def test_validation_takes_the_best_of_the_grid(how):
    posterior, train, held = trained()
    held = [(x[:60], y[:60]) for x, y in held]
    la = bella.laplace(
        posterior, train, prior_precision="validation", validation=held, predictive=how
    )
    (x, y) = held[0]
    found = {tau: p.nll(y) for tau, p in zip(GRID, la.predictives(x, list(GRID), 32), strict=True)}
    assert la.prior_precision == min(found, key=found.__getitem__)
    assert max(found.values()) > found[la.prior_precision] + 0.02


@pytest.mark.parametrize("chosen", ["marginal_likelihood", "validation"])
@pytest.mark.parametrize(
    ("how", "poor"), [("linearised", 1e4), ("weights", 1e4), ("weights", 1e-3)]
)
def test_a_chosen_prior_predicts_better_than_a_poor_one_and_than_the_particle(chosen, how, poor):
    posterior, train, held = trained(seed=1)
    x, y = held[0]
    held = [(x[:150], y[:150])]
    chosen = bella.laplace(
        posterior, train, prior_precision=chosen, validation=held, predictive=how
    )
    other = bella.laplace(posterior, train, prior_precision=poor, predictive=how)
    torch.manual_seed(0)
    good, bad, particle = (
        bella.predict(p, x[150:], draws=50).nll(y[150:]) for p in (chosen, other, posterior)
    )
    assert good < bad - 0.1
    assert good < particle - 0.1


# ---------------------------------------------------------------- files and refusals


@pytest.mark.parametrize("how", ["linearised", "probit", "weights"])
def test_it_comes_back_from_a_file_to_the_bit_without_data(tmp_path, how):
    posterior, x, y = particle()
    la = bella.laplace(posterior, [(x, y)], predictive=how, full_up_to=3, factor_rank=2)
    la.save(tmp_path)
    loaded = bella.load(tmp_path, mlp())
    assert isinstance(loaded, LaplacePosterior)
    assert loaded.settings == la.settings
    assert torch.equal(loaded.log_marginal_likelihood(), la.log_marginal_likelihood())
    draws = []
    for p in (la, loaded):
        torch.manual_seed(1)
        draws.append(bella.predict(p, x, draws=4).logits)
    assert torch.equal(*draws)
    plain, other = la.particle(0), loaded.soup()
    assert torch.equal(plain(x), other(x))


def test_a_file_counts_the_curvature():
    posterior, x, y = particle()
    la = bella.laplace(posterior, [(x, y)])
    numbers = sum(b.numel() for b in la.curvature.buffers())
    assert bella.cost(la)["bytes_on_disk"] == bella.cost(posterior)["bytes_on_disk"] + 8 * numbers
    assert bella.cost(la)["trainable"] == bella.cost(posterior)["trainable"]


def test_several_particles_are_refused_in_one_sentence():
    x, y = batch()
    with pytest.raises(BellaError, match="around one trained particle and this posterior has 4"):
        bella.laplace(adapted(), [(x, y)])


def test_layers_that_are_not_covered_are_refused():
    x, y = batch()
    network = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)).double()
    posterior = bella.low_rank(network, 1, target_modules=("0",), rank=2, modules_to_save=("1",))
    with pytest.raises(BellaError, match=r"Layer '1' .*LayerNorm.* is no low-rank layer"):
        bella.laplace(posterior, [(x, y)])
    with pytest.raises(BellaError, match="no low-rank layer"):
        bella.laplace(bella.full(mlp(), 1), [(x, y)])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"predictive": "exact"}, "predictive='exact'"),
        ({"likelihood": "poisson"}, "likelihood='poisson'"),
        ({"prior_precision": 0.0}, "prior_precision=0.0"),
        ({"prior_precision": "grid"}, "prior_precision='grid'"),
        ({"prior_precision": "validation"}, "needs validation="),
        ({"prior_precision": "validation", "validation": []}, "nothing to validate"),
        ({"factor_rank": 0}, "factor_rank=0"),
    ],
)
def test_bad_options_are_refused(options, sentence):
    posterior, x, y = particle()
    with pytest.raises(BellaError, match=sentence):
        bella.laplace(posterior, [(x, y)], **options)


def test_bad_data_are_refused():
    posterior, x, y = particle()
    with pytest.raises(BellaError, match="data are empty"):
        bella.laplace(posterior, [])
    with pytest.raises(BellaError, match="out of range"):
        bella.laplace(posterior, [(x, y + 3)])
    with pytest.raises(BellaError, match="not finite"):
        bella.laplace(posterior, [(x * math.nan, y)])
    per_token, x, y = particle("tokens")
    per_token.network.pool = "none"
    per_token.network.forward = lambda x: per_token.network.head(
        per_token.network.fc2(per_token.network.fc1(x))
    )
    with pytest.raises(BellaError, match=r"needs logits \(batch, classes\)"):
        bella.laplace(per_token, [(x, y)])


# ---------------------------------------------------------------- the general library


def test_it_agrees_with_laplace_torch_on_a_small_network():
    library = pytest.importorskip("laplace")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False))
    network = network.double()
    x, y = batch(12)
    data = torch.utils.data.TensorDataset(x, y)
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    theirs = library.Laplace(network, "classification", "all", "kron", prior_precision=0.6)
    theirs.fit(loader)
    mean, covariance = theirs._glm_predictive_distribution(x)
    evidence = float(theirs.log_marginal_likelihood())
    posterior = bella.low_rank(network, 1, target_modules=(), modules_to_save=("0", "2"))
    ours = bella.laplace(posterior, loader, prior_precision=0.6)
    found, (spread,) = ours.linearised((x,), {}, 0.6)
    assert torch.allclose(found, mean, atol=1e-6)
    assert torch.allclose(spread, covariance, rtol=1e-4, atol=1e-6)
    assert float(ours.log_marginal_likelihood()) == pytest.approx(evidence, rel=1e-5)


def test_what_is_kept_of_a_batch_is_kept_for_the_network_as_it_was():
    """It was kept under autocast for a call without it, and over changes of the frozen base."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.BatchNorm1d(6), nn.Linear(6, 3))
    x, y = torch.randn(8, 4), torch.arange(8) % 3
    trained = bella.low_rank(network, 1, 2, ("3",), b_std=0.5).eval()
    posterior = bella.laplace(trained, [(x, y)], prior_precision=1.0, predictive="probit").eval()

    @torch.no_grad()
    def anew():
        posterior._last = None
        return posterior(x)

    with torch.no_grad():
        whole = posterior(x)
        assert torch.equal(posterior(x), whole)
        with torch.autocast("cpu", torch.bfloat16):
            fewer = posterior(x)
        assert not torch.equal(fewer.float(), whole)
        assert torch.equal(posterior(x), whole)
        for change in (
            lambda: network[0].weight.mul_(2),
            lambda: network[2].running_mean.add_(1),
            lambda: network[1].register_forward_hook(lambda *said: 2 * said[2]),
        ):
            before = posterior(x)
            change()
            found = posterior(x)
            assert not torch.equal(found, before)
            assert torch.equal(found, anew())
