"""How far methods lie apart at each budget, and what of that is noise.

All of it is in units of the ranking score (1.0 is the dense model), from records alone. Nothing here knows a method:
those that read calibration samples are compared with each other, rules that look at nothing and random draws stand
beside them. Intervals come from resampling questions within tasks, the same resamples for every row and budget.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from prunebench.clustered import cluster_codes
from prunebench.comparison import Group, Row, Section
from prunebench.crossed import LEVEL, Structure, crossed, score_and_rule
from prunebench.findings import question_scores, ranking_weights
from prunebench.paired import percentiles

__all__ = [
    "Band",
    "Regimes",
    "Resamples",
    "Spread",
    "comparable",
    "informed",
    "regimes",
    "spread",
    "spreads",
]

N_BOOT = 2000
MIN_BUDGETS = 3


class Resamples:
    """Ranking scores of rows under resampled questions: the same draws of questions for every row and budget.

    Args:
        group: records that may be compared.
    """

    def __init__(self, group: Group, n_boot: int = N_BOOT) -> None:
        self.group, self.n_boot = group, n_boot
        self.weights = ranking_weights(group)
        self._counts: dict[str, tuple[list[str], np.ndarray]] = {}

    def scores(self, rows: Sequence[Row]) -> np.ndarray | None:
        """(rows, n_boot) up to a constant that all rows share; None where a row has no score for each question."""
        if self.weights is None or not rows or any(len(row.records) != 1 for row in rows):
            return None
        total = np.zeros((len(rows), self.n_boot))
        for task, weight in self.weights.items():
            ids, counts = self._drawn(task)
            found = self.questions(rows, task)
            if found is None or not ids:
                return None
            total += weight * (found @ counts.T) / counts.sum(axis=1)
        return total

    def questions(self, rows: Sequence[Row], task: str) -> np.ndarray | None:
        """Per-question scores (rows, n), questions in one order; None where a row lacks some."""
        ids, _ = self._drawn(task)
        known = [question_scores(row.records[0], task) for row in rows]
        if any(scores is None or set(scores) != set(ids) for scores in known):
            return None
        return np.array([[scores[i] for i in ids] for scores in known if scores is not None], dtype=np.float64)

    def _drawn(self, task: str) -> tuple[list[str], np.ndarray]:
        """Question ids, and how often each is drawn, (n_boot, n)."""
        if task not in self._counts:
            result = self.group.reference[task]
            pairs = sorted(zip(result.ids, result.clusters or result.ids, strict=True))
            ids, codes = [i for i, _ in pairs], cluster_codes([c for _, c in pairs], len(pairs))
            seed = list(self.weights or ()).index(task)
            # RandomState: its stream is frozen over NumPy versions, and a committed table comes out the same anywhere.
            random, n = np.random.RandomState(seed), len(ids)
            counts = np.zeros((self.n_boot, n))
            units = n if codes is None else int(codes.max()) + 1
            for row in counts:
                drawn = np.bincount(random.randint(units, size=units), minlength=units) if n else 0
                row[:] = drawn if codes is None else drawn[codes]  # questions about one image are drawn together
            self._counts[task] = ids, counts
        return self._counts[task]


@dataclass(frozen=True)
class Band:
    """Draws of one stochastic strategy."""

    label: str
    n: int
    sd: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Spread:
    """How far the methods of a section lie apart.

    Attributes:
        rows: one of each strategy that reads calibration samples and has a rank: as it comes, else its first variant
            by name.
        sd, range: over them, as measured; sd with n − 1.
        noise: the sd that questions alone would give methods that are all alike; None without per-question scores.
        corrected: sqrt(sd² − noise²), 0 where noise explains all.
        interval: 95 % of `corrected` over resampled questions.
        told_apart: share of the pairs whose paired 95 % interval excludes 0.
        error: mean standard error of one row's score by its number of questions alone (binomial for 0/1 scores).
        all_sd: sd over all ranked rows, also variants, and those that look at nothing.
        bands: the stochastic strategies of the section.
        draws: resampled `corrected` ** 2, before it is cut off at 0, (n_boot,).
    """

    section: Section
    rows: tuple[Row, ...]
    sd: float
    range: float
    all_sd: float
    bands: tuple[Band, ...]
    noise: float | None = None
    corrected: float | None = None
    interval: tuple[float, float] | None = None
    told_apart: float | None = None
    error: float | None = None
    structure: Structure | None = None
    draws: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Regimes:
    """Budgets in thirds, and what the claim of three regimes says about each.

    Attributes:
        parts: low, moderate and high budgets.
        sds: spread of each part without noise: root of the mean of its variances.
        low: 95 % interval of the first of `sds`.
        told_apart: share of the pairs of methods that are told apart at low budgets, mean over budgets.
        fall, rise: low − moderate, and high − moderate, in sd, with intervals.
        structure: share of rule and of score in each part, over budgets with a grid; None without.
        lead: rule − score in each part, with intervals; None without.
    """

    parts: tuple[tuple[Spread, ...], ...]
    sds: tuple[float, float, float]
    low: tuple[float, float]
    told_apart: float
    fall: tuple[float, float, float]
    rise: tuple[float, float, float]
    structure: tuple[tuple[float, float] | None, ...]
    lead: tuple[tuple[float, float, float] | None, ...]


def informed(row: Row) -> bool:
    """Whether the row's strategy reads calibration samples: the others are rules that look at nothing."""
    return any(record.cell.calibration is not None for record in row.shown)


