"""The examples that a person should see: what the particles are unsure of, dispute, or miss."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from bella.data.labelled import Labelled, LabelledImages
from bella.data.written import ImageQuestions, LabelledTexts, Questions
from bella.prediction.predictive import Predictive
from bella.report.charts import Said
from bella.report.material import Material

SIDE = 192
"""Pixels of a picture's longer side: about 6 kB each."""

COUNT = 8
LONGEST = 600
"""Letters of a text that are shown."""

NAMED = 3
"""Classes that are listed though no particle names them."""


@dataclass(frozen=True)
class Vote:
    """What the particles say for one class.

    Attributes:
        name: of the class.
        particles: how many name it.
        share: its probability, of all together.
    """

    name: str
    particles: int
    share: float


@dataclass(frozen=True)
class Example:
    """One example and what is said of it.

    Attributes:
        picture: as a data URI; ``None`` where it is no picture.
        words: its text or question; empty where it has none.
        label: the right class; ``None`` where nobody knows.
        right: whether the answer is; ``None`` where nobody knows, or labels are in doubt.
        votes: the likeliest class first.
        particles: how many voted.
        entropy: in nats.
        mutual_information: in nats.
    """

    picture: str | None
    words: str
    label: str | None
    right: bool | None
    votes: Sequence[Vote]
    particles: int
    entropy: float
    mutual_information: float

    @property
    def alt(self) -> str:
        """The picture in words: what is known and said of it."""
        known = "an example without a label" if self.label is None else f"labelled {self.label}"
        first = self.votes[0]
        return f"{known}; the particles say {first.name} with {first.share:.0%}"


@dataclass(frozen=True)
class Gallery:
    """Some examples, and why they are shown."""

    title: str
    says: str
    examples: Sequence[Example]


def galleries(material: Material) -> list[Gallery]:
    """The least certain, the most disputed, the surest mistakes, and the surest on each shift."""
    said, inputs = material.of_told("test"), material.inputs.get("test")
    words = material.results["words"]
    found = []
    if said is not None and inputs is not None:
        predictive, labels = said
        least = predictive.entropy.argsort(descending=True)
        found.append(
            Gallery(
                f"The least certain test {words['examples']}",
                "By entropy: the first to show to a person.",
                _examples(inputs, said, least[:COUNT]),
            )
        )
        disputed = predictive.mutual_information.argsort(descending=True)[:COUNT]
        if len(predictive.logits) > 1 and set(disputed.tolist()) != set(least[:COUNT].tolist()):
            found.append(
                Gallery(
                    "The most disputed",
                    "By mutual information: each particle is sure, and they contradict each other.",
                    _examples(inputs, said, disputed),
                )
            )
        wrong = (predictive.predictions != labels).nonzero().flatten()
        surest = wrong[predictive.entropy[wrong].argsort()][: COUNT // 2]
        if len(surest):
            found.append(
                Gallery(
                    "Its surest mistakes",
                    "What no threshold will hold back. Look at the labels too: some may be wrong.",
                    _examples(inputs, said, surest),
                )
            )
    for name in material.results["shifts"]:
        said, inputs = material.of_told(name), material.inputs.get(name)
        if said is not None and inputs is not None:
            surest = said[0].entropy.argsort()[: COUNT // 2]
            found.append(
                Gallery(
                    f"The surest on {material.called(name)}",
                    "What it takes for its own kind.",
                    _examples(inputs, said, surest, name not in words["unscored"]),
                )
            )
    return found


def _examples(inputs: Labelled, said: Said, places: Tensor, scored: bool = True) -> list[Example]:
    """Some examples; ``scored``: whether their labels say what is right."""
    predictive, labels = said
    return [_example(inputs, predictive, int(labels[i]), i, scored) for i in places.tolist()]


def _example(
    inputs: Labelled, predictive: Predictive, label: int, place: int, scored: bool
) -> Example:
    names = _names(inputs, place)
    known = 0 <= label < len(names)
    voters = predictive.particle_probs[:, place]
    if predictive.weights is not None:
        voters = voters[predictive.weights[:, place] > 0]
    voted = voters.argmax(-1).tolist()
    probs = predictive.probs[place]
    order = probs.argsort(descending=True).tolist()
    listed = [k for rank, k in enumerate(order) if rank < NAMED or k in voted]
    return Example(
        picture=_picture(inputs.image(place)) if isinstance(inputs, LabelledImages) else None,
        words=_words(inputs, place),
        label=names[label] if known else None,
        right=order[0] == label if known and scored else None,
        votes=[Vote(names[k], voted.count(k), float(probs[k])) for k in listed],
        particles=len(voters),
        entropy=float(predictive.entropy[place]),
        mutual_information=float(predictive.mutual_information[place]),
    )


def _names(inputs: Labelled, place: int) -> Sequence[str]:
    """The classes; of a question its own options."""
    return inputs.options[place] if isinstance(inputs, Questions) else inputs.classes


def _words(inputs: Labelled, place: int) -> str:
    if isinstance(inputs, LabelledTexts):
        text = inputs.texts[place]
    elif isinstance(inputs, Questions | ImageQuestions):
        text = inputs.questions[place]
    else:
        return ""
    return text if len(text) <= LONGEST else f"{text[:LONGEST].rstrip()} ..."


def _picture(image: Image.Image) -> str:
    image = image.convert("RGB")
    image.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
