"""Media files that the tests make for themselves."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

__all__ = ["mux_sound", "tone", "write_sound", "write_video"]


def tone(rate: int, seconds: float = 1.0, hertz: float = 440.0, channels: int = 1) -> np.ndarray:
    """float32 (samples, channels): a sine in channel 0, at half the loudness in the next one, and so on."""
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)
    return np.stack([wave / 2**c for c in range(channels)], 1).astype(np.float32)


def write_video(
    path: Path,
    n: int = 40,
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (64, 48),
    rate: int = 25,
    gop: int = 12,
    b_frames: int = 0,
    pts: Sequence[int] | None = None,
    rotation: int | None = None,
    frames: np.ndarray | None = None,
    sound: np.ndarray | None = None,
    sound_rate: int = 16000,
    sound_codec: str = "aac",
    container: str | None = None,
) -> Path:
    """A clip whose frame i is grey of level 20 + 5 i (mod 220), or the given `frames`; `pts` in 1/`rate` seconds."""
    width, height = size
    if frames is None:
        frames = np.stack([np.full((height, width, 3), 20 + 5 * i % 220, np.uint8) for i in range(n)])
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "yuv420p"
        stream.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        stream.codec_context.time_base = Fraction(1, rate)
        if rotation is not None:
            if not hasattr(stream, "set_display_rotation"):
                pytest.skip("this PyAV cannot write a rotation")
            stream.set_display_rotation(rotation)
        track = None
        if sound is not None:
            track = out.add_stream(sound_codec, rate=sound_rate, layout="mono" if sound.shape[1] == 1 else "stereo")
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = i if pts is None else pts[i]
            frame.time_base = Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        if track is not None:
            mux_sound(out, track, sound, sound_rate)
    return path


def write_sound(path: Path, wave: np.ndarray, rate: int, codec: str, container: str | None = None) -> Path:
    """A container with nothing but sound, (samples, channels)."""
    with av.open(str(path), "w", format=container) as out:
        mux_sound(out, out.add_stream(codec, rate=rate, layout="mono" if wave.shape[1] == 1 else "stereo"), wave, rate)
    return path


def mux_sound(out: av.container.OutputContainer, track: av.AudioStream, wave: np.ndarray, rate: int) -> None:
    """Encode a waveform (samples, channels) into an open file."""
    layout = "mono" if wave.shape[1] == 1 else "stereo"
    whole = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave.T), format="fltp", layout=layout)
    whole.sample_rate, whole.pts, whole.time_base = rate, 0, Fraction(1, rate)
    codec = track.codec_context
    to_codec = av.AudioResampler(codec.format, layout, codec.sample_rate, codec.frame_size or 1024)
    for frame in [*to_codec.resample(whole), *to_codec.resample(None)]:
        out.mux(track.encode(frame))
    out.mux(track.encode())
