"""Whose time it is: work that several plans share counts for each of them in full."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

__all__ = ["Stopwatch", "Timed"]


class Timed(Protocol):
    """Whoever is charged."""

    seconds: float


class Stopwatch:
    """Adds wall time to those that it is on for; a section inside another stops the outer one's time.

    Args:
        device: what queues work; waited for where it does, so that time goes to whoever asked for the work.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device if device is not None and device.type == "cuda" else None
        self._stack: list[Sequence[Timed]] = []
        self._mark = 0.0

    @contextmanager
    def on(self, charged: Sequence[Timed]) -> Iterator[None]:
        """Time inside counts for each of `charged`."""
        self._lap()
        self._stack.append(charged)
        try:
            yield
        finally:
            self._lap()
            self._stack.pop()

    def _lap(self) -> None:
        if self._device is not None:
            import torch

            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        for each in self._stack[-1] if self._stack else ():
            each.seconds += now - self._mark
        self._mark = now
