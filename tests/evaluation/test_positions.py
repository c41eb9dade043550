"""Networks that label tokens and pixels: trained, validated, predicted and evaluated."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForTokenClassification,
    SegformerConfig,
    SegformerForSemanticSegmentation,
)

import bella
from bella.evaluation.evaluate import collect
from bella.prediction.temperature import fit_temperature

N, LABELS = 3, 3


def bert() -> bella.Posterior:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=LABELS,
    )
    network = BertForTokenClassification(config)
    return bella.low_rank(
        network, N, 2, ("query", "value"), modules_to_save=("classifier",), b_std=0.3
    )


def sentences(count: int = 10) -> list[dict[str, torch.Tensor]]:
    """Of unequal lengths; the label of a word is its number modulo 3, that of [CLS] counts not."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for length in torch.randint(3, 9, (count,), generator=generator).tolist():
        words = torch.randint(5, 40, (length,), generator=generator)
        made.append({"input_ids": words, "labels": torch.where(words > 7, words % LABELS, -100)})
    return made


def padded(items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """To the longest of the batch, as collators do."""
    pad = nn.utils.rnn.pad_sequence
    words = [item["input_ids"] for item in items]
    return {
        "input_ids": pad(words, batch_first=True),
        "attention_mask": pad([torch.ones_like(one) for one in words], batch_first=True),
        "labels": pad([item["labels"] for item in items], batch_first=True, padding_value=-100),
    }


def test_tokens_of_unequal_lengths_are_evaluated_as_one_by_one():
    posterior = bert().eval()
    data = sentences()
    loader = DataLoader(data, 4, collate_fn=padded)
    predictive, labels = collect(posterior, loader)
    alone, theirs = [], []
    for item in data:
        mask = item["labels"] != -100
        with torch.no_grad():
            logits = posterior(input_ids=item["input_ids"][None]).logits
        alone.append(logits[:, 0, mask])
        theirs.append(item["labels"][mask])
    torch.testing.assert_close(predictive.logits, torch.cat(alone, 1), rtol=1e-4, atol=1e-5)
    assert torch.equal(labels, torch.cat(theirs))
    assert predictive.lengths.tolist() == [len(one) for one in theirs]
    figures = bella.evaluate(posterior, loader, ood={"same": loader})
    probs = torch.cat(alone, 1).softmax(-1).mean(0)
    assert figures["nll"] == pytest.approx(F.nll_loss(probs.log(), labels).item(), rel=1e-4)
    right = (probs.argmax(-1) == labels).double().mean().item()
    assert figures["accuracy"] == figures["accuracy_same"] == pytest.approx(right)
    assert figures["auroc_same_entropy"] == pytest.approx(0.5)


def test_a_sentence_says_the_same_however_it_is_padded():
    posterior, data = bert(), sentences()
    one, two = (collect(posterior, DataLoader(data, b, collate_fn=padded))[0] for b in (1, 10))
    torch.testing.assert_close(
        one.by_example(one.mutual_information),
        two.by_example(two.mutual_information),
        rtol=1e-3,
        atol=1e-6,
        equal_nan=True,
    )


def test_a_token_classifier_is_validated_while_it_trains():
    posterior, data = bert(), sentences(24)
    loaders = [DataLoader(part, 6, collate_fn=padded) for part in (data[:18], data[18:])]
    record = bella.fit(
        posterior,
        loaders[0],
        validation=loaders[1],
        epochs=3,
        learning_rate=3e-2,
        cache_prefix=False,
        progress=False,
    )
    nlls = [row["validation_nll"] for row in record.history]
    assert nlls[-1] < nlls[0]
    best = bella.evaluate(posterior, loaders[1])
    assert best["nll"] == pytest.approx(min(nlls), rel=1e-4)


class Pixels(nn.Module):
    """A label for each pixel, the classes on axis 1 as torch has them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(2, 6, 3, padding=1)
        self.head = nn.Conv2d(6, LABELS, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.body(x)))


def pictures(count: int = 8, size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(count, 2, size, size, generator=generator)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0)
    y[:, 0] = -100
    return x, y


def test_pixels_are_trained_validated_and_evaluated():
    x, y = pictures()
    posterior = bella.low_rank(Pixels(), N, 1, ("body",), modules_to_save=("head",), b_std=0.1)
    options = {"epochs": 4, "batch_size": 4, "learning_rate": 3e-2, "progress": False}
    record = bella.fit(posterior, (x, y), validation=(x, y), **options)
    assert record.history[-1]["validation_nll"] < record.history[0]["validation_nll"]
    figures = bella.evaluate(posterior, [(x[:4], y[:4]), (x[4:], y[4:])])
    with torch.no_grad():
        probs = posterior(x).softmax(2).mean(0)
    expected = F.nll_loss(probs.log(), y)
    assert figures["nll"] == pytest.approx(expected.item(), rel=1e-4)
    assert figures["nll"] == pytest.approx(record.history[-1]["validation_nll"], rel=1e-4)
    predictive = bella.predict(posterior, x, class_axis=1)
    assert predictive.entropy.shape == y.shape
    torch.testing.assert_close(predictive.probs, probs.movedim(1, -1))
    scaled = fit_temperature(predictive.logits, y)
    flat, left = predictive.counted(y)
    assert scaled == pytest.approx(fit_temperature(flat.logits, left))
    assert predictive.tempered(scaled).nll(y) <= predictive.nll(y)


def test_a_batch_that_two_axes_fit_has_the_axis_of_those_before():
    posterior = bella.low_rank(Pixels(), N, 1, ("body",), b_std=0.1)
    x, y = pictures()
    small, labels = pictures(8, LABELS)
    with pytest.raises(bella.BellaError, match="class_axis=1"):
        bella.evaluate(posterior, [(small, labels)])
    both = bella.evaluate(posterior, [(x, y), (small, labels)])
    assert both == bella.evaluate(posterior, [(x, y), (small, labels)], class_axis=1)


def segformer(ignore: int = 255) -> SegformerForSemanticSegmentation:
    torch.manual_seed(0)
    config = SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
        num_labels=LABELS,
        classifier_dropout_prob=0.0,
        drop_path_rate=0.0,
        semantic_loss_ignore_index=ignore,
    )
    return SegformerForSemanticSegmentation(config)


def test_a_segmentation_transformer_has_its_own_loss():
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    y = torch.randint(LABELS, (4, 16, 16), generator=torch.Generator().manual_seed(1))
    y[:, :3] = 255
    with torch.no_grad():
        own = segformer().eval()(pixel_values=x, labels=y).loss
    posterior = bella.low_rank(
        segformer(), N, 2, ("fc1",), modules_to_save=("decode_head.classifier",)
    ).eval()
    with torch.no_grad():
        ours = bella.nll(posterior(pixel_values=x), y, ignore_index=255)
    torch.testing.assert_close(ours, N * own, rtol=1e-4, atol=1e-5)
    batches = [{"pixel_values": x[i : i + 2], "labels": y[i : i + 2]} for i in (0, 2)]
    found = bella.evaluate(posterior, batches, ignore_index=255)
    assert found["nll"] == pytest.approx(own.item(), rel=1e-3)
    with pytest.raises(bella.BellaError, match="Label 255 is out of range"):
        bella.evaluate(posterior, batches)
    assert bella.predict(posterior, {"pixel_values": x}).probs.shape == (4, 8, 8, LABELS)


# ------------------------------------------------------------ what cannot be validated


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.full((8, 6, 6), 7), "Label 7 is out of range"),
        (torch.zeros(8, 5, 6).long(), "do not fit"),
        (torch.zeros(8, 6, 6), "integers"),
        (torch.full((8, 6, 6), -100), "all of their labels are -100"),
    ],
)
def test_what_cannot_be_validated_is_refused_before_it_trains(labels, words):
    posterior = bella.low_rank(Pixels(), N, 1, ("body",), b_std=0.1)
    before = {name: p.detach().clone() for name, p in posterior.named_parameters()}
    x, y = pictures()
    with pytest.raises(bella.BellaError, match=f"validation data .*{words}"):
        bella.fit(posterior, (x, y), validation=(x, labels), epochs=1, progress=False)
    for name, value in posterior.named_parameters():
        assert torch.equal(value, before[name])


def test_data_in_which_nothing_counts_are_refused():
    x, _ = pictures()
    posterior = bella.low_rank(Pixels(), N, 1, ("body",))
    with pytest.raises(bella.BellaError, match="Nothing in the data counts"):
        bella.evaluate(posterior, [(x, torch.full((8, 6, 6), -100))])


def test_one_network_has_no_auroc_of_mutual_information():
    """Nor have particles that say the same: a constant would look like a measured .5."""
    x, y = pictures()
    for particles in (1, 3):
        posterior = bella.low_rank(Pixels(), particles, 1, ("body",))  # B = 0: all say the same
        found = bella.evaluate(posterior, [(x, y)], ood=[(x, y)])
        assert found["mutual_information"] == found["mi_ood"] == 0
        assert math.isnan(found["auroc_errors_mi"])
        assert math.isnan(found["auroc_ood_mi"])
        assert 0 < found["auroc_errors_entropy"] < 1
