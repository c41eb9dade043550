"""A user's own run: images in, a run folder with a posterior out, and back again from the folder.

The folder holds all that `open_run` needs: ``model.json`` (network, classes, preprocessing) and the
posterior; beside them ``config.yaml`` (what was asked for), the probes that heads started from, the
checkpoint, the history and the figures.
"""

from bella.runs.config import RunConfig, complete, read_config
from bella.runs.exporting import export
from bella.runs.opened import Predictions, TrainedRun, open_run
from bella.runs.training import train

__all__ = [
    "Predictions",
    "RunConfig",
    "TrainedRun",
    "complete",
    "export",
    "open_run",
    "read_config",
    "train",
]
