"""What the outputs of a model's encoders depend on, besides the sample."""

from __future__ import annotations

import hashlib
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunebench import jsonio
from prunebench.environment import package_version

if TYPE_CHECKING:
    from prunebench.adapter import LoadedModel

__all__ = ["encoder_identity"]


def encoder_identity(loaded: LoadedModel) -> str:
    """Hash of weights, precision, attention implementation, device kind, library versions and the adapter's code.

    Code counts by its text, so that work on an adapter's ``encode`` never meets the outputs of yesterday's. What an
    adapter can be told beside its samples belongs in its ``encode_version``.
    """
    adapter, info = loaded.adapter, loaded.info
    return jsonio.digest(
        {
            "revision": info.revision,
            "dtype": info.dtype,
            "adapter": f"{type(adapter).__module__}.{type(adapter).__qualname__}",
            "version": str(getattr(adapter, "encode_version", "1")),
            "code": _code(type(adapter)),
            "attention": _attention(loaded.model),
            "device": loaded.device.type,
            "libraries": [package_version(name) for name in ("torch", "transformers", "numpy", "pillow", "av")],
        }
    )


def _attention(model: Any) -> dict[str, str]:
    """Attention implementation of the model and of its parts, by the name of their configuration."""
    config = getattr(model, "config", None)
    parts = {"": config} | {name: getattr(config, name, None) for name in getattr(config, "sub_configs", None) or ()}
    return {name: str(getattr(part, "_attn_implementation", None)) for name, part in parts.items()}


@cache
def _code(adapter: type) -> str:
    """Hash of the source files of the adapter, of its bases and of what lies beside them, and of the media readers."""
    files: set[Path] = set(Path(__file__).parent.joinpath("media").glob("*.py"))
    for base in adapter.__mro__:
        module = sys.modules.get(base.__module__)
        path = getattr(module, "__file__", None)
        if path is None or base.__module__ in ("abc", "builtins", "prunebench.adapter"):
            continue
        files.add(Path(path))
        if getattr(module, "__package__", None):
            files.update(Path(path).parent.glob("*.py"))
    digest = hashlib.sha256()
    for content in sorted(path.read_bytes() for path in files if path.is_file()):
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()
