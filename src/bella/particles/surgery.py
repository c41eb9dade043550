"""Exchanging layers of a network for layers with particles: one way for all kinds of posterior.

    surgery.check(network)                                  # has none yet, and all its values
    names = surgery.choose(network, targets, refusal)       # or one sentence that lists the choices
    layers = {name: ... for name in names}                  # looks at the network, changes nothing
    surgery.install(network, layers, freeze=True)           # the first change

Every check comes before the first change, so a refused network is as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

from torch import nn
from torch.jit import ScriptModule
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from bella.errors import BellaError
from bella.particles import targets
from bella.particles.layer import ParticleLayer
from bella.particles.linearity import family

ALL_LINEAR = "all-linear"
"""In ``target_modules``: every Linear and Conv1D but the network's outputs."""

Refusal = Callable[[str], str | None]
"""Why the module of a name gets no particles, as a sentence; ``None`` if it can have them."""


def check(network: nn.Module) -> None:
    """Refuse a network that has particles already, that torch.jit compiled, or without values yet.

    Raises:
        BellaError: any of these.
    """
    for name, module in network.named_modules():
        if isinstance(module, ScriptModule):
            raise BellaError(
                f"{repr(name) if name else 'The network'} is compiled by torch.jit, so its layers "
                "can be neither exchanged nor listened to: give the network as it was before."
            )
    taken = [name for name, m in network.named_modules() if isinstance(m, ParticleLayer)]
    if taken:
        shown = ", ".join(repr(name or "the whole network") for name in taken[:4])
        more = f" and {len(taken) - 4} more" if len(taken) > 4 else ""
        raise BellaError(
            f"This network has particles already, in {shown}{more}: begin with a fresh network, "
            "or with posterior.particle(i), which is a plain one."
        )
    lazy = [
        name
        for name, value in (*network.named_parameters(), *network.named_buffers())
        if isinstance(value, UninitializedParameter | UninitializedBuffer)
    ]
    if lazy:
        raise BellaError(
            f"{lazy[0]!r} of the network has no shape yet: call the network once on an example "
            "first."
        )


# ---------------------------------------------------------------- choosing


def choose(
    network: nn.Module,
    wanted: targets.Targets,
    refusal: Refusal,
    *,
    what: str = "target_modules",
    beside: Collection[str] = (),
) -> list[str]:
    """Names of the modules to exchange, in the network's order.

    Args:
        network: where to look.
        wanted: names, suffixes, regular expressions, or ``"all-linear"``.
        refusal: says of a name why it cannot be chosen.
        what: the argument's name, for the message.
        beside: modules that are chosen for something else; neither they nor what stands inside
            them is chosen here, nor refused.

    Raises:
        BellaError: a target means no module, or one that cannot be chosen; the sentence lists
            those that can.
    """

    def is_beside(name: str) -> bool:
        return any(name == other or name.startswith(f"{other}.") for other in beside)

    if everything(wanted):
        outputs = outputs_of(network)
        kinds = linears(network)
        return [n for n in kinds if n not in outputs and not is_beside(n) and refusal(n) is None]

    def able() -> list[str]:
        return [name for name, _ in network.named_modules() if name and refusal(name) is None]

    listed = what == "target_modules"  # heads may be any module: near names say more
    found = targets.find(network, wanted, what=what, able=able if listed else None)
    chosen = [name for name in found if not is_beside(name)]
    for name in chosen:
        reason = refusal(name)
        if reason is not None:
            more = f" ({targets.choices(able())})" if listed else ""
            raise BellaError(f"{reason.removesuffix('.')}{more}.")
    return chosen


def everything(wanted: targets.Targets | None) -> bool:
    """Whether the targets are ``"all-linear"``, as a word or as a file holds it."""
    return wanted == ALL_LINEAR or (wanted is not None and list(wanted) == [ALL_LINEAR])


def linears(network: nn.Module) -> list[str]:
    """Names of all Linear and Conv1D layers."""
    return [n for n, m in network.named_modules() if n and family(m) in ("Linear", "Conv1D")]


