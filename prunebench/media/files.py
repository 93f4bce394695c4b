"""Media files as values: they stand in a sample where an array may stand, and are read when a model asks for them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from prunebench.errors import MediaError

__all__ = ["AudioFile", "ImageFile", "MediaFile", "VideoFile", "file_digest", "readable"]

_digests: dict[tuple[str, int, int], str] = {}  # a file is hashed again only when its size or time changed


@dataclass(frozen=True)
class MediaFile:
    """A file by its path. Nothing is read until it is needed, and nothing of it is kept."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the file's bytes: the same wherever the file lies and whatever it is called.

        Raises:
            MediaError: no such file, or it cannot be read.
        """
        return file_digest(self.path)


class ImageFile(MediaFile):
    """An image file; of an animation, its first picture."""


class VideoFile(MediaFile):
    """A video file, with or without sound."""


class AudioFile(MediaFile):
    """A sound file, or any container with a sound track."""


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, read once as long as its size and time of change stay.

    Raises:
        MediaError: no such file, or it cannot be read.
    """
    try:
        stat = path.stat()
        key = (str(path.absolute()), stat.st_size, stat.st_mtime_ns)
        if key not in _digests:
            digest = hashlib.sha256()
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            _digests[key] = digest.hexdigest()
        return _digests[key]
    except OSError as error:
        raise MediaError(f"cannot read {path}: {error.strerror or error}") from error


def readable(path: Path) -> Path:
    """The path, if there is a file with something in it.

    Raises:
        MediaError: there is none.
    """
    try:
        if path.is_dir():
            raise MediaError(f"{path} is a folder, not a media file")
        if path.stat().st_size == 0:
            raise MediaError(f"{path} is empty (0 bytes): get the file again")
    except OSError as error:
        raise MediaError(f"cannot read {path}: {error.strerror or error}") from error
    return path
