"""A user's run as a library: configuration, training into a folder, and the folder opened again."""

import csv
import dataclasses
import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from own_images import CLASSES, write_images, write_network
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader
from transformers import ViTForImageClassification

import bella
from bella.data import Preprocess, open_images, splits
from bella.errors import BellaError
from bella.experiments.compare import compare
from bella.experiments.tasks import images_task
from bella.models import full_name, open_network
from bella.models.hugging_face import read_preprocess
from bella.models.timm import read_preprocess as read_timm
from bella.posteriors.point import Point
from bella.prediction.predictive import Predictive
from bella.recipes import recipe_named
from bella.runs import (
    Predictions,
    RunConfig,
    TrainedRun,
    complete,
    export,
    open_run,
    read_config,
    train,
)
from bella.runs.exporting import processor_config
from bella.runs.found import Found, in_words
from bella.runs.rows import write_rows
from bella.training import fit
from bella.training.checkpoint import CHECKPOINT, PICKLED
from bella.training.settings import Settings


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    write_images(root / "images")
    write_network(root / "network")
    return root


@pytest.fixture(scope="module")
def figures(place):
    return train(config(place), place / "run", progress=False)


def known(place, **more):
    return {
        "data": str(place / "images"),
        "network": f"hf:{place / 'network'}",
        "particles": 3,
        "rank": 2,
        "epochs": 3,
        "learning_rate": 0.03,
        "batch_size": 8,
    } | more


def config(place, **more):
    return RunConfig(**known(place, **more))


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---------------------------------------------------------------- configuration


def test_the_configuration_holds_every_setting_of_fit():
    assert set(Settings.model_fields) < set(RunConfig.model_fields)
    assert read_config(None, {"data": "images", "rank": None}) == RunConfig(data="images")


def test_flags_go_over_the_file_and_what_is_not_given_stays(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "data: images\nrank: 8\nepochs: 7\ntransport_options: {prior: delta, temperature: 2.0}\n"
    )
    found = read_config(path, {"rank": 2, "epochs": None, "transport_options": None})
    assert (found.data, found.rank, found.epochs, found.seed) == ("images", 2, 7, 0)
    assert found.transport_options == {"prior": "delta", "temperature": 2.0}
    found = read_config(path, {"data": "other", "transport_options": {"temperature": 0.0}})
    assert found.data == "other"
    assert found.transport_options == {"prior": "delta", "temperature": 0.0}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "--data"),
        ({"data": "x", "ranks": 3}, "'ranks' is no setting"),
        ({"data": "x", "particles": 0}, "particles=0"),
        ({"data": "x", "head_init": "zero"}, "head_init='zero'"),
        ({"data": "x", "workers": -1}, "workers=-1"),
        ({"data": "x", "minibatches": "all"}, "minibatches='all'"),
        ({"data": 3}, "data=3"),
    ],
)
def test_bad_configurations_are_one_sentence(tmp_path, values, said):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(BellaError, match=said) as caught:
        read_config(path, {})
    assert "\n" not in str(caught.value)


def test_the_written_configuration_repeats_the_run(place, figures, tmp_path):
    again = read_config(place / "run" / "config.yaml", {})
    assert again == complete(config(place))
    assert complete(again) == again
    assert train(again, tmp_path / "again", progress=False) == pytest.approx(figures, nan_ok=True)
    posterior = "posterior.safetensors"
    assert content(tmp_path / "again")[posterior] == content(place / "run")[posterior]


# ---------------------------------------------------------------- the folder


def test_the_opened_run_is_the_posterior_that_was_evaluated(place, figures):
    run = open_run(place / "run")
    assert run.classes == CLASSES
    assert not run.posterior.training
    test = splits(place / "images", run.preprocess)["test"]
    found = bella.evaluate(run.posterior, DataLoader(test, 8))
    assert found["accuracy"] == figures["accuracy"] == 1.0
    assert found["nll"] == pytest.approx(figures["nll"], abs=1e-6)


def test_parts_that_stand_in_folders_are_used_as_they_stand(place, tmp_path):
    data = tmp_path / "data"
    for seed, part in enumerate(("train", "val", "test")):
        write_images(data / part, 5, seed)
    found = train(config(place, data=str(data)), tmp_path / "run", progress=False)
    run = open_run(tmp_path / "run")
    alone = run.evaluate(data / "test")
    assert alone["nll"] == pytest.approx(found["nll"], abs=1e-6)
    assert alone["nll"] != pytest.approx(run.evaluate(data / "train")["nll"], abs=1e-6)


