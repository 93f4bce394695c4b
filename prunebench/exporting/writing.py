"""The files of an export: weights, configuration, processor, card, plan and recipe; and the way to the hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from prunebench.adapter import LoadedModel
from prunebench.errors import StoreError, first_line
from prunebench.exporting.card import Card, mergekit_recipe, model_card
from prunebench.exporting.source import Source
from prunebench.quiet import no_progress_bars

__all__ = ["push_folder", "write_checkpoint"]

SHARD = "4GB"
"""Larger checkpoints are written in files of this size."""

COPIED = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".spm", ".vocab")
"""Endings of files of a base folder that tokenizers and processors read."""

OWN = ("config.json", "plan.json", "plan.safetensors", "mergekit.yaml", "model.safetensors.index.json")
"""Files of a base folder that the export has its own of."""

LARGEST_COPY = 256 * 2**20
"""Bytes of the largest file that is copied from the base folder; tokenizers are smaller."""


def write_checkpoint(folder: Path, loaded: LoadedModel, source: Source, card: Card) -> None:
    """Fill `folder` with the pruned model in memory; its configuration comes to say what it was made from."""
    model: Any = loaded.model
    base = {"base_model": card.base.name, "base_revision": card.base.revision}
    model.config.prunebench = {**(getattr(model.config, "prunebench", None) or {}), **base}
    copied = _copy_processor(loaded, folder)
    _save_model(model, folder, keep_generation="generation_config.json" in copied)
    source.plan.save(folder / "plan.json")
    if source.plan.only_drops:
        (folder / "mergekit.yaml").write_text(mergekit_recipe(source, card), encoding="utf-8")
    (folder / "README.md").write_text(model_card(source, card), encoding="utf-8")


def _copy_processor(loaded: LoadedModel, folder: Path) -> set[str]:
    """Tokenizer and processor files as the base folder has them; without a folder, what the processor writes."""
    if loaded.path is None:
        if hasattr(loaded.processor, "save_pretrained"):
            loaded.processor.save_pretrained(folder)
        return set()
    copied = set()
    for path in sorted(loaded.path.iterdir()):
        wanted = path.name.endswith(COPIED) or path.name.startswith(("LICENSE", "NOTICE"))
        if not wanted or path.name in OWN or path.name.startswith(".") or not path.is_file():
            continue
        if path.stat().st_size <= LARGEST_COPY:
            shutil.copyfile(path, folder / path.name)
            copied.add(path.name)
    return copied


def _save_model(model: Any, folder: Path, keep_generation: bool) -> None:
    """``save_pretrained``; a generation configuration that came with the base model stays as it was, word for word.

    The library refuses to write some that it reads (a temperature without sampling, which many checkpoints have).
    """
    from transformers import GenerationConfig

    path = folder / "generation_config.json"
    before, text = getattr(model, "generation_config", None), path.read_bytes() if keep_generation else None
    try:
        if text is not None:
            model.generation_config = GenerationConfig()
        with no_progress_bars():
            model.save_pretrained(folder, max_shard_size=SHARD)
    finally:
        if before is not None:
            model.generation_config = before
    if text is not None:
        path.write_bytes(text)


def push_folder(folder: Path, repository: str) -> None:
    """Upload a finished export.

    Raises:
        StoreError: no network, no right to write, ...; the folder stays.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repository, repo_type="model", exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message="Pruned by PruneBench")
    except Exception as error:  # no network, no token, no right to write: each has a type of its own
        raise StoreError(
            f"{folder} is finished, but was not pushed to {repository}: {type(error).__name__}: {first_line(error)}; "
            f"try `hf auth login` and `hf upload {repository} {folder}`"
        ) from error
