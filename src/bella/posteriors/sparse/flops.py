"""Operations of training and use, counted from the densities of the layers (Evci et al. 2020).

A count, not a measurement: dense kernels run for convolutions whatever the density is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bella.posteriors.sparse.layers import SparseConv2d, SparseLayer
from bella.posteriors.sparse.posterior import SparsePosterior


@torch.no_grad()
def flops(
    posterior: SparsePosterior, *inputs: Any, interval: int = 100, **named: Any
) -> dict[str, float]:
    """Count multiplications and additions of the sparse layers, for one example of ``inputs``.

    With f_S of one sparse and f_D of one dense product pass, training costs an example
    (3 f_S ΔT + 2 f_S + f_D) / (ΔT + 1) on average (RigL's accounting), and all is doubled, once
    for the mean and once for the variance. Dense mean-field VI costs 2 · 3 f_D. Norms, activations
    and layers that were not converted are left out.

    Args:
        posterior: on the device of ``inputs``.
        *inputs: a batch, as the posterior is called with.
        interval: ΔT of the topology.
        **named: named inputs.

    Returns:
        ``forward_sparse`` f_S and ``forward_dense`` f_D; ``train`` and ``train_dense_vi``;
        ``draw`` (two products) and ``mean`` (one) for a prediction; ``train_ratio``, how many times
        fewer operations than dense VI.
    """
    dense = 0.0
    sparse = 0.0

    def count(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal dense, sparse
        assert isinstance(layer, SparseLayer)
        # Each weight meets every output place of its channel once: a product and a sum.
        places = output.shape[2:].numel() if isinstance(layer, SparseConv2d) else 1
        if not isinstance(layer, SparseConv2d):
            places = output.shape[1:-1].numel()
        dense += 2.0 * layer.shape.numel() * places
        sparse += 2.0 * layer.mean.numel() * places

    handles = [layer.register_forward_hook(count) for layer in posterior.sparse_layers.values()]
    was_training = posterior.training
    posterior.eval()
    try:
        with torch.random.fork_rng():
            posterior(*inputs, **named)
    finally:
        posterior.train(was_training)
        for handle in handles:
            handle.remove()
    train = 2 * (3 * sparse * interval + 2 * sparse + dense) / (interval + 1)
    return {
        "forward_sparse": sparse,
        "forward_dense": dense,
        "train": train if sparse < dense else 6 * dense,
        "train_dense_vi": 6 * dense,
        "train_ratio": 6 * dense / train if sparse < dense else 1.0,
        "draw": 2 * sparse,
        "mean": sparse,
    }
