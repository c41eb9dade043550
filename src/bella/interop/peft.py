"""Particles as PEFT's adapters, and PEFT's adapters as particles.

A particle's change of a layer, s B_i A_i, is what LoRA calls an adapter. The soup, the mean of the
changes, is an adapter of rank n r: its A stacks all A_i, its B all B_i, and its scale is s / n.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bella.errors import BellaError, nearest
from bella.files import shown, whole_folder
from bella.interop import adapters
from bella.interop.adapters import Adapter
from bella.interop.hub import local_folder
from bella.particles import targets
from bella.particles.copies import Copies
from bella.particles.planner import BatchAxes, Folding
from bella.particles.quantised import refuse_whole
from bella.particles.surgery import undone_if_refused
from bella.posterior import Posterior
from bella.posteriors.low_rank.convolution import LowRankConv
from bella.posteriors.low_rank.embedding import LowRankEmbedding
from bella.posteriors.low_rank.layers import LowRankLayer, LowRankLinear
from bella.posteriors.low_rank.posterior import LowRankPosterior, low_rank

Soup = Literal["adapter", "merged", "none"]
SOUP = "soup"


def to_peft(
    posterior: Posterior,
    folder: str | Path,
    *,
    soup: Soup = "adapter",
    base: str | None = None,
    dtype: torch.dtype | None = None,
    check: bool = False,
) -> list[Path]:
    """Write every particle as a PEFT adapter, and the soup beside them.

    ``peft.PeftModel.from_pretrained(network, folder / "particle-0")`` then computes what particle 0
    does; heads are ``modules_to_save``. All layers of an adapter have one alpha / rank, so that
    servers that know no ``alpha_pattern`` compute the same.

    Args:
        posterior: low-rank particles.
        folder: new or empty; gets ``particle-0``, ``particle-1``, ... and ``soup``.
        soup: the mean of the changes as an ``adapter`` of rank n r, ``merged`` into a plain
            network, or ``none``.
        base: name of the network that the adapters belong to; what the network itself says if not
            given.
        dtype: store floating tensors as this, e.g. ``torch.bfloat16``.
        check: read every adapter back and compare it with the particles, bit for bit.

    Returns:
        The folders of the adapters, in the particles' order, and the soup's.

    Raises:
        BellaError: another kind of posterior, parameters of the base that trained too, names that
            PEFT would take for other layers', a folder that holds something, a merged soup of a
            quantised base, or (``check``) files that are not what was written.
    """
    if soup not in ("adapter", "merged", "none"):
        raise BellaError(f"soup={soup!r} is unknown: choose 'adapter', 'merged' or 'none'.")
    if not isinstance(posterior, LowRankPosterior):
        raise BellaError(
            f"Adapters hold low-rank changes, and these particles are of kind {posterior.kind!r}: "
            "export posterior.particle(i) as a plain network instead."
        )
    if outside := posterior.trained_outside():
        raise BellaError(
            f"Parameters of the base trained too ({', '.join(list(outside)[:3])}), which no "
            "adapter holds: export posterior.particle(i) as a plain network instead."
        )
    if soup == "merged":
        refuse_whole(posterior.network)
    members: dict[str, int | None] = {f"particle-{i}": i for i in range(posterior.particles)}
    if soup == "adapter":
        members[SOUP] = None
    folder = Path(folder)
    with whole_folder(folder) as unfinished:
        for name, particle in members.items():
            tensors = {
                key: value.to(dtype if value.is_floating_point() else value.dtype)
                for key, value in tensors_of(posterior, particle).items()
            }
            adapters.write(unfinished / name, config_of(posterior, particle, base), tensors)
            if check:
                adapters.check_written(unfinished / name, tensors)
        if soup == "merged":
            write_plain(posterior.soup(), unfinished / SOUP)
    return [folder / name for name in members] + [folder / SOUP] * (soup == "merged")


def from_peft(
    network: nn.Module,
    folders: Sequence[str | Path],
    *,
    modules_to_save: targets.Targets = (),
    shared_prefix: bool | str = True,
    folding: Folding = "auto",
    batch_axes: BatchAxes | None = None,
    seed: int = 0,
) -> LowRankPosterior:
    """A posterior whose particles start as LoRA adapters that are there.

    Layers and heads are those of the adapters together. Where an adapter has a lower rank than
    another at a layer, or no change of it, its particle gets further rows of A that start as those
    of `bella.low_rank` and columns of B that are 0: it computes what the adapter does, and may use
    the whole rank when it trains on. Where scales differ, B carries the difference. A warning says
    what was filled up.

    Args:
        network: the network that the adapters were trained on; adapted in place, or left as it was
            where they are refused.
        folders: of one adapter each, or names on the hub; particle i starts as the i-th.
        modules_to_save: further heads, of which no adapter has a copy.
        shared_prefix: see `bella.low_rank`.
        folding: see `bella.low_rank`.
        batch_axes: see `bella.low_rank`.
        seed: of what is filled up.

    Raises:
        BellaError: no adapter; one that is damaged, of another network, or more than LoRA (DoRA,
            biases, token adapters and what is unknown here are refused by name).
        MissingExtraError: a name on the hub, and huggingface_hub is not installed.
    """
    if isinstance(folders, str | Path) or not folders:
        raise BellaError("Give from_peft a list of adapter folders, one for each particle.")
    found = [adapters.read(local_folder(folder, "adapter_*")) for folder in folders]
    modules = {name: module for name, module in network.named_modules() if name}
    wanted = {name for adapter in found for name in adapter.layers}
    for adapter in found:
        check_names(adapter, modules)
    names = [name for name in modules if name in wanted]
    copied = [heads_of(adapter, network) for adapter in found]
    known = {name for own in copied for name in own}
    heads = [name for name in modules if name in known]
    if not names and not heads:
        raise BellaError(f"{found[0].folder} holds an adapter without any tensor.")

    ranks = {n: max(len(a.layers[n].A) for a in found if n in a.layers) for n in names}
    scales = {n: next(a.layers[n].scale for a in found if n in a.layers) for n in names}
    rank, scale = most_common(ranks.values(), 1), most_common(scales.values(), 1.0)
    others = {targets.whole(n): r for n, r in ranks.items() if r != rank}
    unlike = {
        targets.whole(n): scales[n] * ranks[n]
        for n in names
        if (scales[n], ranks[n]) != (scale, rank)
    }
    further = targets.find(network, modules_to_save, what="modules_to_save")
    heads += [name for name in further if name not in heads]
    with undone_if_refused(network):
        posterior = low_rank(
            network,
            len(found),
            rank,
            targets.exactly(network, names),
            alpha=scale * rank,
            rank_pattern=others,
            alpha_pattern=unlike,
            modules_to_save=targets.exactly(network, heads),
            shared_prefix=shared_prefix,
            folding=folding,
            batch_axes=batch_axes,
            seed=seed,
        )
        filled = [
            said
            for particle, (adapter, own) in enumerate(zip(found, copied, strict=True))
            for said in fill(posterior, particle, adapter, own, known)
        ]
    if filled:
        more = f" and {len(filled) - 4} more" if len(filled) > 4 else ""
        warnings.warn(
            f"The adapters are not alike, and were filled up: {'; '.join(filled[:4])}{more}.",
            stacklevel=2,
        )
    return posterior


# ---------------------------------------------------------------- from a posterior


def tensors_of(posterior: Posterior, particle: int | None) -> dict[str, Tensor]:
    """An adapter's tensors by their names in the network; ``None`` for the soup's."""
    scale, found = scale_of(posterior), {}
    for name, layer in posterior.layers().items():
        if isinstance(layer, Copies):
            state = layer.merged(particle).state_dict()
            found.update({f"{name}.{key}": value for key, value in state.items()})
            continue
        assert isinstance(layer, LowRankLayer)
        A, B = layer.A.detach(), layer.B.detach()
        if particle is None:
            A, B = A.flatten(0, 1), B.transpose(0, 1).flatten(1)
        else:
            A, B = A[particle], B[particle]
        if layer.scale != scale:
            B = B * (layer.scale / scale)
        for suffix, value in shaped(layer, A, B).items():
            found[f"{name}.{suffix}"] = value.clone()
    return found


def shaped(layer: LowRankLayer, A: Tensor, B: Tensor) -> dict[str, Tensor]:
    """A (rank, in) and B (out, rank) with PEFT's names and shapes for this kind of layer."""
    if isinstance(layer, LowRankEmbedding):
        return {"lora_embedding_A": A, "lora_embedding_B": B}
    if isinstance(layer, LowRankConv):
        kernel = layer.weight_shape[1:]
        return {
            "lora_A.weight": A.reshape(len(A), *kernel),
            "lora_B.weight": B.reshape(*B.shape, *(1 for _ in kernel[1:])),
        }
    return {"lora_A.weight": A, "lora_B.weight": B}


