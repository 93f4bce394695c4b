"""Device and number format by the words that a user types."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunebench.errors import BadParameter

if TYPE_CHECKING:
    import torch

__all__ = ["resolve_device", "resolve_dtype"]


def resolve_device(name: str) -> torch.device:
    """``auto`` (a GPU where there is one), or any torch device.

    Raises:
        BadParameter: no such device here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BadParameter(f"no such device {name!r}: use auto, cpu, or cuda:0") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadParameter(
            f"device {name!r} asked for, but torch sees no GPU: use --device cpu, or see `prunebench doctor`"
        )
    return device


def resolve_dtype(name: str) -> torch.dtype:
    """``float32``, ``bfloat16`` or ``float16``.

    Raises:
        BadParameter: another name.
    """
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise BadParameter(f"unknown dtype {name!r}: use {', '.join(known)}")
    return known[name]
