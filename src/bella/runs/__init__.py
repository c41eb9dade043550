"""A user's own run: images, rows of text or questions about
pictures in, a run folder with a posterior out, and back again.

The folder holds all that `open_run` needs: ``model.json`` (network, classes, preprocessing) and the
posterior; beside them ``config.yaml`` (what was asked for), the probes that heads started from, the
checkpoint, the history and the figures.
"""

from bella.runs.config import RunConfig, complete, read_config
from bella.runs.exporting import export
from bella.runs.opened import Predictions, TrainedRun
from bella.runs.opening import open_run
from bella.runs.texts import TextConfig, TextRun, train_text
from bella.runs.training import train
from bella.runs.vqa import VqaConfig, VqaRun, train_vqa

__all__ = [
    "Predictions",
    "RunConfig",
    "TextConfig",
    "TextRun",
    "TrainedRun",
    "VqaConfig",
    "VqaRun",
    "complete",
    "export",
    "open_run",
    "read_config",
    "train",
    "train_text",
    "train_vqa",
]
