"""``causal-lm``: prompts and completions, or chats; only completions are scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch.utils.data import Dataset

from bella.data.labelled import UNKNOWN
from bella.data.records import Records
from bella.errors import BellaError, require
from bella.evaluation.tokens import by_example, evaluate_tokens, token_rows
from bella.files import parsed, shortened
from bella.generation.texts import answer_tokens, prompt_tokens
from bella.models.language import OpenedLanguage, open_language
from bella.runs.texts.base import Asked, Facts, TextTask, TokenisedTexts, rounded
from bella.runs.texts.config import TextConfig

Span = tuple[int, int]


class CausalLM(TextTask):
    """What a language model writes after a prompt.

    Messages go through the tokenizer's own chat template, and every answer of the assistant is
    scored, with what ends it. A prompt that is a text stands before its completion as it is, with
    the end-of-text token after both.
    """

    name: ClassVar[str] = "causal-lm"
    network: ClassVar[str] = "smollm2-135m-instruct"
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "messages": ("messages", "conversation", "conversations", "chat"),
        "prompt": ("prompt", "instruction", "question", "input"),
        "completion": ("completion", "response", "answer", "output"),
    }
    answers: ClassVar[tuple[str, ...]] = ()
    alone: ClassVar[str] = "a mixture is for one class an example, and a completion has many tokens"

    def columns(
        self, records: Records, asked: Mapping[str, str], *, labelled: bool = True
    ) -> dict[str, str]:
        """``messages``, or ``prompt`` and ``completion``."""
        chats = records.has(asked.get("messages"), self.roles["messages"])
        roles: tuple[str, ...] = ("prompt", "completion")
        if chats and not set(roles) & set(asked):
            roles = ("messages",)
        return {role: records.find(role, asked.get(role), self.roles[role]) for role in roles}

    def learn(self, records: Records, columns: Mapping[str, str]) -> Facts:
        """Nothing: the tokenizer knows all."""
        return {}

    def open(self, config: TextConfig, facts: Facts) -> OpenedLanguage:
        """A causal language model with the head that it has."""
        return open_language(config.network, None, config.seed, quantised=config.quantised)

    def tokenise(self, records: Records, asked: Asked, *, labelled: bool = True) -> Dataset:
        """Tokens with labels that are -100 but for completions, cut at ``max_length``."""
        items = []
        for number, row in enumerate(records.rows, 1):
            where = f"Row {number} of {records.name}"
            tokens, spans = self.read(row, asked, where)
            labels = [-100] * len(tokens)
            for begin, end in spans:
                labels[begin:end] = tokens[begin:end]
            tokens, labels = tokens[: asked.max_length], labels[: asked.max_length]
            if all(label == -100 for label in labels[1:]):
                raise BellaError(
                    f"{where} has no completion within its first {asked.max_length} tokens: raise "
                    "--max-length, or take it away."
                )
            items.append(
                {"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": labels}
            )
        if not items:
            raise BellaError(f"{records.name} holds no rows.")
        texts = [asked.tokenizer.decode(item["input_ids"]) for item in items]
        return TokenisedTexts(texts, items, [UNKNOWN] * len(items))

    def read(
        self, row: Mapping[str, Any], asked: Asked, where: str
    ) -> tuple[list[int], list[Span]]:
        """A row's tokens, and where its completions stand in them."""
        tokenizer, columns = asked.tokenizer, asked.columns
        if "messages" in columns:
            return chat_tokens(messages_of(row.get(columns["messages"]), where), tokenizer, where)
        prompt, completion = row.get(columns["prompt"]), row.get(columns["completion"])
        if isinstance(prompt, list):
            said = (
                completion
                if isinstance(completion, list)
                else [{"role": "assistant", "content": completion}]
            )
            chat = messages_of([*prompt, *said], where)
            tokens, spans = chat_tokens(chat, tokenizer, where)
            return tokens, spans[-sum(m["role"] == "assistant" for m in said) :]
        if not isinstance(prompt, str) or not isinstance(completion, str) or not completion:
            raise BellaError(f"{where} needs a text as its prompt and one as its completion.")
        try:
            before = prompt_tokens(prompt, tokenizer).tolist()
        except BellaError as error:
            raise BellaError(f"{where}: {error}") from None
        after = answer_tokens(completion, tokenizer, True).tolist()
        return before + after, [(len(before), len(before) + len(after))]

    def collate(self, tokenizer: Any) -> Callable[[list], Any]:
        """Transformers' padding of tokens and labels."""
        return require("transformers", extra="hf").DataCollatorForSeq2Seq(
            tokenizer, label_pad_token_id=-100
        )

    def evaluate(
        self, posterior: Any, loader: Any, ood: Mapping[str, Any], facts: Facts, **options: Any
    ) -> dict[str, float]:
        """The figures of `bella.evaluation.tokens.evaluate_tokens`.

        Raises:
            BellaError: rows of several other kinds.
        """
        if len(ood) > 1:
            raise BellaError("Figures of tokens take rows of one other kind: give --ood once.")
        return evaluate_tokens(posterior, loader, next(iter(ood.values()), None), **options)

    def predict(
        self, posterior: Any, loader: Any, facts: Facts, **options: Any
    ) -> list[dict[str, Any]]:
        """Of each completion: tokens, NLL a token, perplexity, entropy, mutual information."""
        said = token_rows(posterior, loader, **options)
        lengths = said["lengths"]
        nll = by_example(-said["log_prob"].double(), lengths)
        columns = {
            "nll": rounded(nll),
            "perplexity": rounded(nll.exp()),
            "entropy": rounded(by_example(said["entropy"], lengths)),
            "mutual_information": rounded(by_example(said["mutual_information"], lengths)),
        }
        return [
            {"tokens": int(length)} | {name: values[i] for name, values in columns.items()}
            for i, length in enumerate(lengths)
        ]


