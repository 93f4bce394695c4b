"""One question with its media: the unit that calibration and evaluation both consume."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunebench.media.files import AudioFile, ImageFile, MediaFile, VideoFile

__all__ = ["Sample", "fingerprint", "input_fingerprint", "joined"]


@dataclass(frozen=True)
class Sample:
    """An instruction with the media it speaks about, and the answer that is expected.

    Media are arrays or files; `prunebench.media` (`images_of`, `frames_of`, `waveform_of`) reads both alike.

    Attributes:
        id: unique within its dataset and stable over machines, e.g. ``"general/test/17"``.
        instruction: the user's words, without any chat template or media tag.
        answer: the expected answer, or None where there is none (calibration on foreign data).
        domain: what the sample is about (``"general"``, ``"math"``, ...); methods may group by it.
        kind: the question kind inside the domain, for per-kind reports.
        images: uint8 arrays (height, width, 3) or image files.
        video: uint8 array (frames, height, width, 3), a video file, or None.
        audio: float32 mono waveform in [-1, 1], a sound file, or None.
        sampling_rate: of ``audio`` where it is an array, in hertz.
        options: the closed set of answers, empty for free answers.
        layout: where images stand among the words: text, or the index of an image, in order. Empty: all media first,
            then `instruction`. With a layout, `instruction` still holds all the words (the texts joined), for adapters
            whose prompt has the media in one fixed place.
    """

    id: str
    instruction: str
    answer: str | None = None
    domain: str = ""
    kind: str = ""
    images: tuple[np.ndarray | ImageFile, ...] = ()
    video: np.ndarray | VideoFile | None = None
    audio: np.ndarray | AudioFile | None = None
    sampling_rate: int | None = None
    options: tuple[str, ...] = field(default=())
    layout: tuple[str | int, ...] = field(default=())


def fingerprint(samples: Iterable[Sample]) -> str:
    """SHA-256 (hex) over ids, text and media bytes: two equal fingerprints mean equal calibration input.

    Of a media file its content counts, not its place or name.

    Raises:
        MediaError: a media file that cannot be read.
    """
    digest = hashlib.sha256()
    for sample in samples:
        text = "\x1f".join(
            [sample.id, sample.domain, sample.instruction, sample.answer or "", str(sample.sampling_rate)]
        )
        digest.update(text.encode())
        for media in (*sample.images, sample.video, sample.audio):
            if media is not None:
                _add_media(digest, media)
        _add_layout(digest, sample)
        digest.update(b"\x1d")
    return digest.hexdigest()


def input_fingerprint(sample: Sample) -> str:
    """SHA-256 (hex) of what a model may see of a sample: words, options and media; not its id, nor the answer."""
    digest = hashlib.sha256("\x1f".join([sample.instruction, str(sample.sampling_rate), *sample.options]).encode())
    for name, media in (
        *(("image", image) for image in sample.images),
        ("video", sample.video),
        ("audio", sample.audio),
    ):
        if media is not None:
            digest.update(f"\x1c{name}".encode())
            _add_media(digest, media)
    _add_layout(digest, sample)
    return digest.hexdigest()


def joined(texts: Iterable[str]) -> str:
    """Texts as one; a space goes between two where there is no white space yet."""
    whole = ""
    for text in texts:
        apart = whole and text and not whole[-1].isspace() and not text[0].isspace()
        whole += (" " if apart else "") + text
    return whole


def _add_layout(digest: Any, sample: Sample) -> None:
    """Nothing where there is none: such samples keep the fingerprints that they had before there were layouts."""
    if sample.layout:
        digest.update(b"\x1blayout" + json.dumps(sample.layout).encode())


def _add_media(digest: Any, media: np.ndarray | MediaFile) -> None:
    if isinstance(media, MediaFile):
        digest.update(f"\x1e{type(media).__name__}{media.digest}".encode())
    else:
        digest.update(f"\x1e{media.dtype.str}{media.shape}".encode())
        digest.update(np.ascontiguousarray(media).tobytes())
