"""What a checkpoint folder holds, by the headers of its safetensors files: names, shapes and places, no tensor read."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from prunebench.errors import ModelError, first_line

__all__ = ["Checkpoint", "TensorEntry", "open_for_parts", "read_header", "read_json", "weight_files"]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
LONGEST_HEADER = 100_000_000  # what the format allows


@dataclass(frozen=True)
class TensorEntry:
    """One tensor in a file: where it is, without its values."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one folder.

    Attributes:
        folder: where they are.
        tensors: key as it is written in the files → its place.
        sharded: whether an index names several files.
    """

    folder: Path
    tensors: Mapping[str, TensorEntry]
    sharded: bool

    @classmethod
    def open(cls, folder: str | Path) -> Checkpoint:
        """Read the headers and check that every file is whole.

        Raises:
            ModelError: no weights, only pickled ones, a shard that is missing, truncated or not what the index says.
        """
        folder = Path(folder)
        files, index = weight_files(folder)
        tensors: dict[str, TensorEntry] = {}
        for file in files:
            header = read_header(file)
            if index is None:
                tensors |= header
                continue
            for key in (key for key, name in index.items() if name == file.name):
                if key not in header:
                    raise ModelError(
                        f"{folder / INDEX} places {key!r} in {file.name}, which does not hold it: "
                        "index and shards are of different checkpoints; fetch the folder anew"
                    )
                tensors[key] = header[key]
        return cls(folder, tensors, index is not None)

    def nbytes(self, keys: Iterable[str]) -> int:
        """Bytes of these tensors on disk."""
        return sum(self.tensors[key].nbytes for key in keys)


def weight_files(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The safetensors files of a checkpoint, and the index (key → file name) where there are several.

    Raises:
        ModelError: no folder, no safetensors, or a file that the index names is missing.
    """
    if not folder.is_dir():
        raise ModelError(f"no such model folder: {folder}; give one by --model-path")
    if (folder / SINGLE).is_file():
        return [folder / SINGLE], None
    if (folder / INDEX).is_file():
        content = read_json(folder / INDEX)
        index = content.get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()) or not index:
            raise ModelError(f"{folder / INDEX} has no weight_map: fetch it anew")
        names = sorted(set(index.values()))
        if outside := [name for name in names if Path(name).name != name]:
            raise ModelError(f"{folder / INDEX} names a file outside its folder: {outside[0]!r}")
        if missing := [name for name in names if not (folder / name).is_file()]:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise ModelError(
                f"{folder} lacks the shard {missing[0]}{more} that {INDEX} names: "
                "the download was cut short; fetch the folder anew"
            )
        return [folder / name for name in names], index
    found = sorted(path.name for path in folder.iterdir())
    if any(name.endswith(".safetensors") for name in found):
        name = next(name for name in found if name.endswith(".safetensors"))
        raise ModelError(
            f"{folder} holds {name} but neither {SINGLE} nor {INDEX}: give a folder with a whole model "
            "(an adapter has to be merged first)"
        )
    if pickled := [name for name in found if name.endswith(PICKLED)]:
        raise ModelError(
            f"{folder} holds only pickled weights ({pickled[0]}), which can run code and are not loaded: "
            "save the model again with save_pretrained, which writes safetensors"
        )
    raise ModelError(
        f"{folder} holds no weights: neither {SINGLE} nor {INDEX}; give the model's folder by --model-path"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a checkpoint.

    Raises:
        ModelError: absent, not readable, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path.parent} has no {path.name}: it is not a model folder, or not a whole one") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable JSON: {first_line(error)}; fetch it anew") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds {type(value).__name__}, not a JSON object: fetch it anew")
    return value


def open_for_parts(path: Path) -> BinaryIO:
    """Open a file of which only parts are wanted: the system is told not to fetch what lies beside them."""
    handle = open(path, "rb", buffering=0)  # noqa: SIM115  (the caller closes it)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
    return handle  # type: ignore[return-value]


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Tensors of a safetensors file by its header, checked against the file's length.

    Raises:
        ModelError: the file is cut short or not a safetensors file.
    """
    try:
        size = path.stat().st_size
        with open_for_parts(path) as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
            if not 0 < length <= min(size - 8, LONGEST_HEADER):
                raise ValueError(f"{size} bytes do not hold a header")
            header = json.loads(file.read(length))
        base, entries = 8 + length, {}
        for key, value in header.items():
            if key == "__metadata__":
                continue
            begin, end = value["data_offsets"]
            entries[key] = TensorEntry(path, value["dtype"], tuple(value["shape"]), base + begin, end - begin)
        end = max((entry.offset + entry.nbytes for entry in entries.values()), default=base)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is not a whole safetensors file ({first_line(error)}): fetch it anew") from error
    if end != size:
        state = "is cut short" if size < end else "is longer than its header says"
        raise ModelError(f"{path} {state}: {size} bytes, {end} expected; fetch it anew")
    return entries
