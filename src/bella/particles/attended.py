"""Attention in fewer bits whose gradients are computed in float32, on a CPU.

PyTorch's fused attention multiplies blocks of a few rows. In bfloat16 or float16 a block of the
backward pass costs a CPU some tenth of a millisecond more than in float32, whatever its size: of
short sequences the backward pass takes two to seven times as long (docs/performance.md). Here what
was kept is cast and the same function of PyTorch's called in float32: the outputs are bit for bit
those of PyTorch, the gradients the same but for fewer roundings.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode

FEWER = (torch.bfloat16, torch.float16)
LONGEST = 256
"""Tokens of a sequence up to which float32 is the faster one; beyond, the products rule."""
FUSED = SDPBackend.FLASH_ATTENTION.value

aten = torch.ops.aten


class Attended(torch.autograd.Function):
    """PyTorch's fused attention on a CPU, with its backward pass in float32."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Float[Tensor, "batch heads tokens size"],
        key: Float[Tensor, "batch heads others size"],
        value: Float[Tensor, "batch heads others size"],
        mask: Tensor | None,
        is_causal: bool,
        scale: float | None,
    ) -> Float[Tensor, "batch heads tokens size"]:
        """What PyTorch answers.

        Args:
            ctx: PyTorch's.
            query: in bfloat16 or float16, as are the two others.
            key: as many heads.
            value: as many heads.
            mask: added to the scores.
            is_causal: whether a token sees only those before it.
            scale: of the scores; 1 / √size for ``None``.
        """
        output, scores = aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, is_causal, attn_mask=mask, scale=scale
        )
        ctx.save_for_backward(query, key, value, output, scores, mask)
        ctx.is_causal, ctx.scale = is_causal, scale
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of query, key and value."""
        query, key, value, output, scores, mask = ctx.saved_tensors
        found = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *(x.float() for x in (grad, query, key, value, output)),
            scores,
            0.0,
            ctx.is_causal,
            attn_mask=None if mask is None else mask.float(),
            scale=ctx.scale,
        )
        return *(x.to(query.dtype) for x in found), None, None, None


def transformed() -> bool:
    """Whether a transform of torch.func runs: it takes no autograd function of ours."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None


class _Attending(TorchFunctionMode):
    """Inside the block attention is `Attended`, wherever it would be fused in fewer bits."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function; attention in our way where that is the same."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            found = attend(*args, **kwargs)
            if found is not None:
                return found
        return func(*args, **kwargs)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """Attention whose gradients are computed in float32; ``None`` where PyTorch would not run its
    fused function on a CPU in fewer bits, or needs no gradients, and of long sequences.

    The arguments are those of `torch.nn.functional.scaled_dot_product_attention`.
    """
    three = query, key, value
    if torch.compiler.is_compiling() or transformed():
        return None
    if not (torch.is_grad_enabled() and any(x.requires_grad for x in three)):
        return None
    if dropout_p or enable_gqa or query.device.type != "cpu" or query.is_nested:
        return None
    if query.dim() != 4 or max(query.shape[-2], key.shape[-2]) > LONGEST:
        return None
    if not torch.is_autocast_enabled("cpu") or query.dtype not in (torch.float32, *FEWER):
        return None
    dtype = torch.get_autocast_dtype("cpu")
    if dtype not in FEWER:
        return None
    mask = attn_mask
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, float("-inf"))
    if mask is not None and mask.requires_grad:
        return None
    three = tuple(x.to(dtype) for x in three)  # type: ignore[assignment]
    mask = None if mask is None else mask.to(dtype)
    if torch._fused_sdp_choice(*three, mask, 0.0, is_causal, scale=scale) != FUSED:
        return None
    return Attended.apply(*three, mask, is_causal, scale)


def attending() -> AbstractContextManager[Any]:
    """What stands around a pass: nothing, where no gradients are wanted or products are whole."""
    needed = torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
    return _Attending() if needed and not torch.compiler.is_compiling() else nullcontext()