def test_evaluation_uses_the_classes_of_the_run(place, figures, tmp_path):
    """A test folder with the second class alone is not taken for the first."""
    night = write_images(tmp_path / "images")
    for path in (night / "day").iterdir():
        path.unlink()
    (night / "day").rmdir()
    assert open_run(place / "run").evaluate(night)["accuracy"] == 1.0


def test_targets_and_heads_of_the_configuration_are_adapted(place, tmp_path):
    asked = config(place, target_modules=["layers.1.mlp.fc1"], modules_to_save=[], epochs=1)
    train(asked, tmp_path, progress=False)
    layers = open_run(tmp_path).posterior.layers()
    assert list(layers) == ["vit.layers.1.mlp.fc1"]


def test_predictions_agree_with_the_particles_one_by_one(place, figures):
    run = open_run(place / "run")
    found = run.predict([place / "images"])
    images = open_images(place / "images", run.preprocess)
    x = torch.stack([images[i][0] for i in range(len(images))])
    with torch.no_grad():
        probs = torch.stack(
            [run.posterior.particle(i)(x).logits.double().softmax(-1) for i in range(3)]
        )
    mean = probs.mean(0)
    entropy = -(mean * mean.log()).sum(-1)
    expected = -(probs * probs.log()).sum(-1).mean(0)
    assert found.paths == images.paths
    for row, p, h, mi in zip(found.rows(), mean, entropy, entropy - expected, strict=True):
        assert row["class"] == CLASSES[int(p.argmax())]
        assert row["probability"] == pytest.approx(float(p.max()), abs=2e-6)
        assert row["entropy"] == pytest.approx(float(h), abs=2e-6)
        assert row["mutual_information"] == pytest.approx(float(mi), abs=2e-6)


def test_rank_1_is_the_image_of_most_entropy_and_ties_keep_their_order(tmp_path):
    logits = torch.tensor([[[9.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]])
    paths = [Path(name) for name in "abcd"]
    found = Predictions(paths, Predictive(logits), ("left", "right"))
    assert [row["rank"] for row in found.rows()] == [4, 1, 3, 2]
    found.write(tmp_path / "deep" / "p.csv")
    lines = (tmp_path / "deep" / "p.csv").read_text().splitlines()
    columns = "image,class,probability,entropy,mutual_information,rank,p(left),p(right)"
    assert lines[0] == columns
    assert lines[2] == "b,left,0.5,0.693147,0.0,1,0.5,0.5"


# ---------------------------------------------------------------- going on


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"gain": 3.0, "alpha": 1.0},
            r"posterior alpha was None, now 1.0; posterior gain was 10.0",
        ),
        ({"seed": 1}, "seed was 0, now 1"),
        ({"particles": 2}, "posterior particles was 3, now 2"),
        ({"method": "full"}, "method was low-rank, now full"),
        ({"head_init": "frozen"}, "heads was probe, now frozen"),
        ({"learning_rate": 0.5}, "learning_rate was 0.03, now 0.5"),
        ({"options": {"b_std": 0.1}}, "posterior b_std"),
    ],
)
def test_another_run_is_refused_and_changes_nothing(place, figures, more, said):
    before = content(place / "run")
    without = ("rank",) if more.get("method") == "full" else ()
    asked = RunConfig(**{k: v for k, v in known(place, **more).items() if k not in without})
    with pytest.raises(BellaError, match=said) as caught:
        train(asked, place / "run", progress=False)
    assert "--fresh" in str(caught.value)
    assert content(place / "run") == before


@pytest.mark.parametrize("change", ["renamed", "turned", "added", "taken", "changed"])
def test_a_run_of_other_images_is_refused_and_changes_nothing(place, figures, tmp_path, change):
    """The names of classes in their order, every label and every file are the run's."""
    images, run = tmp_path / "images", tmp_path / "run"
    shutil.copytree(place / "images", images)
    shutil.copytree(place / "run", run)
    asked = config(place, data=str(images))
    train(asked, run, progress=False)  # the same images elsewhere are the same
    before = content(run)
    if change == "renamed":
        (images / "night").rename(images / "dusk")  # the order stays
    elif change == "turned":
        (images / "night").rename(images / "a night")
    elif change == "added":
        shutil.copytree(images / "night", images / "zenith")
    elif change == "taken":
        (images / "day" / "03.png").unlink()
    else:
        write_images(tmp_path / "other", seed=9)
        shutil.copy(tmp_path / "other" / "day" / "00.png", images / "day" / "00.png")
    with pytest.raises(BellaError, match=r"another run \(.*--fresh"):
        train(asked, run, progress=False)
    assert content(run) == before
    assert open_run(run).classes == CLASSES


