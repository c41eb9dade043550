"""What is done to a network after its passes were proven: each way equals the loop all the same."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import warnings
from collections.abc import Callable, Iterator
from functools import partialmethod
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import gradients
from torch import Tensor, nn
from torch.nn.modules import module as torchs
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel

import bella
from bella.particles.changes import Changes
from bella.training.cache import CachedPrefix
from bella.training.step import Step
from bella.trees import structure

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
Y = torch.arange(5) % 3


def mix(x: Tensor) -> Tensor:
    """What no fold may be given: each row depends on the others beside it."""
    return x - 0.5 * x.mean(0)


class Bend(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


class Mix(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return mix(torch.tanh(x))


class MixInTraining(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return mix(x) if self.training else x


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bend, self.mixes = nn.Linear(6, 6), Bend(), False

    def forward(self, x: Tensor) -> Tensor:
        x = self.bend(self.fc(x))
        return mix(x) if self.mixes else x


class Net(nn.Module):
    """A prefix (stem, first block), two blocks with particles, a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.config = SimpleNamespace(mixes=False)
        self.stem, self.head, self.last = nn.Linear(4, 6), nn.Linear(6, 3), MixInTraining()
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.last(mix(x) if self.config.mixes else x))


def made(folding: str = "auto", *, trains: bool = False, particles: int = 3) -> bella.Posterior:
    posterior = bella.low_rank(
        Net().double(),
        particles,
        2,
        (r"blocks\.[12]\.fc",),
        modules_to_save=("head",),
        b_std=0.5,
        folding=folding,  # type: ignore[arg-type]
    )
    posterior.train(trains)
    posterior.network.last.eval()  # type: ignore[union-attr]
    return posterior


Undo = Callable[[], Any]
CHANGES: dict[str, Callable[[Any], Undo]] = {}


def change(function: Callable[[Any], Undo]) -> Callable[[Any], Undo]:
    CHANGES[function.__name__.replace("_", " ")] = function
    return function


def put(owner: Any, name: str, value: Any) -> Undo:
    """Set an attribute; what takes it back."""
    own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    return lambda: setattr(owner, name, before) if own else delattr(owner, name)


@change
def forward_hook(network: Any) -> Undo:
    return network.blocks[1].register_forward_hook(lambda m, args, y: mix(y)).remove


@change
def forward_hook_with_kwargs(network: Any) -> Undo:
    return (
        network.blocks[2]
        .register_forward_hook(
            lambda m, args, kwargs, y: mix(y), with_kwargs=True, always_call=True, prepend=True
        )
        .remove
    )


@change
def pre_hook(network: Any) -> Undo:
    return network.blocks[2].register_forward_pre_hook(lambda m, args: (mix(args[0]),)).remove


@change
def pre_hook_with_kwargs(network: Any) -> Undo:
    def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple:
        return (mix(args[0]),), kwargs

    return network.head.register_forward_pre_hook(hook, with_kwargs=True).remove


@change
def hook_of_the_network(network: Any) -> Undo:
    return network.register_forward_hook(lambda m, args, y: mix(y)).remove


@change
def pre_hook_of_the_network(network: Any) -> Undo:
    return network.register_forward_pre_hook(lambda m, args: (mix(args[0]),)).remove


@change
def hook_in_the_prefix(network: Any) -> Undo:
    return network.stem.register_forward_hook(lambda m, args, y: mix(y)).remove


@change
def hook_of_all_modules(network: Any) -> Undo:
    return torchs.register_module_forward_hook(
        lambda m, args, y: mix(y) if isinstance(m, Bend) else None
    ).remove


@change
def pre_hook_of_all_modules(network: Any) -> Undo:
    return torchs.register_module_forward_pre_hook(
        lambda m, args: (mix(args[0]),) if isinstance(m, Bend) else None
    ).remove


