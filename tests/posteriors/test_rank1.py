"""Rank-1 Bayesian networks, against dense formulas, quadrature and published counts."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Normal, kl_divergence

import bella
from bella.errors import BellaError
from bella.models.wide_resnet import WideResNet
from bella.particles.axis import Pass
from bella.posteriors.divergences import kl_cauchy, kl_gaussian
from bella.posteriors.rank1.layers import Rank1Layer
from bella.posteriors.rank1.vectors import PointVector, Start
from bella.training.annealing import kl_weight

POINTS = {"posterior": "deterministic", "random_sign_init": -0.5}


@pytest.fixture(autouse=True)
def _double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


def convnet():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=2, groups=2, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )


def recorded(posterior, *inputs):
    """Outputs, and the draws of every vector by its name."""
    draws, handles = {}, []
    for name, module in posterior.network.named_modules():
        if isinstance(module, PointVector):
            keep = lambda _, __, out, name=name: draws.__setitem__(name, out.detach())  # noqa: E731
            handles.append(module.register_forward_hook(keep))
    outputs = posterior(*inputs)
    for handle in handles:
        handle.remove()
    return outputs, draws


# ---------------------------------------------------------------- the layers


@pytest.mark.parametrize("shape", [(3, 7), (3, 4, 7)])
@pytest.mark.parametrize("kind", ["gaussian", "cauchy", "deterministic"])
def test_linear_is_diag_s_w_diag_r_of_each_example(kind, shape):
    linear = nn.Linear(7, 5)
    W, b = linear.weight.detach().clone(), linear.bias.detach().clone()
    posterior = bella.rank1(nn.Sequential(linear), 3, kind, random_sign_init=0.5)
    x = torch.randn(shape)
    y, draws = recorded(posterior, x)
    r, s = (draws[f"0.{v}"].expand(3, 3, -1) for v in "rs")
    for k in range(3):
        for i in range(3):
            dense = s[k, i].diag() @ W @ r[k, i].diag()
            assert torch.allclose(y[k, i], F.linear(x[i], dense, b), atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"padding": 2, "groups": 2}])
def test_convolution_is_diag_s_w_diag_r_of_each_example(options):
    conv = nn.Conv2d(4, 6, 3, **options)
    W, b = conv.weight.detach().clone(), conv.bias.detach().clone()
    posterior = bella.rank1(nn.Sequential(conv), 2, "gaussian", random_sign_init=0.5)
    x = torch.randn(3, 4, 7, 6)
    y, draws = recorded(posterior, x)
    for k in range(2):
        for i in range(3):
            r, s = draws["0.r"][k, i], draws["0.s"][k, i]
            inputs = r.view(options.get("groups", 1), -1).repeat_interleave(
                6 // options.get("groups", 1), 0
            )
            dense = W * s.view(-1, 1, 1, 1) * inputs[:, :, None, None]
            assert torch.allclose(y[k, i], F.conv2d(x[i : i + 1], dense, b, **options)[0])


def test_conv1d_of_transformers_is_transposed():
    from transformers.pytorch_utils import Conv1D

    base = Conv1D(5, 7)
    W = base.weight.detach().clone()
    posterior = bella.rank1(nn.Sequential(base), 2)
    x = torch.randn(3, 4, 7)
    y, draws = recorded(posterior, x)
    r, s = draws["0.r"].unsqueeze(2), draws["0.s"].unsqueeze(2)
    assert torch.allclose(y, ((x * r) @ W) * s)
    mean = posterior.layers()["0"]
    plain = posterior.particle(1)
    assert torch.allclose(
        plain(x), ((x * mean.r.mean[1]) @ W) * mean.s.mean[1] + mean.bias[1], atol=1e-12
    )


def test_components_are_separate_networks_with_the_same_draws():
    posterior = bella.rank1(convnet(), 3, random_sign_init=0.5).eval()
    x = torch.randn(4, 3, 8, 8)
    posterior(x)  # proven before anything hangs on it
    together, draws = recorded(posterior, x)

    class Replay(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def forward(self):
            return self.value

    for k in range(3):
        for name, layer in posterior.layers().items():
            layer.r, layer.s = (Replay(draws[f"{name}.{v}"][k : k + 1]) for v in "rs")
        with posterior.subset([k]):
            alone = posterior(x)
        assert torch.allclose(alone[0], together[k])


def test_without_spread_and_with_unit_factors_it_is_the_plain_network():
    network = convnet()
    x = torch.randn(4, 3, 8, 8)
    expected = network.eval()(x)
    posterior = bella.rank1(network, 1, "gaussian", random_sign_init=1.0).eval()
    for layer in posterior.layers().values():
        layer.r.rho.data.fill_(-800.0)
        layer.s.rho.data.fill_(-800.0)
    assert torch.allclose(posterior(x)[0], expected, atol=1e-12)


def test_deterministic_is_batch_ensemble():
    """Each member multiplies inputs, outputs and one shared weight; nothing is drawn."""
    posterior = bella.rank1(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), 4, **POINTS)
    x = torch.randn(5, 6)
    first, second = posterior.network[0], posterior.network[2]
    hidden = torch.relu(
        ((x * first.r.mean[:, None]) @ first.base.weight.T) * first.s.mean[:, None]
        + first.bias[:, None]
    )
    expected = ((hidden * second.r.mean[:, None]) @ second.base.weight.T) * second.s.mean[
        :, None
    ] + second.bias[:, None]
    assert torch.allclose(posterior(x), expected)
    assert torch.equal(posterior(x), posterior(x))
    assert not posterior.stochastic
    assert posterior.kl() == 0


def test_random_components_draw_anew_in_evaluation_and_for_each_example():
    posterior = bella.rank1(nn.Sequential(nn.Linear(6, 3)), 2, random_sign_init=1.0).eval()
    x = torch.randn(1, 6).expand(4, 6)
    y = posterior(x)
    assert posterior.stochastic
    assert len(y.flatten(0, 1).unique(dim=0)) == 8
    assert not torch.equal(y, posterior(x))


def test_windows_of_one_example_share_its_draw():
    """A layer may see several rows of each example, as windowed attention makes them."""

    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(x.reshape(-1, 4)).reshape(x.shape[0], -1, 2)

    posterior = bella.rank1(Windows(), 2)
    y = posterior(torch.ones(3, 5, 4))
    assert torch.allclose(y, y[:, :, :1].expand_as(y))
    assert len(y[:, :, 0].flatten(0, 1).unique(dim=0)) == 6


def test_a_network_may_ask_a_weight_for_its_dtype_but_not_multiply_by_it():
    class Asking(nn.Sequential):
        def forward(self, x):
            return self[0](x.to(self[0].weight.dtype))

    class Bypassing(nn.Sequential):
        def forward(self, x):
            return F.linear(x, self[0].weight) + self[0](x)

    x = torch.randn(3, 4)
    assert bella.rank1(Asking(nn.Linear(4, 2)), 2)(x.float()).isfinite().all()
    with pytest.raises(bella.BellaError, match="weight of layer '0' itself"):
        bella.rank1(Bypassing(nn.Linear(4, 2)), 2)(x)


def test_merged_components_and_soup():
    posterior = bella.rank1(convnet(), 3, **POINTS).eval()
    for layer in posterior.layers().values():
        if layer.bias is not None:
            layer.bias.data.normal_()
    x = torch.randn(4, 3, 8, 8)
    y = posterior(x)
    for k in range(3):
        assert torch.allclose(posterior.particle(k)(x), y[k])
    members = [posterior.particle(k) for k in range(3)]
    soup = posterior.soup()
    for name, value in soup.named_parameters():
        mean = torch.stack([member.get_parameter(name) for member in members]).mean(0)
        assert torch.allclose(value, mean), name


def test_layers_that_begin_late_may_share_their_prefix():
    x = torch.randn(4, 3, 8, 8)
    found = []
    for share in (True, False):
        options = {"target_modules": "7", "shared_prefix": share} | POINTS
        torch.manual_seed(3)
        posterior = bella.rank1(convnet(), 3, **options).eval()
        found.append(posterior(x))
        assert (posterior.shared is not None) == share
    assert torch.allclose(*found)


# ---------------------------------------------------------------- training


def test_gradients_reach_shared_weights_factors_spreads_biases_and_batch_norm():
    posterior = bella.rank1(convnet(), 3).train()
    before = posterior.network[1].running_mean.clone()
    y = torch.tensor([0, 1, 2, 3])
    loss = F.cross_entropy(posterior(torch.randn(4, 3, 8, 8)).flatten(0, 1), y.repeat(3))
    (loss + posterior.kl() / 100).backward()
    for name, parameter in posterior.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert not torch.equal(before, posterior.network[1].running_mean)


def test_draws_have_the_gradient_of_reparameterisation():
    posterior = bella.rank1(nn.Sequential(nn.Linear(3, 2)), 2)
    r = posterior.network[0].r
    with posterior.axis.run(Pass((0, 1), 5, is_open=True)):
        state = torch.get_rng_state()
        draw = r()
        torch.set_rng_state(state)
        noise = torch.randn(2, 5, 3)
    weight = torch.randn(2, 5, 3)
    (draw * weight).sum().backward()
    assert torch.allclose(r.mean.grad, weight.sum(1))
    assert torch.allclose(r.rho.grad, (weight * noise).sum(1) * torch.sigmoid(r.rho))


def test_shared_batch_norm_sees_all_components_together():
    posterior = bella.rank1(convnet(), 3, **POINTS).train()
    seen = []
    posterior.network[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    posterior.prove(torch.randn(4, 3, 8, 8))
    seen.clear()
    posterior(torch.randn(4, 3, 8, 8))
    mean = 0.1 * seen[0].mean((0, 2, 3))
    assert seen[0].shape[0] == 12
    assert torch.allclose(posterior.network[1].running_mean, mean)


def test_a_component_may_have_its_own_batch_norm():
    posterior = bella.rank1(convnet(), 3, batch_norm="component", **POINTS).train()
    x = torch.randn(4, 3, 8, 8)
    y = posterior(x)
    for k in range(3):
        alone = bella.rank1(convnet(), 3, **POINTS)
        alone.network.load_state_dict(
            {
                name: value
                for name, value in posterior.network.state_dict().items()
                if not name.startswith("1.")
            },
            strict=False,
        )
        with alone.train().subset([k]):
            assert torch.allclose(alone(x)[0], y[k])
            mean = alone.network[1].running_mean
        assert torch.allclose(posterior.network[1].running_mean[k], mean)


def test_weight_decay_leaves_factors_alone():
    posterior = bella.rank1(convnet(), 2)
    decayed, free = posterior.parameter_groups(2e-4)
    factors = {id(p) for n, p in posterior.named_parameters() if ".r." in n or ".s." in n}
    assert {id(p) for p in free["params"]} == factors
    assert free["weight_decay"] == 0
    assert decayed["weight_decay"] == 2e-4
    assert len(decayed["params"]) + len(factors) == len(list(posterior.parameters()))


@pytest.mark.parametrize("options", [{}, {"target_modules": "7", "shared_prefix": True}])
def test_fit_trains_factors_and_shared_weights(options):
    torch.set_default_dtype(torch.float32)
    posterior = bella.rank1(convnet(), 2, **options)
    start = {name: p.detach().clone() for name, p in posterior.named_parameters()}
    data = torch.randn(16, 3, 8, 8), torch.randint(5, (16,))
    bella.fit(
        posterior, data, epochs=1, batch_size=8, particles_per_pass=1, kl_warmup=1, progress=False
    )
    for name, parameter in posterior.named_parameters():
        assert not torch.equal(parameter, start[name]), name
    cost = bella.cost(posterior)
    assert cost["trainable"] == count(posterior)
    assert cost["trainable_per_particle"] == sum(
        p[0].numel() for p in posterior.stacked_parameters().values()
    )


@pytest.mark.parametrize(
    ("step", "epochs", "expected"), [(0, 2, 1 / 20), (9, 2, 0.5), (19, 2, 1), (99, 2, 1), (0, 0, 1)]
)
def test_kl_is_phased_in_linearly(step, epochs, expected):
    assert kl_weight(step, steps_per_epoch=10, epochs=epochs) == pytest.approx(expected)


def test_a_phase_needs_steps():
    with pytest.raises(BellaError, match="at least one step"):
        kl_weight(0, steps_per_epoch=0, epochs=1)


# ---------------------------------------------------------------- distributions

numbers = st.floats(-3, 3)
scales = st.floats(0.05, 4)


@settings(max_examples=30, deadline=None)
@given(numbers, scales, numbers, scales)
def test_gaussian_kl_is_that_of_torch(m0, s0, m1, s1):
    args = [torch.tensor(v, dtype=torch.float64) for v in (m0, s0, m1, s1)]
    expected = kl_divergence(Normal(*args[:2]), Normal(*args[2:]))
    assert torch.allclose(kl_gaussian(*args), expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(numbers, scales, numbers, scales)
def test_cauchy_kl_is_the_integral(x0, g0, x1, g1):
    # u = arctan((x - x0) / g0) makes p(x) dx uniform on (-π/2, π/2): the midpoint rule converges.
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000 - 0.5
    x = x0 + g0 * torch.tan(math.pi * u)
    log_ratio = torch.log(g0 / (g0**2 + (x - x0) ** 2)) - torch.log(g1 / (g1**2 + (x - x1) ** 2))
    args = [torch.tensor(v, dtype=torch.float64) for v in (x0, g0, x1, g1)]
    assert kl_cauchy(*args).item() == pytest.approx(log_ratio.mean().item(), abs=2e-4)


@pytest.mark.parametrize(("kind", "kl"), [("gaussian", kl_gaussian), ("cauchy", kl_cauchy)])
@pytest.mark.parametrize("prior_mean", ["one", "sign"])
def test_kl_sums_over_layers_and_reduces_over_components(kind, kl, prior_mean):
    options = {"random_sign_init": 0.5, "prior_mean": prior_mean, "prior_std": 0.2}
    posterior = bella.rank1(convnet(), 3, kind, **options)
    expected = 0.0
    for layer in posterior.layers().values():
        for v in (layer.r, layer.s):
            center = v.mean.sign() if prior_mean == "sign" else 1.0
            expected += kl(v.mean, F.softplus(v.rho), center, 0.2).sum()
    assert posterior.kl().item() == pytest.approx(expected.item())
    averaged = bella.rank1(convnet(), 3, kind, kl_reduction="mean", **options)
    assert averaged.kl().item() == pytest.approx(expected.item() / 3)


def test_a_negative_start_costs_two_hundred_nats_unless_the_prior_knows_it():
    for prior_mean, cost in (("one", 200.0), ("sign", 0.0)):
        posterior = bella.rank1(
            nn.Sequential(nn.Linear(2, 2)), 1, random_sign_init=0.0, prior_mean=prior_mean
        )
        r = posterior.network[0].r
        r.rho.data.fill_(math.log(math.expm1(0.1)))
        assert r.kl().item() / 2 == pytest.approx(cost, abs=1e-9)


def test_draws_have_the_moments_of_their_distribution():
    for kind in ("gaussian", "cauchy"):
        posterior = bella.rank1(nn.Sequential(nn.Linear(3, 2)), 2, kind, random_sign_init=0.5)
        r = posterior.network[0].r
        with posterior.axis.run(Pass((0, 1), 200_000, is_open=True)), torch.no_grad():
            draws = r()
        scale = F.softplus(r.rho)
        center = draws.mean(1) if kind == "gaussian" else draws.median(1).values
        spread = (
            draws.std(1)
            if kind == "gaussian"
            else (draws.quantile(0.75, 1) - draws.quantile(0.25, 1)) / 2
        )
        assert torch.allclose(center, r.mean, atol=6 * 0.0316 / math.sqrt(200_000) * 1.6)
        assert torch.allclose(spread, scale, rtol=0.02)
        assert draws.abs().max() <= 10
        if kind == "cauchy":
            assert draws.abs().max() == 10  # its tails were clipped


def test_a_narrow_clipped_cauchy_varies_as_a_wide_gaussian():
    """Var = 2 γ L / π - (2 γ² / π) arctan(L / γ) + L² (2 / π) arctan(γ / L), clipped at L = 10."""
    scale, limit = math.sqrt(1e-3 / (1 - 1e-3)), 10.0
    inside = 2 / math.pi * (scale * limit - scale**2 * math.atan(limit / scale))
    variance = inside + limit**2 * 2 / math.pi * math.atan(scale / limit)
    assert math.sqrt(variance) == pytest.approx(0.634, abs=1e-3)  # of Gaussian ones at p = .3: .655
    draws = scale * torch.tan(math.pi * (torch.rand(4_000_000, dtype=torch.double) - 0.5))
    assert draws.clamp(-limit, limit).std().item() == pytest.approx(math.sqrt(variance), rel=0.03)


def test_start_of_means_and_scales():
    start = Start(2, 0.75, 1e-3, seed=0)
    mean, rho = start.mean(20_000), start.rhos(20_000)
    assert set(mean.unique().tolist()) == {-1.0, 1.0}
    assert (mean == 1).double().mean().item() == pytest.approx(0.75, abs=0.01)
    center = math.log(math.expm1(math.sqrt(1e-3 / (1 - 1e-3))))
    assert rho.mean().item() == pytest.approx(center, abs=2e-3)
    assert (rho - center).abs().max() <= 0.2
    assert F.softplus(torch.tensor(center)).item() == pytest.approx(0.0316, abs=1e-4)
    normal = Start(2, -0.5, 1e-3, seed=0).mean(20_000)
    assert normal.mean().item() == pytest.approx(1, abs=0.02)
    assert normal.std().item() == pytest.approx(0.5, abs=0.01)


def test_a_component_starts_the_same_whatever_their_number():
    few, many = bella.rank1(convnet(), 2, seed=3), bella.rank1(convnet(), 5, seed=3)
    for name, layer in few.layers().items():
        assert torch.equal(layer.r.mean, many.layers()[name].r.mean[:2])
        assert torch.equal(layer.s.rho, many.layers()[name].s.rho[:2])


# ---------------------------------------------------------------- counts


def count(module):
    return sum(p.numel() for p in module.parameters())


def factor_sizes(posterior):
    return sum(
        sum(layer.sizes()) for layer in posterior.layers().values() if isinstance(layer, Rank1Layer)
    )


def test_wide_resnet_28_10_has_the_published_counts():
    with torch.device("meta"):
        network = WideResNet(28, 10)
    assert count(network) == 36_479_194
    posterior = bella.rank1(network, 4)
    biases = 3 * 10  # of the components beyond the first
    assert count(posterior) == 36_479_194 + 4 * 2 * 19_581 + biases == 36_635_872
    assert factor_sizes(posterior) == 19_581


def test_resnet50_has_the_published_counts():
    from transformers import ResNetConfig, ResNetForImageClassification

    with torch.device("meta"):
        network = ResNetForImageClassification(ResNetConfig(num_labels=1000))
    plain = count(network)
    assert plain == 25_557_032
    posterior = bella.rank1(network, 4)
    assert factor_sizes(posterior) == 52_139
    assert round(100 * 2 * factor_sizes(posterior) / plain, 2) == 0.41
    assert round(count(posterior) / 1e6, 1) == 26.0


def test_wide_resnet_computes_logits_and_refuses_other_depths():
    logits = WideResNet(10, 1, classes=7)(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 7)
    with pytest.raises(BellaError, match="6 k"):
        WideResNet(18, 1)


# ---------------------------------------------------------------- files and bad input


@pytest.mark.parametrize("batch_norm", ["shared", "component"])
def test_save_and_load_bring_back_shared_weights_too(tmp_path, batch_norm):
    options = {"prior_mean": "sign", "batch_norm": batch_norm, "random_sign_init": 0.5}
    posterior = bella.rank1(convnet(), 3, **options)
    optimizer = torch.optim.SGD(posterior.parameters(), lr=0.1)
    posterior(torch.randn(4, 3, 8, 8)).square().mean().backward()
    optimizer.step()
    posterior.save(tmp_path)
    loaded = bella.load(tmp_path, convnet())
    x = torch.randn(4, 3, 8, 8)
    torch.manual_seed(1)
    expected = posterior.eval()(x)
    torch.manual_seed(1)
    assert torch.equal(loaded.eval()(x), expected)
    assert torch.equal(loaded.kl(), posterior.kl())
    assert json.loads((tmp_path / "posterior.json").read_text())["settings"]["components"] == 3


def test_load_refuses_another_architecture(tmp_path):
    bella.rank1(convnet(), 2).save(tmp_path)
    with pytest.raises(BellaError, match="another network"):
        bella.load(tmp_path, nn.Sequential(nn.Linear(3, 2)))


def test_tied_weights_are_left_shared_and_saved_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside, self.fc = nn.Embedding(6, 4), nn.Linear(4, 4)
            self.out = nn.Linear(4, 6, bias=False)
            self.out.weight = self.inside.weight

        def forward(self, x):
            return self.out(self.fc(self.inside(x)))

    posterior = bella.rank1(Tied(), 2, **POINTS)
    assert list(posterior.layers()) == ["fc"]
    x = torch.arange(6).reshape(3, 2)
    expected = posterior(x)
    posterior.save(tmp_path)
    assert torch.equal(bella.load(tmp_path, Tied())(x), expected)


class Standardised(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight / self.weight.std(), self.bias)


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (convnet, {"components": 0}, "at least 1"),
        (convnet, {"posterior": "laplace"}, "posterior='laplace' is unknown"),
        (convnet, {"batch_norm": "none"}, "batch_norm='none' is unknown"),
        (convnet, {"prior_mean": "zero"}, "prior_mean='zero' is unknown"),
        (convnet, {"kl_reduction": "max"}, "kl_reduction='max' is unknown"),
        (convnet, {"random_sign_init": 1.5}, "at most 1"),
        (convnet, {"dropout_rate": 1.0}, "between 0 and 1"),
        (convnet, {"prior_std": 0.0}, "positive"),
        (convnet, {"target_modules": "missing"}, "names no module"),
        (convnet, {"target_modules": "1"}, "a BatchNorm2d"),
        (lambda: nn.Sequential(nn.ReLU()), {}, "Nothing to convert"),
        (lambda: nn.Linear(2, 2), {}, "single layer"),
        (
            lambda: nn.Sequential(Standardised(3, 4, 3)),
            {"target_modules": "0"},
            "transforms its weight",
        ),
    ],
)
def test_bad_input_gets_one_sentence(network, options, message):
    network = network()
    before = str(network)
    with pytest.raises(BellaError, match=message) as error:
        bella.rank1(network, **options)
    assert "\n" not in str(error.value)
    assert str(network) == before
