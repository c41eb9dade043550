"""A user's own run on questions about pictures: answers are written, by all particles together.

Questions and pictures in, a run folder with a posterior of a network that sees and writes out, and
back again; `answers.jsonl` in it holds the answers to the test questions (docs/vqa.md).
"""

from bella.runs.vqa.config import VqaConfig
from bella.runs.vqa.opened import VqaPredictions, VqaRun, open_vqa_run
from bella.runs.vqa.training import train_vqa

__all__ = ["VqaConfig", "VqaPredictions", "VqaRun", "open_vqa_run", "train_vqa"]
