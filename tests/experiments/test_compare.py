"""The comparison engine on a small task, its tables, words and pictures."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import bella
from bella.console import progress_bar
from bella.data import Preprocess
from bella.errors import BellaError
from bella.experiments.bench import Bench, key_of
from bella.experiments.compare import Row, compare, seeds_share, summary
from bella.experiments.examples import read
from bella.experiments.methods import METHODS, methods_named
from bella.experiments.methods import trained as engine
from bella.experiments.page import write_page
from bella.experiments.predictions import read_outputs
from bella.experiments.tasks import task_named
from bella.experiments.tasks.task import Task, draw, fixed
from bella.files import read_json
from bella.folders import held
from bella.models import Defaults, Opened
from bella.prediction.pool import fit_pool
from bella.prediction.predictive import Predictive
from bella.report import pictures
from bella.report.claims import claims, claims_markdown
from bella.report.tables import markdown_table, read_results, rich_table, sections
from bella.report.verdict import verdict


class Points(Dataset):
    classes = ("low", "high")

    def __init__(self, count, seed, shift=0.0):
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(count, 6, generator=generator) + shift
        noise = 0.7 * torch.randn(count, generator=generator)
        self.y = (self.x[:, 0] + noise > shift).long()

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


class Network(nn.Module):
    """``skips``: its input is needed after the blocks, so that no prefix can be shared."""

    def __init__(self, skips=False):
        super().__init__()
        torch.manual_seed(0)
        self.skips = skips
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        h = x
        for block in self.blocks:
            h = torch.tanh(block(h))
        return self.head(h + x if self.skips else h)


def small_task(skips=False):
    parts = {
        "train": Points(60, 0),
        "validation": Points(40, 1),
        "test": Points(50, 2),
        "far": Points(30, 3, shift=3.0),
    }
    return Task(
        "points",
        "Points",
        lambda seed: Opened(Network(skips), Preprocess(8), Defaults((r"blocks\.2",), ("head",))),
        parts,
        fixed(parts),
        {"shift": "far"},
        {"epochs": 2, "learning_rate": 0.02},
        {"b_std": 0.05},
        rank=2,
    )


class Held(TensorDataset):
    """Points that are known to be the same each time."""

    classes = Points.classes
    fixed = True


def held_task(skips=False):
    task = small_task(skips)
    held = {pool: Held(data.x, data.y) for pool, data in task.pools.items()}
    return dataclasses.replace(task, pools=held)


RECIPE = [
    *("multi-depth", "multi-depth+temperature", "multi-depth+distance", "mola", "anchors"),
    *("lora-ensemble+distance", "bella+temperature", "bella-1", "bella-log", "bella-uncoupled"),
]
"""The recipe's controls, which one seed is enough for here."""

HEADED = [name for name in METHODS if name not in ("untrained", *RECIPE)]
"""What a network with a fresh head is compared in."""


def test_a_network_with_a_fresh_head_has_no_row_before_it_is_trained(tmp_path):
    with pytest.raises(bella.BellaError, match="a head that nobody trained"):
        compare(small_task(), ["untrained"], seeds=1, folder=tmp_path, progress=False)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    results = compare(small_task(), list(HEADED), seeds=2, folder=folder, progress=False)
    return folder, results


@pytest.fixture(scope="module")
def controls(ran, tmp_path_factory):
    folder = tmp_path_factory.mktemp("controls") / "compare"
    shutil.copytree(ran[0], folder)
    rows = [*RECIPE, "bella", "repulsive"]
    return folder, compare(small_task(), rows, seeds=1, folder=folder, progress=False)


def test_the_controls_have_every_figure(controls):
    _, results = controls
    assert set(results["methods"]) == {*RECIPE, "bella", "repulsive"}
    for method in results["methods"].values():
        assert {"nll", "auroc_errors_confidence"} <= set(method["figures"])
        assert {"auroc_novelty", "nll"} <= set(method["parts"]["shift"])
    # Heads that read six numbers more.
    assert results["methods"]["multi-depth"]["costs"]["trainable"]["mean"] == 5 * (38 + 12)


