"""The numbers that some operations need: matrices to fold, new weights. Kept beside a plan's JSON, told by a digest.

Nothing here imports torch before a tensor is read, written or hashed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunebench import jsonio
from prunebench.errors import PlanError, StoreError, first_line

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FORMATS", "PlanTensors", "side_file"]

FORMATS = ("float64", "float32", "float16", "bfloat16")
"""Number formats that a plan's tensors may have."""

BITS = "uint8"
"""Format of packed bits (`prunebench.bits`), eight to the number."""


class PlanTensors(Mapping[str, Any]):
    """Name → numpy array or torch tensor on the CPU, read only; two are equal where their digests are.

    What is handed in is not copied: it must not be changed afterwards.

    Raises:
        ValueError: not an array or a tensor, another number format than `FORMATS` and `BITS`, or values that are not
            finite numbers.
    """

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self._values = {name: _checked(name, value) for name, value in sorted((values or {}).items())}
        self._digest: str | None = None

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlanTensors) and (self is other or self.digest == other.digest)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"PlanTensors({', '.join(f'{name} {_shape(value)}' for name, value in self.items())})"

    def __deepcopy__(self, memo: dict[int, Any]) -> PlanTensors:
        return self

    def check_format(self, name: str, *, bits: bool) -> None:
        """Refuse numbers where `bits` are wanted, and the other way round.

        Raises:
            ValueError: naming the tensor.
        """
        if bits != ((kind := _format(self._values[name])) == BITS):
            wanted = f"packed bits ({BITS})" if bits else f"one of {', '.join(FORMATS)}"
            raise ValueError(f"tensor {name!r} is of the format {kind}: the operation that reads it wants {wanted}")

    @property
    def digest(self) -> str | None:
        """SHA-256 (hex) over names, number formats, shapes and bytes; None where there is no tensor."""
        if self._digest is None and self._values:
            digest = hashlib.sha256()
            for name, value in self._values.items():
                digest.update(f"{name}\0{_format(value)}\0{_shape(value)}\0".encode())
                digest.update(_bytes(value))
            self._digest = digest.hexdigest()
        return self._digest

    def torch(self, name: str) -> Tensor:
        """One of them as a torch tensor, on the CPU; it may share memory with what is kept here."""
        import torch

        value = self._values[name]
        # torch warns of arrays that are closed for writing: it gets a copy, in C order and native bytes.
        return value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value, order="C"))

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Those under ``prefix.`` as torch tensors, by the rest of their names."""
        start = f"{prefix}."
        return {name.removeprefix(start): self.torch(name) for name in self._values if name.startswith(start)}

    @property
    def nbytes(self) -> int:
        return sum(int(value.nbytes) for value in self._values.values())

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all.

        Raises:
            StoreError: it cannot be written.
        """
        from safetensors.torch import save_file

        own: dict[str, Tensor] = {}
        seen = set()
        for name in self._values:
            value = self.torch(name).contiguous()
            place = value.untyped_storage().data_ptr()
            # Tensors that share memory are refused by the format; copies of all would be as large as the model.
            own[name] = value.clone() if place in seen else value
            seen.add(place)
        jsonio.write_atomically(path, lambda temporary: save_file(own, str(temporary), metadata={"format": "pt"}))

    @classmethod
    def load(cls, path: Path, digest: str) -> PlanTensors:
        """Read a file and check that it holds what `digest` says.

        Raises:
            StoreError: it is missing or damaged.
            PlanError: it holds other tensors.
        """
        from safetensors.torch import load_file

        if not Path(path).is_file():
            raise StoreError(f"the plan's tensors are missing: {path} is to lie beside it; copy both, or plan anew")
        try:
            found = cls(load_file(str(path)))
        except Exception as error:  # safetensors has a type of its own
            raise StoreError(
                f"cannot read the plan's tensors {path}: {first_line(error)}; fetch the file anew, or plan anew"
            ) from error
        if found.digest != digest:
            raise PlanError(
                f"{path} holds other tensors than the plan says: it was changed, or belongs to another plan; "
                "fetch both files anew, or plan anew"
            )
        return found


def side_file(path: Path) -> Path:
    """Where the tensors of the plan in `path` lie."""
    path = Path(path)
    other = path.with_suffix(".safetensors")
    if other == path:
        raise StoreError(f"a plan cannot be kept as {path}: that is where its tensors go, call it {path.stem}.json")
    return other


def _checked(name: str, value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = value.view()
        value.flags.writeable = False
        finite = _format(value) == BITS or (_format(value) in FORMATS and bool(np.isfinite(value).all()))
    elif hasattr(value, "detach"):
        if value.is_meta:
            raise ValueError(f"tensor {name!r} is on the meta device and holds no values: give it from memory")
        value = value.detach().cpu()
        finite = _format(value) == BITS or (_format(value) in FORMATS and bool(value.isfinite().all()))
    else:
        raise ValueError(f"tensor {name!r} is {type(value).__name__}, neither an array nor a torch tensor")
    if _format(value) not in (*FORMATS, BITS):
        raise ValueError(f"tensor {name!r} is of the format {_format(value)}: give one of {', '.join(FORMATS)}")
    if not finite:
        raise ValueError(f"tensor {name!r} holds values that are not finite numbers")
    return value


def _format(value: Any) -> str:
    return str(value.dtype).removeprefix("torch.")


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in value.shape)


def _bytes(value: Any) -> memoryview:
    """The values in C order."""
    if not isinstance(value, np.ndarray):
        import torch

        value = value.contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
