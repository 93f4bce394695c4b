"""Sound of a sample as a waveform at the rate that a model asks for.

libsndfile reads sound files (wav, flac, ogg, mp3, ...), PyAV whatever has a container around it (mp4, m4a, mkv, webm,
...). Only the asked window is read, and everything up to the last step is computed in float64: the logarithm of a
spectrum shows rounding where it is silent.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil, gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from prunebench.errors import MediaError, MissingExtra, first_line
from prunebench.media.files import AudioFile, MediaFile, readable
from prunebench.media.video import container_of, whole

if TYPE_CHECKING:
    from prunebench.calibration.samples import Sample

__all__ = ["Method", "Mono", "audio_track_of", "read_audio", "resample", "waveform_of"]

Mono = Literal["first", "mean"]
"""Which channel stands for all: the first one, or their mean."""

Method = Literal["poly", "fft"]
"""``poly``: `scipy.signal.resample_poly`. ``fft``: `scipy.signal.resample`, which takes the window for periodic."""

MAX_RATE = 1_000_000
"""Hertz. A damaged header may say anything, and the filter is as long as the rates."""

_CONTAINERS = {".mp4", ".m4a", ".m4v", ".mov", ".mkv", ".mka", ".webm", ".avi", ".aac", ".wma", ".ts", ".3gp"}
_BLOCK = 1 << 18  # samples read at a time


def waveform_of(
    sample: Sample,
    rate: int,
    *,
    mono: Mono = "first",
    method: Method = "poly",
    seconds: float | None = None,
    pad: bool = False,
) -> np.ndarray:
    """The sound of a sample, float32 (samples,) at `rate` hertz.

    Args:
        sample: with an array or a file as its audio.
        rate: in hertz.
        mono: what becomes of several channels.
        method: of resampling.
        seconds: no more than this is read, from the beginning; None takes all.
        pad: fill up with silence to `seconds`, before resampling.

    Raises:
        MediaError: no sound, or one that cannot be read.
        MissingExtra: a file, and the package that reads it is not installed.
    """
    if sample.audio is None:
        raise MediaError(f"sample {sample.id!r} has no audio")
    if isinstance(sample.audio, MediaFile):
        wave, own = read_audio(sample.audio, mono=mono, seconds=seconds)
    else:
        wave, own = _from_array(sample, mono, seconds)
    if pad and seconds is not None and (lacking := ceil(seconds * own) - len(wave)) > 0:
        wave = np.pad(wave, (0, lacking))
    return resample(wave, own, rate, method=method).astype(np.float32)


def audio_track_of(
    video: np.ndarray | MediaFile | None,
    rate: int,
    *,
    mono: Mono = "mean",
    method: Method = "poly",
    seconds: float | None = None,
) -> np.ndarray | None:
    """The sound of a video file, float32 (samples,) at `rate` hertz; None where it has none, and for arrays.

    Raises:
        MediaError: there is a sound track, and it cannot be read.
        MissingExtra: PyAV is not installed.
    """
    if not isinstance(video, MediaFile):
        return None
    with container_of(video.path) as container:
        if not container.streams.audio:
            return None
    wave, own = _with_pyav(video.path, mono, 0.0, seconds)
    return resample(wave, own, rate, method=method).astype(np.float32)


def read_audio(
    source: AudioFile | MediaFile, *, mono: Mono = "first", start: float = 0.0, seconds: float | None = None
) -> tuple[np.ndarray, int]:
    """A file's sound as it is: float64 (samples,) in about [-1, 1], and its own rate in hertz.

    Args:
        source: the file.
        mono: what becomes of several channels.
        start: where to begin, in seconds.
        seconds: how much to read; None reads to the end.

    Raises:
        MediaError: broken, empty, silent container, a codec that nothing here reads.
        MissingExtra: the package that reads it is not installed.
    """
    path = readable(source.path)
    if path.suffix.lower() in _CONTAINERS:
        return _with_pyav(path, mono, start, seconds)
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the package without its C library
        raise MissingExtra("soundfile", "media", f"reading {path.name}") from error
    try:
        return _with_soundfile(path, mono, start, seconds)
    except soundfile.LibsndfileError as error:
        try:  # its name may lie about what it is
            return _with_pyav(path, mono, start, seconds)
        except MissingExtra:
            raise MediaError(f"{path} is no sound that libsndfile reads: {first_line(error)}") from error


def resample(wave: np.ndarray, own: int, rate: int, *, method: Method = "poly") -> np.ndarray:
    """``ceil(n · rate / own)`` samples of the same sound at another rate; the same array where the rates are equal.

    Args:
        wave: (samples,).
        own: its rate in hertz.
        rate: the rate asked for.
        method: see `Method`.

    Raises:
        MediaError: a rate that no sound has.
        ValueError: an unknown method.
    """
    if not (0 < own <= MAX_RATE and 0 < rate <= MAX_RATE):
        raise MediaError(f"a sampling rate must be between 1 and {MAX_RATE:,} hertz, got {own} and {rate}")
    if own == rate:
        return wave
    from scipy import signal

    if method == "fft":
        return signal.resample(wave, ceil(Fraction(len(wave) * rate, own)))
    if method != "poly":
        raise ValueError(f"unknown resampling method {method!r}; use poly or fft")
    common = gcd(own, rate)
    return signal.resample_poly(wave, rate // common, own // common)


def _from_array(sample: Sample, mono: Mono, seconds: float | None) -> tuple[np.ndarray, int]:
    wave = np.asarray(sample.audio)
    if wave.ndim not in (1, 2) or not wave.size or wave.dtype.kind != "f":
        shape = f"{wave.dtype} {wave.shape}"
        raise MediaError(f"sample {sample.id!r}: audio must be float (samples,) or (samples, channels), got {shape}")
    if not sample.sampling_rate:
        raise MediaError(f"sample {sample.id!r}: audio as an array needs its sampling_rate")
    if seconds is not None:
        wave = wave[: ceil(seconds * sample.sampling_rate)]
    return _checked(_one_channel(wave.reshape(len(wave), -1), mono), f"sample {sample.id!r}"), sample.sampling_rate


def _one_channel(wave: np.ndarray, mono: Mono) -> np.ndarray:
    if mono not in ("first", "mean"):
        raise ValueError(f"unknown mono {mono!r}; use first or mean")
    return wave[:, 0].astype(np.float64) if mono == "first" else wave.mean(1, dtype=np.float64)


def _checked(wave: np.ndarray, what: object) -> np.ndarray:
    if not len(wave):
        raise MediaError(f"{what} holds no sound (0 samples)")
    if not np.isfinite(wave).all():
        raise MediaError(f"{what} holds values that are not finite: export it again as 16-bit PCM")
    return wave


def _with_soundfile(path: Path, mono: Mono, start: float, seconds: float | None) -> tuple[np.ndarray, int]:
    import soundfile

    with soundfile.SoundFile(path) as file:
        rate = file.samplerate
        if start:
            file.seek(min(round(start * rate), file.frames))
        left = None if seconds is None else ceil(seconds * rate)
        parts: list[np.ndarray] = []
        while left is None or left > 0:
            block = file.read(_BLOCK if left is None else min(_BLOCK, left), dtype="float64", always_2d=True)
            if not len(block):
                break
            parts.append(_one_channel(block, mono))
            left = None if left is None else left - len(block)
    return _checked(np.concatenate(parts) if parts else np.empty(0), path), rate


def _with_pyav(path: Path, mono: Mono, start: float, seconds: float | None) -> tuple[np.ndarray, int]:
    with container_of(path) as container:
        if not container.streams.audio:
            kinds = ", ".join(stream.type for stream in container.streams) or "none"
            raise MediaError(f"{path} has no sound track (streams: {kinds})")
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            raise MediaError(f"{path} is encoded in a way that this FFmpeg cannot decode: convert it to wav")
        rate = 0  # that of the decoded sound: what the header says may be half of it
        skip, left = 0, None
        parts: list[np.ndarray] = []
        for frame in whole(path, container.decode(stream)):
            if not rate:
                rate = frame.sample_rate
                skip = round(start * rate)
                left = None if seconds is None else ceil(seconds * rate)
            elif frame.sample_rate != rate:
                raise MediaError(f"{path} changes its sampling rate on the way: convert it to wav")
            block = _block(frame)
            if skip:  # counted from the beginning: seeking in a sound track is not exact everywhere
                skip, block = max(0, skip - len(block)), block[skip:]
            block = block if left is None else block[:left]
            parts.append(_one_channel(block, mono))
            left = None if left is None else left - len(block)
            if left == 0:
                break
    return _checked(np.concatenate(parts) if parts else np.empty(0), path), rate


def _block(frame: Any) -> np.ndarray:
    """The sound of one decoded frame, float64 (samples, channels); integers of b bits become multiples of 2^(1-b)."""
    values = frame.to_ndarray()  # (channels, samples), or interleaved (1, samples * channels)
    values = values.T if frame.format.is_planar else values.reshape(-1, len(frame.layout.channels))
    if values.dtype.kind == "f":
        return values.astype(np.float64)
    half = 2.0 ** (8 * values.dtype.itemsize - 1)
    return (values - half if values.dtype.kind == "u" else values) / half
