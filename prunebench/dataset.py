"""The contract of a source of samples, for calibration and for suites."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, ClassVar

from prunebench.calibration.samples import Sample
from prunebench.errors import BadParameter

if TYPE_CHECKING:
    from prunebench.plugins import Plugins

__all__ = ["SPLITS", "Dataset", "open_dataset"]

SPLITS = ("train", "calibration", "test")


class Dataset(abc.ABC):
    """Yields samples, the same ones on every machine for the same arguments."""

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    domains: tuple[str, ...] = ()
    revision: str = "1"
    """Changes whenever the samples change: it is part of every result's identity."""

    @property
    def label(self) -> str:
        """What records call it: its name, and what it was opened with."""
        return self.name

    @classmethod
    def open(cls, reference: str | None) -> Dataset:
        """The dataset that ``name`` or ``name:reference`` stands for.

        Raises:
            BadParameter: a reference that means nothing to this dataset.
        """
        if reference is not None:
            raise BadParameter(f"dataset {cls.name!r} takes nothing after a colon, got {reference!r}")
        return cls()

    @abc.abstractmethod
    def samples(self, split: str, n: int, *, seed: int = 0, domain: str | None = None) -> list[Sample]:
        """The first `n` samples of a split (one of `SPLITS`; the splits are disjoint).

        Args:
            split: ``train``, ``calibration`` or ``test``.
            n: how many; sample i does not depend on n.
            seed: another draw from the same split.
            domain: only this domain; None mixes all evenly.
        """


def open_dataset(plugins: Plugins, name: str) -> Dataset:
    """The registered dataset that a suite or an option names, as ``name`` or ``name:reference``.

    Raises:
        UnknownName, BadParameter: no such dataset, or a reference that it does not understand.
    """
    word, colon, reference = name.partition(":")
    return plugins.get("datasets", word).open(reference if colon else None)
