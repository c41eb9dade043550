"""Answers of a run: prompts from a file, answers with their figures into another."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

import bella
from bella.errors import BellaError
from bella.files import parsed, read_bytes, read_sealed_json, shortened, write_whole
from bella.generation import Answers
from bella.host import device_named
from bella.models.language import open_language
from bella.posterior import Posterior

MODEL = "model.json"
WRITES = "causal-lm"
"""The task whose runs answer."""
LARGEST_FILE = 2**30
"""No file of prompts is larger, in bytes."""


@dataclass(frozen=True)
class Writer:
    """A posterior that writes, with its tokenizer.

    Attributes:
        posterior: the particles on their network.
        tokenizer: the network's.
    """

    posterior: Posterior
    tokenizer: Any

    def answer(
        self,
        prompts: Sequence[dict[str, Any]],
        *,
        each: bool = False,
        given: bool = False,
        seed: int = 0,
        batch_size: int = 8,
        bar: Progress | None = None,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """Every prompt's line with its answer and the answer's figures.

        Args:
            prompts: what `read_prompts` returned.
            each: whether each particle answers by itself; its answers stand under ``particles``.
            given: whether the lines' own answers are scored, and none is written.
            seed: of sampled answers.
            batch_size: prompts at once.
            bar: shows how far it is.
            options: of `bella.generation.generate`.

        Raises:
            BellaError: a line without an answer to score, or as `generate` and `score` do.
        """
        if batch_size < 1:
            raise BellaError(f"batch_size={batch_size}: give a whole number of at least 1.")
        for number, line in enumerate(prompts, 1):
            if given and not isinstance(line.get("answer"), str):
                raise BellaError(f"Prompt {number} has no 'answer' to score: add it, or write one.")
        task = bar.add_task("answering", total=len(prompts)) if bar else None
        rows: list[dict[str, Any]] = []
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for first in range(0, len(prompts), batch_size):
                lines = prompts[first : first + batch_size]
                asked = [line.get("messages", line.get("prompt")) for line in lines]
                if given:
                    answers = [line["answer"] for line in lines]
                    said: Any = self.posterior.score(
                        asked, answers, tokenizer=self.tokenizer, batch_size=batch_size
                    )
                elif each:
                    said = self.posterior.generate(
                        asked, tokenizer=self.tokenizer, each=True, **options
                    )
                else:
                    said = self.posterior.generate(asked, tokenizer=self.tokenizer, **options)
                rows += list(_rows(lines, said))
                if bar and task is not None:
                    bar.advance(task, len(lines))
        return rows


def _rows(
    lines: Sequence[dict[str, Any]], said: Answers | list[Answers]
) -> Iterator[dict[str, Any]]:
    if isinstance(said, Answers):
        yield from (line | row for line, row in zip(lines, said.rows(), strict=True))
        return
    for line, *rows in zip(lines, *(one.rows() for one in said), strict=True):
        yield line | {"particles": rows}


def open_writer(
    folder: str | Path, network: str | None = None, *, device: str | None = None
) -> Writer:
    """Open a posterior of a language model, with the network's tokenizer.

    Args:
        folder: a run, or what ``posterior.save`` wrote.
        network: the name of its network (see `bella.models.language`); without it, the one that the
            run's ``model.json`` names.
        device: where to run; the accelerator if there is one.

    Raises:
        BellaError: no posterior there, no name of its network, or a run of another task.
    """
    place, folder = device_named(device), Path(folder)
    quantised = None
    if network is None:
        if not (folder / MODEL).exists():
            raise BellaError(
                f"{folder} has no {MODEL} that names its network: name it with --network."
            )
        model = read_sealed_json(folder / MODEL)
        if "preprocess" in model:
            raise BellaError(
                f"{folder} is a run on images, which writes no text: `bella predict {folder} "
                "IMAGES` says what it thinks of images."
            )
        if (task := model.get("task", WRITES)) != WRITES:
            raise BellaError(
                f"{folder} is a run of the task {task}, which writes no text: `bella predict "
                f"{folder} ROWS` says what it thinks of rows."
            )
        network = model.get("network")
        if not isinstance(network, str):
            raise BellaError(f"{folder / MODEL} names no network: name it with --network.")
        quantised = model.get("quantised")
    opened = open_language(network, quantised=quantised)
    posterior = bella.load(folder, opened.network)
    posterior.eval().to(place)
    return Writer(posterior, opened.tokenizer)


def read_prompts(path: str | Path, chat: bool = False) -> list[dict[str, Any]]:
    """The lines of a JSONL file: each has ``prompt`` (a text) or ``messages`` (of a chat).

    What else a line holds is kept, and stands in the line of its answer.

    Args:
        path: of the file.
        chat: whether a ``prompt`` is what a user says in a chat.

    Raises:
        BellaError: no such file, or a line that is something else; it says which.
    """
    path = Path(path)
    try:
        text = read_bytes(path, LARGEST_FILE).decode("utf-8-sig")
    except OSError as error:
        raise BellaError(
            f"{path} cannot be read ({error.strerror}): name a file of prompts."
        ) from None
    except UnicodeDecodeError as error:
        raise BellaError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8.") from None
    found = []
    for number, raw in enumerate(text.splitlines(), 1):
        if not raw.strip():
            continue
        try:
            line = parsed(raw)
        except ValueError as error:
            raise BellaError(f"Line {number} of {path} is no JSON ({shortened(error)}).") from None
        found.append(_checked(line, f"Line {number} of {path}", chat))
    if not found:
        raise BellaError(f"{path} holds no prompts: write one JSON object a line.")
    return found


def _checked(line: Any, where: str, chat: bool) -> dict[str, Any]:
    if not isinstance(line, dict):
        raise BellaError(f'{where} is a {type(line).__name__}: write {{"prompt": "..."}}.')
    prompt, messages = line.get("prompt"), line.get("messages")
    if (prompt is None) == (messages is None):
        raise BellaError(
            f"{where} must have either 'prompt' or 'messages' (it has "
            f"{', '.join(map(repr, line)) or 'nothing'})."
        )
    if messages is None:
        if not isinstance(prompt, str) or not prompt:
            raise BellaError(f"{where}: 'prompt' must be a text with something in it.")
        return line | {"messages": [{"role": "user", "content": prompt}]} if chat else line
    if (
        not isinstance(messages, list)
        or not messages
        or not all(
            isinstance(m, dict)
            and isinstance(m.get("role"), str)
            and isinstance(m.get("content"), str)
            for m in messages
        )
    ):
        raise BellaError(f"{where}: 'messages' must be a list of mappings with role and content.")
    return line


def write_answers(path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write one JSON object a line."""

    def write(unfinished: Path) -> None:
        with unfinished.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    write_whole(Path(path), write)
