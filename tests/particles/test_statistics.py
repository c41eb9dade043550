"""What of a frozen base stays as it was, and what a user unfreezes."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import bella
from bella.sealed import read_sealed, write_sealed


class Centred(nn.Module):
    """A norm of the user's own, whose mean follows what it sees in training."""

    def __init__(self, persistent=True):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8), persistent=persistent)

    def forward(self, x):
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean((0, 2, 3)))
        return x - self.mean[:, None, None]


class Assigning(Centred):
    """The same by assignment, and with dropout of its own."""

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 2, 3))
        return nn.functional.dropout(x - self.mean[:, None, None], 0.1, self.training)


class Cached(nn.Module):
    """Makes a table anew when it is too small, in whatever mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.zeros(0), persistent=False)

    def forward(self, x):
        if len(self.table) < x.shape[-1]:
            self.table = torch.arange(float(x.shape[-1]))
        return x + 0.01 * self.table


KEEPERS = {
    "batch norm": lambda: nn.BatchNorm2d(8),
    "instance norm": lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    "own norm": Centred,
    "own norm, not in files": lambda: Centred(persistent=False),
    "by assignment": Assigning,
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Conv2d(8, 8, 1)),
    "older spectral norm": lambda: torch.nn.utils.spectral_norm(nn.Conv2d(8, 8, 1)),
    "inside a block": lambda: nn.Sequential(nn.Conv2d(8, 8, 1), nn.Sequential(Centred())),
    "a cache": Cached,
}


def network(kind):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        KEEPERS[kind](),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        KEEPERS[kind](),
        nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    ).eval()


def data():
    generator = torch.Generator().manual_seed(1)
    return 3 + 2 * torch.randn(16, 3, 8, 8, generator=generator), torch.arange(16) % 2


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("shared_prefix", [True, False])
@pytest.mark.parametrize("kind", KEEPERS)
def test_a_frozen_base_keeps_its_statistics_while_particles_train(kind, shared_prefix, tmp_path):
    base = network(kind)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    hidden = {name: value.clone() for name, value in base.named_buffers() if name not in before}
    posterior = bella.low_rank(
        base, 2, 2, ("3",), modules_to_save=("8",), shared_prefix=shared_prefix
    )
    bella.fit(posterior, data(), epochs=2, cache_prefix=False, progress=False)
    after = base.state_dict() | dict(base.named_buffers())
    for name, value in before.items():
        if name in after:
            assert torch.equal(after[name], value), name
    for name, value in hidden.items():
        assert kind == "a cache" or torch.equal(after[name], value), name
    posterior.save(tmp_path)
    again = bella.load(tmp_path, network(kind)).eval()
    torch.testing.assert_close(again(data()[0]), posterior.eval()(data()[0]))


def test_looking_for_statistics_uses_no_random_number_and_turns_nothing_off():
    posterior = bella.low_rank(network("by assignment"), 2, 2, ("3",)).train()
    dropout, norm = posterior.network[5], posterior.network[4]
    posterior.network[2].eval()  # somebody wants this
    x = data()[0]
    torch.manual_seed(5)
    first = posterior(x)
    assert dropout.training
    assert not norm.training
    assert not posterior.network[2].training
    torch.manual_seed(5)
    assert torch.equal(posterior(x), first)
    posterior.eval().train()
    assert not norm.training  # remembered
    assert not posterior.network[1].training


def test_modules_with_buffers_that_do_not_move_stay_in_training_mode():
    class Masked(nn.Module):
        """Dropout of its own beside a constant buffer, as attention has it."""

        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.ones(4))

        def forward(self, x):
            return nn.functional.dropout(x * self.mask, 0.5, self.training)

    posterior = bella.low_rank(nn.Sequential(nn.Linear(4, 4), Masked()), 2, 2, ("0",)).train()
    y = posterior(torch.randn(8, 4))
    assert posterior.network[1].training
    assert not torch.allclose(y[0], y[1])


class Counts(nn.Module):
    """Changes its buffer in every mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x


