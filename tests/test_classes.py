"""Where a network's outputs have their classes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_outputs import (
    CausalLMOutputWithPast,
    MaskedLMOutput,
    SemanticSegmenterOutput,
    TokenClassifierOutput,
)

import bella
from bella.classes import ClassAxis


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.double)


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(5, 7), st.data())
def test_the_labels_shape_shows_the_axis(positions, classes, data):
    """No position is as long as there are classes, so only one axis can be theirs."""
    shape = [2, *positions]
    axis = data.draw(st.integers(1, len(shape)))
    logits = random(3, *shape[:axis], classes, *shape[axis:])
    labels = torch.zeros(shape, dtype=torch.long)
    placed = ClassAxis().place(logits, logits, labels)
    assert placed.shape == (3, *shape, classes)
    torch.testing.assert_close(placed, logits.movedim(axis + 1, -1), rtol=0, atol=0)


def test_plain_classifiers_have_no_other_axis():
    logits = random(3, 8, 8)
    assert ClassAxis().place(logits, logits) is not None
    assert torch.equal(ClassAxis().place(logits, logits), logits)


@pytest.mark.parametrize("own", [False, True])
def test_the_loss_is_torchs_with_the_classes_on_axis_1(own):
    logits, n = random(3, 2, 5, 4, 6), 3
    labels = torch.randint(5, (n, 2, 4, 6) if own else (2, 4, 6))
    labels[..., :2, 0] = -100
    expected = sum(F.cross_entropy(logits[i], labels[i] if own else labels) for i in range(n))
    torch.testing.assert_close(bella.nll(logits, labels), expected)


def test_what_two_axes_fit_is_refused_and_settled_by_name():
    logits, labels = random(3, 2, 6, 6), torch.randint(6, (2, 6))
    with pytest.raises(bella.BellaError, match=r"on axis 1 or 2 .* class_axis=1"):
        bella.nll(logits, labels)
    first, last = (bella.nll(logits, labels, class_axis=axis) for axis in (1, -1))
    torch.testing.assert_close(first, sum(F.cross_entropy(one, labels) for one in logits))
    torch.testing.assert_close(last, bella.nll(logits.mT, labels, class_axis=1))
    assert first != last


def test_an_axis_that_was_found_is_kept():
    axis = ClassAxis()
    first = random(3, 2, 6, 4)
    axis.place(first, first, torch.zeros(2, 4, dtype=torch.long))
    assert axis.axis == 1
    twice = random(3, 2, 6, 6)
    assert torch.equal(axis.place(twice, twice, torch.zeros(2, 6, dtype=torch.long)), twice.mT)


@pytest.mark.parametrize("kind", [TokenClassifierOutput, MaskedLMOutput, CausalLMOutputWithPast])
def test_transformers_outputs_say_it_themselves(kind):
    logits = random(3, 2, 6, 6)
    labels = torch.randint(6, (2, 6))
    assert torch.equal(ClassAxis().place(logits, kind(logits=logits)), logits)
    said, told = logits, labels
    if kind is CausalLMOutputWithPast:  # a position says the next token
        said, told = logits[:, :, :-1], labels[:, 1:]
    expected = sum(F.cross_entropy(one.mT, told) for one in said)
    torch.testing.assert_close(bella.nll(kind(logits=logits), labels), expected)


def test_pixels_of_transformers_are_enlarged_to_the_labels():
    logits, labels = random(3, 2, 5, 4, 4), torch.randint(5, (2, 8, 12))
    placed = ClassAxis().place(logits, SemanticSegmenterOutput(logits=logits), labels)
    for one, particle in zip(placed, logits, strict=True):
        larger = F.interpolate(particle, (8, 12), mode="bilinear", align_corners=False)
        torch.testing.assert_close(one, larger.movedim(1, -1))
    unlabelled = ClassAxis().place(logits, SemanticSegmenterOutput(logits=logits))
    assert torch.equal(unlabelled, logits.movedim(2, -1))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: ClassAxis().place(random(3, 2, 6, 4), random(3, 2, 6, 4)),
            "class_axis=1 .* class_axis=-1",
        ),
        (lambda: ClassAxis(0).place(random(3, 2, 6, 4), random(3, 2, 6, 4)), "class_axis=0"),
        (lambda: ClassAxis(3).place(random(3, 2, 6, 4), random(3, 2, 6, 4)), "from 1 to 2"),
        (lambda: ClassAxis().place(random(3, 2), random(3, 2)), "particles, batch"),
        (lambda: bella.nll(random(3, 2, 5, 4, 4), torch.zeros(2, 8, 8).long()), "do not fit"),
        (lambda: bella.nll(random(3, 2, 5), torch.zeros(2, 5).long()), "do not fit"),
        (
            lambda: bella.nll(random(3, 2, 5, 4), torch.zeros(2, 4).long(), class_axis=-1),
            "do not fit",
        ),
    ],
)
def test_what_nothing_decides_gets_one_sentence(make, words):
    with pytest.raises(bella.BellaError, match=words):
        make()
