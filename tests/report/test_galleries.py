"""The examples that a person sees."""

import base64
import io

import torch
from PIL import Image
from report_cases import CLASSES, small_material

from bella.report.galleries import COUNT, SIDE, galleries


def test_the_least_certain_come_first_with_their_votes():
    material = small_material()
    predictive, labels = material.of_told("test")
    first = galleries(material)[0]
    order = predictive.entropy.argsort(descending=True)[:COUNT].tolist()
    assert len(first.examples) == COUNT
    for place, example in zip(order, first.examples, strict=True):
        assert example.label == CLASSES[labels[place]]
        assert example.right == bool(predictive.predictions[place] == labels[place])
        assert example.entropy == float(predictive.entropy[place])
        assert sum(vote.particles for vote in example.votes) == 3
        named = predictive.particle_probs[:, place].argmax(-1)
        for vote in example.votes:
            k = CLASSES.index(vote.name)
            assert vote.particles == int((named == k).sum())
            assert vote.share == float(predictive.probs[place, k])


def test_the_surest_mistakes_are_mistakes():
    found = {gallery.title: gallery for gallery in galleries(small_material())}
    mistakes = found["Its surest mistakes"].examples
    assert mistakes
    assert all(example.right is False for example in mistakes)
    assert [e.entropy for e in mistakes] == sorted(e.entropy for e in mistakes)
    assert "The surest on far" in found


def test_pictures_are_small_and_texts_are_cut():
    example = galleries(small_material())[0].examples[0]
    head, _, content = example.picture.partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
        assert max(picture.size) <= SIDE
    assert CLASSES[0] in example.alt or "labelled" in example.alt
    text = galleries(small_material(inputs="texts"))[0].examples[0]
    assert text.picture is None
    assert text.words.startswith("</script>")


def test_without_examples_there_are_no_galleries():
    assert galleries(small_material(inputs=None)) == []


def test_one_particle_disputes_nothing():
    titles = [gallery.title for gallery in galleries(small_material(particles=1))]
    assert "The most disputed" not in titles


def test_labels_in_doubt_say_nothing_of_right_and_wrong():
    material = small_material()
    material.results["words"]["unscored"].append("far")
    (doubted,) = (g for g in galleries(material) if g.title == "The surest on far")
    assert all(example.right is None and example.label for example in doubted.examples)


def test_particles_that_were_skipped_do_not_vote():
    material = small_material()
    predictive, labels = material.of_told("test")
    weights = torch.zeros(3, len(labels))
    weights[:2] = 0.5
    stopped = type(predictive)(predictive.logits, weights=weights)
    material.predictions["Bella"]["test"] = (stopped, labels)
    assert galleries(material)[0].examples[0].particles == 2