def test_what_never_stays_the_same_is_refused_by_name():
    posterior = bella.low_rank(nn.Sequential(nn.Linear(4, 4), Counts()), 2, 2, ("0",)).train()
    for _ in range(2):  # and not only once
        with pytest.raises(bella.BellaError, match="Module '1'"):
            posterior(torch.randn(3, 4))
    table = nn.Sequential(nn.Embedding(5, 4, max_norm=0.1), nn.Flatten(), nn.Linear(8, 2))
    posterior = bella.low_rank(table, 2, 2, ("2",)).train()
    with pytest.raises(bella.BellaError, match=r"'0\.weight' changes in every pass"):
        posterior(torch.tensor([[1, 2], [3, 4]]))


def test_statistics_of_heads_are_the_particles_own(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten())
    net.append(nn.Sequential(nn.BatchNorm1d(128), nn.Linear(128, 2)))
    torch.manual_seed(0)
    start = {name: value.clone() for name, value in net.state_dict().items()}
    posterior = bella.low_rank(net, 2, 2, ("2",), modules_to_save=("4",))
    bella.fit(posterior, data(), epochs=1, progress=False)
    moved = posterior.particle(0)[4][0].running_mean
    assert not torch.equal(moved, start["4.0.running_mean"])


# ---------------------------------------------------------------- what a user unfreezes


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.b, self.c = (
            nn.Linear(6, 16),
            nn.LayerNorm(16),
            nn.Linear(16, 16),
            nn.Linear(16, 2),
        )

    def forward(self, x):
        return self.c(torch.tanh(self.b(self.norm(torch.tanh(self.a(x))))))


def rows():
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] > 0).long()


def unfrozen(*names, **options):
    net = Net()
    posterior = bella.low_rank(net, 3, 2, ("b",), modules_to_save=("c",), b_std=0.1, **options)
    for name in names:
        net.get_submodule(name).requires_grad_(True)
    return posterior


TRAIN = {"epochs": 3, "learning_rate": 1e-2, "progress": False}


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("shared_prefix", [True, False])
def test_unfrozen_parameters_train_and_come_back(shared_prefix, chunk, tmp_path):
    posterior = unfrozen("norm", shared_prefix=shared_prefix)
    assert list(posterior.trained_outside()) == ["norm.weight", "norm.bias"]
    bella.fit(posterior, rows(), particles_per_pass=chunk, **TRAIN)
    norm = posterior.network.norm
    assert (norm.weight - 1).abs().max() > 1e-3
    posterior.save(tmp_path)
    again = bella.load(tmp_path, Net()).eval()
    torch.testing.assert_close(again(rows()[0]), posterior.eval()(rows()[0]))
    assert list(again.trained_outside()) == ["norm.weight", "norm.bias"]
    plain = posterior.particle(1)
    torch.testing.assert_close(plain(rows()[0]), posterior(rows()[0])[1])