def spreads(group: Group, resamples: Resamples | None = None) -> list[Spread]:
    """The spread at each budget where layers were removed and nothing was recovered, smaller budgets first."""
    resamples = resamples or Resamples(group)
    sections = [s for s in group.sections if s.layers and not s.recovery and s.kind == "layers"]
    return [found for section in sections if (found := spread(group, section, resamples)) is not None]


def comparable(group: Group, found: Sequence[Spread], resamples: Resamples) -> list[Spread]:
    """The same budgets over the rows that have a score at each of them, and one grid that is complete at each.

    Methods that cannot remove more layers, and rules that fit no more of them, would else change from budget to budget
    what is compared. Where fewer than two methods, or no grid, are left, those of each budget stay.
    """
    if not found:
        return []
    labels = set.intersection(*({row.label for row in one.rows} for one in found))
    keys = set.intersection(
        *({score_and_rule(row) for row in one.section.ranked if informed(row)} - {None} for one in found)
    )
    same = [spread(group, one.section, resamples, labels if len(labels) > 1 else None, keys) for one in found]
    if any(one is None or one.structure is None for one in same):
        same = [one and replace(one, structure=old.structure) for one, old in zip(same, found, strict=True)]
    return [one for one in same if one is not None]


def spread(
    group: Group,
    section: Section,
    resamples: Resamples,
    labels: Collection[str] | None = None,
    keys: Collection[tuple[str, str] | None] | None = None,
) -> Spread | None:
    """How far the methods of one section lie apart; None with fewer than two.

    Args:
        group, section, resamples: what is looked at.
        labels: only these rows; None for all.
        keys: only these scores and rules in the grid; None for all.

    With V the variance of the rows' scores and V_b the same on resampled questions, noise² = mean(V_b) − V: resampling
    adds once more what the finite number of questions added before, and takes into account that all rows answered the
    same questions. V − noise² is then unbiased for the variance of the rows' true scores, and V_b − 2 noise² scatters
    as it does.
    """
    readers = [row for row in section.ranked if informed(row)]
    rows = [row for row in _one_of_each(readers) if labels is None or row.label in labels]
    if group.ranking is None or len(rows) < 2:
        return None
    values = np.array([row.values(group.ranking)[0] for row in rows])
    everyone = np.array([row.values(group.ranking)[0] for row in section.ranked])
    bands = [
        Band(band.label, len(draws), float(np.std(draws, ddof=1)), min(draws), max(draws))
        for band in section.bands
        if len(draws := band.values(group.ranking)) > 1
    ]
    variance = float(values.var(ddof=1))
    base: dict[str, Any] = {
        "section": section,
        "rows": tuple(rows),
        "sd": math.sqrt(variance),
        "range": float(np.ptp(values)),
        "all_sd": float(everyone.std(ddof=1)),
        "bands": tuple(bands),
    }
    grid = [row for row in readers if keys is None or score_and_rule(row) in keys]
    base["structure"] = crossed(group, grid, resamples.scores(grid))
    drawn = resamples.scores(rows)
    if drawn is None:
        return Spread(**base)
    boot = drawn.var(axis=0, ddof=1)
    noise = max(0.0, float(boot.mean()) - variance)
    corrected = boot - 2 * noise
    low, high = np.sqrt(np.maximum(0.0, percentiles(corrected, LEVEL)))
    apart = [_excludes_zero(drawn[i] - drawn[j]) for i in range(len(rows)) for j in range(i)]
    return Spread(
        **base,
        noise=math.sqrt(noise),
        corrected=math.sqrt(max(0.0, variance - noise)),
        interval=(float(low), float(high)),
        told_apart=sum(apart) / len(apart),
        error=_standard_error(rows, resamples),
        draws=corrected,
    )


