"""Where files are kept that are made once from installed packages."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from prunebench.errors import ModelError, first_line

__all__ = ["CACHE_VARIABLE", "WEIGHTS", "cache_dir", "make_folder", "sha256_of"]

CACHE_VARIABLE = "PRUNEBENCH_CACHE"
WEIGHTS = "model.safetensors"


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


def make_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Make a model's folder whole or not at all: `fill` writes into a folder beside it, which then gets its name.

    Raises:
        ModelError: it cannot be written.
    """
    work = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=target.parent, prefix=".making-"))
        fill(work)
        _settle(work)
        try:
            work.replace(target)
        except OSError:  # another process was faster, and its folder is as good
            if not (target / WEIGHTS).is_file():
                raise
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise ModelError(f"cannot write {target}: {reason}; name another folder by {CACHE_VARIABLE}") from error
    finally:
        if work is not None and work.exists():
            shutil.rmtree(work, ignore_errors=True)


def _settle(folder: Path) -> None:
    """On disk and readable by all, before the folder gets its name."""
    for path in folder.iterdir():
        path.chmod(0o644)
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
    folder.chmod(0o755)
