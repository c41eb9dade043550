"""Where the particle axis opens must not matter: any batch size, any opening, any fallback."""

from __future__ import annotations

import warnings

import pytest
import torch
from helpers import gradients
from layer_cases import CASES, Case
from network_cases import NETWORKS, Skips, call, make
from torch import nn

import bella
from bella.particles.plan import Plan


def of_size(inputs: dict, batch: int) -> dict:
    """The same inputs with another number of examples."""

    def resized(x: torch.Tensor) -> torch.Tensor:
        return x.repeat(2, *[1] * (x.dim() - 1))[:batch]

    return {
        key: tuple(resized(x) for x in value) if isinstance(value, tuple) else resized(value)
        for key, value in inputs.items()
    }


# A batch of 1, of as many examples as particles or heads, and of as many as tokens: the sizes at
# which a tensor that carries no batch could be taken for one that does.
@pytest.mark.parametrize("batch", [1, 2, 3, 7])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_batch_size_gives_the_merged_networks_outputs(name: str, batch: int) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")  # a fallback to no sharing would warn
        posterior, inputs = make(name)
        inputs = of_size(inputs, batch)
        together = call(posterior, inputs)
        assert together.shape[:2] == (3, batch)
        for i in range(3):
            alone = call(posterior.particle(i), inputs)
            torch.testing.assert_close(together[i], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "bert", "gpt2", "resnet", "lite"])
def test_batches_of_several_sizes_follow_each_other(name: str) -> None:
    posterior, inputs = make(name)
    with torch.no_grad():
        for batch in (4, 1, 6):
            sized = of_size(inputs, batch)
            one = call(posterior.particle(1), sized)
            torch.testing.assert_close(call(posterior, sized)[1], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("place", ["blocks.0", "blocks.1", "stem"])
def test_the_axis_may_open_at_any_named_module_before_the_particles(place: str) -> None:
    case = CASES["later block"]
    x = case.inputs()
    torch.manual_seed(0)
    usual = case.posterior()
    expected = gradients_of_squares(usual, x)
    torch.manual_seed(0)
    found = gradients_of_squares(case.posterior(shared_prefix=place), x)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)


def gradients_of_squares(posterior: bella.Posterior, x: torch.Tensor) -> dict[str, torch.Tensor]:
    posterior.zero_grad()
    posterior(x).square().sum().backward()
    return gradients(posterior)


def test_without_a_shared_prefix_there_is_none_to_keep() -> None:
    posterior = CASES["later block"].posterior(shared_prefix=False)
    with pytest.raises(bella.BellaError, match="no prefix"):
        posterior.prefix(CASES["later block"].inputs())


