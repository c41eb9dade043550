"""Run folders for the hub: tested on folders here, with the hub's own reader of cards."""

from __future__ import annotations

import copy
import json

import huggingface_hub
import pytest
import torch
from helpers import mlp

import bella
from bella.files import write_sealed_json
from bella.interop import hub

FIGURES = {"accuracy": 0.9125, "nll": 0.2134567, "auroc_shift": None}


@pytest.fixture
def run(tmp_path):
    """A run folder with more in it than others need."""
    folder = tmp_path / "solar"
    posterior = bella.low_rank(mlp(), 3, 2, ("0",), modules_to_save=("2",), b_std=0.3)
    posterior.save(folder)
    model = {"network": "hf:google/vit", "classes": ["dark|er", "light"], "image_size": None}
    write_sealed_json(folder / "model.json", model)
    (folder / "figures.json").write_text(json.dumps(FIGURES))
    (folder / "config.yaml").write_text("data: photos\n")
    (folder / "checkpoint.safetensors").write_bytes(b"large")
    return folder, posterior


def test_a_card_carries_the_run_s_figures(run, tmp_path):
    folder, _ = run
    out = hub.save_pretrained(folder, tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == sorted([*hub.FILES, "README.md"])
    card = huggingface_hub.ModelCard.load(out / "README.md")
    assert card.data.library_name == "bella"
    assert card.data.base_model == "google/vit"
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == {"accuracy": 0.9125, "nll": 0.2134567}
    for said in ("| accuracy | 0.9125 |", "| auroc_shift | - |", "| rank | 2 |", "`dark|er`"):
        assert said in card.text
    assert "open_run" in card.text


def test_what_was_saved_for_the_hub_opens_with_the_same_bits(run, tmp_path):
    folder, posterior = run
    out = hub.save_pretrained(folder, tmp_path / "out")
    again = hub.from_pretrained(out, mlp())
    for key, value in posterior.stacked_parameters().items():
        assert torch.equal(again.stacked_parameters()[key], value)
    with pytest.raises(bella.BellaError, match="holds something"):
        hub.save_pretrained(folder, out)


def test_a_posterior_without_a_run_has_a_card_too(tmp_path):
    bella.low_rank(mlp(), 2, 1, ("0",)).save(tmp_path / "own")
    out = hub.save_pretrained(tmp_path / "own", tmp_path / "out")
    card = huggingface_hub.ModelCard.load(out / "README.md")
    assert card.data.eval_results is None
    assert "from_pretrained" in card.text
    with pytest.raises(bella.BellaError, match="no saved posterior"):
        hub.save_pretrained(tmp_path, tmp_path / "none")


def test_an_upload_is_what_was_saved(run, monkeypatch):
    folder, _ = run
    calls = []

    class Api:
        def __init__(self, token=None):
            calls.append(("token", token))

        def create_repo(self, repo, **options):
            calls.append((repo, options))

        def upload_folder(self, *, repo_id, folder_path):
            calls.append((repo_id, sorted(path.name for path in folder_path.iterdir())))
            return f"https://huggingface.co/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    address = hub.push_to_hub(folder, "hf:me/solar", private=True, token="t")
    assert address == "https://huggingface.co/me/solar"
    assert calls == [
        ("token", "t"),
        ("me/solar", {"private": True, "exist_ok": True}),
        ("me/solar", sorted([*hub.FILES, "README.md"])),
    ]


def test_a_name_on_the_hub_is_downloaded_and_a_folder_is_not(run, tmp_path, monkeypatch):
    folder, posterior = run
    asked = []

    def download(repo, allow_patterns):
        asked.append((repo, allow_patterns))
        if repo == "me/none":
            raise OSError("404 Client Error\nmore")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    again = hub.from_pretrained("hf:me/solar", mlp())
    assert again.particles == posterior.particles
    assert asked == [("me/solar", list(hub.FILES))]
    with pytest.raises(bella.BellaError, match=r"does not give 'me/none' \(404 Client Error\)"):
        hub.from_pretrained("hf:me/none", mlp())
    assert hub.local_folder(tmp_path) == tmp_path
    assert len(asked) == 2


def test_a_saved_posterior_is_compared_with_the_disk_on_request(tmp_path, monkeypatch):
    posterior = bella.low_rank(mlp(), 2, 1, ("0",))
    posterior.save(tmp_path / "good", check=True)
    posterior.save(tmp_path / "half", dtype=torch.bfloat16, check=True)
    written = bella.storage.write_sealed

    def lossy(path, tensors, record):
        return written(path, {k: v.float().to(v.dtype) for k, v in tensors.items()}, record)

    other = copy.deepcopy(posterior)
    with torch.no_grad():
        other.layers()["0"].A.add_(1e-12)
    monkeypatch.setattr(bella.storage, "write_sealed", lossy)
    other.save(tmp_path / "unseen")
    with pytest.raises(bella.BellaError, match=r"is not as it was written: '0\.A'"):
        other.save(tmp_path / "seen", check=True)