def scale_of(posterior: Posterior) -> float:
    """The scale that most layers have: that of all layers of an adapter."""
    layers = posterior.layers().values()
    return most_common((x.scale for x in layers if isinstance(x, LowRankLayer)), 1.0)


def config_of(posterior: Posterior, particle: int | None, base: str | None) -> dict[str, Any]:
    """An adapter's ``adapter_config.json``: fields of ``peft.LoraConfig``."""
    network = posterior.network
    layers = {n: x for n, x in posterior.layers().items() if isinstance(x, LowRankLayer)}
    heads = [name for name, layer in posterior.layers().items() if isinstance(layer, Copies)]
    times = posterior.particles if particle is None else 1
    ranks = {name: layer.A.shape[1] * times for name, layer in layers.items()}
    rank, scale = most_common(ranks.values(), 1), scale_of(posterior) / times
    # PEFT takes the first key that a name ends with: longer names go first.
    unlike = sorted((n for n in ranks if ranks[n] != rank), key=len, reverse=True)
    names = module_names(posterior)
    kind = type(network)
    causal = kind.__name__.endswith("ForCausalLM")
    known = base or getattr(network, "name_or_path", "") or ""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if causal else None,
        "auto_mapping": None
        if causal
        else {"base_model_class": kind.__name__, "parent_library": kind.__module__},
        "base_model_name_or_path": known if isinstance(known, str) else "",
        "inference_mode": True,
        "r": rank,
        "lora_alpha": whole_if_it_is(scale * rank),
        "rank_pattern": {re.escape(n): ranks[n] for n in unlike},
        "alpha_pattern": {re.escape(n): whole_if_it_is(scale * ranks[n]) for n in unlike},
        "target_modules": target_modules(names, list(layers)),
        "modules_to_save": heads_for_peft(names, heads) or None,
        "fan_in_fan_out": any(
            isinstance(x, LowRankLinear) and x.transposed for x in layers.values()
        ),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }


