"""What strangers hand over: adapters, settings, tables, records and pictures, damaged at random.

Each ends in one sentence, or is read as something whole: never in another error, never half. An
adapter carries no checksum (PEFT's format has none), so what is read of a damaged one may mean
something else; it is finite, and a network that it is refused for is as it was.
"""

from __future__ import annotations

import copy
import io
import json
import math
import warnings

import numpy as np
import pytest
import torch
import yaml
from damage import WAYS, cut, flip, grow, mix
from fit_cases import Blocks, make, problem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import bella
from bella.data import ImageTable, Preprocess
from bella.data.images import load_image
from bella.data.records import read_records
from bella.errors import BellaError
from bella.runs import RunConfig
from bella.runs.config import complete, read_config

FEW = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
MANY = settings(FEW, max_examples=3000, derandomize=False)
RANDOM = st.randoms(use_true_random=False)
ODD = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        10**12,
        10**40,
        1e300,
        math.inf,
        "",
        "x",
        "\0",
        "3",
        [],
        {},
        [[]],
        [1],
        "../x",
    ]
)


def one_sentence(error):
    assert "\n" not in str(error), str(error)[:500]
    assert len(str(error)) < 2000


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


# ---------------------------------------------------------------- adapters


@pytest.fixture(scope="module")
def adapter(place):
    posterior = make(particles=1, b_std=0.1)
    (folder,) = bella.to_peft(posterior, place / "adapters", soup="none")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def change_entry(rng, path, odd):
    content = json.loads(path.read_text())
    content[rng.choice([*content, "new", "r", "use_dora"])] = odd
    path.write_text(json.dumps(content))


def damage_adapter(place, adapter, rng, odd):
    folder = place / "adapter"
    folder.mkdir(exist_ok=True)
    for name, content in adapter.items():
        (folder / name).write_bytes(content)
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    if rng.random() < 0.4:
        change_entry(rng, config, odd)
    else:
        rng.choice(WAYS)(rng, rng.choice((weights, weights, config)))
    network = Blocks()
    before = copy.deepcopy(network.state_dict())
    try:
        posterior = bella.from_peft(network, [folder])
    except BellaError as error:
        one_sentence(error)
        after = network.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(value, after[name]) for name, value in before.items())
        return
    assert posterior.particles == 1
    assert all(bool(p.isfinite().all()) for p in posterior.parameters())


@FEW
@given(rng=RANDOM, odd=ODD)
def test_damaged_adapters(place, adapter, rng, odd):
    damage_adapter(place, adapter, rng, odd)


@pytest.mark.slow
@MANY
@given(rng=RANDOM, odd=ODD)
def test_many_damaged_adapters(place, adapter, rng, odd):
    damage_adapter(place, adapter, rng, odd)


# ---------------------------------------------------------------- mixtures


@pytest.fixture(scope="module")
def mixture(place):
    mixed = bella.mixture(make().eval(), problem(24), problem(20, 1))
    mixed.save(place / "mixture")
    files = {path.name: path.read_bytes() for path in (place / "mixture").iterdir()}
    return files, bella.predict(mixed, problem(5, 2)[0]).probs


def damage_mixture(place, mixture, rng):
    """Sealed: one sentence, or the same answer."""
    files, right = mixture
    folder = place / "mixture"
    for name, content in files.items():
        (folder / name).write_bytes(content)
    rng.choice(WAYS)(rng, folder / "mixture.safetensors")
    try:
        found = bella.load_mixture(folder, Blocks())
    except BellaError as error:
        one_sentence(error)
        return
    assert torch.equal(bella.predict(found, problem(5, 2)[0]).probs, right)


@FEW
@given(rng=RANDOM)
def test_damaged_mixtures(place, mixture, rng):
    damage_mixture(place, mixture, rng)


@pytest.mark.slow
@MANY
@given(rng=RANDOM)
def test_many_damaged_mixtures(place, mixture, rng):
    damage_mixture(place, mixture, rng)


# ---------------------------------------------------------------- settings

WHOLE = RunConfig(data="images").model_dump()
JSON = st.recursive(
    ODD | st.text(max_size=8) | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)


def read_settings(place, content):
    path = place / "config.yaml"
    path.write_bytes(content)
    try:
        found = complete(read_config(path, {}))
    except BellaError as error:
        one_sentence(error)
        return
    again = yaml.safe_dump(found.written(), sort_keys=False)  # whole: it can be written and read
    path.write_text(again)
    assert complete(read_config(path, {})).written() == found.written()


