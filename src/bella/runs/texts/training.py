"""Train a posterior on a user's rows of text, into a run folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from bella.console import progress_bar
from bella.data.collate import collate
from bella.data.opening import shifts_of
from bella.data.records import PREFIX, Records, divided, read_records
from bella.data.sets.base import USUAL
from bella.errors import BellaError
from bella.files import write_json
from bella.host import device_named
from bella.parallel.ranks import leads
from bella.recipes import recipe_named
from bella.runs.config import complete
from bella.runs.fitting import FIGURES, Loaders, carry_out, start
from bella.runs.opened import BATCH
from bella.runs.texts.base import Asked, TextTask, digest_of, labelled_if_known
from bella.runs.texts.config import TextConfig, refuse_columns
from bella.runs.texts.found import FoundTexts
from bella.runs.texts.opened import TextRun
from bella.runs.texts.tasks import task_named
from bella.sealed import digest
from bella.storage import own_tensors
from bella.training.watching import Watcher

FIELDS = TextConfig.model_fields
OF_IMAGES = (
    "templates",
    "image_size",
    "on_bad_image",
    "workers",
)
"""Settings that runs on texts do not have."""


def train_text(
    config: TextConfig,
    folder: str | Path,
    *,
    resume: bool = True,
    progress: bool = True,
    tell: Callable[[Any], None] | None = None,
    watch: Sequence[Watcher] = (),
) -> dict[str, float]:
    """Train a posterior on a user's rows and evaluate it on their test part.

    Args:
        config: what to do.
        folder: the run folder.
        resume: continue what the folder holds; see `bella.fit`.
        progress: show bars.
        tell: called before the training with what was found, see `FoundTexts`.
        watch: told the figures while it trains, see `bella.fit`.

    Returns:
        Figures on the test part, also in ``figures.json``.

    Raises:
        BellaError: columns or rows that cannot be read, the folder holds another run; or see
            `bella.fit` and `bella.recipes.make`.
    """
    config, folder = completed(config), Path(folder)
    progress = progress and leads()
    task, device = task_named(config.task), device_named(config.device)
    rows, columns, facts = rows_of(task, config)
    opened = task.open(config, facts)
    asked = Asked(opened.tokenizer, columns, facts, config.max_length, config.options_by)
    parts = {
        part: task.tokenise(some, asked) if part in USUAL else labelled_if_known(task, some, asked)
        for part, some in rows.items()
    }
    joined = task.collate(opened.tokenizer) or collate

    def batches(part: str, size: int, shuffle: bool = False) -> DataLoader:
        return DataLoader(parts[part], size, shuffle=shuffle, collate_fn=joined)

    loaders = Loaders(
        train=batches("train", config.batch_size, shuffle=True),
        ordered=batches("train", config.batch_size),
        plain=batches("train", BATCH),
        validation=batches("validation", config.batch_size),
        held_out=batches("validation", BATCH),
    )
    with progress_bar(progress) as bar:
        posterior, probes = start(
            config,
            opened,
            lambda: task.open(config, facts),
            loaders,
            folder if resume else None,
            device,
            bar,
            probed=task.heads,
        )
    posterior.to(device)
    if tell is not None and leads():
        tell(FoundTexts.of(config, posterior, rows, columns, facts, len(loaders.train)))
    reading = {"max_length": config.max_length, "options_by": config.options_by}
    done = carry_out(
        config,
        folder,
        posterior,
        probes,
        loaders,
        model={
            "task": config.task,
            "network": config.network,
            "quantised": config.quantised,
            "columns": columns,
            "facts": facts,
            "variance": config.variance,
            **reading,
        },
        identity={
            "task": config.task,
            "rows": digest_of({part: rows[part] for part in ("train", "validation")}),
            "columns": columns,
            "facts": facts,
            **reading,
            # What they start as does not follow from their settings.
            **({"adapters": digest(own_tensors(posterior))} if config.from_adapters else {}),
        },
        resume=resume,
        progress=progress,
        watch=watch,
    )
    if done is None:
        return {}
    finished, pooled = done
    draws = recipe_named(config.method).draws
    run = TextRun(finished.eval(), task, asked, config.network, draws, config.seed, pooled)
    with progress_bar(progress) as bar:
        found = run.figures(parts["test"], {name: parts[name] for name in shifts_of(parts)}, bar)
    write_json(folder / FIGURES, found)
    return found


def rows_of(
    task: TextTask, config: TextConfig
) -> tuple[dict[str, Records], dict[str, str], dict[str, Any]]:
    """A run's rows by part (its shifts last), the columns that are read, and what they say.

    Raises:
        BellaError: they cannot be read, or have no training part.
    """
    read = read_records(**config.data_arguments())
    if "train" not in read:
        raise BellaError(f"{config.data} has no rows of the part train: add some.")
    columns = task.columns(read["train"], config.columns)
    facts = task.learn(read["train"], columns)
    labels = task.classes_of(read["train"], columns, facts)
    return divided(read, labels, config.seed), columns, facts


def completed(config: TextConfig) -> TextConfig:
    """The same with the task's own network and the method's own settings.

    Raises:
        BellaError: an unknown task, column or method, or what does not go together.
    """
    task = task_named(config.task)
    refuse_columns(config.columns, tuple(task.roles), config.task)
    usual = {name: field.get_default(call_default_factory=True) for name, field in FIELDS.items()}
    strange = [name for name in OF_IMAGES if getattr(config, name) != usual[name]]
    if strange:
        raise BellaError(f"{strange[0]} is for runs on images: leave it out with --task.")
    if config.head_init == "zero-shot":
        raise BellaError("head_init='zero-shot' is for runs on images: leave it out with --task.")
    values: dict[str, Any] = {"network": config.network or task.network}
    if recipe_named(config.method).constructor == "low_rank" and not config.from_adapters:
        # The wide start of images costs validation NLL on texts (docs/results.md).
        values["gain"] = config.gain
    if task.alone:
        if config.mixture != "none":
            raise BellaError(
                f"mixture={config.mixture!r} is not for task {task.name}: {task.alone}."
            )
        values["mixture"] = "none"
    if task.wrapped and config.from_adapters:
        raise BellaError(
            f"from_adapters is not for task {task.name}: {task.wrapped}, so that no adapter fits. "
            "Start a run of the task text or causal-lm as them."
        )
    if not task.heads and config.head_init in ("probe", "frozen"):
        if "head_init" in config.model_fields_set:
            raise BellaError(
                f"head_init={config.head_init!r} is for classes: with task {config.task!r} heads "
                "start as copies of the network's (head_init 'copy')."
            )
        values["head_init"] = "copy"
    learns_one = config.task == "regression" and config.variance == "learned"
    if learns_one and config.method not in ("low-rank", "full"):
        raise BellaError(
            f"variance='learned' is a number beside the head, and method {config.method!r} changes "
            "a head that is one Linear: choose variance 'example', or method 'low-rank' or 'full'."
        )
    if config.method == "laplace" and config.task == "causal-lm":
        raise BellaError("laplace has no likelihood of tokens: choose another method.")
    whole = complete(config.model_copy(update=values))
    data = config.data
    if data.startswith(PREFIX) and not Path(data.removeprefix(PREFIX)).exists():
        whole = whole.model_copy(update={"data": data})
    elif data.startswith(PREFIX):
        whole = whole.model_copy(
            update={"data": f"{PREFIX}{Path(data.removeprefix(PREFIX)).absolute()}"}
        )
    return whole
