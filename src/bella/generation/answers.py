"""Answers with what the particles think of each of their tokens.

With p_i(y_t | y_<t, x) the next-token distribution of particle i and p = mean_i p_i:

token by token      H[p], and the mutual information H[p] - mean_i H[p_i] >= 0     (nats)
a whole answer      the means of both over its tokens, and its log-probability:

- under each particle, sum_t log p_i(y_t | y_<t, x);
- under the average, sum_t log p(y_t | y_<t, x): the distribution that one answer is written from;
- under the mixture, log mean_i prod_t p_i(y_t | y_<t, x): the posterior predictive of the text. A
  particle that finds the first tokens unlikely has little to say about the next ones there.

Source: Malinin and Gales, Uncertainty estimation in autoregressive structured prediction, ICLR
2021, sections 3 and 4 (token and sequence, "expectation of products" and "product of
expectations"); the mean over tokens is Bella's answer entropy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bella import metrics
from bella.errors import BellaError


@dataclass(frozen=True, eq=False)
class Answers:
    """One answer to each of several prompts; all information in nats.

    Attributes:
        tokens: (batch, length); behind an answer's end stands padding.
        lengths: how many tokens of each row count, with the token that ended it.
        particle_token_log_probs: log p_i(y_t | y_<t, x), 0 behind the end, as are the following.
        token_log_probs: log p(y_t | y_<t, x) of the averaged next-token distribution.
        token_entropy: H[p] where each token was to be chosen.
        token_mutual_information: H[p] - mean_i H[p_i] there.
        texts: the answers as text, where a tokenizer was given.
        pieces: each token of each answer as text, likewise.
    """

    tokens: Int[Tensor, "batch length"]
    lengths: Int[Tensor, " batch"]
    particle_token_log_probs: Float[Tensor, "particles batch length"]
    token_log_probs: Float[Tensor, "batch length"]
    token_entropy: Float[Tensor, "batch length"]
    token_mutual_information: Float[Tensor, "batch length"]
    texts: tuple[str, ...] = ()
    pieces: tuple[tuple[str, ...], ...] = ()

    @cached_property
    def particle_log_probs(self) -> Float[Tensor, "particles batch"]:
        """Each answer's log-probability under each particle."""
        return self.particle_token_log_probs.sum(-1)

    @cached_property
    def log_probs(self) -> Float[Tensor, " batch"]:
        """Each answer's log-probability under the averaged next-token distribution."""
        return self.token_log_probs.sum(-1)

    @cached_property
    def mixture_log_probs(self) -> Float[Tensor, " batch"]:
        """Each answer's log-probability under the mixture of the particles, as a whole text."""
        particles = len(self.particle_log_probs)
        return torch.logsumexp(self.particle_log_probs, 0) - math.log(particles)

    @cached_property
    def entropy(self) -> Float[Tensor, " batch"]:
        """The mean of H[p] over each answer's tokens."""
        return self.token_entropy.sum(-1) / self.lengths

    @cached_property
    def mutual_information(self) -> Float[Tensor, " batch"]:
        """The mean of the tokens' mutual information over each answer."""
        return self.token_mutual_information.sum(-1) / self.lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def read_by(self, tokenizer: Any) -> Answers:
        """The same with `texts` and `pieces`, where there is a tokenizer."""
        if tokenizer is None:
            return self
        rows = [
            row[:length].tolist()
            for row, length in zip(self.tokens, self.lengths.tolist(), strict=True)
        ]
        return replace(
            self,
            texts=tuple(tokenizer.decode(row, skip_special_tokens=True) for row in rows),
            pieces=tuple(tuple(tokenizer.decode([token]) for token in row) for row in rows),
        )

    def rows(self) -> list[dict[str, Any]]:
        """One JSON object an answer, with its figures and those of its tokens."""
        found = []
        for i, length in enumerate(self.lengths.tolist()):
            tokens = [
                {
                    "token": self.pieces[i][t] if self.pieces else int(self.tokens[i, t]),
                    "log_prob": _short(self.token_log_probs[i, t]),
                    "entropy": _short(self.token_entropy[i, t]),
                    "mutual_information": _short(self.token_mutual_information[i, t]),
                }
                for t in range(length)
            ]
            found.append(
                {
                    "answer": self.texts[i] if self.texts else self.tokens[i, :length].tolist(),
                    "log_prob": _short(self.log_probs[i]),
                    "mixture_log_prob": _short(self.mixture_log_probs[i]),
                    "particle_log_probs": [_short(x) for x in self.particle_log_probs[:, i]],
                    "entropy": _short(self.entropy[i]),
                    "mutual_information": _short(self.mutual_information[i]),
                    "tokens": tokens,
                }
            )
        return found

    @staticmethod
    def of(tokens: Tensor, lengths: Tensor, figures: Sequence[Tensor]) -> Answers:
        """Answers without texts, with their tokens' figures in the order of the fields."""
        particles, average, entropy, information = figures
        return Answers(tokens, lengths, particles, average, entropy, information)

    @staticmethod
    def cat(parts: Sequence[Answers]) -> Answers:
        """Join batches; shorter ones are padded.

        Raises:
            BellaError: there are none.
        """
        if not parts:
            raise BellaError("There are no prompts: give at least one.")
        longest = max(part.tokens.shape[1] for part in parts)

        def joined(name: str, axis: int = 0) -> Tensor:
            values = [getattr(part, name) for part in parts]
            return torch.cat(
                [torch.nn.functional.pad(x, (0, longest - x.shape[-1])) for x in values], axis
            )

        return Answers(
            joined("tokens"),
            torch.cat([part.lengths for part in parts]),
            joined("particle_token_log_probs", 1),
            joined("token_log_probs"),
            joined("token_entropy"),
            joined("token_mutual_information"),
            tuple(text for part in parts for text in part.texts),
            tuple(pieces for part in parts for pieces in part.pieces),
        )


def _short(value: Tensor) -> float:
    return round(float(value), 6)


class Figures:
    """What the particles think of tokens, position by position, until it is asked for.

    Args:
        logits: (particles, ..., vocabulary), where the tokens were to be chosen.

    Raises:
        BellaError: logits that are not finite.
    """

    def __init__(self, logits: Float[Tensor, "particles *positions vocabulary"]):
        logits = metrics.precise(logits)
        if not torch.isfinite(torch.stack(logits.aminmax())).all():
            raise BellaError(
                "The network's logits are not finite: are its inputs in range, and did training "
                "converge?"
            )
        self.own = logits
        self.scale = torch.logsumexp(logits, -1, keepdim=True)
        self.particles = logits - self.scale
        self.average = torch.logsumexp(self.particles, 0) - math.log(len(logits))

    def logits(self) -> Float[Tensor, "*positions vocabulary"]:
        """The averaged distribution as logits of the particles' own scale.

        Log-probabilities would do for sampling; but a repetition penalty, say, looks at the sign of
        a logit, and of particles that agree it must see what it sees of each.
        """
        if len(self.own) == 1:
            return self.own[0]
        return self.average + self.scale.mean(0)

    def of(self, tokens: Int[Tensor, "*positions"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The figures of tokens, in the order of `Answers`."""
        index = tokens.unsqueeze(-1)
        everyone = index.expand(len(self.particles), *index.shape)
        return (
            self.particles.gather(-1, everyone).squeeze(-1),
            self.average.gather(-1, index).squeeze(-1),
            metrics.entropy(self.average.exp()),
            metrics.mutual_information(self.particles.exp()),
        )
