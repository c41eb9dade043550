"""Bases whose weights are codes: bitsandbytes' 4 and 8 bits, torchao's.

They stay as they are; particles stand beside them with factors in float32. What such a layer
computes is asked of the layer (`bella.particles.linearity`).
"""

from __future__ import annotations

from torch import Tensor, nn

from bella.errors import BellaError


def is_quantised(module: nn.Module) -> bool:
    """Whether a layer holds codes in the place of its weight."""
    weight = module._parameters.get("weight")
    if weight is None:
        return False
    return not weight.is_floating_point() or type(weight.data) is not Tensor


def refuse_whole(network: nn.Module) -> None:
    """Refuse to write a network with codes as a plain one: what is merged would be plain and the
    rest codes, which no library opens.

    Raises:
        BellaError: it holds some.
    """
    if any(is_quantised(module) for module in network.modules()):
        raise BellaError(
            "This network's weights are codes, and merged into some of its layers it is one that "
            "no library opens: write the particles as adapters (--format peft, without a merged "
            "soup), which fit the network that was not quantised, too."
        )


def casts_its_bias(network: nn.Module) -> str | None:
    """Name of a layer that rounds its bias for good once its input comes in fewer bits, as
    bitsandbytes' layers do; ``None`` where there is none."""
    for name, module in network.named_modules():
        of = type(module).__module__.partition(".")[0]
        if of == "bitsandbytes" and getattr(module, "bias", None) is not None:
            return name
    return None


def keep_gradients(network: nn.Module) -> None:
    """Have bitsandbytes' 4-bit layers pass gradients on, on a CPU too.

    In evaluation on a CPU they repack their codes for a product without a gradient, and stay so
    when training goes on: what comes before them would learn nothing.
    """
    for module in network.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            vars(module)["support_avx512bf16_for_cpu"] = False
            module.state_dict()  # puts codes that were repacked back
