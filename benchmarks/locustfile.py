"""Users of a service for images, for locust: each asks for one image after the other.

BELLA_IMAGES is a folder of images.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

from locust import FastHttpUser, task

IMAGES = [path.read_bytes() for path in sorted(Path(os.environ["BELLA_IMAGES"]).rglob("*.*"))[:64]]


class Person(FastHttpUser):
    """Somebody with an image."""

    @task
    def ask(self) -> None:
        """Whether the answer is one."""
        files = {"images": ("image", random.choice(IMAGES))}
        with self.client.post("/v1/predict/files", files=files, catch_response=True) as answer:
            try:
                (said,) = answer.json()["predictions"]
                assert abs(sum(said["probabilities"].values()) - 1) < 1e-5
            except Exception as error:
                answer.failure(f"{answer.status_code}: {type(error).__name__}")
