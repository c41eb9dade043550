"""The vocabulary in parts: the same logits within rounding, and everything else left alone."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch import nn

import bella
from bella.generation import wide
from bella.generation.wide import Wide, in_parts


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(wide, "PART", 512)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [2, 5, 16])
def test_parts_say_what_the_whole_says(bias, rows):
    layer = nn.Linear(8, 101, bias)
    x = torch.randn(rows, 1, 8)
    with torch.no_grad():
        found = Wide(layer)(x)
        exact = layer.double()(x.double())
    assert found.shape == (rows, 1, 101)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)


def calls_of(layer, x, **context):
    seen = []
    handle = layer.register_forward_hook(lambda *_: seen.append(1))
    with torch.set_grad_enabled(context.get("grad", False)):
        Wide(layer)(x)
    handle.remove()
    return len(seen)


def test_many_rows_one_row_gradients_and_fewer_bits_go_to_the_layer_itself():
    layer = nn.Linear(8, 101)
    assert calls_of(layer, torch.randn(5, 1, 8)) == 0
    assert calls_of(layer, torch.randn(1, 1, 8)) == 1
    assert calls_of(layer, torch.randn(17, 1, 8)) == 1
    assert calls_of(layer, torch.randn(5, 1, 8), grad=True) == 1
    assert calls_of(layer.double(), torch.randn(5, 1, 8, dtype=torch.float64)) == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert calls_of(layer.float(), torch.randn(5, 1, 8)) == 1


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=300,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config).eval()


def test_a_network_is_not_touched_and_answers_the_same():
    network = llama()
    twin = in_parts(network)
    assert isinstance(twin.lm_head, Wide)
    assert type(network.lm_head) is nn.Linear
    assert twin.lm_head.base.weight is network.model.embed_tokens.weight
    tokens = torch.arange(12).view(4, 3)
    with torch.no_grad():
        torch.testing.assert_close(twin(tokens).logits, network(tokens).logits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wide, "PART", 2**22)
        assert in_parts(network) is network  # too small to be worth it
    plain = nn.Sequential(nn.Linear(2, 2))
    assert in_parts(plain) is plain
    heard = llama()
    heard.lm_head.register_forward_hook(lambda *_: None)
    assert in_parts(heard) is heard


def test_answers_are_those_of_the_loop(monkeypatch):
    made = [
        bella.low_rank(llama(), 3, 2, ("q_proj", "v_proj"), b_std=0.3, folding=folding, seed=1)
        for folding in ("auto", "never")
    ]
    met = []
    forward = Wide.forward

    def counted(self, x):
        met.append(x.shape)
        return forward(self, x)

    monkeypatch.setattr(Wide, "forward", counted)
    asked = torch.tensor([[1, 2, 3, 4]])
    one, other = (
        posterior.generate(input_ids=asked, max_new_tokens=6, min_new_tokens=6, do_sample=False)
        for posterior in made
    )
    assert met  # the first ran in parts
    assert torch.equal(one.tokens, other.tokens)
    torch.testing.assert_close(one.token_log_probs, other.token_log_probs)
    torch.testing.assert_close(one.token_mutual_information, other.token_mutual_information)
    assert copy.deepcopy(made[0]).generate(input_ids=asked, max_new_tokens=2, do_sample=False)
