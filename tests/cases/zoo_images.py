"""Image networks of transformers, timm and open_clip."""

from __future__ import annotations

import transformers as hf
from zoo_base import PATCHES, Architecture, ids, image, pixels, positional_image

NO_DROP = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def vit():
    return hf.ViTForImageClassification(hf.ViTConfig(**PATCHES, **NO_DROP, num_labels=3))


def deit():
    config = hf.DeiTConfig(**PATCHES, **NO_DROP, num_labels=3)
    return hf.DeiTForImageClassificationWithTeacher(config)


def beit():
    config = hf.BeitConfig(
        **PATCHES, **NO_DROP, num_labels=3, drop_path_rate=0.0, use_relative_position_bias=True
    )
    return hf.BeitForImageClassification(config)


def dinov2():
    kwargs = {**PATCHES, "mlp_ratio": 2, "num_labels": 3}
    kwargs.pop("intermediate_size")
    return hf.Dinov2ForImageClassification(hf.Dinov2Config(**kwargs, **NO_DROP))


SWIN = {
    "image_size": 16,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [2, 1],
    "num_heads": [2, 2],
    "window_size": 4,
    "mlp_ratio": 2.0,
    "drop_path_rate": 0.0,
    "num_labels": 3,
}


def swin():
    return hf.SwinForImageClassification(hf.SwinConfig(**SWIN, **NO_DROP))


def swinv2():
    return hf.Swinv2ForImageClassification(hf.Swinv2Config(**SWIN, **NO_DROP))


def convnext():
    config = hf.ConvNextConfig(
        hidden_sizes=[8, 16], depths=[1, 2], num_stages=2, drop_path_rate=0.0, num_labels=3
    )
    return hf.ConvNextForImageClassification(config)


def resnet():
    config = hf.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 2],
        layer_type="bottleneck",
        num_labels=3,
    )
    return hf.ResNetForImageClassification(config)


def efficientnet():
    config = hf.EfficientNetConfig(
        image_size=16,
        width_coefficient=0.25,
        depth_coefficient=0.4,
        in_channels=[32, 16],
        out_channels=[16, 24],
        strides=[1, 2],
        kernel_sizes=[3, 3],
        num_block_repeats=[1, 2],
        expand_ratios=[1, 2],
        depthwise_padding=[],
        hidden_dim=320,
        dropout_rate=0.0,
        drop_connect_rate=0.0,
        num_labels=3,
    )
    return hf.EfficientNetForImageClassification(config)


def mobilevit():
    config = hf.MobileViTConfig(
        image_size=64,
        patch_size=2,
        hidden_sizes=[8, 12, 16],
        neck_hidden_sizes=[4, 4, 8, 8, 8, 8, 16],
        num_attention_heads=2,
        mlp_ratio=2.0,
        expand_ratio=2.0,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        classifier_dropout_prob=0.0,
        num_labels=3,
    )
    return hf.MobileViTForImageClassification(config)


def segformer():
    config = hf.SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 2],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=12,
        drop_path_rate=0.0,
        classifier_dropout_prob=0.0,
        num_labels=3,
        **NO_DROP,
    )
    return hf.SegformerForSemanticSegmentation(config)


def clip_vision():
    return hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**PATCHES, projection_dim=6))


def siglip_vision():
    return hf.SiglipVisionModel(hf.SiglipVisionConfig(**PATCHES))


def open_clip():
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(layers=2, width=16, head_width=8, image_size=16, patch_size=8)
    text = CLIPTextCfg(context_length=6, vocab_size=40, width=16, heads=2, layers=2)
    return CLIP(12, vision, text)


def open_clip_split():
    """Its attention taken apart: particles on the projections themselves."""
    from bella.models import split_attention

    network = open_clip()
    split_attention(network)
    return network


def open_clip_resnet():
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(layers=(1, 1, 1, 1), width=8, image_size=32)
    text = CLIPTextCfg(context_length=6, vocab_size=40, width=16, heads=2, layers=1)
    return CLIP(12, vision, text).visual


def timm(name: str, **options):
    def build():
        from timm import create_model

        return create_model(name, pretrained=False, num_classes=3, **options)

    return build


def timm_mixer():
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(num_classes=3, img_size=16, patch_size=8, embed_dim=16, num_blocks=2)


def timm_regnet():
    from timm.models.regnet import RegNet, RegNetCfg

    config = RegNetCfg(5, w0=8, wa=14.0, wm=2.0, group_size=4, se_ratio=0.25, stem_width=8)
    return RegNet(config, num_classes=3)


TINY_VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}

ZOO = {
    "vit": Architecture(vit, image(output_hidden_states=True)),
    "deit": Architecture(deit, image()),
    "beit": Architecture(beit, image()),
    "dinov2": Architecture(dinov2, image()),
    "swin": Architecture(swin, image(output_hidden_states=True)),
    "swinv2": Architecture(swinv2, image()),
    "convnext": Architecture(convnext, image(32)),
    "resnet": Architecture(resnet, image(32, output_hidden_states=True)),
    "efficientnet": Architecture(efficientnet, image(output_hidden_states=True)),
    "mobilevit": Architecture(mobilevit, image(64, output_hidden_states=True)),
    "segformer": Architecture(segformer, image(32)),
    "clip-vision": Architecture(clip_vision, image()),
    "siglip-vision": Architecture(siglip_vision, image()),
    "timm-resnet": Architecture(
        timm("resnet26", layers=(1, 1, 1, 1), channels=(4, 4, 8, 8), stem_width=4),
        positional_image(32),
    ),
    "timm-efficientnet": Architecture(timm("test_efficientnet"), positional_image(32)),
    "timm-vit": Architecture(timm("vit_tiny_patch16_224", **TINY_VIT), positional_image()),
    "timm-vit-pooled": Architecture(
        timm("vit_tiny_patch16_224", **TINY_VIT, global_pool="map", class_token=False),
        positional_image(),
    ),
    "timm-swin": Architecture(
        timm(
            "swin_tiny_patch4_window7_224",
            img_size=16,
            patch_size=2,
            window_size=4,
            embed_dim=8,
            depths=(2, 1),
            num_heads=(2, 2),
            drop_path_rate=0.0,
        ),
        positional_image(),
    ),
    "timm-convnext": Architecture(
        timm("convnext_atto", depths=(1, 1, 1, 1), dims=(4, 8, 8, 12)), positional_image(32)
    ),
    "timm-mixer": Architecture(timm_mixer, positional_image()),
    "timm-regnet": Architecture(timm_regnet, positional_image(32)),
    "open-clip": Architecture(open_clip, lambda batch: ((pixels(batch), ids(batch)), {})),
    "open-clip-split": Architecture(
        open_clip_split, lambda batch: ((pixels(batch), ids(batch)), {})
    ),
    "open-clip-resnet": Architecture(open_clip_resnet, positional_image(32)),
}
