"""Decoder inputs as one safetensors file: every tensor bit for bit, every other value in the header with its type."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunebench import jsonio
from prunebench.adapter import DecoderInputs
from prunebench.errors import StoreError, first_line

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["HEADER_BYTES", "NotStorable", "read_inputs", "stored_bytes", "write_inputs"]

SCHEMA_VERSION = 1
HEADER_BYTES = 4096
"""Room to leave for what a file holds besides its tensors."""

_PLAIN = {"int": int, "bool": bool, "str": str}


class NotStorable(Exception):
    """A value of a type that a file cannot give back as it was."""


def stored_bytes(inputs: DecoderInputs) -> int:
    """Bytes of all tensors, also of those deep inside ``extra``."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors_in(_values(inputs)))


def write_inputs(path: Path, inputs: DecoderInputs) -> None:
    """Write, whole or not at all. Sample ids are left out: they are no content.

    Raises:
        NotStorable: ``extra`` holds something else than tensors, numbers, text, None, and lists, tuples and
            dictionaries of these.
        StoreError: the file cannot be written.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    tree = _flat(_values(inputs), tensors)
    header = {"schema": SCHEMA_VERSION, "tree": tree, "crc": _checksum(tensors)}
    metadata = {"inputs": json.dumps(header)}
    jsonio.write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def read_inputs(path: Path) -> DecoderInputs:
    """Read what `write_inputs` wrote, onto the CPU.

    Raises:
        StoreError: damaged, or of another version.
        OSError: it cannot be opened.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})["inputs"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if header["schema"] != SCHEMA_VERSION or header["crc"] != _checksum(tensors):
            raise StoreError(f"encoder output {path} is damaged or of another version")
        return DecoderInputs(**_whole(header["tree"], tensors))
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"encoder output {path} is damaged ({first_line(error)})") from error


def _values(inputs: DecoderInputs) -> dict[str, Any]:
    return {
        "embeds": inputs.embeds,
        "attention_mask": inputs.attention_mask,
        "groups": inputs.groups,
        "extra": inputs.extra,
    }


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if hasattr(value, "element_size"):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors_in(item)


def _flat(value: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """A value as JSON in which tensors are names; types are exact, so that a tuple comes back as a tuple."""
    import torch

    kind = type(value)
    if kind is torch.Tensor and value.layout == torch.strided and not value.is_quantized:
        name = f"t{len(tensors)}"
        # Two names for one piece of memory are refused by the format, and a view would drag its whole base along.
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if kind is dict and all(type(key) is str for key in value):
        return {"dict": {key: _flat(item, tensors) for key, item in value.items()}}
    if kind in (list, tuple):
        return {kind.__name__: [_flat(item, tensors) for item in value]}
    if value is None:
        return {"none": None}
    if kind is float:
        return {"float": value.hex()}
    if kind.__name__ in _PLAIN and kind is _PLAIN[kind.__name__]:
        return {kind.__name__: value}
    raise NotStorable(f"{kind.__name__} cannot be stored")


def _whole(tree: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    ((kind, value),) = tree.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: _whole(item, tensors) for key, item in value.items()}
    if kind in ("list", "tuple"):
        items = [_whole(item, tensors) for item in value]
        return tuple(items) if kind == "tuple" else items
    if kind == "none":
        return None
    return float.fromhex(value) if kind == "float" else _PLAIN[kind](value)


def _checksum(tensors: dict[str, Tensor]) -> int:
    """CRC-32 over names and bytes: the format itself has none, and a flipped bit would pass for an answer."""
    import torch

    crc = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        crc = zlib.crc32(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode(), crc)
        if tensor.numel():
            crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy(), crc)
    return crc
