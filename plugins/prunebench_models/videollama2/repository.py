"""The official checkpoints by short names, and how they get onto this machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from prunebench.adapter import LoadOptions
from prunebench.errors import ModelError, UnknownName
from prunebench.measure.cost import checkpoint_revision
from prunebench_models.hub import Place, fetch

__all__ = ["DEFAULT", "VARIANTS", "Variant", "check_variant", "locate"]


class Variant(NamedTuple):
    """An official checkpoint."""

    repository: str
    model_type: str
    audio: bool


VARIANTS = {
    "7b": Variant("DAMO-NLP-SG/VideoLLaMA2-7B", "videollama2_mistral", False),
    "7b-16f": Variant("DAMO-NLP-SG/VideoLLaMA2-7B-16F", "videollama2_mistral", False),
    "2.1-7b-16f": Variant("DAMO-NLP-SG/VideoLLaMA2.1-7B-16F", "videollama2_qwen2", False),
    "2.1-7b-av": Variant("DAMO-NLP-SG/VideoLLaMA2.1-7B-AV", "videollama2_qwen2", True),
}
DEFAULT = "2.1-7b-av"

WANTED = ("*.safetensors", "*.json", "tokenizer.model", "merges.txt", "*.jinja")
"""No pickled files: the audio tower and projectors that lie beside the shards as ``*.bin`` are in the shards too."""


def locate(options: LoadOptions) -> Place:
    """The folder with the weights asked for; fetched from the hub where no path is given.

    Raises:
        UnknownName: no such variant.
        ModelError: no such folder, a projector without its language model, or a hub that cannot be reached.
    """
    repository = _repository(options.reference)
    folder = Path(options.path).expanduser() if options.path else fetch(repository, options.revision, WANTED)
    if not (folder / "config.json").is_file():
        raise ModelError(f"no VideoLLaMA2 in {folder}: there is no config.json; give its folder by --model-path")
    if (folder / "mm_projector.bin").is_file() and not any(folder.glob("*.safetensors")):
        raise _base_error(str(folder))
    name = folder.resolve().name
    cached = re.fullmatch(r"models--(.+?)--(.+)", folder.resolve().parent.parent.name)
    if cached and folder.resolve().parent.name == "snapshots":
        return Place(folder, f"{cached[1]}/{cached[2]}", name)  # the cache's folders are named by commit
    return Place(folder, name, checkpoint_revision(folder))


def check_variant(options: LoadOptions, place: Place, config: Any) -> None:
    """Refuse a folder that is not of the variant that was named beside it.

    Raises:
        ModelError: another language model, or an audio tower too many or too few.
    """
    variant = VARIANTS.get((options.reference or "").lower())
    if variant and (variant.model_type, variant.audio) != (config.model_type, config.has_audio):
        sound = "with" if config.has_audio else "without"
        raise ModelError(
            f"{place.folder} holds a {config.model_type} {sound} an audio tower, which is not the variant "
            f"{options.reference!r}: say --model videollama2 --model-path {place.folder}"
        )


def _repository(reference: str | None) -> str:
    if reference is None:
        return VARIANTS[DEFAULT].repository
    if reference.lower().endswith("-base"):
        raise _base_error(reference)
    if "/" in reference:
        return reference
    if reference.lower() not in VARIANTS:
        raise UnknownName("VideoLLaMA2 variant", reference, VARIANTS)
    return VARIANTS[reference.lower()].repository


def _base_error(name: str) -> ModelError:
    return ModelError(
        f"{name} is a -Base checkpoint: a projector for a plain language model, not a whole model; "
        f"use one of {', '.join(VARIANTS)}"
    )
