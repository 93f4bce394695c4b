"""What lmms-eval calls for the tasks beside this file: PruneBench's own questions, scored by PruneBench's own metrics.

Rows come from `prunebench_lmms_eval.questions_export`. lmms-eval loads this file by its path, so it imports nothing of
its own package; `prunebench export-tasks` copies it beside the tasks that it writes.
"""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
from PIL import Image

from prunebench.calibration.samples import Sample
from prunebench.metrics import METRICS

__all__ = ["doc_to_messages", "doc_to_target", "doc_to_text", "doc_to_visual", "process_results"]


def doc_to_messages(doc: dict[str, Any], lmms_eval_specific_kwargs: dict | None = None) -> list[dict[str, Any]]:
    """One turn of the user: all media, then the words; with a layout, images where they stand among the words."""
    images = _pictures(doc["images"])
    parts = json.loads(doc["layout"]) or [*range(len(images)), doc["instruction"]]
    content = [
        {"type": "image", "url": images[part]} if isinstance(part, int) else {"type": "text", "text": part}
        for part in parts
    ]
    words = next(place for place, part in enumerate(content) if part["type"] == "text")
    content[words:words] = _video_and_sound(doc)
    return [{"role": "user", "content": content}]


def doc_to_visual(doc: dict[str, Any]) -> list[Any]:
    """Media without words, for adapters of lmms-eval that take no messages: pictures, then frames, then the sound."""
    media: list[Any] = list(_pictures(doc["images"]))
    for part in _video_and_sound(doc):
        media += part["url"] if isinstance(part["url"], list) else [part["url"]]
    return media


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict | None = None) -> str:
    """The question's words."""
    return doc["instruction"]


def doc_to_target(doc: dict[str, Any]) -> str:
    """The expected answer."""
    return doc["answer"]


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Score of one answer, 0 to 1, by every metric of PruneBench that the question allows."""
    options = tuple(doc["options"] or ())
    sample = Sample(doc["id"], doc["instruction"], doc["answer"], options=options)
    return {name: metric(results[0], sample) for name, metric in METRICS.items() if options or name != "option_match"}


def _video_and_sound(doc: dict[str, Any]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    if doc["video_path"]:
        parts.append({"type": "video", "url": doc["video_path"]})
    elif frames := _pictures(doc["frames"]):
        parts.append({"type": "video", "url": frames})
    if doc["audio_path"]:
        parts.append({"type": "audio", "url": doc["audio_path"]})
    elif doc["waveform"] is not None:
        wave = np.frombuffer(doc["waveform"], dtype="<f4").astype(np.float32)
        parts.append({"type": "audio", "url": {"array": wave, "sampling_rate": int(doc["sampling_rate"])}})
    return parts


def _pictures(column: dict[str, Any] | None) -> list[Image.Image]:
    return [Image.open(io.BytesIO(png)).convert("RGB") for png in (column or {}).get("bytes") or ()]