@change
def backward_hook(network: Any) -> Undo:
    bend = network.blocks[2].bend
    return bend.register_full_backward_hook(lambda m, given, grads: (mix(given[0]),)).remove


@change
def backward_pre_hook(network: Any) -> Undo:
    bend = network.blocks[2].bend
    return bend.register_full_backward_pre_hook(lambda m, grads: (mix(grads[0]),)).remove


@change
def backward_hook_of_all_modules(network: Any) -> Undo:
    return torchs.register_module_full_backward_hook(
        lambda m, given, grads: (mix(given[0]),) if isinstance(m, Bend) else None
    ).remove


@change
def backward_hook_that_a_hook_hangs_on_a_tensor(network: Any) -> Undo:
    def hook(module: nn.Module, args: tuple, y: Tensor) -> None:
        if y.requires_grad:
            y.register_hook(mix)

    return network.blocks[2].bend.register_forward_hook(hook).remove


@change
def own_forward(network: Any) -> Undo:
    return put(network.blocks[2].bend, "forward", lambda x: mix(torch.tanh(x)))


@change
def forward_of_the_class(network: Any) -> Undo:
    return put(Bend, "forward", Mix.forward)


@change
def another_class(network: Any) -> Undo:
    network.blocks[2].bend.__class__ = Mix
    return lambda: setattr(network.blocks[2].bend, "__class__", Bend)


@change
def another_module(network: Any) -> Undo:
    before, network.blocks[2].bend = network.blocks[2].bend, Mix()
    return lambda: setattr(network.blocks[2], "bend", before)


@change
def one_more_module(network: Any) -> Undo:
    network.blocks.append(Mix())
    return lambda: network.blocks.__delitem__(3)


@change
def a_batch_norm(network: Any) -> Undo:
    before, network.blocks[2].bend = network.blocks[2].bend, nn.BatchNorm1d(6).double()
    return lambda: setattr(network.blocks[2], "bend", before)


@change
def a_parametrization(network: Any) -> Undo:
    layer = network.blocks[0].fc
    parametrize.register_parametrization(layer, "weight", Twice(), unsafe=True)
    return lambda: parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)


@change
def flag_of_a_module(network: Any) -> Undo:
    return put(network.blocks[2], "mixes", True)


@change
def flag_of_a_configuration(network: Any) -> Undo:
    return put(network.config, "mixes", True)


@change
def mode_of_a_module(network: Any) -> Undo:
    network.last.train()
    return network.last.eval


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """A slower way is told of, which is not what is asked here; all hooks are taken off."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(run|write) one after another")
        warnings.filterwarnings("ignore", message="Nothing is shared")
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield
    assert not torchs._global_forward_hooks


def predicted(posterior: bella.Posterior) -> Tensor:
    return bella.predict(posterior, X).particle_probs


def stepped(posterior: bella.Posterior) -> Tensor:
    posterior.zero_grad()
    bella.nll(posterior(X), Y).backward()
    return torch.cat([grad.flatten() for grad in gradients(posterior).values()])


@pytest.mark.parametrize("trains", [False, True], ids=["predict", "train"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_late_change_is_proven_anew_and_a_taken_back_one_is_not(name: str, trains: bool) -> None:
    run = stepped if trains else predicted
    posterior, truth = made(trains=trains), made("never", trains=trains)
    before = run(posterior)
    (plan,) = posterior.plan()
    assert plan.how == "shared"
    torch.testing.assert_close(before, run(truth))
    undo = CHANGES[name](posterior.network)
    try:
        found = run(posterior)
    finally:
        undo()
    undo = CHANGES[name](truth.network)
    try:
        torch.testing.assert_close(found, run(truth))
    finally:
        undo()
    if trains or not name.startswith(("backward", "mode")):  # predict puts all into evaluation
        assert not torch.allclose(found, before)  # else the case shows nothing
    count = len(posterior.plan())
    assert torch.equal(run(posterior), before)
    assert len(posterior.plan()) == count


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_another_session_is_proven_anew(name: str) -> None:
    """A checkpoint's plans are of the network as it was."""
    plain = made(trains=True)
    stepped(plain)
    kept = json.loads(json.dumps(plain.passes.planner.state()))
    changed = made(trains=True)
    undo = CHANGES[name](changed.network)
    try:
        stepped(changed)
        also = json.loads(json.dumps(changed.passes.planner.state()))
    finally:
        undo()
    by_value = name.startswith(("flag", "mode"))
    assert bool(also["plans"]) is by_value  # of a hook a later session knows no more than its name
    again, truth = made(trains=True), made("never", trains=True)
    found = []
    for posterior in (again, truth):
        if posterior is again:
            posterior.passes.planner.restore(kept)
        undo = CHANGES[name](posterior.network)
        try:
            found.append(stepped(posterior))
        finally:
            undo()
    torch.testing.assert_close(*found)