def whole_if_it_is(number: float) -> float:
    """The number, an integer where it is one but for rounding: some servers expect that."""
    return round(number) if abs(number - round(number)) < 1e-9 * abs(number) else number


def module_names(posterior: Posterior) -> list[str]:
    """Names of the modules of the network as it was before it was adapted."""
    layers = posterior.layers()
    found = []
    for name, _ in posterior.network.named_modules():
        if not any(name.startswith(f"{layer}.") for layer in layers):
            found.append(name)
    for name, layer in layers.items():
        if isinstance(layer, Copies):
            found += [f"{name}.{inner}" for inner, _ in layer.template.named_modules() if inner]
    return [name for name in found if name]


def target_modules(names: Sequence[str], wanted: Sequence[str]) -> list[str] | str:
    """What makes PEFT adapt these layers and no others: ends of names, or an expression."""
    ends = sorted({name.rpartition(".")[2] for name in wanted})
    meant = {n for n in names if n in ends or any(n.endswith(f".{end}") for end in ends)}
    return ends if meant == set(wanted) else "|".join(map(re.escape, wanted))


def heads_for_peft(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """What makes PEFT copy these modules and no others.

    Raises:
        BellaError: PEFT, which looks at the ends of names, would copy another as well.
    """
    ends = sorted({name.rpartition(".")[2] for name in wanted})
    for choice in (ends, list(wanted)):
        if adapters.matching(names, choice) == set(wanted):
            return choice
    other = next(iter(adapters.matching(names, wanted) - set(wanted)))
    raise BellaError(
        f"PEFT takes modules_to_save by the ends of names, and would copy {other!r} as well as "
        f"{', '.join(map(repr, wanted))}: export posterior.particle(i) as a plain network instead."
    )


def write_plain(network: nn.Module, folder: Path) -> None:
    """A plain network: by its own ``save_pretrained``, or its weights as safetensors."""
    if callable(save := getattr(network, "save_pretrained", None)):
        save(folder)
        return
    folder.mkdir()
    state = {name: value.contiguous().clone() for name, value in network.state_dict().items()}
    adapters.save_file(state, folder / "model.safetensors")


def most_common(values: Any, default: Any) -> Any:
    """The value that most have, the first of equals."""
    counted = Counter(values).most_common(1)
    return counted[0][0] if counted else default


# ---------------------------------------------------------------- from adapters


def check_names(adapter: Adapter, modules: Mapping[str, nn.Module]) -> None:
    """Refuse an adapter with changes of layers that the network has not.

    Raises:
        BellaError: it has.
    """
    for name in adapter.layers:
        if name not in modules:
            base = getattr(adapter.config, "base_model_name_or_path", None)
            raise BellaError(
                f"{adapter.folder} changes {shown(name)}, which this network has not: near names "
                f"are {nearest(name, modules)}."
                + (f" It was trained on {shown(base)}." if base else "")
            )


def heads_of(adapter: Adapter, network: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The modules that an adapter holds whole: their tensors by the modules' names.

    Raises:
        BellaError: it holds another tensor that is not the network's own, as the embeddings of an
            extended vocabulary are.
    """
    names = [name for name, _ in network.named_modules() if name]
    heads = sorted(adapters.matching(names, adapter.config.modules_to_save or ()), key=len)
    own = network.state_dict()
    found: dict[str, dict[str, Tensor]] = {}
    for path, value in adapter.others.items():
        head = next((name for name in heads if path.startswith(f"{name}.")), None)
        if head is not None:
            found.setdefault(head, {})[path.removeprefix(f"{head}.")] = value
            continue
        # PEFT saves embeddings that it adapts as they were, beside the factors.
        known = own.get(path.replace(".base_layer.", "."))
        if known is None or known.shape != value.shape or not torch.equal(value.to(known), known):
            raise BellaError(
                f"{adapter.folder} holds {shown(path)}, which is neither a low-rank change nor in "
                "modules_to_save, and not what this network has: an adapter with further tokens or "
                "layers of its own cannot start a particle."
            )
    for head, state in found.items():
        wanted = {
            key: tuple(x.shape) for key, x in network.get_submodule(head).state_dict().items()
        }
        if {key: tuple(x.shape) for key, x in state.items()} != wanted:
            raise BellaError(
                f"{adapter.folder} holds another {head!r} than this network has: open the network "
                "with the same number of classes."
            )
    return found


@torch.no_grad()
def fill(
    posterior: LowRankPosterior,
    particle: int,
    adapter: Adapter,
    heads: Mapping[str, Mapping[str, Tensor]],
    known: Collection[str],
) -> list[str]:
    """Give one particle an adapter's numbers.

    Args:
        posterior: whose particle.
        particle: which.
        adapter: its low-rank changes.
        heads: its whole modules, see `heads_of`.
        known: names of the heads that some adapter has.

    Returns:
        What the adapter lacks, in words.

    Raises:
        BellaError: the adapter's layers have other shapes.
    """
    lacks = []
    for name, layer in posterior.layers().items():
        if isinstance(layer, Copies):
            own = layer.state_of(particle)
            for key, value in heads.get(name, {}).items():
                own[key].copy_(value)
            if name in known and name not in heads:
                lacks.append(f"{adapter.folder} has no {name!r} of its own")
            continue
        assert isinstance(layer, LowRankLayer)
        if name not in adapter.layers:
            lacks.append(f"{adapter.folder} does not change {name!r}")
            continue
        given = adapter.layers[name]
        A, B = given.A.flatten(1), given.B.flatten(1)
        rank, highest = len(A), layer.A.shape[1]
        if A.shape[1] != layer.A.shape[2] or len(B) != layer.B.shape[1]:
            raise BellaError(
                f"{adapter.folder} changes {name!r} by {tuple(given.B.shape)} times "
                f"{tuple(given.A.shape)}, and the layer's weight is {tuple(layer.weight_shape)}."
            )
        layer.A[particle, :rank].copy_(A)
        layer.B[particle, :, :rank].copy_(B.to(layer.B) * (given.scale / layer.scale))
        if rank < highest:
            lacks.append(f"{adapter.folder} has rank {rank} of {highest} at {name!r}")
    return lacks
