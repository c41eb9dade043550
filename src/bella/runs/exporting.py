"""One plain network of a run, as transformers or timm load it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from bella.data import Preprocess
from bella.errors import BellaError
from bella.files import whole_folder, write_json, write_whole
from bella.particles.quantised import refuse_whole
from bella.runs.opened import TrainedRun
from bella.runs.texts.opened import TextRun

WEIGHTS = "model.safetensors"
FILE = "config.json"


def export(run: TrainedRun | TextRun, out: str | Path, particle: int | None = None) -> int:
    """Write the soup of all particles, or one of them, as a plain network.

    A folder is what the network's own library opens: of ``hf:`` networks
    ``AutoModelForImageClassification.from_pretrained(out)``, with the classes' names in its
    configuration and an image processor that does what the run's preprocessing does; of runs on
    texts ``AutoModelForSequenceClassification`` or ``AutoModelForCausalLM``, with the tokenizer; of
    ``timm:`` ones ``timm.create_model("local-dir:OUT", pretrained=True)``; of others the weights
    beside a ``config.json`` with the network's name, the classes and the preprocessing.

    Args:
        run: opened, on the CPU.
        out: a new or empty folder, or a file ``*.safetensors`` for the weights alone.
        particle: which; ``None`` for the soup.

    Returns:
        How many numbers the network has.

    Raises:
        BellaError: no such particle, a folder that holds something, or a base that is quantised.
    """
    out = Path(out)
    if out.suffix != ".safetensors" and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BellaError(f"{out} holds something: export to a new folder, or a .safetensors file.")
    posterior = run.posterior
    refuse_whole(posterior.network)
    plain = posterior.soup() if particle is None else posterior.particle(particle)
    state = {name: value.contiguous().clone() for name, value in plain.state_dict().items()}
    if out.suffix == ".safetensors":
        write_whole(out, lambda path: save_file(state, path))
    else:
        _write_folder(run, plain, state, out)
    return sum(value.numel() for value in state.values())


def _write_folder(
    run: TrainedRun | TextRun, plain: nn.Module, state: dict[str, Tensor], out: Path
) -> None:
    with whole_folder(out) as unfinished:
        if isinstance(run, TextRun):
            _name_classes(plain, run.classes)
            plain.save_pretrained(unfinished)  # type: ignore[operator]
            run.asked.tokenizer.save_pretrained(unfinished)
        elif run.network.startswith("hf:") and hasattr(plain, "save_pretrained"):
            _for_transformers(run, plain, unfinished)
        else:
            save_file(state, unfinished / WEIGHTS)
            write_json(unfinished / FILE, _configuration(run, plain))


def _for_transformers(run: TrainedRun, plain: Any, folder: Path) -> None:
    _name_classes(plain, run.classes)
    plain.save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", processor_config(run.preprocess))


def _name_classes(plain: Any, classes: Sequence[str]) -> None:
    """In the configuration of a network of transformers, where there are classes."""
    if classes:
        plain.config.id2label = dict(enumerate(classes))
        plain.config.label2id = {name: number for number, name in enumerate(classes)}


def processor_config(preprocess: Preprocess) -> dict[str, Any]:
    """A preprocessing as the configuration of one of transformers' image processors."""
    height, width = preprocess.height, preprocess.width
    config: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": int(Image.Resampling[preprocess.interpolation.upper()]),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [float(x) / 255 for x in preprocess.mean],  # type: ignore[union-attr]
        "image_std": [float(x) / 255 for x in preprocess.std],  # type: ignore[union-attr]
    }
    if preprocess.crop is None:
        return config
    return config | {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": round(min(height, width) / preprocess.crop)},
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
    }


def _configuration(run: TrainedRun, plain: nn.Module) -> dict[str, Any]:
    """What stands beside the weights: timm's form for its networks, else bella's own."""
    known = getattr(plain, "pretrained_cfg", None)
    if not run.network.startswith("timm:") or not known:
        return {
            "network": run.network,
            "classes": list(run.classes),
            "preprocess": run.preprocess.to_dict(),
        }
    mean, std = ([x / 255 for x in values] for values in (run.preprocess.mean, run.preprocess.std))  # type: ignore[union-attr]
    return {
        "architecture": known["architecture"],
        "num_classes": len(run.classes),
        "num_features": getattr(plain, "num_features", None),
        "label_names": list(run.classes),
        "pretrained_cfg": {
            "num_classes": len(run.classes),
            "input_size": [3, run.preprocess.height, run.preprocess.width],
            "mean": mean,
            "std": std,
            "crop_pct": run.preprocess.crop or 1.0,
            "interpolation": run.preprocess.interpolation,
            **{name: known[name] for name in ("first_conv", "classifier") if name in known},
        },
    }
