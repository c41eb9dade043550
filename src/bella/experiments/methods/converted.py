"""Posteriors over the layers' own weights.

Of a pre-trained network they convert the layers that low-rank particles adapt, and the head; what
comes before is frozen and shared. A network that is trained from scratch is converted as a whole.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from bella.experiments.methods.trained import Trained
from bella.posterior import Posterior

if TYPE_CHECKING:
    from bella.experiments.bench import Bench


@dataclass(frozen=True, kw_only=True)
class Converted(Trained):
    """A constructor that replaces layers of the network."""

    @property
    def from_scratch(self) -> bool:
        """Yes: it trains all weights there."""
        return True

    def posterior(self, bench: Bench, seed: int) -> Posterior:
        """Everything frozen but what the converted layers hold, or nothing frozen."""
        opened = bench.task.open(seed)
        network, options = opened.network, dict(self.build) | {"seed": seed}
        if not bench.task.pretrained:
            return self.convert(network, pretrained=False, heads=(), **options)
        network.requires_grad_(False)
        bench.start_heads({name: p.unsqueeze(0) for name, p in network.named_parameters()}, seed)
        heads = opened.defaults.modules_to_save
        options["target_modules"] = (*opened.defaults.target_modules, *heads)
        options["shared_prefix"] = bench.entrance
        posterior = self.convert(network, pretrained=True, heads=heads, **options)
        for layer in posterior.layers().values():
            layer.requires_grad_(True)
        return posterior

    @abstractmethod
    def convert(
        self, network: nn.Module, *, pretrained: bool, heads: tuple[str, ...], **options: Any
    ) -> Posterior:
        """The constructor."""
