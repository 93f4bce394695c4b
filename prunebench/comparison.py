"""Which records may be compared, and how they compare: groups, sections of one budget, and rows.

Two records are compared only if model, weights, dtype, suite, questions, calibration and latency settings are the same.
Nothing here runs a model or knows a method; only the dense row is known by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from prunebench import jsonio
from prunebench.errors import BudgetError, UsageError
from prunebench.evaluator import TaskResult
from prunebench.kinds import removes_layers
from prunebench.model_info import ModelInfo
from prunebench.recovery.spec import recovery_class
from prunebench.stats import RelativeScore, relative_score
from prunebench.store import Record

__all__ = ["DENSE", "Group", "Row", "Section", "group_records", "result_of", "variant_label"]

DENSE = "dense"
"""Name of the strategy that removes nothing."""


@dataclass(frozen=True, eq=False)
class Row:
    """One strategy with one set of parameters at one budget.

    Attributes:
        label: strategy name with the parameters that were given.
        records: the finished and complete records, one per seed.
        others: records of the same row that failed or lack tasks.
        relative: one `RelativeScore` per record in `records`.
        rank: 1 is best; None for bands and for rows that cannot be ranked.
        duplicates: records of a seed that is already in the row.
    """

    label: str
    strategy: str
    records: tuple[Record, ...]
    others: tuple[Record, ...]
    relative: tuple[RelativeScore, ...]
    rank: int | None = None
    duplicates: int = 0

    @property
    def is_band(self) -> bool:
        """True for a strategy that was run with several seeds."""
        return len(self.records) + len(self.others) > 1

    @property
    def status(self) -> str:
        """``ok``, ``incomplete``, or the status of the record that failed."""
        if self.records:
            return "ok"
        failed = [record.status for record in self.others if record.status != "ok"]
        return failed[0] if failed else "incomplete"

    @property
    def shown(self) -> tuple[Record, ...]:
        """The records to take numbers from: the complete ones, else an incomplete but finished one."""
        return self.records or tuple(record for record in self.others if record.status == "ok")

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted(record.cell.seed for record in (*self.records, *self.others)))

    def values(self, ranking: str | None) -> tuple[float, ...]:
        """The score that rows are ranked by, one per complete record; empty where it is not defined."""
        if ranking is None:
            return ()
        found = tuple(getattr(score, ranking) for score in self.relative)
        return found if all(value is not None for value in found) else ()

    def result(self, task: str, record: Record | None = None) -> TaskResult | None:
        """A task's result in `record` (default: the first one shown); None where missing or not a number."""
        if record is None:
            if not self.shown:
                return None
            record = self.shown[0]
        return result_of(record, task)


@dataclass(frozen=True, eq=False)
class Section:
    """All rows of one kind at one budget that were recovered in one way, best first.

    Attributes:
        layers: number of decoder layers removed; None for kinds that remove no whole layer.
        budget: the budget in words.
        recovery: closed form, or training with its token budget, in words; empty where nothing was recovered.
        references: the dense model, recovered in the same way: no rank, but what pruned rows are to be seen beside.
    """

    kind: str
    budget: str
    layers: int | None
    rows: tuple[Row, ...]
    recovery: str = ""
    references: tuple[Row, ...] = ()

    def heading(self, with_kind: bool) -> str:
        """The budget in words, with recovery and kind where they are not plain from the context."""
        words = f"{self.budget}, {self.recovery}" if self.recovery else self.budget
        return f"{words} (kind `{self.kind}`)" if with_kind or self.kind != "layers" else words

    @property
    def ranked(self) -> list[Row]:
        return [row for row in self.rows if row.rank is not None]

    @property
    def bands(self) -> list[Row]:
        return [row for row in self.rows if row.is_band and row.records]


