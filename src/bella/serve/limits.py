"""How much a service takes on; beyond it a request is refused in a sentence."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Limits(BaseModel):
    """Every limit has a default that a laptop can hold.

    Attributes:
        batch: examples in one pass, and in one request.
        wait: seconds that a pass waits for further requests, from its first one's arrival on.
        queue: examples that are accepted and not yet answered (429 beyond it).
        seconds: from a request's first byte to its answer (503 beyond it; 408 if by then it has
            not arrived).
        body: bytes of a request (413).
        pixels: of an image (413), counted before it is decoded.
        characters: of a text (413).
        tokens: that an answer of a language model may have.
        passes: that run at a time, each in a thread. More than one is for devices that a pass
            leaves idle.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch: int = Field(default=32, ge=1, le=4096)
    wait: float = Field(default=0.005, ge=0, le=10)
    queue: int = Field(default=256, ge=1)
    seconds: float = Field(default=30.0, gt=0, le=3600)
    body: int = Field(default=16 * 2**20, ge=1024)
    pixels: int = Field(default=50_000_000, ge=1)
    characters: int = Field(default=100_000, ge=1)
    tokens: int = Field(default=256, ge=1)
    passes: int = Field(default=1, ge=1, le=64)
