"""Watchers: they hear what happened, also after a stop, and none of them ends a training."""

from __future__ import annotations

import csv
import json
import sys

import pytest
from fit_cases import assert_same, fit, make, problem
from torch.utils.data import DataLoader, IterableDataset

import bella
from bella.training.fit import Run
from bella.training.watching import TensorBoard, tag_of

pytest.importorskip("tensorboard")

OPTIONS = {"epochs": 3, "validation": problem(seed=1)}


def heard(**options):
    """What a watcher hears of a training, its record and its particles."""
    rows, posterior = [], make()
    record = fit(posterior, watch=[lambda *told: rows.append(told)], **(OPTIONS | options))
    return rows, record, posterior


def events(folder):
    """Step and value by tag, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def test_a_watcher_hears_every_step_and_each_epoch_s_validation():
    rows, record, _ = heard(transport="repulsive")
    assert [step for step, _ in rows] == [*range(1, 19)]  # 48 examples in batches of 8
    assert [figures["epoch"] for _, figures in rows] == [1] * 6 + [2] * 6 + [3] * 6
    names = {"loss", "distance", "bandwidth", "mean_kernel", "repulsion_ratio", "learning_rate"}
    assert all(names <= set(figures) for _, figures in rows)
    for epoch, history in enumerate(record.history):
        *middle, (_, last) = rows[6 * epoch : 6 * epoch + 6]
        assert last["validation_nll"] == history["validation_nll"]
        assert last["loss"] == history["loss"]
        assert not any("validation_nll" in figures for _, figures in middle)


def test_watching_changes_no_bit():
    plain = make()
    fit(plain, **OPTIONS)
    assert_same(heard()[2], plain)


def test_what_is_heard_is_the_trace_of_the_folder(tmp_path):
    rows, record, _ = heard(folder=tmp_path)
    with (tmp_path / "trace.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [int(row["step"]) for row in found] == [step for step, _ in rows]
    for row, (_, figures) in zip(found, rows, strict=True):
        assert {name: float(row[name]) for name in figures} == pytest.approx(figures)
    assert json.loads((tmp_path / "run.json").read_text())["trace"] == record.trace


def test_a_long_training_is_heard_some_sixty_times():
    rows, _, _ = heard(data=problem(240), batch_size=2, epochs=2)
    assert 60 <= len(rows) <= 64


def test_a_loader_that_ends_early_is_heard_to_its_end():
    class Fewer(IterableDataset):
        def __len__(self):
            return 72

        def __iter__(self):
            return zip(*problem(), strict=True)

    rows, posterior, loader = [], make(), DataLoader(Fewer(), 8)
    with pytest.warns(UserWarning, match="9 batches and gave 6"):
        record = fit(posterior, loader, epochs=1, watch=[lambda *told: rows.append(told)])
    assert rows[-1][0] == 6
    assert [row["step"] for row in record.trace] == [1, 2, 3, 4, 5, 6]


def test_a_watcher_that_fails_is_told_of_once_and_ends_nothing():
    def away(step, figures):
        raise ConnectionError("no route to the tracker")

    plain, posterior, rows = make(), make(), []
    fit(plain, **OPTIONS)
    with pytest.warns(UserWarning, match=r"no route to the tracker.*goes on") as told:
        fit(posterior, watch=[away, lambda *row: rows.append(row)], **OPTIONS)
    assert len(told) == 1
    assert len(rows) == 18
    assert_same(plain, posterior)


def test_what_does_not_exist_is_left_out():
    rows = []
    fit(make(particles=1), watch=[lambda *told: rows.append(told)], epochs=1)
    assert all("stein_ratio" not in figures for _, figures in rows)  # NaN for one particle
    assert all("loss" in figures for _, figures in rows)


def test_tensorboard_shows_what_was_heard(tmp_path):
    rows = []
    board = TensorBoard(tmp_path / "events")
    fit(make(), watch=[board, lambda *told: rows.append(told)], transport="svgd", **OPTIONS)
    board.close()
    found = events(tmp_path / "events")
    for tag, name in (
        ("training/loss", "loss"),
        ("training/bandwidth", "bandwidth"),
        ("training/distance", "distance"),
        ("training/repulsion_ratio", "repulsion_ratio"),
        ("validation/nll", "validation_nll"),
    ):
        wanted = [(step, figures[name]) for step, figures in rows if name in figures]
        assert [step for step, _ in found[tag]] == [step for step, _ in wanted]
        assert [v for _, v in found[tag]] == pytest.approx([v for _, v in wanted], rel=1e-6)


def test_a_resumed_run_repeats_nothing_in_tensorboard(tmp_path, monkeypatch):
    original = Run.update

    def stops(self, group):
        if self.step.number == 15:  # in the third epoch, whose first steps are told already
            raise KeyboardInterrupt
        return original(self, group)

    def run():
        board = TensorBoard(tmp_path / "events")
        try:
            return fit(make(), folder=tmp_path / "run", watch=[board], **OPTIONS)
        finally:
            board.close()

    monkeypatch.setattr(Run, "update", stops)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert [step for step, _ in events(tmp_path / "events")["training/loss"]] == [*range(1, 16)]
    monkeypatch.setattr(Run, "update", original)
    record = run()
    found = events(tmp_path / "events")["training/loss"]
    assert [step for step, _ in found] == [*range(1, 19)]
    assert [v for _, v in found] == pytest.approx([row["loss"] for row in record.trace], rel=1e-6)


def test_a_figure_s_place():
    assert tag_of("validation_nll") == "validation/nll"
    assert tag_of("repulsion_ratio") == "training/repulsion_ratio"


def test_without_tensorboard_one_sentence_says_what_brings_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(bella.BellaError, match=r"bella-bnn\[watch\]"):
        TensorBoard(tmp_path)
