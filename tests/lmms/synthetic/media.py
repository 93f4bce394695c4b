"""Pictures, clips and sounds that carry a number: whoever sees one can tell which question it belongs to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from tests.media_files import write_video

__all__ = ["MOST", "clip", "number_of_image", "number_of_sound", "number_of_video", "picture", "sound"]

MOST = 14
"""Numbers run from 0 to MOST - 1: as many grey levels as a lossy clip keeps apart."""

_STEP, _RATE, _HERTZ = 16, 16000, 200


def picture(number: int, place: int = 0) -> Image.Image:
    """Grey of a level that says `number`; of several pictures in one question, each is wider than the one before."""
    return Image.new("RGB", (24 + 8 * place, 16), (_level(number),) * 3)


def clip(path: Path, number: int) -> Path:
    """An mp4 of 6 frames, all of the grey level that says `number`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_video(path, rate=6, frames=np.full((6, 16, 32, 3), _level(number), np.uint8))


def sound(path: Path, number: int) -> Path:
    """A quarter of a second of a tone whose pitch says `number`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(_RATE // 4) / _RATE
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * _HERTZ * (number + 1) * times), _RATE)
    return path


def number_of_image(pixels: np.ndarray) -> int:
    """What the level of a picture says, uint8 (height, width, 3)."""
    return round((float(pixels.mean()) - _STEP / 2) / _STEP)


def number_of_video(frames: np.ndarray) -> int:
    """What the level of a clip says, uint8 (frames, height, width, 3)."""
    return number_of_image(frames)


def number_of_sound(wave: np.ndarray, rate: int) -> int:
    """What the loudest pitch of a mono waveform says."""
    spectrum = np.abs(np.fft.rfft(wave))
    spectrum[0] = 0
    return round(float(spectrum.argmax()) * rate / len(wave) / _HERTZ) - 1


def _level(number: int) -> int:
    assert 0 <= number < MOST
    return _STEP * number + _STEP // 2
