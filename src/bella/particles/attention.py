"""``nn.MultiheadAttention`` taken apart into layers that particles can stand on.

It hands its weights to one function and never calls a layer, so nothing could take a layer's place.
`SplitAttention` computes the same with four Linear layers, q_proj, k_proj, v_proj and out_proj.

Source: Vaswani et al. 2017, Attention Is All You Need, section 3.2; the arguments are torch's.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bella.errors import BellaError


class SplitAttention(nn.Module):
    """What an ``nn.MultiheadAttention`` computes, by Linear layers that are called.

    Args:
        whole: the module to take the weights of.

    Raises:
        BellaError: it has learned keys and values beside the inputs' (``add_bias_kv``), or a zero
            one.
    """

    in_proj_weight = None
    in_proj_bias = None
    _qkv_same_embed_dim = False
    """So that ``nn.TransformerEncoderLayer`` calls it and hands it to no fused kernel."""

    def __init__(self, whole: nn.MultiheadAttention):
        super().__init__()
        if whole.bias_k is not None or whole.bias_v is not None or whole.add_zero_attn:
            raise BellaError(
                "nn.MultiheadAttention with add_bias_kv or add_zero_attn cannot be split: adapt "
                "other layers."
            )
        self.embed_dim, self.num_heads = whole.embed_dim, whole.num_heads
        self.batch_first, self.dropout = whole.batch_first, whole.dropout
        if whole.in_proj_weight is not None:
            weights = whole.in_proj_weight.chunk(3)
        else:
            weights = (whole.q_proj_weight, whole.k_proj_weight, whole.v_proj_weight)
        biases = (None,) * 3 if whole.in_proj_bias is None else whole.in_proj_bias.chunk(3)
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        self.out_proj = _linear(whole.out_proj.weight, whole.out_proj.bias)
        self.train(whole.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention``; ``is_causal`` is a hint about ``attn_mask`` there too.

        Raises:
            BellaError: ``is_causal`` without a mask.
        """
        if is_causal and attn_mask is None:
            raise BellaError("is_causal is a hint about attn_mask: give the mask as well.")
        alone = query.dim() == 2
        if alone:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        mask = self._mask(attn_mask, key_padding_mask, q)
        rate = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.mT / math.sqrt(q.shape[-1])
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = F.dropout(weights, rate)
            heads = weights @ v
        else:
            heads = F.scaled_dot_product_attention(q, k, v, mask, rate)
        out = self.out_proj(heads.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if alone:
            return out[0], None if weights is None else weights[0]
        return out if self.batch_first else out.transpose(0, 1), weights

    def _mask(self, mask: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
        """Both masks as one that is added to the scores (batch, heads, queries, keys)."""
        found = None
        if mask is not None:
            found = _added(mask, q)
            found = found.unflatten(0, (-1, self.num_heads)) if found.dim() == 3 else found
        if padding is not None:
            missing = _added(padding, q)[:, None, None]
            found = missing if found is None else found + missing
        return found


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A Linear with these values, of their own."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    made.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return made


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """A mask of torch's, True where nothing is looked at, as what is added to the scores."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf)


def split_attention(network: nn.Module) -> list[str]:
    """Put `SplitAttention` in the place of every ``nn.MultiheadAttention``.

    The network computes the same, to rounding, and names of its parameters change: target
    ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj``.

    Args:
        network: changed in place.

    Returns:
        Names of the modules that were split.

    Raises:
        BellaError: one cannot be; then none is.
    """
    found = {n: m for n, m in network.named_modules() if isinstance(m, nn.MultiheadAttention)}
    split = {name: SplitAttention(module) for name, module in found.items()}
    for module in list(network.modules()):
        for key, child in list(module._modules.items()):
            for name, whole in found.items():
                if child is whole:
                    module._modules[key] = split[name]
    return list(split)
