"""Where files are kept that are made once from installed packages."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

__all__ = ["CACHE_VARIABLE", "cache_dir", "sha256_of"]

CACHE_VARIABLE = "PRUNEBENCH_CACHE"


def cache_dir() -> Path:
    """``$PRUNEBENCH_CACHE``, or ``prunebench`` below the user's cache folder (XDG base directories)."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "prunebench"


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
