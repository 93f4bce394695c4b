"""Samples for the checks of an adapter: of each modality, of different lengths, with media that can be altered."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from prunebench.calibration.samples import Sample
from prunebench.dataset import Dataset

__all__ = ["MEDIA_GROUP", "altered", "modality", "of_each_modality", "varied"]

MEDIA_GROUP = {"image": "visual", "video": "visual", "audio": "audio"}
"""Where the tokens of a modality belong."""

_POOL = 16
_BARE: dict[str, Any] = {"images": (), "video": None, "audio": None, "sampling_rate": None}


def modality(sample: Sample) -> str:
    """What the sample's first medium is; ``text`` where it has none."""
    if sample.video is not None:
        return "video"
    if sample.images:
        return "image"
    return "audio" if sample.audio is not None else "text"


def of_each_modality(declared: tuple[str, ...], dataset: Dataset | None) -> dict[str, Sample]:
    """A sample of each declared modality: from `dataset` where it has one, else its words with media made here."""
    pool = dataset.samples("calibration", _POOL) if dataset is not None else []
    words = pool[0].instruction if pool else "What is there to see or to hear? Say it in one word."
    found: dict[str, Sample] = {}
    for name in declared:
        own = next((sample for sample in pool if modality(sample) == name), None)
        found[name] = own or Sample(id=f"made/{name}", instruction=words, answer=None, **_made(name))
    return found


def varied(samples: dict[str, Sample]) -> list[Sample]:
    """One batch with every modality, and rows of different lengths: the last one has fewer words and no media."""
    first = next(iter(samples.values()))
    words = first.instruction.split()
    short = replace(first, id=f"{first.id}/short", instruction=" ".join(words[: max(1, len(words) // 2)]), **_BARE)
    return [*samples.values(), short]


def altered(sample: Sample) -> Sample | None:
    """The same words with other media of the same shape, or None where there is none that can be altered."""
    if sample.video is not None:
        return replace(sample, video=255 - sample.video[::-1]) if _is_array(sample.video) else None
    if sample.images:
        arrays = all(_is_array(image) for image in sample.images)
        return replace(sample, images=tuple(255 - image[::-1] for image in sample.images)) if arrays else None
    if sample.audio is not None and _is_array(sample.audio):
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, sample.audio.shape).astype(np.float32)
        return replace(sample, audio=noise)
    return None


def _is_array(media: Any) -> bool:
    return isinstance(media, np.ndarray)


def _made(name: str) -> dict[str, Any]:
    rng = np.random.default_rng(7)
    if name == "image":
        return {"images": (rng.integers(0, 256, (64, 64, 3), dtype=np.uint8),)}
    if name == "video":
        return {"video": rng.integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)}
    if name == "audio":
        return {"audio": rng.uniform(-0.5, 0.5, 16000).astype(np.float32), "sampling_rate": 16000}
    return {}