@pytest.mark.parametrize("chunks", [[[0, 1, 2]], [[0], [1, 2]]])
def test_their_gradient_is_the_sum_over_particles(chunks):
    posterior = unfrozen("norm", "a").eval()
    x, y = rows()
    given, _ = posterior.begun(x)
    for chunk in chunks:
        with posterior.subset(chunk):
            bella.nll(posterior(*given), y).backward()
    for name, p in posterior.trained_outside().items():
        total = torch.zeros_like(p)
        for i in range(3):
            plain = posterior.particle(i).requires_grad_(True)
            nn.functional.cross_entropy(plain(x), y).backward()
            total += plain.get_parameter(name).grad
        torch.testing.assert_close(p.grad, total, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", ["linear", "pointwise", "3x3"])
@pytest.mark.parametrize("which", ["weight", "bias"])
def test_an_adapted_layers_own_weight_or_bias_may_train_too(kind, which, tmp_path):
    def build():
        torch.manual_seed(0)
        if kind == "linear":
            return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
        conv = nn.Conv2d(6, 8, 1 if kind == "pointwise" else 3, padding=int(kind == "3x3"))
        pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return nn.Sequential(conv, nn.Tanh(), *pooled, nn.Linear(8, 2))

    x, y = torch.randn(8, 6, *((4, 4) if kind != "linear" else ())), torch.arange(8) % 2
    posterior = bella.low_rank(build(), 3, 2, ("0",), b_std=0.3)
    getattr(posterior.layers()["0"].base, which).requires_grad_(True)
    bella.nll(posterior(x), y).backward()
    (name,) = posterior.trained_outside()
    total = torch.zeros_like(posterior.trained_outside()[name])
    for i in range(3):
        plain = posterior.particle(i).requires_grad_(True)
        nn.functional.cross_entropy(plain(x), y).backward()
        total += plain.get_parameter(f"0.{which}").grad
    grad = posterior.trained_outside()[name].grad
    torch.testing.assert_close(grad, total, rtol=1e-4, atol=1e-6)
    torch.optim.SGD(posterior.parameters(), lr=0.1).step()
    posterior.save(tmp_path)
    assert json.loads((tmp_path / "posterior.json").read_text())["unfrozen"] == [name]
    torch.testing.assert_close(bella.load(tmp_path, build())(x), posterior(x))


def test_what_trains_is_not_cached_away():
    with pytest.raises(bella.BellaError, match=r"norm\.weight.*cache_prefix=False"):
        bella.fit(unfrozen("norm"), rows(), cache_prefix=True, **TRAIN)
    posterior = unfrozen("norm")
    with pytest.raises(bella.BellaError, match=r"norm\.weight"):
        posterior.prefix(rows()[0])
    with torch.no_grad():  # for predicting it may be held
        stream = posterior.eval().prefix(rows()[0])
        torch.testing.assert_close(posterior(stream), posterior(rows()[0]))


def test_a_stopped_run_goes_on_with_what_was_unfrozen(tmp_path):
    class StopError(Exception):
        pass

    class Stop(bella.transport.Mover):
        def __init__(self, at):
            self.left = at

        def step(self, learning_rate=None):
            self.left -= 1
            if not self.left:
                raise StopError
            return False

        def state_dict(self):
            return {}

    options = TRAIN | {"batch_size": 32}
    whole, again = unfrozen("norm"), unfrozen("norm")
    bella.fit(whole, rows(), **options)
    with pytest.raises(StopError):
        bella.fit(unfrozen("norm"), rows(), folder=tmp_path, movers=[Stop(5)], **options)
    with pytest.raises(bella.BellaError, match="another posterior"):
        bella.fit(unfrozen(), rows(), folder=tmp_path, **options)
    bella.fit(again, rows(), folder=tmp_path, movers=[Stop(-1)], **options)
    assert torch.equal(again.network.norm.weight, whole.network.norm.weight)
    assert torch.equal(again.eval()(rows()[0]), whole.eval()(rows()[0]))


def test_the_best_epochs_unfrozen_parameters_are_kept():
    posterior = unfrozen("norm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        record = bella.fit(posterior, rows(), validation=rows(), **(TRAIN | {"learning_rate": 1.0}))
    x, y = rows()
    best = min(epoch["validation_nll"] for epoch in record.history)
    assert float(bella.predict(posterior, x).nll(y)) == pytest.approx(best, rel=1e-4)


def test_a_file_that_names_an_unknown_parameter_is_refused(tmp_path):
    unfrozen("norm").save(tmp_path)
    record, tensors = read_sealed(tmp_path / "posterior.safetensors")
    record = {key: value for key, value in record.items() if key not in ("sha256", "tensors")}
    write_sealed(tmp_path / "posterior.safetensors", tensors, record | {"unfrozen": ["norm.gain"]})
    (tmp_path / "posterior.json").unlink()
    net = Net()
    with pytest.raises(bella.BellaError, match=r"norm\.gain"):
        bella.load(tmp_path, net)
    assert net(rows()[0]).shape == (64, 2)
    assert all(p.requires_grad for p in net.parameters())
