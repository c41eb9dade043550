"""Posteriors on disk."""

from __future__ import annotations

import functools
import json
import math
import time

import pytest
import torch
from helpers import adapted, batch, mlp
from safetensors.torch import load_file, save_file
from torch import nn

import bella
from bella import sealed, storage
from bella.sealed import read_sealed, write_sealed


def rewrite(folder, tensors=None, **changes):
    """Another record (or tensors) under right checksums, as a stranger could write them."""
    record, held = read_sealed(folder / storage.TENSORS)
    record = {k: v for k, v in (record | changes).items() if k not in ("sha256", "tensors")}
    write_sealed(folder / storage.TENSORS, held if tensors is None else tensors, record)
    (folder / storage.SETTINGS).unlink(missing_ok=True)


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
        assert 0 <= sizes[width] - 7 * 4 * 900 * width < 1500


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
    rewrite(tmp_path, kind="dream")
    with pytest.raises(bella.BellaError, match="dream"):
        bella.load(tmp_path, mlp())


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    adapted().save(tmp_path)
    before = (tmp_path / storage.TENSORS).read_bytes()

    def fails(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(sealed, "save_file", fails)
    with pytest.raises(bella.BellaError, match="disk full"):
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


# ---------------------------------------------------------------- strangers' folders


SETTINGS = {
    "particles 10^12": {"particles": 10**12},
    "particles 10^40": {"particles": 10**40},
    "particles of another file": {"particles": 5},
    "rank 10^9": {"rank": 10**9},
    "rank of another file": {"rank": 3},
    "alpha text": {"alpha": "x"},
    "alpha list": {"alpha": [1]},
    "truth for a number": {"particles": True},
    "targets number": {"target_modules": 5},
    "targets numbers": {"target_modules": [1]},
    "targets none": {"target_modules": None},
    "targets of another file": {"target_modules": ["0"]},
    "heads nested": {"modules_to_save": [["x"]]},
    "unknown": {"extra": 1},
    "the network": {"network": 1},
    "a text for a truth": {"rslora": "no"},
    "a list for a place": {"shared_prefix": [1]},
    "a slow pattern": {"target_modules": [r"((.*)*)*\\d!"]},
}


@pytest.mark.parametrize("change", SETTINGS)
def test_strangers_settings_are_refused_fast_though_their_checksum_is_right(tmp_path, change):
    posterior = adapted()
    posterior.save(tmp_path)
    rewrite(tmp_path, settings=posterior.settings | SETTINGS[change])
    begun = time.perf_counter()
    with pytest.raises(bella.BellaError) as caught:
        bella.load(tmp_path, mlp())
    assert time.perf_counter() - begun < 5
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": []},
        {"kind": None},
        {"kind": "x" * 1000},
        {"kind": "rank1"},
        {"kind": "laplace"},
        {"kind": "load"},
        {"settings": [1]},
        {"settings": None},
        {"base": 5},
        {"base": "0" * 64},
        {"format": 99},
        {"base_cast": {"bfloat16": 1}},
    ],
)
def test_strangers_records_are_refused(tmp_path, changes):
    adapted().save(tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(bella.BellaError) as caught:
        bella.load(tmp_path, mlp())
    assert len(str(caught.value)) < 1000


def test_a_laplace_posterior_s_inner_settings_are_checked_too(tmp_path):
    around = {"kind": "low_rank", "settings": {"particles": "x"}}
    for inner in (around, {"kind": "laplace", "settings": {}}, {"kind": 5}, {}):
        adapted(particles=1).save(tmp_path)
        rewrite(tmp_path, kind="laplace", settings={"around": inner})
        with pytest.raises(bella.BellaError):
            bella.load(tmp_path, mlp())


def nan(tensors):
    tensors["0.A"].view(-1)[3] = math.nan


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (nan, "1 of the 32 numbers of '0.A' are not finite"),
        (lambda t: t.update({"0.B": t["0.B"].int()}), "'0.B' is torch.int32"),
        (lambda t: t.update({"0.B": t["0.B"].to(torch.complex64)}), "complex64"),
        (lambda t: t.update({"0.A": t["0.A"].mT.contiguous()}), r"is \(4, 4, 2\)"),
        (lambda t: t.pop("2.B"), "lacks '2.B'"),
        (lambda t: t.update({"7.B": torch.ones(1)}), "holds '7.B'"),
    ],
)
def test_tensors_that_do_not_fit_change_nothing(tmp_path, change, said):
    adapted().save(tmp_path)
    tensors = {k: v.clone() for k, v in read_sealed(tmp_path / storage.TENSORS)[1].items()}
    change(tensors)
    rewrite(tmp_path, tensors)
    with pytest.raises(bella.BellaError, match=said):
        bella.load(tmp_path, mlp())


def test_a_posterior_that_is_not_finite_is_not_saved(tmp_path):
    adapted().save(tmp_path)
    before = (tmp_path / storage.TENSORS).read_bytes()
    broken = adapted()
    with torch.no_grad():
        broken.network[0].A[0, 0, 0] = math.inf
    with pytest.raises(bella.BellaError, match=r"not saved.*'0\.A'"):
        broken.save(tmp_path)
    assert (tmp_path / storage.TENSORS).read_bytes() == before


