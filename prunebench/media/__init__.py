"""Images, video and sound as users have them: files or arrays in, what a model's own processor wants out.

Readers are imported on first use, so that a sample with a path in it costs nothing before it is read.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from prunebench.media.files import AudioFile, ImageFile, VideoFile

if TYPE_CHECKING:
    from prunebench.media.audio import audio_track_of, read_audio, resample, waveform_of
    from prunebench.media.images import images_of, load_image
    from prunebench.media.video import evenly, frames_of, video_info

__all__ = [
    "AudioFile",
    "ImageFile",
    "VideoFile",
    "audio_track_of",
    "evenly",
    "frames_of",
    "images_of",
    "load_image",
    "read_audio",
    "resample",
    "video_info",
    "waveform_of",
]

_HOMES = {
    "audio_track_of": "audio",
    "evenly": "video",
    "frames_of": "video",
    "images_of": "images",
    "load_image": "images",
    "read_audio": "audio",
    "resample": "audio",
    "video_info": "video",
    "waveform_of": "audio",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
