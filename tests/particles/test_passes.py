"""Every way to run particles gives what they give one by one, or says why it cannot."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
import threading
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import bella
from bella.particles.layer import ParticleLayer

warnings_as_said = pytest.mark.filterwarnings("ignore:The particles of this")


class Block(nn.Module):
    def __init__(self, width: int = 8):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return x + self.fc2(torch.relu(self.fc1(x)))


class Net(nn.Module):
    """A stem, blocks and a head: what everything is made for."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.stem, self.drop = nn.Linear(6, 8), nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.drop(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Shortcut(nn.Module):
    """Adds to its body in place, as residual networks of convolutions do."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.body, self.side = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        y = torch.tanh(self.body(x))
        y += self.side(x)
        return y


class SequenceFirst(nn.Module):
    """(batch, length, 6) outside, (length, batch, 8) inside."""

    def __init__(self):
        super().__init__()
        self.stem, self.fc1, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.fc1(self.stem(x).transpose(0, 1))).mean(0))


class TimeMajor(SequenceFirst):
    """Time before batch in one axis of rows."""

    def forward(self, x):
        h = self.stem(x).transpose(0, 1)
        return self.head(torch.tanh(self.fc1(h.flatten(0, 1))).view_as(h).mean(0))


class Constant(nn.Module):
    """Its adapted layer is called on something that all examples share."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 8))
        self.stem, self.fc1, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.stem(x) * self.fc1(self.table).mean(0))


class Experts(nn.Module):
    """Each row goes to the expert that a router chooses for it."""

    def __init__(self, reads: str):
        super().__init__()
        self.reads = reads
        self.stem, self.router = nn.Linear(6, 8), nn.Linear(8, 2)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        h = self.stem(x)
        to = self.router(h).argmax(-1)
        out = torch.zeros_like(h)
        for number, expert in enumerate(self.experts):
            if self.reads == "nonzero":
                rows = (to == number).nonzero().flatten()
                out = out.index_add(0, rows, expert(h[rows]))
            else:
                out[to == number] = expert(h[to == number])
        return self.head(out)


class Contrastive(nn.Module):
    """Images against texts: every output mixes the rows of two inputs."""

    def __init__(self):
        super().__init__()
        self.fc1, self.text = nn.Linear(6, 4), nn.Linear(5, 4)

    def forward(self, images, texts):
        scores = self.fc1(images) @ self.text(texts).mT
        return {"images": scores, "texts": scores.mT, "scale": torch.tensor(2.0)}


class BatchMaximum(nn.Module):
    """What an example gets depends on the others."""

    def __init__(self):
        super().__init__()
        self.fc1, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = self.fc1(x)
        return self.head(h / h.abs().max())


class Pairs(nn.Module):
    """Scores of every example against every other."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(6, 8)

    def forward(self, x):
        h = self.fc1(x)
        return h @ h.mT


class InPlace(nn.Module):
    """Works in place on what it is given, and so do its blocks."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        x -= 1
        for block in self.blocks:
            x = block(x)
            x.relu_()
        return x


class Lazy(nn.Module):
    """Takes its number of rows from the batch in a way that squeezes a batch of one."""

    def __init__(self):
        super().__init__()
        self.fc1, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = torch.tanh(self.fc1(x)).squeeze()
        return self.head(h if h.dim() > 1 else 2 * h[None])


def made(network: nn.Module, targets=("fc1",), particles: int = 3, **options):
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    return bella.low_rank(network, particles, 2, targets, b_std=0.4, **options).eval()


def alone(posterior, *inputs):
    """The truth: every particle as a plain network."""
    plain = [posterior.particle(i) for i in range(posterior.particles)]
    return [network(*(x.clone() for x in inputs)) for network in plain]


def same(found, expected) -> None:
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)


NETWORKS = {
    "blocks": (Net, (6,), "shared"),
    "sequence first": (SequenceFirst, (4, 6), "looped"),
    "time major": (TimeMajor, (4, 6), "looped"),
    "constant": (Constant, (6,), "looped"),
    "depends on the batch": (BatchMaximum, (6,), "looped"),
    "pairs": (Pairs, (6,), "looped"),
    "squeezed": (Lazy, (6,), "shared"),
}


@warnings_as_said
@pytest.mark.parametrize("sizes", list(itertools.permutations((4, 1, 3), 3)))
@pytest.mark.parametrize("name", NETWORKS)
def test_any_order_of_batch_sizes_gives_the_particles_own_outputs(name, sizes):
    make, shape, how = NETWORKS[name]
    posterior = made(make())
    for size in (*sizes, 1):
        x = torch.randn(size, *shape)
        same(posterior(x), alone(posterior, x))
    assert how in {plan.how.split(", ")[-1] for plan in posterior.plan()}


