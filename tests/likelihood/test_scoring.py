"""Losses against the networks' own: causal, masked, encoder-decoder and classifying ones."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from helpers import mlp
from torch import nn

import bella
from bella.inputs import split
from bella.likelihood import (
    LIKELIHOODS,
    likelihood_of,
    likelihood_of_outputs,
    losses,
    nll,
    targets_of,
)

TOKENS = 60
SIZE = {
    "vocab_size": TOKENS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
GPT = {"vocab_size": TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
BOTH = IDS | {
    "vocab_size": TOKENS,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
}
T5 = {
    "vocab_size": TOKENS,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 1,
    "num_heads": 2,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
}


def encoder_decoder():
    halves = hf.BertConfig(**SIZE), hf.BertConfig(**SIZE, is_decoder=True, add_cross_attention=True)
    config = hf.EncoderDecoderConfig.from_encoder_decoder_configs(*halves)
    config.pad_token_id, config.decoder_start_token_id = 0, 1
    return hf.EncoderDecoderModel(config)


def llava():
    vision = hf.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    text = hf.LlamaConfig(**SIZE, num_key_value_heads=2)
    config = hf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=59)
    return hf.LlavaForConditionalGeneration(config)


def whisper():
    return hf.WhisperForConditionalGeneration(
        hf.WhisperConfig(**BOTH, num_mel_bins=8, max_source_positions=10, max_target_positions=32)
    )


NETWORKS = {
    # their loss shifts the labels
    "llama": ("tokens", lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZE, num_key_value_heads=2))),
    "gpt2": ("tokens", lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT))),
    "gpt": ("tokens", lambda: hf.OpenAIGPTLMHeadModel(hf.OpenAIGPTConfig(**GPT))),
    "image-gpt": ("tokens", lambda: hf.ImageGPTForCausalImageModeling(hf.ImageGPTConfig(**GPT))),
    "neox": ("tokens", lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SIZE))),
    "bert-decoder": ("tokens", lambda: hf.BertLMHeadModel(hf.BertConfig(**SIZE, is_decoder=True))),
    "mamba": (
        "tokens",
        lambda: hf.MambaForCausalLM(
            hf.MambaConfig(vocab_size=TOKENS, hidden_size=32, num_hidden_layers=2, state_size=4)
        ),
    ),
    "experts": (
        "tokens",
        lambda: hf.MixtralForCausalLM(
            hf.MixtralConfig(**SIZE, num_key_value_heads=2, num_local_experts=2)
        ),
    ),
    "llava": ("tokens", llava),
    "bert-generation": (
        None,
        lambda: hf.BertGenerationDecoder(hf.BertGenerationConfig(**SIZE, is_decoder=True)),
    ),
    # decoders whose users shift the labels
    "bart-decoder": ("classes", lambda: hf.BartForCausalLM(hf.BartConfig(**BOTH))),
    "marian-decoder": ("classes", lambda: hf.MarianForCausalLM(hf.MarianConfig(**BOTH))),
    "xlm": (
        "classes",
        lambda: hf.XLMWithLMHeadModel(
            hf.XLMConfig(vocab_size=TOKENS, emb_dim=32, n_layers=2, n_heads=2)
        ),
    ),
    "xlnet": (
        "classes",
        lambda: hf.XLNetLMHeadModel(
            hf.XLNetConfig(vocab_size=TOKENS, d_model=32, n_layer=2, n_head=2, d_inner=48)
        ),
    ),
    # a label for each position
    "masked": ("classes", lambda: hf.BertForMaskedLM(hf.BertConfig(**SIZE))),
    "modern-bert": (
        "classes",
        lambda: hf.ModernBertForMaskedLM(
            hf.ModernBertConfig(**SIZE, pad_token_id=0, cls_token_id=1, sep_token_id=2)
        ),
    ),
    "token-classes": (
        "classes",
        lambda: hf.BertForTokenClassification(hf.BertConfig(**SIZE, num_labels=TOKENS)),
    ),
    # decoder inputs from labels
    "t5": ("classes", lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5))),
    "bart": ("classes", lambda: hf.BartForConditionalGeneration(hf.BartConfig(**BOTH))),
    "mbart": ("classes", lambda: hf.MBartForConditionalGeneration(hf.MBartConfig(**BOTH))),
    "marian": ("classes", lambda: hf.MarianMTModel(hf.MarianConfig(**BOTH))),
    "m2m": ("classes", lambda: hf.M2M100ForConditionalGeneration(hf.M2M100Config(**BOTH))),
    "whisper": ("classes", whisper),
    "encoder-decoder": ("classes", encoder_decoder),
    # a label for each example
    "sequence-classes": (
        "classes",
        lambda: hf.GPT2ForSequenceClassification(
            hf.GPT2Config(**GPT, num_labels=3, pad_token_id=0)
        ),
    ),
    "bart-classes": (
        "classes",
        lambda: hf.BartForSequenceClassification(hf.BartConfig(**BOTH, num_labels=3)),
    ),
}


def batch(name):
    """Tokens with labels of which some do not count, as a collator gives them."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 58, (4, 9), generator=generator)
    ids[:, -1] = 2
    labels = torch.randint(3, 58, (4, 9), generator=generator)
    labels[0, -3:] = labels[1, :2] = labels[2, 4] = -100
    inputs = {"input_ids": ids}
    if name == "whisper":
        inputs = {"input_features": torch.randn(4, 8, 20, generator=generator)}
    if name.endswith("-classes") and name != "token-classes":
        labels = torch.tensor([0, 2, 1, 2])
    return inputs, labels


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Version v4.12.0")
def test_the_loss_is_the_networks_own(name):
    expected, make = NETWORKS[name]
    torch.manual_seed(0)
    network = make().eval()
    inputs, labels = batch(name)
    assert likelihood_of(network) == expected
    _, kwargs, labels = split(inputs | {"labels": labels}, network)
    outputs = network(**kwargs)
    kind = expected or likelihood_of_outputs(outputs)
    ours = nll(outputs.logits.unsqueeze(0), labels, likelihood=kind)
    own = network(**inputs, labels=labels).loss
    torch.testing.assert_close(ours, own, rtol=1e-5, atol=1e-6)


