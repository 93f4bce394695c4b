"""What a suite file has to keep to: it reads, and what it names is there."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from prunebench.dataset import open_dataset
from prunebench.errors import MissingExtra
from prunebench.plugins import get_plugins
from prunebench.suites import Suite, load_suite
from prunebench.testing.report import Checklist, Failed, Skipped

__all__ = ["ON_SUITE", "SuiteCase"]

ON_SUITE = Checklist()


class SuiteCase:
    """A suite file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def suite(self) -> Suite:
        return load_suite(self.path)


@ON_SUITE
def reads(case: SuiteCase) -> None:
    """The file is YAML with known fields, and says what the suite is."""
    if not case.suite.title.strip():
        raise Failed("the suite has no title: say in a few words what it asks")


@ON_SUITE
def evaluators(case: SuiteCase) -> None:
    """Each task's evaluator is registered."""
    for task in case.suite.tasks:
        get_plugins().get("evaluators", task.evaluator)


@ON_SUITE
def accepted(case: SuiteCase) -> None:
    """Each task's evaluator takes it as it is: names, metric, filter, options, data."""
    for task in case.suite.tasks:
        try:
            get_plugins().get("evaluators", task.evaluator)().check(task)
        except MissingExtra as error:
            raise Skipped(str(error)) from error


@ON_SUITE
def questions(case: SuiteCase) -> None:
    """Each task's dataset is registered, and has questions for its split and domain."""
    asked = [task for task in case.suite.tasks if task.dataset]
    if not asked:
        raise Skipped("no task names a dataset")
    for task in asked:
        try:
            found = open_dataset(get_plugins(), task.dataset or "").samples(
                task.split, 1, seed=task.seed, domain=task.domain
            )
        except MissingExtra as error:
            raise Skipped(str(error)) from error
        if not found:
            raise Failed(f"task {task.id!r}: dataset {task.dataset!r} has no samples for it")