def test_every_method_has_every_figure(ran):
    folder, results = ran
    assert json.loads((folder / "results.json").read_text()) == results
    assert list(results["methods"]) == list(HEADED)
    for method in results["methods"].values():
        assert {"accuracy", "nll", "ece"} <= set(method["figures"])
        assert {"auroc_mi", "auroc_entropy", "nll", "accuracy"} <= set(method["parts"]["shift"])
        assert set(method["parts"]) == {"validation", "shift"}
        assert "trainable" in method["costs"]
        assert len(method["figures"]["nll"]["values"]) == 2
    methods = results["methods"]
    trainable = {name: method["costs"]["trainable"]["mean"] for name, method in methods.items()}
    assert trainable["lora"] == 2 * (6 + 6) + 14
    assert trainable["repulsive"] == 5 * 38
    assert trainable["probe"] == 14
    assert methods["lora"]["figures"]["mutual_information"]["mean"] == 0
    assert methods["bella"]["figures"]["mutual_information"]["mean"] > 0


def test_the_recipe_s_row_is_the_mixture_that_it_keeps(controls):
    folder, results = controls
    task = small_task()
    x = task.pools["test"].x
    for name in ("bella", "bella-log", "bella-1", "lora-ensemble+distance"):
        mixture = bella.load_mixture(folder / "runs" / f"{name}-0" / "posterior", Network())
        said, _ = read_outputs(folder / "runs" / f"{name}-0")["test"]
        again = bella.predict(mixture, x)
        for part in ("probs", "novelty", "mutual_information"):
            one, two = getattr(said, part), getattr(again, part)
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)
    costs = {name: method["costs"] for name, method in results["methods"].items()}
    assert costs["bella"]["trainable"]["mean"] > costs["repulsive"]["trainable"]["mean"]
    assert costs["bella"]["bytes_on_disk"]["mean"] > costs["repulsive"]["bytes_on_disk"]["mean"]


def test_rows_with_a_temperature_pool_one_group_and_do_not_flatter_themselves(ran):
    folder, results = ran
    for name in ("lora", "lora-ensemble", "probe-ensemble"):
        before = read_outputs(folder / "runs" / f"{name}-0")
        after = read_outputs(folder / "runs" / f"{name}+temperature-0")
        logits, truth = before["validation"][0].logits, before["validation"][1]
        pool = fit_pool([logits], truth)
        expected = pool([before["test"][0].logits])
        torch.testing.assert_close(after["test"][0].probs, expected.probs)
        honest = results["methods"][f"{name}+temperature"]["parts"]["validation"]["nll"]["values"]
        assert honest[0] > pool([logits]).nll(truth)


def test_laplace_lies_around_every_particle(controls):
    folder, _ = controls
    said, _ = read_outputs(folder / "runs" / "mola-0")["test"]
    assert said.logits.shape[0] == 5 * 20
    trained, _ = read_outputs(folder / "runs" / "lora-ensemble-0")["test"]
    x = small_task().pools["test"].x
    for particle in range(5):
        own = bella.load(folder / "runs" / "mola-0" / "posterior" / str(particle), Network())
        with torch.no_grad():
            centre = own.around(x)
        torch.testing.assert_close(centre[0], trained.logits[particle], rtol=1e-4, atol=1e-5)


def test_a_folder_that_another_comparison_writes_is_refused(tmp_path):
    with held(tmp_path), pytest.raises(BellaError, match="Another run is writing to"):
        compare(small_task(), ["probe"], seeds=1, folder=tmp_path, progress=False)


def test_what_ran_is_not_run_again(ran, monkeypatch):
    folder, results = ran
    monkeypatch.setattr(engine, "fit", None)  # a second training would fail
    again = compare(small_task(), list(HEADED), seeds=2, folder=folder, progress=False)
    assert again["methods"] == results["methods"]