POSTERIORS = {
    "gpt2": ("c_fc",),
    "masked": ("query", "value"),
    "token-classes": ("query", "value"),
    "t5": ("q", "v"),
    "bart": ("q_proj", "v_proj"),
}


@pytest.mark.parametrize("name", POSTERIORS)
@torch.no_grad()
def test_of_a_posterior_it_is_the_sum_over_particles(name):
    torch.manual_seed(0)
    network = NETWORKS[name][1]()
    posterior = bella.low_rank(network, 3, 2, POSTERIORS[name], b_std=0.5).eval()
    inputs, labels = batch(name)
    _, kwargs, labels = split(inputs | {"labels": labels}, posterior.network)
    own = [posterior.particle(i).eval()(**inputs, labels=labels).loss for i in range(3)]
    assert max(own) - min(own) > 1e-4  # particles that differ
    torch.testing.assert_close(nll(posterior(**kwargs), labels), sum(own), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["t5", "bart", "gpt2", "whisper", "bert-generation"])
def test_fit_descends_the_networks_own_loss(name):
    torch.manual_seed(0)
    network = NETWORKS[name][1]().eval()
    inputs, labels = batch(name)
    further = {"whisper": ("fc1", "fc2"), "bert-generation": (r".*dense",)}
    posterior = bella.low_rank(network, 2, 4, (POSTERIORS | further)[name], b_std=0.1, alpha=16)

    @torch.no_grad()
    def own():
        plain = [posterior.particle(i).eval() for i in range(2)]
        return sum(float(network(**inputs, labels=labels).loss) for network in plain)

    before = own()
    data = [{k: v[i] for k, v in inputs.items()} | {"labels": labels[i]} for i in range(4)]
    bella.fit(
        posterior, data, epochs=15, batch_size=4, learning_rate=0.05, warmup=0.0, progress=False
    )
    assert own() < before - 0.02


