"""Prompts and answers as tokens: texts, chat messages, or numbers that are tokens already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bella.errors import BellaError

Text = str | Sequence[Mapping[str, str]] | Tensor
"""A text, the messages of a chat, or token numbers (length,)."""


def several(texts: Any) -> list[Any]:
    """Texts as a list, from one or several.

    Raises:
        BellaError: there is none.
    """
    if isinstance(texts, str) or _is_chat(texts):
        return [texts]
    if isinstance(texts, Tensor):
        return [texts] if texts.dim() == 1 else list(texts)
    if not isinstance(texts, Sequence):
        return [texts]
    found = list(texts)
    if not found:
        raise BellaError("There are no prompts: give at least one.")
    return found


def prompt_tokens(prompt: Text, tokenizer: Any) -> Tensor:
    """A prompt's token numbers, (length,).

    A text gets the special tokens that the tokenizer puts before a text; messages go through the
    tokenizer's own chat template, up to where the answer begins.

    Raises:
        BellaError: text without a tokenizer, messages without a chat template, or nothing at all.
    """
    if isinstance(prompt, Tensor):
        return _checked(prompt, "A prompt")
    _need(tokenizer)
    if isinstance(prompt, str):
        numbers = tokenizer(prompt)["input_ids"]
    elif _is_chat(prompt):
        if not getattr(tokenizer, "chat_template", None):
            raise BellaError(
                "This prompt is a list of chat messages and the tokenizer has no chat template: "
                "give plain texts, or set tokenizer.chat_template."
            )
        numbers = tokenizer.apply_chat_template(
            [dict(message) for message in prompt], add_generation_prompt=True, return_dict=False
        )
    else:
        raise BellaError(
            f"A prompt is a {type(prompt).__name__}: give a text, a list of chat messages "
            "(mappings with 'role' and 'content'), or a tensor of token numbers."
        )
    return _checked(torch.tensor(numbers, dtype=torch.long), f"The prompt {prompt!r:.40}")


def answer_tokens(answer: str | Tensor, tokenizer: Any, ended: bool) -> Tensor:
    """An answer's token numbers, (length,), as they stand behind a prompt.

    Args:
        answer: a text, with the space that it may begin with, or token numbers.
        tokenizer: the network's.
        ended: whether the end-of-text token follows.

    Raises:
        BellaError: text without a tokenizer, an empty answer, or a tokenizer without an end.
    """
    if isinstance(answer, Tensor):
        numbers = answer
    else:
        _need(tokenizer)
        if not isinstance(answer, str):
            raise BellaError(
                f"An answer is a {type(answer).__name__}: give a text or a tensor of tokens."
            )
        numbers = torch.tensor(
            tokenizer(answer, add_special_tokens=False)["input_ids"], dtype=torch.long
        )
    if ended:
        end = getattr(tokenizer, "eos_token_id", None)
        if end is None:
            raise BellaError(
                "ended=True needs a tokenizer with an end-of-text token: leave it out."
            )
        numbers = torch.cat((numbers, numbers.new_tensor([end])))
    return _checked(numbers, f"The answer {answer!r:.40}")


def check_length(network: Any, count: int) -> None:
    """Refuse a text that has more tokens than the network has positions.

    Networks with learned positions have no row for the next one, and others go on to positions at
    which nothing was trained, without a word.

    Args:
        network: a language model of transformers.
        count: tokens of the longest prompt with its answer.

    Raises:
        BellaError: it is longer.
    """
    longest = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and count > longest:
        raise BellaError(
            f"Prompt and answer have {count} tokens, and this network reads {longest}: ask for "
            "less."
        )


def check_tokens(network: Any, *texts: Tensor) -> None:
    """Refuse tokens that a network has no row for: those of another network's tokenizer, say.

    Args:
        network: a language model of transformers.
        texts: token numbers.

    Raises:
        BellaError: there are such, or they are no whole numbers.
    """
    rows = getattr(network.get_input_embeddings(), "num_embeddings", None)
    for text in texts:
        if text.is_floating_point() or text.dtype == torch.bool:
            raise BellaError(f"Tokens of type {text.dtype} are no token numbers: give whole ones.")
        if rows is not None and text.numel() and int(text.max()) >= rows:
            raise BellaError(
                f"Token {int(text.max())} is none of this network, which knows {rows}: give the "
                "tokenizer that the network was trained with."
            )


def left_padded(rows: Sequence[Tensor], fill: int) -> tuple[Tensor, Tensor]:
    """Rows of tokens as one tensor and its attention mask, (batch, longest)."""
    ids = torch.nn.utils.rnn.pad_sequence(
        list(rows), batch_first=True, padding_value=fill, padding_side="left"
    )
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(ids.shape[1]).flip(0) < lengths[:, None]).long()


def right_padded(rows: Sequence[Tensor], fill: int) -> tuple[Tensor, Tensor]:
    """The same, with the padding behind the tokens."""
    ids = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=fill)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()


def unpadded(ids: Tensor, mask: Tensor | None) -> list[Tensor]:
    """The tokens of each row that its mask counts."""
    if mask is None:
        return list(ids)
    return [row[keep.bool()] for row, keep in zip(ids, mask, strict=True)]


def _is_chat(prompt: Any) -> bool:
    several = isinstance(prompt, Sequence) and not isinstance(prompt, str)
    return several and len(prompt) > 0 and all(isinstance(m, Mapping) for m in prompt)


def _need(tokenizer: Any) -> None:
    if tokenizer is None:
        raise BellaError("Texts need the network's tokenizer: give tokenizer=, or token numbers.")


def _checked(numbers: Tensor, what: str) -> Tensor:
    if numbers.dim() != 1 or not len(numbers):
        raise BellaError(
            f"{what} has token numbers of shape {tuple(numbers.shape)}: give at least one, in a "
            "row."
        )
    if numbers.is_floating_point() or numbers.dtype == torch.bool:
        raise BellaError(f"{what} has tokens of type {numbers.dtype}: give whole numbers.")
    return numbers.long()
