"""A small causal language model with a tokenizer of its own, and a posterior around it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import bella
from bella.models import language

TEXT = (
    "what is the capital of France Italy Spain Norway Paris Rome Madrid Oslo a city in where who "
    "are you question answer no yes red blue green one two three . ? user assistant"
)
WORDS = TEXT.split()
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} . {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def small_tokenizer(words: Sequence[str] = WORDS) -> hf.PreTrainedTokenizerFast:
    """A token a word."""
    vocabulary = {word: n for n, word in enumerate(["<pad>", "<unk>", "<end>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        chat_template=TEMPLATE,
    )


def byte_tokenizer() -> hf.PreTrainedTokenizerFast:
    """A token a byte of any text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: n for n, c in enumerate(["<pad>", "<unk>", "<end>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<end>"
    )


def small_language_model(seed: int = 0, words: int = len(WORDS)) -> hf.LlamaForCausalLM:
    """Llama's architecture with 10,000 random weights, of a size at which they count."""
    torch.manual_seed(seed)
    config = hf.LlamaConfig(
        vocab_size=words + 3,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    network = hf.LlamaForCausalLM(config).requires_grad_(False).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter.shape[1] ** -0.5)
    return network


def stand_in(
    name: str, page: str, monkeypatch: pytest.MonkeyPatch, folder: Path, *targets: str
) -> None:
    """Put a small network that knows a page's words behind a name that opens a large one."""
    words = list(dict.fromkeys(page.split()))
    small_language_model(words=len(words)).save_pretrained(folder)
    small_tokenizer(words).save_pretrained(folder)
    monkeypatch.setitem(language.LANGUAGE, name, (lambda: folder, targets or ("q_proj", "up_proj")))


def small_reader(folder: Path, words: Sequence[str] = WORDS) -> str:
    """A small BERT that knows some words, with its tokenizer, saved as transformers does."""
    torch.manual_seed(0)
    config = hf.BertConfig(
        vocab_size=len(words) + 3,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        pad_token_id=0,
        initializer_range=0.3,
    )
    hf.BertModel(config).save_pretrained(folder)
    small_tokenizer(words).save_pretrained(folder)
    return f"hf:{folder}"


def small_writers(particles: int = 3, **options) -> bella.Posterior:
    """Particles that differ, on `small_language_model`."""
    options = {
        "rank": 2,
        "target_modules": ("q_proj", "up_proj"),
        "b_std": 0.5,
        "alpha": 4,
    } | options
    return bella.low_rank(small_language_model(), particles, **options)
