"""What printed relative scores and averages should be by the printed columns of their own tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prunebench.published import Column, Row, Table

__all__ = ["ROUNDING", "Recomputed", "mean_of_ratios", "recompute", "recompute_average"]

ROUNDING = 0.2
"""Points by which a percentage may differ from what printed columns give, because those were rounded."""


@dataclass(frozen=True)
class Recomputed:
    """A printed relative score beside what the printed figures of its table give, all in percent.

    Attributes:
        mean_of_ratios: over the score columns, row by reference; None where a figure is missing.
        ratio_of_averages: of the two printed averages; None where one is missing.
        columns: how many score columns there are.
    """

    row: Row
    to: str
    printed: float
    mean_of_ratios: float | None
    ratio_of_averages: float | None
    columns: int

    @property
    def agrees(self) -> bool | None:
        """Whether either way gives the printed score up to rounding; None where neither can be worked out."""
        found = [value for value in (self.mean_of_ratios, self.ratio_of_averages) if value is not None]
        return any(abs(value - self.printed) <= ROUNDING for value in found) if found else None


def mean_of_ratios(figures: Iterable[tuple[Column, float | None, float | None]]) -> float | None:
    """Mean in percent of a row's figures by those of its reference, the other way round where lower is better.

    Args:
        figures: (column, of the row, of the reference).

    Returns:
        None where there is no column, a figure is missing, or nothing can be divided by it.
    """
    ratios = []
    for column, own, full in figures:
        if column.lower_is_better:
            own, full = full, own
        if own is None or not full:
            return None
        ratios.append(own / full)
    return 100 * sum(ratios) / len(ratios) if ratios else None


def recompute(table: Table) -> list[Recomputed]:
    """Every printed relative score of a table, worked out anew from its own columns."""
    found = []
    for row in table.rows:
        reference = table.reference(row)
        if row.relative is None or reference is None or reference is row:
            continue
        scores = [c for c in table.columns if c.what == "score"]
        mean = mean_of_ratios((c, table.value(row, c), table.value(reference, c)) for c in scores)
        averages = row.average is not None and reference.average
        of_averages = 100 * row.average / reference.average if averages else None  # type: ignore[operator]
        found.append(Recomputed(row, reference.method, row.relative, mean, of_averages, len(scores)))
    return found


def recompute_average(table: Table, row: Row) -> float | None:
    """The average of a row by the table's rule; None without a rule or with a figure missing."""
    rule = table.average
    if rule is None:
        return None
    pairs = [(c, v) for c, v in zip(table.columns, row.values, strict=True) if c.what == rule.over]
    if not pairs or any(value is None for _, value in pairs):
        return None
    return sum(value / rule.divide.get(column.id, 1.0) for column, value in pairs) / len(pairs)  # type: ignore[operator]
