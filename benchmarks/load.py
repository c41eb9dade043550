"""A service under load, against one forward pass: `python benchmarks/load.py RUN IMAGES`.

Starts `bella serve RUN`, has locust's users ask it for minutes, and says how long they waited, how
many images a second were answered, what memory did, and what the same passes take without HTTP.
locust is installed apart (`pip install locust`) and found on the path, or named by --locust.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import median

from quiet import Watch
from timing import Until, paired

HERE = Path(__file__).parent


def figures(port: int) -> dict[str, float]:
    """What the service says of itself."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def is_up(port: int) -> bool:
    """Whether the service answers."""
    try:
        return bool(figures(port))
    except OSError:
        return False


def one_pass(run_folder: Path, images: Path, batch: int, seconds: float) -> dict[str, float]:
    """Images a second without HTTP: files to answers, and passes of one image and of many."""
    import torch

    from bella.prediction.predict import predict
    from bella.runs import open_run

    run = open_run(run_folder)
    paths = sorted(p for p in images.rglob("*.*") if p.is_file())[:batch]
    shape = (3, run.preprocess.height, run.preprocess.width)
    counts = {f"pass_of_{count}": count for count in (1, batch)}
    images_of = {name: torch.randn(count, *shape) for name, count in counts.items()}
    passes = {
        name: lambda x=x: predict(run.predicts, x, draws=run.draws)  # type: ignore[misc]
        for name, x in images_of.items()
    }
    until = Until(seconds=seconds)
    took = paired("passes", passes, until, beside={"files": lambda: run.predict(paths)})
    middle = {name: median(values) for name, values in took.items()}
    found = {"files_per_second": len(paths) / middle["files"]}
    for name, count in counts.items():
        found |= {f"{name}_ms": 1000 * middle[name], f"{name}_per_second": count / middle[name]}
    return found


def load(run: Path, images: Path, users: int, seconds: int, locust: str) -> dict[str, float]:
    """The service under so many users for so long."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "bella", "serve", str(run), "--port", str(port), "--quiet"]
    # Its log goes nowhere: a pipe that nobody empties would stop it.
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    memory: list[float] = []
    while not is_up(port):
        assert server.poll() is None, "the service did not start"
        time.sleep(0.2)
    with tempfile.TemporaryDirectory() as place:
        asking = subprocess.Popen(
            [
                *(locust, "-f", str(HERE / "locustfile.py"), "--headless", "--only-summary"),
                *("-u", str(users), "-r", str(users), "-t", f"{seconds}s", "--csv", f"{place}/out"),
                *("--host", f"http://127.0.0.1:{port}", "--loglevel", "ERROR"),
            ],
            env=os.environ | {"BELLA_IMAGES": str(images)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while asking.poll() is None:
            time.sleep(5)
            memory.append(figures(port)["process_resident_memory_bytes"] / 2**20)
        with open(f"{place}/out_stats.csv", newline="") as file:
            said = list(csv.DictReader(file))[-1]
    own = figures(port)
    server.send_signal(signal.SIGTERM)
    status = server.wait(60)
    third = len(memory) // 3
    return {
        "users": users,
        "seconds": seconds,
        "requests": int(said["Request Count"]),
        "failures": int(said["Failure Count"]),
        "per_second": float(said["Requests/s"]),
        "p50_ms": float(said["50%"]),
        "p99_ms": float(said["99%"]),
        "images_a_pass": own["bella_pass_examples_sum"] / own["bella_pass_examples_count"],
        "pass_ms": 1000 * own["bella_pass_seconds_sum"] / own["bella_pass_seconds_count"],
        "memory_after_a_third_mib": sorted(memory[third : third + 3])[1],
        "memory_at_the_end_mib": sorted(memory[-3:])[1],
        "exit_status": status,
    }


def main() -> None:
    """The load, then the passes, as JSON, and whether the machine was quiet."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("run", type=Path)
    asked.add_argument("images", type=Path)
    asked.add_argument("--users", type=int, default=16)
    asked.add_argument("--seconds", type=int, default=120)
    asked.add_argument("--batch", type=int, default=32)
    asked.add_argument("--locust", default="locust")
    given = asked.parse_args()
    watch = Watch()
    for found in (
        load(given.run, given.images, given.users, given.seconds, given.locust),
        one_pass(given.run, given.images, given.batch, 20),
    ):
        print(json.dumps({name: round(value, 2) for name, value in found.items()}, indent=2))
    print(watch.words())


if __name__ == "__main__":
    main()
