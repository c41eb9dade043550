"""What a page of a report is made of: figures, predictions, and words in terms of a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bella.data.labelled import Labelled
from bella.prediction.predictive import Predictive
from bella.report.charts import Chart, Said
from bella.report.tables import Results


@dataclass(frozen=True)
class Material:
    """One chapter of a report: systems that answered the same test examples.

    Attributes:
        title: what they were trained on.
        facts: what was trained and how, by name.
        results: figures in the form of a comparison's ``results.json``: ``methods``, ``shifts``,
            ``words``, ``seeds``, ``splits`` and ``parts``.
        predictions: for each system by its title, what it said of the parts ``validation`` (if
            there is one), ``test`` and of each shift, with the labels.
        told: title of the system whose uncertainty is told of.
        classes: names of the classes.
        parts: the part of the data behind a shift, where it has another name.
        inputs: the examples of ``test`` and of shifts, where they are at hand.
        command: that gives the uncertainties of new examples; ``None`` where there is none.
        charts: further ones, such as curves of a shift or of an attack.
        history: of the training, for a run; see `bella.training.record.Record`.
        notes: what a reader should know, in sentences.
    """

    title: str
    facts: Mapping[str, str]
    results: Results
    predictions: Mapping[str, Mapping[str, Said]]
    told: str
    classes: Sequence[str]
    parts: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, Labelled] = field(default_factory=dict)
    command: str | None = None
    charts: Sequence[Chart] = ()
    history: Sequence[Mapping[str, float]] = ()
    notes: Sequence[str] = ()

    def of_told(self, part: str) -> Said | None:
        """What the system that is told of said of a part."""
        return self.predictions[self.told].get(part)

    def on(self, part: str) -> dict[str, Said]:
        """What every system said of a part."""
        return {title: parts[part] for title, parts in self.predictions.items() if part in parts}

    def called(self, part: str) -> str:
        """A part of the data in a sentence."""
        other = self.parts.get(part, part)
        return part if other == part else f"{part} ({other})"

    @property
    def groups(self) -> dict[str, Predictive]:
        """Right answers, wrong ones, and those on each shift, of the system that is told of."""
        predictive, labels = self.predictions[self.told]["test"]
        right = predictive.predictions == labels
        found = {"right": predictive.positions(right), "wrong": predictive.positions(~right)}
        for name in self.results["shifts"]:
            if (said := self.of_told(name)) is not None:
                found[f"on {self.called(name)}"] = said[0]
        return {name: group for name, group in found.items() if len(group)}