def test_batches_that_bring_decoder_inputs_keep_them():
    network = NETWORKS["t5"][1]()
    inputs, labels = batch("t5")
    given = torch.zeros_like(labels)
    _, kwargs, _ = split(inputs | {"labels": labels, "decoder_input_ids": given}, network)
    assert kwargs["decoder_input_ids"] is given


def test_a_decoder_without_a_beginning_is_refused():
    for network, words in ((whisper(), "how its decoder begins"), (encoder_decoder(), "begin its")):
        network.config.__dict__["decoder_start_token_id"] = None
        with pytest.raises(bella.BellaError, match=words):
            split({"input_ids": torch.zeros(2, 3), "labels": torch.ones(2, 3).long()}, network)


def test_wrapped_networks_go_by_their_outputs():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.inner = hf.GPT2LMHeadModel(hf.GPT2Config(**GPT, attn_pdrop=0.0, resid_pdrop=0.0))

        def forward(self, input_ids):
            return self.inner(input_ids=input_ids)

    network = Wrapped()
    assert likelihood_of(network) is None
    inputs, labels = batch("gpt2")
    posterior = bella.low_rank(network, 2, 2, (r".*c_fc",))
    data = [{"input_ids": i, "labels": y} for i, y in zip(*inputs.values(), labels, strict=True)]
    record = bella.fit(posterior, data, epochs=1, batch_size=4, progress=False)
    with torch.no_grad():  # particles begin where the network is
        own = Wrapped().inner.eval()(**inputs, labels=labels).loss
    assert record.history[0]["loss"] == pytest.approx(float(own), rel=0.05)


@pytest.mark.parametrize("wrapped", [False, True])
@torch.no_grad()
def test_evaluation_scores_the_tokens_that_training_scores(wrapped):
    class Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, input_ids):
            return self.inner(input_ids=input_ids)

    torch.manual_seed(0)
    network = NETWORKS["gpt2"][1]()
    network = Wrapped(network) if wrapped else network
    posterior = bella.low_rank(network, 2, 2, (r".*c_fc",)).eval()
    inputs, labels = batch("gpt2")
    plain = NETWORKS["gpt2"][1]().eval()
    plain.load_state_dict(
        (posterior.particle(0).inner if wrapped else posterior.particle(0)).state_dict()
    )
    found = bella.evaluate(posterior, [inputs | {"labels": labels}])
    own = float(plain(**inputs, labels=labels).loss)  # particles begin where the network is
    assert found["nll"] == pytest.approx(own, rel=1e-5)


# ------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("network", "words"),
    [(lambda: hf.BertForQuestionAnswering(hf.BertConfig(**SIZE)), "a loss of its own")],
)
def test_networks_whose_loss_does_not_exist_here_are_refused_before_training(network, words):
    posterior = bella.low_rank(network(), 2, 2, ("query",))
    x = torch.randint(3, 50, (4, 6))
    before = {name: value.clone() for name, value in posterior.state_dict().items()}
    data = [{"input_ids": row, "labels": torch.tensor(0)} for row in x]
    with pytest.raises(bella.BellaError, match=words) as error:
        bella.fit(posterior, data, progress=False)
    assert "'classes'" in str(error.value)
    assert "\n" not in str(error.value)
    for name, value in posterior.state_dict().items():
        assert torch.equal(value, before[name])
    with pytest.raises(bella.BellaError):
        bella.evaluate(posterior, torch.utils.data.DataLoader(data, 2))


def test_a_laplace_approximation_of_a_causal_model_is_refused():
    network = NETWORKS["gpt2"][1]()
    posterior = bella.low_rank(network, 1, 2, ("c_fc",))
    with pytest.raises(bella.BellaError, match="no likelihood of tokens"):
        bella.laplace(posterior, [batch("gpt2")])


