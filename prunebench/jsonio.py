"""Canonical JSON, digests, and files that are whole or absent."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prunebench.errors import StoreError

__all__ = ["canonical", "digest", "write_atomically", "write_text"]


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces; NaN and infinities are refused (missing is null, never a number)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk and move it into place.

    A reader sees the old file or the new one, whole; a failure (also a full disk) leaves nothing behind.

    Raises:
        StoreError: the file cannot be written.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        temporary = _temporary(path)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private; records are meant to be shared
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error))
        raise StoreError(f"cannot write {path}: {reason}; free some space or give another folder with --out") from error
    finally:
        if temporary is not None and temporary.exists():
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    write_atomically(path, lambda temporary: _write(temporary, text))


def _temporary(path: Path, tries: int = 3) -> Path:
    """A new empty file beside `path`, whose folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except FileNotFoundError:  # another run found the folder empty and removed it in between
        if tries <= 1:
            raise
        return _temporary(path, tries - 1)
    os.close(handle)
    return Path(name)


def _write(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _sync_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # not every file system lets a folder be opened
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
