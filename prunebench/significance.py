"""What of a section's ranking the questions bear out: Holm-adjusted tests, tie groups, null bands, what is detectable.

Differences are tested in the score that ranks, paired by question, questions that share an image or a video together
(`prunebench.multiple.sign_flip_tests`). Nothing here knows a method.
"""

from __future__ import annotations

import statistics
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from prunebench.clustered import cluster_codes
from prunebench.comparison import Group, Row, Section
from prunebench.findings import best_rows, paired_scores, question_scores, ranking_weights
from prunebench.spread import informed
from prunebench.stats import NullBand, detectable_difference, holm, null_band, sign_flip_tests, tie_groups
from prunebench.store import Record

__all__ = ["ALPHA", "Significance", "adjusted", "null_rows", "significance"]

ALPHA = 0.05


@dataclass(frozen=True, eq=False)
class Significance:
    """What one section's questions tell.

    Which row is best was seen on the same questions that the others are then tested on. That a given row of equal worth
    falls out of its tie group stays below 5 %; that any of several does, does not (10 % of 8 equal rows).

    Attributes:
        best: the first of the rows of rank 1, that others are compared with; None where nothing is ranked.
        against_best: Holm-adjusted p-value by row, over all ranked rows but `best`; rows that cannot be paired are out.
        against_dense: the same against the dense model, over all ranked rows.
        groups: number of the tie group by row, 0 for that of `best` (see `prunebench.multiple.tie_groups`).
        nulls: by row, then by label of a band of random plans: its p-value there.
        detectable: smallest difference to `best` that the questions find with 80 % power in one two-sided test at 5 %,
            in units of the score: the median over the rows that differ from it at all; None without such a row.
        design_effect: of questions that share an image or a video, the median of the same.
    """

    best: Row | None = None
    against_best: dict[Row, float] = field(default_factory=dict)
    against_dense: dict[Row, float] = field(default_factory=dict)
    groups: dict[Row, int] = field(default_factory=dict)
    nulls: dict[Row, dict[str, NullBand]] = field(default_factory=dict)
    detectable: float | None = None
    design_effect: float = 1.0

    def ties(self) -> list[Row]:
        """Rows that are not told apart from `best`, in order; without those that share its rank."""
        return [row for row, p in self.against_best.items() if p > ALPHA and row.rank != 1]

    def letter(self, row: Row) -> str | None:
        """``a`` for the tie group of the best row, ``b`` for the next, ... ``z``, ``aa``; None outside of any."""
        if row not in self.groups:
            return None
        number, text = self.groups[row] + 1, ""
        while number:
            number, rest = divmod(number - 1, 26)
            text = chr(ord("a") + rest) + text
        return text


_SEEN: weakref.WeakKeyDictionary[Section, Significance] = weakref.WeakKeyDictionary()
_UNITS: weakref.WeakKeyDictionary[Group, _Units] = weakref.WeakKeyDictionary()


def significance(group: Group, section: Section) -> Significance:
    """What the questions tell about `section`, a section of `group`; computed once."""
    if section not in _SEEN:
        _SEEN[section] = _significance(group, section)
    return _SEEN[section]


def adjusted(group: Group, records: Sequence[Record], other: Record) -> list[float | None]:
    """Holm-adjusted p-values of each record against `other`; None for those that cannot be paired with it."""
    units = _units(group)
    paired = [record for record in records if units.of(record) is not None]
    if not paired or units.of(other) is None:
        return [None] * len(records)
    known = dict(zip([record.id for record in paired], map(float, holm(units.tests(paired, other))), strict=True))
    return [known.get(record.id) for record in records]


def null_rows(section: Section) -> list[Row]:
    """Bands of plans that nothing chose: several seeds of a strategy that reads no calibration samples."""
    return [row for row in section.bands if not informed(row)]


