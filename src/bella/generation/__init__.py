"""Text that particles write: one answer of all, or each its own, and how sure they are of it."""

from bella.generation.answers import Answers
from bella.generation.generate import generate
from bella.generation.score import score

__all__ = ["Answers", "generate", "score"]