def test_a_finished_run_goes_on_for_more_epochs(place, figures, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    train(config(place, epochs=5), tmp_path / "run", progress=False)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [row["epoch"] for row in record["history"]] == [1, 2, 3, 4, 5]
    first = json.loads((place / "run" / "run.json").read_text())["history"]
    assert record["history"][:3] == first


def stop_in(monkeypatch, epoch, error=KeyboardInterrupt):
    original = fit.Run.run_epoch

    def stops(self, number, *rest):
        if number == epoch:
            raise error
        return original(self, number, *rest)

    monkeypatch.setattr(fit.Run, "run_epoch", stops)


@pytest.mark.parametrize("error", [KeyboardInterrupt, BellaError])
def test_a_fresh_run_that_does_not_get_far_leaves_the_old_one(
    place, figures, tmp_path, monkeypatch, error
):
    shutil.copytree(place / "run", tmp_path / "run")
    write_images(tmp_path / "pets")
    (tmp_path / "pets" / "day").rename(tmp_path / "pets" / "cat")
    before = content(tmp_path / "run")
    asked = config(place, data=str(tmp_path / "pets"))
    with monkeypatch.context() as patch:
        stop_in(patch, 0, error)
        with pytest.raises(error):
            train(asked, tmp_path / "run", resume=False, progress=False)
    assert content(tmp_path / "run") == before
    train(asked, tmp_path / "run", resume=False, progress=False)
    assert open_run(tmp_path / "run").classes == ("cat", "night")


def test_an_interrupted_run_can_be_used_and_goes_on_to_the_same_bits(
    place, figures, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        stop_in(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            train(config(place), tmp_path, progress=False)
    assert not (tmp_path / "figures.json").exists()
    assert open_run(tmp_path).evaluate(place / "images")["accuracy"] > 0.5
    (tmp_path / "probes.safetensors").unlink()  # they are fitted again, to the same bits here
    train(config(place), tmp_path, progress=False)
    for name in ("posterior.safetensors", "figures.json", "history.csv"):
        assert content(tmp_path)[name] == content(place / "run")[name]


def test_a_run_depends_on_no_working_folder(place, figures, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    asked = config(place, data="images", network="hf:network", epochs=1)
    train(asked, "from-here", progress=False)
    monkeypatch.chdir(tmp_path)
    assert open_run(place / "from-here").evaluate(place / "images")["accuracy"] >= 0.5
    again = read_config(place / "from-here" / "config.yaml", {})
    train(again, place / "from-here", progress=False)  # it is the same run from elsewhere
    assert full_name("hf:some/name") == "hf:some/name"
    assert full_name("timm:resnet18") == "timm:resnet18"


def test_runs_made_before_recipes_open_and_are_not_continued(place, figures, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    (run / "probes.safetensors").unlink()
    model = json.loads((run / "model.json").read_text())
    del model["method"], model["draws"], model["sha256"]
    (run / "model.json").write_text(json.dumps(model))
    saved = json.loads((run / "posterior.json").read_text())
    for name in ("init", "gain", "b_std", "head_init", "seed"):
        del saved["settings"][name]
    for name in ("sha256", "tensors", "base_dtype", "base_cast", "unfrozen"):
        del saved[name]
    saved["format"] = 1
    (run / "posterior.json").write_text(json.dumps(saved))
    tensors = load_file(run / "posterior.safetensors")
    save_file(tensors, run / "posterior.safetensors")  # no record in it, no checksums
    (run / CHECKPOINT).unlink()
    torch.save({"settings": {}, "epoch": 2}, run / PICKLED)
    again, first = (
        open_run(folder).predict([place / "images"]).rows() for folder in (run, place / "run")
    )
    assert again == first
    before = content(run)
    with pytest.raises(BellaError, match="a run of an earlier version"):
        train(config(place), run, progress=False)
    assert content(run) == before


# ---------------------------------------------------------------- methods


METHODS = ("low-rank", "rank1", "ssvi", "full", "laplace")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_trained_opened_and_exported(place, tmp_path, method):
    values = {"learning_rate": 0.01, "epochs": 2, "batch_size": 4, "method": method}
    asked = RunConfig(data=str(place / "images"), network=f"hf:{place / 'network'}", **values)
    found = train(asked, tmp_path / "run", progress=False)
    run = open_run(tmp_path / "run")
    assert run.posterior.particles == recipe_named(method).particles
    assert found["accuracy"] == 1.0  # its heads start from probes
    test = splits(place / "images", run.preprocess)["test"]
    with run.drawing():
        again = bella.evaluate(run.posterior, DataLoader(test, 32), draws=run.draws)
    assert again == pytest.approx(found, abs=1e-5, nan_ok=True)
    first, second = (run.predict([place / "images"]).rows() for _ in range(2))
    assert first == second  # draws repeat
    assert train(asked, tmp_path / "run", progress=False) == pytest.approx(found, nan_ok=True)
    export(run, tmp_path / "plain")
    network = ViTForImageClassification.from_pretrained(tmp_path / "plain").eval()
    assert network.config.id2label == {0: "day", 1: "night"}
    assert network.config.label2id == {"day": 0, "night": 1}
    x = torch.stack([test[i][0] for i in range(len(test))])
    with torch.no_grad():
        logits = network(x).logits
        torch.testing.assert_close(logits, run.posterior.soup()(x).logits)
    assert bella.metrics.accuracy(logits.softmax(-1), torch.tensor(test.labels)) == 1.0


def test_a_user_gets_what_the_table_promised(place, tmp_path):
    """`train` and the row "bella" of a comparison are one recipe, mixture and all."""
    network, images = f"hf:{place / 'network'}", write_images(tmp_path / "images", count=50, seed=3)
    settings = {"epochs": 2, "batch_size": 8, "learning_rate": 0.01}
    asked = RunConfig(data=str(images), network=network, **settings)
    found = train(asked, tmp_path / "run", progress=False)
    results = compare(
        images_task(images, network),
        ["bella"],
        seeds=1,
        folder=tmp_path / "compare",
        progress=False,
        **settings,
    )
    row = results["methods"]["bella"]["figures"]
    for name in ("accuracy", "nll", "mutual_information", "brier"):
        assert row[name]["mean"] == pytest.approx(found[name], rel=1e-3), name

    # The folder has it, and who opens it predicts with it.
    run = open_run(tmp_path / "run", device="cpu")
    assert run.mixture is not None
    assert run.mixture.figures["anchors"]
    said = run.predict([images / "day"])
    assert {"novelty", "mutual_information"} <= set(said.rows()[0])
    still = run.evaluate(images, attack="fgsm", budgets=[0.0])  # no pixel moves
    assert still["attacks"][0]["nll"] == pytest.approx(still["nll"], rel=1e-6)
    assert still["attacks"][0]["auroc_entropy"] == pytest.approx(0.5)
    alone = dataclasses.replace(run, mixture=None).predict([images / "day"])
    assert not torch.allclose(alone.predictive.probs, said.predictive.probs, atol=1e-4)

    # Without it the particles predict, as they do where validation has hardly any images.
    train(asked.model_copy(update={"mixture": "none"}), tmp_path / "plain", progress=False)
    assert open_run(tmp_path / "plain", device="cpu").mixture is None
    with pytest.raises(BellaError, match="mixture='linear' is for the method low-rank"):
        complete(RunConfig(data="x", method="full", mixture="linear"))


def test_methods_bring_settings_that_a_user_can_change():
    assert complete(RunConfig(data="x", method="full")).learning_rate == 3e-5
    assert complete(RunConfig(data="x", method="full", learning_rate=0.1)).learning_rate == 0.1
    bayes = RunConfig(data="x", transport_options={"temperature": 1.0})
    assert complete(bayes).transport_options == {"temperature": 1.0}
    assert complete(RunConfig(data="x")).transport_options == {"temperature": 1000.0}
    kernel = complete(RunConfig(data="x", transport_options={"kernel": "imq"}))
    assert kernel.transport_options == {"temperature": 1000.0, "kernel": "imq"}
    assert complete(RunConfig(data="x", transport="svgd")).transport_options == {}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"method": "lowrank"}, "method 'lowrank' is unknown: choose 'low-rank'"),
        ({"method": "full", "rank": 4}, "rank is a setting of the methods low-rank and laplace"),
        ({"method": "ssvi", "particles": 5}, "method 'ssvi' has one particle"),
        ({"method": "laplace", "particles": 2}, "method 'laplace' has one particle"),
        ({"method": "rank1", "head_init": "frozen"}, "head_init='frozen' is for the methods"),
        ({"options": {"density": 0.1}}, "bella.low_rank has no option 'density'"),
        ({"method": "ssvi", "options": {"densty": 0.1}}, "near names are 'density'"),
        ({"transport": "svdg"}, "'svgd'"),
        ({"device": "abacus"}, "device='abacus' cannot be used here"),
    ],
)
def test_what_a_method_does_not_have_is_refused(place, tmp_path, more, said):
    values = {"data": str(place / "images"), "network": f"hf:{place / 'network'}"} | more
    with pytest.raises(BellaError, match=said) as caught:
        train(RunConfig(**values), tmp_path / "run", progress=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_heads_start_as_they_are_asked_to(place, tmp_path):
    for start in ("probe", "frozen", "copy", "reset"):
        asked = config(place, head_init=start, epochs=1, learning_rate=1e-9)
        train(asked, tmp_path / start, progress=False)
    starts = {
        name: open_run(tmp_path / name).posterior.layers()["classifier"].values["weight"]
        for name in ("probe", "frozen", "copy", "reset")
    }
    torch.testing.assert_close(starts["probe"], starts["frozen"], atol=1e-6, rtol=0)
    assert (starts["probe"][0] - starts["probe"][1]).abs().max() > 1e-4  # a resample for each
    torch.testing.assert_close(starts["copy"][0], starts["copy"][1], atol=1e-6, rtol=0)
    assert (starts["reset"][0] - starts["reset"][1]).abs().max() > 1e-2


# ---------------------------------------------------------------- what was found


def test_what_was_found_is_told_before_the_training(place, tmp_path):
    told = []
    train(config(place, epochs=1), tmp_path, progress=False, tell=told.append)
    (found,) = told
    assert found.images["train"] == {"day": 7, "night": 7}
    assert sum(sum(counts.values()) for counts in found.images.values()) == 24
    per_particle = 4 * 2 * (32 + 32)
    assert found.parameters["in what differs"] == 3 * per_particle
    assert found.parameters["in heads"] == 3 * 66
    assert (found.steps_per_epoch, found.epochs, found.particles) == (2, 1, 3)
    assert 0 < found.seconds < 600
    assert found.entrance == "vit.layers.0"
    text = "\n".join(found.lines())
    for words in ("day", "opens at vit.layers.0", "linear probes", "1 epoch of 2 steps", "on cpu"):
        assert words in text
    steps, few = found.warnings()
    assert "14 training images make 2 steps an epoch and 2 in all" in steps
    assert "fewer than 10 images, too few to pool" in few


def test_telling_changes_no_number(place, figures, tmp_path):
    train(config(place), tmp_path, progress=False, tell=lambda found: None)
    posterior = "posterior.safetensors"
    assert content(tmp_path)[posterior] == content(place / "run")[posterior]


def test_many_classes_are_told_by_the_smallest_and_the_largest():
    train_part = {f"class {i}": 5 + i for i in range(40)}
    found = Found(
        images={"train": train_part, "test": dict.fromkeys(list(train_part)[1:], 2)},
        parameters={"frozen": 10},
        particles=2,
        steps_per_epoch=100,
        epochs=3,
        entrance="the inputs",
        heads="",
        device="cpu",
        seconds=math.nan,
    )
    text = "\n".join(found.lines())
    assert "class 0 " in text
    assert "class 39" in text
    assert "class 20" not in text
    assert "about" not in text
    assert found.warnings() == ["The test part has no image of class 0."]
    assert [in_words(seconds) for seconds in (0.2, 61, 300, 9000)] == [
        "1 s",
        "61 s",
        "5 min",
        "2.5 h",
    ]


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("crop", [None, 0.875])
def test_an_exported_preprocessing_is_read_back_as_it_was(crop):
    preprocess = Preprocess(224, mean=(1.0, 2.0, 3.0), std=51.0, crop=crop, interpolation="bicubic")
    again = read_preprocess(processor_config(preprocess))
    found, expected = again.to_dict(), preprocess.to_dict()
    assert found.keys() == expected.keys()
    for name in ("size", "crop", "interpolation", "augment"):
        assert found[name] == expected[name]
    for name in ("mean", "std"):
        assert found[name] == pytest.approx(expected[name])


def test_exports_of_other_libraries_have_their_configuration(tmp_path):
    preprocess = Preprocess(64, mean=51.0, std=25.5, crop=0.9)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    network.num_features = 12
    network.pretrained_cfg = {"architecture": "resnet18", "classifier": "fc", "first_conv": "c"}
    run = TrainedRun(Point(network), CLASSES, preprocess, "timm:resnet18.a1_in1k")
    assert export(run, tmp_path / "timm") == 26
    found = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert found["architecture"] == "resnet18"
    assert (found["num_classes"], found["label_names"]) == (2, list(CLASSES))
    assert read_timm(found["pretrained_cfg"]).to_dict() == preprocess.to_dict()
    assert found["pretrained_cfg"]["classifier"] == "fc"
    weights = load_file(tmp_path / "timm" / "model.safetensors")
    assert torch.equal(weights["1.weight"], network[1].weight)
    own = TrainedRun(Point(network), CLASSES, preprocess, "efficientnet-lite0")
    export(own, tmp_path / "own")
    found = json.loads((tmp_path / "own" / "config.json").read_text())
    assert (found["network"], found["classes"]) == ("efficientnet-lite0", list(CLASSES))
    assert Preprocess.from_dict(found["preprocess"]) == preprocess


def test_an_export_needs_room_of_its_own(place, figures, tmp_path):
    run = open_run(place / "run")
    with pytest.raises(BellaError, match="holds something"):
        export(run, place / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(BellaError, match="holds something"):
        export(run, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    export(run, tmp_path / "empty", 1)
    names = {path.name for path in (tmp_path / "empty").iterdir()}
    assert names == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.skipif(os.name != "posix", reason="names of files are bytes on POSIX")
def test_names_of_files_that_are_no_text_are_written_as_they_are(tmp_path):
    paths = [Path(os.fsdecode(name)) for name in (b"caf\xe9.png", b"new\nline.png")]
    Predictions(paths, Predictive(torch.randn(2, 2, 2)), ("a", "b")).write(tmp_path / "p.csv")
    content = (tmp_path / "p.csv").read_bytes()
    assert b"caf\xe9.png" in content
    with (tmp_path / "p.csv").open(newline="", errors="surrogateescape") as file:
        assert [row["image"] for row in csv.DictReader(file)] == list(map(str, paths))
    Predictions(paths, Predictive(torch.randn(2, 2, 2)), ("a", "b")).write(tmp_path / "p.jsonl")
    lines = (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["image"] for line in lines] == list(map(str, paths))


def test_rows_need_not_have_the_same_columns(tmp_path):
    rows = [{"a": 1, "b": [2]}, {"a": 3, "c": {"d": None}}]
    write_rows(tmp_path / "r.csv", rows)
    assert (tmp_path / "r.csv").read_text().splitlines() == [
        "a,b,c",
        "1,[2],",
        '3,,"{""d"": null}"',
    ]
    write_rows(tmp_path / "r.jsonl", rows)
    lines = (tmp_path / "r.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows


def test_figures_are_json_with_null_where_there_is_no_number(place, figures):
    held = json.loads((place / "run" / "figures.json").read_text())
    assert held.keys() == figures.keys()
    assert figures["mi_wrong"] != figures["mi_wrong"]  # no image was called wrong
    assert held["mi_wrong"] is None


def test_the_fresh_head_is_the_seed_s(place, tmp_path):
    """The run's seed decides the head, so that an opened run finds the same base."""
    train(config(place, seed=7, epochs=1, modules_to_save=[]), tmp_path, progress=False)
    head = open_run(tmp_path).posterior.network.classifier.weight
    name = f"hf:{place / 'network'}"
    assert torch.equal(head, open_network(name, 2, seed=7).network.classifier.weight)
    assert not torch.equal(head, open_network(name, 2, seed=8).network.classifier.weight)


def test_fit_and_compare_mean_the_same_where_validation_is_small(tmp_path, place, capsys):
    """Fewer than ten validation images: in both the particles predict alone, and both say so."""
    network, images = f"hf:{place / 'network'}", write_images(tmp_path / "images", count=12, seed=3)
    settings = {"epochs": 1, "batch_size": 8}
    asked = RunConfig(data=str(images), network=network, **settings)
    told = []
    found = train(asked, tmp_path / "run", progress=False, tell=lambda f: told.extend(f.warnings()))
    assert any("too few to pool" in line for line in told)
    results = compare(
        images_task(images, network),
        ["bella"],
        seeds=1,
        folder=tmp_path / "compare",
        progress=False,
        **settings,
    )
    assert "the row bella is its particles alone" in capsys.readouterr().err
    row = results["methods"]["bella"]["figures"]
    assert row["nll"]["mean"] == pytest.approx(found["nll"], rel=1e-3)
