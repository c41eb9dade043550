"""Bases whose weights are codes: bitsandbytes' 4 and 8 bits, torchao's.

They stay as they are; particles stand beside them with factors in float32. What such a layer
computes is asked of the layer (`bella.particles.linearity`).
"""

from __future__ import annotations

from torch import Tensor, nn


def is_quantised(module: nn.Module) -> bool:
    """Whether a layer holds codes in the place of its weight."""
    weight = module._parameters.get("weight")
    if weight is None:
        return False
    return not weight.is_floating_point() or type(weight.data) is not Tensor


def keep_gradients(network: nn.Module) -> None:
    """Have bitsandbytes' 4-bit layers pass gradients on, on a CPU too.

    In evaluation on a CPU they repack their codes for a product without a gradient, and stay so
    when training goes on: what comes before them would learn nothing.
    """
    for module in network.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            vars(module)["support_avx512bf16_for_cpu"] = False
            module.state_dict()  # puts codes that were repacked back
