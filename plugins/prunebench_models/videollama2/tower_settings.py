"""The two vision towers that official checkpoints name without holding their configuration."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

from prunebench.errors import ModelError, first_line

__all__ = ["TOWERS", "image_settings", "tower_settings"]

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]

TOWERS: dict[str, dict[str, dict[str, Any]]] = {
    "openai/clip-vit-large-patch14-336": {
        "config": {
            "model_type": "clip_vision_model",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "projection_dim": 768,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
        "images": {
            "do_resize": True,
            "size": {"shortest_edge": 336},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": 336, "width": 336},
            "do_normalize": True,
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
        },
    },
    "google/siglip-so400m-patch14-384": {
        "config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 384,
            "patch_size": 14,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
        },
        "images": {
            "do_resize": True,
            "size": {"height": 384, "width": 384},
            "resample": 3,
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
    },
}
"""Hub name → configuration and image preprocessing, as those repositories give them."""


def tower_settings(name: str, folder: Path | None) -> dict[str, Any]:
    """The vision configuration of `mm_vision_tower`: a folder beside the weights, else one of `TOWERS`.

    Raises:
        ModelError: neither, or a file that is not readable.
    """
    if (found := _beside(name, folder, "config.json")) is not None:
        if "vision_config" in found:  # a whole CLIP or SigLIP model keeps it one level down
            return {"model_type": f"{found.get('model_type')}_vision_model", **found["vision_config"]}
        return found
    return deepcopy(_shipped(name, folder)["config"])


def image_settings(name: str, folder: Path | None) -> dict[str, Any]:
    """The image preprocessing of `mm_vision_tower`: from the same folder, else from `TOWERS`.

    Raises:
        ModelError: neither, or a file that is not readable.
    """
    found = _beside(name, folder, "preprocessor_config.json")
    return deepcopy(_shipped(name, folder)["images"]) if found is None else found


def _beside(name: str, folder: Path | None, file: str) -> dict[str, Any] | None:
    return None if folder is None else _read(folder / name / file)


def _shipped(name: str, folder: Path | None) -> dict[str, dict[str, Any]]:
    if name not in TOWERS:
        raise ModelError(
            f"vision tower {name!r}: no such folder in {folder}, and by name only {' and '.join(TOWERS)} are known"
        )
    return TOWERS[name]


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable JSON: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} does not hold a JSON object")
    return found
