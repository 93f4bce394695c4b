"""The contract of an executor: where cells run. Results travel through the store, never through the executor."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from prunebench.config import Cell
    from prunebench.store import Record

__all__ = ["Executor", "InProcess"]


class Executor(abc.ABC):
    """Runs cells and yields their records as they finish."""

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def run(self, cells: Iterable[Cell], run_cell: Callable[[Cell], Record]) -> Iterator[Record]:
        """Run each cell once. `run_cell` writes the record and turns every failure into a failed record."""


class InProcess(Executor):
    """One after the other in this process, on one loaded model."""

    name = "local"

    def run(self, cells: Iterable[Cell], run_cell: Callable[[Cell], Record]) -> Iterator[Record]:
        for cell in cells:
            yield run_cell(cell)
