"""A user's own run on texts: a file of rows in, a run folder with a posterior out, and back again.

A file a task; each says which columns it reads, what network it takes, how rows become tokens, and
how a prediction is written down. Tokenisation and collation are transformers' own.
"""

from bella.runs.texts.config import TextConfig
from bella.runs.texts.opened import TextPredictions, TextRun, open_text_run
from bella.runs.texts.tasks import TASKS
from bella.runs.texts.training import train_text

__all__ = ["TASKS", "TextConfig", "TextPredictions", "TextRun", "open_text_run", "train_text"]