def test_an_interrupted_comparison_goes_on(ran, tmp_path, monkeypatch):
    _, results = ran
    original, trained = engine.fit, []

    def counted(*args, **kwargs):
        trained.append(1)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(engine, "fit", counted)
    chosen = ["lora", "lora-ensemble"]
    with pytest.raises(KeyboardInterrupt):
        compare(small_task(), chosen, seeds=2, folder=tmp_path, progress=False)
    again = compare(small_task(), chosen, seeds=2, folder=tmp_path, progress=False)
    assert len(trained) == 5  # two, one that stopped, and the two that were missing
    for name in chosen:
        for figure in ("nll", "accuracy"):
            expected = results["methods"][name]["figures"][figure]
            assert again["methods"][name]["figures"][figure] == expected
        assert again["methods"][name]["parts"] == results["methods"][name]["parts"]


def test_other_settings_are_run_anew(ran, monkeypatch):
    folder, _ = ran
    monkeypatch.setattr(engine, "fit", None)
    with pytest.raises(TypeError):
        compare(small_task(), ["lora"], seeds=1, folder=folder, progress=False, epochs=1)


def test_what_a_setting_does_not_touch_is_kept(ran, monkeypatch):
    folder, results = ran
    monkeypatch.setattr(engine, "fit", None)
    # Fine-tuning of all weights has a learning rate of its own, and probes have none.
    names = ["probe", "single", "single+temperature"]
    again = compare(small_task(), names, seeds=2, folder=folder, progress=False, learning_rate=0.5)
    assert all(again["methods"][name] == results["methods"][name] for name in names)


def test_the_soup_is_the_merged_network(ran):
    folder, _ = ran
    task = small_task()
    posterior = bella.load(folder / "runs" / "repulsive-0" / "posterior", Network())
    said, labels = read_outputs(folder / "runs" / "soup-0")["test"]
    part = task.pools["test"]
    torch.testing.assert_close(said.logits[0], posterior.soup()(part.x), rtol=1e-4, atol=1e-5)
    assert torch.equal(labels, part.y)


@pytest.mark.filterwarnings("ignore:Nothing is shared")
def test_a_network_without_a_shared_prefix_is_compared_as_well(tmp_path):
    results = compare(
        small_task(skips=True), ["probe", "soup"], seeds=1, folder=tmp_path, progress=False
    )
    posterior = bella.load(tmp_path / "runs" / "repulsive-0" / "posterior", Network(True))
    part = small_task().pools["test"]
    expected = bella.metrics.accuracy(posterior.soup()(part.x).softmax(-1), part.y)
    assert results["methods"]["soup"]["figures"]["accuracy"]["mean"] == pytest.approx(expected)


@pytest.mark.parametrize("skips", [False, True])
def test_activations_and_prefix_of_one_pass_are_those_of_two(tmp_path, skips):
    with progress_bar(False) as bar:
        task = held_task(skips)
        apart, together = (Bench(task, tmp_path, {}, bar) for _ in range(2))
    together.reads = True
    for pool, data in task.pools.items():
        rows = list(range(len(data)))
        (one, labels), (other, same) = (b.batches(pool, rows)(rows) for b in (apart, together))
        if skips:  # nothing is shared: images stand in the place of a stream
            assert torch.equal(one, other)
        else:
            for a, b in zip(one.carried(), other.carried(), strict=True):
                torch.testing.assert_close(a, b)
        assert torch.equal(labels, same)
        assert (key_of((pool, rows)) in together.read) is not skips
        assert not apart.read
    assert together.entrance == apart.entrance
    for part in ("train", "far"):
        two, one = apart.activations(part, 0), together.activations(part, 0)
        assert torch.equal(one.labels, two.labels)
        assert one.features.keys() == two.features.keys()
        for reading, x in one.features.items():
            torch.testing.assert_close(x, two.features[reading])


