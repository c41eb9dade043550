"""`bella cite`: exactly the papers behind what a run uses, in BibTeX that can be read."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from fit_cases import fit, make, problem
from helpers import mlp
from typer.testing import CliRunner

import bella
from bella.cli.app import app
from bella.files import write_sealed_json
from bella.runs.citing import USES, cite, references

ALWAYS = {"bella", "houlsby2011bayesian"}
BELLA = ALWAYS | {"doan2024bella", "hu2022lora"}


def run(folder, posterior, *, network="hf:some/vit", task=None, **asked):
    """A run folder as far as it is asked about."""
    posterior.save(folder)
    model = {"network": network} | ({} if task is None else {"task": task})
    write_sealed_json(folder / "model.json", model)
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": "photos", **asked}))
    return folder


def keys(folder):
    return {entry["key"] for entry in cite(folder)}


@pytest.mark.parametrize(
    ("asked", "more"),
    [
        ({"transport": "ensemble"}, {"lakshminarayanan2017simple"}),
        ({"transport": "repulsive"}, {"dangelo2021repulsive"}),
        ({"transport": "svgd"}, {"liu2016stein"}),
        ({"transport": "function"}, {"wang2019function", "dangelo2021repulsive"}),
        (
            {"transport": "svgd", "transport_options": {"damping": 0.1, "langevin": False}},
            {"liu2016stein", "zhang2024riemannian"},
        ),
        (
            {"transport": "ensemble", "transport_options": {"langevin": True}},
            {"lakshminarayanan2017simple", "welling2011bayesian"},
        ),
        ({"head_init": "zero-shot"}, {"radford2021learning"}),
    ],
)
def test_low_rank_particles_cite_bella_lora_and_what_moved_them(tmp_path, asked, more):
    assert keys(run(tmp_path, make(), **asked)) == BELLA | more


def test_one_particle_cites_nothing_of_several(tmp_path):
    found = keys(run(tmp_path, make(particles=1), transport="repulsive"))
    assert found == {"bella", "hu2022lora"}


def test_other_posteriors_cite_their_own_papers(tmp_path):
    folder = run(tmp_path / "rank1", bella.rank1(mlp(), 4), transport="ensemble")
    assert keys(folder) == ALWAYS | {"dusenberry2020efficient"}
    folder = run(tmp_path / "ssvi", bella.sparse_subspace(mlp()), transport="ensemble")
    assert keys(folder) == ALWAYS | {"li2024training"}
    folder = run(tmp_path / "full", bella.full(mlp(), 3), transport="svgd")
    assert keys(folder) == ALWAYS | {"liu2016stein"}
    one = make(particles=1)
    folder = run(tmp_path / "laplace", bella.laplace(one, [problem()]), transport="ensemble")
    wanted = {"hu2022lora", "yang2024bayesian", "mackay1992practical"}
    assert keys(folder) == ALWAYS | wanted


def test_a_mixture_cites_how_it_pools(tmp_path):
    posterior = make()
    fit(posterior, epochs=1)
    for kind, more in (("linear", set()), ("log", {"genest1986combining"})):
        folder = run(tmp_path / kind, posterior, transport="repulsive")
        bella.mixture(posterior.eval(), problem(), problem(40, 1), pool=kind).save(folder)
        wanted = {"kumar2022calibrated", "rahaman2021uncertainty", "sun2022out"}
        assert keys(folder) == BELLA | {"dangelo2021repulsive"} | wanted | more


@pytest.mark.parametrize(
    ("network", "task", "more"),
    [
        ("efficientnet-lite0", None, {"tan2019efficientnet"}),
        ("open_clip:ViT-B-32/openai", None, {"radford2021learning"}),
        ("minilm-l6", "text", {"wang2020minilm", "reimers2019sentence"}),
        ("minilm-l6", "regression", {"wang2020minilm", "reimers2019sentence", "nix1994estimating"}),
        ("smollm2-135m-instruct", "causal-lm", {"allal2025smollm2", "malinin2021uncertainty"}),
        ("hf:any/llama", "multiple-choice", {"brown2020language"}),
    ],
)
def test_networks_and_tasks(tmp_path, network, task, more):
    assert keys(run(tmp_path, make(), network=network, task=task)) == BELLA | more


def test_a_saved_posterior_is_enough(tmp_path):
    make().save(tmp_path)
    assert keys(tmp_path) == BELLA
    with pytest.raises(bella.BellaError, match="no saved posterior"):
        cite(tmp_path / "empty")


def test_every_paper_is_known_and_used_and_whole():
    known = references()
    assert {key for _, _, keys in USES for key in keys} == set(known)
    for key, entry in known.items():
        assert re.fullmatch(r"@(article|inproceedings)\{[\w-]+,\n(  \w+ = \{.*\},?\n)+\}", entry)
        assert entry.count("{") == entry.count("}"), key
        for field in ("title", "author", "year"):
            assert len(re.findall(rf"^  {field} = ", entry, re.MULTILINE)) == 1, key
        assert re.search(r"year = \{(19|20)\d\d\}", entry)[0][8:12] in key


def test_the_command_prints_bibtex_with_what_it_is_cited_for(tmp_path):
    run(tmp_path, make(), transport="svgd")
    shown = CliRunner().invoke(app, ["cite", str(tmp_path)])
    assert shown.exit_code == 0
    assert "% SVGD\n@inproceedings{liu2016stein," in shown.stdout
    assert "version = {" + bella.__version__ + "}" in shown.stdout
    told = json.loads(CliRunner().invoke(app, ["cite", str(tmp_path), "--json"]).stdout)
    assert {entry["key"] for entry in told} == BELLA | {"liu2016stein"}
