"""What the decoder sees, kept: towers and projectors run once per input, for all plans of a sweep and for later runs.

Pruning touches the decoder alone, so its inputs are the same for every plan. An entry is found by the content that it
was made from (weights, adapter code, media, words), never by a path. Entries live in memory up to one bound and as
safetensors files up to another. Nothing depends on them: a lost or damaged one is made again.
"""

from __future__ import annotations

import dataclasses
import os
import re
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prunebench import jsonio
from prunebench.calibration.samples import Sample, input_fingerprint
from prunebench.encoded_file import HEADER_BYTES, NotStorable, read_inputs, stored_bytes, write_inputs
from prunebench.encoded_key import encoder_identity
from prunebench.errors import BadParameter, StoreError, first_line

if TYPE_CHECKING:
    from prunebench.adapter import DecoderInputs, LoadedModel

__all__ = ["DISK_BYTES", "MEMORY_BYTES", "EncoderCache", "parse_size"]

MEMORY_BYTES = 2 << 30
DISK_BYTES = 2 << 30

SHARE = 0.25
"""Writing may take this share of the time that encoding took, so that a model whose towers are faster than the disk is
never slowed by more than that. Reading takes less than writing, so what is written is worth reading."""

FIRST_GUESS = (0.004, 100e6)
"""Seconds per file and bytes per second of a disk, before the first file was timed."""

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(text: str | int) -> int:
    """``"500M"``, ``"4G"``, ``"1.5GiB"``, ``0`` → bytes; units are powers of 1024.

    Raises:
        BadParameter: something else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", str(text).lower())
    if match is None:
        raise BadParameter(f"a size is a number with K, M, G or T behind it, such as 500M or 4G; got {text!r}")
    return int(float(match[1]) * _UNITS[match[2]])


class EncoderCache:
    """Decoder inputs by content.

    Args:
        folder: where files go; None keeps memory only.
        disk_bytes: upper bound of all files together. Files that were used longest ago go first; what this run used
            stays, so that a suite larger than the bound does not push itself out.
        memory_bytes: upper bound of what stays in memory; what does not fit is read from disk or made again.
        share: of the time that encoding took so far, what writing may take (`SHARE`); infinity writes everything.
        warn: told once when the disk cannot be written, and of every damaged file.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        disk_bytes: int = DISK_BYTES,
        memory_bytes: int = MEMORY_BYTES,
        share: float | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self.folder = folder if disk_bytes else None
        self.disk_bytes = disk_bytes
        self.memory_bytes = memory_bytes
        self.share = SHARE if share is None else share
        self._warn = warn or (lambda text: None)
        self._memory: dict[str, DecoderInputs] = {}
        self._held = 0
        self._marks: dict[int, tuple[weakref.ref[Sample], str]] = {}
        self._identities: dict[int, tuple[weakref.ref[LoadedModel], str]] = {}
        self._used: set[str] = set()  # keys of files that this run wrote or read
        self._since = time.time()
        self._encoding = self._writing = 0.0  # seconds so far
        self._written = self._files = 0

    def encode(self, loaded: LoadedModel, samples: Sequence[Sample], *, keep: bool = True) -> DecoderInputs:
        """The decoder's inputs for a batch, on the model's device: ``loaded.encode(samples)``, or what it gave before.

        Args:
            loaded: the model, dense or pruned.
            samples: one batch; the same rows in another batch are another entry, since padding differs.
            keep: hold it in memory too (for what every plan asks for again).
        """
        if self.folder is None and not (keep and self.memory_bytes):
            return loaded.encode(samples)
        key = self.key(loaded, samples)
        inputs = self._memory.get(key)
        if inputs is None:
            inputs = self._read(key)
            if inputs is None:
                inputs = self._make(loaded, samples, key)
            if keep and self._held + (size := stored_bytes(inputs)) <= self.memory_bytes:
                self._held += size
                self._memory[key] = inputs.to("cpu")
        return dataclasses.replace(inputs.to(loaded.device), sample_ids=tuple(sample.id for sample in samples))

    def key(self, loaded: LoadedModel, samples: Sequence[Sample]) -> str:
        """Hash of all that these inputs depend on."""
        return jsonio.digest([self._identity(loaded), [self.mark(sample) for sample in samples]])[:32]

    def _identity(self, loaded: LoadedModel) -> str:
        known = self._identities.get(id(loaded))
        if known is None or known[0]() is not loaded:
            known = (weakref.ref(loaded), encoder_identity(loaded))
            self._identities[id(loaded)] = known
        return known[1]

    def mark(self, sample: Sample) -> str:
        """`input_fingerprint`, computed once per sample: media are large, and every plan asks again."""
        known = self._marks.get(id(sample))
        if known is None or known[0]() is not sample:
            known = (weakref.ref(sample), input_fingerprint(sample))
            self._marks[id(sample)] = known
        return known[1]

    def _make(self, loaded: LoadedModel, samples: Sequence[Sample], key: str) -> DecoderInputs:
        started = time.perf_counter()
        inputs = loaded.encode(samples)
        if loaded.device.type == "cuda":
            import torch

            torch.cuda.synchronize(loaded.device)
        self._encoding += time.perf_counter() - started
        self._offer(key, inputs)
        return inputs

    # -- files -------------------------------------------------------------------------------------------------------

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.safetensors"

    def _read(self, key: str) -> DecoderInputs | None:
        if self.folder is None or not (path := self._path(key)).exists():
            return None
        try:
            inputs = read_inputs(path)
            os.utime(path)  # used now: access times are not kept on every disk
            self._used.add(key)
            return inputs
        except StoreError as error:
            self._warn(f"{error}; removed and made anew")
            path.unlink(missing_ok=True)
        except OSError as error:
            self._warn(f"cannot read {path}: {first_line(error)}; made anew")
        return None

    def _offer(self, key: str, inputs: DecoderInputs) -> None:
        """Write an entry if that is worth its time, and if there is room."""
        if self.folder is None:
            return
        size = stored_bytes(inputs)
        if self._writing + self._expected(size) > self.share * self._encoding:
            return
        started = time.perf_counter()
        try:
            if self._make_room(size + HEADER_BYTES):
                write_inputs(self._path(key), inputs)
                self._used.add(key)
                self._written += size
                self._files += 1
        except NotStorable:
            pass  # an adapter's own kind of value: memory only
        except (StoreError, OSError) as error:
            self._warn(f"encoder outputs are no longer kept on disk: {first_line(error)}")
            self.folder = None
        self._writing += time.perf_counter() - started

    def _expected(self, size: int) -> float:
        """Seconds that writing `size` bytes will take, by what it took so far."""
        guess = FIRST_GUESS[0] + size / FIRST_GUESS[1]
        if not self._files:
            return guess
        return self._writing / (self._files * FIRST_GUESS[0] + self._written / FIRST_GUESS[1]) * guess

    def _make_room(self, size: int) -> bool:
        """Remove what was used longest ago and not in this run; False where `size` more bytes do not fit even so."""
        assert self.folder is not None
        entries = []
        for path in self.folder.glob("*.safetensors"):
            try:
                stat = path.stat()
            except OSError:  # another run removed it
                continue
            entries.append((stat.st_mtime, stat.st_size, path))
        used = sum(entry[1] for entry in entries)
        for last_used, own, path in sorted(entries):
            if used + size <= self.disk_bytes or last_used >= self._since:  # other runs are at work here too
                break
            if path.stem in self._used:
                continue
            path.unlink(missing_ok=True)
            used -= own
        return used + size <= self.disk_bytes
