"""A folder that is whole or absent: filled under another name beside its place, and renamed when all is well."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prunebench.errors import StoreError, UsageError, first_line

try:
    import fcntl
except ImportError:  # Windows: a leftover cannot be told from a folder in use, so it stays
    fcntl = None  # type: ignore[assignment]

__all__ = ["check_free", "check_target", "whole_folder"]


def check_target(target: Path, force: bool) -> None:
    """Refuse a place that is taken.

    Raises:
        UsageError: a file, or a folder that is not empty and may not be replaced.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UsageError(f"{target} is not a folder: give another one with --to")
    if target.is_dir() and any(target.iterdir()) and not force:
        raise UsageError(f"{target} is not empty: give another folder with --to, or replace it with --force")


def check_free(folder: Path, needed: int) -> None:
    """Fail before the work, not after.

    Raises:
        StoreError: the file system has less than `needed` bytes left.
    """
    place = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise StoreError(
            f"{folder} needs {needed / 2**20:,.0f} MiB, the disk has {free / 2**20:,.0f} MiB left: free some space"
        )


@contextmanager
def whole_folder(target: Path, force: bool = False) -> Iterator[Path]:
    """An empty folder to fill; on leaving the block it becomes `target`, and after an exception nothing is there.

    A process that is killed leaves a hidden folder beside `target` that no reader takes for a checkpoint; the next
    export to the same place removes it.

    Raises:
        UsageError: `target` is taken.
        StoreError: nothing can be written there.
    """
    check_target(target, force)
    prefix = f".{target.name}.export-"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target.parent, prefix)
        if target.is_dir():  # it was replaced by a process that was killed before it removed the old one
            for old in target.parent.glob(f"{glob.escape(_old_prefix(target))}*"):
                shutil.rmtree(old, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=prefix))
    except OSError as error:
        raise StoreError(_disk_words(target, error)) from error
    lock = _locked(temporary)
    try:
        yield temporary
        _settle(temporary)
        os.chmod(temporary, 0o755)  # mkdtemp makes it private
        _move(temporary, target, force)
    except Exception as error:
        if (line := _disk_error(error)) is not None:
            raise StoreError(_disk_words(target, line)) from error
        raise
    finally:
        if lock is not None:
            os.close(lock)
        shutil.rmtree(temporary, ignore_errors=True)


def _locked(folder: Path) -> int | None:
    """Hold a lock that the system lets go of when this process ends, however it ends."""
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # a file system without locks
        os.close(handle)
        return None
    return handle


def _remove_leftovers(parent: Path, prefix: str) -> None:
    """Remove what killed exports to the same place left; one that is at work holds its lock."""
    if fcntl is None:
        return
    for folder in sorted(parent.glob(f"{glob.escape(prefix)}*")):
        try:
            handle = os.open(folder, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(handle)


def _move(temporary: Path, target: Path, force: bool) -> None:
    check_target(target, force)  # much time has passed
    if target.is_dir() and any(target.iterdir()):
        old = Path(tempfile.mkdtemp(dir=target.parent, prefix=_old_prefix(target)))
        os.replace(target, old)
        try:
            os.replace(temporary, target)
        except OSError:
            os.replace(old, target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(temporary, target)


def _old_prefix(target: Path) -> str:
    return f".{target.name}.old-"


def _settle(folder: Path) -> None:
    """Flush to disk, and readable by others."""
    for path in folder.rglob("*"):
        if path.is_file():
            os.chmod(path, 0o644)  # safetensors makes its files private
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def _disk_error(error: Exception) -> OSError | None:
    """The error as one of the disk, also where a library wraps it in a type of its own."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    if "no space left" in str(error).lower():
        return OSError(errno.ENOSPC, "no space left")
    return None


def _disk_words(target: Path, error: OSError) -> str:
    reason = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or first_line(error))
    return f"cannot write {target}: {reason}; nothing was left there, give another folder with --to"
