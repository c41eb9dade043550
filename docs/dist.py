"""Build the wheel and the source distribution, the same bytes whoever builds them.

    python docs/dist.py OUT

What is built is what git tracks, with the time of the last commit (`SOURCE_DATE_EPOCH` goes before
it), plain modes and no owner. Needs git and setuptools; nothing is fetched.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]

BUILD = """
import sys
from setuptools import build_meta
place = sys.argv[1]  # which setuptools changes
build_meta.build_sdist(place)
build_meta.build_wheel(place)
"""


def tracked(root: Path) -> list[str]:
    """The files that git knows, sorted."""
    said = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True)
    return sorted(name for name in said.stdout.decode().split("\0") if (root / name).is_file())


def epoch(root: Path) -> int:
    """Seconds of the last commit, or what `SOURCE_DATE_EPOCH` says."""
    if said := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(said)
    asked = ["git", "log", "-1", "--format=%ct"]
    return int(subprocess.run(asked, cwd=root, capture_output=True, check=True, text=True).stdout)


def build(out: Path, root: Path = ROOT) -> list[Path]:
    """Both distributions, into a folder.

    Args:
        out: where they go; made if missing.
        root: a checkout.

    Returns:
        The source distribution and the wheel.
    """
    when = epoch(root)
    with tempfile.TemporaryDirectory() as place:
        source, made = Path(place, "source"), Path(place, "made")
        made.mkdir()
        for name in tracked(root):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, source / name)
        for path in [source, *source.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
            os.utime(path, (when, when))
        environment = os.environ | {"SOURCE_DATE_EPOCH": str(when), "PYTHONHASHSEED": "0"}
        subprocess.run(
            [sys.executable, "-c", BUILD, str(made)],
            cwd=source, env=environment, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        (sdist,), (wheel,) = made.glob("*.tar.gz"), made.glob("*.whl")
        out.mkdir(parents=True, exist_ok=True)
        (out / sdist.name).write_bytes(settled(sdist.read_bytes(), when))
        shutil.copyfile(wheel, out / wheel.name)
        return [out / sdist.name, out / wheel.name]


def settled(archive: bytes, when: int) -> bytes:
    """A compressed tar with its entries in order and nothing of the machine that packed it."""
    packed = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(archive)) as before,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as after,
    ):
        for entry in sorted(before.getmembers(), key=lambda entry: entry.name):
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = when, 0, 0, "", ""
            entry.mode = 0o755 if entry.isdir() else 0o644
            entry.pax_headers = {}
            after.addfile(entry, before.extractfile(entry) if entry.isfile() else None)
    return gzip.compress(packed.getvalue(), 9, mtime=when)


if __name__ == "__main__":
    for path in build(Path(sys.argv[1])):
        print(path)
