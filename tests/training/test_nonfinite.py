"""Numbers that are not finite: named, and stopped at or skipped; particles that become one."""

from __future__ import annotations

import math

import pytest
import torch
from fit_cases import Blocks, assert_same, fit, make, problem, state_of
from torch.utils.data import DataLoader, TensorDataset

import bella
from bella.training.collapse import Collapse

x, y = problem()
MARK = 7.0


class Divides(Blocks):
    """Infinite logits of finite inputs, where a row is marked."""

    def forward(self, x):
        return super().forward(x) / (x[:, 0] != MARK).to(x)[:, None]


def divides():
    """Looped: the logits come from the inputs themselves as well."""
    return make(network=Divides(), folding="never")


class Rests(torch.optim.SGD):
    """Leaves out some of its steps."""

    def __init__(self, groups, without=()):
        super().__init__(groups, lr=0.1, momentum=0.9)
        self.without, self.number = without, -1

    def step(self, closure=None):
        self.number += 1
        if self.number not in self.without:
            super().step(closure)


def marked(*rows):
    """In their order, eight a batch: six batches."""
    inputs = x.clone()
    inputs[list(rows), 0] = MARK
    return DataLoader(TensorDataset(inputs, y), batch_size=8)


OPTIONS = {"epochs": 2, "cache_prefix": False}


def test_a_skipped_step_moves_nothing_and_is_counted(tmp_path):
    skipped, left_out = divides(), divides()
    said = r"The loss became .* in step 3 \(particles 0, 1, 2\)"
    with pytest.warns(UserWarning, match=said) as told:
        record = fit(
            skipped, marked(20), folder=tmp_path, on_nonfinite="skip", optimizer=Rests, **OPTIONS
        )
    assert len(told) == 1  # though it is so in each epoch
    fit(left_out, marked(), optimizer=lambda groups: Rests(groups, (2, 8)), **OPTIONS)
    assert_same(skipped, left_out)
    assert [row["skipped_steps"] for row in record.history] == [1, 1]
    assert all(math.isfinite(row["loss"]) for row in record.history)
    assert all("skipped_steps" not in row for row in fit(make()).history)


def test_a_run_that_stopped_may_go_on_and_skip(tmp_path):
    whole, again = divides(), divides()
    with pytest.warns(UserWarning, match="skipped"):
        fit(whole, marked(20), on_nonfinite="skip", **OPTIONS)
    with pytest.raises(bella.BellaError, match="in step 3"):
        fit(again, marked(20), folder=tmp_path, checkpoint_every=1, **OPTIONS)
    assert state_of(tmp_path)["step"] == 2
    with pytest.warns(UserWarning, match="skipped"):
        record = fit(again, marked(20), folder=tmp_path, on_nonfinite="skip", **OPTIONS)
    assert_same(whole, again)
    assert [row["skipped_steps"] for row in record.history] == [1, 1]


def test_an_epoch_of_nothing_else_stops():
    posterior = divides()
    start = {k: v.clone() for k, v in posterior.state_dict().items()}
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(bella.BellaError, match="Nothing was finite in all steps of epoch 1"),
    ):
        fit(posterior, marked(*range(0, 48, 8)), on_nonfinite="skip", **OPTIONS)
    assert all(torch.equal(v, start[k]) for k, v in posterior.state_dict().items())


@pytest.mark.parametrize("transport", ["repulsive", "svgd"])
def test_a_distance_that_overflows_is_named_by_layer_and_particle(transport):
    posterior = make()
    with torch.no_grad():
        site = next(s for s in posterior.sites() if len(s.parameters) == 2)
        for factor in site.parameters:  # tanh takes any weight, a square does not
            factor[1].fill_(1e10)
    said = r"distance of particles became NaN or infinite in step 1 \(blocks\.2\.0, particle 1\)"
    with pytest.raises(bella.BellaError, match=said):
        fit(posterior, transport=transport, coupling_warmup=0)


def test_a_gradient_is_named_by_layer_and_particle():
    posterior = make()

    def spoil(grad):
        grad = grad.clone()
        grad[2] = math.inf
        return grad

    name, parameter = next(iter(posterior.stacked_parameters().items()))
    parameter.register_hook(spoil)
    with pytest.raises(bella.BellaError, match=rf"gradient .* in step 1 \({name}, particle 2\)"):
        fit(posterior, transport="ensemble")


# ---------------------------------------------------------------- particles that become one


def apart(*values):
    places = torch.tensor(values)
    return (places[:, None] - places).abs()


def test_distances_stand_in_the_record_and_even_ones_are_no_news():
    record = fit(make())
    for row in (*record.trace, record.history[-1]):
        assert 0 <= row["closest"] <= row["distance"] <= row["farthest"]
    assert "closest" not in fit(make(particles=1)).trace[-1]
    assert Collapse().look(apart(0.0, 0.0, 0.0), []) == {"distance": 0, "closest": 0, "farthest": 0}


def test_two_particles_that_are_one_are_told_of_once_while_the_run_goes_on():
    posterior = make()
    with torch.no_grad():
        for parameter in posterior.stacked_parameters().values():
            parameter[1].copy_(parameter[0])
    with pytest.warns(UserWarning, match=r"Particles 0 and 1 are .* apart") as told:
        record = fit(posterior, transport="ensemble")
    assert len(told) == 1
    assert record.history[-1]["closest"] == 0


def test_one_that_ran_away_and_all_that_became_one_are_told_of():
    collapse = Collapse()
    trace = [collapse.look(apart(0.0, 1.0, 2.0), [])]
    with pytest.warns(UserWarning, match=r"Particles 0 and 1 are 1 apart and others 1e\+04"):
        trace.append(collapse.look(apart(0.0, 1.0, 1e4), trace))
    with pytest.warns(UserWarning, match=r"All particles have come within 0\.2 of each other"):
        collapse.look(apart(0.0, 0.1, 0.2), trace)
    collapse.look(apart(0.0, 0.1, 0.2), trace)
