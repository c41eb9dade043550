"""The step by itself: against a plain loop, against one large batch, and where it must stop."""

from __future__ import annotations

import copy

import pytest
import torch
from fit_cases import assert_same, make, problem, values
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bella
from bella.precision import Precision
from bella.training.checks import DivergedError, check_particles
from bella.training.gradients import Gradients
from bella.training.step import Step

TRANSPORTS = ["ensemble", "repulsive", "svgd", "function"]


def sgd(posterior, rate=0.1):
    return torch.optim.SGD(posterior.parameter_groups(0.0), lr=rate)


def mover(posterior, name="ensemble"):
    return bella.transport.by_name(name, posterior, data_size=48)


def batches(count=3, size=8):
    x, y = problem(count * size)
    return [((a,), {}, b) for a, b in zip(x.split(size), y.split(size), strict=True)]


@pytest.mark.parametrize("name", TRANSPORTS)
def test_it_is_the_plain_loop(name):
    ours, plain = make(), make()
    step = Step(ours, sgd(ours), mover(ours, name))
    move, optimizer = mover(plain, name), sgd(plain)
    for (x,), _, y in batches():
        loss = step([((x,), {}, y)])
        expected = bella.nll(plain(x), y)
        expected.backward()
        move.step()
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(loss.mean.sum(), expected.detach())
        assert loss.counted == len(y)
    assert_same(ours, plain, rtol=0, atol=1e-6)


def test_loops_that_go_backward_themselves_make_the_same_step():
    ours, theirs = make(), make()
    whole = Step(ours, sgd(ours), mover(ours, "repulsive"), clip=0.1)
    optimizer = sgd(theirs)
    part = Step(theirs, optimizer, mover(theirs, "repulsive"), clip=0.1)
    for (x,), kwargs, y in batches():
        whole([((x,), kwargs, y)])
        bella.nll(theirs(x), y).backward()
        assert not part.ready()
        optimizer.step()
        optimizer.zero_grad()
    assert_same(ours, theirs, rtol=0, atol=1e-6)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.inner = nn.Linear(4, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.inner(x)))


def gradients(posterior, name, parts, **options):
    move = mover(posterior, name)
    found = Gradients(posterior, move, **options)
    loss = found.add(parts, torch.device("cpu"))
    move.step()
    grads = {k: v.grad.clone() for k, v in posterior.stacked_parameters().items()}
    for value in posterior.stacked_parameters().values():
        value.grad = None
    return loss, grads


@settings(deadline=None, max_examples=15)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.sampled_from(["ensemble", "repulsive", "svgd"]),
    st.sampled_from(["classes", "tokens"]),
    st.sampled_from([None, 1, 2]),
    st.booleans(),
    st.integers(0, 99),
)
def test_the_batches_of_a_step_are_one_batch(sizes, name, likelihood, at_once, own, seed):
    """Whatever their sizes, and however many labels count in each."""
    generator = torch.Generator().manual_seed(seed)
    lead = (3,) if own else ()
    if own and name == "svgd":
        at_once = None
    x = torch.randn(*lead, sum(sizes), 6, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (*lead, sum(sizes), 6), generator=generator)
    y[torch.rand(y.shape, generator=generator) < 0.6] = -100
    posterior = bella.low_rank(
        Tokens().double(), 3, 2, ("inner",), modules_to_save=("head",), b_std=0.3
    )
    options = {
        "likelihood": likelihood,
        "minibatches": "own" if own else "shared",
        "particles_per_pass": at_once,
    }
    axis = 1 if own else 0
    parts = [((a,), {}, b) for a, b in zip(x.split(sizes, axis), y.split(sizes, axis), strict=True)]
    one, whole = gradients(posterior, name, [((x,), {}, y)], **options)
    several, split = gradients(posterior, name, parts, **options)
    torch.testing.assert_close(several.mean, one.mean)
    assert several.counted == one.counted
    for key, value in whole.items():
        torch.testing.assert_close(split[key], value)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", TRANSPORTS)
