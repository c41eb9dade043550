"""The contract of every posterior: a network whose outputs have a particle axis."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bella import storage
from bella.errors import BellaError, nearest
from bella.particles.axis import ParticleAxis
from bella.particles.layer import ParticleLayer, Site
from bella.particles.prefix import SharedPrefix, Stream, entrance_of
from bella.particles.recompute import checkpointing
from bella.trees import map_tensors, tensors_of


class Posterior(nn.Module):
    """n networks that share a base, called as one.

    ``posterior(*inputs, **kwargs)`` returns what the network returns, its tensors shaped
    (particles, batch, ...). Inputs have the batch as first axis.

    Args:
        network: a network whose particle layers are already in place.
        axis: the particle axis that they share.
        settings: what rebuilds the same posterior on a fresh network (JSON values).
        shared_prefix: ``True`` opens the axis at the first block with particles, a module's name
            opens it there, ``False`` at the inputs.

    Raises:
        BellaError: ``shared_prefix`` names no module.
    """

    kind: ClassVar[str] = ""
    trains_base: ClassVar[bool] = False
    """Whether what the particles share trains too; then it is saved with them, and its batch norm
    learns its statistics."""
    stochastic: bool = False
    """Whether two calls draw different weights; then `bella.predict` may take several draws."""
    accepts_loss_kwargs: ClassVar[bool] = False
    """For transformers' Trainer: it divides the loss of accumulated batches itself."""

    def __init__(
        self,
        network: nn.Module,
        axis: ParticleAxis,
        settings: dict[str, Any],
        *,
        shared_prefix: bool | str = True,
    ):
        super().__init__()
        self.network = network
        self.axis = axis
        self.settings = settings
        self.shared = self._choose_opening(shared_prefix)
        self._proven = False
        self._own_inputs = False
        self.mover: Any = None  # the transport that moves these particles now
        self.checkpointed: tuple[str, ...] = ()  # modules, see `bella.checkpoint`
        self.train(network.training)

    # ------------------------------------------------------------ calling it

    @property
    def particles(self) -> int:
        """Number of particles."""
        return self.axis.particles

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the chosen particles in one pass; a `Stream` from `prefix` continues from there.

        Raises:
            BellaError: no tensor among the inputs, or an output that does not carry the particles.
        """
        with checkpointing(self.network, self.axis, self.checkpointed):
            return self._call(args, kwargs)

    def _call(self, args: tuple, kwargs: dict) -> Any:
        if args and isinstance(args[0], Stream):
            return self._resume(args[0].again())
        tensors = [x for x in tensors_of((args, kwargs)) if x.dim()]
        if not tensors:
            raise BellaError("A posterior needs at least one tensor whose first axis is the batch.")
        if self._own_inputs:
            args, kwargs = self._flatten_own((args, kwargs))
            return self._run(tensors[0].shape[1], args, kwargs)
        batch = tensors[0].shape[0]
        if not self._proven:
            return self._first_pass(batch, args, kwargs)
        if self.shared is None:
            return self._run_repeated(batch, args, kwargs)
        return self._resume(self.shared.run(args, kwargs, batch))

    def prefix(self, *args: Any, **kwargs: Any) -> Stream:
        """Run what all particles share, once; hand the result to the posterior, or keep it.

        Raises:
            BellaError: nothing is shared (the axis opens at the inputs).
        """
        self.prove(*args, **kwargs)
        if self.shared is None:
            raise BellaError("This posterior opens its particle axis at the inputs: no prefix.")
        batch = next(x for x in tensors_of((args, kwargs)) if x.dim()).shape[0]
        # Nothing frozen needs a graph, and one that passes share can be gone through only once;
        # transformers may have told the embeddings to begin one.
        wanted = self.trains_base or any(x.requires_grad for x in tensors_of((args, kwargs)))
        with torch.set_grad_enabled(wanted and torch.is_grad_enabled()):
            return self.shared.run(args, kwargs, batch)

    def prove(self, *args: Any, **kwargs: Any) -> None:
        """Find out, by one pass of two particles without gradients, whether the prefix can be
        shared. No random number is used up.

        The first pass does so by itself and may run some layers twice; whoever listens to layers
        calls this before. Later calls do nothing.
        """
        if not (self._proven or self._own_inputs or (args and isinstance(args[0], Stream))):
            device = next(self.parameters()).device
            forked = torch.random.fork_rng([device] if device.type == "cuda" else [])
            with torch.no_grad(), forked, self.subset(self.axis.chosen[:2]):
                self(*args, **kwargs)

    def begun(self, *args: Any, **kwargs: Any) -> tuple[tuple, dict[str, Any]]:
        """The same inputs for several passes: with their prefix run, where there is one."""
        self.prove(*args, **kwargs)
        if self.shared is None or self._own_inputs or (args and isinstance(args[0], Stream)):
            return args, kwargs
        return (self.prefix(*args, **kwargs),), {}

    def _resume(self, stream: Stream) -> Any:
        assert self.shared is not None
        return self.axis.unfold(self.shared.resume(stream), stream.batch)

    def _run(self, batch: int, args: tuple, kwargs: dict) -> Any:
        with self.axis.running(batch, is_open=True):
            return self.axis.unfold(self.network(*args, **kwargs), batch)

    def _run_repeated(self, batch: int, args: tuple, kwargs: dict) -> Any:
        with self.axis.running(batch):
            args, kwargs = map_tensors(self.axis.repeat, (args, kwargs))
        return self._run(batch, args, kwargs)

    def _first_pass(self, batch: int, args: tuple, kwargs: dict) -> Any:
        """One pass that shows whether the prefix can be shared and whether all layers run.

        Raises:
            BellaError: no layer with particles ran.
        """
        ran: set[str] = set()
        layers = self.layers()
        handles = [
            layer.register_forward_hook(lambda *_, name=name: ran.add(name))
            for name, layer in layers.items()
        ]
        try:
            outputs = self._try_sharing(batch, args, kwargs)
        finally:
            for handle in handles:
                handle.remove()
        idle = sorted(set(layers) - ran)
        if idle:
            said = (
                f"Layers with particles that did not run: {', '.join(idle)}. Does the network read "
                "their weight without calling them? Then their particles make no difference."
            )
            if not ran:
                raise BellaError(said)
            warnings.warn(said, stacklevel=3)
        self._proven = True
        return outputs

    def _try_sharing(self, batch: int, args: tuple, kwargs: dict) -> Any:
        """Share the prefix if this network's outputs allow it; else open the axis at the inputs."""
        if self.shared is None:
            return self._run_repeated(batch, args, kwargs)
        try:
            stream = self.shared.run(args, kwargs, batch)
            outputs = self._resume(stream)
            if not has_nan(outputs) and not self.shared.reads_placeholders(stream):
                return outputs
            reason = "something of the shared part is used past the entrance"
        except torch.OutOfMemoryError:
            raise
        except (BellaError, RuntimeError, IndexError) as error:
            reason = str(error)
        # Bad inputs fail here as well, with the network's own error.
        outputs = self._run_repeated(batch, args, kwargs)
        if not has_nan(outputs):
            warnings.warn(
                f"Nothing is shared between the particles: the axis cannot open at "
                f"{' or '.join(self.shared.entrances)} ({reason}). "
                "Pass shared_prefix=False to accept this, or name a module to open it at.",
                stacklevel=4,
            )
            self.shared = None
        return outputs

    @contextmanager
    def own_inputs(self) -> Iterator[None]:
        """Inside the block every particle has inputs of its own, shaped (particles, batch, ...)."""
        self._own_inputs = True
        try:
            yield
        finally:
            self._own_inputs = False

    def _flatten_own(self, inputs: Any) -> Any:
        def flat(x: Tensor) -> Tensor:
            if x.dim() < 2 or x.shape[0] != self.axis.width:
                raise BellaError(
                    f"own_inputs: a tensor of shape {tuple(x.shape)} does not begin with "
                    f"({self.axis.width} running particles, batch)."
                )
            return x.flatten(0, 1)

        return map_tensors(flat, inputs)

    def subset(self, particles: Sequence[int]) -> AbstractContextManager[None]:
        """Only these particles run inside the ``with`` block (for chunks, or to save memory)."""
        return self.axis.subset(particles)

    def train(self, mode: bool = True) -> Posterior:
        """Training mode; batch norm of a frozen base keeps its statistics."""
        super().train(mode)
        frozen = self.network.modules() if mode and not self.trains_base else ()
        for module in frozen:
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    # ------------------------------------------------------------ looking inside

    def layers(self) -> dict[str, ParticleLayer]:
        """The layers with particles, by their names in the network."""
        return {
            name: module
            for name, module in self.network.named_modules()
            if isinstance(module, ParticleLayer)
        }

    def sites(self) -> list[Site]:
        """What a transport may move."""
        return [site for layer in self.layers().values() for site in layer.sites()]

    def stacked_parameters(self) -> dict[str, nn.Parameter]:
        """The particles' own trainable parameters, each (particles, ...), by name."""
        return {
            f"{name}.{key}" if name else key: p
            for name, layer in self.layers().items()
            for key, p in layer.named_parameters()
            if p.requires_grad and not key.startswith("base.")
        }

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """All that trains, as groups for a ``torch.optim`` optimiser.

        Args:
            weight_decay: torch's, for the parameters that this kind of posterior lets decay.
        """
        trained = [p for p in self.network.parameters() if p.requires_grad]
        return [{"params": trained, "weight_decay": weight_decay}]

    def parameters_of(self, particle: int) -> dict[str, Tensor]:
        """One particle's own tensors (views), by name.

        Raises:
            BellaError: there is no such particle.
        """
        self._check(particle)
        return {name: value[particle] for name, value in self.stacked_parameters().items()}

    def kl(self) -> Tensor:
        """Divergence of the posterior from its prior, in nats; 0 for point particles."""
        device = next(iter(self.stacked_parameters().values())).device
        return torch.zeros((), device=device)

    def extra_repr(self) -> str:
        """Shown by print(posterior)."""
        own = sum(value[0].numel() for value in self.stacked_parameters().values())
        return f"kind={self.kind}, particles={self.particles}, trainable_per_particle={own:,}"

    # ------------------------------------------------------------ plain networks

    def particle(self, particle: int) -> nn.Module:
        """One particle as a plain network, merged into a copy of the base."""
        self._check(particle)
        return self._plain(particle)

    def soup(self) -> nn.Module:
        """One plain network with the particles' weights averaged (for low-rank particles the mean
        of B_i A_i, never the mean of B times the mean of A)."""
        return self._plain(None)

    def _plain(self, particle: int | None) -> nn.Module:
        # deepcopy takes what `memo` holds for an object instead of copying it: each layer with
        # particles turns into its merged plain layer.
        merged = {id(layer): layer.merged(particle) for layer in self.layers().values()}
        plain = copy.deepcopy(self.network, merged)
        return plain.requires_grad_(False)

    def _check(self, particle: int) -> None:
        if not 0 <= particle < self.particles:
            raise BellaError(
                f"There is no particle {particle}: this posterior has {self.particles}, "
                f"counted from 0 to {self.particles - 1}."
            )

    # ------------------------------------------------------------ where the axis opens

    def _choose_opening(self, shared_prefix: bool | str) -> SharedPrefix | None:
        if shared_prefix is False:
            return None
        if isinstance(shared_prefix, str):
            check_prefix(self.network, shared_prefix)
            entrances = [shared_prefix]
        else:
            entrances = [entrance_of(self.network, name) for name in self.layers()]
        if "" in entrances:
            return None
        return SharedPrefix(self.network, self.axis, tuple(dict.fromkeys(entrances)))

    # ------------------------------------------------------------ files

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> Path:
        """Write the particles to ``folder`` (safetensors and JSON); see `bella.storage.save`."""
        return storage.save(self, folder, dtype=dtype)

    def packed(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A file's tensors as they are stored; some kinds have a smaller form."""
        return tensors

    def unpacked(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """What `packed` was given.

        Raises:
            BellaError: they are not what `packed` makes.
        """
        return tensors


def check_prefix(network: nn.Module, shared_prefix: bool | str) -> None:
    """Refuse a place for the particle axis to open that the network does not have.

    Raises:
        BellaError: ``shared_prefix`` is a name and names no module.
    """
    names = dict(network.named_modules())
    if isinstance(shared_prefix, str) and shared_prefix not in names:
        raise BellaError(
            f"shared_prefix={shared_prefix!r} names no module of the network: near names are "
            f"{nearest(shared_prefix, names, count=5)}."
        )


def has_nan(outputs: Any) -> bool:
    """Whether a tensor of the outputs holds a NaN."""
    return any(x.is_floating_point() and bool(x.isnan().any()) for x in tensors_of(outputs))


class Point(Posterior):
    """One plain network where a posterior is expected: to predict with it, or to evaluate it.

    Args:
        network: any network; a soup, say, or one particle.
        shared_prefix: name of the module at which it continues from a `Stream`.
    """

    kind = "point"

    def __init__(self, network: nn.Module, shared_prefix: bool | str = False):
        super().__init__(network, ParticleAxis(1), {}, shared_prefix=shared_prefix)