@pytest.mark.filterwarnings("ignore:Nothing is shared")
def test_images_that_are_the_same_each_time_are_read_once(tmp_path, monkeypatch):
    reads = []
    monkeypatch.setattr(Held, "__getitem__", counted(reads))
    task = held_task(skips=True)  # nothing is shared, so images are what is kept
    compare(task, ["lora", "repulsive"], seeds=1, folder=tmp_path, progress=False)
    most = max(map(reads.count, set(reads)))
    anew = sum(len(part) for part in task.pools.values())
    assert len(set(reads)) == anew
    reads.clear()
    monkeypatch.setattr("bella.experiments.examples.KEPT", 0)
    compare(task, ["lora", "repulsive"], seeds=1, folder=tmp_path / "0", progress=False)
    assert max(map(reads.count, set(reads))) > most
    assert figure_bits(tmp_path) == figure_bits(tmp_path / "0")


@pytest.mark.filterwarnings("ignore:Nothing is shared")
@pytest.mark.parametrize("skips", [False, True])
def test_a_row_that_draws_says_the_same_whichever_rows_came_before(tmp_path, skips):
    task = held_task(skips)
    for rows in ["rank1"], ["lora", "rank1"]:
        compare(task, rows, seeds=1, folder=tmp_path / rows[0], progress=False)
    alone, second = (figure_bits(tmp_path / first)["rank1-0"] for first in ("rank1", "lora"))
    assert alone["nll"] == second["nll"]
    assert alone["mutual_information"] == second["mutual_information"]


def test_kept_examples_that_workers_read_hold_no_files_open():
    task = held_task()
    rows = list(range(60))
    with progress_bar(False) as bar:
        kept = read(task.pools["train"], rows, 1, bar)
    assert not any(x.is_shared() for example in kept.pool for x in example)
    x, y = kept(rows)
    assert torch.equal(x, task.pools["train"].tensors[0])
    assert torch.equal(y, task.pools["train"].tensors[1])


def test_rows_say_whether_they_read_activations():
    reading = {name for name, method in METHODS.items() if method.reads}
    assert {"bella", "anchors", "lora-ensemble+distance", "multi-depth"} <= reading
    assert "multi-depth+temperature" not in reading
    assert not {"lora", "lora-ensemble", "repulsive", "probe", "lora+temperature"} & reading


def counted(reads):
    """Reading an example of `Held`, noted."""

    def read(self, i):
        reads.append((id(self), i))
        return TensorDataset.__getitem__(self, i)

    return read


def figure_bits(folder):
    """The figures of every row, as its file has them."""
    paths = sorted((folder / "runs").glob("*/figures.json"))
    return {path.parent.name: read_json(path)["figures"] for path in paths}


def scratch_task():
    return dataclasses.replace(
        small_task(),
        open=lambda seed: Opened(Network(), Preprocess(8), Defaults((), ())),
        pretrained=False,
    )


def test_networks_are_trained_from_scratch_as_well(tmp_path):
    names = ["single", "single+temperature", "ensemble", "svgd", "rank1"]
    names += ["vi", "ssvi", "ssvi-0.05", "vi-bf16", "ssvi-bf16"]
    results = compare(scratch_task(), names, seeds=1, folder=tmp_path, progress=False)
    assert list(results["methods"]) == names
    found = {
        name: {
            key: figure["mean"]
            for place in ("figures", "costs")
            for key, figure in method[place].items()
        }
        for name, method in results["methods"].items()
    }
    size = 3 * 42 + 14
    assert found["single"]["trainable"] == size
    assert found["ensemble"]["trainable"] == 5 * size
    assert found["ensemble"]["mutual_information"] > 0  # members start apart
    assert found["ensemble"]["bytes_on_disk"] == 5 * 4 * size
    # Weights are a mean and a scale in VI; biases are one number.
    weights, biases = 3 * 36 + 12, 3 * 6 + 2
    assert found["vi"]["trainable"] == 2 * weights + biases
    active = 3 * round(0.1 * 36) + round(0.1 * 12)
    assert found["ssvi"]["trainable"] == 2 * active + biases
    assert found["vi-bf16"]["bytes_on_disk"] == found["vi"]["bytes_on_disk"] / 2
    positions = found["ssvi"]["bytes_on_disk"] - 4 * found["ssvi"]["trainable"]
    assert found["ssvi-bf16"]["bytes_on_disk"] == 2 * found["ssvi"]["trainable"] + positions
    assert found["vi-bf16"]["nll"] == pytest.approx(found["vi"]["nll"], abs=0.01)
    assert found["ssvi"]["train_flops_ratio"] > found["vi"]["train_flops_ratio"] == 1
    assert found["vi"]["train_flops"] == 2 * 3 * 2 * weights  # of one example