def test_hooks_there_from_the_first_pass_on_meet_gradients_of_one_particle() -> None:
    found = []
    for folding in ("auto", "never"):
        posterior = made(folding, trains=True)
        backward_hook(posterior.network)
        with torch.no_grad():
            posterior(X)
        assert posterior.plan()[0].folds is (folding == "auto")  # where there are no gradients
        found.append(stepped(posterior))
    torch.testing.assert_close(*found)
    assert posterior.plan()[-1].how == "looped"


# ---------------------------------------------------------------- what counts as a change


def test_without_a_change_a_kind_is_what_it_was() -> None:
    posterior = made()
    posterior(X)
    assert posterior.passes.planner.kinds() == {repr((structure(((X,), {})), False))}


def test_one_hook_on_and_off_is_proven_once_and_another_of_its_name_by_itself() -> None:
    posterior = made()
    posterior(X)

    def hook(mixes: bool) -> Callable[..., Tensor]:
        return lambda m, args, y: mix(y) if mixes else y

    same = hook(False)
    for _ in range(3):
        with posterior.network.blocks[2].register_forward_hook(same):  # type: ignore[union-attr]
            posterior(X)
    assert [plan.how for plan in posterior.plan()] == ["shared", "shared"]
    found = []
    for mixes in (False, True, False):  # the first is gone when the next takes its place in memory
        with posterior.network.blocks[2].register_forward_hook(hook(mixes)):  # type: ignore[union-attr]
            found.append(posterior(X))
    assert torch.equal(found[0], found[2])
    truth = made("never")
    with truth.network.blocks[2].register_forward_hook(hook(True)):  # type: ignore[union-attr]
        torch.testing.assert_close(found[1], truth(X))


def test_a_hook_for_each_step_leaves_nothing_behind() -> None:
    posterior = made()
    for _ in range(12):
        heard: list[Tensor] = []
        handle = posterior.network.blocks[2].register_forward_hook(  # type: ignore[union-attr]
            lambda m, args, y, heard=heard: heard.append(y)  # type: ignore[misc]
        )
        posterior(X)
        handle.remove()
        del handle, heard
        gc.collect()
    assert len(posterior.plan()) < 4
    assert len(posterior.passes.planner.changes.met) == 1


def test_hooks_of_bella_are_no_change() -> None:
    posterior = made()
    posterior(X)
    planner = posterior.passes.planner
    seen = []
    handle = posterior.network.blocks[2].register_forward_hook(  # type: ignore[union-attr]
        lambda *_: seen.append(planner.changes.now())
    )
    posterior(X)  # the passes' own hooks hang there meanwhile
    assert {len(changes) for changes in seen} == {1}
    handle.remove()
    bella.recompute(posterior.train())
    posterior.network.last.eval()  # type: ignore[union-attr]
    bella.nll(posterior(X), Y).backward()
    assert [change.what for change in planner.changes.now()] == ["mode"]


