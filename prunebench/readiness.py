"""Before a long run: what each task of a suite lacks on this machine, and how long its questions will take.

Nothing is loaded, downloaded or asked. The time comes from what earlier runs measured; where none did, it is not known.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prunebench.errors import EvaluationError, MissingExtra, PruneBenchError, StoreError, first_line
from prunebench.evaluator import LOG_METRICS, Need, TaskResult
from prunebench.power import planned_difference
from prunebench.store import Record, read_record
from prunebench.suite_run import open_evaluator, selected
from prunebench.suite_selection import judge_key, limited, unkeyed
from prunebench.suites import Suite, Task, load_suite

if TYPE_CHECKING:
    from prunebench.config import Spec
    from prunebench.plugins import Plugins

__all__ = ["DISAGREEMENT", "Outlook", "Readiness", "Speed", "examine_suite"]

DISAGREEMENT = 0.2
"""Share of questions that one of two pruned models alone gets right, for the difference that a task can detect."""


@dataclass(frozen=True)
class Speed:
    """What an earlier run measured: seconds per question, and where."""

    seconds: float
    source: str


@dataclass(frozen=True)
class Outlook:
    """One task before it runs.

    Attributes:
        needs: what is there and what is missing.
        questions: that one model will be asked; None where that is not known beforehand.
        speed: None where no run has measured any that fits.
        left_out: why a run does not ask it, as its records will say; empty where it does.
    """

    task: Task
    needs: tuple[Need, ...]
    questions: int | None
    speed: Speed | None
    left_out: str = ""

    @property
    def ready(self) -> bool:
        return all(need.status != "missing" for need in self.needs)

    @property
    def seconds(self) -> float | None:
        """For one model; None where questions or speed are not known."""
        return None if self.questions is None or self.speed is None else self.questions * self.speed.seconds

    @property
    def detectable(self) -> float | None:
        """Smallest difference in the share of right answers that is found at 80 % power, at best.

        Two models are taken to disagree on `DISAGREEMENT` of the questions, and no questions to share anything. None
        where the number of questions is not known, is too small, or the metric is no share.
        """
        if self.questions is None or self.task.metric in LOG_METRICS:
            return None
        return planned_difference(self.questions, DISAGREEMENT)


@dataclass(frozen=True)
class Readiness:
    """A suite before it runs on `models` models (the dense one and each plan).

    Attributes:
        out: the run folder whose records were looked at.
        elsewhere: models that the run folder has speeds of, where it has none of the one asked for.
    """

    suite: Suite
    model: str | None
    models: int
    tasks: tuple[Outlook, ...]
    out: Path = Path("runs")
    elsewhere: tuple[str, ...] = ()

    @property
    def asked(self) -> tuple[Outlook, ...]:
        """The tasks that a run asks; what follows is of these."""
        return tuple(task for task in self.tasks if not task.left_out)

    @property
    def ready(self) -> bool:
        return bool(self.asked) and all(task.ready for task in self.asked)

    @property
    def questions(self) -> int:
        """For one model, of the tasks whose number is known."""
        return sum(task.questions or 0 for task in self.asked)

    @property
    def seconds(self) -> float | None:
        """For one model, of the tasks whose time is known; None where there is none."""
        known = [task.seconds for task in self.asked if task.seconds is not None]
        return sum(known) if known else None

    @property
    def untimed(self) -> tuple[str, ...]:
        return tuple(task.task.id for task in self.asked if task.seconds is None)

    @property
    def disk_gb(self) -> float | None:
        """Of the tasks that say how large their data are; None where none does."""
        known = [outlook.task.disk_gb for outlook in self.asked if outlook.task.disk_gb is not None]
        return sum(known) if known else None


def examine_suite(name: str, spec: Spec, plugins: Plugins, *, model: str | None = None, models: int = 1) -> Readiness:
    """Look at each task of the suite `name`.

    Args:
        spec: says which tasks, how many questions, whose data, and the folder with earlier records.
        model: the model that will run; None knows no sense that it lacks, and takes any model's speed.
        models: how many models will be evaluated.

    Raises:
        UnknownName, BadParameter, EvaluationError: a suite, a task, a model or data that do not exist.
    """
    whole, _ = selected(name, spec.model_copy(update={"limit": None}), plugins)
    suite, judged = limited(whole, spec.limit), unkeyed(whole)
    records = _records(spec.out)
    names = None if model is None else _model_names(model, spec, plugins)
    fitting = [record for record in records if names is None or record.model.name in names]
    senses = _modalities(model, fitting, plugins)
    speeds = _Speeds(fitting, whole, spec.limit, plugins)
    outlooks = []
    for task in suite.tasks:
        needs = list(_needs(task, spec, plugins))
        if senses is not None and task.modality not in senses:
            detail = f"asks about {task.modality}, {model} takes {', '.join(senses)}"
            needs.append(Need("missing", "model", detail, "name the other tasks by --task"))
        known = (speeds.questions(task), speeds.of(task))
        outlooks.append(Outlook(task, tuple(needs), *known, left_out=judged.get(task.id, "")))
    others = tuple(sorted({record.model.name for record in records})) if not fitting else ()
    return Readiness(suite, model, models, tuple(outlooks), spec.out, others)


def _needs(task: Task, spec: Spec, plugins: Plugins) -> list[Need]:
    try:
        evaluator = open_evaluator(task.evaluator, spec, plugins)
    except PruneBenchError as error:
        return [Need("missing", "evaluator", first_line(error), "prunebench list evaluators")]
    needs = []
    try:
        needs += evaluator.needs(task)
    except PruneBenchError as error:
        needs.append(Need("missing", "needs", first_line(error)))
    if key := judge_key(task):
        if os.environ.get(key):
            needs.append(Need("ok", "key", f"{key} is set; answers go to {task.judge}, which may cost money"))
        else:
            detail = f"answers are scored by {task.judge}: the task is left out of a run without {key}"
            needs.append(Need("warning", "key", detail, f"export {key}=..."))
    try:
        evaluator.check(task)
    except MissingExtra as error:
        if not any(need.status == "missing" for need in needs):
            needs.append(Need("missing", "package", first_line(error)))
    except PruneBenchError as error:
        if all(first_line(error) != need.detail for need in needs):
            needs.append(Need("missing", "task", first_line(error)))
    return needs


# -- what earlier runs measured ----------------------------------------------------------------------------------------


def _records(out: Path) -> list[Record]:
    """Finished records of a run folder, the newest first; what cannot be read is passed over."""
    found = []
    for path in sorted((out / "records").glob("*.json")):
        try:
            record = read_record(path)
        except StoreError:
            continue
        if record.complete and record.evaluated_in is None:
            found.append(record)
    return sorted(found, key=lambda record: (record.finished, record.id), reverse=True)


def _model_names(model: str, spec: Spec, plugins: Plugins) -> set[str]:
    """What records may call the model: its adapter's name, a hub repository, or its folder."""
    word, colon, reference = model.partition(":")
    adapter = plugins.get("models", word)
    if spec.model_path is not None:
        return {Path(spec.model_path).resolve().name, model}
    if colon:
        return {reference, Path(reference).resolve().name, model}
    return {word, adapter.name}


