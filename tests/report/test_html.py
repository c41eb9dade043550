"""The page: it holds all that it shows, says it to everybody, and opens in a browser."""

import dataclasses
import gzip
import json
import os
import re
from base64 import b64decode
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise

import pytest
from PIL import Image
from report_cases import CLASSES, browse, contrast, small_material

from bella.report import drawn
from bella.report.html import chapter, page, write_report


class Elements(HTMLParser):
    """Every element with its attributes, and the text between them."""

    def __init__(self, text):
        super().__init__()
        self.found, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def text():
    two = small_material(titles=("Bella", "LoRA + temperature"), seeds=3)
    return page([two, small_material(inputs="texts", particles=1)])


@pytest.fixture(scope="module")
def elements(text):
    return Elements(text)


def test_the_page_asks_for_nothing_from_the_network(text, elements):
    for tag, attributes in elements.found:
        for name in ("src", "href", "data", "srcset", "action"):
            link = attributes.get(name) or ""
            assert link.startswith(("data:", "#")) or not link, (tag, link)
    assert "@import" not in text
    assert "url(" not in text.partition("</style>")[0]
    assert not elements.of("link")
    assert not elements.of("iframe")


def test_what_somebody_wrote_is_text_and_no_markup(text, elements):
    assert "Small &lt;i&gt;views&lt;/i&gt;" in text
    assert not elements.of("i")
    assert not elements.of("b")
    assert "</script><b>" not in text
    assert {"night & <fog>", 'the "third"'} <= {part.strip() for part in elements.text}


def test_charts_survive_the_script_that_holds_them(text):
    held = re.search(r'<script type="application/json" id="charts">(.*?)</script>', text, re.S)
    charts = json.loads(held[1])
    assert set(charts) == {i["id"] for t, i in Elements(text).found if i.get("class") == "plot"}
    line = charts["c1-reliability"]["data"][1]
    assert line["name"] == "Bella"
    assert all(0 <= value <= 1 for value in line["y"])


def test_plotly_is_held_once_and_whole(text):
    packed = re.findall(r'id="plotly">([^<]*)<', text)
    assert len(packed) == 1
    source = gzip.decompress(b64decode(packed[0])).decode()
    assert "plotly.js v" in source[:200]
    assert len(text) < 3_000_000


def test_everybody_can_read_it(elements):
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert elements.of("html")[0]["lang"] == "en"
    assert elements.of("img")
    assert all(image["alt"] for image in elements.of("img"))
    assert all(a["aria-label"] for _, a in elements.found if a.get("role") in ("img", "region"))
    for _, attributes in elements.found:
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids
    assert all("scope" in heading for heading in elements.of("th"))
    levels = [int(tag[1]) for tag, _ in elements.found if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


def test_colours_stand_out_in_light_dark_and_print():
    """By 4.5 to 1 for words and 3 to 1 for lines (WCAG 2.2, 1.4.3 and 1.4.11)."""
    style = (files("bella.report") / "page" / "page.css").read_text()
    schemes = [dict(re.findall(r"--(\w+): (#\w{6})", part)) for part in style.split(":root")[1:4]]
    assert len(schemes) == 3
    for scheme in schemes:
        for ground in ("paper", "card"):
            for word in ("ink", "soft", "accent", "good", "bad"):
                assert contrast(scheme[word], scheme[ground]) >= 4.5, (word, ground, scheme)
            for colour in drawn.COLOURS:
                assert contrast(colour, scheme[ground]) >= 3, (colour, ground, scheme)
        assert contrast(scheme["ink"], scheme["warm"]) >= 4.5


def test_one_seed_has_no_paired_table_and_one_system_no_verdict():
    one = chapter(small_material(), "c")
    assert one["paired"] is None
    assert one["verdict"] == []
    pair = chapter(small_material(titles=("Bella", "LoRA + temperature")), "c")
    assert pair["paired"] is None
    assert "no difference can be told from chance" in pair["verdict"][0]
    several = chapter(small_material(titles=("Bella", "LoRA + temperature"), seeds=3), "c")
    (row,) = several["paired"]["rows"]
    assert (row["ours"], row["other"]) == ("Bella", "LoRA + temperature")
    assert len(row["cells"]) == len(several["paired"]["headings"])


def test_tiles_say_how_sure_they_are():
    alone = {tile.name: tile for tile in chapter(small_material(), "c")["tiles"]}
    predictive, labels = small_material().of_told("test")
    right = float((predictive.predictions == labels).double().mean())
    assert alone["right answers"].value == f"{right:.1%}"
    assert "on other views (95%)" in alone["right answers"].note
    seeds = {tile.name: tile for tile in chapter(small_material(seeds=3), "c")["tiles"]}
    assert seeds["right answers"].note == "± 1.0% over 3 seeds"
    single = [tile.name for tile in chapter(small_material(particles=1), "c")["tiles"]]
    assert "notices far (AUROC of H)" in single


def test_without_validation_nothing_is_promised():
    found = chapter(small_material(validation=0), "c")
    assert found["choices"] == []
    assert found["advised"].startswith("Without validation data nothing can be promised")


def test_names_that_are_no_text_are_written_out(tmp_path):
    odd = os.fsdecode(b"run-\xff")
    write_report([dataclasses.replace(small_material(), title=odd)], tmp_path / "r.html")
    assert "run-\\udcff" in (tmp_path / "r.html").read_text()


def test_it_opens_in_a_browser(tmp_path):
    material = small_material(titles=("Bella", "LoRA + temperature"), seeds=3)
    place = tmp_path / "report.html"
    assert write_report([material], place) == place.stat().st_size
    ran = browse(place, tmp_path, "--dump-dom")
    assert "CONSOLE" not in ran.stderr
    count = len(chapter(material, "c")["charts"])
    assert f'data-drawn="{count}"' in ran.stdout
    assert ran.stdout.count('class="plot js-plotly-plot"') == count
    assert CLASSES[0] in ran.stdout


def test_it_is_dark_where_the_reader_wants_it(tmp_path):
    place, shot = tmp_path / "report.html", tmp_path / "dark.png"
    write_report([small_material()], place)
    flags = ("--blink-settings=preferredColorScheme=0", f"--screenshot={shot}")
    browse(place, tmp_path, *flags, "--window-size=900,2600")
    with Image.open(shot) as picture:
        colours = picture.convert("RGB")
        assert colours.getpixel((2, 2)) == (0x14, 0x18, 0x1C)
        shares = {c: n for n, c in colours.getcolors(1 << 24)}
    curve = tuple(int(drawn.COLOURS[0][i : i + 2], 16) for i in (1, 3, 5))
    assert shares.get(curve, 0) > 200