def test_operations_are_counted_without_those_of_a_proof() -> None:
    posterior = made()
    posterior(X)
    with FlopCounterMode(display=False) as once:
        posterior(X)
    with FlopCounterMode(display=False) as twice:
        posterior(X)
        posterior(X)
    assert twice.get_total_flops() == 2 * once.get_total_flops()
    assert len(posterior.plan()) == 1


def test_a_copy_of_a_changed_posterior_is_as_changed() -> None:
    posterior = made()
    posterior(X)
    undo = another_module(posterior.network)
    posterior.network.blocks[1].register_forward_hook(hooked)  # type: ignore[union-attr]
    want = posterior(X)
    for twin in (copy.deepcopy(posterior), pickle.loads(pickle.dumps(posterior))):
        torch.testing.assert_close(twin(X), want)
        kinds = [change[:3] for change in twin.passes.planner.changes.now()]
        assert kinds == [change[:3] for change in posterior.passes.planner.changes.now()]
    undo()
    assert [change.what for change in posterior.passes.planner.changes.now()] == ["forward hook"]


def hooked(module: nn.Module, args: tuple, y: Tensor) -> Tensor:
    return mix(y)


class Listener:
    """Knows the posterior whose network it listens to."""

    def __init__(self, posterior: bella.Posterior):
        self.posterior = posterior
        posterior.network.blocks[1].register_forward_hook(self.hear)  # type: ignore[union-attr]

    def hear(self, module: nn.Module, args: tuple, y: Tensor) -> Tensor:
        return mix(y)


def test_a_copy_in_a_circle_is_as_changed() -> None:
    posterior = made()
    posterior(X)
    listener = Listener(posterior)
    want = posterior(X)
    for twin in copy.deepcopy(listener).posterior, copy.deepcopy(posterior):
        torch.testing.assert_close(twin(X), want)
        (change,) = twin.passes.planner.changes.now()
        assert change.name.endswith("Listener.hear")


def test_what_was_taken_back_is_no_obstacle_to_pickle() -> None:
    network = Net().double()
    parametrize.register_parametrization(network.blocks[0].fc, "weight", Twice())
    posterior = bella.low_rank(network, 3, 2, (r"blocks\.[12]\.fc",), b_std=0.5).eval()
    parametrize.register_parametrization(network.head, "weight", Twice())
    posterior(X)
    for module in network.blocks[0].fc, network.head:
        parametrize.remove_parametrizations(module, "weight")
    expected = posterior(X)
    torch.testing.assert_close(pickle.loads(pickle.dumps(posterior))(X), expected)


def test_a_class_that_was_patched_is_so_for_a_copy() -> None:
    posterior = made()
    posterior(X)
    undo = forward_of_the_class(posterior.network)
    try:
        twin = copy.deepcopy(posterior)
        torch.testing.assert_close(twin(X), posterior(X))
        assert [change.what for change in twin.passes.planner.changes.now()] == ["forward"]
    finally:
        undo()


class Bound(nn.Module):
    """Whose class makes its forward anew each time that it is asked for."""

    def go(self, x: Tensor, steep: int) -> Tensor:
        return torch.tanh(steep * x)

    forward = partialmethod(go, steep=2)


def test_a_forward_that_a_descriptor_makes_is_no_change() -> None:
    posterior = made()
    posterior.network.blocks[2].bend = Bound()  # type: ignore[union-attr]
    for _ in range(3):
        posterior(X)
    assert len(posterior.plan()) == 1


class HooksItself(Net):
    """As transformers' networks do in their first pass."""

    hung = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.hung:
            self.blocks[1].register_forward_hook(lambda m, args, y: 2 * y)
            self.hung = True
        return super().forward(x)


