"""Run folders on the Hugging Face hub: what others need to use one, and a card that says what.

A name on the hub begins with ``hf:``; anything else is a folder here. Uploading and downloading are
huggingface_hub's own.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

import bella
from bella.errors import BellaError, require
from bella.files import read_mapping, read_sealed_json, shortened, whole_folder, write_whole
from bella.posterior import Posterior
from bella.posteriors.loading import load
from bella.storage import SETTINGS, TENSORS, read

HUB = "hf:"
MODEL, FIGURES, CONFIG = "model.json", "figures.json", "config.yaml"
FILES = (TENSORS, SETTINGS, MODEL, FIGURES, CONFIG)
"""What a user of a trained posterior needs; checkpoints and probes stay where they are."""
CARD = "README.md"


def local_folder(name: str | Path, *patterns: str) -> Path:
    """A folder as it is, or of a name ``hf:owner/name`` what the hub has, in its cache.

    Args:
        name: which.
        patterns: of the files that are wanted; all for none.

    Raises:
        BellaError: the hub does not give it.
        MissingExtraError: huggingface_hub is not installed.
    """
    if not str(name).startswith(HUB):
        return Path(name)
    hub = require("huggingface_hub", extra="hf")
    repo = str(name).removeprefix(HUB)
    try:
        return Path(hub.snapshot_download(repo, allow_patterns=list(patterns) or None))
    except Exception as error:  # no such name, no network, no right to it
        raise BellaError(f"The hub does not give {repo!r} ({shortened(error)}).") from error


def from_pretrained(name: str | Path, network: nn.Module) -> Posterior:
    """`bella.load` for a folder, or for ``hf:owner/name`` on the hub.

    Raises:
        BellaError: see `bella.load` and `local_folder`.
    """
    return load(local_folder(name, *FILES), network)


def save_pretrained(folder: str | Path, out: str | Path) -> Path:
    """Copy what others need of a run folder, or of a saved posterior, beside a model card.

    Args:
        folder: of `bella fit`, or what `Posterior.save` wrote.
        out: a new or empty folder.

    Returns:
        ``out``, which `from_pretrained` and `bella.runs.open_run` read.

    Raises:
        BellaError: no posterior in ``folder``, or ``out`` holds something.
        MissingExtraError: huggingface_hub is not installed.
    """
    folder, out = Path(folder), Path(out)
    card = model_card(folder)
    with whole_folder(out) as unfinished:
        for name in FILES:
            if (folder / name).exists():
                shutil.copyfile(folder / name, unfinished / name)
        write_whole(unfinished / CARD, lambda path: path.write_text(card, encoding="utf-8"))
    return out


def push_to_hub(
    folder: str | Path, repo: str, *, private: bool = False, token: str | None = None
) -> str:
    """Upload what `save_pretrained` writes, and return its address.

    Args:
        folder: of `bella fit`, or what `Posterior.save` wrote.
        repo: ``owner/name`` on the hub; made if it is missing.
        private: whether a new one is private.
        token: of the hub; the one that ``hf auth login`` keeps if not given.

    Raises:
        BellaError: no posterior in ``folder``, or the hub refuses it.
        MissingExtraError: huggingface_hub is not installed.
    """
    hub = require("huggingface_hub", extra="hf")
    repo = repo.removeprefix(HUB)
    with TemporaryDirectory() as place:
        out = save_pretrained(folder, Path(place) / "run")
        try:
            api = hub.HfApi(token=token)
            api.create_repo(repo, private=private, exist_ok=True)
            done = api.upload_folder(repo_id=repo, folder_path=out)
        except Exception as error:
            raise BellaError(f"The hub does not take {repo!r} ({shortened(error)}).") from error
    return str(done)


# ---------------------------------------------------------------- the card


def model_card(folder: Path) -> str:
    """A model card in the hub's form: what the posterior is, how to open it, and its figures.

    Raises:
        BellaError: no posterior in the folder, or a damaged file.
    """
    hub = require("huggingface_hub", extra="hf")
    saved = read(folder)
    run = read_sealed_json(folder / MODEL) if (folder / MODEL).exists() else {}
    figures = read_mapping(folder / FIGURES) if (folder / FIGURES).exists() else {}
    network = str(run.get("network", ""))
    name = folder.resolve().name
    data = hub.ModelCardData(
        library_name="bella",
        tags=["bayesian", "uncertainty", saved.kind],
        base_model=network.removeprefix(HUB) if network.startswith(HUB) else None,
        model_name=name if figures else None,
        eval_results=_results(hub, figures) or None,
    )
    lines = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}",
        f"A posterior of kind `{saved.kind}` around {f'`{network}`' if network else 'a network'}, "
        f"made with [bella](https://pypi.org/project/bella-bnn) {bella.__version__}. It says with "
        "each answer how much its particles dispute it.",
        "## How to use it",
        _usage(bool(run)),
    ]
    if figures:
        lines += ["## Figures on the test part", _table("figure", figures)]
    if classes := run.get("classes"):
        lines += ["## Classes", ", ".join(f"`{c}`" for c in classes)]
    lines += ["## Settings", _table("setting", saved.settings)]
    return "\n\n".join(lines) + "\n"


def _results(hub: Any, figures: Mapping[str, Any]) -> list[Any]:
    """The figures in the form that the hub lists."""
    return [
        hub.EvalResult(
            task_type="classification",
            dataset_type="own",
            dataset_name="test part of the run's data",
            metric_type=name,
            metric_value=value,
        )
        for name, value in figures.items()
        if isinstance(value, int | float)
    ]


def _usage(is_run: bool) -> str:
    """How to open it, as code."""
    if is_run:
        lines = [
            "from bella.runs import open_run",
            "",
            'run = open_run("hf:OWNER/NAME")',
            'run.predict(["photo.jpg"]).rows()',
        ]
    else:
        lines = [
            "from bella.interop.hub import from_pretrained",
            "",
            'posterior = from_pretrained("hf:OWNER/NAME", network)  # the network it was made from',
        ]
    return "\n".join(["```python", *lines, "```"])


def _table(what: str, values: Mapping[str, Any]) -> str:
    """A Markdown table of names and values."""
    rows = [f"| {what} | value |", "|:--|--:|"]
    for name, value in values.items():
        text = f"{value:.4f}" if isinstance(value, float) else str(value).replace("|", "\\|")
        rows.append(f"| {name} | {'-' if value is None else text} |")
    return "\n".join(rows)
