"""One question with its media: the unit that calibration and evaluation both consume."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Sample", "fingerprint"]


@dataclass(frozen=True)
class Sample:
    """An instruction with the media it speaks about, and the answer that is expected.

    Attributes:
        id: unique within its dataset and stable over machines, e.g. ``"general/test/17"``.
        instruction: the user's words, without any chat template or media tag.
        answer: the expected answer, or None where there is none (calibration on foreign data).
        domain: what the sample is about (``"general"``, ``"math"``, ...); methods may group by it.
        kind: the question kind inside the domain, for per-kind reports.
        images: uint8 arrays (height, width, 3).
        video: uint8 array (frames, height, width, 3), or None.
        audio: float32 mono waveform in [-1, 1], or None.
        sampling_rate: of ``audio``, in hertz.
        options: the closed set of answers, empty for free answers.
    """

    id: str
    instruction: str
    answer: str | None = None
    domain: str = ""
    kind: str = ""
    images: tuple[np.ndarray, ...] = ()
    video: np.ndarray | None = None
    audio: np.ndarray | None = None
    sampling_rate: int | None = None
    options: tuple[str, ...] = field(default=())


def fingerprint(samples: Iterable[Sample]) -> str:
    """SHA-256 (hex) over ids, text and media bytes: two equal fingerprints mean equal calibration input."""
    digest = hashlib.sha256()
    for sample in samples:
        text = "\x1f".join(
            [sample.id, sample.domain, sample.instruction, sample.answer or "", str(sample.sampling_rate)]
        )
        digest.update(text.encode())
        for media in (*sample.images, sample.video, sample.audio):
            if media is not None:
                digest.update(f"\x1e{media.dtype.str}{media.shape}".encode())
                digest.update(np.ascontiguousarray(media).tobytes())
        digest.update(b"\x1d")
    return digest.hexdigest()
