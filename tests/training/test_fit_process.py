"""What `bella.fit` does to the process, to optimisers, and where training leaves finite numbers."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from fit_cases import Blocks, assert_same, fit, make, problem, values
from torch import nn

import bella
from bella.training.multiplying import place_of


class Explodes(torch.optim.SGD):
    """Leaves the finite numbers in one step, by an ordinary-looking update."""

    def __init__(self, groups, at):
        super().__init__(groups, lr=0.1)
        self.at, self.taken = at, 0

    def step(self, closure=None):
        super().step(closure)
        if self.taken == self.at:
            with torch.no_grad():
                self.param_groups[0]["params"][0][1] = float("nan")
        self.taken += 1


def run(at, folder=None, **options):
    """Six steps an epoch, three epochs."""
    posterior = make()
    start = values(posterior)
    with pytest.raises(bella.BellaError) as error:
        fit(posterior, optimizer=lambda groups: Explodes(groups, at), folder=folder, **options)
    return posterior, start, str(error.value)


@pytest.mark.parametrize("at", [0, 3, 5])
def test_the_start_is_kept_where_the_first_epoch_fails(at, tmp_path):
    posterior, start, said = run(at, tmp_path / "run")
    assert all(torch.equal(v, start[k]) for k, v in values(posterior).items())
    assert "as they were before training" in said
    assert "lower the learning rate" in said
    assert "particle 1" in said
    assert "\n" not in said
    assert not list((tmp_path / "run").glob("*"))


@pytest.mark.parametrize("at", [12, 16, 17])
def test_the_last_finite_epoch_is_kept(at, tmp_path):
    posterior, _, said = run(at, tmp_path)
    expected = make()
    fit(
        expected, folder=tmp_path / "two", patience=None,
        optimizer=lambda groups: Stops(groups, 12),
    )  # fmt: skip
    assert "those of epoch 2" in said
    assert_same(posterior, expected)
    assert_same(bella.load(tmp_path, Blocks()), posterior)


class Stops(torch.optim.SGD):
    """Moves nothing after so many steps."""

    def __init__(self, groups, steps):
        super().__init__(groups, lr=0.1)
        self.left = steps

    def step(self, closure=None):
        if self.left:
            super().step(closure)
            self.left -= 1


def test_the_best_epoch_is_kept_where_a_later_one_fails(tmp_path):
    x, y = problem()
    wrong = (x, (y + 1) % 3)  # the better the fit, the worse on these labels
    posterior, _, said = run(17, tmp_path, validation=wrong)
    assert "those of epoch 1" in said
    expected = make()
    fit(expected, optimizer=lambda groups: Stops(groups, 6))
    assert_same(posterior, expected)
    assert_same(bella.load(tmp_path, Blocks()), posterior)


@pytest.mark.parametrize("rate", [1e30, 1e38, 1e300])
def test_rates_that_blow_up_are_no_success(rate):
    posterior = make()
    x, y = problem()
    data = (x[:8], y[:8])  # one step
    said = "lower the learning rate"
    try:
        fit(posterior, data, epochs=1, warmup=0.0, learning_rate=rate)
    except bella.BellaError as error:
        said = str(error)
    assert "lower the learning rate" in said
    assert all(torch.isfinite(v).all() for v in values(posterior).values())
    with pytest.raises(bella.BellaError, match="learning_rate"):
        fit(posterior, data, learning_rate=float("inf"))


class Large(torch.optim.SGD):
    """Makes finite particles that cannot predict, in the last of 18 steps."""

    taken = 0

    def step(self, closure=None):
        super().step(closure)
        self.taken += 1
        if self.taken == 18:
            with torch.no_grad():
                for p in self.param_groups[0]["params"]:
                    p.fill_(1e38)


def test_particles_too_large_to_predict_with_are_no_success(tmp_path):
    posterior = make()
    with pytest.raises(bella.BellaError, match=r"predictions .* those of epoch"):
        fit(
            posterior,
            validation=problem(seed=1),
            folder=tmp_path,
            optimizer=lambda groups: Large(groups, lr=0.1),
        )
    assert bool(torch.isfinite(posterior(problem()[0])).all())
    assert_same(bella.load(tmp_path, Blocks()), posterior)


def test_inputs_of_the_validation_that_are_not_finite_are_told_apart():
    x, y = problem()
    broken = x.clone()
    broken[3, 2] = float("nan")
    for cache in (False, True):
        with pytest.raises(bella.BellaError, match="validation inputs"):
            fit(make(), validation=(broken, y), cache_prefix=cache)


def test_scaling_the_gradients_of_half_precision_parameters_is_refused():
    with pytest.raises(bella.BellaError, match="float16"):
        fit(make().half(), precision="fp16")


# ------------------------------------------------------------ optimisers


def test_an_optimiser_factory_receives_parameter_groups():
    def groups_of(**options):
        network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        posterior = bella.rank1(network, 2)
        seen = []

        def factory(groups):
            optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.3)
            seen.extend(optimizer.param_groups)
            return optimizer

        fit(posterior, optimizer=factory, epochs=1, **options)
        assert sum(len(group["params"]) for group in seen) == len(list(posterior.parameters()))
        return [group["weight_decay"] for group in seen]

    assert groups_of() == [0.3, 0.0]  # the optimiser's own, but not on the factors
    assert groups_of(weight_decay=0.1) == [0.1, 0.0]


# ------------------------------------------------------------ the process


def test_nothing_but_torch_is_needed_to_train():
    code = (
        "import sys; sys.modules['accelerate'] = None; import torch, bella\n"
        "network = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh())\n"
        "posterior = bella.low_rank(network, 2, 2, ('0',))\n"
        "data = torch.randn(8, 4), torch.zeros(8).long()\n"
        "bella.fit(posterior, data, epochs=1, precision='bf16', progress=False)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_accelerator_of_the_callers_stays_as_it_is():
    accelerate = pytest.importorskip("accelerate")
    theirs = accelerate.Accelerator(mixed_precision="bf16", cpu=True)
    fit(make(), epochs=1)
    assert theirs.mixed_precision == "bf16"
    assert accelerate.state.AcceleratorState().mixed_precision == "bf16"
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def test_several_processes_that_no_launcher_started_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(bella.BellaError, match="start them with torchrun"):
        fit(make())


def test_it_trains_where_the_posterior_is_unless_there_is_cuda(monkeypatch):
    posterior = make()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert place_of(posterior) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert place_of(posterior) == torch.device("cuda", 1)


def test_the_loss_of_an_epoch_is_the_mean_over_its_labels():
    x, y = problem(10)
    posterior = make()
    with torch.no_grad():
        expected = float(bella.nll(posterior(x), y)) / 3
    record = fit(
        posterior, (x, y), epochs=1, batch_size=4, learning_rate=1e-12, warmup=0.0
    )  # batches of 4, 4 and 2
    assert record.history[0]["loss"] == pytest.approx(expected, rel=1e-5)
