"""The dense gate: does the unpruned model, as measured here, score what its authors or others have printed?

A pruned row means little beside a dense row that nobody else gets: then prompts, weights, frames or scoring differ.
Nothing here runs a model; no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from prunebench.errors import EvaluationError
from prunebench.evaluator import TaskResult
from prunebench.published import Column, Paper, Published, Table
from prunebench.store import Record

__all__ = ["RULE", "DenseGap", "GateFinding", "Reference", "gate", "refuse"]

POINTS, SHARE = 0.01, 0.02
RULE = (
    "A measured dense score passes where a printed dense score of the same weights lies in its 95 % interval, widened "
    "on both sides by the tolerance: 1 % of full marks or 2 % of the printed score, whichever is more, unless the "
    "file of the printed figures states another. Where sources disagree with each other, one that agrees is enough. "
    "A printed score that was derived, not read off its source, refuses nothing."
)

Status = Literal["ok", "off", "doubtful", "limited", "unpublished"]


class DenseGap(EvaluationError):
    """The dense model does not score what is printed of it."""


@dataclass(frozen=True)
class Reference:
    """One printed dense score of one task; all figures in the column's printed unit.

    Attributes:
        measured, low, high: the measured score and its 95 % interval.
        tolerance: what the interval is widened by.
        excess: how far the printed score lies outside of the widened interval; 0 inside.
        derived: how the printed score was found, where it was not read off the source.
    """

    source: str
    column: Column
    printed: float
    measured: float
    low: float
    high: float
    tolerance: float
    excess: float
    derived: str = ""

    @property
    def agrees(self) -> bool:
        return self.excess == 0.0


@dataclass(frozen=True)
class GateFinding:
    """One task's verdict.

    Attributes:
        status: ``ok``, ``off``, ``doubtful`` (off, but from derived figures alone), ``limited`` (only part of the
            questions were asked), or ``unpublished``.
        references: every printed dense score of the task, the one that agrees best first.
        asked: questions that were asked.
        questions: how many the whole task has; None where the record does not say.
        own_files: the questions came from files that the user named, which may not be the benchmark's.
    """

    task: str
    status: Status
    asked: int
    questions: int | None = None
    references: tuple[Reference, ...] = ()
    model: str = ""
    own_files: bool = False

    @property
    def words(self) -> str:
        """The verdict in words."""
        if self.status == "limited":
            of = f"{self.asked} of {self.questions}" if self.questions else f"the first {self.asked}"
            return f"not comparable: {of} questions"
        if self.status == "unpublished":
            return "no published dense score is kept"
        best = self.references[0]
        if self.status == "ok":
            return "agrees" + (" (the printed score is derived)" if best.derived else "")
        off = f"off by {_figure(best.excess)} beyond interval and tolerance"
        return off + (", from a derived score: nothing is refused" if self.status == "doubtful" else "")

    @property
    def line(self) -> str:
        """All that is wrong with a task that is off, on one line."""
        best = self.references[0]
        return (
            f"{self.task}: measured {_figure(best.measured)} ({_figure(best.low)} to {_figure(best.high)}), printed "
            f"{_figure(best.printed)}, tolerance {_figure(best.tolerance)}, source {best.source}"
            f"{', questions from files of your own' if self.own_files else ''}"
        )


def gate(record: Record, published: Published) -> list[GateFinding]:
    """Hold a dense record against what is printed of the same weights, task by task.

    Scores are compared as shares of full marks (`TaskResult.scale` and the column's scale). Only rows of dense models
    without any recovery count, and only columns that print a score.

    Args:
        record: of the dense model; one without results gives no finding.
        published: what is printed.
    """
    rows = [
        (paper, table, column, value, row.derived)
        for paper, table in published.tables()
        for row in table.rows
        if row.kind == "dense" and not row.recovery and paper.is_of(row, record.model.name)
        for column, value in zip(table.columns, row.values, strict=True)
        if value is not None and column.what == "score"
    ]
    return [_finding(record, result, rows) for result in record.tasks]


def refuse(findings: Iterable[GateFinding]) -> None:
    """Stop at a dense model that is off.

    Raises:
        DenseGap: a finding is ``off``; one line with task, both numbers, tolerance and source of the first.
    """
    off = [finding for finding in findings if finding.status == "off"]
    if not off:
        return
    others = f"; and {len(off) - 1} more: {', '.join(finding.task for finding in off[1:])}" if len(off) > 1 else ""
    raise DenseGap(
        f"dense {off[0].model} does not score what is printed of it: {off[0].line}{others}. Look for "
        "another prompt, other weights or another number of frames, or mark it with --allow-gap"
    )


def _finding(
    record: Record, result: TaskResult, rows: Sequence[tuple[Paper, Table, Column, float, str]]
) -> GateFinding:
    found = [
        _reference(result, column, value, paper.cite(table), derived)
        for paper, table, column, value, derived in rows
        if column.measures(result)
    ]
    references = tuple(sorted(found, key=lambda one: (one.excess / (one.column.scale or 1.0), one.source)))
    known = result.source.get("questions", "")
    questions = int(known) if known.isdigit() else None
    limited = record.cell.limit is not None or "limit" in result.source
    limited = limited and (questions is None or result.asked < questions)
    status: Status = "unpublished" if not references else "limited" if limited else "off"
    if status == "off" and references[0].agrees:
        status = "ok"
    elif status == "off" and all(one.derived for one in references):
        status = "doubtful"
    own_files = result.source.get("dataset") == "own files"
    return GateFinding(result.task, status, result.asked, questions, references, record.model.name, own_files)


def _reference(result: TaskResult, column: Column, printed: float, source: str, derived: str) -> Reference:
    full = column.scale or 1.0
    measured, low, high = (value / result.scale * full for value in (result.score, result.ci_low, result.ci_high))
    tolerance = column.tolerance or max(POINTS * full, SHARE * printed)
    outside = max(min(low, measured) - printed, printed - max(high, measured), 0.0)
    excess = outside - tolerance
    # Sums of decimal fractions: a printed score on the very edge passes.
    excess = 0.0 if excess <= 1e-9 * full else excess
    return Reference(source, column, printed, measured, low, high, tolerance, excess, derived)


def _figure(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 0.05 else f"{value:.3g}"
