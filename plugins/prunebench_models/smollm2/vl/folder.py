"""The whole model as a folder: SmolLM2's weights with the shipped adapter merged in, made once and cached."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prunebench import jsonio
from prunebench.checkpoint import read_json
from prunebench.errors import ModelError, first_line
from prunebench_models.smollm2.cache import WEIGHTS, cache_dir, make_folder, sha256_of
from prunebench_models.smollm2.convert import model_folder, weights_revision
from prunebench_models.smollm2.vl import ADAPTER_FILE, SETTINGS_FILE, weights_dir

__all__ = ["adapter_revision", "merged_folder", "new_config"]

MERGING = "2"
"""Changes whenever the same files would give other weights, or a folder with other files."""


def new_config(base: Any, vision: dict[str, Any], max_frames: int) -> Any:
    """SmolLM2's configuration with a tower's."""
    from prunebench_models.smollm2.vl.modeling import SmolLM2VLConfig

    values = {key: value for key, value in base.to_dict().items() if key not in ("model_type", "architectures")}
    return SmolLM2VLConfig(**values, vision_config=vision, max_frames=max_frames)


def adapter_revision(adapter: Path) -> str:
    """Identity of the merged weights: of the files that they come from."""
    return jsonio.digest({"base": weights_revision(), "adapter": sha256_of(adapter / ADAPTER_FILE), "merging": MERGING})


def merged_folder(adapter: Path | None = None, say: Callable[[str], None] | None = None) -> Path:
    """The merged model's folder; made on the first call.

    Args:
        adapter: folder with the adapter weights; None takes the shipped ones.
        say: told what is going on, one line at a time.

    Raises:
        ModelError: no adapter weights, weights that do not fit, or a folder that cannot be written.
    """
    adapter = adapter or weights_dir()
    if not (adapter / ADAPTER_FILE).is_file():
        raise ModelError(f"no SmolLM2-VL weights ({ADAPTER_FILE}) in {adapter}: `make smollm2-vl` trains them")
    say = say or (lambda line: None)
    target = cache_dir() / "smollm2-vl" / adapter_revision(adapter)[:16]
    if (target / WEIGHTS).is_file():
        return target
    base = model_folder(say)
    say(f"merging the adapter into SmolLM2's weights in {target} (once)")
    make_folder(target, lambda folder: _merge(base, adapter, folder))
    return target


def _merge(base: Path, adapter: Path, folder: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import LlamaConfig

    from prunebench_models.smollm2.vl.lora import merged_state

    settings = read_json(adapter / SETTINGS_FILE)
    try:
        if settings["base_revision"] != weights_revision():
            raise ModelError(f"the adapter in {adapter} was trained on other SmolLM2 weights: train it anew")
        config = new_config(LlamaConfig.from_pretrained(base), settings["vision_config"], settings["max_frames"])
        weights, shipped = load_file(base / WEIGHTS), load_file(adapter / ADAPTER_FILE)
        state = merged_state(weights, shipped, settings["rank"], settings["scale"])
    except ModelError:
        raise
    except Exception as error:  # safetensors raises types of its own
        raise ModelError(
            f"the adapter in {adapter} cannot be used: {type(error).__name__} {first_line(error)}"
        ) from error
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    config.architectures = ["SmolLM2VL"]
    config.save_pretrained(folder)
    for path in sorted(base.iterdir()):
        if path.name not in (WEIGHTS, "config.json"):
            shutil.copyfile(path, folder / path.name)
    (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
