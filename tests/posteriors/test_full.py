"""Full-parameter particles, against plain training and dense SVGD."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bella
from bella.errors import BellaError
from bella.transport import by_name


@pytest.fixture(autouse=True)
def _double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


def convnet():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
    )


def mlp():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def loss_of(outputs, y):
    return sum(F.cross_entropy(logits, y) for logits in outputs)


@pytest.mark.parametrize("transport", ["ensemble", "repulsive", "svgd", "function"])
def test_one_copy_is_plain_training(transport):
    network = convnet()
    plain = copy.deepcopy(network)
    posterior = bella.full(network, particles=1)
    move = by_name(transport, posterior, data_size=10)
    optimizers = [
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in (posterior, plain)
    ]
    for _ in range(5):
        x, y = torch.randn(8, 3, 6, 6), torch.randint(5, (8,))
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_of(posterior(x), y).backward()
        move.step()
        F.cross_entropy(plain(x), y).backward()
        for optimizer in optimizers:
            optimizer.step()
    trained = posterior.particle(0).state_dict()
    for name, value in plain.state_dict().items():
        assert torch.allclose(trained[name], value, atol=1e-6), name


def test_copies_have_parameters_and_batch_statistics_of_their_own():
    network = convnet()
    members = [copy.deepcopy(network) for _ in range(3)]
    posterior = bella.full(network, particles=3, start_std=0.3)
    for i, member in enumerate(members):
        member.load_state_dict(posterior.particle(i).state_dict())
    for chosen in ([0, 1, 2], [2, 0], [1]):
        x = torch.randn(8, 3, 6, 6)
        with posterior.subset(chosen):
            y = posterior(x)
        for row, i in enumerate(chosen):
            assert torch.allclose(y[row], members[i](x))
    for i, member in enumerate(members):
        merged = posterior.particle(i)
        assert torch.allclose(merged[1].running_var, member[1].running_var)
        assert merged[1].num_batches_tracked == 2
    assert not torch.equal(members[0][1].running_mean, members[1][1].running_mean)


def test_svgd_on_copies_is_dense_svgd():
    n, data_size = 4, 50
    posterior = bella.full(mlp(), particles=n, start_std=0.5)
    move = bella.transport.svgd(
        posterior, data_size=data_size, temperature=3.0, scope="global", normalize=False,
        prior="delta", prior_std=2.0,
    )  # fmt: skip
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    members = [posterior.particle(i).requires_grad_() for i in range(n)]
    loss_of(posterior(x), y).backward()
    move.step()

    scores = []
    for member in members:
        gradients = torch.autograd.grad(F.cross_entropy(member(x), y), list(member.parameters()))
        scores.append(torch.cat([g.flatten() for g in gradients]))
    theta = torch.stack([nn.utils.parameters_to_vector(m.parameters()).detach() for m in members])
    descent = torch.stack(scores) + theta / (4.0 * data_size)
    d2 = torch.cdist(theta, theta).square()
    pairs = d2[tuple(torch.triu_indices(n, n, 1))].sort().values
    h = (pairs[2] + pairs[3]) / 2
    k = torch.exp(-d2 / (2 * h))
    repulsion = torch.stack(
        [sum(k[i, j] / h * (theta[i] - theta[j]) for j in range(n)) for i in range(n)]
    )
    expected = (k @ descent - 3.0 / data_size * repulsion) / n
    got = torch.cat([p.grad.flatten(1) for p in posterior.parameters()], 1)
    assert torch.allclose(got, expected, atol=1e-10)


def test_only_chosen_parameters_are_copied():
    network = convnet()
    frozen = network[0].weight.clone()
    posterior = bella.full(network, particles=3, trainable=("4", "0.bias"))
    assert {name.rpartition(".")[2] for name in posterior.stacked_parameters()} == {
        "4/weight",
        "4/bias",
        "0/bias",
    }
    trained = [p for p in posterior.parameters() if p.requires_grad]
    assert sum(p[0].numel() for p in trained) == 64 * 5 + 5 + 4
    posterior.train()(torch.randn(8, 3, 6, 6)).square().sum().backward()
    torch.optim.SGD(trained, lr=0.1).step()
    merged = posterior.particle(1)
    assert torch.equal(merged[0].weight, frozen)
    assert torch.equal(merged[1].running_mean, torch.zeros(4))  # its batch norm is frozen
    assert not torch.equal(merged[4].weight, network[4].weight)


def test_soup_averages_weights():
    posterior = bella.full(convnet(), particles=3, start_std=0.2).eval()
    soup = posterior.soup()
    for name, value in soup.named_parameters():
        members = [posterior.particle(i).get_parameter(name) for i in range(3)]
        assert torch.allclose(value, torch.stack(members).mean(0))
    linear = bella.full(nn.Sequential(nn.Linear(4, 2)), particles=3, start_std=0.2)
    x = torch.randn(5, 4)
    assert torch.allclose(linear.soup()(x), linear(x).mean(0))


def test_a_single_layer_is_a_network_too():
    posterior = bella.full(nn.Linear(4, 2), particles=3, start_std=0.2)
    x = torch.randn(5, 4)
    expected = torch.stack([posterior.particle(i)(x) for i in range(3)])
    assert torch.allclose(posterior(x), expected)


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside, self.out = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
            self.out.weight = self.inside.weight

        def forward(self, x):
            return self.out(self.inside(x))

    posterior = bella.full(Tied(), particles=2, start_std=0.2)
    x = torch.arange(6).reshape(3, 2)
    merged = posterior.particle(1)
    assert merged.out.weight is merged.inside.weight
    assert torch.allclose(merged(x), posterior(x)[1])


def test_own_inputs_and_keyword_arguments():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x, *, factor):
            return {"logits": self.fc(x) * factor}

    posterior = bella.full(Scaled(), particles=2, start_std=0.2)
    x, factor = torch.randn(2, 5, 4), torch.randn(2, 5, 1)
    with posterior.own_inputs():
        y = posterior(x, factor=factor)["logits"]
    for i in range(2):
        assert torch.allclose(y[i], posterior.particle(i)(x[i], factor=factor[i])["logits"])


def test_reset_starts_every_copy_anew():
    network = mlp()
    start = network[0].weight.clone()
    posterior = bella.full(network, particles=3, reset="2", seed=4)
    first, head = (posterior.network.values[name] for name in ("0/weight", "2/weight"))
    assert all(torch.equal(value, start) for value in first)
    assert not torch.equal(head[0], head[1])
    again = bella.full(mlp(), particles=2, reset=".*", seed=4)
    assert not torch.equal(again.network.values["0/weight"][0], again.network.values["0/weight"][1])
    assert torch.equal(
        bella.full(mlp(), particles=5, reset="2", seed=4).network.values["2/weight"][:3], head
    )


@pytest.mark.parametrize("particles", [3, 1])
@pytest.mark.parametrize("trainable", [None, ["4"]])
def test_save_and_load(tmp_path, trainable, particles):
    network = convnet()
    fresh = copy.deepcopy(network)
    posterior = bella.full(network, particles, trainable=trainable, start_std=0.1)
    posterior.train()(torch.randn(8, 3, 6, 6))
    posterior.save(tmp_path)
    loaded = bella.load(tmp_path, fresh)
    x = torch.randn(8, 3, 6, 6)
    assert torch.equal(loaded.eval()(x), posterior.eval()(x))
    merged, last = loaded.particle(particles - 1), posterior.particle(particles - 1)
    assert torch.equal(merged[1].running_mean, last[1].running_mean)


def test_load_refuses_another_frozen_base(tmp_path):
    bella.full(convnet(), particles=2, trainable="4").save(tmp_path)
    with pytest.raises(BellaError, match="another network"):
        bella.load(tmp_path, convnet())


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (mlp, {"particles": 0}, "at least 1"),
        (mlp, {"trainable": "head"}, "names no parameter"),
        (mlp, {"trainable": ()}, "Nothing to train"),
        (mlp, {"reset": "1"}, "reset_parameters"),
        (mlp, {"reset": "0", "trainable": "2"}, "which is frozen"),
        (mlp, {"start_std": -1.0}, "at least 0"),
        (nn.ReLU, {}, "no parameters"),
    ],
)
def test_bad_input_gets_one_sentence(network, options, message):
    with pytest.raises(BellaError, match=message) as error:
        bella.full(network(), **options)
    assert "\n" not in str(error.value)
