"""Predictions for every token or pixel: shapes, what counts, unequal lengths, early stops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bella
from bella import metrics
from bella.evaluation.evaluate import evaluate_predictive
from bella.prediction.predictive import Predictive

N, CLASSES = 4, 3


def logits_of(*batch: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(N, *batch, CLASSES, dtype=torch.double, generator=generator)


def labels_of(*batch: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, batch, generator=generator)
    labels[torch.rand(batch, generator=generator) < 0.3] = -100
    return labels


@pytest.mark.parametrize("batch", [(5, 7), (2, 3, 4)])
def test_everything_has_the_shape_of_the_positions(batch):
    predictive = Predictive(logits_of(*batch))
    for name in ("entropy", "expected_entropy", "mutual_information", "confidence", "predictions"):
        assert getattr(predictive, name).shape == batch
    assert predictive.probs.shape == (*batch, CLASSES)
    assert len(predictive) == batch[0]
    flat = Predictive(logits_of(*batch).flatten(1, -2))
    for name in ("entropy", "mutual_information", "log_probs"):
        torch.testing.assert_close(
            getattr(predictive, name).flatten(0, len(batch) - 1), getattr(flat, name)
        )
    for metric in (metrics.diversity, metrics.disagreement):
        assert metric(predictive.particle_probs) == pytest.approx(metric(flat.particle_probs))


@pytest.mark.parametrize("batch", [(6,), (5, 7), (2, 3, 4)])
def test_only_what_counts_is_scored(batch):
    predictive, labels = Predictive(logits_of(*batch)), labels_of(*batch)
    expected = F.nll_loss(predictive.log_probs.flatten(0, -2), labels.flatten())
    assert predictive.nll(labels) == pytest.approx(expected.item())
    counted, left = predictive.counted(labels)
    assert counted.logits.shape == (N, int((labels != -100).sum()), CLASSES)
    assert torch.equal(left, labels[labels != -100])
    torch.testing.assert_close(counted.probs, predictive.probs[labels != -100])


INTEGERS = "uint8", "int8", "int16", "int32", "uint16", "uint64"


@pytest.mark.parametrize("dtype", [getattr(torch, name) for name in INTEGERS])
def test_labels_may_be_of_any_integer_type(dtype):
    predictive, labels = Predictive(logits_of(4, 5)), torch.arange(20).view(4, 5) % CLASSES
    assert predictive.nll(labels.to(dtype)) == predictive.nll(labels)
    figures = evaluate_predictive(predictive, labels.to(dtype))
    expected = evaluate_predictive(predictive, labels)
    assert figures == pytest.approx(expected, nan_ok=True)


def test_class_156_in_eight_bits_is_not_what_does_not_count():
    """-100 as an unsigned byte is 156."""
    predictive = Predictive(torch.arange(200.0).expand(2, 1, 200))
    label = torch.tensor([156])
    assert predictive.nll(label.to(torch.uint8)) == predictive.nll(label) > 40
    assert len(predictive.counted(label.to(torch.uint8))[1]) == 1


def test_an_examples_uncertainty_is_the_mean_of_what_counts():
    predictive, labels = Predictive(logits_of(4, 6)), labels_of(4, 6)
    labels[2] = -100
    counted, _ = predictive.counted(labels)
    assert counted.lengths.tolist() == (labels != -100).sum(1).tolist()
    found = counted.by_example(counted.entropy)
    for i in range(4):
        own = predictive.entropy[i][labels[i] != -100]
        assert found[i].item() == pytest.approx(own.mean().item(), nan_ok=True)
    assert math.isnan(found[2])
    torch.testing.assert_close(
        predictive.by_example(predictive.entropy), predictive.entropy.mean(1)
    )
    plain = Predictive(logits_of(4))
    assert torch.equal(plain.by_example(plain.entropy), plain.entropy)


def test_unequal_lengths_are_joined_by_what_counts():
    parts = [(Predictive(logits_of(2, length)), labels_of(2, length)) for length in (3, 7, 5)]
    with pytest.raises(bella.BellaError, match=r"\.counted\(labels\) or \.positions\(mask\)"):
        Predictive.cat([part for part, _ in parts])
    counted = [part.counted(labels) for part, labels in parts]
    whole, labels = Predictive.cat([p for p, _ in counted]), torch.cat([y for _, y in counted])
    assert whole.lengths.tolist() == [n for p, _ in counted for n in p.lengths.tolist()]
    total = sum(part.nll(y) * int((y != -100).sum()) for part, y in parts)
    assert whole.nll(labels) == pytest.approx(total / len(labels))
    torch.testing.assert_close(
        whole.by_example(whole.mutual_information),
        torch.cat([p.by_example(p.mutual_information) for p, _ in counted]),
    )
    again, _ = whole.counted(torch.where(labels == 0, -100, labels))
    assert int(again.lengths.sum()) == int((labels != 0).sum())
    assert len(again.lengths) == 6
    assert whole.cpu().lengths is not None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Predictive(logits_of(4, 5)).nll(torch.zeros(4, 6).long()), "do not fit"),
        (lambda: Predictive(logits_of(4, 5)).nll(torch.zeros(4, 5)), "integers"),
        (lambda: Predictive(logits_of(4, 5)).nll(torch.full((4, 5), 3)), "out of range"),
        (lambda: Predictive(logits_of(4, 5)).nll(torch.full((4, 5), -100)), "no examples"),
        (lambda: Predictive(logits_of(4, 5)).positions(torch.ones(4).bool()), "mask"),
    ],
)
def test_what_does_not_fit_is_named(make, words):
    with pytest.raises(bella.BellaError, match=words):
        make()


# ------------------------------------------------------------ predict


class Tokens(nn.Module):
    """A label for each of a row of numbers, the classes where the case wants them."""

    def __init__(self, first: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(1, 8), nn.Linear(8, CLASSES)
        self.first = first

    def forward(self, x):
        logits = self.head(torch.tanh(self.body(x.unsqueeze(-1))))
        return logits.movedim(-1, 1) if self.first else logits


def particles(first: bool = False) -> bella.Posterior:
    return bella.low_rank(Tokens(first), N, 1, ("body", "head"), b_std=1.0, shared_prefix=False)


X = torch.randn(6, 5, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("first", [False, True])
def test_the_predictive_has_the_classes_last(first):
    plain = [particles(first).particle(i)(X) for i in range(N)]
    expected = torch.stack([one.movedim(1, -1) if first else one for one in plain])
    axis = 1 if first else -1
    found = bella.predict(particles(first), X, class_axis=axis)
    torch.testing.assert_close(found.logits, expected)
    by_labels = bella.predict(particles(first), X, labels=torch.zeros(6, 5))
    assert torch.equal(by_labels.logits, found.logits)
    chunks = bella.predict(particles(first), X, class_axis=axis, particles_per_pass=2)
    torch.testing.assert_close(chunks.logits, expected)
    with pytest.raises(bella.BellaError, match="class_axis=1"):
        bella.predict(particles(first), X)


def test_the_most_disputed_position_that_counts_decides_an_early_stop():
    posterior, labels = particles(), labels_of(6, 5)
    options = {"class_axis": -1, "first": 2}
    everyone = bella.predict(posterior, X, **options)
    disputed = metrics.mutual_information(everyone.particle_probs[:2])
    for mask, given in ((torch.ones(6, 5).bool(), None), (labels != -100, labels)):
        most = disputed.where(mask, 0).amax(1)
        bound = most.sort().values[2:4].mean().item()
        stopped = bella.predict(posterior, X, stop=bound, labels=given, **options)
        early = most < bound
        assert 0 < early.sum() < 6
        assert torch.equal(stopped.weights[2:].eq(0).all(0).all(1), early)
        assert stopped.saved == pytest.approx(early.double().mean().item() * 2 / N)
        both = Predictive(everyone.logits[:2]), everyone
        expected = torch.where(early[:, None, None], both[0].probs, both[1].probs)
        torch.testing.assert_close(stopped.probs, expected)


def test_what_all_said_tells_the_early_stop_of_tokens_that_count():
    posterior, labels = particles(), labels_of(6, 5)
    options = {"class_axis": -1, "labels": labels}
    everyone, _ = bella.predict(posterior, X, **options).counted(labels)
    for bound in (1e-4, 1e-3, 1e-2, math.inf):
        stopped, _ = bella.predict(posterior, X, stop=bound, **options).counted(labels)
        told = everyone.stopped(bound)
        torch.testing.assert_close(told.all_weights(), stopped.all_weights())
        assert told.saved == pytest.approx(stopped.saved)


# ------------------------------------------------------------ what is not finite


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rows_of_inputs_that_are_not_finite_are_named(value):
    posterior = bella.low_rank(nn.Sequential(nn.Linear(4, 3)), 2, 1, ("0",))
    x = torch.randn(9, 4)
    x[3, 1] = value
    with pytest.raises(bella.BellaError, match=r"^Row 3 of the inputs is not finite"):
        bella.predict(posterior, x)
    x[[5, 7]] = value
    with pytest.raises(bella.BellaError, match=r"^Rows 3, 5, 7 of the inputs are not finite"):
        bella.predict(posterior, x, stop=0.1)
    x[:] = value
    with pytest.raises(bella.BellaError, match=r"0, 1, 2, 3, 4 and 4 more of the inputs"):
        bella.predict(posterior, x)
    data = [(torch.randn(9, 4), torch.zeros(9).long()), (x, torch.zeros(9).long())]
    with pytest.raises(bella.BellaError, match=r"^Batch 1: Rows 0, "):
        bella.evaluate(posterior, data)


def test_logits_that_are_not_finite_of_inputs_that_are():
    network = nn.Sequential(nn.Linear(4, 3))
    nn.init.constant_(network[0].weight, 10.0)
    posterior = bella.low_rank(network, 2, 1, ("0",))
    x = torch.randn(9, 4)
    x[2] = 3e38
    with pytest.raises(bella.BellaError, match=r"^Row 2 of the network's logits is not finite, th"):
        bella.predict(posterior, x)
