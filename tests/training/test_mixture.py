"""`bella.mixture`: what it says is the dense composition of its parts, saved and loaded too."""

from __future__ import annotations

import copy
import json

import network_cases as cases
import pytest
import torch
from fit_cases import Blocks, fit, make, problem
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bella
from bella.errors import BellaError
from bella.prediction.activations import Reading
from bella.prediction.mixture import FILE, Distance, nearest
from bella.prediction.pool import em_weights, fit_pool
from bella.sealed import read_sealed, write_sealed

TRAIN, HELD_OUT, FRESH = problem(48, 0), problem(40, 1), problem(30, 2)


@pytest.fixture(scope="module")
def trained():
    posterior = make()
    fit(posterior)
    return posterior.eval()


@pytest.fixture(scope="module")
def mixed(trained):
    return bella.mixture(trained, TRAIN, HELD_OUT)


def same(one, other, **close):
    for name in ("probs", "mutual_information", "distance", "novelty"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), **close)


@torch.no_grad()
def frozen(network, x):
    h = [x]
    for block in network.blocks:
        h.append(block(h[-1]))
    return dict(zip(("blocks.0", "blocks.1", "blocks.2", "head"), h, strict=True))


def cosines(a, b):
    a, b = a.double(), b.double()
    return (a @ b.mT) / a.norm(dim=1, keepdim=True) / b.norm(dim=1)


def test_the_predictive_is_the_composition_of_its_parts(trained, mixed):
    x, y = FRESH
    network = Blocks().eval()  # as it was before any particle
    features = frozen(network, x)

    def readout(one):
        joined = torch.cat([features[r.place] for r in one.readings], 1)
        return (joined @ one.weight.mT + one.bias)[None]

    train, held_out = (frozen(network, x) for x in (TRAIN[0], HELD_OUT[0]))

    def distance(one):
        place = one.reading.place
        pairs = [(1 - cosines(a[place], train[place])) for a in (features, held_out, train)]
        pairs[2].fill_diagonal_(2.0)  # none is its own neighbour
        ours, theirs, own = (p.clamp_min(1e-6).log().topk(5, largest=False) for p in pairs)
        u, d = own.values.mean(1)[theirs.indices].mean(1), theirs.values.mean(1)
        slope = ((u - u.mean()) * d).sum() / (u - u.mean()).square().sum()
        assert one.slope == pytest.approx(min(max(float(slope), 0), 1), abs=1e-4)
        return ours.values.mean(1) - one.slope * own.values.mean(1)[ours.indices].mean(1)

    with torch.no_grad():
        groups = [torch.stack([trained.particle(i)(x) for i in range(3)])]
        groups += [readout(one) for one in mixed.readouts]
        expected = mixed.pool(groups, torch.stack([distance(one) for one in mixed.distances]))
    said = bella.predict(mixed, x)
    same(said, expected, rtol=1e-4, atol=1e-5)
    assert said.logits.shape == (3 + len(mixed.readouts), 30, 3)
    assert len(mixed.readouts) == len(mixed.distances) == 4
    assert expected.nll(y) < bella.predict(trained, x).nll(y)


def test_the_pool_is_fitted_on_validation_and_its_figure_is_cross_fitted(trained, mixed):
    x, y = HELD_OUT
    said = bella.predict(mixed, x).logits
    # The members come tempered: undo it, and fit again.
    temperatures = mixed.pool.temperatures
    groups = [said[:3] * temperatures[0]]
    groups += [said[3 + i : 4 + i] * t for i, t in enumerate(temperatures[1:])]
    again = fit_pool(groups, y)
    assert again.weights == pytest.approx(mixed.pool.weights, abs=1e-4)
    assert again.temperature == pytest.approx(mixed.pool.temperature, abs=1e-4)
    scores = torch.stack([g.log_softmax(-1)[:, range(40), y].exp().mean(0).log() for g in groups])
    assert mixed.pool.weights != pytest.approx(em_weights(scores).tolist(), abs=1e-6)
    assert mixed.figures["validation_nll"] > bella.predict(mixed, x).nll(y)
    assert set(mixed.figures["anchors"]) == {str(one) for one in mixed.readouts}