def damage_settings(place, rng, name, value):
    values = dict(WHOLE)
    if rng.random() < 0.6:
        values[name] = value
        read_settings(place, yaml.dump(values, allow_unicode=True).encode("utf-8", "replace"))
        return
    path = place / "damaged.yaml"
    path.write_text(yaml.safe_dump(values))
    rng.choice(WAYS)(rng, path)
    read_settings(place, path.read_bytes())


NAMES = st.sampled_from(sorted(WHOLE)) | st.text(max_size=5)


@FEW
@given(rng=RANDOM, name=NAMES, value=JSON)
def test_damaged_settings(place, rng, name, value):
    damage_settings(place, rng, name, value)


@pytest.mark.slow
@MANY
@given(rng=RANDOM, name=NAMES, value=JSON)
def test_many_damaged_settings(place, rng, name, value):
    damage_settings(place, rng, name, value)


# ---------------------------------------------------------------- tables and records


@pytest.fixture(scope="module")
def table(place):
    for i in range(4):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(place / f"{i}.png")
    return "\ufeffpath,label\r\n" + "".join(f'"{i}.png",{"ab"[i % 2]}\r\n' for i in range(4))


CELLS = st.sampled_from(
    [
        "0.png",
        "../0.png",
        "/etc/passwd",
        "x" * 300,
        '"',
        '""',
        "\0",
        "\ud800",
        "a,b",
        "\r",
        " ",
        "-1",
    ]
)


def damage_table(place, table, rng, cell):
    path = place / "table.csv"
    content = table.encode()
    if rng.random() < 0.5:
        lines = table.split("\r\n")
        place_in = rng.randrange(1, len(lines))
        lines[place_in] = rng.choice((f"{cell},a", f"0.png,{cell}", cell, f"1.png,a,{cell}"))
        content = rng.choice(("\r\n", "\n", "\r")).join(lines).encode("utf-8", "surrogatepass")
    path.write_bytes(content)
    if rng.random() < 0.5:
        rng.choice(WAYS)(rng, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            images = ImageTable(path, Preprocess(4))
            assert len(images.labels) == len(images.paths) > 0
            assert all(0 <= label < len(images.classes) for label in images.labels)
            assert images[0][0].shape == (3, 4, 4)
        except BellaError as error:
            one_sentence(error)


def damage_records(place, rng, cell):
    kind = rng.choice(("csv", "tsv", "jsonl"))
    rows = [{"text": f"words {i}", "label": "ab"[i % 2]} for i in range(6)]
    rows[rng.randrange(6)]["text"] = cell
    if kind == "jsonl":
        content = "\n".join(map(json.dumps, rows))
    else:
        between = {"csv": ",", "tsv": "\t"}[kind]
        content = "\n".join(
            between.join(row) for row in (("text", "label"), *(r.values() for r in rows))
        )
    path = place / f"rows.{kind}"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    if rng.random() < 0.7:
        rng.choice(WAYS)(rng, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for part in read_records(path).values():
                assert all(set(row) <= set(part.columns) for row in part.rows)
        except BellaError as error:
            one_sentence(error)


@FEW
@given(rng=RANDOM, cell=CELLS)
def test_damaged_tables(place, table, rng, cell):
    damage_table(place, table, rng, cell)
    damage_records(place, rng, cell)


@pytest.mark.slow
@MANY
@given(rng=RANDOM, cell=CELLS)
def test_many_damaged_tables(place, table, rng, cell):
    damage_table(place, table, rng, cell)
    damage_records(place, rng, cell)


# ---------------------------------------------------------------- pictures

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
NOISE = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
MODES = {"PNG": "RGBA", "GIF": "P", "JPEG": "CMYK", "TIFF": "I;16"}


def damage_picture(place, rng):
    kind = rng.choice(FORMATS)
    held = io.BytesIO()
    noise = Image.fromarray(NOISE)
    mode = MODES.get(kind, "RGB") if rng.random() < 0.5 else "RGB"
    (Image.new("I;16", (9, 7), 700) if mode == "I;16" else noise.convert(mode)).save(held, kind)
    path = place / "picture"
    path.write_bytes(held.getvalue())
    for _ in range(rng.choice((1, 1, 2))):
        if path.stat().st_size > 1:
            rng.choice((flip, flip, cut, grow, mix))(rng, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = load_image(path)
            assert found.mode == "RGB"
            assert Preprocess(4)(found).isfinite().all()
        except BellaError as error:
            one_sentence(error)


@FEW
@given(rng=RANDOM)
def test_damaged_pictures(place, rng):
    damage_picture(place, rng)


@pytest.mark.slow
@MANY
@given(rng=RANDOM)
def test_many_damaged_pictures(place, rng):
    damage_picture(place, rng)