def test_workers_change_no_figure_of_data_that_are_the_same_each_time(tmp_path):
    def figures_with(workers):
        folder = tmp_path / str(workers)
        said = compare(
            held_task(), ["probe", "lora"], seeds=1, folder=folder, progress=False, workers=workers
        )
        return {name: row["figures"]["nll"]["values"] for name, row in said["methods"].items()}

    assert figures_with(2) == figures_with(0)
    keys = [read_json(tmp_path / w / "runs/lora-0/figures.json")["key"] for w in "02"]
    assert keys[0] == keys[1]  # either folder goes on with any number of workers


def test_workers_that_draw_are_part_of_what_decides_a_run(tmp_path):
    compare(scratch_task(), ["single"], seeds=1, folder=tmp_path, progress=False)
    assert "workers" not in read_json(tmp_path / "runs/single-0/figures.json")["key"]
    compare(scratch_task(), ["single"], seeds=1, folder=tmp_path, progress=False, workers=1)
    assert read_json(tmp_path / "runs/single-0/figures.json")["key"]["workers"] == 1


@pytest.mark.parametrize("workers", [-1, 1.0, True])
def test_a_number_of_workers_is_whole(tmp_path, workers):
    with pytest.raises(bella.BellaError, match="at least 0"):
        compare(small_task(), ["lora"], folder=tmp_path, progress=False, workers=workers)


