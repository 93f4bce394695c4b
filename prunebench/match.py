"""Methods of all kinds compared at equal achieved size or time, whatever they call sparsity. No torch here.

Half of the layers, half of the weights and half of the width are different cuts: of a model whose embeddings are large,
none of them is half of its bytes. So a level here is a share of what the *dense model* takes (bytes on disk, time, or
parameters), and each method is seen with the best of its plans that takes no more. Nothing is interpolated: a method
without a plan that small has no cell.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from prunebench.comparison import DENSE, Group, Row
from prunebench.errors import UsageError
from prunebench.findings import difference
from prunebench.quantities import LACKING, LEVELS, UNMEASURED, Quantity, share_of
from prunebench.significance import ALPHA, adjusted
from prunebench.stats import Difference

__all__ = ["Candidate", "Cell", "Level", "Method", "Table", "left_out", "matched"]

ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Candidate:
    """One plan of a method.

    Attributes:
        row: its row at one budget: one record, or the draws of a band.
        share: of the dense model's quantity, 1.0 being all of it; of a band the largest draw.
        said: how the quantity is known: ``compressed`` or ``plain`` bytes, ``measured`` time or ``dense kernels``.
    """

    row: Row
    share: float
    said: str = ""


@dataclass(frozen=True, eq=False)
class Method:
    """A label of one kind, recovered in one way.

    Attributes:
        trained: whether weights were trained, not fitted in closed form.
        candidates: its plans that have a score and the quantity.
        unscored: how many of its rows lack one of them.
    """

    label: str
    kind: str
    recovery: str
    trained: bool = False
    candidates: tuple[Candidate, ...] = ()
    unscored: int = 0


@dataclass(frozen=True, eq=False)
class Cell:
    """The best plan of a method at one level.

    Attributes:
        values: the score that ranks; one per seed.
        rank: over the methods of all kinds; None for bands.
        gap: paired difference to the best cell of the level; None for that one, and where it cannot be paired.
        p: of that difference, Holm-adjusted over the cells of the level; None likewise.
    """

    candidate: Candidate
    values: tuple[float, ...]
    rank: int | None = None
    gap: Difference | None = None
    p: float | None = None

    @property
    def tied(self) -> bool:
        """First, or not told apart from the first."""
        return self.rank == 1 or (self.p is not None and self.p > ALPHA)


@dataclass(frozen=True, eq=False)
class Level:
    """One level: what fits below it, by method."""

    share: float
    cells: dict[Method, Cell] = field(default_factory=dict)

    @property
    def best(self) -> list[Method]:
        """The methods of rank 1: one, or several with equal scores."""
        return [method for method, cell in self.cells.items() if cell.rank == 1]


@dataclass(frozen=True, eq=False)
class Table:
    """Methods that are ranked with each other: untrained ones, or all of one training budget.

    Attributes:
        methods: in the order to show them in.
        trained: the budget in words; empty for methods that were not trained, with or without a closed form.
        dense: scores of the dense model recovered in the same way, a reference beside the trained ones.
    """

    trained: str
    methods: tuple[Method, ...]
    levels: tuple[Level, ...]
    dense: tuple[Row, ...] = ()


def matched(group: Group, quantity: Quantity, levels: Sequence[float] = LEVELS) -> list[Table]:
    """Every method of `group` at every level: untrained ones first, then each training budget by itself.

    Raises:
        UsageError: no pruned record holds the quantity.
    """
    methods, known = _methods(group, quantity)
    if not known:
        raise UsageError(f"--match {quantity}: {LACKING[quantity]}")
    tables = []
    for trained in sorted({_budget(method) for method in methods}):
        own = [method for method in methods if _budget(method) == trained]
        cache: dict[tuple[str, str], Difference | None] = {}
        found = tuple(_level(group, own, share, cache) for share in levels)
        dense = next((s.references for s in group.sections if s.references and s.recovery == trained), ())
        tables.append(Table(trained, tuple(sorted(own, key=lambda method: _order(method, found))), found, dense))
    return tables


def left_out(group: Group, quantity: Quantity) -> list[str]:
    """Labels of rows with a score and without the quantity, each with its kind and budget."""
    found = []
    for section in group.sections:
        for row in section.rows:
            if row.values(group.ranking) and _candidate(row, quantity) is None:
                found.append(f"{row.label} ({section.heading(True)})")
    return found


def _budget(method: Method) -> str:
    """What a method is ranked within: closed forms cost no training, so they stand with those that do nothing."""
    return method.recovery if method.trained else ""


def _methods(group: Group, quantity: Quantity) -> tuple[list[Method], bool]:
    """All methods, and whether any record at all holds the quantity: what is known without measuring is no reason."""
    found: dict[tuple[str, str, str], Method] = {}
    known = False
    for section in group.sections:
        for row in section.rows:
            if row.strategy == DENSE:
                continue
            key = (row.label, section.kind, section.recovery)
            recoveries = [record.cell.recovery for record in (*row.records, *row.others)]
            trained = any(recovery is not None and recovery.trained for recovery in recoveries)
            method = found.setdefault(key, Method(*key, trained))
            candidate = _candidate(row, quantity)
            shares = [share_of(record, quantity) for record in row.shown]
            known = known or any(share is not None and share[1] != UNMEASURED for share in shares)
            if candidate is not None and row.values(group.ranking):
                found[key] = replace(method, candidates=(*method.candidates, candidate))
            else:
                found[key] = replace(method, unscored=method.unscored + 1)
    return list(found.values()), known


def _candidate(row: Row, quantity: Quantity) -> Candidate | None:
    shares = [share_of(record, quantity) for record in row.records]
    known = [share for share in shares if share is not None]
    if not known or len(known) < len(shares):
        return None
    return Candidate(row, max(share for share, _ in known), " / ".join(sorted({said for _, said in known})))


def _level(
    group: Group, methods: Iterable[Method], share: float, cache: dict[tuple[str, str], Difference | None]
) -> Level:
    cells = {}
    for method in methods:
        fitting = [one for one in method.candidates if one.share <= share + ROUNDING]
        if fitting:
            best = max(fitting, key=lambda one: (*_score(group, one), -one.share, one.row.records[0].id))
            cells[method] = Cell(best, best.row.values(group.ranking))
    ranked = [method for method, cell in cells.items() if not cell.candidate.row.is_band]
    ranked.sort(key=lambda method: (tuple(-x for x in _score(group, cells[method].candidate)), method.label))
    place, before = 0, None
    for number, method in enumerate(ranked, start=1):
        score = _score(group, cells[method].candidate)
        place, before = (place if score == before else number), score
        cells[method] = replace(cells[method], rank=place)
    others = [method for method in ranked[1:] if cells[method].rank != 1]
    if others:
        first = cells[ranked[0]]
        records = [cells[method].candidate.row.records[0] for method in others]
        for method, p in zip(others, adjusted(group, records, first.candidate.row.records[0]), strict=True):
            cells[method] = replace(cells[method], gap=_gap(group, cells[method], first, cache), p=p)
    return Level(share, cells)


def _gap(group: Group, cell: Cell, best: Cell, cache: dict[tuple[str, str], Difference | None]) -> Difference | None:
    """Many levels have the same best plan: each pair is compared once."""
    rows = cell.candidate.row, best.candidate.row
    key = rows[0].records[0].id, rows[1].records[0].id
    if key not in cache:
        cache[key] = difference(group, *rows)
    return cache[key]


def _score(group: Group, candidate: Candidate) -> tuple[float, float]:
    """What ranks, and the plain score for ties; of a band the means."""
    values, plain = candidate.row.values(group.ranking), candidate.row.values("plain")
    return sum(values) / len(values), sum(plain) / len(plain) if plain else -math.inf


def _order(method: Method, levels: Sequence[Level]) -> tuple[int, float, str, str, str]:
    """Methods with cells at more levels first, then those with the higher mean."""
    found = [level.cells[method] for level in levels if method in level.cells]
    means = [sum(cell.values) / len(cell.values) for cell in found]
    mean = sum(means) / len(means) if means else -math.inf
    return -len(found), -mean, method.label, method.kind, method.recovery
