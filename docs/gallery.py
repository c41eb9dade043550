"""Run the scripts of examples/ and write docs/gallery.md from what they print and draw.

    python docs/gallery.py [NAME ...]

Each runs in an empty folder and a process of its own, on one thread; a name runs one alone and
leaves what is recorded of the others.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "gallery.md"
PICTURES = ROOT / "docs" / "pictures" / "gallery"
ORDER = (
    *("two_dimensions", "own_loop", "own_images"),
    *("language_model", "peft_in_and_out", "ask_a_service"),
)
HEAD = """# Gallery

The scripts of `examples/`, each with what it printed and drew here, on one thread of a CPU. Run one
with `python examples/own_loop.py FOLDER`: it writes into that folder alone. The page is written by
`python docs/gallery.py`, which runs them all; a test holds the scripts below against the files.

They need `pip install '.[report,hf,peft,serve]'` and the small networks and data that come in
packages ([getting started](getting-started.md#install), [texts](text.md)).
"""


def script(name: str) -> str:
    """The code of an example."""
    return (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")


def run(name: str) -> str:
    """Run an example; what it printed. Its picture goes to docs/pictures/gallery."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "COLUMNS": "100"}
    environment |= {"PYTHONPATH": str(ROOT / "src"), "PYTHONWARNINGS": "ignore", "TERM": "dumb"}
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), place]
        begun = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=place)
        print(f"{name}: {time.perf_counter() - begun:.0f} s", flush=True)
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        drawn = Path(place, f"{name}.png")
        if drawn.exists():
            PICTURES.mkdir(parents=True, exist_ok=True)
            with Image.open(drawn) as picture:
                few = picture.convert("RGB").quantize(64, dither=Image.Dither.NONE)
                few.save(PICTURES / drawn.name, optimize=True)
        return done.stdout.strip()


def recorded(name: str) -> str | None:
    """What the page says that an example printed."""
    if not PAGE.exists():
        return None
    found = re.search(rf"<!-- {name} -->.*?```text\n(.*?)\n```", PAGE.read_text("utf-8"), re.DOTALL)
    return found and found[1]


def section(name: str, said: str) -> str:
    """An example on the page."""
    code = script(name)
    title, words = code[3 : code.index('"""', 3)].strip().split("\n\n", 1)
    picture = f"![{title.rstrip('.')}](pictures/gallery/{name}.png)\n\n"
    if not (PICTURES / f"{name}.png").exists():
        picture = ""
    return (
        f"## {title.rstrip('.')}\n\n<!-- {name} -->\n\n{words}\n\n{picture}```text\n{said}\n```\n\n"
        f"<details><summary><code>examples/{name}.py</code></summary>\n\n"
        f"```py\n{code.rstrip()}\n```\n\n</details>\n"
    )


def page(printed: dict[str, str]) -> str:
    """All examples, in their order."""
    return "\n".join([HEAD, *(section(name, said) for name, said in printed.items())])


def main(names: list[str]) -> None:
    """Run some, or all, and write the page."""
    for new in names or ORDER:
        said = run(new)
        found = {name: said if name == new else recorded(name) for name in ORDER}
        printed = {name: text for name, text in found.items() if text is not None}
        PAGE.write_text(page(printed), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
