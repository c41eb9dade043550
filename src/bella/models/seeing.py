"""Networks that see a picture and write about it, in LLaVA's shape, with what reads for them.

Source: Liu et al., Visual Instruction Tuning, NeurIPS 2023, and Improved Baselines with Visual
Instruction Tuning, CVPR 2024 (LLaVA-1.5, whose prompt for short answers this is).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bella.data.images import Preprocess
from bella.errors import BellaError, nearest, require
from bella.files import shortened
from bella.models.from_hub import load, tokenizer_of
from bella.models.hugging_face import preprocess_of
from bella.models.language import LATE_BLOCKS
from bella.models.opened import Defaults, check_patches, guess_defaults, seeded
from bella.models.smollm2 import smollm2_folder
from bella.models.vit_s import EYE, load_vit_s14, vit_s14_config

LLAVA_SMOLLM2 = "llava-smollm2"
PICTURE = "<image>"
"""Where the picture stands in a prompt."""
SHORT = (
    f"USER: {PICTURE}\n{{question}}\nAnswer the question using a single word or phrase. ASSISTANT:"
)
"""LLaVA-1.5's prompt for short answers."""
PLAIN = f"{PICTURE}\nQuestion: {{question}}\nAnswer:"
RESERVED = "<file_sep>"
"""A token of SmolLM2 for parts of source code, which no question holds: it stands for a patch."""


@dataclass(frozen=True)
class Seeing:
    """A network that sees and writes, in evaluation mode, with what belongs to it.

    Attributes:
        network: in LLaVA's shape.
        tokenizer: of its language model.
        preprocess: from a PIL image to a tensor.
        defaults: what to adapt.
        prompt: with ``<image>`` and ``{question}``, where nobody gives another.
        patch: the token that stands for a patch of the picture.
        patches: how many a picture has.
        fresh: whether its projector has not been trained.
    """

    network: nn.Module
    tokenizer: Any
    preprocess: Preprocess
    defaults: Defaults
    prompt: str
    patch: int
    patches: int
    fresh: bool = False

    def tokens(self, prompt: str) -> list[int]:
        """A text's tokens, the picture's among them, as transformers' own processors make them.

        Raises:
            BellaError: the picture does not stand in it just once, or the word for a patch stands
                in it.
        """
        if prompt.count(PICTURE) != 1:
            raise BellaError(f"The prompt {prompt!r:.80} must hold {PICTURE} once.")
        word = self.tokenizer.convert_ids_to_tokens(self.patch)
        found = self.tokenizer(prompt.replace(PICTURE, word * self.patches))["input_ids"]
        if found.count(self.patch) != self.patches:
            raise BellaError(
                f"The prompt {prompt!r:.80} must not hold {word}, which stands for a patch of the "
                "picture."
            )
        return list(found)


def open_seeing(
    name: str, image_size: int | None = None, seed: int = 0, *, quantised: str | None = None
) -> Seeing:
    """Open a network that sees and writes.

    Code that comes with a network is never run.

    Args:
        name: ``llava-smollm2``: the eye of `bella.models.vit_s`, a fresh projector and
            SmolLM2-135M-Instruct (a dequantised 4-bit copy); or ``hf:`` and a name on the hub, or a
            folder that transformers saved, of a network in LLaVA's shape.
        image_size: side of the pictures in pixels; the network's own by default.
        seed: of a fresh projector.
        quantised: how the base of a network of transformers is held, see `bella.models.open_task`.

    Raises:
        BellaError: the name is unknown, or what it names cannot do this.
        MissingExtraError: a library or package is not installed.
    """
    if name == LLAVA_SMOLLM2:
        if quantised is not None:
            raise BellaError(
                f"{name} is put together from parts that are small: leave out quantised="
                f"{quantised!r}, or name hf:..."
            )
        opened = _llava_smollm2(image_size or 56, seed)
        check_patches(name, opened.network, image_size)
        return opened
    family, _, place = name.partition(":")
    if family != "hf" or not place:
        known = [LLAVA_SMOLLM2, "hf:"]
        raise BellaError(
            f"No network that sees and writes is called {name!r}: near are {nearest(name, known)}."
        )
    network = load(
        "AutoModelForImageTextToText",
        place,
        "a network that sees and writes",
        quantised=quantised,
    )
    tokenizer = tokenizer_of(place)
    if tokenizer is None:
        raise BellaError(f"{name!r} has no tokenizer: save it into the same folder.")
    config: Any = network.config
    patch = getattr(config, "image_token_id", None)
    if patch is None or not hasattr(_inner(network), "multi_modal_projector"):
        raise BellaError(
            f"{name!r} is a {type(network).__name__}, and not of LLaVA's shape (an eye, a "
            "projector, a language model, and a token for patches): choose one that is."
        )
    check_patches(name, network, image_size)
    side = getattr(config.vision_config, "image_size", 224)
    preprocess = preprocess_of(place, side, image_size)
    return _with_padding(network, tokenizer, preprocess, guess_defaults(network), SHORT, patch)


