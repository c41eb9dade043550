"""Networks for tasks other than images: text, speech, and images with text.

To add a task, name transformers' Auto class for it in `TASKS`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from bella.errors import BellaError, nearest, require
from bella.files import shortened
from bella.models.from_hub import load, tokenizer_of
from bella.models.opened import Defaults, check_counts, guess_defaults
from bella.models.own import find_function


class Task(NamedTuple):
    """What opens the networks of a task.

    Attributes:
        auto: transformers' class for its networks.
        reader: transformers' class for what makes inputs of a user's data.
        head: arguments of a fresh head, for a number of classes; ``None`` for a network that keeps
            the head that it has.
    """

    auto: str
    reader: str
    head: str | None = None


TASKS: dict[str, Task] = {
    "text-classification": Task(
        "AutoModelForSequenceClassification", "AutoTokenizer", "num_labels"
    ),
    "token-classification": Task("AutoModelForTokenClassification", "AutoTokenizer", "num_labels"),
    "regression": Task("AutoModelForSequenceClassification", "AutoTokenizer", "num_labels"),
    "causal-lm": Task("AutoModelForCausalLM", "AutoTokenizer"),
    "masked-lm": Task("AutoModelForMaskedLM", "AutoTokenizer"),
    "encoder-decoder": Task("AutoModelForSeq2SeqLM", "AutoTokenizer"),
    "vision-language": Task("AutoModelForImageTextToText", "AutoProcessor"),
    "audio-classification": Task(
        "AutoModelForAudioClassification", "AutoFeatureExtractor", "num_labels"
    ),
}


class OpenedTask(NamedTuple):
    """A pre-trained network in evaluation mode with what belongs to it.

    Attributes:
        network: the network.
        reader: its tokenizer, processor or feature extractor; ``None`` where it has none.
        defaults: what to adapt.
    """

    network: nn.Module
    reader: Any
    defaults: Defaults


def open_task(
    name: str,
    task: str,
    classes: int | None = None,
    *,
    seed: int = 0,
    quantised: str | None = None,
    **options: Any,
) -> OpenedTask:
    """Open a network for a task, for (network, reader, defaults).

    Args:
        name: ``hf:NAME`` on the hub, a folder that ``save_pretrained`` wrote, a folder of a PEFT
            adapter (merged into the network that it names), or ``package.module:function``, which
            is called with the number of classes (or nothing) and returns the network.
        task: a name of `TASKS`.
        classes: size of a fresh head; without it, the head as it was saved. Of ``regression`` how
            many numbers are told, one where not given.
        seed: of the fresh head.
        quantised: hold the base as ``4bit`` or ``8bit`` (bitsandbytes) or ``int8`` (torchao).
        options: of ``from_pretrained``, such as ``dtype``.

    Raises:
        BellaError: an unknown task, no such network, or classes where there is no fresh head.
        MissingExtraError: a library is not installed.
    """
    if task not in TASKS:
        raise BellaError(f"task={task!r} is unknown: near are {nearest(task, TASKS)}.")
    auto, reader, head = TASKS[task]
    check_counts(classes, None)
    if classes is not None and head is None:
        raise BellaError(f"A network for {task} keeps the head that it has: leave out classes.")
    if (function := find_function(name)) is not None:
        network = function() if classes is None else function(classes)
        return OpenedTask(network.eval(), None, guess_defaults(network))
    if task == "regression":
        options |= {"problem_type": "regression"}
        classes = classes or 1
    if classes is not None and head is not None:
        options |= {head: classes, "ignore_mismatched_sizes": True}
    place = name.removeprefix("hf:")
    network = load(auto, place, f"a network for {task}", seed=seed, quantised=quantised, **options)
    return OpenedTask(network, _reader(reader, place), guess_defaults(network))


def _reader(kind: str, name: str) -> Any:
    """A network's tokenizer, processor or feature extractor, if its folder has one.

    Raises:
        BellaError: it is damaged.
    """
    if kind == "AutoTokenizer":
        return tokenizer_of(name)
    made = getattr(require("transformers", extra="hf"), kind)
    try:
        return made.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return None  # a network without
    except Exception as error:
        raise BellaError(f"The {kind} of {name!r} cannot be read ({shortened(error)}).") from error
