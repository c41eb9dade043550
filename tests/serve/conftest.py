"""Runs that are served in the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from own_images import write_images, write_network

pytest.importorskip("fastapi")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Images, a network, and a run with a mixture."""
    from bella.runs import RunConfig, train

    place = tmp_path_factory.mktemp("served")
    write_images(place / "images", count=60)
    write_images(place / "others", count=30, seed=5)
    write_network(place / "network")
    config = RunConfig(
        data=str(place / "images"),
        network=f"hf:{place / 'network'}",
        particles=3,
        rank=2,
        epochs=1,
        learning_rate=0.03,
        mixture="linear",
    )
    train(config, place / "run", progress=False)
    return place


@pytest.fixture(scope="session")
def run(pictures):
    """That run, opened."""
    from bella.runs import open_run

    return open_run(pictures / "run")


@pytest.fixture(scope="session")
def networks(tmp_path_factory):
    """Names of a small BERT and a small Llama."""
    from serve_cases import write_networks

    return write_networks(tmp_path_factory.mktemp("networks"))