def test_what_a_network_does_to_itself_in_the_proof_is_no_change() -> None:
    posterior = bella.low_rank(HooksItself().double(), 3, 2, (r"blocks\.[12]\.fc",), b_std=0.5)
    posterior.eval()
    posterior(X)
    assert posterior.passes.planner.changes.now() == ()
    assert [plan.how for plan in posterior.plan()] == ["shared"]
    twin = copy.deepcopy(posterior)
    assert torch.equal(twin(X), posterior(X))
    assert len(twin.plan()) == 1


# ---------------------------------------------------------------- what was computed before


STALE = {
    "pre hook of the network",
    "hook in the prefix",
    "hook of all modules",
    "pre hook of all modules",
    "forward of the class",
    "a parametrization",
    "flag of a configuration",
}
"""What may change what comes before the entrance, ``blocks.1``."""


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_changed_prefix_made_is_refused_and_all_else_goes_on(name: str) -> None:
    posterior, truth = made(trains=True), made("never", trains=True)
    stream = posterior.prefix(X)
    cached = CachedPrefix(posterior, torch.utils.data.TensorDataset(X, Y))
    posterior.network.last.eval()  # type: ignore[union-attr]
    (kept, _) = cached.batch([0, 1, 2, 3, 4])
    truth(X)  # the first training pass puts what keeps statistics into evaluation mode
    undo = CHANGES[name](truth.network)
    try:
        want = truth(X)
    finally:
        undo()
    undo = CHANGES[name](posterior.network)
    try:
        for given in (stream, kept):
            if name in STALE:
                with pytest.raises(bella.BellaError, match="computed before it changed"):
                    posterior(given)
                with pytest.raises(bella.BellaError, match="computed before it changed"):
                    posterior.run_base(given)
            else:
                torch.testing.assert_close(posterior(given), want)
        torch.testing.assert_close(posterior(X), want)
    finally:
        undo()
    torch.testing.assert_close(posterior(stream), made("never", trains=True)(X))


def test_a_training_begun_after_a_change_shares_what_is_shared_now() -> None:
    found = []
    for folding in ("auto", "never"):
        posterior = made(folding)
        predicted(posterior)
        forward_hook(posterior.network)
        bella.fit(posterior, (X, Y), epochs=2, batch_size=5, warmup=0, progress=False)
        found.append(torch.cat([p.flatten() for p in posterior.stacked_parameters().values()]))
    torch.testing.assert_close(*found)


# ---------------------------------------------------------------- other ways to run


def test_answers_are_proven_anew() -> None:
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": 20}
    network = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=1))
    ids = torch.randint(2, 20, (3, 5))
    found = []
    for folding in ("auto", "never"):
        posterior = bella.low_rank(
            copy.deepcopy(network),
            3,
            2,
            (r".*\.1\..*c_fc",),
            b_std=0.9,
            folding=folding,  # type: ignore[arg-type]
        ).eval()
        first = posterior.generate(input_ids=ids, max_new_tokens=4, eos_token_id=None)
        posterior.network.transformer.h[1].mlp.register_forward_hook(  # type: ignore[union-attr]
            lambda m, args, y: y - y.mean(0)
        )
        second = posterior.generate(input_ids=ids, max_new_tokens=4, eos_token_id=None)
        found.append((first, second))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.tokens, other.tokens)
        torch.testing.assert_close(one.entropy, other.entropy)
    assert not torch.allclose(found[0][0].entropy, found[0][1].entropy)


def test_inputs_of_each_particle_are_proven_anew() -> None:
    posterior, truth = made(), made("never")
    own = torch.stack([X, 2 * X, 3 * X])
    with posterior.own_inputs():
        posterior(own)
    found = []
    for one in (posterior, truth):
        forward_hook(one.network)
        with one.own_inputs():
            found.append(one(own))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", ["own forward", "another module"])
