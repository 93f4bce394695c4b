"""Where one strategy stands at each budget: rank with its interval, the best row, and the rows that look at nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunebench.comparison import Group, Row, Section
from prunebench.findings import band_verdicts, best_rows, difference
from prunebench.significance import significance
from prunebench.spread import Resamples, informed
from prunebench.stats import Difference

__all__ = ["Standing", "standings"]


@dataclass(frozen=True, eq=False)
class Standing:
    """One strategy at one budget.

    Attributes:
        row: the strategy as it comes, else its best variant.
        value: its ranking score.
        rank, of: among the ranked rows.
        interval: 95 % of the rank over resampled questions; None without per-question scores.
        best: the row of rank 1; `row` itself where it is first.
        gap: paired difference row − best; None where it is the best, or not paired.
        tied: first, or not told apart from the first (Holm-adjusted, as in that budget's table).
        above_draws: whether it lies above every random draw; None without a band.
        blind: the best ranked row that reads no calibration samples, with the paired difference to it.
        variant: another variant of the same strategy that ranks higher, the best one.
    """

    section: Section
    row: Row
    value: float
    rank: int
    of: int
    best: Row
    interval: tuple[int, int] | None = None
    gap: Difference | None = None
    tied: bool = False
    above_draws: bool | None = None
    blind: Row | None = None
    blind_gap: Difference | None = None
    variant: Row | None = None

    @property
    def first(self) -> bool:
        return self.rank == 1


def standings(group: Group, strategy: str, resamples: Resamples | None = None) -> list[Standing]:
    """Where `strategy` stands at each budget at which it has a rank, smaller budgets first."""
    resamples = resamples or Resamples(group)
    found = []
    for section in group.sections:
        own = [row for row in section.ranked if row.strategy == strategy]
        if section.recovery or section.kind != "layers" or not section.layers or not own or group.ranking is None:
            continue
        row = next((row for row in own if not row.records[0].cell.strategy_params), own[0])
        best = best_rows(section)[0]
        if row.rank == 1:
            best = row
        verdicts = band_verdicts(group, section)
        blind = next((other for other in section.ranked if not informed(other)), None)
        higher = next((other for other in own if (other.rank or 0) < (row.rank or 0)), None)
        found.append(
            Standing(
                section=section,
                row=row,
                value=row.values(group.ranking)[0],
                rank=row.rank or 0,
                of=len(section.ranked),
                best=best,
                interval=_rank_interval(section.ranked, row, resamples),
                gap=difference(group, row, best) if best is not row else None,
                tied=row.rank == 1 or row in significance(group, section).ties(),
                above_draws=all(row in verdict.above for verdict in verdicts) if verdicts else None,
                blind=blind if blind is not row else None,
                blind_gap=difference(group, row, blind) if blind is not None and blind is not row else None,
                variant=higher,
            )
        )
    return found


def _rank_interval(rows: Sequence[Row], row: Row, resamples: Resamples) -> tuple[int, int] | None:
    """95 % of 1 + the number of rows with a higher score on the same resampled questions."""
    drawn = resamples.scores(rows)
    if drawn is None:
        return None
    own = drawn[list(rows).index(row)]
    ranks = 1 + (drawn > own[None, :] + 1e-12).sum(axis=0)
    low, high = np.quantile(ranks, [0.025, 0.975], method="inverted_cdf")
    return int(low), int(high)
