"""A training step of five particles on CLIP ViT-B/32 against other ways, and against its floor.

    python benchmarks/step.py [--quick] [--device cuda] [--autocast]

The floor is what nobody can avoid: the operations of one forward pass of the base, twice a particle
(forward, and backward without weight gradients), at the rate of a plain square product that is
timed in the same rounds.
"""

from __future__ import annotations

import statistics
import warnings

import torch
from torch import Tensor, nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from alternatives import Sequential, Stacked, Together
from networks import VIT
from page import TARGETED, Options, Table, against, main
from timing import Product, paired, ratios, spread, square, timed

N = 5

KINDS = {
    "coupling": ("coupling",),
    "optimiser": ("optimiser",),
    "products with the base's weights": ("aten::addmm", "aten::mm", "aten::mkldnn_convolution"),
    "activation function": ("aten::sigmoid", "aten::sigmoid_backward", "aten::mul"),
    "attention": (
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
    ),
    "layer norm": ("aten::native_layer_norm", "aten::native_layer_norm_backward"),
    "low-rank products": ("LowRankProduct", "LowRankProductBackward"),
}
"""The parts of a step by operations of the profile; what is inside one of them belongs to it, and
where two fit, to the first."""


def counted(network: nn.Module, x: Tensor) -> tuple[float, float]:
    """One forward pass of the base: operations, and bytes that its modules write."""
    written = []

    def note(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        written.append(output.numel() * output.element_size())

    leaves = [module for module in network.modules() if not list(module.children())]
    handles = [leaf.register_forward_hook(note) for leaf in leaves]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x)
    for handle in handles:
        handle.remove()
    return counter.get_total_flops(), sum(written)


def batch_of(batch: int, options: Options) -> tuple[dict, list[list[str]]]:
    """Timings at one batch size, and the rows on the floor."""
    device = options.device
    together, one = (Together(VIT, n, batch, options) for n in (N, 1))
    peft, stacked = (kind(VIT, N, batch, options) for kind in (Sequential, Stacked))
    machine = square(device, options.dtype)
    rows = N * batch * 50  # 49 patches and the class token
    shapes = [
        Product(rows, *shape, device, options.dtype)
        for shape in ((768, 3072), (3072, 768), (768, 768))
    ]
    counts = (1, 1, 4)  # fc1, fc2, and four projections of attention
    there, here = torch.randn(2, 2**25, device=device)
    copying = []
    seconds = paired(
        f"step, batch {batch}",
        {
            "bella": together.step,
            "n single": lambda: [one.step() for _ in range(N)],
            "PEFT": peft.step,
            "vmap": stacked.step,
        },
        options.until(),
        beside={
            "products": lambda: [product() for product in (machine, *shapes)],
            "copy": lambda: copying.append(timed(lambda: there.copy_(here))),
        },
    )
    operations, written = counted(VIT.make().to(device), one.x)
    weights = sum(p.numel() * p.element_size() for p in VIT.make().parameters())
    # Every activation and its gradient is written once and read once; the weights are read twice.
    traffic = 4 * N * written + 2 * weights
    bandwidth = 2 * here.numel() * here.element_size() / min(copying)
    floor = 2 * N * operations / machine.rate
    shaped = list(zip(counts, shapes, strict=True))
    alike = sum(c * p.operations for c, p in shaped) / sum(c * p.best for c, p in shaped)
    moving = traffic / bandwidth
    ours = seconds["bella"]
    facts = [
        ["step, seconds", spread(ours, 2)],
        ["floor, seconds", f"{floor:.2f}"],
        ["square product, GFLOP/s", f"{machine.rate / 1e9:,.0f}"],
        ["products of the network's shapes, GFLOP/s", f"{alike / 1e9:,.0f}"],
        ["bytes that must move at least, seconds", f"{moving:.2f}"],
        ["step / floor", spread([s / floor for s in ours], 2)],
        ["step / (floor + bytes)", spread([s / (floor + moving) for s in ours], 2)],
    ]
    seconds["floor"] = [floor] * len(ours)
    seconds["rate"] = [machine.rate]
    return seconds, facts


def kind_of(event: FunctionEvent | None) -> str:
    """Which part of a step an operation belongs to."""
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    found = (kind for kind, known in KINDS.items() if not set(known).isdisjoint(names))
    return next(found, "other")


def shares(batch: int, options: Options) -> Table:
    """Where a step's time goes."""
    work = Together(VIT, N, batch, options)
    work.step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        with record_function("step"):
            work.gradients()
        with record_function("coupling"):
            work.move.step()
        with record_function("optimiser"):
            work.optimizer.step()
            work.optimizer.zero_grad()
    spent: dict[str, float] = {}
    for event in profiler.events():
        kind = kind_of(event)
        spent[kind] = spent.get(kind, 0.0) + event.self_cpu_time_total
    total = sum(spent.values())
    ordered = sorted(spent.items(), key=lambda item: -item[1])
    return Table(
        f"Where the time of a step goes (n={N}, batch {batch}, torch.profiler).",
        ("part", "share"),
        [[kind, f"{time / total:.1%}"] for kind, time in ordered],
    )


def measure(options: Options) -> tuple[float, list[Table]]:
    """All of it."""
    warnings.simplefilter("ignore")  # vmap says where it loops
    batch = 2 if options.quick else 8
    eight, facts = batch_of(batch, options)
    single, more = batch_of(1, options)
    ours = eight["bella"]
    comparisons = [
        (f"step / 5 single steps, batch {batch}", ratios(ours, eight["n single"]), 1.0),
        ("step / 5 single steps, batch 1", ratios(single["bella"], single["n single"]), 0.8),
        (f"step / 5 sequential PEFT steps, batch {batch}", ratios(ours, eight["PEFT"]), 0.95),
        (f"step / vmap, batch {batch}", ratios(ours, eight["vmap"]), 0.95),
        (f"step / floor, batch {batch}", ratios(ours, eight["floor"]), 1.25),
    ]
    tables = [
        Table(
            f"{VIT.title}, 12 blocks, n={N}.",
            TARGETED,
            [
                against(name, spread(found), statistics.median(found), target)
                for name, found, target in comparisons
            ],
        ),
        Table(
            "The floor.",
            ("", f"batch {batch}", "batch 1"),
            [[name, a, b] for (name, a), (_, b) in zip(facts, more, strict=True)],
        ),
    ]
    if options.device == "cpu":
        tables.append(shares(batch, options))
    return eight["rate"][0], tables


if __name__ == "__main__":
    main("step", __doc__, measure)
