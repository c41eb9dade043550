"""Labels and examples that weigh, through steps, accumulation, chunks and the cached prefix."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import bella
from bella.inputs import Weighed
from bella.likelihood import nll
from bella.training.gradients import Gradients
from bella.transport import by_name


def made(particles=3):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    return bella.low_rank(network.double(), particles, 2, ("2",), modules_to_save=("4",), b_std=0.3)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10, 4, generator=generator).double()
    y = torch.randint(0, 3, (10,), generator=generator)
    y[3] = -100
    return x, y, torch.rand(10, generator=generator).double()


def grads(posterior):
    return {n: p.grad.clone() for n, p in posterior.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("at_once", [None, 1, 2])
@pytest.mark.parametrize("cuts", [(10,), (7, 10), (2, 3, 9, 10)])
def test_batches_of_a_step_weigh_what_their_labels_weigh(data, cuts, at_once):
    """One batch, or several of which the last is smaller: the same gradient."""
    x, y, w = data
    options = {"class_weights": [0.5, 1.0, 4.0], "weights": w}
    whole = made()
    nll(whole(x), y, **options).backward()
    expected = grads(whole)
    posterior = made()
    move = by_name("ensemble", posterior, data_size=10)
    gradients = Gradients(
        posterior, move, class_weights=[0.5, 1.0, 4.0], particles_per_pass=at_once
    )
    starts = (0, *cuts[:-1])
    batches = [((x[a:b],), {}, y[a:b], w[a:b]) for a, b in zip(starts, cuts, strict=True)]
    loss = gradients.add(batches, torch.device("cpu"))
    found = grads(posterior)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        loss.mean.sum().double(), nll(whole(x), y, **options), rtol=1e-5, atol=0
    )


def test_weights_of_each_particles_own_batches(data):
    x, y, w = data
    posterior = made(2)
    gradients = Gradients(
        posterior, by_name("ensemble", posterior, data_size=10), minibatches="own"
    )
    xs, ys, ws = (torch.stack((v[:5], v[5:])) for v in (x, y, w))
    gradients.add([((xs,), {}, ys, ws)], torch.device("cpu"))
    other = made(2)
    parts = []
    for i in range(2):
        with other.subset([i]):
            parts.append(nll(other(xs[i]), ys[i], weights=ws[i]))
    sum(parts).backward()
    expected = grads(other)
    for name, value in grads(posterior).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-9)


class Named(Dataset):
    """Examples as mappings, which say what they weigh."""

    fixed = True

    def __init__(self, x, y, w):
        self.rows = list(zip(x, y, w, strict=True))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        x, y, w = self.rows[index]
        return {"input": x, "labels": y, "weights": w}


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("form", ["mapping", "weighed"])
def test_fit_takes_weights_from_the_data(data, cache, form):
    """An example of weight 0 is none; the same with the prefix cached."""
    x, y, w = data
    often = torch.tensor([1, 1, 0, 1, 1, 0, 1, 1, 1, 1.0]).double()

    def trained(rows):
        posterior = made()
        bella.fit(
            posterior,
            rows,
            epochs=3,
            batch_size=10,
            learning_rate=0.05,
            progress=False,
            cache_prefix=cache,
            transport="ensemble",
        )
        return posterior.stacked_parameters()

    def given(x, y, w):
        if form == "mapping":
            return Named(x, y, w)
        return [Weighed(*row) for row in zip(x, y, w, strict=True)]

    kept = often > 0
    found = trained(given(x, y, often))
    expected = trained(given(x[kept], y[kept], often[kept]))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-8)
    other = trained(given(x, y, w))
    assert any((other[name] - value).abs().max() > 1e-3 for name, value in found.items())


def test_weights_are_no_input_and_evaluation_leaves_them_out(data):
    x, y, w = data
    posterior = made()
    assert bella.evaluate(posterior, Named(x, y, w)) == bella.evaluate(posterior, (x, y))
