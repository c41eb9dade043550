"""What a layer with particles answers to a parent that looks at it.

Parents ask for more than a call: T5 casts to ``wo.weight.dtype``, ViT's patch embeddings compare
with it, others read ``in_features`` or ``kernel_size``. A layer with particles has no one weight,
so it answers with a stand-in that has the weight's shape, dtype and device and no values: casting
to it works, and multiplying by it, past the particles, is refused.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from bella.errors import BellaError

FROM_SHAPE = frozenset(
    f"aten::{name}"
    for name in (
        "empty_like",
        "full_like",
        "ones_like",
        "zeros_like",
        "rand_like",
        "randn_like",
        "new_empty",
        "new_empty_strided",
        "new_full",
        "new_ones",
        "new_zeros",
    )
)
"""Operations that read no value of their tensor."""


class StandIn(Tensor):
    """A weight without values: shape, dtype, device, and the name of the layer it stands in for."""

    layer: str

    # What a parent does with it is decided by `__torch_dispatch__` alone.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Refuse whatever needs values.

        Raises:
            BellaError: it does.
        """
        kwargs = kwargs or {}
        name = function._schema.name
        stand_in = next(x for x in (*args, *kwargs.values(), *_inside(args)) if isinstance(x, cls))
        if name == "aten::detach" and args[0] is stand_in:
            return stand_in
        if name == "aten::_to_copy" and args[0] is stand_in:
            changed = {
                key: kwargs.get(key) or getattr(stand_in, key) for key in ("dtype", "device")
            }
            return stand_in_for(stand_in.layer, stand_in.shape, **changed)
        if name in FROM_SHAPE:
            bare = torch.empty((), dtype=stand_in.dtype, device=stand_in.device)
            return function(bare.expand(stand_in.shape), *args[1:], **kwargs)
        raise BellaError(
            f"The network computes with the weight of layer {stand_in.layer!r} itself "
            f"({name.removeprefix('aten::')}) instead of calling the layer, so its particles would "
            "be ignored: leave it out of the layers that get particles."
        )

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"StandIn({self.layer!r}, shape={tuple(self.shape)}, dtype={self.dtype})"


def stand_in_for(
    layer: str, shape: torch.Size, *, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """A tensor that may be asked for its shape, dtype and device, and cast to; see `StandIn`.

    Inside ``torch.compile`` it is an ordinary NaN, which a compiler can take: a network that
    computes with it shows NaN.
    """
    if torch.compiler.is_compiling():
        fill = math.nan if dtype.is_floating_point else 0
        return torch.full((), fill, dtype=dtype, device=device).expand(shape)
    made = Tensor._make_wrapper_subclass(StandIn, shape, dtype=dtype, device=device)
    made.layer = layer
    return made


def take_facts(layer: nn.Module, base: nn.Module) -> None:
    """Give ``layer`` the plain numbers, words and tuples that ``base`` has for attributes.

    They are what a parent may ask for (``in_features``, ``stride``, ``padding_idx``, ...). What
    ``layer`` has already under that name stays.
    """
    for name, value in vars(base).items():
        plain = isinstance(value, bool | int | float | str | tuple | None | torch.dtype)
        known = name.startswith("_") or name in vars(layer) or hasattr(type(layer), name)
        if plain and not known:
            setattr(layer, name, value)


def _inside(args: tuple) -> list[Any]:
    """What stands in lists among the arguments, as in ``torch.cat``."""
    return [x for part in args if isinstance(part, tuple | list) for x in part]