def outputs_of(network: nn.Module) -> set[str]:
    """Names of what a language model turns features into tokens with, which PEFT leaves out too."""
    ask = getattr(network, "get_output_embeddings", None)
    try:
        head = ask() if callable(ask) else None
    except (AttributeError, NotImplementedError):
        head = None
    return {name for name, module in network.named_modules() if head is not None and module is head}


def unreached(network: nn.Module) -> dict[str, str]:
    """Layers that are never called, with a sentence each: those in ``nn.MultiheadAttention``."""
    modules = dict(network.named_modules())
    around = [
        f"{n}." if n else "" for n, m in modules.items() if isinstance(m, nn.MultiheadAttention)
    ]
    return {
        name: f"Layer {name!r} stands in nn.MultiheadAttention, which reads its weight and never "
        "calls it, so its particles would be ignored: target other layers, or call "
        "bella.models.split_attention(network) first and target q_proj, k_proj, v_proj or out_proj."
        for name in modules
        if name and any(name.startswith(prefix) for prefix in around)
    }


def tied(network: nn.Module) -> dict[str, str]:
    """Layers whose weight another module holds too, with a sentence each."""
    modules = dict(network.named_modules())
    holders: dict[int, list[str]] = {}
    for name, module in modules.items():
        for key, value in module._parameters.items():
            if value is not None:
                holders.setdefault(id(value), []).append(f"{name}.{key}".lstrip("."))
    found = {}
    for name, module in modules.items():
        weight = module._parameters.get("weight")
        others = [x for x in holders.get(id(weight), ()) if x != f"{name}.weight".lstrip(".")]
        if weight is not None and others:
            found[name] = (
                f"Layer {name!r} shares its weight with {others[0].removesuffix('.weight')!r}, "
                "which a merged particle would change as well: target other layers, or untie the "
                "two first."
            )
    return found


def bypassed(network: nn.Module) -> dict[str, str]:
    """`tied` and `unreached` together."""
    return tied(network) | unreached(network)


# ---------------------------------------------------------------- exchanging


def install(network: nn.Module, layers: Mapping[str, nn.Module], *, freeze: bool) -> None:
    """Put each layer in every place where the module of its name stands.

    Args:
        network: adapted in place.
        layers: by name; a module that stands in several places is called in all of them.
        freeze: the network's own parameters get no gradient from now on.
    """
    before = {name: network.get_submodule(name) for name in layers}
    if freeze:
        network.requires_grad_(False)
        detach_made_weights(network)
    for name, layer in layers.items():
        for parent, key in places(network, before[name]):
            setattr(parent, key, layer)
    leave_fused_path(network)


def places(network: nn.Module, module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Each parent that holds the module, with the name it has there."""
    return [
        (parent, key)
        for parent in network.modules()
        for key, child in parent._modules.items()
        if child is module
    ]


def detach_made_weights(network: nn.Module) -> None:
    """Cut tensors that modules keep beside their parameters from a graph that nobody needs.

    ``torch.nn.utils.weight_norm`` leaves such a weight, and nothing that has one can be copied.
    """
    for module in network.modules():
        for name, value in list(vars(module).items()):
            if hasattr(value, "grad_fn") and value.grad_fn is not None:
                setattr(module, name, value.detach())


def leave_fused_path(network: nn.Module) -> None:
    """Keep ``nn.TransformerEncoderLayer`` on the path that calls its layers.

    In evaluation it otherwise hands its weights to one fused kernel, past any particle layer.
    """
    for module in network.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and any(
            isinstance(child, ParticleLayer) for child in module.modules()
        ):
            module.activation_relu_or_gelu = 0


@contextmanager
def undone_if_refused(network: nn.Module) -> Iterator[None]:
    """Where an error leaves the block, the network's structure is what it was at its beginning.

    Layers, flags, modes and attributes are put back; values of tensors are not looked at.
    """
    dictionaries = ("_modules", "_parameters", "_buffers")
    before = [
        (module, dict(vars(module)), {key: dict(vars(module)[key]) for key in dictionaries})
        for module in network.modules()
    ]
    flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        yield
    except BaseException:
        for module, attributes, contents in before:
            vars(module).clear()
            vars(module).update(attributes)
            for key, content in contents.items():
                vars(module)[key].clear()
                vars(module)[key].update(content)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        raise
