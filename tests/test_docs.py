"""What the documents point to exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bella.experiments.methods import METHODS
from bella.recipes import KINDS
from bella.transport import TRANSPORTS

ROOT = Path(__file__).parents[1]
METHOD_PAGES = sorted(ROOT.glob("docs/methods/*.md"))
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
THEIRS = (
    "photos/",
    "site/",
    "tensorboard/",
)  # folders of a reader, in examples, and what commands make
PLACES = (ROOT, ROOT / "src" / "bella", ROOT / "docs")


def missing_paths(text: str) -> list[str]:
    """Source files and folders of this project that a page names and that are not there."""
    code = re.findall(r"```\n(.*?)```", text, re.DOTALL)
    named = re.findall(r"(?<![\w/.-])[\w-]+(?:/[\w.-]+)*\.(?:py|svg)\b", text)
    named += re.findall(r"`((?:[\w-]+/)+)`", text)
    for block in code:
        named += re.findall(r"^([a-z_]+/)(?= )", block, re.MULTILINE)
    names = {path.name for path in ROOT.glob("src/bella/**/*.py")}
    return [
        name
        for name in dict.fromkeys(named)
        if name not in THEIRS
        and not any((place / name).exists() for place in PLACES)
        and not ("/" not in name and name in names)
    ]


def links(text: str) -> list[str]:
    """Where a page's links and pictures within the project point to."""
    found = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    return [target for target in found if "://" not in target and not target.startswith("mailto:")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_is_there(page):
    text = page.read_text(encoding="utf-8")
    assert [target for target in links(text) if not (page.parent / target).exists()] == []
    assert missing_paths(text) == []


def test_a_moved_file_would_be_noticed():
    assert missing_paths("see `transport/gram.py`, `training/` and docs/draw.py") == []
    assert missing_paths("see `layers/gram.py`") == ["layers/gram.py"]
    assert missing_paths("see `layers/`") == ["layers/"]
    assert missing_paths("```\nlayers/   what\n  gone.py  why\n```") == ["gone.py", "layers/"]
    assert links("[a](b.md#c) ![d](e.png) [f](https://g.h)") == ["b.md", "e.png"]


def test_every_page_has_its_place_in_one_order():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = re.findall(r": ([\w/-]+)\.md$", text[text.index("nav:") :], re.MULTILINE)
    assert nav[0] == "index"
    found = [*ROOT.glob("docs/*.md"), *METHOD_PAGES]
    pages = {str(path.relative_to(ROOT / "docs").with_suffix("")) for path in found}
    assert sorted(nav) == sorted(pages | {"reference"})  # that one is made with the site
    order = [name for name in nav[1:] if name != "reference"]
    listed = re.findall(
        r"^- \[[^]]*\]\(([\w/-]+)\.md\)", (ROOT / "docs/index.md").read_text(), re.M
    )
    assert listed == order
    listed = re.findall(r"^- \[docs/([\w-]+)\.md\]", (ROOT / "README.md").read_text(), re.M)
    assert listed == [name for name in order if "/" not in name]  # one line leads to the methods


ORDER = [
    "The idea",
    "The mathematics",
    "How to use it",
    "Defaults, and why",
    "What it costs",
    "When it does not help",
    "Sources",
]


@pytest.mark.parametrize("page", METHOD_PAGES, ids=lambda page: page.stem)
def test_a_method_s_page_has_the_order_of_all_and_its_own_picture(page):
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ORDER
    idea = text[text.index("## The idea") : text.index("## The mathematics")]
    assert f"(../pictures/ideas/{page.stem}.svg)" in idea
    drawn = ROOT / f"docs/pictures/ideas/{page.stem}.svg"
    assert drawn.stat().st_size < 60_000
    assert "prefers-color-scheme: dark" in drawn.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", [page.stem for page in METHOD_PAGES])
def test_a_picture_is_drawn_and_small(name, tmp_path):
    import ideas
    from drawing import save

    figure, words = ideas.IDEAS[name]()
    path = save(figure, tmp_path / f"{name}.svg", words)
    assert path.stat().st_size < 60_000
    assert f"<title>{words}</title>" in path.read_text(encoding="utf-8")


def test_every_method_has_a_page_and_a_picture():
    import ideas

    assert set(ideas.IDEAS) == {page.stem for page in METHOD_PAGES}
    told = re.findall(r"`([^`\n]+)`", "\n".join(page.read_text("utf-8") for page in METHOD_PAGES))
    words = {word for text in told for word in re.split(r"[\s,|]+", text)}
    for row in METHODS:
        name, _, more = row.partition("+")
        assert row in words or (name in words and f"+{more}" in words), f"no page tells of {row}"
    assert set(KINDS) <= words
    assert set(TRANSPORTS) <= words


def test_what_pages_quote_is_what_the_results_say():
    import quoted

    results = quoted.RESULTS.read_text(encoding="utf-8")
    quoting = [page for page in PAGES if "<!-- quoted " in page.read_text(encoding="utf-8")]
    assert quoting
    for page in quoting:
        assert quoted.updated(page, results) == page.read_text(encoding="utf-8"), page


def anchor(heading: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def headings(text: str) -> set[str]:
    """The anchors of a page."""
    found = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return set(map(anchor, found))


def section(text: str, part: str) -> str:
    """What stands under a heading, smaller headings among it; without one, all of the page."""
    kept, depth = [], 0
    for line in text.splitlines():
        if found := re.match(r"(#+) (.*)", line):
            if depth and len(found[1]) <= depth:
                break
            depth = depth or len(found[1]) * (anchor(found[2]) == part)
        if depth or not part:
            kept.append(line)
    return "\n".join(kept)


def strays(text: str, page: Path) -> list[tuple[str, str]]:
    """Figures of a row or a paragraph that stand in no part of a page that it links, as rounded as
    they are, with the beginning of that paragraph."""
    found = []
    for block in re.split(r"\n(?=\||- |\n|#)", text):
        targets = re.findall(r"\]\(([\w/-]*(?:\.md)?)(?:#([\w-]+))?\)", block)
        there = " ".join(
            section((page.parent / name if name else page).read_text("utf-8"), part)
            for name, part in targets
            if name.endswith(".md") or (part and not name)
        )
        if not there:
            continue
        said = [float(x) for x in re.findall(r"(?<![\w.])\d*\.\d+", there)]
        for figure in re.findall(r"(?<![\w.,])\d*\.\d+(?!\w)", re.sub(r"\]\([^)]*\)", "", block)):
            half = 0.51 * 10.0 ** -len(figure.partition(".")[2])
            if not any(abs(x - float(figure)) <= half for x in said):
                found.append((figure, block.strip()[:60]))
    return found


def test_figures_that_a_page_takes_from_a_table_stand_there(tmp_path):
    page = ROOT / "docs" / "choosing.md"
    assert strays(page.read_text("utf-8"), page) == []
    (tmp_path / "table.md").write_text("# A\n| .214 |\n## B\n| 1.5 |\n# C\n| .7 |\n")
    text = "- [a](table.md#a): .21, 1.50\n- [c](table.md#c): .21, .7\n- .9, no link"
    assert strays(text, tmp_path / "page.md") == [(".21", "- [c](table.md#c): .21, .7")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_a_part_of_a_page_arrive(page):
    for target, part in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", page.read_text("utf-8")):
        other = page.parent / target if target else page
        assert part in headings(other.read_text("utf-8")), f"{target}#{part}"


def test_every_room_is_told_of():
    import floors

    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = re.search(r"```\n(errors.*?)```", page, re.DOTALL)
    assert tree is not None
    words = set(re.findall(r"[\w]+(?=/|\.py)", tree[1]))
    assert set(floors.places()) <= words