def test_a_loop_that_does_not_know_its_batches_weighs_every_label_the_same(name, scaled):
    """Batches of 5, 1 and 10 labels, one of them with none that counts, as one of 16; with the
    loop's own gradient scaler, too."""
    x, y = problem(17)
    x, y = x.double(), y.clone()
    y[5] = -100
    ours, theirs = make().double(), make().double()
    whole = Step(ours, sgd(ours), mover(ours, name), clip=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if scaled else None
    optimizer = sgd(theirs)
    gradients = Gradients(theirs, mover(theirs, name), precision=Precision(scaler=scaler))
    step = Step(theirs, optimizer, gradients.move, clip=0.1, gradients=gradients)
    for _ in range(2):
        whole([((x,), {}, y)])
        for a, b in zip(x.split([5, 1, 11]), y.split([5, 1, 11]), strict=True):
            loss = step.loss(theirs(a), b)
            (loss if scaler is None else scaler.scale(loss)).backward()
        if scaler is not None:
            scaler.unscale_(optimizer)
        assert not step.ready()
        optimizer.step() if scaler is None else scaler.step(optimizer)
        if scaler is not None:
            scaler.update()
        optimizer.zero_grad()
    # `function` compares the predictions of a batch, which are others in parts.
    if name != "function":
        assert_same(ours, theirs, rtol=0, atol=1e-9)
    torch.testing.assert_close(step.norms, step.norms.abs())


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_divergence_counts_for_each_particle(reduction):
    """The objective is n (mean_i ℓ_i + λ KL / N), as the loss is a sum over particles."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    posterior = bella.rank1(network, 3, kl_reduction=reduction)
    plain = copy.deepcopy(posterior)
    (inputs,), _, y = batches(1)[0]
    step = Step(posterior, sgd(posterior), mover(posterior), kl_weight=lambda number: 0.5 + number)
    torch.manual_seed(1)
    step([((inputs,), {}, y)])
    optimizer = sgd(plain)
    torch.manual_seed(1)
    mean = bella.nll(plain(inputs), y) / 3
    (3 * (mean + 0.5 * plain.kl() / 48)).backward()
    optimizer.step()
    for ours, theirs in zip(posterior.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


class Instead:
    """A mover that stands for every second step of the optimiser."""

    def __init__(self):
        self.calls, self.optimizer = 0, None

    def follow(self, optimizer):
        self.optimizer = optimizer

    def step(self, learning_rate=None):
        self.calls += 1
        self.rate = learning_rate
        return self.calls % 2 == 0

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


def test_a_mover_may_stand_for_the_optimisers_step():
    posterior = make()
    instead, move, optimizer = Instead(), mover(posterior), sgd(posterior)
    step = Step(posterior, optimizer, move, movers=[instead])
    assert instead.optimizer is optimizer
    for number, batch in enumerate(batches(4)):
        before = values(posterior)
        step([batch])
        moved = any(not torch.equal(v, before[k]) for k, v in values(posterior).items())
        assert moved == (number % 2 == 0)
        assert all(p.grad is None for p in posterior.parameters())
    assert (instead.calls, move.steps, step.number, instead.rate) == (4, 2, 4, 0.1)


def test_an_optimiser_that_steps_all_the_same_moves_nothing():
    posterior = make()
    instead, optimizer = Instead(), sgd(posterior)
    instead.calls = 1
    step = Step(posterior, optimizer, mover(posterior), movers=[instead])
    (x,), _, y = batches(1)[0]
    before = values(posterior)
    bella.nll(posterior(x), y).backward()
    assert step.ready()
    optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in values(posterior).items())


@pytest.mark.filterwarnings("error")
def test_a_run_may_begin_with_a_step_that_is_left_out():
    instead = Instead()
    instead.calls = 1
    record = bella.fit(make(), problem(), epochs=1, movers=[instead], progress=False)
    assert len(record.history) == 1


def test_data_without_a_label_that_counts_are_refused():
    x, y = problem()
    none = torch.full_like(y, -100)
    with pytest.raises(bella.BellaError, match="Nothing in the training data counts"):
        bella.fit(make(), (x, none), epochs=1, batch_size=8, progress=False)
    one = torch.cat((none[:-1], y[-1:]))
    bella.fit(make(), (x, one), epochs=1, batch_size=8, progress=False)


def test_fit_resumes_its_movers(tmp_path):
    def run(stop=None, **options):
        posterior, instead = make(), Instead()
        original = instead.step

        def step(learning_rate=None):
            if instead.calls == stop:
                raise KeyboardInterrupt
            return original(learning_rate)

        instead.step = step
        options = {"epochs": 3, "batch_size": 9, "progress": False} | options
        bella.fit(posterior, problem(45), movers=[instead], **options)
        return posterior, instead

    whole, first = run()
    with pytest.raises(KeyboardInterrupt):
        run(stop=7, folder=tmp_path)
    again, second = run(folder=tmp_path)
    assert_same(whole, again)
    assert first.calls == second.calls == 15


# ------------------------------------------------------------ what is not finite


def test_a_loss_that_is_not_finite_names_its_particles():
    posterior = make()
    step = Step(posterior, sgd(posterior), mover(posterior))
    with torch.no_grad():
        posterior.stacked_parameters()["head.values.weight"][1] = float("inf")
    before = values(posterior)
    with pytest.raises(DivergedError, match=r"step 1 \(particle 1\): lower the learning rate"):
        step(batches(1))
    assert all(torch.equal(v, before[k]) for k, v in values(posterior).items())
    assert all(p.grad is None for p in posterior.parameters())


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_gradient_that_is_not_finite_names_layer_and_particle(clip):
    posterior = make()
    step = Step(posterior, sgd(posterior), mover(posterior), clip=clip)
    A = posterior.stacked_parameters()["blocks.2.0.A"]

    def break_one(grad):
        grad = grad.clone()
        grad[2] = float("nan")
        return grad

    handle = A.register_hook(break_one)
    with pytest.raises(DivergedError, match=r"gradient .* step 1 \(blocks\.2\.0\.A, particle 2\)"):
        step(batches(1))
    handle.remove()
    check_particles(posterior, "now")
    step(batches(1))
    with torch.no_grad():
        A[0, 0] = float("nan")
    with pytest.raises(DivergedError, match=r"now \(blocks\.2\.0\.A, particle 0\)"):
        check_particles(posterior, "now")


def test_an_optimiser_that_overflows_is_told_so():
    posterior = make()
    optimizer = torch.optim.AdamW(posterior.parameter_groups(0.0), lr=1e300)
    with pytest.raises(DivergedError, match="overflowed"):
        Step(posterior, optimizer, mover(posterior))(batches(1))


def test_each_particle_is_clipped_by_itself():
    posterior, x = make(), problem(8)
    Step(posterior, sgd(posterior), mover(posterior))  # a mover, of none of the gradients below
    step = Step(posterior, sgd(posterior), mover(posterior), clip=0.01)
    bella.nll(posterior(x[0]), x[1]).backward()
    before = {k: v.grad.clone() for k, v in posterior.stacked_parameters().items()}
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in before.values()]).norm(dim=0)
    step.ready()
    for key, value in posterior.stacked_parameters().items():
        factor = 0.01 / norms.view(-1, *[1] * (value.dim() - 1))
        torch.testing.assert_close(value.grad, before[key] * factor, rtol=1e-3, atol=1e-7)


# ------------------------------------------------------------ precision


@pytest.mark.parametrize("name", TRANSPORTS)
def test_scaled_losses_make_the_same_step(name):
    """fp16's scaler multiplies losses by 65536 and divides gradients again: nothing else may."""
    plain, scaled = make(), make()
    Step(plain, sgd(plain), mover(plain, name), clip=0.5)(batches(1))
    move = mover(scaled, name)
    precision = Precision("fp16")
    precision.autocast = Precision("no").autocast
    found = Gradients(scaled, move, precision=precision)
    Step(scaled, sgd(scaled), move, clip=0.5, gradients=found)(batches(1))
    assert precision.scale > 1
    assert_same(plain, scaled, rtol=1e-5, atol=1e-6)


def test_a_step_whose_scaled_gradients_overflow_is_left_out():
    posterior = make()
    move, precision = mover(posterior), Precision("fp16")
    found = Gradients(posterior, move, precision=precision)
    step = Step(posterior, sgd(posterior), move, gradients=found)
    A = posterior.stacked_parameters()["blocks.2.0.A"]
    handle = A.register_hook(lambda grad: grad * float("inf"))
    before, scale = values(posterior), precision.scale
    step(batches(1))
    assert all(torch.equal(v, before[k]) for k, v in values(posterior).items())
    assert precision.scale < scale
    handle.remove()
    step(batches(1))
    assert any(not torch.equal(v, before[k]) for k, v in values(posterior).items())


def test_half_precision_trains_anywhere():
    exact, half = make(), make()
    options = {"epochs": 3, "batch_size": 8, "progress": False}
    bella.fit(exact, problem(), **options)
    bella.fit(half, problem(), precision="fp16", **options)
    assert_same(exact, half, rtol=0, atol=0.1)
    assert all(v.dtype == torch.float32 for v in values(half).values())


def test_an_unknown_precision_is_refused():
    with pytest.raises(bella.BellaError, match="'bf16'"):
        Precision("int8")


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_function_refuses_what_has_no_classes_whoever_names_it(likelihood):
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    posterior = bella.low_rank(network, particles=2, target_modules=("0",))
    data = (torch.randn(8, 4), torch.rand(8, 2).round())
    with pytest.raises(bella.BellaError, match=f"the likelihood is '{likelihood}': choose"):
        bella.fit(posterior, data, likelihood=likelihood, transport="function", progress=False)
