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
        if posterior.particles == 1:
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
        layer, n = site.layer, self.posterior.particles
        k = self.kernels().k[number][row]
        w = (k / n - torch.eye(n, device=k.device, dtype=k.dtype))[:, list(chosen)].mT  # j, i
        with torch.enable_grad():
            A = site.A.detach().to(grad.dtype).requires_grad_()
            B = site.B.detach().to(grad.dtype).requires_grad_()
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
            known = self.corrections[site.name] = [torch.zeros_like(p) for p in site.parameters]
        for sum_, part in zip(known, missing, strict=True):
            sum_.add_(part)

    def couple(self, coefficient: float) -> None:
        """Share the gradients through the kernel, then repel."""
        n = self.posterior.particles
        if n == 1:
            return
        measured = self.kernels()
        for number, group in enumerate(self.groups):
            for row, site in enumerate(group.sites):
                if isinstance(site, Factors):
                    for parameter, missing in zip(
                        site.parameters, self.corrections.get(site.name, ()), strict=False
                    ):
                        add_to_grad(parameter, missing / self.loss_scale)
                else:
                    grad = site.value.grad
                    if grad is not None:
                        k = measured.k[number][row].to(grad.dtype)
                        grad.copy_((k @ grad.flatten(1)).view_as(grad) / n)
        self.repel(measured, [slope / n for slope in measured.slope], coefficient)
        self.corrections = {}

    def step(self, learning_rate: float | None = None) -> bool:
        """As `Transport.step`; the kernels are measured anew after it."""
        super().step(learning_rate)
        self.measured = None
        return False

    def prior_weights(self, group: Group) -> Tensor:
        """Priors are shared through the kernel as gradients are."""
        if self.posterior.particles == 1:
            return super().prior_weights(group)
        return self.kernels().k[self.groups.index(group)] / self.posterior.particles

    def noise(self, parameter: Tensor) -> Tensor:
        """Noise of covariance K / n between particles (Gallego & Insua 2018)."""
        n = self.posterior.particles
        white = torch.randn_like(parameter)
        if n == 1:
            return white
        for group, k in zip(self.groups, self.kernels().k, strict=True):
            for row, site in enumerate(group.sites):
                if any(p is parameter for p in site.parameters):
                    values, vectors = torch.linalg.eigh(k[row] / n)
                    root = vectors * values.clamp_min(0).sqrt()
                    return (root.to(white.dtype) @ white.flatten(1)).view_as(white)
        raise BellaError("This parameter is not one of the posterior's.")
