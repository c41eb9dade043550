"""In which precision a posterior multiplies.

``float32`` multiplies by the fastest kernel that is float32 (`bella.kernels`), ``bf16`` and
``fp16`` in fewer bits by torch's autocast, with the frozen base held in them
(`bella.particles.held`). Factors, heads, optimiser, Gram matrices, probabilities and losses are
float32 in all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bella.errors import BellaError
from bella.kernels import FEWEST, Kernel, device_of, fast_float32
from bella.particles.held import multiplies
from bella.particles.quantised import casts_its_bias
from bella.posterior import Posterior
from bella.storage import own_tensors

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""By name; ``float32`` multiplies as the parameters are."""

Name = Literal["float32", "bf16", "fp16", "auto"]
BaseDtype = Literal["auto", "float32", "bf16", "fp16"]


class Precision:
    """Autocast, the base's dtype, and the gradient scaler that fp16 needs.

    Args:
        name: ``float32`` (or ``no``), ``bf16`` or ``fp16``; what ``auto`` means is decided where a
            posterior is known, see `precision_for`.
        device: where the posterior is.
        base_dtype: what the frozen base is held in: ``auto`` is that of the products.
        scaler: of a loop that scales the loss and unscales the gradients by itself.

    Attributes:
        base: the dtype that the frozen base is held in; ``None`` leaves it as it is.
        scaler: that loop's, or torch's with fp16; else ``None``.
        unscales: whether a step unscales the gradients; not where the loop does.

    Raises:
        BellaError: an unknown name, or a base in fewer bits than the products.
    """

    def __init__(
        self,
        name: str = "float32",
        device: torch.device | str = "cpu",
        *,
        base_dtype: str = "auto",
        scaler: torch.amp.GradScaler | None = None,
    ):
        name = "float32" if name == "no" else name
        if name not in ("float32", *DTYPES):
            raise BellaError(f"precision={name!r}: choose 'auto', 'float32', 'bf16' or 'fp16'.")
        if base_dtype not in ("auto", "float32", name):
            raise BellaError(
                f"base_dtype={base_dtype!r} with precision={name!r}: choose 'auto', 'float32' or "
                "the dtype of the products."
            )
        self.name = name
        self.device_type = torch.device(device).type
        self.base = None if base_dtype == "float32" else DTYPES.get(name)
        self.unscales = scaler is None
        self.scaler = scaler
        if scaler is None and name == "fp16":
            self.scaler = torch.amp.GradScaler(self.device_type)

    def autocast(self) -> AbstractContextManager:
        """The context of a forward pass; with ``float32`` that of the caller stays."""
        if self.name == "float32":
            return nullcontext()
        return torch.autocast(self.device_type, DTYPES[self.name])

    def once(self, posterior: Posterior) -> AbstractContextManager:
        """The context, inside `around`, of passes whose outcome is kept for a whole run.

        Made once and read in every step, they are made as the parameters are where a network does
        not gain by fewer bits: in bfloat16 fifty convolutions leave an EfficientNet's features 8%
        off, and what is trained on those takes more from a shift (docs/performance.md).
        """
        held = posterior.held
        gained = gains(posterior.network, held.originals())
        return self.autocast() if gained else held.whole()

    @contextmanager
    def around(
        self, posterior: Posterior, kernel: str | None = None, *, sparing: bool = False
    ) -> Iterator[Kernel]:
        """What stands around whole steps: the kernel for float32, and the base's dtype.

        Args:
            posterior: whose passes run inside.
            kernel: see `bella.fast_float32`.
            sparing: see `base_in`.

        Raises:
            BellaError: see `bella.fast_float32` and `base_in`.
        """
        base = self.base
        held = nullcontext() if base is None else base_in(posterior, base, sparing=sparing)
        with fast_float32(posterior, kernel) as used, held:
            yield used

    def become(self, name: str) -> None:
        """Be another precision than was asked for: what a batch, or a run that goes on, decided."""
        if name != self.name:
            base = "auto" if self.base is not None or self.name == "float32" else "float32"
            other = Precision(name, self.device_type, base_dtype=base)
            self.name, self.base, self.scaler = other.name, other.base, other.scaler

    def facts(self) -> dict[str, Any]:
        """As JSON values, for the record of a run."""
        base = "as it was" if self.base is None else str(self.base)[6:]
        return {"products": self.name, "base": base}

    @property
    def scale(self) -> float:
        """What losses are multiplied with before they go backward."""
        return 1.0 if self.scaler is None else float(self.scaler.get_scale())

    def backward(self, loss: Tensor) -> None:
        """Go backward from a loss, scaled."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()


@contextmanager
def base_in(posterior: Posterior, dtype: torch.dtype, *, sparing: bool = False) -> Iterator[None]:
    """Hold a posterior's frozen base in the dtype that autocast multiplies in.

    Inside the block every pass has to run in ``torch.autocast`` of that dtype, and go backward, and
    gives, bit for bit, what it gives without the block: only the casts are gone. Copies, pickles
    and state dicts of the posterior are of the whole base. Blocks may be nested and be open
    in several threads; the last to close puts the base back as it was. Checkpoints and saved
    posteriors name the base by its hash as it was.

    Args:
        posterior: of any kind; what trains stays as it is.
        dtype: ``torch.bfloat16`` or ``torch.float16``.
        sparing: of a bfloat16 base on a CPU keep beside it only what it lacks of the whole one, bit
            for bit: two bytes a weight for four. It takes as long as ten casts, so it is for blocks
            that stay open; `bella.fit` opens such a one.

    Raises:
        BellaError: an open block holds the base in another dtype; or, as it ends, somebody wrote to
            the weights that it held, or cast them.
    """
    own = set() if posterior.trains_base else {id(x) for x in own_tensors(posterior).values()}
    posterior.held.enter(posterior.network, own, dtype, sparing)
    try:
        yield
    finally:
        posterior.held.leave()


def precision_for(posterior: Posterior, name: str, base_dtype: str = "auto") -> Precision:
    """What a precision means for a posterior where it is: ``auto`` is bf16 where the device has
    units for it and the network has products that gain, else float32.

    Raises:
        BellaError: see `Precision`; a base's dtype is named and that of the products is not;
            layers of bitsandbytes have biases, which they would round for good; or, on a CPU, the
            weights are in the other one of bfloat16 and float16.
    """
    device = device_of(posterior)
    if name == "auto":
        if base_dtype not in ("auto", "float32"):
            raise BellaError(
                f"base_dtype={base_dtype!r} with precision='auto': name the dtype of the products "
                "as well, or leave base_dtype at 'auto' or 'float32'."
            )
        pays = multiplies_bf16(device) and gains(posterior.network)
        name = "bf16" if pays and casts_its_bias(posterior.network) is None else "float32"
    elif name in DTYPES and (layer := casts_its_bias(posterior.network)) is not None:
        raise BellaError(
            f"precision={name!r} would change the frozen base: bitsandbytes' layers round their "
            f"biases for good ({layer} has one): choose 'float32', or quantised 'int8'."
        )
    held = {p.dtype for p in posterior.network.parameters()} - {DTYPES.get(name)}
    if device.type == "cpu" and name in DTYPES and (others := held & set(DTYPES.values())):
        raise BellaError(
            f"precision={name!r} with weights in {others.pop()}: on a CPU torch's autocast does "
            "not mix the two, so choose 'float32', which multiplies as the weights are, or call "
            "network.float() first."
        )
    return Precision(name, device, base_dtype=base_dtype)


def multiplies_bf16(device: torch.device) -> bool:
    """Whether a device has units that multiply bfloat16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        asked = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return any(bool(getattr(torch.cpu, name, bool)()) for name in asked)
    return False


def gains(network: nn.Module, held: Collection[int] = ()) -> bool:
    """Whether most of a network's weights are in Linear layers, and there are enough of them.

    Args:
        network: as it is.
        held: the ``id`` of weights of float32 that are held in fewer bits meanwhile.
    """
    counts = {True: 0, False: 0}
    for module in network.modules():
        if multiplies(module):
            weight: Tensor = module.weight  # type: ignore[assignment]
            whole = weight.dtype == torch.float32 or id(weight) in held
            counts[weight.dim() == 2 and whole] += weight.numel()
    return counts[True] > counts[False] and counts[True] >= FEWEST