def test_a_sparse_region_is_not_far_from_itself():
    """On the circle every example is at an angle a from its two neighbours; those of one half are
    at a third of that, and each half is as near to its own as the data there are."""
    reading = Reading("place", "flat")

    def points(angles):
        return torch.stack([angles.cos(), angles.sin()], 1).double()

    dense, sparse = torch.arange(60) * 0.01 + 0.1, torch.arange(20) * 0.03 + 2.5
    train, between = points(torch.cat([dense, sparse])), torch.cat([dense[9:50], sparse[5:15]])
    measure = Distance.to(reading, train, points(between + 0.002))
    assert measure.slope > 0.7
    near = measure({reading: points(torch.cat([dense[20:21], sparse[9:10]]) + 0.002)})
    assert abs(float(near[0] - near[1])) < 0.6
    assert float(
        nearest(points(dense[20:21] + 0.002), measure.references.double())[0]
    ) < -1 + float(nearest(points(sparse[9:10] + 0.002), measure.references.double())[0])
    far = measure({reading: points(torch.tensor([4.5]))})
    assert float(far) > 3 + float(near.max())
    same_as = nearest(measure.references[:3], measure.references, same=True)[1]
    assert all(row not in found for row, found in enumerate(same_as.tolist()))


def test_evaluate_takes_a_mixture(trained, mixed):
    far = (FRESH[0] * 4 + 5, FRESH[1])
    found = bella.evaluate(mixed, FRESH, ood={"far": far})
    assert found["nll"] == pytest.approx(bella.predict(mixed, FRESH[0]).nll(FRESH[1]), rel=1e-5)
    assert found["auroc_far_distance"] > 0.5
    assert {"auroc_far_novelty", "auroc_errors_confidence", "auroc_far_mi"} <= set(found)
    plain = bella.evaluate(trained, FRESH, ood={"far": far})
    assert "auroc_far_distance" not in plain
    assert "auroc_errors_confidence" in plain


def test_streams_chunks_and_modes_change_nothing(trained, mixed):
    x, _ = FRESH
    said = bella.predict(mixed, x)
    chunked = bella.predict(mixed, x, particles_per_pass=1)
    same(said, chunked, rtol=1e-5, atol=1e-6)
    assert bella.evaluate(mixed, FRESH, particles_per_pass="auto")["nll"] == pytest.approx(
        said.nll(FRESH[1]), rel=1e-4
    )
    trained.train()
    same(said, bella.predict(mixed, x), rtol=1e-6, atol=1e-7)
    assert trained.training
    trained.eval()
    late = bella.mixture(
        trained, TRAIN, HELD_OUT, anchors=["head:flat"], distance=["blocks.2:flat"]
    )
    same(bella.predict(late, x), bella.predict(late, trained.prefix(x)), rtol=1e-5, atol=1e-6)
    with pytest.raises(BellaError, match=r"Nothing arrived at blocks\.[01]"):
        bella.predict(mixed, trained.prefix(x))


@pytest.mark.parametrize("pool", ["linear", "log"])
def test_it_is_saved_with_the_particles_and_read_again(trained, tmp_path, pool):
    mixture = bella.mixture(trained, TRAIN, HELD_OUT, pool=pool)
    mixture.save(tmp_path)
    again = bella.load_mixture(tmp_path, Blocks())
    one, two = bella.predict(mixture, FRESH[0]), bella.predict(again, FRESH[0])
    assert torch.equal(one.probs, two.probs)
    assert torch.equal(one.novelty, two.novelty)
    assert again.figures == mixture.figures
    assert repr(again) == repr(mixture)
    assert isinstance(bella.load(tmp_path, Blocks()), bella.Posterior)


def test_files_that_are_damaged_or_of_other_particles_are_refused(mixed, trained, tmp_path):
    with pytest.raises(BellaError, match="holds no mixture"):
        bella.load_mixture(tmp_path, Blocks())
    mixed.save(tmp_path)
    record, tensors = read_sealed(tmp_path / FILE)
    other = make(seed=5)
    other.save(tmp_path)
    with pytest.raises(BellaError, match="for other particles"):
        bella.load_mixture(tmp_path, Blocks())
    mixed.save(tmp_path)
    for key, value in (
        ("pool", {}),
        ("readouts", [["blocks.0:none"]]),
        ("places", [["gone", 0, 0]]),
        ("distances", 3),
        ("distances", [[name, 2.0] for name, _ in record["distances"]]),
        ("format", 9),
    ):
        damaged = json.loads(json.dumps({k: v for k, v in record.items() if k != "tensors"}))
        damaged.pop("sha256", None)
        write_sealed(tmp_path / FILE, tensors, {**damaged, key: value})
        with pytest.raises(BellaError, match=FILE):
            bella.load_mixture(tmp_path, Blocks())
    raw = bytearray((tmp_path / FILE).read_bytes())
    raw[-1] ^= 1
    (tmp_path / FILE).write_bytes(raw)
    with pytest.raises(BellaError, match="cannot be read"):
        bella.load_mixture(tmp_path, Blocks())