def _llava_smollm2(side: int, seed: int) -> Seeing:
    """The one that is put together here."""
    transformers = require("transformers", extra="hf")
    folder = smollm2_folder()
    language = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    patch = tokenizer.convert_tokens_to_ids(RESERVED)
    config = transformers.LlavaConfig(
        vision_config=vit_s14_config(EYE),
        text_config=language.config,
        image_token_index=patch,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    with seeded(seed):
        network = transformers.LlavaForConditionalGeneration(config)
    network.generation_config = language.generation_config
    network.model.language_model.load_state_dict(language.model.state_dict())
    network.tie_weights()
    load_vit_s14(network.model.vision_tower)
    # As many of the prompt's places as the picture has patches: a side of whole patches.
    preprocess = Preprocess(side)
    late = LATE_BLOCKS.replace("model", r"model\.language_model", 1)
    defaults = Defaults((late,), ())
    return _with_padding(network, tokenizer, preprocess, defaults, PLAIN, patch, fresh=True)


def _with_padding(
    network: nn.Module,
    tokenizer: Any,
    preprocess: Preprocess,
    defaults: Defaults,
    prompt: str,
    patch: int,
    fresh: bool = False,
) -> Seeing:
    network.requires_grad_(False).eval()
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    config: Any = network.generation_config
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    blank = torch.zeros(1, 3, preprocess.height, preprocess.width)
    try:
        patches = len(features_of(network, blank)[0])
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise BellaError(
            f"This {type(network).__name__} does not take pictures of {preprocess.height}x"
            f"{preprocess.width} pixels ({shortened(error)}): choose another image_size."
        ) from error
    return Seeing(network, tokenizer, preprocess, defaults, prompt, patch, patches, fresh)


# ---------------------------------------------------------------- the eye and the projector


def _inner(network: nn.Module) -> Any:
    return getattr(network, "model", network)


def projector_of(network: nn.Module) -> nn.Module:
    """What turns the eye's features into places of the text."""
    return _inner(network).multi_modal_projector


@torch.no_grad()
def features_of(network: nn.Module, pictures: Tensor) -> Tensor:
    """What reaches the projector, (batch, patches, width of the eye)."""
    met: list[Tensor] = []
    hook = projector_of(network).register_forward_pre_hook(lambda _, args: met.append(args[0]))
    weight = next(_inner(network).vision_tower.parameters())
    try:
        network.get_image_features(  # type: ignore[operator]
            pixel_values=pictures.to(weight.device, weight.dtype)
        )
    finally:
        hook.remove()
    return met[0]


def read_with(
    network: nn.Module, features: Tensor, input_ids: Tensor, attention_mask: Tensor, kept: int
) -> Tensor:
    """The logits of the last places of a text, (batch, kept, vocabulary), with the eye's features
    given: what the network gives for the picture, at the price of its projector and language model.

    Args:
        network: in LLaVA's shape.
        features: (batch, patches, width of the eye).
        input_ids: (batch, length), as many places of the patch's token as there are patches.
        attention_mask: of the same shape.
        kept: how many places, from the end.
    """
    inner: Any = _inner(network)
    texts = network.get_input_embeddings()(input_ids)  # type: ignore[operator]
    seen = inner.multi_modal_projector(features).to(texts.dtype)
    here = (input_ids == network.config.image_token_id).unsqueeze(-1)  # type: ignore[union-attr]
    embeds = texts.masked_scatter(here.expand_as(texts), seen)
    states = inner.language_model(
        inputs_embeds=embeds, attention_mask=attention_mask, use_cache=False
    ).last_hidden_state
    return network.get_output_embeddings()(states[:, -kept:])  # type: ignore[operator]
