"""All particles as one network that transformers' own `generate` can ask for the next token.

Sampling, logits processors, stopping and the loop itself are transformers'. A shallow copy of the
network answers with the particles' averaged distribution, and every particle keeps the key-value
cache of its own passes: a list of caches where the particles run one after another, or one cache of
particles x prompts rows where that is proven to be the same (`bella.generation.proof`).
"""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bella.particles.axis import ParticleAxis, Pass, UnprovenError
from bella.particles.copies import as_given
from bella.particles.roles import Role, map_roles, with_roles
from bella.trees import PLAIN, leaves_of, map_leaves, structure

Calls = Mapping[Any, tuple[Role, ...]]
"""By the structure of a call's arguments, which of its tensors carry the prompts."""


def answering(network: nn.Module, forward: Callable[..., Any]) -> Any:
    """A shallow copy of a network, whose modules are its own, that answers in another way.

    The network itself is not touched, so other threads may run it meanwhile.
    """

    @functools.wraps(network.forward)  # generate looks at the arguments that a network takes
    def answer(**kwargs: Any) -> Any:
        return forward(**kwargs)

    twin = copy.copy(network)
    vars(twin).update(
        forward=answer,
        # What hears the network hears the particles' passes, and not the question for them.
        _forward_hooks=OrderedDict(),
        _forward_pre_hooks=OrderedDict(),
        # Pictures are encoded inside the passes: there may be particles among those layers.
        _supports_mm_encoder_outputs=lambda: False,
    )
    return twin


class Speaker:
    """The chosen particles, asked together for the next token.

    Args:
        network: with its particle layers in place.
        axis: their axis.
        one: makes a pass of some particles, given their places among the chosen ones and the number
            of prompts.
        width: how many particles speak.
        hear: from the particles' logits of the next token, (particles, prompts, vocabulary), to
            those that it is chosen by, (prompts, vocabulary).
        calls: what a proof found out, to run them all in one pass; ``None`` to run one after
            another.
    """

    def __init__(
        self,
        network: nn.Module,
        axis: ParticleAxis,
        one: Callable[[tuple[int, ...], int], Pass],
        width: int,
        hear: Callable[[Tensor], Tensor],
        calls: Calls | None,
    ):
        self.network = network
        self.axis = axis
        self.one = one
        self.everyone = tuple(range(width))
        self.hear = hear
        self.calls = calls
        self.held: dict[int, tuple[Any, list[Any]]] = {}  # by an object's id: it, each particle's

    def twin(self) -> Any:
        """The network to call ``generate`` of."""
        return answering(as_given(self.network), self.forward)

    def forward(self, **kwargs: Any) -> Any:
        """What the network returns, with the logits of the next token as all agree on them."""
        outputs, logits = (self.looped if self.calls is None else self.folded)(kwargs)
        outputs.logits = self.hear(logits).unsqueeze(1)
        return outputs

    def folded(self, kwargs: dict[str, Any]) -> tuple[Any, Tensor]:
        """All in one pass; the cache that is among the arguments then holds the rows of all.

        Raises:
            UnprovenError: a call that the proof did not meet.
        """
        assert self.calls is not None
        roles = self.calls.get(structure(kwargs))
        if roles is None:
            raise UnprovenError("generate calls the network as it did not in the proof")
        rows = [x.shape[role] for x, role in with_roles(kwargs, roles) if role is not None]
        if not rows:
            raise UnprovenError("nothing among the arguments carries the prompts")
        with self.axis.run(self.one(self.everyone, rows[0])):
            kwargs = map_roles(
                lambda x, role: x if role is None else self.axis.repeat(x, role), kwargs, roles
            )
            outputs = self.network(**kwargs)
        return outputs, outputs.logits[:, -1].unflatten(0, (len(self.everyone), -1))

    def looped(self, kwargs: dict[str, Any]) -> tuple[Any, Tensor]:
        """One after another, each with caches of its own."""
        said = []
        for row in self.everyone:
            mine = map_leaves(functools.partial(self.own, row=row), kwargs)
            with self.axis.run(self.one((row,), 1)):
                said.append(self.network(**mine))
        logits = torch.stack([outputs.logits[:, -1] for outputs in said])
        # generate hands on what the first particle returned, or what it handed on before; each
        # particle gets its own in its place.
        self.held |= {
            id(leaves[0]): (leaves[0], list(leaves))
            for leaves in zip(*map(leaves_of, said), strict=True)
            if _is_object(leaves[0])
        }
        return said[0], logits

    def own(self, leaf: Any, row: int) -> Any:
        """A particle's own object in place of the first one's; a fresh copy of what is new."""
        if not _is_object(leaf):
            return leaf
        if id(leaf) not in self.held:
            self.held[id(leaf)] = leaf, [copy.deepcopy(leaf) for _ in self.everyone]
        return self.held[id(leaf)][1][row]


def _is_object(leaf: Any) -> bool:
    return not isinstance(leaf, (Tensor, *PLAIN))
