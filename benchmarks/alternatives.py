"""Six ways to train and run n members: the same network, data, rank and targets."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import peft
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import bella
from networks import Case
from page import Options


def lora(case: Case, device: str) -> peft.PeftModel:
    """A fresh network with one PEFT adapter."""
    return peft.get_peft_model(case.make().eval(), lora_config(case)).to(device)


def lora_config(case: Case) -> peft.LoraConfig:
    """Rank 4, and the case's targets the way PEFT reads them."""
    suffixes = "|".join(case.targets)
    return peft.LoraConfig(
        r=4,
        lora_alpha=4,
        target_modules=rf"(.*\.)?({suffixes})",
        modules_to_save=list(case.heads) or None,
    )


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def adamw(parameters: Sequence[Tensor]) -> torch.optim.AdamW:
    """The optimiser of every alternative."""
    return torch.optim.AdamW(parameters, lr=1e-4)


def stored(tensors: dict[str, Tensor]) -> int:
    """Bytes of a safetensors file."""
    return len(save({name: value.detach().contiguous() for name, value in tensors.items()}))


class Alternative(ABC):
    """n members on one batch.

    Args:
        case: the network.
        members: n.
        batch: images.
        options: device and precision.
    """

    title: ClassVar[str]
    one_in_memory: ClassVar[bool] = False
    """Whether n members take the memory of one."""

    def __init__(self, case: Case, members: int, batch: int, options: Options):
        self.case = case
        self.members = members
        self.options = options
        self.x, self.y = case.data(batch, options.device)

    @abstractmethod
    def step(self) -> None:
        """A training step of every member, AdamW included."""

    @abstractmethod
    def predict(self) -> Tensor:
        """Every member's logits, (members, batch, classes)."""

    @abstractmethod
    def file(self) -> int:
        """Bytes on disk of all members, without the base that they share."""

    def learn(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """An ordinary step of one ordinary network."""
        optimizer.zero_grad()
        with self.options.precision():
            loss = F.cross_entropy(model(self.x).float(), self.y)
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def logits(self, model: nn.Module) -> Tensor:
        """Of one ordinary network."""
        with self.options.precision():
            return model(self.x)


class Sequential(Alternative):
    """n LoRA trainings, one after the other: only one is in memory, the others do as it does."""

    title = "PEFT, n runs"
    one_in_memory = True

    def __init__(self, case: Case, members: int, batch: int, options: Options):
        super().__init__(case, members, batch, options)
        self.model = lora(case, options.device)
        self.optimizer = adamw(list(trained(self.model).values()))

    def step(self) -> None:
        """n steps of one."""
        for _ in range(self.members):
            self.learn(self.model, self.optimizer)

    def predict(self) -> Tensor:
        """n passes of one."""
        return torch.stack([self.logits(self.model) for _ in range(self.members)])

    def file(self) -> int:
        """n adapters."""
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)
            size = (Path(folder) / "adapter_model.safetensors").stat().st_size
        return self.members * size


class Switched(Alternative):
    """One PEFT network with n adapters, one of which is active at a time."""

    title = "PEFT, n adapters"

    def __init__(self, case: Case, members: int, batch: int, options: Options):
        super().__init__(case, members, batch, options)
        self.model = lora(case, options.device)
        self.names = ["default", *(f"member{number}" for number in range(1, members))]
        self.optimizers = {}
        for name in self.names:
            if name != "default":  # PEFT's name for the first
                self.model.add_adapter(name, lora_config(case))
            self.model.set_adapter(name)
            self.optimizers[name] = adamw(list(trained(self.model).values()))
        self.model.to(options.device)

    def step(self) -> None:
        """Each adapter's step, in turn."""
        for name, optimizer in self.optimizers.items():
            self.model.set_adapter(name)
            self.learn(self.model, optimizer)

    def predict(self) -> Tensor:
        """Each adapter's pass, in turn."""
        found = []
        for name in self.names:
            self.model.set_adapter(name)
            found.append(self.logits(self.model))
        return torch.stack(found)

    def file(self) -> int:
        """All adapters."""
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)
            return sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))