def test_one_particle_and_drawn_ones_and_those_without_a_base_have_mixtures_too():
    single = make(1)
    fit(single)
    one = bella.mixture(single, TRAIN, HELD_OUT)
    assert bella.predict(one, FRESH[0]).logits.shape[0] == 1 + len(one.readouts)

    laplace = bella.laplace(single, DataLoader(TensorDataset(*TRAIN), 16))
    torch.manual_seed(0)
    drawn = bella.mixture(laplace, TRAIN, HELD_OUT, draws=4)
    said = bella.predict(drawn, FRESH[0], draws=4)
    assert said.logits.shape[0] == 4 + len(drawn.readouts)
    torch.testing.assert_close(said.weights[:4].sum(0), torch.full((30,), drawn.pool.weights[0]))

    whole = bella.full(Blocks(), 2)
    with pytest.raises(BellaError, match="no frozen activations are left"):
        bella.mixture(whole, TRAIN, HELD_OUT)
    calibrated = bella.mixture(whole, TRAIN, HELD_OUT, anchors=(), distance=None)
    said = bella.predict(calibrated, FRESH[0])
    assert said.novelty is None
    torch.testing.assert_close(
        said.probs,
        fit_pool([bella.predict(whole, HELD_OUT[0]).logits], HELD_OUT[1])(
            [bella.predict(whole, FRESH[0]).logits]
        ).probs,
    )


def test_texts_are_read_by_their_masks():
    posterior, _ = cases.make("bert")
    torch.manual_seed(0)

    def texts(count):
        rows = []
        for label in range(count):
            ids = torch.randint(2, 50, (7,))
            ids[1] = 3 + label % 2
            mask = torch.ones(7, dtype=torch.long)
            mask[5 + label % 2 :] = 0
            rows.append({"input_ids": ids, "attention_mask": mask, "labels": label % 2})
        return rows

    mixture = bella.mixture(posterior.eval(), texts(24), texts(18))
    readings = {str(r) for readout in mixture.readouts for r in readout.readings}
    assert not any(name.endswith(":flat") for name in readings if "classifier" not in name)
    found = bella.evaluate(mixture, texts(12))
    assert 0 < found["nll"] < 2


def test_what_cannot_be_mixed_is_refused(trained, mixed):
    with pytest.raises(BellaError, match="stop and"):
        bella.predict(mixed, FRESH[0], stop=0.1)
    with pytest.raises(BellaError, match="average"):
        bella.evaluate(mixed, FRESH, average="logits")
    with pytest.raises(BellaError, match="'everything': give 'auto'"):
        bella.mixture(trained, TRAIN, HELD_OUT, anchors="everything")
    with pytest.raises(BellaError, match=r"choose flat"):
        bella.mixture(trained, TRAIN, HELD_OUT, anchors=["head:mean"])
    with pytest.raises(BellaError, match="choose 'linear' or 'log'"):
        bella.mixture(trained, TRAIN, HELD_OUT, anchors=(), distance=None, pool="mean")
    few = (TRAIN[0][TRAIN[1] < 2], TRAIN[1][TRAIN[1] < 2])
    with pytest.raises(BellaError, match="training data have no example of class 2"):
        bella.mixture(trained, few, HELD_OUT)
    with pytest.raises(BellaError, match="one class number an example"):
        bella.mixture(trained, (TRAIN[0], TRAIN[1][:, None].expand(-1, 2)), HELD_OUT)

    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.blocks[1](self.blocks[0](x)))

    posterior = bella.low_rank(Tagger(), 2, 2, (r"blocks\.1",), modules_to_save=("head",))
    x = torch.randn(6, 5, 4)
    with pytest.raises(BellaError, match="one class number an example"):
        bella.mixture(posterior, (x, torch.zeros(6, 5).long()), (x, torch.zeros(6, 5).long()))


def test_a_mixture_is_copied_and_moved_as_a_module(mixed):
    twin = copy.deepcopy(mixed).double()
    said = bella.predict(twin, FRESH[0].double())
    assert said.logits.dtype == torch.float64
    torch.testing.assert_close(
        said.probs.float(), bella.predict(mixed, FRESH[0]).probs, rtol=1e-3, atol=1e-4
    )
