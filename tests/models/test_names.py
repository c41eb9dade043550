"""Networks by name: tasks of text and speech, pairs with zero-shot heads, adapters, one's own."""

from __future__ import annotations

import copy
import sys
import types
import warnings

import peft
import pytest
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from zoo import ZOO
from zoo_base import PATCHES, TEXT

import bella
from bella.cli.app import main
from bella.data import Preprocess
from bella.errors import BellaError, MissingExtraError
from bella.models import Defaults, Opened, full_name, open_network, open_task
from bella.models.open_clip import read_preprocess
from bella.models.towers import Tower
from bella.runs import open_run

SENTENCE = "a photo of the blue red sky dog cat drawing ."
WORDS = ["<pad>", "<s>", "</s>", "<unk>", *SENTENCE.split()]


def tokenizer(**more):
    """Words to numbers, an end after each text."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=made, **special, **more)


def saved(folder, network, **more):
    network.save_pretrained(folder)
    tokenizer(**more).save_pretrained(folder)
    return folder


# ---------------------------------------------------------------- tasks


@pytest.mark.parametrize(
    ("task", "name", "kind", "classes", "outputs", "heads"),
    [
        ("text-classification", "bert", "BertForSequenceClassification", 4, 4, ("classifier",)),
        ("regression", "bert", "BertForSequenceClassification", None, 1, ("classifier",)),
        ("token-classification", "roberta", "RobertaForTokenClassification", 5, 5, ("classifier",)),
        ("causal-lm", "llama", "LlamaForCausalLM", None, 40, ()),
        ("masked-lm", "bert", "BertForMaskedLM", None, 40, ()),
        ("encoder-decoder", "t5", "T5ForConditionalGeneration", None, 40, ()),
        ("vision-language", "llava", "LlavaForConditionalGeneration", None, 40, ()),
        (
            "audio-classification",
            "whisper-encoder",
            "WhisperForAudioClassification",
            2,
            2,
            ("projector", "classifier"),
        ),
    ],
)
def test_every_task_opens_its_networks(task, name, kind, classes, outputs, heads, tmp_path):
    network = ZOO[name].network(name)
    saved(tmp_path / "net", network)
    opened = open_task(f"hf:{tmp_path / 'net'}", task, classes, seed=3)
    assert type(opened.network).__name__ == kind
    assert opened.defaults.modules_to_save == heads
    assert not opened.network.training
    if "language" not in task and "audio" not in task:
        assert opened.reader("the sky is blue .")["input_ids"][0] == 1
    posterior = bella.low_rank(
        opened.network, 2, 2, opened.defaults.target_modules, modules_to_save=heads
    )
    args, kwargs = ZOO[name].inputs(3)
    assert posterior(*args, **kwargs).logits.shape[-1] == outputs
    if task == "regression":
        assert opened.network.config.problem_type == "regression"
    if classes:
        again = open_task(str(tmp_path / "net"), task, classes, seed=3).network
        for p, q in zip(network_head(again), network_head(opened.network), strict=True):
            assert torch.equal(p, q.reshape(-1, *p.shape)[0])


def network_head(network):
    return [p for name, p in network.named_parameters() if name.startswith("classifier")]


def test_what_a_task_cannot_open_is_refused(tmp_path):
    saved(tmp_path, ZOO["vit"].network("vit"))
    with pytest.raises(BellaError, match=r"task='text-class'.*text-classification"):
        open_task("hf:x", "text-class")
    with pytest.raises(BellaError, match="keeps the head that it has: leave out classes"):
        open_task("hf:x", "causal-lm", 3)
    with pytest.raises(BellaError, match="cannot be opened as a network for causal-lm"):
        open_task(f"hf:{tmp_path}", "causal-lm")
    with pytest.raises(BellaError, match="classes=0"):
        open_task("hf:x", "text-classification", 0)


# ---------------------------------------------------------------- adapters as networks


def test_an_adapter_s_folder_is_its_network_with_the_adapter_merged(tmp_path):
    base = ZOO["bert"].network("bert")
    saved(tmp_path / "base", base)
    settings = peft.LoraConfig(
        target_modules=["query"], modules_to_save=["classifier"], init_lora_weights=False
    )
    fresh = hf.BertForSequenceClassification.from_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(fresh, settings).eval()
        theirs.save_pretrained(tmp_path / "adapter")
    opened = open_task(str(tmp_path / "adapter"), "text-classification")
    args, kwargs = ZOO["bert"].inputs(3)
    with torch.no_grad():
        found, want = opened.network(*args, **kwargs).logits, theirs(*args, **kwargs).logits
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)
    assert type(opened.network).__name__ == "BertForSequenceClassification"
    assert not any("lora" in name for name, _ in opened.network.named_modules())
    with pytest.raises(BellaError, match=r"does not fit .*base"):
        open_task(str(tmp_path / "adapter"), "text-classification", 7)
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace(str(tmp_path / "base"), ""))
    with pytest.raises(BellaError, match="does not say which network it belongs to"):
        open_task(str(tmp_path / "adapter"), "text-classification")


# ---------------------------------------------------------------- pairs


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    torch.manual_seed(0)
    text = {**TEXT, "max_position_embeddings": 12, "eos_token_id": 2}
    config = hf.CLIPConfig(text_config=text, vision_config=PATCHES, projection_dim=12)
    return saved(tmp_path_factory.mktemp("clip"), hf.CLIPModel(config).eval())


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    torch.manual_seed(0)
    text = {**TEXT, "max_position_embeddings": 12, "projection_size": 16}
    config = hf.SiglipConfig(text_config=text, vision_config=PATCHES)
    network = hf.SiglipModel(config).eval()
    with torch.no_grad():
        network.logit_scale.fill_(1.5)
        network.logit_bias.fill_(-2.0)
    folder = tmp_path_factory.mktemp("siglip")
    return saved(folder, network, model_max_length=12)


CLASSES = ("red_dog", "blue cat", "sky")
IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("kind", "padding"), [("clip", True), ("siglip", "max_length")])
def test_a_zero_shot_head_says_what_the_pair_says(kind, padding, request):
    folder = request.getfixturevalue(kind)
    pair = hf.AutoModel.from_pretrained(folder).eval()
    network, preprocess, defaults = open_network(f"hf:{folder}", classes=3)
    assert isinstance(network, Tower)
    assert preprocess.height == 16
    assert defaults == Defaults(("q_proj", "v_proj"), ("head",))
    network.start_zero_shot(CLASSES, ["a drawing of the {}."])
    prompts = ["a drawing of the red dog.", "a drawing of the blue cat.", "a drawing of the sky."]
    read = tokenizer(model_max_length=12)(prompts, padding=padding, return_tensors="pt")
    with torch.no_grad():
        want = pair(pixel_values=IMAGES, **read).logits_per_image
        torch.testing.assert_close(network(IMAGES), want, rtol=1e-5, atol=1e-5)
    with pytest.raises(BellaError, match="no text encoder"):
        network.start_zero_shot(CLASSES)

    posterior = bella.low_rank(network, 2, 2, "auto", modules_to_save="auto").eval()
    torch.testing.assert_close(posterior(IMAGES)[1], want, rtol=1e-5, atol=1e-5)


def test_several_prompts_are_their_mean_direction(clip):
    one, two, both = (open_network(str(clip), classes=3).network for _ in range(3))
    one.start_zero_shot(CLASSES, ["a photo of a {}."])
    two.start_zero_shot(CLASSES, ["the {}"])
    both.start_zero_shot(CLASSES, ["a photo of a {}.", "the {}"])
    scale = both.head.weight.norm(dim=-1)
    torch.testing.assert_close(scale, one.head.weight.norm(dim=-1))
    mean = one.head.weight + two.head.weight
    torch.testing.assert_close(both.head.weight / scale[:, None], nn.functional.normalize(mean))


def test_zero_shot_heads_that_cannot_be_are_refused(clip, tmp_path):
    with pytest.raises(BellaError, match="has no classes of its own"):
        open_network(f"hf:{clip}")
    network = open_network(f"hf:{clip}", classes=3).network
    with pytest.raises(BellaError, match="2 names of classes, and the head has 3"):
        network.start_zero_shot(CLASSES[:2])
    with pytest.raises(BellaError, match="'zebra' and 'okapi' are the same text"):
        network.start_zero_shot(("sky", "zebra", "okapi"))
    with pytest.raises(BellaError, match="cannot be read"):
        network.start_zero_shot(CLASSES, ["a photo of the sky of a dog of the sky of a {}"])
    for templates in (["a photo"], [], ["{} {}"]):
        with pytest.raises(BellaError, match=r"one {} for the"):
            network.start_zero_shot(CLASSES, templates)
    hf.AutoModel.from_pretrained(clip).save_pretrained(tmp_path)
    network = open_network(f"hf:{tmp_path}", classes=3).network
    with pytest.raises(BellaError, match="no tokenizer"):
        network.start_zero_shot(CLASSES)


def test_a_clip_that_has_classes_is_opened_with_them(tmp_path):
    torch.manual_seed(0)
    text = {**TEXT, "max_position_embeddings": 12}
    config = hf.CLIPConfig(text_config=text, vision_config=PATCHES, num_labels=5)
    hf.CLIPForImageClassification(config).save_pretrained(tmp_path)
    network = open_network(f"hf:{tmp_path}").network
    assert network(IMAGES).logits.shape == (4, 5)


@pytest.fixture
def open_clip(monkeypatch):
    """open_clip with a small pair for its pre-trained one: its weights are on a hub."""
    import open_clip as library

    pair = ZOO["open-clip"].network("open-clip")
    pair.visual.preprocess_cfg = {
        "size": 16,
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.2, 0.1),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }

    def create_model(name, pretrained=None, **options):
        assert options["require_pretrained"]
        if (name, pretrained) != ("ViT-B-32", "openai"):
            raise RuntimeError(f"Pretrained value '{pretrained}' is not known")
        return copy.deepcopy(pair)

    def numbers(prompts):
        first = [(5 + sum(map(ord, prompt)) % 30, len(prompt) % 20 + 6) for prompt in prompts]
        return torch.tensor([[a, 7, b, 39, 0, 0] for a, b in first])

    monkeypatch.setattr(library, "create_model", create_model)
    monkeypatch.setattr(library, "get_tokenizer", lambda name: numbers)
    return pair, numbers


def test_open_clip_s_tower_with_a_zero_shot_head_is_its_pair(open_clip):
    pair, numbers = open_clip
    network, preprocess, defaults = open_network("open_clip:ViT-B-32/openai", classes=3)
    assert preprocess == Preprocess(
        16, (127.5, 102.0, 76.5), (51.0, 51.0, 25.5), crop=1.0, interpolation="bicubic"
    )
    assert defaults == Defaults(("c_fc", "c_proj"), ("head",))
    network.start_zero_shot(CLASSES, ["a {}"])
    with torch.no_grad():
        images, texts, scale = pair(IMAGES, numbers(["a red dog", "a blue cat", "a sky"]))
        want = scale * images @ texts.mT
        torch.testing.assert_close(network(IMAGES), want, rtol=1e-5, atol=1e-5)


def test_open_clip_names_are_checked(open_clip, monkeypatch):
    with pytest.raises(BellaError, match=r"tags of ViT-B-32 are openai"):
        open_network("open_clip:ViT-B-32", classes=3)
    with pytest.raises(BellaError, match="open_clip cannot open 'ViT-B-32/x'"):
        open_network("open_clip:ViT-B-32/x", classes=3)
    with pytest.raises(BellaError, match="no classes of its own"):
        open_network("open_clip:ViT-B-32/openai")
    with pytest.raises(BellaError, match="resize_mode='longest'"):
        read_preprocess({"resize_mode": "longest"})
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingExtraError, match="pip install open_clip_torch"):
        open_network("open_clip:ViT-B-32/openai", classes=3)


# ---------------------------------------------------------------- folders and functions


def test_a_folder_is_opened_by_what_is_in_it(clip, tmp_path, monkeypatch):
    assert full_name(str(clip)) == f"hf:{clip}"
    (tmp_path / "timms").mkdir()
    (tmp_path / "timms" / "config.json").write_text('{"architecture": "x", "pretrained_cfg": {}}')
    monkeypatch.chdir(tmp_path)
    assert full_name("timms") == f"timm:local-dir:{tmp_path / 'timms'}"
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "open_clip_config.json").write_text("{}")
    assert full_name("clips") == f"open_clip:local-dir:{tmp_path / 'clips'}"
    (tmp_path / "none").mkdir()
    with pytest.raises(BellaError, match="holds no network"):
        open_network(str(tmp_path / "none"))
    with pytest.raises(BellaError, match="No network is called 'nowhere'"):
        open_network("nowhere")


class Small(nn.Module):
    def __init__(self, classes=7):
        super().__init__()
        self.stem, self.mix = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, classes)

    def forward(self, x):
        return self.head(self.mix(self.stem(x)).mean((-2, -1)))


@pytest.fixture
def mine(monkeypatch):
    module = types.ModuleType("mine")
    module.__spec__ = importlib_spec("mine")
    module.small = lambda classes=7: Small(classes)
    module.whole = lambda classes: Opened(Small(classes), Preprocess(8), Defaults((), ("head",)))
    module.number = lambda: 3
    module.broken = lambda: 1 / 0
    module.constant = 3
    monkeypatch.setitem(sys.modules, "mine", module)


def importlib_spec(name):
    from importlib.machinery import ModuleSpec

    return ModuleSpec(name, None)


@pytest.mark.usefixtures("mine")
def test_a_function_of_one_s_own_makes_a_network():
    network, preprocess, defaults = open_network("mine:small", classes=3, image_size=16)
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 3)
    assert preprocess.height == 16
    assert defaults == Defaults(("mix",), ("head",))
    assert open_network("mine:small").network.head.out_features == 7
    one, two = (open_network("mine:small", 3, seed=1).network for _ in range(2))
    assert torch.equal(one.head.weight, two.head.weight)
    assert open_network("mine:whole", 2).preprocess.height == 8
    assert open_task("mine:small", "text-classification", 4).network.head.out_features == 4


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mine:number", "returns a int"),
        ("mine:broken", r"mine:broken fails \(division by zero\)"),
        ("mine:none", "cannot be imported"),
        ("mine:constant", "is no function"),
        ("thine:small", "No network is called"),
    ],
)
def test_functions_that_make_none_are_refused(name, said):
    with pytest.raises(BellaError, match=said):
        open_network(name)


@pytest.mark.usefixtures("mine")
def test_a_stranger_s_run_calls_no_function():
    with pytest.raises(BellaError, match="--own-code"):
        open_network("mine:broken", own_code=False)
    with pytest.raises(BellaError, match="--own-code"):
        open_network("os:getcwd", own_code=False)


# ---------------------------------------------------------------- by the command


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for name, shade in (("blue_cat", (20, 20, 200)), ("red_dog", (200, 20, 20))):
        (root / name).mkdir()
        for i in range(6):
            Image.new("RGB", (16, 16), tuple(s + i for s in shade)).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def command(capsys, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bella", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, capsys.readouterr()

    return run


def test_a_run_starts_zero_shot(command, clip, photos, tmp_path):
    asked = ("fit", "--data", photos, "--network", clip, "--epochs", 1, "--quiet")
    few = ("--learning-rate", "1e-9", "--particles", 2, "--heads", "zero-shot")
    prompts = ("--template", "a photo of a {}.", "--template", "the {}")
    status, said = command(*asked, *few, *prompts, "--out", tmp_path / "run")
    assert status == 0, said.err
    want = open_network(str(clip), classes=2).network
    want.start_zero_shot(("blue_cat", "red_dog"), ["a photo of a {}.", "the {}"])
    run = open_run(tmp_path / "run", device="cpu")
    assert run.classes == ("blue_cat", "red_dog")
    with torch.no_grad():
        torch.testing.assert_close(run.posterior(IMAGES)[1], want(IMAGES), rtol=1e-4, atol=1e-4)
    status, said = command("export", tmp_path / "run", "--out", tmp_path / "plain")
    assert status == 0, said.err
    status, said = command(*asked, *few, "--template", "the {}", "--out", tmp_path / "run")
    assert status == 2
    assert "another run (templates" in said.err


def test_a_network_without_texts_starts_no_zero_shot_head(command, photos, tmp_path):
    saved(tmp_path / "vit", ZOO["vit"].network("vit"))
    asked = ("fit", "--data", photos, "--network", tmp_path / "vit", "--heads", "zero-shot")
    status, said = command(*asked, "--out", tmp_path / "run")
    assert status == 2
    assert "was not trained with texts" in said.err


@pytest.mark.usefixtures("mine")
def test_a_run_of_one_s_own_network_opens_where_its_code_is_trusted(command, photos, tmp_path):
    asked = ("fit", "--data", photos, "--network", "mine:small", "--image-size", 16, "--rank", 2)
    status, said = command(*asked, "--epochs", 1, "--out", tmp_path / "run", "--quiet")
    assert status == 0, said.err
    for name, more in (
        ("evaluate", ("--data", photos)),
        ("predict", (photos, "--out", tmp_path / "p.csv")),
        ("export", ("--out", tmp_path / "x.safetensors")),
        ("cost", ()),
        ("report", ("--out", tmp_path / "r.html")),
    ):
        status, said = command(name, tmp_path / "run", *more)
        assert status == 2
        assert "--own-code" in said.err
        assert command(name, tmp_path / "run", *more, "--own-code", "--quiet")[0] == 0
