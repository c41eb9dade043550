"""A small real text task: a language model learns the sentences that describe a data set."""

from __future__ import annotations

import re

import torch
import transformers as hf
from sklearn.datasets import load_breast_cancer, load_wine
from torch.utils.data import DataLoader, Dataset

import bella

PADDING = 0


def sentences() -> list[str]:
    """Of scikit-learn's descriptions of its data sets: real English, at hand without a network."""
    text = " ".join(load().DESCR for load in (load_wine, load_breast_cancer))
    lines = re.split(r"(?<=[.:])\s+", text)
    return [line for line in lines if len(line.split()) > 6 and re.match("[A-Z]", line)]


class Sentences(Dataset):
    """So many sentences as token numbers; the labels are the tokens (-100 where padded)."""

    def __init__(self, count: int = 10):
        words = [re.findall(r"[A-Za-z]+|[^\sA-Za-z]", line)[:24] for line in sentences()[:count]]
        self.vocabulary = ["", *sorted({word for line in words for word in line})]
        number = {word: i for i, word in enumerate(self.vocabulary)}
        self.rows = [torch.tensor([number[word] for word in line]) for line in words]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return {"input_ids": self.rows[i], "labels": self.rows[i]}


def pad(examples):
    def padded(name, value):
        rows = [example[name] for example in examples]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    ids = padded("input_ids", PADDING)
    return {
        "input_ids": ids,
        "attention_mask": (ids != PADDING).long(),
        "labels": padded("labels", -100),
    }


def loader(data: Dataset, size: int = 2) -> DataLoader:
    return DataLoader(data, batch_size=size, collate_fn=pad)


def language_model(words: int) -> hf.GPT2LMHeadModel:
    torch.manual_seed(0)
    config = hf.GPT2Config(
        vocab_size=words,
        n_positions=32,
        n_embd=32,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return hf.GPT2LMHeadModel(config)


def make(data: Sentences, particles: int = 3) -> bella.Posterior:
    network = language_model(len(data.vocabulary))
    return bella.low_rank(network, particles, 2, ("c_attn", "c_fc"), b_std=0.02, seed=0)
