"""Take the README's picture of a report: `python docs/shoot.py runs/demo-elpv`, with Chromium.

The head of the page and its curves, side by side, and not the cells themselves: their licence is
not this project's.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

PICTURE = Path(__file__).parent / "pictures" / "report.png"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT, SHOWN = 1060, 1130, 1400
HALVES = (
    "section:not([aria-labelledby$='-do']), .lead, article > .small, footer",
    "section:not([aria-labelledby$='-curves']), .tiles, .lead, h1, .top, article > .small, footer",
)
"""What each half of the picture leaves out."""


def shoot(folder: Path) -> bool:
    """Take the picture; False where there is no browser or no report."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    report = folder / "report.html"
    if browser is None or not report.exists():
        return False
    whole = Image.new("RGB", (2 * WIDTH, HEIGHT))
    with tempfile.TemporaryDirectory() as place:
        for number, hidden in enumerate(HALVES):
            page, shot = Path(place, "page.html"), Path(place, f"{number}.png")
            style = (
                f"<style>{hidden} {{ display: none }} h2 {{ margin-top: 1.5rem }}</style></head>"
            )
            page.write_text(report.read_text().replace("</head>", style, 1))
            command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
            command += ["--virtual-time-budget=20000", f"--user-data-dir={place}/profile"]
            command += [f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={shot}", page.as_uri()]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
            with Image.open(shot) as half:
                whole.paste(half.convert("RGB"), (number * WIDTH, 0))
    small = whole.resize((SHOWN, round(SHOWN * HEIGHT / whole.width)), Image.Resampling.LANCZOS)
    few = small.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few.save(PICTURE, optimize=True)
    return True


if __name__ == "__main__":
    if not shoot(Path(*sys.argv[1:] or ["runs/demo-elpv"])):
        sys.exit("No Chromium, or no report.html there.")