def test_one_logit_is_refused_wherever_it_is_scored():
    network = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
    posterior = bella.low_rank(network, 3, 2, ("0",))
    x, y = torch.randn(8, 5), torch.randint(0, 2, (8,))
    for call in (
        lambda: nll(posterior(x), y),
        lambda: bella.predict(posterior, x),
        lambda: bella.evaluate(posterior, [(x, y)]),
        lambda: bella.fit(posterior, (x, y * 0), progress=False),
    ):
        with pytest.raises(bella.BellaError, match="two logits"):
            call()


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.rand(6), "float32"),
        (torch.rand(6, 3).round(), "float32"),
        (torch.ones(6, 3, dtype=torch.bool), "bool"),
        (torch.ones(6, 3, dtype=torch.long), "do not fit"),
        ([0, 1, 2, 0, 1, 2], "list"),
    ],
)
def test_labels_that_are_no_class_numbers_are_refused(labels, words):
    with pytest.raises(bella.BellaError, match=words):
        nll(torch.randn(2, 6, 3), labels)


def test_several_labels_are_not_taken_for_those_of_several_particles():
    """Three particles, three examples, three classes: the shapes agree by chance."""
    posterior = bella.low_rank(nn.Sequential(nn.Linear(4, 3), nn.Tanh()), 3, 2, ("0",))
    several = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 0]])
    with pytest.raises(bella.BellaError, match="do not fit"):
        bella.fit(posterior, (torch.randn(3, 4), several), batch_size=3, progress=False)


def test_tokens_need_positions():
    with pytest.raises(bella.BellaError, match="no positions"):
        nll(torch.randn(2, 6, 3), torch.zeros(6, dtype=torch.long), likelihood="tokens")


@pytest.mark.parametrize("name", ["numbers", "token"])
def test_an_unknown_likelihood_is_named_with_those_that_exist(name):
    with pytest.raises(bella.BellaError, match="'classes'"):
        nll(torch.randn(2, 6, 3), torch.zeros(6, dtype=torch.long), likelihood=name)
    with pytest.raises(bella.BellaError, match="'classes'"):
        bella.fit(
            bella.low_rank(mlp(), 2, 2, ("0",)),
            (torch.randn(4, 4), torch.zeros(4).long()),
            likelihood=name,
            progress=False,
        )


# ------------------------------------------------------------ what it computes


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64])
def test_class_numbers_may_have_any_integer_type(dtype):
    logits = torch.randn(2, 6, 3)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    assert nll(logits, labels.to(dtype)) == nll(logits, labels)


def test_sums_and_counts_are_each_particles():
    logits = torch.randn(3, 4, 5, 7, dtype=torch.float64)
    labels = torch.randint(0, 7, (4, 5))
    labels[0, 1:] = labels[2] = -100
    sums, counts = losses(logits, labels)
    assert counts.tolist() == [11, 11, 11]
    each = [F.cross_entropy(x.flatten(0, 1), labels.flatten(), reduction="sum") for x in logits]
    torch.testing.assert_close(sums, torch.stack(each))
    torch.testing.assert_close(nll(logits, labels), sum(each) / 11)
    nothing = torch.full_like(labels, -100)
    assert nll(logits, nothing) == 0
    assert all(math.isfinite(float(x.sum())) for x in losses(logits, nothing))


def test_tokens_are_scored_one_place_before_theirs():
    labels = torch.tensor([[1, 2, -100, 3]])
    assert targets_of(labels, "tokens").tolist() == [[2, -100, 3, -100]]
    assert targets_of(labels, "classes").tolist() == labels.tolist()
    assert set(LIKELIHOODS) == {"classes", "tokens", "bernoulli", "gaussian"}


def test_a_tuple_that_may_begin_with_features_is_refused():
    features, logits = torch.randn(3, 4, 8), torch.randn(3, 4, 2)
    labels = torch.tensor([0, 1, 0, 1])
    for outputs in ((features, logits), [features, logits]):
        with pytest.raises(bella.BellaError, match=r"\(3, 4, 8\).*features and no logits"):
            bella.nll(outputs, labels)
    for beside in ((features,), (logits,), (torch.randn(3, 4, 5, 8), torch.arange(3))):
        found = bella.nll((logits, *beside), labels)
        assert torch.equal(found, bella.nll({"logits": logits}, labels))
