"""Bytes of a model's weights on disk: as safetensors write them, and in the smallest of a few exact formats."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Stored", "compressed_bytes", "stored_bytes"]


class Stored(NamedTuple):
    """Bytes of all weights, without the header of the file.

    Attributes:
        plain: every parameter and persistent buffer, tied ones once.
        compressed: each of them in its smallest exact format; None where some values are not in memory.
    """

    plain: int
    compressed: int | None


def stored_bytes(model: nn.Module, *, compress: bool = True) -> Stored:
    """Count what a file with the weights of `model` would hold.

    Args:
        model: dense or pruned, on any device; parameters on the meta device are counted, but have no zeros to find.
        compress: whether to look for zeros, which reads every value once.
    """
    tensors = list(_kept(model))
    plain = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if not compress or any(tensor.is_meta for tensor in tensors):
        return Stored(plain, None)
    return Stored(plain, sum(compressed_bytes(tensor) for tensor in tensors))


def compressed_bytes(tensor: Tensor) -> int:
    """The smaller one of n values, and of ceil(n / 8) bytes of a bitmask with the values that are not zero.

    What a sparse tensor core reads where 2 of every 4 neighbours stay, half of the values with 2 bits each for their
    place, is n / 2 values and n / 8 bytes: never less than the bitmask, which counts only the values that are there. So
    it needs no format of its own. A zero comes back as +0, whatever its sign was.
    """
    import torch

    values, size = tensor.detach(), tensor.element_size()
    if size == 1 and values.dtype.is_floating_point:  # no operations on 8-bit floating point beyond a copy
        values = values.view(torch.uint8)
    count = int(torch.count_nonzero(values))
    return min(tensor.numel() * size, (tensor.numel() + 7) // 8 + count * size)


def _kept(model: nn.Module) -> Iterator[Tensor]:
    """What a checkpoint holds, each tensor once: two names of the same memory are one tensor."""
    import torch

    seen: set[object] = set()
    for value in model.state_dict(keep_vars=True).values():
        if not isinstance(value, torch.Tensor):
            continue  # extra state of a module
        there = not value.is_meta and value.numel() > 0
        key = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride()) if there else id(value)
        if key not in seen:
            seen.add(key)
            yield value
