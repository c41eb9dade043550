"""`svgd`: Stein variational gradient descent in weight space, pulled back to the factors.

Particle i descends (Liu & Wang 2016, Eq. 8, with weights W and their loss gradients G_j = ∂ℓ/∂W_j)

    φ(i) = (1/n) Σ_j [ k_ij (G_j + prior_j) - (T/N) slope_ij (W_i - W_j) ]

through W_i = W0 + s B_i A_i:

    φ_B(i) = s φ(i) A_iᵀ        φ_A(i) = s B_iᵀ φ(i)

G_j is never formed. From a layer's inputs x_j and output gradients δ_j,
G_j A_iᵀ = Σ_b δ_jb (A_i x_jb)ᵀ and B_iᵀ G_j = Σ_b (B_iᵀ δ_jb) x_jbᵀ, which are the gradients of
Σ_ij w_ij ⟨δ_j, B_i A_i x_j⟩ by B_i and A_i. Adding gradients of B_j to B_i as they are would mix
gauges.

Parameters of which each particle has a copy (heads) share the kernel: φ = (1/n) Σ_j k_ij g_j.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from bella.errors import BellaError
from bella.particles.layer import Factors
from bella.posterior import Posterior
from bella.transport.coupled import Coupled
from bella.transport.coupling import Group, Measurement, add_to_grad


class Svgd(Coupled):
    """True SVGD. See `Coupled` for the arguments; the prior is ``uniform`` or ``delta``.

    With few particles in many dimensions it is a repulsive ensemble and not a sample of the
    posterior: its variance shrinks like n / dimension (Ba et al. 2022). `log` has the Stein ratio.
    """

    name: ClassVar[str] = "svgd"

    def __init__(self, posterior: Posterior, **options: Any):
        if options.get("prior") == "factors":
            raise BellaError(
                "svgd moves weights, so its prior must be one on weights: choose prior='delta'."
            )
        super().__init__(posterior, **options)
        self.measured: Measurement | None = None
        self.corrections: dict[str, list[Tensor]] = {}
        self.factors: dict[str, list[Tensor]] = {}
        if posterior.total == 1:
            return
        for number, group in enumerate(self.groups):
            for row, site in enumerate(group.sites):
                if isinstance(site, Factors):
                    site.layer.listener = partial(self.hear, number, row, site)

    def detach(self) -> None:
        """Stop listening to the layers."""
        for site in self.posterior.sites():
            if isinstance(site, Factors):
                site.layer.listener = None

    def kernels(self) -> Measurement:
        """Kernels of the particles as they are since the last step."""
        if self.measured is None:
            self.measured = self.coupling.measure()
            for group in self.groups:  # every particle's own batch moves all of them
                if group.low_rank:
                    columns = [group.whole(x) for x in group.stacked()]
                    for row, site in enumerate(group.sites):
                        self.factors[site.name] = [x[row] for x in columns]
        return self.measured

    def hear(
        self, number: int, row: int, site: Factors, x: Tensor, grad: Tensor, chosen: tuple[int, ...]
    ) -> None:
        """Accumulate Σ_j (k_ij / n - [i = j]) G_j, pulled back to particle i's factors.

        The own gradient is in ``.grad`` already; this is what is missing from it. The particles j
        are those that ran in this pass; the particles i are all.
        """
        if not self.hears:
            return
        layer, n = site.layer, self.posterior.total
        k = self.kernels().k[number][row]
        ran = [self.own[j] for j in chosen]
        w = (k / n - torch.eye(n, device=k.device, dtype=k.dtype))[:, ran].mT  # j, i
        with torch.enable_grad():
            A, B = (x.to(grad.dtype).requires_grad_() for x in self.factors[site.name])
            delta = layer.flat(grad).unflatten(0, (len(chosen), -1)).flatten(1, 2)  # j, rows, out
            x = x.to(grad.dtype) if x.is_floating_point() else x  # an Embedding's are numbers
            down = layer.down(x, A.flatten(0, 1))
            if x.shape[0] != grad.shape[0]:  # a shared input: every particle's rows are the same
                down = down.expand(len(chosen), *down.shape)
            down = down.reshape(*delta.shape[:2], n, -1)  # j, rows, i, rank
            up = (delta @ B.transpose(0, 1).flatten(1)).view_as(down)
            total = torch.einsum("jmir,jmir,ji->", up, down, w.to(grad.dtype)) * site.scale
            missing = torch.autograd.grad(total, (A, B))
        known = self.corrections.get(site.name)
        if known is None:
            known = self.corrections[site.name] = [
                torch.zeros_like(x, dtype=p.dtype)
                for x, p in zip(missing, site.parameters, strict=True)
            ]
        for sum_, part in zip(known, missing, strict=True):
            sum_.add_(part)

    def heard(self) -> list[Tensor]:
        """See `Transport.heard`."""
        return [x for parts in self.corrections.values() for x in parts]

    def couple(self, coefficient: float) -> None:
        """Share the gradients through the kernel, then repel."""
        n = self.posterior.total
        if n == 1:
            return
        measured = self.kernels()
        own = slice(self.own.start, self.own.stop)
        self.ranks.sum(self.heard())
        for number, group in enumerate(self.groups):
            for row, site in enumerate(group.sites):
                if isinstance(site, Factors):
                    for parameter, missing in zip(
                        site.parameters, self.corrections.get(site.name, ()), strict=False
                    ):
                        add_to_grad(parameter, missing[own] / self.loss_scale)
                else:
                    grad = site.value.grad
                    if grad is not None:
                        k = measured.k[number][row].to(grad.dtype)
                        everyone = self.ranks.gather(grad.flatten(1), n)
                        grad.copy_((k[own] @ everyone).view_as(grad) / n)
        self.repel(measured, [slope / n for slope in measured.slope], coefficient)
        self.corrections = {}

    def step(self, learning_rate: float | None = None) -> bool:
        """As `Transport.step`; the kernels are measured anew after it."""
        super().step(learning_rate)
        self.measured, self.factors = None, {}
        return False

    def prior_weights(self, group: Group) -> Tensor:
        """Priors are shared through the kernel as gradients are."""
        if self.posterior.total == 1:
            return super().prior_weights(group)
        return self.kernels().k[self.groups.index(group)] / self.posterior.total

    def noise(self, parameter: Tensor) -> Tensor:
        """Noise of covariance K / n between particles (Gallego & Insua 2018)."""
        n = self.posterior.total
        white = self.white(parameter)
        if n == 1:
            return white
        for group, k in zip(self.groups, self.kernels().k, strict=True):
            for row, site in enumerate(group.sites):
                if any(p is parameter for p in site.parameters):
                    values, vectors = torch.linalg.eigh(k[row] / n)
                    root = vectors * values.clamp_min(0).sqrt()
                    own = root[self.own.start : self.own.stop].to(white.dtype)
                    return (own @ white.flatten(1)).view_as(parameter)
        raise BellaError("This parameter is not one of the posterior's.")