def _modalities(model: str | None, records: Sequence[Record], plugins: Plugins) -> tuple[str, ...] | None:
    """What the model takes, as far as can be known without loading it."""
    if model is None:
        return None
    if records:
        return records[0].model.modalities
    adapter = plugins.get("models", model.partition(":")[0])
    return None if adapter.takes_reference else adapter.modalities


class _Speeds:
    """Seconds per question from records, the nearest kin first: the same task, the same modality, any task.

    Args:
        suite: with all questions of its tasks, whatever `limit` says.
        limit: the questions per task of the run that is asked about.
    """

    def __init__(self, records: Sequence[Record], suite: Suite, limit: int | None, plugins: Plugins) -> None:
        self.suite, self.limit = suite, limit
        self.found = [(record, result) for record in records for result in record.tasks if result.seconds > 0]
        # (suite, task) → modality; a suite from a file of one's own is not registered
        self.senses = {(suite.name, task.id): task.modality for task in suite.tasks}
        for name in {record.cell.suite for record in records}:
            if name in plugins.registry("suites"):
                try:
                    tasks = load_suite(plugins.get("suites", name)).tasks
                except EvaluationError:
                    continue
                self.senses = {(name, task.id): task.modality for task in tasks} | self.senses

    def _same(self, record: Record, result: TaskResult, task: Task) -> bool:
        return result.task == task.id and record.cell.suite == self.suite.name

    def questions(self, task: Task) -> int | None:
        """As the suite says, or as many as an earlier run of the same task found."""
        if task.dataset is not None or task.questions is not None:
            return task.count
        for record, result in self.found:
            whole = record.cell.limit is None or record.cell.limit == self.limit
            if whole and self._same(record, result, task):
                return result.asked if task.limit is None else min(result.asked, task.limit)
        return task.limit

    def of(self, task: Task) -> Speed | None:
        ways = (
            lambda record, result: self._same(record, result, task),
            lambda record, result: result.task == task.id,
            lambda record, result: self.senses.get((record.cell.suite, result.task)) == task.modality,
            lambda record, result: True,
        )
        for fits in ways:
            for record, result in self.found:
                if fits(record, result):
                    return Speed(result.seconds / self._asked(record, result, task), self._said(record, result))
        return None

    def _asked(self, record: Record, result: TaskResult, task: Task) -> int:
        """How many questions took that time. An evaluator may count otherwise (windows of a text) than the suite."""
        if self._same(record, result, task) and task.dataset is not None:
            whole = next(own.n for own in self.suite.tasks if own.id == task.id)
            return min(whole, record.cell.limit or whole)
        return result.asked

    def _said(self, record: Record, result: TaskResult) -> str:
        known = record.environment
        machine = str(known.get("gpu") or known.get("device") or "?")
        return f"{result.task} on {record.model.name}, {machine}, {record.finished[:10]}"
