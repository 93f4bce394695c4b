"""Which frames of a video are shown to the model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

__all__ = ["MAX_FRAMES", "every_second", "middle_of_segments", "padded"]

MAX_FRAMES = 32


def middle_of_segments(n_frames: int, count: int) -> list[int]:
    """`count` frames, each from the middle of one of `count` equal parts of a video; short videos repeat frames.

    Not transformers' own sampling, which starts at frame 0.
    """
    part = (n_frames - 1) / count
    return [int(np.round((part * i + part * (i + 1)) / 2 + 1e-6)) for i in range(count)]


def every_second(n_frames: int, fps: float) -> list[int]:
    """One frame per second, half a second in; at least one frame, at most `MAX_FRAMES`."""
    step = max(int(fps), 1)
    return list(range(min(step // 2, n_frames - 1), n_frames, step))[:MAX_FRAMES]


def padded(frames: Sequence[Image.Image], count: int | None) -> list[Image.Image]:
    """At least `count` frames, black ones after the given; never more than `MAX_FRAMES`."""
    black = [Image.new("RGB", frames[-1].size)] * max(0, (count or 0) - len(frames))
    return [*frames, *black][:MAX_FRAMES]
