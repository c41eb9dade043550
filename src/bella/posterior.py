"""The contract of every posterior: a network whose outputs have a particle axis."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Literal, overload

import torch
from torch import Tensor, nn

from bella import generation, storage
from bella.errors import BellaError
from bella.parallel.ranks import ALONE, Ranks
from bella.particles.activated import Activation
from bella.particles.axis import ParticleAxis
from bella.particles.held import HeldBase
from bella.particles.layer import ParticleLayer, Site, keep_hooks
from bella.particles.passes import Passes
from bella.particles.plan import Plan, Plans
from bella.particles.planner import BatchAxes, Folding
from bella.particles.prefix import NothingSharedError, SharedPrefix, entrances_of
from bella.particles.recompute import recomputing
from bella.particles.stream import Stream
from bella.trees import tensors_of


class Posterior(nn.Module):
    """n networks that share a base, called as one.

    ``posterior(*inputs, **kwargs)`` returns what the network returns, its tensors shaped
    (particles, batch, ...). How the particles run is the business of `bella.particles.passes`: all
    in one pass where that is proven to be the same, else one after another.

    Args:
        network: a network whose particle layers are already in place.
        axis: the particle axis that they share.
        settings: what rebuilds the same posterior on a fresh network (JSON values).
        shared_prefix: ``True`` opens the axis at the first block with particles, a module's name
            opens it there, ``False`` at the inputs.
        folding: ``auto`` folds the particles into one pass where that is proven to be right,
            ``never`` runs them one after another, ``always`` folds without the proof.
        batch_axes: for a caller who knows better, by an argument's name or position the axis of
            its tensors that carries the batch, or ``None`` if it is the same for any batch.

    Raises:
        BellaError: ``shared_prefix`` names no module, or ``folding`` is unknown.
    """

    kind: ClassVar[str] = ""
    trains_base: ClassVar[bool] = False
    """Whether what the particles share trains too; then it is saved with them, and its batch norm
    learns its statistics."""
    keeps_base: ClassVar[bool] = False
    """Whether the network that the particles began as is still there, frozen, see `run_base`."""
    loops_by_design: ClassVar[str] = ""
    """Why its particles run one after another whatever the network; empty where they need not."""
    trains: ClassVar[bool] = True
    """Whether gradients move it; what is laid around trained particles is computed instead."""
    settles_passes: ClassVar[bool] = True
    """Whether its constructor takes ``shared_prefix``, ``folding`` and ``batch_axes``."""
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
        folding: Folding = "auto",
        batch_axes: BatchAxes | None = None,
    ):
        super().__init__()
        self.network = network
        self.axis = axis
        if self.settles_passes:
            axes = batch_axes and {str(name): role for name, role in batch_axes.items()}
            settings |= {"shared_prefix": shared_prefix, "folding": folding, "batch_axes": axes}
        self.settings = settings
        entrances = entrances_of(network, self.layers(), shared_prefix)
        self.passes = Passes(
            network,
            axis,
            entrances,
            share=shared_prefix is not False and "" not in entrances,
            folding=folding,
            batch_axes=batch_axes,
            by_design=self.loops_by_design,
        )
        self.passes.planner.needs_examples = any(
            layer.needs_examples for layer in self.layers().values()
        )
        self.passes.planner.freezes_norms = not self.trains_base
        self.mover: Any = None  # the transport that moves these particles now
        self.ranks: Ranks = ALONE  # processes that hold the particles between them
        self._total: int | None = None
        self.known_base: dict[torch.dtype | None, str] = {}  # see `remember_base`
        self.recomputed: tuple[str, ...] = ()  # modules, see `bella.recompute`
        self.agreed: dict[Any, Any] = {}  # precisions that were tried, see `bella.predict`
        self.held = self.passes.planner.held = HeldBase()  # see `bella.precision.base_in`
        self.train(network.training)

    # ------------------------------------------------------------ calling it

    @property
    def particles(self) -> int:
        """Number of particles, of those that this process holds."""
        return self.axis.particles

    @property
    def total(self) -> int:
        """Number of particles of all processes that hold them between them; see
        `bella.parallel.division`."""
        return self.axis.particles if self._total is None else self._total

    @property
    def chosen(self) -> tuple[int, ...]:
        """The particles that the next pass of this thread runs: all, but inside `subset`."""
        return self.axis.asked

    def hold(self, ranks: Ranks, total: int) -> None:
        """Be told that these are this process's part of ``total`` particles.

        The tensors are the caller's business, see `bella.parallel.division`.
        """
        self.axis.resize(len(ranks.part(total)))
        self.ranks, self._total = ranks, total

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the chosen particles; a `Stream` from `prefix` continues from there.

        Raises:
            BellaError: no tensor among the inputs, an empty batch, or a cache of an earlier pass.
        """
        self.held.check(self)
        with recomputing(self.network, self.axis, self.recomputed, self.passes.turns):
            if self.axis.own_inputs:
                return self.passes.call_own(args, kwargs)
            return self.passes.call(args, kwargs)

    def prefix(self, *args: Any, **kwargs: Any) -> Stream:
        """Run what all particles share, once; hand the result to the posterior, or keep it.

        Raises:
            BellaError: nothing is shared (the axis opens at the inputs).
        """
        self.held.check(self)
        plan = self.plan_for(*args, **kwargs)
        if not plan.shares:
            raise NothingSharedError
        # Nothing frozen needs a graph, and one that passes share can be gone through only once;
        # transformers may have told the embeddings to begin one.
        wanted = self.trains_base or any(x.requires_grad for x in tensors_of((args, kwargs)))
        with torch.set_grad_enabled(wanted and torch.is_grad_enabled()):
            _, stream = self.passes.first_half(plan, args, kwargs)
        if stream is None:
            raise NothingSharedError
        return stream

    def prove(self, *args: Any, **kwargs: Any) -> None:
        """Find out how passes like this one may run, on a few of its examples.

        The first pass of a kind does so by itself. No random number is used up; later calls do
        nothing.
        """
        if not (args and isinstance(args[0], Stream)):
            self.plan_for(*args, **kwargs)

    def plan_for(self, *args: Any, **kwargs: Any) -> Plan:
        """How such a pass runs; a stream from `prefix` may stand for the inputs."""
        if args and isinstance(args[0], Stream):
            return self.passes.planner.plan_resuming(args[0])
        return self.passes.planner.plan(args, kwargs)

    def plan(self) -> Plans:
        """How all kinds of passes so far run, and why: print it."""
        return self.passes.planner.known()

    def begun(self, *args: Any, **kwargs: Any) -> tuple[tuple, dict[str, Any]]:
        """The same inputs for several passes: with their prefix run, where there is one."""
        if self.passes.prefix is None or self.axis.own_inputs:
            return args, kwargs
        if (args and isinstance(args[0], Stream)) or not self.plan_for(*args, **kwargs).shares:
            return args, kwargs
        try:
            return (self.prefix(*args, **kwargs),), {}
        except NothingSharedError:
            return args, kwargs

    def some(
        self, args: tuple, kwargs: dict[str, Any], rows: Tensor
    ) -> tuple[tuple, dict[str, Any]] | None:
        """The inputs of some examples of a batch, or of a stream.

        Args:
            args: positional inputs, or a stream.
            kwargs: named ones.
            rows: numbers of the examples.

        Returns:
            Such inputs; ``None`` where examples cannot be told apart, because they depend on each
            other.
        """
        if args and isinstance(args[0], Stream):
            stream = args[0]
            return (stream.with_carried([x[rows] for x in stream.carried()]),), {}
        return self.passes.some(args, kwargs, rows)

    def run_base(self, *args: Any, **kwargs: Any) -> Any:
        """One pass of the network that all particles began as, at Δ = 0; a stream may stand for the
        inputs. Its heads are the first particle's: what arrives at them is the base's.

        Raises:
            BellaError: this kind of posterior keeps no frozen base, or parts of it have trained.
        """
        if not self.keeps_base or self.trained_outside():
            raise BellaError(
                f"Of a {self.kind} posterior"
                f"{' whose base was unfrozen' if self.keeps_base else ''} no frozen activations "
                "are left to read: leave out what reads them (anchors=(), distance=None)."
            )
        self.held.check(self)
        values = {key: x for layer in self.layers().values() for key, x in layer.at_base().items()}
        return self.passes.base(values, args, kwargs)

    @property
    def shared(self) -> SharedPrefix | None:
        """The shared prefix, if there may be one: ``None`` if it was asked for none, or where no
        kind of pass so far can share it."""
        plans = self.passes.planner.known(now=True)
        if plans and not any(plan.shares for plan in plans):
            return None
        return self.passes.prefix

    def own_inputs(self) -> AbstractContextManager[None]:
        """Inside the block every particle has inputs of its own, shaped (particles, batch, ...)."""
        return self.axis.owning()

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

    # ------------------------------------------------------------ writing

    @overload
    def generate(
        self,
        prompts: Any = ...,
        *,
        tokenizer: Any = ...,
        each: Literal[False] = ...,
        seed: int | None = ...,
        **options: Any,
    ) -> generation.Answers: ...
    @overload
    def generate(
        self,
        prompts: Any = ...,
        *,
        tokenizer: Any = ...,
        each: Literal[True],
        seed: int | None = ...,
        **options: Any,
    ) -> list[generation.Answers]: ...
    def generate(
        self,
        prompts: Any = None,
        *,
        tokenizer: Any = None,
        each: bool = False,
        seed: int | None = None,
        **options: Any,
    ) -> generation.Answers | list[generation.Answers]:
        """Answer prompts, with what the particles think of every token.

        One answer from the averaged next-token distribution, or with ``each`` one of each particle;
        see `bella.generation.generate`.

        Raises:
            BellaError: the network does not write text, prompts that are no such, or an option
                that is not defined for several particles.
        """
        return generation.generate(
            self, prompts, tokenizer=tokenizer, each=each, seed=seed, **options
        )

    def score(
        self,
        prompts: Any,
        answers: Any,
        *,
        tokenizer: Any = None,
        ended: bool = False,
        batch_size: int = 8,
    ) -> generation.Answers:
        """What the particles think of given answers to prompts; see `bella.generation.score`.

        Raises:
            BellaError: the network does not write text, or prompts and answers do not pair.
        """
        return generation.score(
            self, prompts, answers, tokenizer=tokenizer, ended=ended, batch_size=batch_size
        )

    # ------------------------------------------------------------ looking inside

    def layers(self) -> dict[str, ParticleLayer]:
        """The layers with particles, by their names in the network."""
        return {
            name: module
            for name, module in self.network.named_modules()
            if isinstance(module, ParticleLayer)
        }

    def functions(self) -> list[Activation]:
        """What stands in the place of activation functions; see `bella.particles.activated`."""
        return [module for module in self.network.modules() if isinstance(module, Activation)]

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
        # Nothing of a pass that another thread runs is copied, and no weights in fewer bits.
        with self.passes.turns, self.held.whole():
            plains: dict[nn.Module, nn.Module] = {
                **{layer: layer.merged(particle) for layer in self.layers().values()},
                **{function: copy.deepcopy(function.base) for function in self.functions()},
            }
            for module, its in plains.items():
                keep_hooks(module, its)
            merged = {id(module): its for module, its in plains.items()}
            plain = copy.deepcopy(self.network, merged)
        return plain.requires_grad_(False)

    def _check(self, particle: int) -> None:
        if not 0 <= particle < self.particles:
            raise BellaError(
                f"There is no particle {particle}: this posterior has {self.particles}, "
                f"counted from 0 to {self.particles - 1}."
            )

    # ------------------------------------------------------------ files

    def save(
        self, folder: str | Path, *, dtype: torch.dtype | None = None, check: bool = False
    ) -> Path:
        """Write the particles to ``folder`` (safetensors and JSON); see `bella.storage.save`."""
        return storage.save(self, folder, dtype=dtype, check=check)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As torch's, of the whole weights also while the base is held in fewer bits."""
        with self.held.whole():
            return super().state_dict(*args, **kwargs)

    def remember_base(self) -> None:
        """Take the base's fingerprints now: once it is sharded, no process has all of it."""
        dtypes = (None, torch.bfloat16, torch.float16)
        self.known_base = {dtype: storage.fingerprint(self, dtype) for dtype in dtypes}

    def packed(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A file's tensors as they are stored; some kinds have a smaller form."""
        return tensors

    def unpacked(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """What `packed` was given.

        Raises:
            BellaError: they are not what `packed` makes.
        """
        return tensors

    # ------------------------------------------------------------ what trains beside the particles

    def trained_outside(self) -> dict[str, nn.Parameter]:
        """Parameters of a frozen base that were unfrozen since: they train with the particles, are
        shared by all of them (their gradient is the sum over particles), and are saved with them.

        By their names in the network; empty where the base trains as a whole.
        """
        if self.trains_base:
            return {}
        own = {id(p) for p in self.stacked_parameters().values()}
        return {
            name: p
            for name, p in self.network.named_parameters()
            if p.requires_grad and id(p) not in own
        }

    def unfreeze(self, names: Sequence[str]) -> None:
        """Let parameters of the base train, by their names in the network.

        Raises:
            BellaError: the network has no such parameter.
        """
        known = dict(self.network.named_parameters())
        if not isinstance(names, list | tuple) or any(name not in known for name in names):
            raise BellaError(f"{names!r} are not all parameters of the network.")
        for name in names:
            known[name].requires_grad_(True)