def test_a_changed_json_is_refused_and_a_missing_one_is_not_needed(tmp_path):
    posterior = adapted()
    x, _ = batch()
    posterior.save(tmp_path)
    path = tmp_path / storage.SETTINGS
    record = json.loads(path.read_text())
    record["settings"]["alpha"] = 16
    path.write_text(json.dumps(record))
    with pytest.raises(bella.BellaError, match=r"posterior\.json is not as it was written"):
        bella.load(tmp_path, mlp())
    path.unlink()
    assert torch.equal(bella.load(tmp_path, mlp())(x), posterior(x))


def old_format(folder):
    """The folder as versions without checksums wrote it."""
    record, tensors = read_sealed(folder / storage.TENSORS)
    save_file({name: value.clone() for name, value in tensors.items()}, folder / storage.TENSORS)
    kept = {name: record[name] for name in ("kind", "settings", "base", "version")}
    (folder / storage.SETTINGS).write_text(json.dumps(kept))


def test_folders_without_checksums_open_and_are_checked_as_far_as_they_can_be(tmp_path):
    posterior = adapted()
    x, _ = batch()
    posterior.save(tmp_path)
    new = (tmp_path / storage.SETTINGS).read_text()
    old_format(tmp_path)
    assert torch.equal(bella.load(tmp_path, mlp())(x), posterior(x))
    tensors = load_file(tmp_path / storage.TENSORS)
    nan(tensors)
    save_file(tensors, tmp_path / storage.TENSORS)
    with pytest.raises(bella.BellaError, match="not finite"):
        bella.load(tmp_path, mlp())
    # Tensors without a record under a record with a checksum: not a folder that bella wrote.
    (tmp_path / storage.SETTINGS).write_text(new)
    with pytest.raises(bella.BellaError, match=r"posterior\.safetensors is not as it was"):
        bella.load(tmp_path, mlp())


@pytest.mark.parametrize("fewer", [torch.bfloat16, torch.float16])
def test_the_same_base_in_another_dtype_is_taken_with_a_word(tmp_path, fewer):
    """From float32 to fewer bits, and from fewer bits to the float32 that they were cast from."""
    x = batch()[0].float()
    wide = adapted(mlp(dtype=torch.float32))
    wide.save(tmp_path / "wide")
    narrow = adapted(mlp(dtype=torch.float32).to(fewer))
    narrow.save(tmp_path / "narrow")
    with pytest.warns(UserWarning, match="differ by rounding"):
        found = bella.load(tmp_path / "wide", mlp(dtype=torch.float32).to(fewer))
    torch.testing.assert_close(found(x.to(fewer)).float(), wide(x), rtol=0.1, atol=0.1)
    with pytest.warns(UserWarning, match="differ by rounding"):
        found = bella.load(tmp_path / "narrow", mlp(dtype=torch.float32))
    torch.testing.assert_close(found(x), narrow(x.to(fewer)).float(), rtol=0.1, atol=0.1)
    for folder, other in (("wide", fewer), ("narrow", torch.float32)):
        with pytest.raises(bella.BellaError, match=r"in .*float.* and this one is in"):
            bella.load(tmp_path / folder, mlp(seed=2, dtype=torch.float32).to(other))


def test_positions_of_sparse_weights_stay_within_the_layer(tmp_path):
    """Products read at these positions without looking again."""
    make = functools.partial(bella.sparse_subspace, density=0.25, target_modules=("0", "2"))
    network = mlp(dtype=torch.float32)
    make(network, start="network").save(tmp_path)
    bella.load(tmp_path, mlp(dtype=torch.float32))
    tensors = {k: v.clone() for k, v in read_sealed(tmp_path / storage.TENSORS)[1].items()}
    name = next(key for key in tensors if key.endswith(".index"))
    count = len(tensors[name]) - 1
    for code in ([0] + [255] * 40 + [3] * count, [], [0, 255, 255]):
        tensors[name] = torch.tensor(code, dtype=torch.uint8)
        rewrite(tmp_path, tensors)
        with pytest.raises(bella.BellaError):
            bella.load(tmp_path, mlp(dtype=torch.float32))


# ---------------------------------------------------------------- the base's own parameters


def with_norm(seed=1):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    network.register_parameter("codes", nn.Parameter(torch.arange(3), requires_grad=False))
    return network


@pytest.mark.parametrize(
    ("unfrozen", "said"),
    [
        (["1.gone"], "no parameter of this network that could train"),
        (["1.weight", "codes"], "'codes', which is no parameter of this network that could train"),
        (["1.weight"] * 3 + ["x" * 10_000], "no parameter of this network that could train"),
        (["1.weight", "1.bias"], "the file lacks '1.bias'"),
        ([], "the file holds '1.weight'"),
        ([5], "string"),
        ("1.weight", "list"),
        ({"1.weight": True}, "list"),
    ],
)
def test_what_trains_beside_particles_is_what_the_network_has(tmp_path, unfrozen, said):
    posterior = bella.low_rank(with_norm(), 2, 2, ("0",), modules_to_save=("2",))
    posterior.unfreeze(["1.weight"])
    posterior.save(tmp_path)
    assert list(bella.load(tmp_path, with_norm()).trained_outside()) == ["1.weight"]
    rewrite(tmp_path, unfrozen=unfrozen)
    network = with_norm()
    flags = [p.requires_grad for p in network.parameters()]
    with pytest.raises(bella.BellaError, match=said) as caught:
        bella.load(tmp_path, network)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert [p.requires_grad for p in network.parameters()] == flags
    assert list(network.state_dict()) == list(with_norm().state_dict())
