"""Official-format checkpoints of any small shape, from nothing: a tensor's values follow from its key."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

__all__ = ["AUDIO_KEYS", "FOLDER", "SHARED_BIAS", "shapes", "values", "write_checkpoint"]

FOLDER = Path(__file__).parent
AUDIO_KEYS = ("model.audio_tower.", "model.mm_projector_a.")
AUDIO_FIELDS = ("mm_audio_tower", "mm_projector_a_type", "mm_hidden_size_a", "hidden_size_a", "beats_config")
SHARED_BIAS = ".self_attn.relative_attention_bias.weight"
"""One table under the name of every layer of the audio tower."""


def values(key: str, shape: Collection[int]) -> np.ndarray:
    """The float32 tensor of a key; nothing but its name and shape matters.

    Standard normal numbers, scaled by what the tensor is for, so that activations stay of order one.
    """
    drawn = np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF).standard_normal(int(np.prod(shape)))
    x = drawn.astype(np.float32).reshape(tuple(shape))
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "grep_a":
        return 1.0 + 0.1 * x
    if leaf == "weight_g":
        return 1.0 + 0.1 * np.abs(x)
    if leaf in ("bias", "class_embedding"):
        return 0.02 * x
    if x.ndim == 1:
        return 1.0 + 0.1 * x
    if "embed" in key and leaf == "weight" and x.ndim == 2:
        return (0.5 if "embed_tokens" in key else 0.05) * x
    return (1.0 / np.sqrt(int(np.prod(x.shape[1:])))) * x


def shapes(variant: str, *, layers: int | None = None, audio: bool = True) -> dict[str, list[int]]:
    """Official key → shape; with another number of decoder layers, or without the audio tower."""
    found = json.loads((FOLDER / variant / "shapes.json").read_text())
    if not audio:
        found = {key: shape for key, shape in found.items() if not key.startswith(AUDIO_KEYS)}
    if layers is not None:
        first = {key: shape for key, shape in found.items() if key.startswith("model.layers.0.")}
        found = {key: shape for key, shape in found.items() if not key.startswith("model.layers.")}
        for layer in range(layers):
            found |= {key.replace(".0.", f".{layer}.", 1): shape for key, shape in first.items()}
    return found


def write_checkpoint(
    variant: str,
    folder: Path,
    *,
    layers: int | None = None,
    audio: bool = True,
    shards: int = 2,
    leave_out: Collection[str] = (),
    **config: Any,
) -> Path:
    """A checkpoint as the official repositories have it: shards, index, configuration, tokenizer, tower settings.

    Args:
        variant: ``mistral_clip`` or ``qwen2_av``.
        folder: where to.
        layers: decoder layers, if not as recorded.
        audio: False leaves out the audio tower and what the configuration says of it.
        shards: number of files.
        leave_out: keys to leave out.
        config: fields of the configuration to set; None removes a field.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for source in (FOLDER / variant).iterdir():
        if source.is_dir():
            shutil.copytree(source, folder / source.name, dirs_exist_ok=True)
        elif source.name not in ("expected.npz", "shapes.json"):
            shutil.copyfile(source, folder / source.name)
    fields = json.loads((folder / "config.json").read_text())
    if layers is not None:
        config = {"num_hidden_layers": layers, **config}
    config = {**({} if audio else dict.fromkeys(AUDIO_FIELDS)), **config}
    fields = {key: value for key, value in {**fields, **config}.items() if value is not None or key not in config}
    (folder / "config.json").write_text(json.dumps(fields, indent=1))

    wanted = {k: s for k, s in shapes(variant, layers=layers, audio=audio).items() if k not in set(leave_out)}
    keys, per_shard = sorted(wanted), -(-len(wanted) // shards)
    weight_map: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {}
        for key in keys[number * per_shard : (number + 1) * per_shard]:
            drawn_as = f"model.audio_tower.encoder.layers.0{SHARED_BIAS}" if key.endswith(SHARED_BIAS) else key
            part[key] = np.ascontiguousarray(values(drawn_as, wanted[key]))
            weight_map[key] = file
        save_file(part, folder / file, metadata={"format": "pt"})
    total = sum(4 * int(np.prod(shape)) for shape in wanted.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
