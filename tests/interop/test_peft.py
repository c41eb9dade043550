"""PEFT's own library reads what we write, and writes what we read."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from zoo import ZOO
from zoo_compare import outputs_differ
from zoo_oracle import leaves

import bella
from bella.interop import adapters


def quietly(function, *args, **kwargs):
    """PEFT tells of what it sets by itself, and looks for a hub."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


def load(base: nn.Module, folder: Path) -> nn.Module:
    return quietly(peft.PeftModel.from_pretrained, copy.deepcopy(base), str(folder)).eval()


def run(network: nn.Module, inputs) -> dict[str, torch.Tensor]:
    args, kwargs = copy.deepcopy(inputs)
    with torch.no_grad():
        return dict(leaves(network(*args, **kwargs)))


def stirred(posterior: bella.Posterior) -> bella.Posterior:
    """Heads that differ between the particles too."""
    torch.manual_seed(3)
    with torch.no_grad():
        for p in posterior.stacked_parameters().values():
            p.add_(0.1 * torch.randn_like(p))
    return posterior.eval()


def numbered() -> nn.Sequential:
    """Names that end as others' do: PEFT's "0" would mean "2.0" as well."""
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), inner, nn.Linear(6, 3))


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(12, 6, padding_idx=0)
        self.conv = nn.Conv1d(6, 8, 3, padding=1)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens):
        h = self.norm(self.conv(self.table(tokens).mT))
        return self.head(torch.tanh(h).mean(-1))


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    return Convolutions().eval()


TOKENS = torch.randint(0, 12, (3, 5), generator=torch.Generator().manual_seed(1))
OWN = {
    "numbered": (numbered, ((torch.randn(3, 4),), {})),
    "convolutions": (convolutions, ((TOKENS,), {})),
}
CASES = [
    ("vit", ("q_proj", "v_proj", "fc1"), ("classifier",)),
    ("bert", ("query", "value"), ("classifier",)),
    ("gpt2", ("c_attn", "c_fc"), ()),
    ("llama", ("q_proj", "down_proj"), ()),
    ("t5", ("q", "wo"), ()),
    ("convnext", ("pwconv1", "pwconv2"), ("classifier",)),
    ("llava", (r".*language_model.*\.q_proj",), ()),
    ("numbered", ("0",), ("3",)),
    ("numbered", (r"2\.0",), ()),
    ("convolutions", ("table", "conv"), ("norm", "head")),
]


def case(name: str):
    """A network and inputs for three examples."""
    if name in OWN:
        build, inputs = OWN[name]
        return build().eval(), inputs
    return ZOO[name].network(name), ZOO[name].inputs(3)


@pytest.mark.parametrize(("name", "targets", "heads"), CASES)
def test_peft_loads_every_particle_and_the_soup_and_computes_the_same(
    name, targets, heads, tmp_path
):
    base, inputs = case(name)
    posterior = stirred(
        bella.low_rank(copy.deepcopy(base), 3, 2, targets, alpha=3, modules_to_save=heads)
    )
    folders = bella.to_peft(posterior, tmp_path / "out", check=True)
    assert [folder.name for folder in folders] == ["particle-0", "particle-1", "particle-2", "soup"]
    found = run(posterior, inputs)
    for i, folder in enumerate(folders[:3]):
        theirs = run(load(base, folder), inputs)
        assert not outputs_differ({k: v[i] for k, v in found.items()}, theirs)
    theirs = run(load(base, folders[3]), inputs)
    assert not outputs_differ(run(posterior.soup(), inputs), theirs)
    assert json.loads((folders[3] / adapters.CONFIG).read_text())["r"] == 6

    again = bella.from_peft(copy.deepcopy(base), folders[:3]).eval()
    assert not outputs_differ(run(again, inputs), found)
    for key, value in posterior.stacked_parameters().items():
        assert torch.equal(again.stacked_parameters()[key], value), key