def regimes(found: Sequence[Spread]) -> Regimes | None:
    """Low, moderate and high budgets: thirds of those there are; None with fewer than three, or without intervals."""
    usable = [one for one in found if one.draws is not None and one.corrected is not None]
    if len(usable) < MIN_BUDGETS:
        return None
    cut = np.array_split(np.arange(len(usable)), 3)
    parts = tuple(tuple(usable[i] for i in part) for part in cut)
    sds = tuple(math.sqrt(sum((one.corrected or 0.0) ** 2 for one in part) / len(part)) for part in parts)
    draws = [np.sqrt(np.maximum(0.0, np.mean([one.draws for one in part], axis=0))) for part in parts]
    structure, lead = [], []
    for part in parts:
        grids = [one.structure for one in part if one.structure is not None]
        with_draws = [grid.lead for grid in grids if grid.lead is not None]
        means = (float(np.mean([g.rule for g in grids])), float(np.mean([g.score for g in grids]))) if grids else None
        structure.append(means)
        if means is not None and grids and len(with_draws) == len(grids):
            lead.append((means[0] - means[1], *percentiles(np.mean(with_draws, axis=0), LEVEL)))
        else:
            lead.append(None)
    return Regimes(
        parts=parts,
        sds=sds,  # type: ignore[arg-type]
        low=percentiles(draws[0], LEVEL),
        told_apart=float(np.mean([one.told_apart or 0.0 for one in parts[0]])),
        fall=(sds[0] - sds[1], *percentiles(draws[0] - draws[1], LEVEL)),
        rise=(sds[2] - sds[1], *percentiles(draws[2] - draws[1], LEVEL)),
        structure=tuple(structure),
        lead=tuple(lead),
    )


def _one_of_each(rows: Sequence[Row]) -> list[Row]:
    """One row of each strategy, so that one with many variants does not outweigh the others."""
    found: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: (bool(row.records[0].cell.strategy_params), row.label)):
        found.setdefault(row.strategy, row)
    return [row for row in rows if row in found.values()]


def _standard_error(rows: Sequence[Row], resamples: Resamples) -> float:
    """Root of the mean over rows of Σ_task w² p (1 − p) / n, with the variance of the scores for p (1 − p)."""
    total = 0.0
    for task, weight in (resamples.weights or {}).items():
        found = resamples.questions(rows, task)
        assert found is not None
        total += weight**2 * float(found.var(axis=1).mean()) / found.shape[1]
    return math.sqrt(total)


def _excludes_zero(values: np.ndarray) -> bool:
    low, high = percentiles(values, LEVEL)
    return low > 0 or high < 0
