"""Sounds out of data sets without torchcodec.

datasets (4 and later) hands out a decoder of torchcodec, which is often not there or does not load, and which the chat
form of tasks in lmms-eval refuses (0.7.3). They were written for what datasets handed out before: a dictionary with the
waveform and its rate.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from prunebench.errors import MediaError, MissingExtra, first_line

__all__ = ["read_bytes", "waveforms_from_datasets"]


@contextmanager
def waveforms_from_datasets() -> Iterator[None]:
    """Inside, an audio column gives ``{"array": float32 (samples,), "sampling_rate": hertz}``, the mean of channels."""
    from datasets import Audio

    before = Audio.decode_example
    Audio.decode_example = _decode  # type: ignore[method-assign]
    try:
        yield
    finally:
        Audio.decode_example = before  # type: ignore[method-assign]


def _decode(feature: Any, value: Any, token_per_repo_id: Any = None) -> Any:
    """In place of ``datasets.Audio.decode_example``."""
    from prunebench.media import AudioFile, read_audio, resample

    if not isinstance(value, dict) or "array" in value:
        return value
    if value.get("bytes") is not None:
        wave, rate = read_bytes(value["bytes"], str(value.get("path")))
    elif value.get("path") and Path(value["path"]).is_file():
        wave, rate = read_audio(AudioFile(Path(value["path"])), mono="mean")
    else:
        raise MediaError(f"a sound of the data set is not on this machine: {value.get('path')!r}")
    if feature.sampling_rate and feature.sampling_rate != rate:
        wave, rate = resample(np.asarray(wave, np.float64), rate, feature.sampling_rate), feature.sampling_rate
    return {"array": np.ascontiguousarray(wave, dtype=np.float32), "sampling_rate": int(rate)}


def read_bytes(content: bytes, name: str) -> tuple[np.ndarray, int]:
    """A sound file's bytes: float64 (samples,), the mean of its channels, and its rate in hertz.

    Raises:
        MediaError: libsndfile does not read it.
        MissingExtra: soundfile is not installed.
    """
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the package without its C library
        raise MissingExtra("soundfile", "media", f"reading {name}") from error
    try:
        wave, rate = soundfile.read(io.BytesIO(content), dtype="float64", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise MediaError(f"{name} in the data set is no sound that libsndfile reads: {first_line(error)}") from error
    return wave.mean(1), int(rate)
