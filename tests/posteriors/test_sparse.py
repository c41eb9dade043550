"""Sparse subspace VI, against dense mean-field layers, quadrature, and autograd's own gradients."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy.integrate import quad
from torch import nn
from torch.distributions import Normal, kl_divergence

import bella
from bella.errors import BellaError
from bella.models.resnet import resnet18, small_resnet
from bella.particles.axis import ParticleAxis
from bella.posteriors.sparse import active, criteria
from bella.posteriors.sparse.active import compressed, decode, encode, gather, rows_of, scatter
from bella.posteriors.sparse.flops import flops
from bella.posteriors.sparse.layers import VARIANCE_FLOOR, SparseConv2d, SparseLinear
from bella.posteriors.sparse.topology import Topology
from bella.storage import TENSORS


@pytest.fixture(autouse=True)
def _double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


def mlp(inputs=20, hidden=30, outputs=4):
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
        nn.Linear(hidden, outputs),
    )  # fmt: skip


def convnet():
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, stride=2, padding="valid", groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


LAYERS = {
    "linear, compressed rows": (lambda: nn.Linear(40, 30), (5, 40), 0.08),
    "linear, dense rows": (lambda: nn.Linear(20, 30, bias=False), (5, 3, 20), 0.4),
    "linear, all active": (lambda: nn.Linear(6, 5), (5, 6), 1.0),
    "convolution": (lambda: nn.Conv2d(4, 6, 3, 2, 1, 1, 2), (3, 4, 9, 8), 0.3),
    "same padding": (lambda: nn.Conv2d(3, 4, 3, padding="same", dilation=2), (2, 3, 7, 7), 0.2),
    "reflected": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (2, 3, 7, 7), 0.2),
}


def layer_of(make, density):
    """A layer with spread-out means and scales, and its dense mean and variance."""
    base = make()
    kind = SparseLinear if isinstance(base, nn.Linear) else SparseConv2d
    layer = kind("layer", ParticleAxis(1), base, density, 0.1)
    layer.start(base.weight, "random", 0.5, (0.3, 0.2), torch.Generator().manual_seed(0))
    return base, layer


def dense_outputs(base, layer, x, mean, rho, noise):
    """The masked dense mean-field layer, by autograd alone."""

    def run(x, weight):
        plain = torch.func.functional_call(base, {"weight": weight}, (x,))
        if base.bias is None:
            return plain
        return plain - base.bias.view(-1, *[1] * (2 if isinstance(base, nn.Conv2d) else 0))

    spread = run(x.square(), scatter(F.softplus(rho).square(), layer.index, layer.shape))
    y = run(x, scatter(mean, layer.index, layer.shape))
    y = y + (spread + VARIANCE_FLOOR).sqrt() * noise
    if base.bias is None:
        return y
    return y + base.bias.view(-1, *[1] * (2 if isinstance(base, nn.Conv2d) else 0))


# ---------------------------------------------------------------- the layers


@pytest.mark.parametrize("case", LAYERS)
def test_outputs_and_gradients_are_those_of_the_dense_masked_layer(case):
    make, shape, density = LAYERS[case]
    base, layer = layer_of(make, density)
    rows = getattr(layer.product(torch.float64), "rows", None)
    assert (rows is not None) == ("compressed" in case)
    x = torch.randn(shape, requires_grad=True)
    torch.manual_seed(7)
    ours = layer(x)
    torch.manual_seed(7)
    noise = torch.randn(ours.shape)
    mean, rho = (p.detach()[0].clone().requires_grad_() for p in (layer.mean, layer.rho))
    dense = dense_outputs(base, layer, x, mean, rho, noise)
    torch.testing.assert_close(ours, dense)
    weights = torch.randn_like(ours)
    leaves = [layer.mean, layer.rho, x] + ([layer.bias] if layer.bias is not None else [])
    others = [mean, rho, x] + ([base.bias] if base.bias is not None else [])
    got = torch.autograd.grad((ours * weights).sum(), leaves)
    wanted = torch.autograd.grad((dense * weights).sum(), others)
    for one, two in zip(got, wanted, strict=True):
        torch.testing.assert_close(one.reshape(two.shape), two)


def test_outputs_have_the_mean_and_variance_of_sampled_dense_weights():
    base, layer = layer_of(lambda: nn.Linear(12, 4), 0.4)
    x = torch.randn(3, 12)
    with torch.no_grad():
        ours = torch.stack([layer(x) for _ in range(20_000)])
        mean, std = (scatter(v[0], layer.index, layer.shape) for v in (layer.mean, layer.std))
        weights = mean + std * torch.randn(20_000, *layer.shape)
        sampled = torch.einsum("soi,bi->sbo", weights, x) + base.bias
    scale = sampled.std(0).mean()
    torch.testing.assert_close(ours.mean(0), sampled.mean(0), atol=0.05 * float(scale), rtol=0)
    torch.testing.assert_close(ours.var(0), sampled.var(0), rtol=0.06, atol=1e-3)


def test_divergence_is_torchs_over_the_active_set():
    posterior = bella.sparse_subspace(mlp(), density=0.3, prior_std=0.02)
    wanted = sum(
        kl_divergence(Normal(layer.mean, layer.std), Normal(0.0, 0.02)).sum()
        for layer in posterior.sparse_layers.values()
    )
    torch.testing.assert_close(posterior.kl(), wanted)


@pytest.mark.parametrize("case", LAYERS)
def test_without_draws_the_outputs_and_their_gradient_are_the_merged_layers(case):
    make, shape, density = LAYERS[case]
    _, layer = layer_of(make, density)
    layer.eval().drawing = False
    plain = layer.merged(0)
    x = torch.randn(shape, requires_grad=True)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), plain(x))
    ours, theirs = (torch.autograd.grad(f(x).square().sum(), x)[0] for f in (layer, plain))
    torch.testing.assert_close(ours, theirs)
    assert int((plain.weight != 0).sum()) == layer.mean.numel()


def test_half_precision_keeps_small_variances():
    _, layer = layer_of(lambda: nn.Linear(8, 8), 0.5)
    layer.float()
    layer.mean.data.zero_()
    layer.rho.data.fill_(-7.4)  # a standard deviation of 6e-4: its square is 0 in float16
    x = torch.ones(2_000, 8)
    with torch.autocast("cpu", dtype=torch.float16):
        y = (layer(x) - layer.bias).detach()
    wanted = math.sqrt(4 * math.log1p(math.exp(-7.4)) ** 2 + VARIANCE_FLOOR)
    assert float(y.float().square().mean().sqrt()) == pytest.approx(wanted, rel=0.5)


# ---------------------------------------------------------------- active sets


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 4_000).flatmap(
        lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1))
    )
)
def test_an_index_survives_its_bytes(case):
    numel, chosen = case
    index = torch.tensor(sorted(chosen), dtype=torch.int32)
    code = encode(index, numel)
    assert torch.equal(decode(code, numel), index)
    assert len(code) <= 1 + -(-numel // 8)


@pytest.mark.parametrize("gap", [254, 255, 256, 509, 510, 511])
def test_gaps_about_a_byte_survive(gap):
    index = torch.tensor([gap, gap + 1, 2 * gap + 1], dtype=torch.int32)
    assert torch.equal(decode(encode(index, 100_000), 100_000), index)
    assert len(encode(index, 100_000)) < 16


def test_compressed_rows_are_the_dense_weight():
    index = torch.randperm(60)[:17].sort().values.int()
    values = torch.randn(17)
    shape = torch.Size((6, 10))
    dense = scatter(values, index, shape)
    assert torch.equal(compressed(values, rows_of(index, shape), shape).to_dense(), dense)
    assert torch.equal(gather(dense, index), values)


@pytest.mark.parametrize("count", [1, 7, 40, 1_000])
def test_the_largest_inactive_values_are_found_piece_by_piece(count, monkeypatch):
    monkeypatch.setattr(active, "PIECE", 16)
    values = torch.randn(101)
    index = torch.randperm(101)[:30].sort().values.int()
    sizes = values.abs()
    sizes[index] = -1
    wanted = sizes.topk(min(count, 71)).indices
    assert set(active.largest_inactive(values, index, count).tolist()) == set(wanted.tolist())


# ---------------------------------------------------------------- criteria


def moments(function, mean, std):
    """E and standard deviation of a function of θ ~ N(mean, std²), by quadrature."""

    def integrate(f):
        density = lambda z: math.exp(-z * z / 2) / math.sqrt(2 * math.pi)  # noqa: E731
        kink = -mean / std
        places = sorted({-12.0, min(12.0, max(-12.0, kink)), 12.0})
        return sum(
            quad(lambda z: f(mean + std * z) * density(z), a, b, epsabs=0, epsrel=1e-12)[0]
            for a, b in itertools.pairwise(places)
        )

    first = integrate(function)
    return first, math.sqrt(integrate(lambda t: (function(t) - first) ** 2))


RATIOS = [0.0, 0.3, 1.0, 2.0, 4.0, 5.9, 6.1, 10.0, 50.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", RATIOS)
def test_criteria_are_those_of_quadrature(ratio, dtype):
    std, exponent = 0.02, 30.0
    mean = -ratio * std
    args = torch.tensor([mean], dtype=dtype), torch.tensor([std], dtype=dtype)
    e_abs, s_abs = moments(abs, mean, std)
    e_exp, s_exp = moments(lambda t: math.exp(exponent * abs(t)), mean, std)
    # float32 arguments are themselves off by 6e-8, and 1 + r² - m² loses r² of that.
    close = 2e-5 if dtype == torch.float32 else 1e-8
    for got, wanted in (
        (criteria.mean_abs(*args), e_abs),
        (criteria.snr_abs(*args), e_abs / s_abs),
        (criteria.mean_exp_abs(*args, exponent), e_exp),
        (criteria.snr_exp_abs(*args, exponent), e_exp / s_exp),
    ):
        assert float(got) == pytest.approx(wanted, rel=close)


def test_the_most_certain_weights_are_worth_most_where_the_plain_formula_fails():
    ratios = torch.linspace(0.1, 2_000, 4_000, dtype=torch.float32)
    std = torch.full_like(ratios, 1e-3)
    mean = ratios * std
    sound = criteria.snr_abs(mean, std)
    assert torch.all(sound.diff() > 0)
    m = criteria.mean_abs(mean, std)
    plain = m / (mean.square() + std.square() - m.square()).sqrt()
    assert not torch.all(plain.diff() > 0)


@pytest.mark.parametrize("name", criteria.CRITERIA)
def test_criteria_rise_with_the_mean_and_only_the_last_falls(name):
    mean = torch.linspace(0, 0.06, 50)
    for exponent in (1.0, 30.0, 100.0):
        worth = criteria.by_name(name, exponent)(mean, torch.full_like(mean, 0.02))
        assert torch.all(worth.diff() < 0 if name == "snr_exp_abs" else worth.diff() > 0)


# ---------------------------------------------------------------- the set moves


OPTIMISERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.01),
    "adam with amsgrad": lambda groups: torch.optim.Adam(groups, lr=0.01, amsgrad=True),
}


def trained(network, optimiser="sgd", density=0.1, interval=5, steps=4, **options):
    """A posterior after some steps, with its gradients of one step more."""
    posterior = bella.sparse_subspace(network, density=density, mean_std=0.3, **options)
    topology = Topology(posterior, steps=100, interval=interval)
    optimizer = OPTIMISERS[optimiser](posterior.parameter_groups(0.0))
    topology.follow(optimizer)
    x = torch.randn(16, 2, 9, 9) if "SparseConv2d" in str(network) else torch.randn(16, 20)
    y = torch.randint(0, 3, (16,))
    for step in range(steps + 1):
        optimizer.zero_grad()
        loss = F.cross_entropy(posterior(x)[0], y) + 1e-4 * posterior.kl()
        loss.backward()
        if step < steps and not topology.step():
            optimizer.step()
    return posterior, topology, optimizer


def listen(topology):
    """Note dense gradients in the next backward pass, as before a step that is due."""
    for layer in topology.layers:
        layer.scouts = max(1, int(topology.fraction * layer.mean.numel()))


def states(optimizer, layer):
    return {
        (name, key): value.clone()
        for name in ("mean", "rho")
        for key, value in optimizer.state[getattr(layer, name)].items()
        if value.shape == getattr(layer, name).shape
    }


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_what_stays_keeps_everything_to_the_bit_and_what_comes_starts_anew(optimiser):
    posterior, topology, optimizer = trained(mlp(), optimiser)
    listen(topology)
    optimizer.zero_grad()
    F.cross_entropy(posterior(torch.randn(16, 20))[0], torch.randint(0, 3, (16,))).backward()
    layer = posterior.sparse_layers["2"]
    before = layer.index.clone(), layer.mean.detach().clone(), layer.rho.detach().clone()
    kept_state = states(optimizer, layer)
    assert len(kept_state) == {"sgd": 2, "adamw": 4, "adam with amsgrad": 6}[optimiser]
    topology.change(layer, 20)

    assert layer.index.shape == before[0].shape
    assert torch.all(layer.index.diff() > 0)
    stays = torch.isin(layer.index, before[0])
    came_from = torch.isin(before[0], layer.index)
    assert 0 < int((~stays).sum()) <= 20
    assert torch.equal(layer.mean[0, stays], before[1][0, came_from])
    assert torch.equal(layer.rho[0, stays], before[2][0, came_from])
    assert torch.all(layer.mean[0, ~stays] == 0)
    assert len(layer.rho[0, ~stays].unique()) == 1
    for key, value in states(optimizer, layer).items():
        assert torch.equal(value[0, stays], kept_state[key][0, came_from])
        assert torch.all(value[0, ~stays] == 0)
        assert torch.any(value[0, stays] != 0)


@pytest.mark.parametrize("make", [mlp, convnet])
def test_what_comes_has_autograds_largest_gradients(make):
    posterior = bella.sparse_subspace(make(), density=0.2, dense_modules=())
    topology = Topology(posterior, steps=100)
    optimizer = torch.optim.SGD(posterior.parameter_groups(0.0), lr=0.1)
    topology.follow(optimizer)
    listen(topology)
    x = torch.randn(16, 2, 9, 9) if make is convnet else torch.randn(16, 20)
    y = torch.randint(0, 3, (16,))
    twin = copy.deepcopy(posterior)
    torch.manual_seed(3)
    (F.cross_entropy(posterior(x)[0], y) + 1e-3 * posterior.kl()).backward()
    for name, layer in posterior.sparse_layers.items():
        # The same network with every weight of this layer active; those beyond the set are 0.
        whole = copy.deepcopy(twin)
        other = whole.sparse_layers[name]
        dense_mean = scatter(other.mean[0].detach(), other.index, other.shape).requires_grad_()
        dense_variance = scatter(other.std[0].detach().square(), other.index, other.shape)

        def forward(x, other=other, mean=dense_mean, variance=dense_variance):
            product, rows = other.product(torch.float32), other.rows(x)
            center = product.apply(rows, mean)
            spread = product.apply(rows.square(), variance)
            noise = torch.randn_like(center)
            return other.outputs(center + (spread + VARIANCE_FLOOR).sqrt() * noise, x)

        other.forward = forward
        torch.manual_seed(3)
        (F.cross_entropy(whole(x)[0], y)).backward()
        gradient = dense_mean.grad.reshape(-1)
        torch.testing.assert_close(gradient[layer.found.positions], layer.found.gradients)

        old = layer.index.clone().long()
        count = max(1, len(old) // 5)
        worth = criteria.snr_abs(layer.mean[0], layer.std[0])
        leaving = old[worth.argsort()[:count]]
        ranked = gradient.abs().clone()
        ranked[old[worth.argsort()[count:]]] = -1
        wanted = set(old.tolist()) - set(leaving.tolist())
        wanted |= set(ranked.topk(count).indices.tolist())
        topology.change(layer, count)
        assert set(layer.index.tolist()) == wanted
    assert optimizer.state is not None


def test_a_weight_that_leaves_and_comes_at_once_has_never_left():
    posterior, topology, optimizer = trained(mlp(), "adamw")
    listen(topology)
    optimizer.zero_grad()
    F.cross_entropy(posterior(torch.randn(16, 20))[0], torch.randint(0, 3, (16,))).backward()
    layer = posterior.sparse_layers["2"]
    before = states(optimizer, layer) | {"mean": layer.mean.detach().clone()}
    worst = criteria.snr_abs(layer.mean[0], layer.std[0]).argmin()
    layer.found.active[worst] = 1e9
    old = layer.index.clone()
    topology.change(layer, 1)
    assert torch.equal(layer.index, old)
    after = states(optimizer, layer) | {"mean": layer.mean.detach()}
    assert all(torch.equal(after[key], before[key]) for key in before)


@settings(deadline=None, max_examples=10)
@given(st.sampled_from(list(criteria.CRITERIA)), st.sampled_from([0.02, 0.1, 0.5, 0.97, 1.0]))
def test_the_number_of_active_weights_never_changes(criterion, density):
    torch.manual_seed(0)
    posterior = bella.sparse_subspace(convnet(), density=density, criterion=criterion)
    topology = Topology(posterior, steps=40, interval=3)
    optimizer = torch.optim.SGD(posterior.parameter_groups(5e-4), 0.1, 0.9)
    topology.follow(optimizer)
    counts = {k: layer.mean.numel() for k, layer in posterior.sparse_layers.items()}
    first = {k: layer.index.clone() for k, layer in posterior.sparse_layers.items()
             if layer.index is not None}  # fmt: skip
    x, y = torch.randn(8, 2, 9, 9), torch.randint(0, 3, (8,))
    changed = []
    for step in range(12):
        optimizer.zero_grad()
        (F.cross_entropy(posterior(x)[0], y) + 1e-4 * posterior.kl()).backward()
        if topology.step():
            changed.append(step)
        else:
            optimizer.step()
        for name, layer in posterior.sparse_layers.items():
            assert layer.mean.numel() == layer.rho.numel() == counts[name]
            if layer.index is not None:
                assert len(layer.index.unique()) == counts[name]
                assert 0 <= int(layer.index.min()) <= int(layer.index.max()) < layer.shape.numel()
    assert changed == ([3, 6, 9] if density < 1 else [])
    if density == 0.5:
        assert any(not torch.equal(v, posterior.sparse_layers[k].index) for k, v in first.items())


def test_sets_move_less_and_less_and_then_stay():
    posterior = bella.sparse_subspace(mlp(), density=0.1)
    topology = Topology(posterior, steps=400, interval=100, fraction=0.3)
    assert [step for step in range(400) if topology.is_due(step)] == [100, 200]
    assert topology.moving(0) == pytest.approx(0.3)
    assert topology.moving(150) == pytest.approx(0.15)
    assert topology.moving(300) == pytest.approx(0, abs=1e-12)


def test_gradients_of_inactive_weights_are_noted_only_where_the_sets_change():
    posterior = bella.sparse_subspace(mlp(), density=0.1)
    topology = Topology(posterior, steps=100, interval=4)
    topology.follow(torch.optim.SGD(posterior.parameter_groups(0.0), lr=0.1))
    noted = []
    for _ in range(9):
        posterior(torch.randn(4, 20)).sum().backward()
        layers = posterior.sparse_layers.values()
        noted.append(any(layer.found is not None for layer in layers))
        topology.step()
        assert all(layer.found is None for layer in layers)
    assert [step for step, seen in enumerate(noted) if seen] == [4, 8]


# ---------------------------------------------------------------- what it costs


def bytes_of(density, steps=6):
    """Bytes of values, positions, gradients and momentum of the sparse weights."""
    torch.set_default_dtype(torch.float32)
    network = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 64))
    posterior = bella.sparse_subspace(network, density=density)
    topology = Topology(posterior, steps=100, interval=3)
    optimizer = torch.optim.AdamW(posterior.parameter_groups(0.0), lr=0.01)
    topology.follow(optimizer)
    x = torch.randn(8, 256)
    for _ in range(steps):
        optimizer.zero_grad()
        posterior(x).square().mean().backward()
        if not topology.step():
            optimizer.step()
    total = 0
    for layer in posterior.sparse_layers.values():
        held = [layer.mean, layer.rho, layer.mean.grad, layer.rho.grad]
        held += [] if layer.index is None else [layer.index]
        held += [] if layer._rows is None else [*layer._rows[2]]
        for parameter in (layer.mean, layer.rho):
            held += [v for v in optimizer.state[parameter].values() if v.dim()]
        total += sum(x.numel() * x.element_size() for x in held)
    return total


def test_memory_of_training_shrinks_with_the_density():
    dense, tenth, twentieth = bytes_of(1.0), bytes_of(0.1), bytes_of(0.05)
    assert tenth < 0.15 * dense  # positions and compressed rows included: 40 bytes for 32
    assert twentieth < 0.075 * dense


def test_no_dense_tensor_outlives_its_layers_pass():
    sizes = []

    def pack(x):
        sizes.append(x.numel())
        return x

    posterior = bella.sparse_subspace(convnet(), density=0.05, dense_modules=())
    x = torch.randn(2, 2, 9, 9)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        posterior(x).sum().backward()
    numels = {layer.shape.numel() for layer in posterior.sparse_layers.values()}
    assert sizes
    assert not numels & set(sizes)


def file_size(folder, density, dtype=None):
    torch.set_default_dtype(torch.float32)
    network = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512))
    posterior = bella.sparse_subspace(network, density=density)
    return (posterior.save(folder, dtype=dtype) / TENSORS).stat().st_size


def test_files_shrink_with_the_density(tmp_path):
    dense = file_size(tmp_path / "1", 1.0)
    # 8 bytes of values and about one of position for each active weight.
    assert dense / file_size(tmp_path / "2", 0.1) > 8.7
    assert dense / file_size(tmp_path / "3", 0.05) > 17
    assert dense / file_size(tmp_path / "4", 0.1, torch.bfloat16) > 15


def test_operations_are_those_of_the_formula():
    posterior = bella.sparse_subspace(convnet(), density=0.1)
    figures = flops(posterior, torch.randn(4, 2, 9, 9), interval=100)
    dense = 2 * (8 * 2 * 9 * 81 + 6 * 4 * 9 * 16 + 18)
    sparse = 2 * (8 * 2 * 9 * 81 + 22 * 16 + 2)
    assert figures["forward_dense"] == dense
    assert figures["forward_sparse"] == sparse
    assert figures["train"] == pytest.approx(2 * (302 * sparse + dense) / 101)
    assert figures["train_dense_vi"] == 6 * dense
    assert flops(posterior, input=torch.randn(1, 2, 9, 9)) == figures  # by name, of one example
    full = flops(bella.sparse_subspace(mlp(), density=1.0), torch.randn(4, 20))
    assert full["train"] == full["train_dense_vi"]
    assert full["train_ratio"] == 1


def test_a_tenth_of_resnet18_trains_with_a_tenth_of_the_operations():
    torch.set_default_dtype(torch.float32)
    network = resnet18()
    assert sum(p.numel() for p in network.parameters()) == 11_173_962
    figures = flops(bella.sparse_subspace(network, density=0.1), torch.randn(1, 3, 32, 32))
    assert 9 < figures["train_ratio"] < 10


# ---------------------------------------------------------------- the posterior


@pytest.mark.parametrize("density", [0.1, 0.6, 1.0])
def test_a_saved_posterior_comes_back_to_the_bit(tmp_path, density):
    posterior = trained(convnet(), density=density, interval=2)[0].eval()
    posterior.save(tmp_path)
    again = bella.load(tmp_path, convnet()).eval()
    x = torch.randn(3, 2, 9, 9)
    for call in (lambda p: p(x), lambda p: p.soup()(x)):
        torch.manual_seed(1)
        one = call(posterior)
        torch.manual_seed(1)
        assert torch.equal(one, call(again))
    if density < 1:
        assert load_file(tmp_path / TENSORS)["3.index"].dtype == torch.uint8


def test_a_file_of_another_network_is_refused(tmp_path):
    bella.sparse_subspace(mlp()).save(tmp_path)
    with pytest.raises(BellaError, match="another network"):
        bella.load(tmp_path, mlp(hidden=31))


def test_calls_draw_except_at_the_mean():
    posterior = bella.sparse_subspace(mlp(), density=0.3, scale=(0.1, 0.05)).eval()
    x = torch.randn(5, 20)
    assert posterior(x).shape == (1, 5, 4)
    assert not torch.equal(posterior(x), posterior(x))
    assert bella.predict(posterior, x, draws=6).particle_probs.shape[0] == 6
    with posterior.at_mean():
        torch.testing.assert_close(posterior(x)[0], posterior.particle(0)(x))
        assert not posterior.stochastic
    assert posterior.stochastic


def test_a_start_from_the_network_keeps_its_largest_weights():
    network = mlp()
    weight = network[2].weight.detach().clone()
    posterior = bella.sparse_subspace(network, density=0.2, start="network")
    ours = posterior.soup()[2].weight
    kept = ours != 0
    assert torch.equal(ours[kept], weight[kept])
    assert weight[kept].abs().min() >= weight[~kept].abs().max()


def test_starts_follow_the_seed():
    a, b, c = (bella.sparse_subspace(mlp(), seed=seed).sparse_layers["2"] for seed in (1, 1, 2))
    assert torch.equal(a.index, b.index)
    assert torch.equal(a.mean, b.mean)
    assert not torch.equal(a.index, c.index)


def test_the_first_convolution_is_dense_and_norms_train():
    posterior = bella.sparse_subspace(convnet(), density=0.1)
    layers = posterior.sparse_layers
    assert [layers[k].density for k in ("0", "3")] == [1.0, pytest.approx(0.1, abs=0.01)]
    norm = posterior.network[1]
    before = norm.running_mean.clone()
    posterior.train()
    posterior(torch.randn(4, 2, 9, 9)).square().sum().backward()
    assert not torch.equal(norm.running_mean, before)
    assert norm.weight.grad is not None
    groups = posterior.parameter_groups(0.1)
    assert {len(groups[1]["params"]), groups[1]["weight_decay"]} == {3, 0.0}


def fitted(stop=None, **options):
    """A posterior trained by `bella.fit`, perhaps broken off; its first active set; the record."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    x = torch.randn(60, 20)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    posterior = bella.sparse_subspace(mlp(), density=0.3, start="network", prior_std=0.3)
    first = posterior.sparse_layers["2"].index.clone()
    topology = Topology(posterior, steps=60, interval=4)
    original = topology.step

    def step(learning_rate=None):
        if topology.steps == stop:
            raise KeyboardInterrupt
        return original(learning_rate)

    topology.step = step
    record = bella.fit(
        posterior, (x, y), epochs=15, batch_size=15, weight_decay=5e-4, movers=[topology],
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
        transport="ensemble", clip=None, warmup=0.0, kl_weight=0.01, kl_warmup=7, progress=False,
        **options,
    )  # fmt: skip
    return posterior, first, record


