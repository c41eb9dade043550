"""What a service measures of itself, in Prometheus' own form.

Beside times and counts stand the entropies and the mutual informations of what was answered: when
what is asked drifts away from what was trained on, these move first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

import bella

NATS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)


class Gauges:
    """The figures of one service, in a registry of its own.

    Args:
        about: what is served, by name.
    """

    def __init__(self, about: Mapping[str, str]):
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        Info("bella", "What is served.", registry=registry).info(
            {"version": bella.__version__, **about}
        )
        labels = ("path", "status")
        self.requests = Counter("bella_requests", "Answered.", labels, registry=registry)
        self.seconds = Histogram(
            "bella_request_seconds", "From first byte to answer.", ("path",), registry=registry
        )
        self.running = Gauge("bella_requests_running", "Not yet answered.", registry=registry)
        self.held = Gauge("bella_queue_examples", "Not yet answered.", registry=registry)
        self.examples = Histogram(
            "bella_pass_examples", "Examples in a pass.", buckets=COUNTS, registry=registry
        )
        self.passes = Histogram("bella_pass_seconds", "Seconds of a pass.", registry=registry)
        self.entropy = Histogram(
            "bella_entropy_nats", "Of answers.", buckets=NATS, registry=registry
        )
        self.information = Histogram(
            "bella_mutual_information_nats", "Of answers.", buckets=NATS, registry=registry
        )
        self.referred = Counter(
            "bella_referred", "Answers that a person should look at.", registry=registry
        )

    def hear_pass(self, count: int, seconds: float) -> None:
        """A pass of so many examples took so long."""
        self.examples.observe(count)
        self.passes.observe(seconds)

    def hear_request(self, path: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def hear_answer(self, answer: Mapping[str, Any]) -> None:
        """What was said of one example."""
        if "entropy" in answer:
            self.entropy.observe(answer["entropy"])
            self.information.observe(answer["mutual_information"])
        if answer.get("refer"):
            self.referred.inc()

    def text(self) -> bytes:
        """All of it as Prometheus reads it."""
        return generate_latest(self.registry)