@dataclass(frozen=True, eq=False)
class Group:
    """Records that may be compared.

    Attributes:
        records: every record of the group, ordered by id.
        calibration: the calibration settings of those records that used any, and the data's revision.
    """

    records: tuple[Record, ...]
    calibration: dict[str, Any] | None = None
    calibration_revision: str = ""

    @property
    def model(self) -> ModelInfo:
        return self.records[0].model

    @property
    def dense_records(self) -> list[Record]:
        return [record for record in self.records if _is_dense(record)]

    @cached_property
    def dense(self) -> Record | None:
        """The dense record that relative scores refer to; None where it is missing, failed or incomplete."""
        return next((record for record in self.dense_records if not self.missing(record)), None)

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """Every task of the group, in the order of the record that has most of them."""
        fullest = max(self.records, key=lambda record: (len(record.tasks), record.id))
        names = [result.task for result in fullest.tasks]
        names += sorted({result.task for record in self.records for result in record.tasks} - set(names))
        return tuple(names)

    @cached_property
    def reference(self) -> dict[str, TaskResult]:
        """One result per task to read metric, questions, chance and majority from: the dense one, else the largest."""
        order = sorted(self.records, key=lambda record: (not _is_dense(record), record.id))
        found: dict[str, TaskResult] = {}
        for task in self.tasks:
            results = [result for record in order if (result := result_of(record, task))]
            if results:
                found[task] = max(results, key=lambda result: result.n)
        return found

    @cached_property
    def lower_is_better(self) -> frozenset[str]:
        return frozenset(task for task, result in self.reference.items() if not result.higher_is_better)

    @cached_property
    def weights(self) -> dict[str, float]:
        """What each task weighs in relative scores, 1 where nothing else was said."""
        return {task: self.reference[task].weight if task in self.reference else 1.0 for task in self.tasks}

    @cached_property
    def chances(self) -> dict[str, float | None]:
        """The score of a uniform guess at each task, None where it is not known."""
        return {task: result.chance for task, result in self.reference.items()}

    @cached_property
    def log_scale(self) -> frozenset[str]:
        return frozenset(task for task, result in self.reference.items() if result.log_scale)

    def display(self, task: str) -> tuple[float, int]:
        """Factor and digits to show a task's scores with: percent where every record's score is a share in [0, 1]."""
        return self._displays[task]

    @cached_property
    def _displays(self) -> dict[str, tuple[float, int]]:
        found = {}
        for task in self.tasks:
            scores = [result.score for record in self.records if (result := result_of(record, task))]
            share = all(0.0 <= score <= 1.0 for score in scores)
            found[task] = (100.0, 1) if share else (1.0, 1 if max(abs(score) for score in scores) >= 10 else 3)
        return found

    def missing(self, record: Record) -> str:
        """What a record lacks, in words; empty for a complete one."""
        if record.status != "ok":
            return f"{record.status}: {record.error}" if record.error else record.status
        lacking = [task for task in self.tasks if result_of(record, task) is None]
        if lacking or not self.tasks:
            return f"incomplete: {len(self.tasks) - len(lacking)} of {len(self.tasks)} tasks"
        for task in self.tasks:
            result = result_of(record, task)
            if result is not None and result.n != self.reference[task].n:
                return f"incomplete: {result.n} of {self.reference[task].n} questions of {task}"
        return ""

    def relative(self, record: Record) -> RelativeScore:
        """The record's relative scores; both None without a complete dense record or with a task missing."""
        if self.dense is None or self.missing(record):
            return RelativeScore(None, None)
        return self._relative(record, self.dense)

    def _relative(self, record: Record, dense: Record) -> RelativeScore:
        return relative_score(
            {result.task: result.score for result in record.tasks},
            {result.task: result.score for result in dense.tasks},
            self.chances,
            self.weights,
            lower_is_better=self.lower_is_better,
            log_scale=self.log_scale,
        )

    @cached_property
    def ranking(self) -> str | None:
        """``chance_corrected`` where it is defined, else ``plain``; None without a dense row."""
        if self.dense is None:
            return None
        own = self._relative(self.dense, self.dense)
        return "chance_corrected" if own.chance_corrected is not None else "plain" if own.plain is not None else None

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """One section per kind, recovery and budget, smaller budgets first; trained rows are ranked apart.

        Kinds that remove no layers come after those that do.
        """
        found: dict[tuple[str, str, int, str], list[Record]] = {}
        for record in self.records:
            if not _is_dense(record):
                kind, layers, budget = _section_key(record)
                key = (kind, recovery_class(record.cell.recovery, record.plan), layers, budget)
                found.setdefault(key, []).append(record)
        dense = {key: rows for key, rows in found.items() if all(row.cell.strategy == DENSE for row in rows)}
        pruned = {key[1] for key in found if key not in dense}
        references = {key[1]: self._rows(rows) for key, rows in dense.items() if key[1] in pruned}
        return tuple(
            Section(
                kind,
                budget,
                layers if layers >= 0 else None,
                self._rows(rows),
                recovery,
                tuple(replace(row, rank=None) for row in references.get(recovery, ())),
            )
            for (kind, recovery, layers, budget), rows in sorted(
                found.items(), key=lambda item: (not removes_layers(item[0][0]), item[0])
            )
            if not ((kind, recovery, layers, budget) in dense and recovery in references)
        )

    def row(self, records: Sequence[Record]) -> Row:
        """The row of one strategy's records at one budget; per seed the complete record counts."""
        by_seed: dict[int, Record] = {}
        for record in sorted(records, key=lambda r: (bool(self.missing(r)), r.status != "ok", r.id)):
            by_seed.setdefault(record.cell.seed, record)
        chosen = [by_seed[seed] for seed in sorted(by_seed)]
        complete = tuple(record for record in chosen if not self.missing(record))
        return Row(
            label=self.label(records[0]),
            strategy=records[0].cell.strategy,
            records=complete,
            others=tuple(record for record in chosen if self.missing(record)),
            relative=tuple(self.relative(record) for record in complete),
            duplicates=len(records) - len(chosen),
        )

    def label(self, record: Record) -> str:
        """The strategy and its parameters, with its version where the group holds several of them."""
        versions = {r.cell.strategy_version for r in self.records if r.cell.strategy == record.cell.strategy}
        version = f" v{record.cell.strategy_version or '?'}" if len(versions) > 1 else ""
        return variant_label(record) + version

    def _rows(self, records: list[Record]) -> tuple[Row, ...]:
        variants: dict[str, list[Record]] = {}
        for record in records:
            cell = record.cell
            recovery = cell.recovery.model_dump(mode="json") if cell.recovery is not None else None
            key = jsonio.canonical([cell.strategy, cell.strategy_params, cell.strategy_version, recovery])
            variants.setdefault(key, []).append(record)
        rows = sorted((self.row(variants[key]) for key in variants), key=self._order)
        return tuple(self._ranked(rows))

    def _order(self, row: Row) -> tuple[int, float, float, str]:
        values, plain = row.values(self.ranking), row.values("plain")
        state = 0 if values else 1 if row.records else 2 if row.status == "incomplete" else 3
        return state, -_mean(values), -_mean(plain), row.label

    def _ranked(self, rows: Iterable[Row]) -> Iterable[Row]:
        place, rank, before = 0, 0, None
        for row in rows:
            values = row.values(self.ranking)
            if row.is_band or not values:
                yield row
                continue
            place += 1
            score = (values[0], row.values("plain"))
            rank = rank if score == before else place
            before = score
            yield replace(row, rank=rank)