def messages_of(cell: Any, where: str) -> list[dict[str, str]]:
    """The messages of a chat, from a list or its JSON.

    Raises:
        BellaError: something else, or a chat without an answer.
    """
    if isinstance(cell, str):
        try:
            cell = parsed(cell)
        except ValueError as error:
            raise BellaError(
                f"{where} has messages that are no JSON ({shortened(error)})."
            ) from None
    if not isinstance(cell, Sequence) or not all(
        isinstance(m, Mapping)
        and isinstance(m.get("role"), str)
        and isinstance(m.get("content"), str)
        for m in cell
    ):
        raise BellaError(
            f"{where} needs a list of messages, each with a role and a content that are texts."
        )
    if not any(message["role"] == "assistant" for message in cell):
        raise BellaError(f"{where} has no message of the assistant, so there is nothing to learn.")
    return [dict(message) for message in cell]


def chat_tokens(
    messages: Sequence[Mapping[str, str]], tokenizer: Any, where: str
) -> tuple[list[int], list[Span]]:
    """A chat's tokens by the tokenizer's template, and where the assistant's answers stand.

    An answer begins where the template would have the assistant begin, and ends where the chat up
    to it ends.

    Raises:
        BellaError: no template, or one that writes earlier messages otherwise once later ones come.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise BellaError(
            f"{where} is a chat and the tokenizer has no chat template: give prompt and completion "
            "as texts, or a tokenizer with one."
        )

    def written(count: int, begun: bool) -> list[int]:
        return list(
            tokenizer.apply_chat_template(
                list(messages[:count]), add_generation_prompt=begun, return_dict=False
            )
        )

    whole = written(len(messages), False)
    spans = []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, after = written(place, True), written(place + 1, False)
        if whole[: len(before)] != before or whole[: len(after)] != after:
            raise BellaError(
                f"{where}: this tokenizer's chat template writes message {place + 1} otherwise "
                "when later ones follow, so it cannot be told where the answer stands: give a row "
                "for each answer, with prompt and completion."
            )
        spans.append((len(before), len(after)))
    return whole, spans
