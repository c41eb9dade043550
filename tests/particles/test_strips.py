"""Products of a few rows in strips: to the same bits, or not at all."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import LlamaConfig, LlamaForCausalLM

import bella
from bella.particles import strips
from bella.particles.sober import Sober
from bella.particles.strips import few_rows, in_strips, strip_product


@pytest.fixture
def taken(monkeypatch) -> list[tuple[int, ...]]:
    """The weights that were multiplied in strips; small ones count as large."""
    seen: list[tuple[int, ...]] = []

    def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        seen.append(tuple(weight.shape))
        return strip_product(x, weight, bias)

    monkeypatch.setattr(strips, "LARGE", 2**10 / torch.get_num_threads())
    monkeypatch.setattr(strips, "STRIP", 2**8)
    monkeypatch.setattr(strips, "_same", {})
    monkeypatch.setattr(strips, "strip_product", product)
    monkeypatch.setattr("bella.posteriors.low_rank.product.strip_product", product)
    return seen


def layer(outputs: int = 70, inputs: int = 32, **options) -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(inputs, outputs, **options)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("outputs", "inputs"), [(64, 32), (70, 32), (65, 33), (9, 200), (2000, 700), (1001, 3072)]
)
@torch.no_grad()
def test_strips_are_the_dense_product(outputs, inputs, bias):
    torch.manual_seed(0)
    weight, b = torch.randn(outputs, inputs), torch.randn(outputs) if bias else None
    for shape in ((5, 1, inputs), (2, 2, inputs), (15, inputs)):
        x = torch.randn(shape)
        y = strip_product(x, weight, b)
        exact = linear(x.double(), weight.double(), None if b is None else b.double())
        assert y.shape == exact.shape
        assert y.is_contiguous()
        assert (y - exact).norm() <= 1e-6 * exact.norm()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), [(1536, 576), (50257, 96), (777, 900)])
@torch.no_grad()
def test_what_is_taken_in_strips_has_the_same_bits(monkeypatch, outputs, inputs, bias):
    monkeypatch.setattr(strips, "_same", {})
    monkeypatch.setattr(strips, "LARGE", 1)
    torch.manual_seed(0)
    weight, b = torch.randn(outputs, inputs), torch.randn(outputs) if bias else None
    for rows in (4, 5, 10, 15):
        x = torch.randn(rows, 1, inputs)
        if in_strips(x, weight, b):
            assert torch.equal(strip_product(x, weight, b), linear(x, weight, b))
    assert len(strips._same) == 4


def test_a_machine_whose_kernels_round_differently_multiplies_as_ever(taken, monkeypatch):
    def off(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return torch.nextafter(linear(x, weight, bias), torch.tensor(9e9))

    monkeypatch.setattr(strips, "strip_product", off)
    x, network = torch.randn(5, 32), nn.Sequential(layer())
    before = torch.get_rng_state()
    with torch.no_grad():
        whole = network(x)
        with few_rows(network):
            assert torch.equal(network(x), whole)
    assert list(strips._same.values()) == [False]
    assert torch.equal(before, torch.get_rng_state())  # no random number was used


def test_a_proof_that_draws_means_sees_how_a_machine_rounds(taken, monkeypatch):
    def off(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear(x, weight, bias) * (1 + 1e-6)

    monkeypatch.setattr(strips, "strip_product", off)
    with torch.no_grad(), Sober():
        assert not in_strips(torch.ones(5, 32), torch.ones(70, 32), None)


def test_float32_is_taken_in_strips_whatever_the_default_is(taken):
    x, weight = torch.randn(5, 32), torch.randn(70, 32)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert in_strips(x, weight, None)
    finally:
        torch.set_default_dtype(default)


def test_what_is_not_a_few_rows_of_float32_stays_whole(taken):
    weight, x = torch.randn(70, 32), torch.randn(16, 32)
    with torch.no_grad():
        assert in_strips(x[:5], weight, None)
        assert not in_strips(x[:3], weight, None)
        assert not in_strips(x, weight, None)
        assert not in_strips(x[:5], weight[:9], None)  # small
        assert not in_strips(x[:5].double(), weight.double(), None)
        assert not in_strips(x[:5], torch.randn(32, 70).T, None)
        assert not in_strips(x[:5], torch.randn(32, 70).T.as_subclass(nn.Buffer), None)
        assert not in_strips(torch.randn(32, 5).T, weight, None)
        with torch.autocast("cpu", torch.bfloat16):
            assert not in_strips(x[:5], weight, None)


# ---------------------------------------------------------------- layers of a network


def test_layers_are_themselves_again_after_the_last_scope(taken):
    network = nn.Sequential(layer(), nn.Linear(70, 3), nn.Embedding(90, 70))
    before = [dict(vars(module)) for module in network]
    x = torch.randn(5, 32)
    whole = network[0](x)
    with torch.no_grad(), few_rows(network):
        with pytest.raises(ZeroDivisionError), few_rows(network):
            raise ZeroDivisionError
        assert torch.equal(network[0](x), whole)
        assert (70, 32) in taken
        assert [vars(module) for module in network][1:] == before[1:]
    assert [vars(module) for module in network] == before
    assert not strips._open


def test_scopes_of_two_threads_end_in_any_order(taken):
    network = nn.Sequential(layer())
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with few_rows(network):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with few_rows(network):
        thread.start()
        assert entered.wait(10)
    assert "forward" in vars(network[0])
    leave.set()
    thread.join()
    assert "forward" not in vars(network[0])


def test_hooks_gradients_and_forwards_of_others_are_left_alone(taken):
    network = nn.Sequential(layer(), layer(32, 70), layer(70, 32))
    network[0].register_forward_hook(lambda module, args, y: 2 * y)
    mine, late = network[1].forward, network[2].forward
    network[1].forward = mine
    x = torch.randn(5, 32)
    said = network(x)
    with few_rows(network):
        trained = network(x)
        assert trained.requires_grad
        assert not taken
        with torch.no_grad():
            assert torch.equal(network(x), said)
        assert set(taken) == {(70, 32)}
        network[2].forward = late
    assert network[1].forward is mine
    assert network[2].forward is late


def test_copies_made_in_a_scope_multiply_with_their_own_weights(taken):
    network = nn.Sequential(layer())
    with few_rows(network), torch.no_grad():
        copies = copy.deepcopy(network), pickle.loads(pickle.dumps(network))
        network[0].weight.zero_()
    x = torch.randn(5, 32)
    for made in copies:
        assert torch.equal(made(x), layer()(x))


# ---------------------------------------------------------------- particles


def gradients(posterior: bella.Posterior, x: Tensor) -> list[Tensor]:
    posterior.zero_grad()
    posterior(x).square().sum().backward()
    return [p.grad.clone() for p in posterior.parameters() if p.grad is not None]


def test_particle_layers_multiply_in_strips_and_learn_the_same(taken, monkeypatch):
    torch.manual_seed(0)
    posterior = bella.low_rank(
        nn.Sequential(layer(), nn.Tanh(), layer(40, 70)), 5, 2, ("0", "2"), b_std=0.5
    )
    x = torch.randn(1, 32)
    found, answer = gradients(posterior, x), posterior(x)
    with torch.no_grad():
        assert torch.equal(posterior(x), answer)
    assert (40, 70) in taken
    monkeypatch.setattr(strips, "LARGE", 2**30)
    assert torch.equal(posterior(x), answer)
    for grad, whole in zip(found, gradients(posterior, x), strict=True):
        assert torch.equal(grad, whole)


@pytest.mark.parametrize("sampled", [False, True])
def test_an_answer_is_the_same_in_strips(taken, monkeypatch, sampled):
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=70,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=90,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    posterior = bella.low_rank(
        LlamaForCausalLM(config), 5, 2, ("q_proj", "down_proj"), b_std=0.6, seed=3
    )
    options = {"max_new_tokens": 12, "do_sample": sampled, "eos_token_id": None, "seed": 4}
    prompt = torch.tensor([5, 9, 2, 11])
    before = [dict(vars(module)) for module in posterior.network.modules()]
    answer = posterior.generate(prompt, **options)
    assert {(90, 32), (70, 32), (32, 70), (32, 32)} <= set(taken)
    assert [vars(module) for module in posterior.network.modules()] == before
    taken.clear()
    monkeypatch.setattr(strips, "LARGE", 2**30)
    whole = posterior.generate(prompt, **options)
    assert not taken
    assert torch.equal(answer.tokens, whole.tokens)
    assert torch.equal(answer.particle_token_log_probs, whole.particle_token_log_probs)
    assert torch.equal(answer.token_mutual_information, whole.token_mutual_information)


def test_strips_are_no_change_of_the_network_that_would_be_proven_anew():
    network = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1024))
    posterior = bella.low_rank(network, 5, 2, ("0",), b_std=0.1).eval()
    x = torch.randn(1, 1024)
    whole = bella.predict(posterior, x).logits
    plans = dict(posterior.passes.planner.plans)
    with few_rows(posterior.network):
        assert any("forward" in vars(module) for module in posterior.network.modules())
        assert torch.equal(bella.predict(posterior, x).logits, whole)
    assert posterior.passes.planner.plans == plans
