"""Run in a process of its own by tests/models/test_quantised.py: the libraries lie apart.

Each case prints a line of JSON: how a posterior on quantised weights compares with PEFT's networks
on the same weights, and with itself once it is merged, or saved and loaded.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import warnings
from pathlib import Path

warnings.simplefilter("ignore")  # of libraries that are not ours, as they are imported

import peft  # noqa: E402
import torch  # noqa: E402
import transformers as hf  # noqa: E402
from language_cases import small_reader  # noqa: E402

import bella  # noqa: E402
from bella.data.records import divided  # noqa: E402
from bella.models import open_task  # noqa: E402
from bella.particles.quantised import is_quantised  # noqa: E402
from bella.runs import TextConfig, export, open_run, read_config, train_text  # noqa: E402

TOKENS = torch.randint(0, 96, (3, 8), generator=torch.Generator().manual_seed(0))


def base(folder: Path) -> Path:
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=96,
        max_position_embeddings=32,
    )
    hf.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def apart(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one - two).abs().max() / two.abs().max())


def judge(kind: str, folder: Path) -> dict:
    place = base(folder / "base")

    def fresh():
        return open_task(str(place), "causal-lm", quantised=kind).network

    network = fresh()
    posterior = bella.low_rank(network, 2, 4, "auto", alpha=8, b_std=0.3).eval()
    with torch.no_grad():
        found = posterior(input_ids=TOKENS).logits
    posterior.train()  # after an evaluation, which must leave no trace
    posterior(input_ids=TOKENS).logits.square().mean().backward()
    named = posterior.stacked_parameters()
    ours = {key: p.grad.clone() for key, p in named.items()}
    posterior.eval()

    theirs, theirs_grad = [], []
    for path in bella.to_peft(posterior, folder / "out", soup="none"):
        other = peft.PeftModel.from_pretrained(fresh(), str(path), is_trainable=True).train()
        logits = other(input_ids=TOKENS).logits
        theirs.append(logits.detach())
        (logits.square().mean() / 2).backward()
        own = dict(other.named_parameters())
        theirs_grad.append(
            {k: own[f"base_model.model.{k[:-2]}.lora_{k[-1]}.default.weight"].grad for k in named}
        )
    want = torch.stack(theirs)
    gradients = [apart(ours[k][i], theirs_grad[i][k]) for i in range(2) for k in named]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        merged = posterior.particle(1)
    with torch.no_grad():
        plain = merged(input_ids=TOKENS).logits
    posterior.save(folder / "saved", check=True)
    again = bella.load(folder / "saved", fresh()).eval()
    with torch.no_grad():
        loaded = again(input_ids=TOKENS).logits
    try:
        bella.low_rank(fresh(), 2, 2, (), modules_to_save=("lm_head",))
        head = "plain"
    except bella.BellaError as error:
        head = str(error)
    other = copy.deepcopy(fresh())
    with torch.no_grad():
        for p in other.model.norm.parameters():
            p.add_(1)
    try:
        bella.load(folder / "saved", other)
        refused = ""
    except bella.BellaError as error:
        refused = str(error)
    return {
        "kind": kind,
        "layer": type(posterior.layers()["model.layers.0.self_attn.q_proj"].base.weight).__name__,
        "outputs": apart(found, want),
        "gradients": max(gradients),
        "merged": apart(plain, found[1]),
        "said": [str(w.message) for w in said if issubclass(w.category, UserWarning)],
        "loaded": apart(loaded, found),
        "factors": str(next(iter(named.values())).dtype),
        "head": head,
        "refused": refused,
    }


def fitted(kind: str, folder: Path) -> dict:
    """What ``bella fit --quantised`` leaves, and whether it is found again."""
    reader = small_reader(folder / "bert")
    rows = [
        "text,label",
        *(f"{a} {a},{b}" for a, b in (("red", 1), ("blue", 2), ("green", 3)) * 12),
    ]
    (folder / "rows.csv").write_text("\n".join(rows))
    asked = {"task": "text", "data": str(folder / "rows.csv"), "network": reader}
    asked |= {"particles": 2, "rank": 2, "epochs": 1, "batch_size": 8, "quantised": kind}
    config = read_config(None, asked, {"": TextConfig})
    told = train_text(config, folder / "run", progress=False)
    run = open_run(folder / "run", device="cpu")
    codes = [n for n, m in run.posterior.network.named_modules() if is_quantised(m)]
    half = read_config(None, asked | {"precision": "bf16"}, {"": TextConfig})
    try:
        train_text(half, folder / "half", progress=False)
        refused = ""
    except bella.BellaError as error:
        refused = str(error)
    try:
        export(run, folder / "plain")
        unwritten = ""
    except bella.BellaError as error:
        unwritten = str(error)
    open_run(folder / ("run" if refused else "half"), device="cpu")
    again = run.figures(run.tokenised(tested(run, folder / "rows.csv"), labelled=True), {})
    return {
        "fitted": kind,
        "codes": len(codes),
        "fit_head": any("classifier" in name for name in codes),
        "found_again": abs(told["nll"] - again["nll"]),
        "fit_refused": refused,
        "unwritten": unwritten,
        "adapters": len(bella.to_peft(run.posterior, folder / "adapters", check=True)),
    }


def tested(run, path):
    """The rows that a run of seed 0 was tested on."""
    read = run.read(path)
    labels = run.task.classes_of(read["train"], run.asked.columns, run.asked.facts)
    return divided(read, labels, 0)["test"]


if __name__ == "__main__":
    for kind in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as place:
            print("JSON", json.dumps(judge(kind, Path(place))))
        with tempfile.TemporaryDirectory() as place:
            print("JSON", json.dumps(fitted(kind, Path(place))))