def group_records(records: Iterable[Record]) -> list[Group]:
    """Split records into groups that may be compared.

    A record without calibration (the dense model, first-n, ...) belongs to every group that is otherwise its own.

    Raises:
        UsageError: there is no record.
    """
    pools: dict[str, list[Record]] = {}
    for record in sorted({record.id: record for record in records}.values(), key=lambda record: record.id):
        cell = record.cell
        key = [record.model.name, cell.model_revision, cell.suite, cell.suite_digest, cell.limit or 0, cell.dtype]
        pools.setdefault(jsonio.canonical([*key, cell.latency.model_dump(mode="json")]), []).append(record)
    if not pools:
        raise UsageError("no records: run something first, for example `prunebench run`")
    groups = []
    for key in sorted(pools):
        shared = [record for record in pools[key] if record.cell.calibration is None]
        calibrated: dict[str, list[Record]] = {}
        for record in pools[key]:
            if record.cell.calibration is not None:
                calibration = record.cell.calibration.model_dump(mode="json")
                name = jsonio.canonical([calibration, record.cell.calibration_revision])
                calibrated.setdefault(name, []).append(record)
        for name in sorted(calibrated):
            own = calibrated[name]
            settings = own[0].cell.calibration.model_dump(mode="json")  # type: ignore[union-attr]
            members = tuple(sorted([*own, *shared], key=lambda record: record.id))
            groups.append(Group(members, settings, own[0].cell.calibration_revision))
        if not calibrated:
            groups.append(Group(tuple(shared)))
    return groups


def variant_label(record: Record) -> str:
    """The strategy with the parameters that were given: ``name (k=5, select=spaced)``, and its recovery: ``+ tune``."""
    given = record.cell.strategy_params
    typed = record.plan.provenance.params if record.plan and record.plan.provenance else {}
    parts = [f"{key}={_short(typed.get(key, given[key]))}" for key in sorted(given)]
    label = f"{record.cell.strategy} ({', '.join(parts)})" if parts else record.cell.strategy
    return f"{label} + {record.cell.recovery.label}" if record.cell.recovery is not None else label


def _is_dense(record: Record) -> bool:
    """The model as it came: one that was trained is a row of its own, not what others are measured by."""
    return record.cell.strategy == DENSE and record.cell.recovery is None


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _section_key(record: Record) -> tuple[str, int, str]:
    budget = record.cell.budget
    if record.kind != "layers":
        return record.kind, -1, str(budget)
    try:
        asked = budget.layers_asked(record.model.n_layers)
    except BudgetError:  # the very reason why such a cell failed; it still gets its row
        return record.kind, -1, str(budget)
    count = len(record.plan.removed_layers) if record.plan is not None else asked
    return record.kind, count, f"{count} of {record.model.n_layers} layers removed"


def result_of(record: Record, task: str) -> TaskResult | None:
    """A record's result of one task; None where it has none, or no number."""
    found = next((result for result in record.tasks if result.task == task), None)
    return found if found is not None and math.isfinite(found.score) else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else -math.inf