class Stacked(Alternative):
    """PEFT's LoRA with its parameters stacked, vectorised by ``torch.func.vmap``."""

    title = "vmap"

    def __init__(self, case: Case, members: int, batch: int, options: Options):
        super().__init__(case, members, batch, options)
        model = lora(case, options.device)
        self.stacked = {
            name: nn.Parameter(p.detach() + 0.01 * torch.randn(members, *p.shape, device=p.device))
            for name, p in trained(model).items()
        }
        model.requires_grad_(False)

        def outputs(member: dict[str, Tensor], x: Tensor) -> Tensor:
            with options.precision():
                return functional_call(model, member, (x,))

        def loss(member: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(outputs(member, x).float(), y)

        self.outputs = vmap(outputs, in_dims=(0, None))
        self.gradients = vmap(grad(loss), in_dims=(0, None, None))
        self.optimizer = adamw(list(self.stacked.values()))

    def step(self) -> None:
        """All at once."""
        members = {name: p.detach() for name, p in self.stacked.items()}
        for name, gradient in self.gradients(members, self.x, self.y).items():
            self.stacked[name].grad = gradient
        self.optimizer.step()

    @torch.no_grad()
    def predict(self) -> Tensor:
        """All at once."""
        return self.outputs(self.stacked, self.x)

    def file(self) -> int:
        """The stacked parameters."""
        return stored(dict(self.stacked))


class Copies(Alternative):
    """n whole networks, each with its own AdamW."""

    title = "n full copies"

    def __init__(self, case: Case, members: int, batch: int, options: Options):
        super().__init__(case, members, batch, options)
        self.models = [case.make().to(options.device).eval() for _ in range(members)]
        self.optimizers = [adamw(list(model.parameters())) for model in self.models]

    def step(self) -> None:
        """Each network's step, in turn."""
        for model, optimizer in zip(self.models, self.optimizers, strict=True):
            self.learn(model, optimizer)

    def predict(self) -> Tensor:
        """Each network's pass, in turn."""
        return torch.stack([self.logits(model) for model in self.models])

    def file(self) -> int:
        """n networks."""
        return self.members * stored(dict(self.models[0].state_dict()))


class Together(Alternative):
    """bella: all particles in one pass, with the repulsive transport."""

    title = "bella"

    def __init__(self, case: Case, members: int, batch: int, options: Options):
        super().__init__(case, members, batch, options)
        self.posterior = case.posterior(members, options.device).eval()
        self.move = bella.transport.repulsive(self.posterior, data_size=1000)
        self.optimizer = adamw(list(self.posterior.stacked_parameters().values()))

    def gradients(self, inputs: Any = None) -> None:
        """Forward and backward of the particles that run, from the images or a stream."""
        with self.options.precision():
            outputs = self.posterior(self.x if inputs is None else inputs)
        bella.nll(outputs, self.y).backward()

    def step(self, inputs: Any = None) -> None:
        """Gradients of all particles, then one step."""
        self.optimizer.zero_grad()
        self.gradients(inputs)
        self.move.step()
        self.optimizer.step()

    @torch.no_grad()
    def predict(self) -> Tensor:
        """All at once."""
        with self.options.precision():
            return self.posterior(self.x)

    def file(self) -> int:
        """What ``save`` writes."""
        return saved(self.posterior)


class Chunked(Together):
    """bella, some particles a pass; the prefix runs once.

    Args:
        case: the network.
        members: n.
        batch: images.
        options: device and precision.
        chunks: the particles of each pass; by default what bella chooses where nobody says.
    """

    title = "bella, in chunks"

    def __init__(
        self,
        case: Case,
        members: int,
        batch: int,
        options: Options,
        chunks: Sequence[Sequence[int]] | None = None,
    ):
        super().__init__(case, members, batch, options)
        with options.precision():
            self.chunks = bella.chunks(self.posterior, self.x) if chunks is None else chunks

    def gradients(self, inputs: Any = None) -> None:
        """Chunk by chunk."""
        with self.options.precision():
            stream = self.posterior.prefix(self.x) if inputs is None else inputs
        for chunk in self.chunks:
            with self.posterior.subset(chunk):
                super().gradients(stream)

    @torch.no_grad()
    def predict(self) -> Tensor:
        """Chunk by chunk."""
        with self.options.precision():
            return bella.predict(self.posterior, self.x, particles_per_pass="auto").logits


def saved(posterior: bella.Posterior, dtype: torch.dtype | None = None) -> int:
    """Bytes of a saved posterior, its settings included."""
    with tempfile.TemporaryDirectory() as folder:
        posterior.save(folder, dtype=dtype)
        return sum(path.stat().st_size for path in Path(folder).iterdir())


ALTERNATIVES: tuple[type[Alternative], ...] = (
    Sequential,
    Switched,
    Stacked,
    Copies,
    Together,
    Chunked,
)