def test_a_method_that_adapts_needs_something_to_adapt(tmp_path):
    for name in ("lora", "probe", "vbl", "soup"):
        with pytest.raises(bella.BellaError, match="from scratch: leave it out"):
            compare(scratch_task(), [name], seeds=1, folder=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.*the published")
@pytest.mark.parametrize("task", ["fashion-resnet", "fashion-mlp"])
def test_tasks_from_scratch_open_fresh_networks(task, fashion_folder, monkeypatch):
    module = importlib.import_module("bella.data.sets.fashion_mnist")
    monkeypatch.setattr(module, "FOLDER", fashion_folder)
    found = task_named(task)
    assert set(found.split(0)) == {"train", "validation", "test", "corrupted"}
    one, same, other = (found.open(seed).network.eval() for seed in (0, 0, 1))
    x = found.part("test", 0)[0][0].unsqueeze(0)
    assert one(x).shape == (1, 10)
    assert torch.equal(one(x), same(x))
    assert not torch.equal(one(x), other(x))


def test_methods_bring_what_they_start_from():
    assert [m.name for m in methods_named(["soup"])] == ["repulsive", "soup"]
    with pytest.raises(bella.BellaError, match="'bella'"):
        methods_named(["belle"])
    with pytest.raises(bella.BellaError, match="seeds=0"):
        compare(small_task(), ["lora"], seeds=0, folder="nowhere", progress=False)


def test_figures_that_do_not_exist_are_no_obstacle():
    rows = [Row({"a": a, "b": b}, {}, {}) for a, b in ((float("nan"), 1.0), (2.0, 3.0))]
    found = summary(rows)["figures"]
    assert found["b"] == {"mean": 2.0, "spread": pytest.approx(2**0.5), "values": [1.0, 3.0]}
    assert found["a"]["mean"] != found["a"]["mean"]


def made_up(gap, **more):
    """Two methods whose NLL differs by ``gap``, give or take a little, on each of 5 seeds."""
    seeds = [0.46, 0.52, 0.49, 0.55, 0.48]

    def method(title, values):
        figure = {"mean": sum(values) / 5, "spread": 0.035, "values": values}
        return {"title": title, "figures": {"nll": figure}, "parts": {}, "costs": {}}

    ours = [x + gap + y for x, y in zip(seeds, (0.01, -0.01, 0.0, 0.01, -0.01), strict=True)]
    return {
        "title": "t",
        "seeds": 5,
        "splits": "each seed",
        "parts": {"train": 300, "validation": 50, "test": 100},
        "shifts": [],
        "words": {"examples": "images", "noticing": {}, "unscored": []},
        "methods": {"lora-ensemble": method("E", seeds), "bella": method("B", ours)},
    } | more


@pytest.mark.parametrize(
    ("gap", "words"),
    [
        (-0.05, "better: NLL (0.500 to 0.450: -0.050 [-0.070, -0.030], 5 of 5 seeds)."),
        (0.05, "worse: NLL (0.500 to 0.550: +0.050 [+0.030, +0.070], 0 of 5 seeds)."),
        (-0.01, "not told apart: NLL."),
    ],
)
def test_words_say_what_the_paired_test_says(gap, words):
    """The differences have a standard deviation of .01; by hand, with 1/5 + 100/300:
    .01 √.5333 · 2.776 = .0203. The spread over the seeds, .035, hides none of it."""
    assert words in verdict(made_up(gap))[1]
    assert f"| B | {0.5 + gap:.3f} ±.035 |" in markdown_table(made_up(gap))


def test_words_say_what_the_seeds_know():
    assert "splits the data anew" in verdict(made_up(0.1))[0]
    assert "corrected for the overlap" in verdict(made_up(0.1))[0]
    shared = made_up(-0.013, splits="all seeds")
    assert "training again" in verdict(shared)[0]
    # Without an overlap the interval is .01 √.2 · 2.776 = .0124 to either side.
    assert "better: NLL" in verdict(shared)[1]
    assert "not told apart: NLL" in verdict(made_up(-0.013))[1]


def test_draws_that_share_a_test_part_say_so_and_are_corrected_for_what_they_share():
    drawn = made_up(-0.013, splits="training data", overlap=0.0)
    assert "all share one test part" in verdict(drawn)[0]
    assert "better: NLL" in verdict(drawn)[1]
    assert "not told apart: NLL" in verdict(drawn | {"overlap": 1 / 3})[1]


def test_which_data_the_seeds_share_is_found_in_their_splits():
    def drawn(split):
        return dataclasses.replace(small_task(), split=split)

    whole = small_task().split(0)
    assert seeds_share(small_task(), 3) == {"splits": "all seeds", "overlap": 0.0}
    # Seeds 0 and 1 share 10 of 20, 1 and 2 as many, 0 and 2 none: a third.
    moving = drawn(lambda s: whole | {"train": ("train", list(range(10 * s, 10 * s + 20)))})
    assert seeds_share(moving, 3) == {"splits": "training data", "overlap": pytest.approx(0.5)}
    tested = drawn(lambda s: whole | {"test": ("test", list(range(s, s + 30)))})
    assert seeds_share(tested, 3) == {"splits": "each seed", "overlap": 0.5}


def test_nothing_is_computed_of_what_no_seed_draws(tmp_path, monkeypatch):
    """The network never sees a row of the pool that the seed did not draw."""
    base, seen = small_task(), set()
    pool = base.pools["train"]
    read = Points.__getitem__
    monkeypatch.setattr(Points, "__getitem__", lambda p, i: (seen.add((len(p), i)), read(p, i))[1])
    counts = {"train": 20, "validation": 10}

    def split(seed):
        own = draw("train", pool.y.tolist(), counts, seed)
        return {**own, **{name: base.split(0)[name] for name in ("test", "far")}}

    task = dataclasses.replace(base, split=split)
    assert split(0)["train"] != split(1)["train"]
    compare(task, ["probe", "bella"], seeds=2, folder=tmp_path, progress=False)
    rows = {i for size, i in seen if size == 60}
    drawn = {row for seed in (0, 1) for name in counts for row in split(seed)[name][1]}
    assert drawn <= rows <= drawn | {*range(32)}  # predictions are timed on the first ones
    assert len(drawn | {*range(32)}) < 60


def test_a_claim_must_stand_among_all_others():
    one = made_up(-0.025)
    assert "better: NLL" in verdict(one)[1]
    crowd = made_up(-0.025)
    for name in ("probe", "probe-ensemble", "single+temperature", "lora+temperature", "vbl"):
        crowd["methods"][name] = one["methods"]["bella"] | {"title": name}
    told = verdict(crowd)
    assert "all 6 claims" in told[0]
    against = next(said for said in told if said.startswith("B against E."))
    assert "better, if nothing else were asked: NLL" in against
    assert [claim.p for claim in claims(crowd)].count(1.0) == 5
    assert claims_markdown(crowd).count("\n| B |") == 6


def test_a_seed_without_a_figure_is_left_out_of_a_claim():
    results = made_up(-0.05)
    results["methods"]["bella"]["figures"]["nll"]["values"][2] = None
    (claim,) = claims(results)
    assert claim.seeds == "4 of 4"
    assert claim.means[1] == pytest.approx((0.46 + 0.52 + 0.55 + 0.48) / 4)
    results["methods"]["bella"]["figures"]["nll"]["values"][1:] = [None] * 4
    assert claims(results) == [] == verdict(results)
    assert claims_markdown(results) == ""


def test_one_network_that_cannot_disagree_is_not_compared_in_it(ran):
    _, results = ran
    methods = results["methods"]
    told = verdict(results | {"methods": {name: methods[name] for name in ("bella", "probe")}})
    assert "mutual information" not in " ".join(told)
    assert "noticing the shift by entropy" in " ".join(told)
    both = {name: methods[name] for name in ("bella", "lora-ensemble")}
    assert "mutual information" in " ".join(verdict(results | {"methods": both}))


def test_the_sections_of_a_table_hold_every_figure_once(ran):
    _, results = ran
    console = Console(width=180, record=True)
    console.print(rich_table(results))
    shown = console.export_text()
    names = sections(results)
    assert list(names) == ["on test images", "on other images", "costs"]
    for section, columns in names.items():
        assert f"Points, {section}" in shown
        for column in columns:
            assert f" {column.heading} " in shown
    assert {column.name for column in names["on other images"]} == {
        *("auroc_shift_entropy", "auroc_shift_mi", "auroc_shift_novelty"),
        *("accuracy_shift", "nll_shift"),
    }
    assert "…" not in shown
    page = markdown_table(results)
    probe = [line for line in page.splitlines() if line.startswith("| linear probe |")]
    assert len(probe) == len(names)
    assert probe[0].endswith("| - | - | - | - |")  # one set of weights disputes nothing


def test_the_words_of_a_report_are_the_task_s():
    results = made_up(
        0.4,
        shifts=["doubt"],
        words={
            "examples": "cells",
            "noticing": {"doubt": "finding cells that experts doubted"},
            "unscored": ["doubt"],
        },
    )
    figure = {"mean": 0.7, "spread": 0.01, "values": [0.69, 0.7, 0.71, 0.7, 0.7]}
    for method in results["methods"].values():
        method["parts"] = {"doubt": {"auroc_entropy": figure, "nll": figure}}
    assert "finding cells that experts doubted by entropy" in verdict(results)[1]
    page = markdown_table(results)
    assert "| on other cells | doubt H |" in page
    assert "doubt NLL" not in page


def test_results_of_another_form_are_refused(ran, tmp_path):
    _, results = ran
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert read_results(tmp_path) == results
    for content in ("[]", json.dumps(results | {"format": 1})):
        (tmp_path / "results.json").write_text(content)
        with pytest.raises(bella.BellaError, match="run the comparison again"):
            read_results(tmp_path)


def test_one_seed_says_nothing_of_differences():
    assert "One seed" in verdict(made_up(0.1) | {"seeds": 1})[0]


# ---------------------------------------------------------------- what a kept run is of


def other_network(task):
    def open_it(seed):
        opened = task.open(seed)
        with torch.no_grad():
            opened.network.blocks[0].weight.add_(1e-3)
        return opened

    return dataclasses.replace(task, open=open_it)


def other_labels(task):
    pools = dict(task.pools) | {"train": Points(60, 0)}
    pools["train"].y[0] = 1 - pools["train"].y[0]
    return dataclasses.replace(task, pools=pools)


def other_split(task):
    def split(seed):
        pool, positions = task.split(seed)["train"]
        return task.split(seed) | {"train": (pool, positions[:-1])}

    return dataclasses.replace(task, split=split)


@pytest.mark.parametrize("change", [other_network, other_labels, other_split])
def test_a_run_of_another_network_or_data_is_not_kept(ran, monkeypatch, change):
    folder, _ = ran
    monkeypatch.setattr(engine, "fit", None)  # a training would fail
    one = {"seeds": 1, "folder": folder, "progress": False}
    before = (folder / "results.json").read_bytes()
    with pytest.raises(TypeError):
        compare(change(small_task()), ["lora"], **one)
    assert (folder / "results.json").read_bytes() == before


def test_a_run_of_another_version_is_not_kept(ran, monkeypatch):
    folder, _ = ran
    monkeypatch.setattr(engine, "fit", None)
    monkeypatch.setattr(bella, "__version__", "99.0")
    with pytest.raises(TypeError):
        compare(small_task(), ["lora"], seeds=1, folder=folder, progress=False)


# ---------------------------------------------------------------- the page


def test_any_comparison_has_a_page_with_pictures(ran, tmp_path):
    folder, results = ran
    page = write_page(small_task(), results, folder).read_text()
    words = ("# Points", "| linear probe |", "## Stopping early", "noticing the shift")
    for word in (*words, "Every claim, won or not", "| difference | seeds won |"):
        assert word in page
    for name in ("densities", "reliability", "distances"):
        assert f"]({name}.png)" in page
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.width > 300
    assert "extremes" not in page  # the data are no images
    few = compare(small_task(), ["probe"], seeds=1, folder=tmp_path, progress=False)
    page = write_page(small_task(), few, tmp_path).read_text()
    assert "## Stopping early" not in page  # one network has nobody to leave out
    assert not (tmp_path / "distances.png").exists()


class Squares(Dataset):
    def image(self, index):
        return Image.new("L", (20, 20), index * 20)


def test_pictures_open_and_repeat(tmp_path):
    torch.manual_seed(0)
    predictive, labels = Predictive(torch.randn(3, 12, 2)), torch.randint(2, (12,))
    for name in ("one", "two"):
        folder = tmp_path / name
        pictures.extremes(
            folder / "a.png", Squares(), predictive, ["low"] * 12, ("low", "high"), count=3
        )
        pictures.densities(folder / "b.png", {"all": predictive}, "images")
        pictures.reliability(folder / "c.png", {"m": predictive}, labels)
        pictures.distances(folder / "d.png", {"m": [{"step": 1, "distance": 0.5}]})
        pictures.curves(folder / "e.png", [{"epoch": 1, "loss": 0.5, "validation_nll": 0.6}])
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert picture.width > 300


def test_lines_beyond_the_colours_are_told_apart_by_dashes():
    looks = pictures.looks_of(map(str, range(2 * len(pictures.COLOURS))))
    assert len({tuple(look.values()) for look in looks.values()}) == len(looks)
    assert {look["linestyle"] for look in list(looks.values())[: len(pictures.COLOURS)]} == {"-"}