def test_a_laplace_approximation_is_asked_again(name: str) -> None:
    def around() -> bella.Posterior:
        posterior = made(particles=1)
        return bella.laplace(posterior, [(X, Y)], prior_precision=1.0).eval()

    def said(posterior: bella.Posterior) -> Tensor:
        torch.manual_seed(4)
        with torch.no_grad():
            return posterior(X)

    late, anew = around(), around()
    before = said(late)
    for posterior in (late, anew):
        CHANGES[name](posterior.network)
    found = said(late)
    assert not torch.allclose(found, before)
    torch.testing.assert_close(found, said(anew))


def test_a_step_goes_on_from_a_checkpoint_with_a_hook() -> None:
    found = []
    for folding in ("auto", "never"):
        posterior = made(folding, trains=True)
        optimizer = torch.optim.SGD(posterior.parameter_groups(0.0), 0.1)
        move = bella.transport.repulsive(posterior, data_size=5)
        step = Step(posterior, optimizer, move)
        batch = ((X,), {}, Y)
        step([batch])
        kept = step.state_dict()
        forward_hook(posterior.network)
        step.load_state_dict(kept)
        step([batch])
        found.append(torch.cat([p.flatten() for p in posterior.stacked_parameters().values()]))
    torch.testing.assert_close(*found)


# ---------------------------------------------------------------- hearing


def test_a_late_listener_hears_the_proof_and_then_each_pass_once() -> None:
    posterior = made()
    posterior(X)
    heard: list[int] = []
    posterior.network.stem.register_forward_hook(  # type: ignore[union-attr]
        lambda *said: heard.append(len(said[2]))
    )
    posterior.prove(X)
    assert heard  # what a few examples are, and which particle's, is the proof's business
    heard.clear()
    posterior(X)
    assert heard == [5]


def test_a_glance_is_cheap_and_says_what_it_sees() -> None:
    network = Net()
    changes = Changes(network)
    assert changes.now() == ()
    network.blocks[2].register_forward_pre_hook(hooked)
    assert [str(change) for change in changes.now()] == [
        f"the forward pre-hook {__name__}.hooked of blocks.2"
    ]
    first = changes.now()
    assert changes.now() is first  # nothing is worked out twice


@pytest.mark.parametrize("name", ["another module", "own forward", "flag of a module"])
@torch.no_grad()
def test_what_is_exchanged_after_compiling_is_proven_and_compiled_anew(name: str) -> None:
    torch.compiler.reset()
    posterior, truth = made(), made("never")
    compiled = torch.compile(posterior, backend="eager")
    torch.testing.assert_close(posterior(X), truth(X))
    torch.testing.assert_close(compiled(X), truth(X))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        undo = CHANGES[name](posterior.network), CHANGES[name](truth.network)
        torch.testing.assert_close(compiled(X), truth(X))
    for take_back in undo[::-1]:
        take_back()


@torch.no_grad()
def test_a_copy_may_be_compiled_at_once() -> None:
    torch.compiler.reset()
    network = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).double()
    posterior = bella.low_rank(network, 3, 2, ("0", "2"), b_std=0.5).eval()
    expected = posterior(X)
    twin = copy.deepcopy(posterior)
    torch.testing.assert_close(torch.compile(twin, backend="eager")(X), expected)


@pytest.mark.parametrize("folding", ["auto", "never"])
def test_hooks_that_hang_others_on_tensors_meet_each_particle_where_torch_compiles(folding) -> None:
    torch.compiler.reset()
    found = []
    for compiled in (False, True):
        posterior = made(folding)
        posterior.network.blocks[1].register_forward_hook(doubling)  # type: ignore[union-attr]
        call = torch.compile(posterior, backend="eager") if compiled else posterior
        outputs = call(X)
        outputs.square().sum().backward()
        found.append((outputs, [p.grad for p in posterior.stacked_parameters().values()]))
    torch.testing.assert_close(*found)


def doubling(module: nn.Module, args: Any, output: Tensor) -> None:
    """A hook that doubles gradients."""
    if output.requires_grad:
        output.register_hook(lambda gradient: 2 * gradient)
