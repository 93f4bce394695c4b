"""Sound as the audio tower hears it: 30 seconds at 16 kHz, then log-mel filterbanks in Kaldi's manner."""

from __future__ import annotations

import warnings
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from prunebench.errors import MediaError
from prunebench.media import VideoFile, waveform_of
from prunebench.media.video import container_of

if TYPE_CHECKING:
    from prunebench.calibration.samples import Sample

__all__ = ["CLIPS", "CLIP_SECONDS", "RATE", "SECONDS", "fbank", "sound_of", "spread_clips", "track_of"]

RATE = 16_000
SECONDS = 30
CLIPS, CLIP_SECONDS = 8, 2
MEL_BINS = 128
FULL_SCALE = 2**15
"""Kaldi's waveforms are 16-bit integers."""


def sound_of(sample: Sample) -> np.ndarray:
    """A sample's own sound: channel 0, the first 30 seconds, padded with silence, float (480000,) in [-1, 1].

    The original code takes a random window of longer sounds; the first one makes results repeatable. Resampled in
    the frequency domain, after padding.

    Raises:
        MediaError: a sound that cannot be read.
    """
    return waveform_of(sample, RATE, mono="first", method="fft", seconds=SECONDS, pad=True)


def track_of(video: VideoFile) -> np.ndarray:
    """The sound of a video file, float32 (480000,): eight clips of two seconds from all over it, then silence.

    FFmpeg makes it mono, 16 kHz and 16 bits. An absent or unreadable track is silence, as in the original code: the
    video can still be seen.

    Raises:
        MissingExtra: PyAV is not installed.
    """
    try:
        track = _decoded(video)
    except MediaError:
        track = np.zeros(0, np.int16)
    clips = spread_clips(track)[: SECONDS * RATE].astype(np.float32) / FULL_SCALE
    return np.pad(clips, (0, SECONDS * RATE - len(clips)))


def spread_clips(wave: np.ndarray) -> np.ndarray:
    """Eight two-second clips whose starts are evenly spread from the first to the last possible one, one after another.

    A sound shorter than a clip is taken whole, eight times.
    """
    last = Fraction(max(len(wave) / RATE - CLIP_SECONDS, 0))
    starts = [last / (CLIPS - 1) * i for i in range(CLIPS)]
    return np.concatenate([wave[int(s * RATE) : int((s + CLIP_SECONDS) * RATE)] for s in starts])


def _decoded(video: VideoFile) -> np.ndarray:
    """int16 (samples,): 58 MB for half an hour."""
    parts: list[np.ndarray] = []
    with container_of(video.path) as container:
        from av.audio.resampler import AudioResampler

        if container.streams.audio and container.streams.audio[0].codec_context is not None:
            convert = AudioResampler(format="s16", layout="mono", rate=RATE)
            for frame in container.decode(container.streams.audio[0]):
                parts += [part.to_ndarray()[0] for part in convert.resample(frame)]
            parts += [part.to_ndarray()[0] for part in convert.resample(None)] if parts else []
    return np.concatenate(parts) if parts else np.zeros(0, np.int16)


def fbank(wave: np.ndarray) -> np.ndarray:
    """Log-mel filterbanks of a waveform (samples,) in [-1, 1] at 16 kHz: float32 (frames, 128); 2998 frames for 30 s.

    Windows of 25 ms every 10 ms, mean removed, pre-emphasis 0.97, Povey window, power spectrum, 128 triangles on
    Kaldi's mel scale from 20 Hz, logarithm floored at float32's epsilon; no dither.
    """
    from transformers.audio_utils import spectrogram

    window, filters = _window_and_filters()
    return (
        spectrogram(
            np.asarray(wave, np.float64) * FULL_SCALE,
            window,
            frame_length=400,
            hop_length=160,
            fft_length=512,
            power=2.0,
            center=False,
            preemphasis=0.97,
            mel_filters=filters,
            log_mel="log",
            mel_floor=1.192092955078125e-07,
            remove_dc_offset=True,
            dtype=np.float32,
        )
        .astype(np.float32)
        .T
    )


@lru_cache(maxsize=1)
def _window_and_filters() -> tuple[np.ndarray, np.ndarray]:
    from transformers.audio_utils import mel_filter_bank, window_function

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the lowest triangles fall between two frequencies: so it was in training
        filters = mel_filter_bank(
            num_frequency_bins=257,
            num_mel_filters=MEL_BINS,
            min_frequency=20.0,
            max_frequency=RATE / 2,
            sampling_rate=RATE,
            norm=None,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )
    return window_function(400, "povey", periodic=False), filters
