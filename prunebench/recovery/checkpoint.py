"""Where training stands, on disk: one safetensors file, whole or absent, found by what it was computed from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunebench import jsonio
from prunebench.errors import StoreError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Checkpoint"]

VERSION = 1


class Checkpoint:
    """Parameters, optimiser state and counters of one training.

    Args:
        folder: where it lies.
        key: hash of everything that the result depends on; another plan, recovery or sample is another file.
        warn: told of a file that cannot be used; training then begins anew.
    """

    def __init__(self, folder: Path, key: str, warn: Callable[[str], None] | None = None) -> None:
        self.path = Path(folder) / f"{key}.safetensors"
        self._warn = warn or (lambda text: None)

    def save(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Write, whole or not at all: a process that is killed meanwhile leaves the file of the step before.

        Args:
            state: JSON-able counters.
            tensors: on any device.

        Raises:
            StoreError: it cannot be written.
        """
        from safetensors.torch import save_file

        own = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
        header = {"version": str(VERSION), "state": json.dumps(dict(state)), "sha256": _checksum(own)}
        jsonio.write_atomically(self.path, lambda temporary: save_file(own, str(temporary), metadata=header))

    def load(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """What was saved; None where there is nothing, or nothing that can be trusted."""
        from safetensors import SafetensorError, safe_open

        if not self.path.exists():
            return None
        try:
            with safe_open(str(self.path), framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
            if header.get("version") != str(VERSION) or header.get("sha256") != _checksum(tensors):
                raise StoreError("damaged, or of another version")
            return json.loads(header["state"]), tensors
        except (SafetensorError, OSError, ValueError, StoreError) as error:
            self._warn(f"checkpoint {self.path} cannot be used ({error}): training begins anew")
            return None

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
