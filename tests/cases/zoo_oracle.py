"""What a particle is: the plain network with W0 + s B_i A_i, one pass at a time.

Nothing of bella's passes is used here. The weights are exchanged with ``torch.func``, and autograd
goes from the outputs through the change to B_i and A_i.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from zoo_base import Inputs

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, Conv1D)
STATES = ("keys", "values", "conv_states", "recurrent_states")

Leaves = dict[str, Tensor]
Factors = dict[str, Tensor]
"""A and B of each layer, as "<layer>.A" and "<layer>.B"."""


def suffixes(network: nn.Module) -> dict[str, list[str]]:
    """The last part of the names of layers that could have particles: whole names that end so.

    Where a suffix names convolutions in groups beside others, the others are a suffix of their own,
    because one layer that cannot have particles refuses them all.
    """
    found: dict[str, list[str]] = {}
    for name, module in network.named_modules():
        if name and isinstance(module, LAYERS):
            found.setdefault(name.rpartition(".")[2], []).append(name)
    for suffix, names in list(found.items()):
        whole = [name for name in names if getattr(network.get_submodule(name), "groups", 1) == 1]
        if whole and whole != names:
            found[f"{suffix}-ungrouped"] = whole
    return found


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a network's outputs with where they stand; `caches` are left out."""
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{path}.{key}")
    elif isinstance(tree, list | tuple):
        for key, value in enumerate(tree):
            yield from leaves(value, f"{path}.{key}")


def caches(tree: Any) -> Leaves:
    """The tensors of a key-value or state cache among the outputs, by place."""
    found: Leaves = {}
    for key in ("past_key_values", "cache_params"):
        cache = tree.get(key) if isinstance(tree, dict) else None
        both = {"self": "self_attention_cache", "cross": "cross_attention_cache"}
        parts = {name: getattr(cache, attribute, None) for name, attribute in both.items()}
        for name, part in {"": cache, **parts}.items():
            for depth, layer in enumerate(getattr(part, "layers", ())):
                for state in STATES:
                    value = getattr(layer, state, None)
                    if isinstance(value, Tensor):
                        found[f"{key} {name} {depth} {state}"] = value
    return found


def run_plain(
    plain: nn.Module, factors: Factors, scale: float, inputs: Inputs
) -> tuple[Leaves, Leaves]:
    """One particle's outputs and caches, on the graph of its factors.

    Args:
        plain: the untouched network.
        factors: the particle's own, A (rank, in) and B (out, rank).
        scale: s.
        inputs: of the network.
    """
    weights = {}
    for key in factors:
        name = key[:-2]
        weight = plain.get_submodule(name).weight
        change = scale * factors[f"{name}.B"] @ factors[f"{name}.A"]
        if isinstance(plain.get_submodule(name), Conv1D):
            change = change.mT
        weights[f"{name}.weight"] = weight + change.reshape(weight.shape)
    args, kwargs = copy.deepcopy(inputs)
    outputs = torch.func.functional_call(plain, weights, args, kwargs, tie_weights=False)
    return dict(leaves(outputs)), caches(outputs)


def directions(outputs: Leaves, particles: int) -> Leaves:
    """One random direction for every floating output of every particle: (particles, ...)."""
    draw = torch.Generator().manual_seed(17)
    return {
        path: (torch.randn(particles, *x.shape, generator=draw) / x.numel() ** 0.5).to(x.dtype)
        for path, x in outputs.items()
        if x.is_floating_point()
    }


def gradients(outputs: Leaves, along: Leaves, factors: Factors) -> Leaves:
    """Of the outputs along these directions with respect to the factors; or zero."""
    terms = [(outputs[path] * w).sum() for path, w in along.items() if outputs[path].requires_grad]
    found: Any = (None,) * len(factors)
    if terms:
        found = torch.autograd.grad(
            torch.stack(terms).sum(), list(factors.values()), allow_unused=True
        )
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(factors.items(), found, strict=True)
    }
