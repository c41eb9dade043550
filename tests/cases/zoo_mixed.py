"""Networks that see and read, or hear."""

from __future__ import annotations

import copy

import torch
import transformers as hf
from zoo_base import (
    PATCHES,
    SMALL,
    TEXT,
    Architecture,
    Inputs,
    generator,
    ids,
    padding,
    pixels,
    waves,
)

IMAGE_TOKEN = 39
LLAMA = {**TEXT, "num_key_value_heads": 1, "head_dim": 8}


def clip():
    text = {**TEXT, "max_position_embeddings": 8}
    return hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=PATCHES, projection_dim=12))


def siglip():
    text = {**TEXT, "max_position_embeddings": 8, "projection_size": 16}
    return hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=PATCHES))


def pairs(batch: int) -> Inputs:
    """As many images as texts; the end of a text is its largest token."""
    tokens = ids(batch)
    tokens[:, -1] = 2
    return (), {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "pixel_values": pixels(batch),
    }


def prompts(batch: int) -> Inputs:
    """Three texts, however many images: a zero-shot head."""
    args, kwargs = pairs(3)
    return args, {**kwargs, "pixel_values": pixels(batch)}


def llava():
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**PATCHES),
        text_config=hf.LlamaConfig(**LLAMA),
        image_token_index=IMAGE_TOKEN,
    )
    return hf.LlavaForConditionalGeneration(config)


def paligemma():
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(**PATCHES, projection_dim=16, vision_use_head=False),
        text_config=hf.GemmaConfig(**LLAMA),
        image_token_index=IMAGE_TOKEN,
        projection_dim=16,
        hidden_size=16,
    )
    return hf.PaliGemmaForConditionalGeneration(config)


def illustrated(batch: int) -> Inputs:
    """A text that begins with the four places of an image's patches."""
    tokens = torch.cat((torch.full((batch, 4), IMAGE_TOKEN), ids(batch)), 1)
    return (), {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "pixel_values": pixels(batch),
        "use_cache": False,
    }


def typed(batch: int) -> Inputs:
    args, kwargs = illustrated(batch)
    return args, {**kwargs, "token_type_ids": torch.zeros_like(kwargs["input_ids"])}


def blip():
    config = hf.BlipConfig(
        text_config={
            **TEXT,
            "encoder_hidden_size": 16,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "is_decoder": True,
            "sep_token_id": 2,
        },
        vision_config=PATCHES,
        projection_dim=12,
        image_text_hidden_size=12,
    )
    return hf.BlipForImageTextRetrieval(config)


def git():
    config = hf.GitConfig(
        **TEXT,
        vision_config=PATCHES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        use_cache=False,
    )
    return hf.GitForCausalLM(config)


# Sound

WAVES = {
    **SMALL,
    "vocab_size": 12,
    "conv_dim": (8, 8),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "num_labels": 3,
    "classifier_proj_size": 8,
    "mask_time_prob": 0.0,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "feat_extract_norm": "layer",
}


def wav2vec2():
    config = hf.Wav2Vec2Config(**WAVES, layerdrop=0.0)
    return hf.Wav2Vec2ForSequenceClassification(config)


def wav2vec2_skipping():
    config = hf.Wav2Vec2Config(**WAVES, layerdrop=0.4)
    return hf.Wav2Vec2ForSequenceClassification(config)


def hubert():
    return hf.HubertForCTC(hf.HubertConfig(**WAVES, layerdrop=0.0))


def audio_spectrogram():
    config = hf.ASTConfig(
        **SMALL,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        patch_size=4,
        frequency_stride=4,
        time_stride=4,
        max_length=12,
        num_mel_bins=8,
        num_labels=3,
    )
    return hf.ASTForAudioClassification(config)


WHISPER = hf.WhisperConfig(
    vocab_size=40,
    d_model=16,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=24,
    decoder_ffn_dim=24,
    num_mel_bins=8,
    max_source_positions=10,
    max_target_positions=16,
    dropout=0.0,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=1,
    use_cache=False,
)


def whisper():
    return hf.WhisperForConditionalGeneration(copy.deepcopy(WHISPER))


def whisper_encoder():
    config = copy.deepcopy(WHISPER)
    config.num_labels, config.classifier_proj_size = 3, 8
    return hf.WhisperForAudioClassification(config)


def padded_wave(batch: int) -> Inputs:
    return (), {"input_values": waves(batch), "attention_mask": padding(batch, "right", 400)}


def wave(batch: int) -> Inputs:
    return (), {"input_values": waves(batch), "output_hidden_states": True}


def spectrogram(batch: int) -> Inputs:
    return (), {"input_values": torch.randn(batch, 12, 8, generator=generator(batch))}


def heard(batch: int) -> Inputs:
    args, kwargs = spoken(batch)
    return args, {"input_features": kwargs["input_features"]}


def spoken(batch: int) -> Inputs:
    """Twenty frames, which the encoder halves to its ten positions."""
    sound = torch.randn(batch, 8, 20, generator=generator(batch))
    return (), {"input_features": sound, "decoder_input_ids": ids(batch, 4)}


ZOO = {
    "clip": Architecture(clip, pairs),
    "clip-prompts": Architecture(clip, prompts),
    "siglip": Architecture(siglip, pairs),
    "llava": Architecture(llava, illustrated),
    "paligemma": Architecture(paligemma, typed),
    "blip": Architecture(blip, pairs),
    "git": Architecture(git, pairs),
    "wav2vec2": Architecture(wav2vec2, wave),
    "wav2vec2-skipping": Architecture(wav2vec2_skipping, wave, skips_layers=True),
    "hubert": Architecture(hubert, padded_wave),
    "audio-spectrogram": Architecture(audio_spectrogram, spectrogram),
    "whisper": Architecture(whisper, spoken),
    "whisper-encoder": Architecture(whisper_encoder, heard),
}
