"""transformers' Trainer, one of other people's loops, on a posterior."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from torch.utils.data import Dataset

import bella

pytest.importorskip("accelerate")


class Sequences(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        ids = torch.arange(6) * (i + 2) % 90 + 5
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[0] % 3}


class Trainer(hf.Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = bella.nll(outputs, labels)
        return (loss, outputs) if return_outputs else loss


def moved(folder, batch, accumulate):
    """How far one step of plain gradient descent takes the heads."""
    torch.manual_seed(0)
    config = hf.BertConfig(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    network = hf.BertForSequenceClassification(config)
    posterior = bella.low_rank(network, 3, 2, ("query",), modules_to_save=("classifier",))
    head = posterior.network.classifier.values["weight"]
    before = head.detach().clone()
    arguments = hf.TrainingArguments(
        folder,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate,
        num_train_epochs=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        remove_unused_columns=False,
        max_grad_norm=0,
        optim="sgd",
        lr_scheduler_type="constant",
        learning_rate=0.1,
    )
    Trainer(posterior, arguments, train_dataset=Sequences()).train()
    return head.detach() - before


def test_accumulated_batches_are_one_batch(tmp_path):
    whole, parts = moved(tmp_path, 8, 1), moved(tmp_path, 4, 2)
    assert whole.norm() > 1e-3
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-6)
