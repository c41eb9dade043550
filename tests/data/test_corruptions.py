"""Corrupted images: every kind and severity, the same for the same picture, refused where small."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from own_images import write_images
from PIL import Image
from torch.utils.data import DataLoader

import bella
from bella.data import ImageList, Preprocess, open_images
from bella.data.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    Corruption,
    corrupted,
    corruptions_named,
)
from bella.training.identity import fingerprint_data

pytest.importorskip("imagecorruptions")


def picture(side=96):
    """Waves, an edge and a colour gradient."""
    y, x = np.mgrid[0:side, 0:side] / side
    waves = 90 + 60 * np.sin(25 * x * y) + 70 * (x > 0.6)
    colours = np.stack([waves, 200 * y, 255 * x * (1 - y)], -1)
    return Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8))


def gap(one, other):
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


def test_severities_grow_at_the_smallest_size_that_is_allowed():
    clean = picture()
    mean = np.zeros(5)
    for kind in CORRUPTIONS:
        gaps = [gap(Corruption(kind, severity)(clean), clean) for severity in SEVERITIES]
        assert gaps[0] > 0.2, kind
        if kind != "saturate":  # two severities take colour away, three add some
            assert gaps[-1] > 1.05 * gaps[0], (kind, gaps)
        assert len(set(gaps)) == 5, (kind, gaps)  # no two severities are one
        mean += gaps
    assert (np.diff(mean) > 0).all()


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_picture_and_a_seed_decide_what_is_drawn(kind):
    clean = picture()
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    one = Corruption(kind, 3)(clean)
    assert np.array_equal(np.random.get_state()[1], before)  # the caller's generator is left alone
    np.random.seed(4)
    assert one.tobytes() == Corruption(kind, 3)(clean.copy()).tobytes()
    assert one.size == clean.size
    assert one.mode == "RGB"
    draws = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "saturate"}
    draws |= {"jpeg_compression", "gaussian_blur"}
    other = Corruption(kind, 3, seed=1)(clean)
    assert (one.tobytes() == other.tobytes()) == (kind in draws)


def test_threads_do_not_mix_their_draws():
    clean, kinds = picture(), ["gaussian_noise", "fog", "impulse_noise", "snow"] * 3
    alone = [Corruption(kind, 2)(clean).tobytes() for kind in kinds]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda kind: Corruption(kind, 2)(clean).tobytes(), kinds))
    assert together == alone


def test_a_data_set_under_a_corruption(tmp_path):
    write_images(tmp_path / "images", count=3)
    images = open_images(tmp_path / "images", Preprocess((96, 120), crop=0.9))
    fog = corrupted(images, "fog", 5)
    assert (fog.classes, fog.labels) == (images.classes, images.labels)
    x, y = fog[1]
    assert x.shape == (3, 96, 120)
    assert y == images[1][1]
    # What the network sees is the corrupted picture, and the file is as it was.
    seen = Corruption("fog", 5)(images.preprocess.picture(images.image(1)))
    plain = dataclasses.replace(images.preprocess, crop=None)
    assert torch.equal(x, plain(seen))
    assert not torch.equal(images[1][0], x)
    assert images.preprocess.corruption is None
    # In any order, part and process the same.
    assert torch.equal(fog.select([4, 1])[1][0], x)
    worked = torch.cat([batch for batch, _ in DataLoader(fog, 2, num_workers=1)])
    assert torch.equal(worked[1], x)
    assert torch.equal(corrupted(ImageList(images.paths, images.preprocess), "fog", 5)[1], x)
    assert fog.fixed
    assert fingerprint_data(fog) != fingerprint_data(images)


def test_small_networks_get_pictures_that_were_corrupted_larger(tmp_path):
    write_images(tmp_path / "images", count=1)
    images = open_images(tmp_path / "images", Preprocess(32))
    with pytest.raises(bella.BellaError, match="at least 96"):
        corrupted(images, "fog", 1)
    x, _ = corrupted(images, "fog", 3, side=96)[0]
    large = open_images(tmp_path / "images", Preprocess(96)).preprocess.picture(images.image(0))
    assert torch.equal(x, Preprocess(32)(Corruption("fog", 3)(large)))


def test_a_corrupting_preprocessing_survives_json_and_a_plain_one_is_as_before():
    plain = Preprocess(96)
    assert "corruption" not in plain.to_dict()
    made = dataclasses.replace(plain, corruption=Corruption("snow", 2, seed=5, side=128))
    assert Preprocess.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    assert Preprocess.from_dict(plain.to_dict()) == plain


def test_names():
    assert corruptions_named(["all"]) == list(CORRUPTIONS)
    assert corruptions_named(["fog", "snow", "fog"]) == ["fog", "snow"]
    assert corruptions_named([]) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("foggy", 1), "near are 'fog'"),
        (("fog", 0), "from 1 to 5"),
        (("fog", True), "from 1 to 5"),
        (("fog", 1, 0.5), "whole number"),
        (("fog", 1, 0, 64), "at least 96"),
        (("fog", 1, 0, "96"), "at least 96"),
    ],
)
def test_what_there_is_not_is_refused(arguments, words):
    with pytest.raises(bella.BellaError, match=words):
        Corruption(*arguments)
    with pytest.raises(bella.BellaError, match="must be a Corruption"):
        Preprocess(96, corruption="fog")