def test_fit_hosts_it_whole():
    posterior, first, record = fitted()
    assert record.history[-1]["loss"] < 0.8 * record.history[0]["loss"]
    last = posterior.sparse_layers["2"].index
    assert len(first) == len(last)
    assert not torch.equal(first, last)


def test_a_run_that_was_broken_off_goes_on_to_the_same_bits(tmp_path):
    whole, _, _ = fitted()
    with pytest.raises(KeyboardInterrupt):
        fitted(stop=34, folder=tmp_path)  # the eighth epoch's last checkpoint is at step 32, due
    resumed, _, _ = fitted(folder=tmp_path)
    wanted = whole.network.state_dict()
    for name, value in resumed.network.state_dict().items():
        assert torch.equal(value, wanted[name]), name


def test_small_networks_for_images_run():
    posterior = bella.sparse_subspace(small_resnet(), density=0.1)
    assert posterior(torch.randn(2, 1, 28, 28)).shape == (1, 2, 10)
    assert posterior.sparse_layers["conv"].density == 1


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, float("nan")])
def test_a_density_out_of_range_is_refused(density):
    with pytest.raises(BellaError, match="above 0 and at most 1"):
        bella.sparse_subspace(mlp(), density=density)


@pytest.mark.parametrize(
    ("network", "options", "sentence"),
    [
        (lambda: nn.Sequential(nn.ReLU()), {}, "Nothing to convert"),
        (lambda: nn.Linear(3, 3), {}, "wrap it in nn.Sequential"),
        (mlp, {"criterion": "snr_ab"}, "'snr_abs'"),
        (mlp, {"target_modules": "1"}, "a ReLU"),
        (mlp, {"start": "zero"}, "'random' or 'network'"),
        (mlp, {"prior_std": 0.0}, "prior_std=0.0"),
        (mlp, {"dense_modules": "9"}, "dense_modules='9' names no module"),
    ],
)
def test_bad_input_gets_one_sentence_and_leaves_the_network(network, options, sentence):
    network = network()
    before = str(network)
    with pytest.raises(BellaError, match=sentence):
        bella.sparse_subspace(network, **options)
    assert str(network) == before


def test_a_topology_says_what_it_misses():
    posterior = bella.sparse_subspace(mlp())
    with pytest.raises(BellaError, match="interval=0"):
        Topology(posterior, steps=10, interval=0)
    topology = Topology(posterior, steps=10, interval=1)
    posterior(torch.randn(3, 20)).sum().backward()
    topology.step()
    with pytest.raises(BellaError, match=r"topology\.follow"):
        topology.step()
    topology.follow(torch.optim.SGD(posterior.parameters(), lr=0.1))
    with pytest.raises(BellaError, match="no gradient"):
        topology.step()