def test_gradients_survive_the_fallback_of_a_network_that_cannot_share() -> None:
    posterior = bella.low_rank(Skips().double(), 3, 2, ("blocks.1", "blocks.2"), b_std=0.3)
    x = torch.randn(5, 4, dtype=torch.float64)
    with pytest.warns(UserWarning, match="shared_prefix=False"):
        posterior(x).square().sum().backward()
    for i in range(3):
        plain = posterior.particle(i).requires_grad_(True)
        plain(x).square().sum().backward()
        for name, layer in posterior.layers().items():
            G = plain.get_submodule(name).weight.grad
            torch.testing.assert_close(layer.A.grad[i], layer.scale * layer.B[i].mT @ G)
            torch.testing.assert_close(layer.B.grad[i], layer.scale * G @ layer.A[i].mT)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_chunks_of_any_particles_give_the_gradients_of_one_pass(case: Case) -> None:
    torch.manual_seed(0)
    x = case.inputs()
    posterior = case.posterior(5)
    whole = gradients_of_squares(posterior, x)
    posterior.zero_grad()
    for chunk in ([4, 1], [0], [2, 3]):
        with posterior.subset(chunk):
            posterior(x).square().sum().backward()
    for key, value in gradients(posterior).items():
        torch.testing.assert_close(value, whole[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_own_inputs_give_each_particle_its_own_minibatch(case: Case) -> None:
    torch.manual_seed(0)
    posterior = case.posterior(3)
    x = torch.stack([case.inputs() for _ in range(3)])
    with torch.no_grad(), posterior.own_inputs():
        outputs = posterior(x)
        for i in range(3):
            torch.testing.assert_close(outputs[i], posterior.particle(i)(x[i]))
        with posterior.subset([2, 0]):
            torch.testing.assert_close(posterior(x[[2, 0]]), outputs[[2, 0]])


def test_a_heads_copies_train_as_separate_heads() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    posterior = bella.low_rank(
        network, 3, 2, ("0",), modules_to_save=("2",), b_std=0.3, head_init="reset"
    )
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.randint(3, (5,))
    separate = [posterior.particle(i)[2].requires_grad_(True) for i in range(3)]
    bodies = [posterior.particle(i)[:2] for i in range(3)]
    ours = torch.optim.AdamW(posterior.parameters(), lr=0.1)
    theirs = torch.optim.AdamW([p for head in separate for p in head.parameters()], lr=0.1)
    for layer in posterior.layers().values():
        if hasattr(layer, "A"):
            layer.requires_grad_(False)
    for _ in range(4):
        ours.zero_grad()
        bella.nll(posterior(x), y).backward()
        ours.step()
        theirs.zero_grad()
        for body, head in zip(bodies, separate, strict=True):
            nn.functional.cross_entropy(head(body(x)), y).backward()
        theirs.step()
    for i, head in enumerate(separate):
        merged = posterior.particle(i)[2]
        torch.testing.assert_close(merged.weight, head.weight.detach())
        torch.testing.assert_close(merged.bias, head.bias.detach())


@pytest.mark.parametrize("name", ["vit", "gpt2", "resnet", "lite"])
def test_autocast_is_as_near_to_float32_as_a_plain_networks_is(name: str) -> None:
    posterior, inputs = make(name)
    plain = posterior.particle(0)
    with torch.no_grad():
        exact = call(plain, inputs)
        with torch.autocast("cpu", torch.bfloat16):
            rounding = (call(plain, inputs).float() - exact).norm()
    call(posterior, inputs).square().mean().backward()
    expected = gradients(posterior)
    posterior.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        near = call(posterior, inputs)
        loss = near.float().square().mean()
    assert 0 < (near[0].float() - exact).norm() < 2 * rounding
    loss.backward()
    for key, value in gradients(posterior).items():
        assert value.dtype == torch.float32
        # An untrained EfficientNet rounds to 0.2 here; a wrong gradient is off by 1 and more.
        assert (value - expected[key]).norm() < 0.4 * expected[key].norm(), key


@pytest.mark.parametrize("name", ["vit", "gpt2", "resnet", "lite"])
@pytest.mark.parametrize("cached", [False, True])
def test_what_autocast_began_goes_on_without_it(name: str, cached: bool) -> None:
    """A cache made in bfloat16 is read by probes in float32: convolutions refused it."""
    posterior, inputs = make(name)
    posterior.eval()
    with torch.no_grad():
        exact = call(posterior, inputs)
        with torch.autocast("cpu", torch.bfloat16):
            rounding = (call(posterior, inputs).float() - exact).norm()
            kwargs = dict(inputs)
            stream = posterior.prefix(*kwargs.pop("args", ()), **kwargs)
        if cached:
            stream = stream.with_carried(stream.carried())
        found = call(posterior, {"args": (stream,)})
    assert found.dtype == torch.float32
    assert 0 < (found - exact).norm() < 2 * rounding


class Shows(nn.Module):
    """Returns what it saw beside its logits, as LLaVA its image features; ``both`` of its stems."""

    def __init__(self, both: bool = False) -> None:
        super().__init__()
        self.both = both
        self.look, self.stem = nn.Linear(4, 5), nn.Linear(5, 6)
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        seen = {"look": self.look(x)}
        kept = [x.clone() for x in seen["look"]]  # a list as long as the batch, as LLaVA makes
        features = self.stem(torch.stack(kept).tanh())
        h = features
        for block in self.blocks:
            h = torch.tanh(block(h))
        shown = {"logits": self.head(h), "features": 2 * features}
        return shown | ({"look": 3 * seen["look"]} if self.both else {})


def test_what_a_network_shows_of_its_prefix_is_shared_too() -> None:
    posterior = bella.low_rank(Shows(), 3, 2, (r"blocks\.\d",), b_std=0.5)
    x = torch.randn(5, 4)
    found = posterior(x)
    plan = posterior.plan_for(x)
    assert plan.how == "shared"
    assert plan.places is not None
    assert plan.places.real == "stem"
    for i in range(3):
        alone = posterior.particle(i)(x)
        torch.testing.assert_close(found["logits"][i], alone["logits"])
        torch.testing.assert_close(found["features"][i], alone["features"])
    # A stream that is kept, and goes on with other examples, has the features of those.
    y = torch.randn(3, 4)
    kept = [value.clone() for value in posterior.prefix(y).carried()]
    again = posterior(posterior.prefix(x).with_carried(kept))
    torch.testing.assert_close(again["features"], posterior(y)["features"])
    torch.testing.assert_close(again["logits"], posterior(y)["logits"])
    told = Plan.from_json(plan.to_json(), plan.places.kind)
    assert told.to_json() == plan.to_json()


class ShowsEarly(nn.Module):
    """Returns what it saw, flat, however many blocks come between that and its particles."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.look = nn.Linear(4, 6)
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(blocks))
        self.late, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        h = seen = self.look(x)  # (batch, places, 6)
        for block in self.blocks:
            h = torch.tanh(block(h))
        return {"logits": self.head(self.late(h)), "seen": seen.flatten(0, 1)}


@pytest.mark.parametrize("blocks", [1, 8])
def test_what_is_shown_may_be_made_long_before_the_particles(blocks: int) -> None:
    posterior = bella.low_rank(ShowsEarly(blocks), 3, 2, ("late",), b_std=0.5)
    x = torch.randn(5, 2, 4)
    found, plan = posterior(x), posterior.plan_for(x)
    assert plan.how == "shared"
    assert plan.places.real == "look"
    for i in range(3):
        alone = posterior.particle(i)(x)
        torch.testing.assert_close(found["logits"][i], alone["logits"])
        torch.testing.assert_close(found["seen"][i], alone["seen"])


def test_where_two_modules_show_themselves_nothing_is_shared_and_all_is_right() -> None:
    posterior = bella.low_rank(Shows(both=True), 3, 2, (r"blocks\.\d",), b_std=0.5)
    x = torch.randn(5, 4)
    with pytest.warns(UserWarning, match="Nothing is shared"):
        found = posterior(x)
    for i in range(3):
        alone = posterior.particle(i)(x)
        for name, value in alone.items():
            torch.testing.assert_close(found[name][i], value)
