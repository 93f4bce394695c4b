"""The contract of a source of samples, for calibration and for suites."""

from __future__ import annotations

import abc
from typing import ClassVar

from prunebench.calibration.samples import Sample

__all__ = ["SPLITS", "Dataset"]

SPLITS = ("train", "calibration", "test")


class Dataset(abc.ABC):
    """Yields samples, the same ones on every machine for the same arguments."""

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    domains: tuple[str, ...] = ()
    revision: ClassVar[str] = "1"
    """Changes whenever the samples change: it is part of every result's identity."""

    @abc.abstractmethod
    def samples(self, split: str, n: int, *, seed: int = 0, domain: str | None = None) -> list[Sample]:
        """The first `n` samples of a split (one of `SPLITS`; the splits are disjoint).

        Args:
            split: ``train``, ``calibration`` or ``test``.
            n: how many; sample i does not depend on n.
            seed: another draw from the same split.
            domain: only this domain; None mixes all evenly.
        """
