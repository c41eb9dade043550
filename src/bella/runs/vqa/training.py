"""Train a posterior of a network that sees and writes, into a run folder.

First, where the projector is fresh, the projector alone; then the particles, over a cache of what
the layers before them make of pictures and questions; then the test questions are answered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

from bella.console import progress_bar
from bella.data.collate import collate
from bella.errors import BellaError
from bella.host import device_named
from bella.models.seeing import Seeing, open_seeing, projector_of
from bella.parallel.ranks import leads
from bella.posterior import Posterior
from bella.runs.fitting import Loaders, carry_out, start
from bella.runs.vqa.config import VqaConfig, completed
from bella.runs.vqa.found import FoundQuestions
from bella.runs.vqa.opened import (
    ANSWERS,
    PROJECTOR,
    SIMILARITY,
    VqaRun,
    keep,
    load_projector,
)
from bella.runs.vqa.questions import Pictured, Pictures, digest_of, read_questions
from bella.sealed import digest
from bella.training.projector import eye_features, train_projector
from bella.training.watching import Watcher


def train_vqa(
    config: VqaConfig,
    folder: str | Path,
    *,
    resume: bool = True,
    progress: bool = True,
    tell: Callable[[Any], None] | None = None,
    watch: Sequence[Watcher] = (),
) -> dict[str, float]:
    """Train a posterior on questions about pictures, and answer the test questions.

    Args:
        config: what to do.
        folder: the run folder.
        resume: continue what the folder holds; see `bella.fit`.
        progress: show bars.
        tell: called before the particles' training with what was found, see `FoundQuestions`.
        watch: told the figures while it trains, see `bella.fit`.

    Returns:
        Figures of the answers to the test questions, see `bella.runs.vqa.opened.figures`; also in
        ``figures.json``.

    Raises:
        BellaError: questions that cannot be read, the folder holds another run; or see `bella.fit`
            and `bella.recipes.make`.
    """
    config, folder = completed(config), Path(folder)
    progress = progress and leads()
    device = device_named(config.device)
    questions = read_questions(**config.questions())
    seeing = open_seeing(config.network, config.image_size, config.seed, quantised=config.quantised)
    prompt = config.prompt or seeing.prompt
    parts = pictured(questions, seeing, prompt)
    kept = parts["train"].kept

    def joined(items: list[Any]) -> Any:
        # The vocabulary is large: logits are made of the places that can hold answers alone.
        return {**collate(items), "logits_to_keep": kept}

    def batches(part: str, shuffle: bool = False) -> DataLoader:
        return DataLoader(
            parts[part],
            config.batch_size,
            shuffle=shuffle,
            collate_fn=joined,
            num_workers=config.workers,
        )

    # What predicts is asked for words, and not for these: they need no batches of their own.
    ordered, validation = batches("train"), batches("validation")
    loaders = Loaders(batches("train", shuffle=True), ordered, ordered, validation, validation)
    before = folder if resume else None
    with progress_bar(progress) as bar:
        projector = own_projector(config, seeing, parts["train"], before, device, bar)
        posterior, probes = start(
            config, seeing, lambda: seeing, loaders, before, device, bar, probed=False
        )
    posterior.to(device)
    if tell is not None and leads():
        steps, own = len(loaders.train), projector is not None
        tell(FoundQuestions.of(config, posterior, questions, steps, own))
    settings: dict[str, Any] = {}
    if config.cache_prefix == "auto":
        # The questions are the same each time, whatever puts them together.
        settings["cache_prefix"] = _fits(posterior, parts, config.cache_disk_bytes)
    answer_tokens = config.answer_tokens or max(kept - 1, 1)
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
            "columns": config.columns,
            "image_size": config.image_size,
            "prompt": prompt,
            "answer_tokens": answer_tokens,
            "projector": projector is not None,
        },
        identity={
            "task": config.task,
            "questions": digest_of({part: questions[part] for part in ("train", "validation")}),
            "image_size": config.image_size,
            "prompt": prompt,
            **({} if projector is None else {"projector": digest(projector)}),
            "projector_epochs": config.projector_epochs,
            "projector_rate": config.projector_rate,
        },
        resume=resume,
        progress=progress,
        watch=watch,
        settings=settings,
        beside={PROJECTOR: projector, ANSWERS: None, SIMILARITY: None},
    )
    if done is None:
        return {}
    finished, _ = done
    finished.eval()
    run = VqaRun(finished, seeing, prompt, config.columns, answer_tokens, config.precision)
    with progress_bar(progress) as bar:
        rows = run.answer(questions["test"], bar)
    return keep(folder, rows, finished)


def pictured(questions: dict[str, list[Any]], seeing: Seeing, prompt: str) -> dict[str, Pictured]:
    """The questions that are learnt from and validated on, of one shape.

    Raises:
        BellaError: a part without questions.
    """
    for part, some in questions.items():
        if not some:
            raise BellaError(f"There are no questions of the part {part}: give more.")
    both = questions["train"] + questions["validation"]
    whole = Pictured(both, seeing, prompt)
    return {
        part: Pictured(questions[part], seeing, prompt, whole.length, whole.kept)
        for part in ("train", "validation")
    }


def own_projector(
    config: VqaConfig,
    seeing: Seeing,
    train: Pictured,
    folder: Path | None,
    device: torch.device,
    bar: Any,
) -> dict[str, Tensor] | None:
    """The projector's weights where they are not the network's own: read, or trained now.

    A run that goes on takes those that its folder holds.

    Args:
        config: of the run.
        seeing: whose projector gets the weights.
        train: what it is trained on.
        folder: of a run that goes on.
        device: where it is trained.
        bar: shows how far it is.

    Raises:
        BellaError: a file that holds no projector of this network.
    """
    network = seeing.network
    given = None if config.projector is None else Path(config.projector)
    if given is not None and given.is_dir():
        given = given / PROJECTOR
    elif given is None and folder is not None and (folder / PROJECTOR).exists():
        given = folder / PROJECTOR
    epochs = config.projector_epochs
    if epochs is None:
        epochs = int(seeing.fresh)
    if given is not None:
        load_projector(network, given)
        return load_file(given)
    if not epochs:
        return None
    network.to(device)
    paths = sorted({one.image for one in train.questions})
    places = {path: place for place, path in enumerate(paths)}
    features = eye_features(network, Pictures(paths, seeing.preprocess), bar)
    train_projector(
        network,
        features,
        [train.text(i) for i in range(len(train))],
        [places[one.image] for one in train.questions],
        epochs=epochs,
        batch_size=config.batch_size,
        learning_rate=config.projector_rate,
        precision=config.precision,
        seed=config.seed,
        bar=bar,
    )
    return {
        name: x.detach().cpu().clone() for name, x in projector_of(network).state_dict().items()
    }


def _fits(posterior: Posterior, parts: dict[str, Pictured], limit: int) -> bool:
    """Whether what the shared layers make of all questions may be kept: hidden states of a whole
    text for each, and as much again for what goes with them."""
    if posterior.shared is None or posterior.trains_base:
        return False
    config: Any = posterior.network.config
    width = config.get_text_config().hidden_size
    size = next(posterior.network.parameters()).element_size()
    count = sum(len(part) for part in parts.values())
    return 2 * count * parts["train"].length * width * size < limit
