"""From lmms-eval's chat messages to a `Sample`: one user turn with words, pictures, a video, a sound.

lmms-eval passes media as they come out of a data set: pictures as PIL objects, sounds as dictionaries (which it calls
videos) or as paths, videos as paths or lists of pictures.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from prunebench.calibration.samples import Sample, joined
from prunebench.errors import EvaluationError, MediaError, PruneBenchError, first_line, typed_line
from prunebench.media import AudioFile, ImageFile, VideoFile, evenly
from prunebench.media.images import load_image, to_rgb
from prunebench_lmms_eval.sounds import read_bytes

__all__ = ["sample_of"]

MARK = "<image>"
"""Stands in the words of some tasks where an image goes."""

FRAMES = 64
"""Taken of a video that is a folder of pictures: more than models ask for."""

REMOTE = ("http://", "https://", "s3://", "data:")


def sample_of(messages: Sequence[Mapping[str, Any]] | None, sample_id: str) -> Sample:
    """One question.

    Args:
        messages: what a task's ``doc_to_messages`` returned.
        sample_id: ``TASK/DOC``; it stands in every error.

    Raises:
        EvaluationError: what no sample can hold: system or assistant turns, two videos, media of a kind that is not
            known, ...
    """
    question = _Question(sample_id)
    for part in _one_turn(messages, sample_id):
        question.add(part)
    return question.sample()


class _Question:
    """A sample in the making."""

    def __init__(self, sample_id: str) -> None:
        self.id = sample_id
        self.places: list[str | int] = []  # words, or the index of an image
        self.images: list[np.ndarray | ImageFile] = []
        self.video: np.ndarray | VideoFile | None = None
        self.audio: tuple[np.ndarray | AudioFile, int | None] | None = None

    def add(self, part: Any) -> None:
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        kind = part.get("type")
        if kind == "text":
            if part.get("text"):
                self.places.append(str(part["text"]))
            return
        if kind not in ("image", "video", "audio"):
            raise self.refused(f"a part of the type {kind!r}")
        value = part.get("url", part.get(kind))
        try:
            self.add_media(kind, value)
        except Exception as error:  # readers raise whatever they like: SyntaxError of a broken PNG, struct.error, ...
            if isinstance(error, PruneBenchError) and not isinstance(error, MediaError):
                raise
            said = first_line if isinstance(error, MediaError | OSError | ValueError | TypeError) else typed_line
            raise EvaluationError(f"question {self.id!r}: its {kind} cannot be read: {said(error)}") from error

    def add_media(self, kind: str, value: Any) -> None:
        if isinstance(value, str | Path) and str(value).startswith(REMOTE):
            raise self.refused(f"media that lie elsewhere ({str(value)[:40]}): fetch them first")
        if kind == "image":
            self.places.append(len(self.images))
            self.images.append(_image(value))
        elif (sound := _sound(kind, value)) is not None:  # a sound that lmms-eval calls a video, too
            if self.audio is not None:
                raise self.refused("two sounds")
            self.audio = sound
        elif kind == "audio":
            raise TypeError(f"nothing known as a sound: {type(value).__name__}")
        else:
            if self.video is not None:
                raise self.refused("two videos")
            self.video = self.moving(value)

    def moving(self, value: Any) -> np.ndarray | VideoFile:
        """A video from a file, from frames, or from an object that decodes one."""
        if isinstance(value, Mapping):
            if any(value.get(key) is not None for key in ("video_start", "video_end", "start_time", "end_time")):
                raise self.refused("a part of a video, from one second to another")
            value = next((value[key] for key in ("url", "path", "video") if value.get(key) is not None), value)
        encoded = getattr(value, "_hf_encoded", None)  # torchcodec's decoder as datasets makes it
        if isinstance(encoded, Mapping) and encoded.get("path"):
            value = encoded["path"]
        if isinstance(value, str | Path):
            path = Path(value).expanduser().absolute()
            if not path.is_dir():
                return VideoFile(path)
            value = _frames_in(path)
        if isinstance(value, Sequence) and value:
            pictures = [np.asarray(to_rgb(one)) if hasattr(one, "mode") else np.asarray(one) for one in value]
            if len({picture.shape for picture in pictures}) > 1:
                raise ValueError("its frames are of different sizes")
            value = np.stack(pictures)
        if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 4 and value.shape[3] == 3:
            return value
        raise TypeError(f"nothing known as a video: {type(value).__name__}")

    def split_at_marks(self) -> None:
        """Tasks that mark the places of images in their words: as many marks as images in front of the words."""
        texts = [place for place in self.places if isinstance(place, str)]
        if not self.images or sum(text.count(MARK) for text in texts) != len(self.images):
            return
        places: list[str | int] = []
        marks = 0
        for text in texts:
            first, *rest = text.split(MARK)
            places += [first] if first else []
            for piece in rest:
                places += [marks, piece] if piece else [marks]
                marks += 1
        if places and places[:marks] == list(range(marks)) and len(places) > marks:
            places[marks] = str(places[marks]).lstrip()  # what parted them from the words
        self.places = places

    def sample(self) -> Sample:
        self.split_at_marks()
        words = [place for place in self.places if isinstance(place, str)]
        first_word = next((i for i, place in enumerate(self.places) if isinstance(place, str)), len(self.places))
        mixed = any(isinstance(place, int) for place in self.places[first_word:])
        audio, rate = self.audio or (None, None)
        return Sample(
            id=self.id,
            instruction=joined(words),
            images=tuple(self.images),
            video=self.video,
            audio=audio,
            sampling_rate=rate,
            layout=tuple(self.places) if mixed else (),
        )

    def refused(self, what: str) -> EvaluationError:
        return EvaluationError(f"question {self.id!r} has {what}: PruneBench cannot ask that")


def _one_turn(messages: Sequence[Mapping[str, Any]] | None, sample_id: str) -> Sequence[Any]:
    turns = list(messages or ())
    roles = [str(turn.get("role")) for turn in turns]
    if roles != ["user"]:
        has = " + ".join(roles) if roles else "none"
        raise EvaluationError(
            f"question {sample_id!r}: PruneBench asks in one turn of the user's, and this has other turns ({has}): "
            "leave the task out"
        )
    content = turns[0].get("content")
    return [content] if isinstance(content, str) else content or ()


def _frames_in(folder: Path) -> list[Image.Image]:
    """A video as a folder of pictures, in the order of the numbers in their names: at most `FRAMES`, evenly spread."""
    files = sorted(
        (file for file in folder.iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png")),
        key=lambda file: [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", file.stem)],
    )
    if not files:
        raise MediaError(f"{folder} is a folder without pictures")
    return [load_image(ImageFile(files[i])) for i in evenly(FRAMES)(len(files), 1.0)]


def _image(value: Any) -> np.ndarray | ImageFile:
    if isinstance(value, str | Path):
        return ImageFile(Path(value).expanduser().absolute())
    if isinstance(value, Mapping):  # a column that was not decoded
        if value.get("bytes") is None:
            return ImageFile(Path(value["path"]).expanduser().absolute())
        value = value["bytes"]
    if isinstance(value, bytes):
        with Image.open(io.BytesIO(value)) as picture:
            value = ImageOps.exif_transpose(picture)
    if isinstance(value, np.ndarray):
        value = Image.fromarray(value)
    if not isinstance(value, Image.Image):
        raise TypeError(f"nothing known as an image: {type(value).__name__}")
    return np.asarray(to_rgb(value))


def _sound(kind: str, value: Any) -> tuple[np.ndarray | AudioFile, int | None] | None:
    """Waveform and rate, or a sound file; None for what is no sound."""
    if hasattr(value, "get_all_samples"):  # torchcodec's decoder
        samples = value.get_all_samples()
        return _mono(np.asarray(samples.data).T), int(samples.sample_rate)
    if isinstance(value, Mapping):
        if value.get("array") is not None:
            return _mono(np.asarray(value["array"])), int(value["sampling_rate"])
        if kind == "audio":
            if value.get("bytes") is not None:
                wave, rate = read_bytes(value["bytes"], str(value.get("path")))
                return _mono(wave), rate
            value = next((value[key] for key in ("path", "url") if value.get(key)), None)
    if kind == "audio" and isinstance(value, str | Path):
        return AudioFile(Path(value).expanduser().absolute()), None
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], int | np.integer):
        return _mono(np.asarray(value[0])), int(value[1])
    return None


def _mono(wave: np.ndarray) -> np.ndarray:
    """float32 (samples,) from (samples,), (samples, channels) or (channels, samples); the mean of several channels."""
    wave = np.asarray(wave)
    if wave.dtype.kind in "iu":  # PCM: b bits become multiples of 2^(1-b)
        half = 2.0 ** (8 * wave.dtype.itemsize - 1)
        wave = (wave - half if wave.dtype.kind == "u" else wave) / half
    if wave.ndim == 2:
        wave = wave.mean(0 if wave.shape[0] < wave.shape[1] else 1)
    if wave.ndim != 1 or not wave.size:
        raise ValueError(f"a sound of the shape {wave.shape}")
    return np.ascontiguousarray(wave, dtype=np.float32)
