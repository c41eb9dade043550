"""Run the benchmarks and write their tables into docs/performance.md.

    python benchmarks/all.py [--only NAME ...] [--quick] [--device cuda] [--autocast]

Each runs in a process of its own; on two quiet cores all of them take about half an hour.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from page import Options, parser

BENCHMARKS = (
    "step",
    "precision",
    "small",
    "hundred",
    "generation",
    "coupling",
    "last_blocks",
    "chunks",
    "training_memory",
    "base_memory",
    "file_size",
    "compare",
    "sparse_inference",
    "sparse_memory",
)


def main() -> None:
    """One after the other; a failure is reported at the end and does not stop the others."""
    asked = parser(__doc__)
    asked.add_argument("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS)
    arguments = vars(asked.parse_args())
    chosen = arguments.pop("only")
    flags = Options(**arguments).flags()
    failed = []
    for number, name in enumerate(chosen, start=1):
        print(f"[{number}/{len(chosen)}] {name}", flush=True)
        begun = time.perf_counter()
        script = Path(__file__).with_name(f"{name}.py")
        if subprocess.run([sys.executable, str(script), *flags]).returncode:
            failed.append(name)
        print(f"{name}: {time.perf_counter() - begun:.0f} s\n", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
