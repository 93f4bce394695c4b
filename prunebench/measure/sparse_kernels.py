"""Kernels that make 2:4 sparsity fast: torch's semi-structured tensors, for the length of a measurement.

A mask alone is multiplied by the same dense kernel as before and gains no time. Sparse tensor cores (NVIDIA, compute
capability 8.0 and later) skip half of the products where at most 2 of every 4 neighbours of a row are not zero
(A. Mishra et al., "Accelerating Sparse Deep Neural Networks", arXiv 2104.08378).
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunebench.errors import first_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from prunebench.adapter import LoadedModel

__all__ = ["PATTERN", "Conversion", "keeps_pattern", "semi_structured", "to_sparse", "why_not"]

PATTERN = "2:4"
"""The only pattern that torch has kernels for."""

CAPABILITY = (8, 0)
NOT_PATTERN = "more than 2 of 4 neighbours stay"


@dataclass(frozen=True)
class Conversion:
    """Which linear modules of the decoder layers got a sparse kernel.

    Attributes:
        converted: how many did.
        refused: why the others did not → how many.
        names: of the classes of sparse tensors that stand in.
    """

    converted: int
    refused: dict[str, int]
    names: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """``SparseSemiStructuredTensorCUSPARSELT in 12 of 14 linear modules; dense: 2 (more than 2 of 4 ... stay)``."""
        total = self.converted + sum(self.refused.values())
        text = f"{' and '.join(self.names) or 'sparse kernels'} in {self.converted} of {total} linear modules"
        others = [f"{count} ({reason})" for reason, count in sorted(self.refused.items())]
        return f"{text}; dense: {', '.join(others)}" if others else text


def why_not(loaded: LoadedModel, pattern: str) -> str:
    """Why no sparse kernel can run here, in words; empty where one may."""
    import torch

    if pattern != PATTERN:
        return f"there is no sparse kernel for {pattern}"
    if loaded.device.type != "cuda":
        return f"sparse kernels for {PATTERN} need a CUDA device, this is {loaded.device.type}"
    if (have := torch.cuda.get_device_capability(loaded.device)) < CAPABILITY:
        needed = ".".join(map(str, CAPABILITY))
        return f"sparse kernels for {PATTERN} need compute capability {needed}, this device has {have[0]}.{have[1]}"
    if loaded.info.dtype not in ("float16", "bfloat16"):
        return f"sparse kernels for {PATTERN} need half-precision weights, these are {loaded.info.dtype}"
    return ""


@contextmanager
def semi_structured(layers: Iterable[nn.Module]) -> Iterator[Conversion]:
    """Let the linear modules of `layers` that keep 2:4 run sparse kernels inside a ``with`` block.

    Afterwards each holds the very parameter that it held before, also if the body raises.

    Args:
        layers: decoder layers with a plan applied. A linear module that is no plain ``nn.Linear``, keeps more than 2 of
            4 neighbours, or has a shape or number format that torch refuses, stays dense and is counted.
    """
    import torch

    before: list[tuple[nn.Linear, nn.Parameter]] = []
    refused: Counter[str] = Counter()
    names: set[str] = set()
    try:
        with torch.inference_mode(False), torch.no_grad():
            for linear in _linear_modules(layers):
                if type(linear) is not torch.nn.Linear:
                    refused[f"a {type(linear).__name__}"] += 1
                elif not keeps_pattern(linear.weight):
                    refused[NOT_PATTERN] += 1
                else:
                    try:
                        sparse = _quietly(linear.weight.detach())
                    except (RuntimeError, NotImplementedError) as error:
                        if isinstance(error, torch.OutOfMemoryError):
                            raise
                        refused[f"torch: {first_line(error)[:100]}"] += 1
                        continue
                    names.add(type(sparse).__name__)
                    before.append((linear, linear.weight))
                    linear.weight = torch.nn.Parameter(sparse, requires_grad=False)
        yield Conversion(len(before), dict(refused), tuple(sorted(names)))
    finally:
        for linear, weight in before:
            linear.weight = weight


def keeps_pattern(weight: Tensor) -> bool:
    """Whether of every 4 neighbours of a row, (rows, columns), at most 2 are not zero."""
    if weight.is_meta or weight.dim() != 2 or weight.shape[1] % 4:
        return False
    groups = (weight.detach() != 0).view(weight.shape[0], -1, 4)
    return int(groups.sum(-1).max()) <= 2 if groups.numel() else False


def to_sparse(weight: Tensor) -> torch.Tensor:
    """Torch's semi-structured form of `weight`, (rows, columns), which must keep 2:4: it is not checked there."""
    import torch

    return torch.sparse.to_sparse_semi_structured(weight)


def _quietly(weight: Tensor) -> torch.Tensor:
    """Without torch's note that this interface may change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return to_sparse(weight.contiguous())


def _linear_modules(layers: Iterable[nn.Module]) -> list[nn.Linear]:
    import torch

    found = {id(m): m for layer in layers for m in layer.modules() if isinstance(m, torch.nn.Linear)}
    return list(found.values())