def test_layers_of_other_rank_and_scale_keep_theirs_and_share_one_alpha_over_rank(tmp_path):
    """What servers that know no alpha_pattern compute is what PEFT computes."""
    base, inputs = case("llama")
    posterior = stirred(
        bella.low_rank(
            copy.deepcopy(base),
            2,
            4,
            ("q_proj", "v_proj", "o_proj"),
            alpha=8,
            rslora=True,
            rank_pattern={"v_proj": 2, r"layers\.1\..*o_proj": 3},
            alpha_pattern={"q_proj": 5.5},
        )
    )
    shapes = {name: layer.A.shape[1] for name, layer in posterior.layers().items()}
    assert shapes == {
        f"model.layers.{i}.self_attn.{name}": rank
        for i in (0, 1)
        for name, rank in {"q_proj": 4, "v_proj": 2, "o_proj": 3 if i else 4}.items()
    }
    folders = bella.to_peft(posterior, tmp_path / "out")
    found = run(posterior, inputs)
    for i, folder in enumerate(folders[:2]):
        assert not outputs_differ(
            {k: v[i] for k, v in found.items()}, run(load(base, folder), inputs)
        )
        config = json.loads((folder / adapters.CONFIG).read_text())
        ratio = config["lora_alpha"] / config["r"]
        for key, rank in config["rank_pattern"].items():
            assert config["alpha_pattern"][key] / rank == pytest.approx(ratio, rel=1e-12)
    assert not outputs_differ(run(posterior.soup(), inputs), run(load(base, folders[2]), inputs))