def _significance(group: Group, section: Section) -> Significance:
    best = best_rows(section)
    if not best or group.ranking is None:
        return Significance()
    ranked = section.ranked
    nulls: dict[Row, dict[str, NullBand]] = {row: {} for row in ranked}
    for band in null_rows(section):
        if draws := band.values(group.ranking):
            for row in ranked:
                nulls[row][band.label] = null_band(row.values(group.ranking)[0], draws)
    units = _units(group)
    paired = [row for row in ranked if units.of(row.records[0]) is not None]
    if best[0] not in paired:
        return Significance(best[0], nulls=nulls)

    def tests(leader: int, others: Sequence[int]) -> np.ndarray:
        return units.tests([paired[i].records[0] for i in others], paired[leader].records[0])

    found = tests(0, range(1, len(paired)))
    numbers = tie_groups(len(paired), lambda leader, others: found if leader == 0 else tests(leader, others), ALPHA)
    dense: np.ndarray | Sequence[float] = ()
    if group.dense is not None and units.of(group.dense) is not None:
        dense = holm(units.tests([row.records[0] for row in paired], group.dense))
    known = [_detectable(group, row, best[0]) for row in paired[1:]]
    seen = [one for one in known if one is not None]
    return Significance(
        best[0],
        dict(zip(paired[1:], map(float, holm(found)), strict=True)),
        dict(zip(paired, map(float, dense), strict=False)),
        dict(zip(paired, numbers, strict=True)),
        nulls,
        statistics.median(one[0] for one in seen) if seen else None,
        statistics.median(one[1] for one in seen) if seen else 1.0,
    )


def _units(group: Group) -> _Units:
    if group not in _UNITS:
        _UNITS[group] = _Units(group)
    return _UNITS[group]


def _detectable(group: Group, row: Row, best: Row) -> tuple[float, float] | None:
    pairs = paired_scores(row.records[0], best.records[0], group.tasks)
    if pairs is None:
        return None
    found = detectable_difference(pairs.first, pairs.second, pairs.clusters, ranking_weights(group))
    return (found.difference, found.design_effect) if found is not None else None


class _Units:
    """What each question, or all questions about one image or video, add to a record's ranking score."""

    def __init__(self, group: Group) -> None:
        self.weights = ranking_weights(group) or {}
        self.ids: dict[str, list[str]] = {}
        self.codes: dict[str, np.ndarray | None] = {}
        self.known: dict[str, np.ndarray | None] = {}
        for task in self.weights:
            reference = group.reference[task]
            self.ids[task] = ids = list(reference.ids)
            self.codes[task] = cluster_codes(reference.clusters, len(ids))

    def of(self, record: Record) -> np.ndarray | None:
        """Sums of scores by unit, all tasks after each other; None without a score for each question."""
        if record.id not in self.known:
            self.known[record.id] = self._sums(record)
        return self.known[record.id]

    def tests(self, records: Sequence[Record], other: Record) -> np.ndarray:
        """p-values, not adjusted, of each record against another."""
        # Scores are subtracted before they are weighed: differences of one size then stay equal to the last bit.
        second, scale = self.of(other), self._scale()
        return sign_flip_tests(
            np.array([(self.of(record) - second) * scale for record in records]).reshape(-1, scale.size)
        )

    def _sums(self, record: Record) -> np.ndarray | None:
        parts = []
        for task, ids in self.ids.items():
            scores = question_scores(record, task)
            if not ids or scores is None or set(scores) != set(ids):
                return None
            values, codes = np.array([scores[i] for i in ids], dtype=np.float64), self.codes[task]
            parts.append(values if codes is None else np.bincount(codes, weights=values))
        return np.concatenate(parts) if parts else None

    def _scale(self) -> np.ndarray:
        sizes = {task: len(ids) if codes is None else int(codes.max()) + 1
                 for (task, ids), codes in zip(self.ids.items(), self.codes.values(), strict=True)}  # fmt: skip
        return np.concatenate([np.full(sizes[task], weight / len(self.ids[task]))
                               for task, weight in self.weights.items()])  # fmt: skip
