"""Posteriors on disk."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import adapted, batch, mlp
from torch import nn

import bella
from bella import storage


def test_a_posterior_comes_back_to_the_same_bits(tmp_path):
    posterior = bella.low_rank(
        mlp(), 3, 2, ("0",), modules_to_save=("2",), b_std=0.3, head_init="reset", alpha=5
    )
    x, _ = batch()
    posterior.save(tmp_path)
    again = bella.load(tmp_path, mlp())
    assert again.particles == 3
    assert torch.equal(again(x), posterior(x))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["posterior.json", "posterior.safetensors"]


def test_files_hold_the_particles_and_not_the_base(tmp_path):
    network = nn.Sequential(nn.Linear(400, 500), nn.Linear(500, 10))
    posterior = bella.low_rank(network, 7, 4, ("0",), b_std=0.1)
    sizes = {}
    for dtype, width in ((None, 4), (torch.bfloat16, 2)):
        posterior.save(tmp_path, dtype=dtype)
        sizes[width] = (tmp_path / storage.TENSORS).stat().st_size
        assert 0 <= sizes[width] - 7 * 4 * 900 * width < 1000


def test_bfloat16_files_load_to_near_values(tmp_path):
    posterior = adapted()
    posterior.save(tmp_path, dtype=torch.bfloat16)
    again = bella.load(tmp_path, mlp())
    for one, two in zip(
        posterior.stacked_parameters().values(), again.stacked_parameters().values(), strict=True
    ):
        assert two.dtype == torch.float64
        torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-6)


def wider():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4)).double()


@pytest.mark.parametrize("other", [lambda: mlp(seed=2), wider])
def test_another_network_is_refused(tmp_path, other):
    adapted().save(tmp_path)
    with pytest.raises(bella.BellaError, match="another network"):
        bella.load(tmp_path, other())


def test_missing_and_damaged_files_get_one_sentence(tmp_path):
    with pytest.raises(bella.BellaError, match="no saved posterior"):
        bella.load(tmp_path, mlp())
    adapted().save(tmp_path)
    tensors, settings = tmp_path / storage.TENSORS, tmp_path / storage.SETTINGS
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:40])
    with pytest.raises(bella.BellaError, match="cannot be read"):
        bella.load(tmp_path, mlp())
    tensors.write_bytes(whole)
    settings.write_text("{")
    with pytest.raises(bella.BellaError, match="cannot be read"):
        bella.load(tmp_path, mlp())
    adapted().save(tmp_path)
    record = json.loads(settings.read_text()) | {"kind": "dream"}
    settings.write_text(json.dumps(record))
    with pytest.raises(bella.BellaError, match="dream"):
        bella.load(tmp_path, mlp())


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    adapted().save(tmp_path)
    before = (tmp_path / storage.TENSORS).read_bytes()

    def fails(tensors, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(storage, "save_file", fails)
    with pytest.raises(OSError, match="disk full"):
        adapted(seed=9).save(tmp_path)
    assert (tmp_path / storage.TENSORS).read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["posterior.json", "posterior.safetensors"]


def test_a_fingerprint_sees_every_weight_of_the_base():
    one, two = adapted(), adapted()
    assert storage.fingerprint(one) == storage.fingerprint(two)
    with torch.no_grad():
        two.network[2].base.bias[0] += 1e-3
    assert storage.fingerprint(one) != storage.fingerprint(two)
    with torch.no_grad():
        one.network[2].A += 1
    assert storage.fingerprint(one) == storage.fingerprint(adapted())