def made_by_peft(base: nn.Module, folder: Path, seed: int, **options) -> tuple[Path, nn.Module]:
    """An adapter with random factors, saved by PEFT, and the network that it makes."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(init_lora_weights=False, **options)
    network = quietly(peft.get_peft_model, copy.deepcopy(base), config)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if "modules_to_save" in name:
                p.add_(0.3 * torch.randn_like(p))
    quietly(network.save_pretrained, str(folder))
    return folder, network.eval()


def test_unequal_adapters_of_peft_become_particles_that_compute_the_same(tmp_path):
    base, inputs = case("bert")
    made = [
        made_by_peft(base, tmp_path / "a", 0, r=4, lora_alpha=8, target_modules=["query", "value"]),
        made_by_peft(
            base,
            tmp_path / "b",
            1,
            r=8,
            lora_alpha=4,
            use_rslora=True,
            target_modules=["query", "key"],
            modules_to_save=["classifier"],
        ),
        made_by_peft(
            base,
            tmp_path / "c",
            2,
            r=2,
            target_modules=["query", "value"],
            rank_pattern={"value": 3, r"layer\.1.*query": 5},
            alpha_pattern={"query": 7},
        ),
    ]
    network = copy.deepcopy(base)
    with pytest.warns(UserWarning, match="filled up.*has rank 4 of 8 at 'bert.encoder.layer.0"):
        posterior = bella.from_peft(network, [folder for folder, _ in made]).eval()
    found = run(posterior, inputs)
    for i, (_, theirs) in enumerate(made):
        assert not outputs_differ({k: v[i] for k, v in found.items()}, run(theirs, inputs))

    args, kwargs = inputs
    posterior(*args, **kwargs).logits.square().sum().backward()
    layer = posterior.layers()["bert.encoder.layer.0.attention.self.value"]
    assert (layer.B.grad[1] != 0).any()  # adapter b had no change here, and may have one now
    posterior.save(tmp_path / "saved", check=True)
    again = bella.load(tmp_path / "saved", copy.deepcopy(base)).eval()
    assert not outputs_differ(run(again, inputs), found)


def test_an_embedding_that_peft_saves_beside_its_factors_is_read(tmp_path):
    base, inputs = case("llama-sequence")
    folder, theirs = made_by_peft(base, tmp_path / "a", 0, r=4, target_modules=["embed_tokens"])
    assert any("base_layer" in key for key in load_file(folder / adapters.WEIGHTS))
    posterior = bella.from_peft(copy.deepcopy(base), [folder]).eval()
    found = {key: value[0] for key, value in run(posterior, inputs).items()}
    assert not outputs_differ(found, run(theirs, inputs))

    tensors = load_file(folder / adapters.WEIGHTS)
    changed = {k: v + 1 if "base_layer" in k else v for k, v in tensors.items()}
    save_file(changed, folder / adapters.WEIGHTS)
    with pytest.raises(bella.BellaError, match=r"embed_tokens.*further tokens"):
        bella.from_peft(copy.deepcopy(base), [folder])


@pytest.fixture
def adapter(tmp_path):
    """A plain adapter of the vision transformer, and that network."""
    base, _ = case("vit")
    folder, _ = made_by_peft(
        base,
        tmp_path / "adapter",
        0,
        r=4,
        target_modules=["q_proj"],
        modules_to_save=["classifier"],
    )
    return folder, base


def rewrite(folder: Path, **changes) -> None:
    path = folder / adapters.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "use_dora=True .*DoRA"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"target_parameters": ["experts.w"]}, "target_parameters.*experts"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"use_tomorrow": {"x": 1}}, "use_tomorrow.*does not know"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4.*changed the base"),
        ({"peft_type": "IA3"}, "'IA3'"),
        ({"r": 3}, "settings say rank 3"),
        ({"r": "x"}, "r='x'"),
        ({"modules_to_save": []}, "classifier.*neither"),
    ],
)
def test_what_is_more_than_lora_is_refused_by_name(adapter, changes, said):
    folder, base = adapter
    rewrite(folder, **changes)
    network = copy.deepcopy(base)
    with pytest.raises(bella.BellaError, match=said) as caught:
        bella.from_peft(network, [folder])
    assert "\n" not in str(caught.value)
    assert not isinstance(network.classifier, bella.particles.copies.Copies)
    network.load_state_dict(base.state_dict())  # its layers are as they were


def test_real_adapters_of_other_kinds_are_refused(tmp_path):
    base, _ = case("bert")
    dora, _ = made_by_peft(base, tmp_path / "dora", 0, target_modules=["query"], use_dora=True)
    with pytest.raises(bella.BellaError, match="use_dora"):
        bella.from_peft(base, [dora])
    tokens, _ = made_by_peft(
        base,
        tmp_path / "tokens",
        0,
        target_modules=["query"],
        trainable_token_indices={"word_embeddings": [1, 2]},
    )
    with pytest.raises(bella.BellaError, match="trainable_token_indices"):
        bella.from_peft(base, [tokens])
    ia3 = quietly(
        peft.get_peft_model,
        copy.deepcopy(base),
        peft.IA3Config(target_modules=["query"], feedforward_modules=[]),
    )
    quietly(ia3.save_pretrained, str(tmp_path / "ia3"))
    with pytest.raises(bella.BellaError, match="IA3"):
        bella.from_peft(base, [tmp_path / "ia3"])


def test_adapters_of_another_network_are_refused_and_leave_it_as_it_was(adapter, tmp_path):
    folder, base = adapter
    bert, _ = case("bert")
    with pytest.raises(bella.BellaError, match=r"q_proj.*which this network has not: near names"):
        bella.from_peft(bert, [folder])
    wider = copy.deepcopy(base)
    wider.classifier = nn.Linear(16, 5)
    with pytest.raises(bella.BellaError, match=r"another 'classifier'.*number of classes"):
        bella.from_peft(wider, [folder])
    other = copy.deepcopy(base)
    for layer in other.vit.layers:
        layer.attention.q_proj = nn.Linear(16, 8)
    with pytest.raises(bella.BellaError, match="the layer's weight is \\(8, 16\\)"):
        bella.from_peft(other, [folder])
    assert type(other.vit.layers[0].attention.q_proj) is nn.Linear
    with pytest.raises(bella.BellaError, match="a list of adapter folders"):
        bella.from_peft(base, folder)
    with pytest.raises(bella.BellaError, match=r"adapter_config.json is missing"):
        bella.from_peft(base, [tmp_path / "nothing"])


def test_a_pickle_may_hold_tensors_and_nothing_else(adapter, tmp_path):
    folder, base = adapter
    tensors = load_file(folder / adapters.WEIGHTS)
    (folder / adapters.WEIGHTS).unlink()
    torch.save(tensors, folder / adapters.PICKLED)
    assert bella.from_peft(copy.deepcopy(base), [folder]).particles == 1

    mark = tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return open, (str(mark), "w")

    (folder / adapters.PICKLED).write_bytes(pickle.dumps({"x": Evil()}))
    with pytest.raises(bella.BellaError, match="cannot be read"):
        bella.from_peft(copy.deepcopy(base), [folder])
    assert not mark.exists()
    (folder / adapters.WEIGHTS).write_bytes(b"\x00" * 40)
    with pytest.raises(bella.BellaError, match="cannot be read"):
        bella.from_peft(copy.deepcopy(base), [folder])


def test_what_no_adapter_can_hold_is_refused(tmp_path):
    base, _ = case("vit")
    with pytest.raises(bella.BellaError, match="kind 'full'"):
        bella.to_peft(bella.full(copy.deepcopy(base), 2), tmp_path / "full")
    posterior = bella.low_rank(copy.deepcopy(base), 2, 2, ("q_proj",))
    posterior.unfreeze(["classifier.bias"])
    with pytest.raises(bella.BellaError, match=r"classifier\.bias"):
        bella.to_peft(posterior, tmp_path / "unfrozen")
    posterior = bella.low_rank(numbered(), 2, 2, (r"2\.2",), modules_to_save=(r"(?:0)",))
    with pytest.raises(bella.BellaError, match=r"'2\.0' as well as '0'"):
        bella.to_peft(posterior, tmp_path / "ends")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "x").touch()
    posterior = bella.low_rank(numbered(), 2, 2, ("0",))
    with pytest.raises(bella.BellaError, match="holds something"):
        bella.to_peft(posterior, tmp_path / "used")


def test_the_soup_may_be_merged(tmp_path):
    from transformers import ViTForImageClassification

    base, inputs = case("vit")
    posterior = stirred(
        bella.low_rank(copy.deepcopy(base), 2, 2, ("q_proj",), modules_to_save=("classifier",))
    )
    folders = bella.to_peft(posterior, tmp_path / "out", soup="merged")
    plain = ViTForImageClassification.from_pretrained(folders[2]).eval()
    assert not outputs_differ(run(plain, inputs), run(posterior.soup(), inputs))
    own = bella.low_rank(numbered(), 2, 2, ("0",))
    folders = bella.to_peft(own, tmp_path / "own", soup="merged")
    assert load_file(folders[2] / "model.safetensors").keys() == numbered().state_dict().keys()
    assert len(bella.to_peft(own, tmp_path / "none", soup="none")) == 2
    with pytest.raises(bella.BellaError, match="soup='mix'"):
        bella.to_peft(own, tmp_path / "mix", soup="mix")


def test_a_check_at_save_time_sees_what_the_disk_did(tmp_path, monkeypatch):
    posterior = bella.low_rank(numbered(), 2, 2, ("0",))

    def lossy(tensors, path, metadata=None):
        save_file({k: v.bfloat16().float() for k, v in tensors.items()}, path, metadata=metadata)

    monkeypatch.setattr(adapters, "save_file", lossy)
    bella.to_peft(posterior, tmp_path / "unseen")
    with pytest.raises(bella.BellaError, match=r"is not as it was written: .*lora_A"):
        bella.to_peft(posterior, tmp_path / "seen", check=True)
    assert not (tmp_path / "seen").exists()


def test_a_low_rank_pattern_that_matches_nothing_is_refused():
    with pytest.raises(bella.BellaError, match=r"rank_pattern has 'q'=2.*adapted are"):
        bella.low_rank(numbered(), 2, 2, ("0",), rank_pattern={"q": 2})
    with pytest.raises(bella.BellaError, match=r"alpha_pattern has '\('.*no regular expression"):
        bella.low_rank(numbered(), 2, 2, ("0",), alpha_pattern={"(": 2})
    with pytest.raises(bella.BellaError, match=r"rank_pattern\['0'\]=0"):
        bella.low_rank(numbered(), 2, 2, ("0",), rank_pattern={"0": 0})
    with pytest.raises(bella.BellaError, match="rank=9 does not fit layer '0'"):
        bella.low_rank(numbered(), 2, 2, ("0",), rank_pattern={"0": 9})
