"""The contract of a source of samples, for calibration and for suites."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, ClassVar

from prunebench.calibration.samples import Sample
from prunebench.errors import BadParameter, EvaluationError, PruneBenchError, UnknownName, first_line
from prunebench.evaluator import Need

if TYPE_CHECKING:
    from prunebench.plugins import Plugins
    from prunebench.suites import Task

__all__ = ["SPLITS", "Dataset", "answered", "check_domain", "dataset_need", "open_dataset", "registered"]

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


def registered(task: Task, evaluator: str) -> Dataset:
    """The dataset of a suite's task.

    Raises:
        EvaluationError: the task names none, a split or domain that it does not have, or data of one's own, which
            this evaluator would not look at.
        UnknownName, BadParameter: no such dataset, or a reference that it does not understand.
    """
    from prunebench.plugins import get_plugins

    if not task.dataset:
        raise EvaluationError(f"task {task.id!r} names no dataset: the evaluator {evaluator!r} needs one")
    if task.data:
        raise EvaluationError(
            f"task {task.id!r}: its questions are those of dataset {task.dataset!r}, data of your own would not be "
            "looked at: leave out `data`, or write a suite with `dataset: files:MANIFEST.jsonl`"
        )
    dataset = open_dataset(get_plugins(), task.dataset)
    if task.split not in SPLITS:
        raise EvaluationError(f"task {task.id!r}: {UnknownName('split', task.split, SPLITS)}")
    try:
        check_domain(dataset, task.dataset, task.domain)
    except UnknownName as error:
        raise EvaluationError(f"task {task.id!r}: {error}") from error
    return dataset


def check_domain(dataset: Dataset, name: str, domain: str | None) -> None:
    """Refuse a domain that a dataset, opened by `name`, does not have; datasets without domains take any.

    Raises:
        UnknownName: it has others.
    """
    if domain is not None and dataset.domains and domain not in dataset.domains:
        raise UnknownName(f"domain of dataset {name!r}", domain, dataset.domains)


def answered(
    dataset: Dataset, name: str, split: str, n: int, *, seed: int = 0, domain: str | None = None
) -> list[Sample]:
    """Samples that can be scored: as `Dataset.samples`, each with an expected answer.

    Args:
        name: what the dataset was opened by, for errors.

    Raises:
        EvaluationError: the dataset has none such, or one without an answer.
    """
    try:
        found = dataset.samples(split, n, seed=seed, domain=domain)
    except ValueError as error:
        raise EvaluationError(f"dataset {name!r}: {error}") from error
    if not found:
        raise EvaluationError(f"dataset {name!r} has no samples of split {split!r} for domain {domain!r}")
    if without := [sample.id for sample in found if sample.answer is None]:
        raise EvaluationError(f"dataset {name!r}: sample {without[0]!r} has no expected answer")
    return found


def dataset_need(task: Task, evaluator: str) -> Need:
    """Whether a task's dataset is there, for `Evaluator.needs`."""
    try:
        dataset = registered(task, evaluator)
    except PruneBenchError as error:
        return Need("missing", "data", first_line(error), "prunebench list datasets")
    return Need("ok", "data", f"dataset {dataset.label!r}, revision {dataset.revision[:12]}")