@warnings_as_said
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_single_passes(name):
    make, shape, _ = NETWORKS[name]
    x = torch.randn(4, *shape)
    found = []
    for folding in ("auto", "never"):
        posterior = made(make(), folding=folding).train()
        posterior(x).square().flatten(1).mean(1).sum().backward()
        found.append([p.grad.clone() for p in posterior.stacked_parameters().values()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@warnings_as_said
@pytest.mark.parametrize("reads", ["nonzero", "mask"])
def test_rows_that_data_choose_loop(reads):
    posterior = made(Experts(reads), ("router", "0", "1"))
    for size in (6, 3, 1, 8):
        x = torch.randn(size, 6)
        same(posterior(x), alone(posterior, x))
    assert not any(plan.folds for plan in posterior.plan())
    assert "depends on the data" in str(posterior.plan())


@warnings_as_said
@pytest.mark.parametrize("texts", [3, 4])
def test_outputs_that_mix_two_inputs_are_right_for_each_particle(texts):
    posterior = made(Contrastive())
    x, t = torch.randn(3, 6), torch.randn(texts, 5)
    found, expected = posterior(x, t), alone(posterior, x, t)
    for key in ("images", "texts", "scale"):
        same(found[key], [outputs[key] for outputs in expected])
    assert posterior.plan()[0].folds


def test_batch_axes_say_what_shapes_cannot():
    posterior = made(Contrastive(), batch_axes={"texts": None, 1: None})
    x, t = torch.randn(3, 6), torch.randn(3, 5)
    same(posterior(x, t)["images"], [outputs["images"] for outputs in alone(posterior, x, t)])
    assert posterior.plan()[0].inputs == (0, None)
    with pytest.raises(bella.BellaError, match="axis 5"):
        made(Contrastive(), batch_axes={0: 5})(x, t)


@warnings_as_said
@pytest.mark.parametrize("folding", ["auto", "never"])
def test_a_network_that_works_in_place_leaves_inputs_alone(folding):
    posterior = made(InPlace(), ("blocks.1",), folding=folding)
    x = torch.randn(4, 6)
    before = x.clone()
    same(posterior(x), alone(posterior, before))
    assert torch.equal(x, before)
    for start in (posterior.begun(x), posterior.begun(x)):  # several passes from one prefix
        parts = []
        for i in range(3):
            with posterior.subset([i]):
                parts.append(posterior(*start[0], **start[1]))
        same(torch.cat(parts), alone(posterior, before))


def test_what_loops_says_so_once_and_what_it_costs():
    posterior = made(TimeMajor())
    with pytest.warns(UserWarning, match="3 passes instead of one"):
        posterior(torch.randn(4, 4, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        posterior(torch.randn(5, 4, 6))
    assert "one particle after another" in str(posterior.plan())


def test_never_and_always():
    x = torch.randn(4, 6)
    never, always = made(Net(), folding="never"), made(Net(), folding="always")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(never(x), alone(never, x))
        same(always(x), alone(always, x))
    assert [plan.how for plan in never.plan()] == ["looped"]
    with pytest.raises(bella.BellaError, match="cannot fold"):
        made(Pairs(), folding="always")(x)
    with pytest.raises(bella.BellaError, match="'auto', 'never' or 'always'"):
        made(Net(), folding="sometimes")


def test_a_proof_takes_at_most_eight_passes_of_three_examples_and_no_random_number():
    posterior = made(Net(0.5)).train()
    rows = []
    posterior.network.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    x = torch.randn(64, 6)
    state = torch.get_rng_state()
    posterior.prove(x)
    assert torch.equal(state, torch.get_rng_state())
    assert len(rows) <= 9  # and one because a hook hangs: it might hang others on tensors
    assert max(rows) <= 2 * 4  # two particles
    posterior(x)
    assert len(rows) <= 12  # the two halves, the first of them twice because it threw dice
    posterior(torch.randn(7, 6))
    assert len(rows) <= 14


def test_a_bad_first_request_spoils_nothing():
    x = torch.randn(4, 6)
    bad = x.clone()
    bad[0, 0] = torch.nan
    posterior = made(Net())
    posterior(bad)
    same(posterior(x), alone(posterior, x))
    assert posterior.plan()[0].how == "shared"
    with pytest.raises(RuntimeError):
        posterior(torch.randn(4, 5))  # of another width: the network's own error
    with pytest.raises(bella.BellaError, match="empty"):
        posterior(torch.randn(0, 6))
    same(posterior(x), alone(posterior, x))


class Skips(nn.Module):
    """Leaves layers out at random in training."""

    def __init__(self):
        super().__init__()
        self.stem, self.drop = nn.Linear(6, 8), nn.Dropout(0.5)
        self.blocks = nn.ModuleList(Block() for _ in range(6))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.drop(self.stem(x))
        for block in self.blocks:
            if not (self.training and torch.rand([]) < 0.5):
                x = block(x)
        return self.head(x)


def test_both_halves_of_a_pass_throw_the_same_dice():
    posterior = made(Skips()).train()
    x = torch.randn(4, 6)
    posterior.prove(x)
    assert posterior.plan()[0].how == "shared"
    seen = []
    for number, block in enumerate(posterior.network.blocks):
        block.register_forward_hook(lambda *_, number=number: seen.append(number))
    for seed in range(12):
        torch.manual_seed(seed)
        seen.clear()
        posterior(x)
        torch.manual_seed(seed)
        with torch.no_grad():
            posterior.network.drop(posterior.network.stem(x))
            coins = [bool(torch.rand([]) >= 0.5)]
        assert (0 in seen) == coins[0]


def test_dropout_differs_between_particles_that_loop_over_a_prefix():
    network = Net(0.0)
    network.blocks[1].fc2 = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
    posterior = made(network, ("blocks.1.fc1",), folding="never").train()
    for name, value in posterior.stacked_parameters().items():
        if name.endswith("B"):
            value.data.zero_()  # the particles are equal but for chance
    torch.manual_seed(1)
    outputs = posterior(torch.randn(4, 6))
    assert not torch.allclose(outputs[0], outputs[1])


def threaded(run, count: int = 8) -> list[BaseException]:
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            run(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


class Convolves(nn.Module):
    """A head that is no single Linear, and a convolution with a kernel."""

    def __init__(self):
        super().__init__()
        self.stem, self.fc1 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, x):
        return self.head(torch.relu(self.fc1(self.stem(x))).mean((2, 3)))


@pytest.mark.parametrize(
    ("network", "shape"), [(Net, (6,)), (Convolves, (3, 6, 6))], ids=["blocks", "convolutions"]
)
def test_threads_get_their_own_answers(network, shape):
    posterior = made(network(), modules_to_save=("head",))
    inputs = [torch.randn(2 + i % 3, *shape) for i in range(8)]
    expected = [torch.stack(alone(posterior, x)) for x in inputs]

    def ask(number: int) -> None:
        for _ in range(25):
            chosen = [number % 3, (number + 1) % 3]
            with torch.no_grad(), posterior.subset(chosen):
                said = posterior(inputs[number])
            torch.testing.assert_close(said, expected[number][chosen], rtol=1e-4, atol=1e-5)

    assert not threaded(ask)
    assert not leftovers(posterior)


def leftovers(posterior) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in vars(m))
        for m in posterior.modules()
    )


def test_an_error_in_a_layer_leaves_nothing_behind():
    posterior = made(Net())
    x = torch.randn(4, 6)
    expected = posterior(x)
    layer = posterior.network.blocks[1]
    own = type(layer).forward
    for when in (x, torch.randn(1, 6)):  # after a proof, and inside one
        layer.forward = lambda *_: 1 / 0
        with pytest.raises(ZeroDivisionError):
            posterior(when)
        del layer.forward
        assert type(layer).forward is own
        assert not leftovers(posterior)
        assert not posterior.axis.is_running
        torch.testing.assert_close(posterior(x), expected)


def test_backward_may_run_in_another_thread():
    gradients = []
    for other in (False, True):
        posterior = made(Net(0.3)).train()
        bella.recompute(posterior)
        torch.manual_seed(2)
        loss = posterior(torch.ones(4, 6)).square().sum()
        if other:
            assert not threaded(lambda _, loss=loss: loss.backward(), 1)
        else:
            loss.backward()
        gradients.append([p.grad for p in posterior.stacked_parameters().values()])
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_passes_may_be_nested():
    posterior = made(Net())
    x = torch.randn(4, 6)
    expected = posterior(x)
    inside = []

    def ask(module, args, output):
        if not inside:
            inside.append(None)
            with torch.no_grad(), posterior.subset([2]):
                inside.append(posterior(x[:3]))

    handle = posterior.network.blocks[2].register_forward_hook(ask)
    with pytest.warns(UserWarning, match="one after another"):  # a proof inside of a proof
        torch.testing.assert_close(posterior(x), expected)
    handle.remove()
    torch.testing.assert_close(inside[1], expected[2:, :3])


def test_copies_and_pickles_run_by_themselves():
    posterior = made(Net())
    x = torch.randn(4, 6)
    expected = posterior(x)
    for twin in (copy.deepcopy(posterior), pickle.loads(pickle.dumps(posterior))):
        torch.testing.assert_close(twin(x), expected)
        twin.network.head.bias.data += 1
        torch.testing.assert_close(posterior(x), expected)
        assert twin.axis is next(
            m.axis for m in twin.network.modules() if isinstance(m, ParticleLayer)
        )


def test_a_whole_posterior_compiles_without_breaks():
    posterior = made(Net(), shared_prefix=True)
    x = torch.randn(4, 6)
    expected = posterior(x)
    compiled = torch.compile(posterior, fullgraph=True, backend="eager")
    with torch.no_grad():
        posterior.prove(x)
        torch.testing.assert_close(compiled(x), expected)
    with posterior.subset([2, 0]):
        torch.testing.assert_close(compiled(x), expected[[2, 0]])


@torch.no_grad()
def test_a_compiled_posterior_runs_the_particles_that_are_asked_for():
    torch.compiler.reset()
    posterior = made(Net()).eval()
    x = torch.randn(4, 6)
    expected = posterior(x)
    posterior.compile(backend="eager")
    torch.testing.assert_close(posterior(x), expected)
    for some in ([1], [2], [2, 0]):
        with posterior.subset(some):
            torch.testing.assert_close(posterior(x), expected[some])
    probs = bella.predict(posterior, x, particles_per_pass=1).particle_probs
    torch.testing.assert_close(probs, expected.softmax(-1))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_networks_that_checkpoint_in_their_own_way_get_one_sentence(reentrant):
    class Own(Net):
        def forward(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=reentrant)
            return self.head(x)

    posterior = made(Own()).train()
    with pytest.raises(bella.BellaError, match=r"bella\.recompute"):
        posterior(torch.randn(4, 6)).sum().backward()


def test_a_stream_of_one_example_has_the_roles_of_many():
    posterior = made(Net())
    x = torch.randn(6, 6)
    expected = torch.stack(alone(posterior, x))
    stream = posterior.prefix(x)
    for rows in (torch.tensor([4]), torch.tensor([1, 3]), torch.tensor([5])):
        part = stream.with_carried([carried[rows] for carried in stream.carried()])
        torch.testing.assert_close(posterior(part), expected[:, rows], rtol=1e-4, atol=1e-5)


def test_own_inputs_of_a_network_that_loops():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        posterior = made(TimeMajor())
        own = torch.randn(3, 4, 5, 6)
        with posterior.own_inputs():
            found = posterior(own)
    same(found, [posterior.particle(i)(own[i]) for i in range(3)])


@warnings_as_said
@pytest.mark.parametrize("name", NETWORKS)
def test_plans_outlive_a_session(name, monkeypatch):
    make, shape, _ = NETWORKS[name]
    posterior = made(make())
    x, one = torch.randn(4, *shape), torch.randn(1, *shape)
    expected = posterior(x), posterior(one)
    kept = json.loads(json.dumps(posterior.passes.planner.state()))
    again = made(make())
    again.passes.planner.restore(kept)
    monkeypatch.setattr("bella.particles.planner.Prover", None)  # nothing is proven anew
    assert torch.equal(again(x), expected[0])
    assert torch.equal(again(one), expected[1])
    assert str(again.plan()) == str(posterior.plan())
    with pytest.raises(bella.BellaError, match="folding"):
        made(make(), folding="never").passes.planner.restore(kept)
    kept["plans"] = {kind: plan | {"how": "guessed"} for kind, plan in kept["plans"].items()}
    with pytest.raises(bella.BellaError, match="damaged"):
        again.passes.planner.restore(kept)  # before anything runs by it
    assert torch.equal(again(x), expected[0])


@pytest.mark.parametrize("batch", [1, 4])
def test_what_is_repeated_for_the_particles_may_be_written_to(batch):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), Shortcut(), nn.Linear(8, 3))
    posterior = bella.low_rank(network, 3, 2, ("side",), modules_to_save=(), b_std=0.5).eval()
    x = torch.randn(batch, 6)
    with torch.no_grad():
        found = posterior(x)
        assert "folded from" in str(posterior.plan())
        for i in range(3):
            torch.testing.assert_close(found[i], posterior.particle(i)(x))
