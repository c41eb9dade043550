"""A little network that sees and writes, in a folder as transformers saves it, and questions."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers as hf
from language_cases import small_tokenizer
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 220)}
WORDS = (
    "<image> question answer what color is it there a yes no how many one two three "
    + " ".join(COLOURS)
).split()


def save_llava(folder: Path, side: int = 8) -> Path:
    """A LLaVA of two patches a side, whose words are `WORDS`."""
    tokenizer = small_tokenizer(WORDS)
    # Read as a word of its own wherever it stands, as LLaVA's.
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    torch.manual_seed(0)
    vision = hf.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=side,
        patch_size=side // 2,
    )
    text = hf.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    config = hf.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    network = hf.LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() > 1:  # wide, so that what is seen changes what is said
                weight.normal_(0, 0.3)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def save_questions(folder: Path, count: int = 12, people: bool = True) -> Path:
    """Questions about pictures of one colour, with ten people's answers or with one."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        name = list(COLOURS)[number % 3]
        Image.new("RGB", (10, 10), COLOURS[name]).save(folder / f"{number}.png")
        line = {"image": f"{number}.png", "question": "what color is it"}
        if number % 4 == 3:
            line["question"], name = "is it red", "yes" if name == "red" else "no"
        line["people"] = [name] * 8 + ["one", "a two"] if people else name
        lines.append(json.dumps(line))
    path = folder / "questions.jsonl"
    path.write_text("\n".join(lines))
    return path
