"""A user's run as a library: configuration, training into a folder, and the folder opened again."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from own_images import CLASSES, write_images, write_network
from torch.utils.data import DataLoader

import bella
from bella.data import open_images, splits
from bella.errors import BellaError
from bella.models import open_network
from bella.prediction.predictive import Predictive
from bella.runs import Predictions, RunConfig, open_run, read_config, train
from bella.training import fit
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


def config(place, **more):
    known = {
        "data": str(place / "images"),
        "network": f"hf:{place / 'network'}",
        "particles": 3,
        "rank": 2,
        "epochs": 3,
        "learning_rate": 0.03,
        "batch_size": 8,
    }
    return RunConfig(**(known | more))


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
    assert (found.data, found.rank, found.epochs, found.particles) == ("images", 2, 7, 5)
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
    assert again == config(place)
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
    assert lines[0] == "image,class,probability,entropy,mutual_information,rank"
    assert lines[2] == "b,left,0.5,0.693147,0.0,1"


# ---------------------------------------------------------------- going on


def test_a_run_is_not_continued_with_another_gain(place, figures):
    before = content(place / "run")
    with pytest.raises(BellaError, match=r"other settings \(alpha, gain\).*--fresh"):
        train(config(place, gain=3.0, alpha=1.0), place / "run", progress=False)
    assert content(place / "run") == before


def test_a_fresh_run_that_stops_early_leaves_nothing_of_the_old_one(place, tmp_path, monkeypatch):
    asked = config(place, epochs=1)
    train(asked, tmp_path, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(fit.Run, "run_epoch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(config(place, epochs=1, gain=3.0), tmp_path, resume=False, progress=False)
    with pytest.raises(BellaError, match="no saved posterior"):
        open_run(tmp_path)
    begun = train(config(place, epochs=1, gain=3.0), tmp_path, progress=False)
    straight = train(config(place, epochs=1, gain=3.0), tmp_path / "new", progress=False)
    assert begun == pytest.approx(straight, nan_ok=True)


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
