"""Tensors that are read when they are wanted, and of their files nothing else.

Memory-mapping a checkpoint and taking slices would do, were it not for read-ahead: a system that fetches megabytes
around every page fetches what lies between the wanted tensors too. Here each tensor is read by one positioned read,
and the system is told not to look ahead.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from prunebench.checkpoint.files import Checkpoint, TensorEntry, open_for_parts
from prunebench.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["LazyTensor", "lazy_tensors"]

FORMATS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64", "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
"""Number formats as safetensors files call them → torch's names."""


class LazyTensor:
    """A tensor in a file. It speaks as safetensors' own slices do, so that transformers takes it for one."""

    def __init__(self, key: str, entry: TensorEntry, file: _File) -> None:
        if entry.dtype not in FORMATS:
            raise ModelError(f"{entry.file}: {key} has the number format {entry.dtype}, which is not readable here")
        self.key, self.entry, self.file = key, entry, file

    def get_shape(self) -> list[int]:
        return list(self.entry.shape)

    def get_dtype(self) -> str:
        return self.entry.dtype

    def __getitem__(self, index: Any) -> Tensor:
        return self.read()[index]

    def read(self) -> Tensor:
        """The whole tensor, from the disk each time.

        Raises:
            ModelError: the file has become shorter.
        """
        import torch

        dtype: torch.dtype = getattr(torch, FORMATS[self.entry.dtype])
        buffer = torch.empty(self.entry.nbytes, dtype=torch.uint8)
        self.file.fill(memoryview(buffer.numpy()), self.entry.offset)
        return buffer.view(dtype).reshape(self.entry.shape)


class _File:
    """A file that several threads read from at positions of their own."""

    def __init__(self, path: Path, handle: BinaryIO) -> None:
        self.path, self.handle, self.lock = path, handle, threading.Lock()

    def fill(self, target: memoryview, offset: int) -> None:
        """Read ``len(target)`` bytes from `offset` on."""
        done = 0
        while done < len(target):
            count = self._read(target[done:], offset + done)
            if not count:
                raise ModelError(f"{self.path} ends early: it was changed while it was read")
            done += count

    def _read(self, target: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self.handle.fileno(), [target], offset)
        with self.lock:
            self.handle.seek(offset)
            return self.handle.readinto(target)  # type: ignore[attr-defined]


@contextmanager
def lazy_tensors(checkpoint: Checkpoint, names: Mapping[str, str]) -> Iterator[dict[str, LazyTensor]]:
    """Tensors under new names, to be read inside the block; files without any of them stay closed.

    Args:
        checkpoint: where they are.
        names: key in the files → key in the result.
    """
    with ExitStack() as stack:
        files: dict[Path, _File] = {}
        state = {}
        for key, name in names.items():
            entry = checkpoint.tensors[key]
            if entry.file not in files:
                handle = stack.enter_context(open_for_parts(entry.file))
                files[entry.file] = _File(entry.file, handle)
            state[name] = LazyTensor(key, entry, files[entry.file])
        yield state
