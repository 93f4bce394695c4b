"""What a group of records says: who is best, who ties with it, and who does not beat random draws of layers."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from prunebench.comparison import Group, Row, Section, result_of
from prunebench.evaluator import TaskResult
from prunebench.stats import (
    Difference,
    Flips,
    RelativeIntervals,
    flips,
    is_binary,
    paired_difference,
    relative_intervals,
    whole_marks,
)
from prunebench.store import Record

__all__ = [
    "BandVerdict",
    "Pairs",
    "band_verdicts",
    "best_rows",
    "difference",
    "flips_by_task",
    "flips_from_dense",
    "jaccard",
    "paired_scores",
    "planted_precision",
    "question_scores",
    "ranking_weights",
    "relative_uncertainty",
]


class Pairs(NamedTuple):
    """By task: both records' scores of the same questions in one order, and what these questions share."""

    first: dict[str, tuple[float, ...]]
    second: dict[str, tuple[float, ...]]
    clusters: dict[str, tuple[str, ...]]


_INTERVALS: weakref.WeakKeyDictionary[Group, dict[object, RelativeIntervals]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class BandVerdict:
    """How the ranked rows of a section stand to one band's draws."""

    band: Row
    low: float
    mean: float
    high: float
    above: tuple[Row, ...]
    not_above: tuple[Row, ...]


def best_rows(section: Section) -> list[Row]:
    """The rows of rank 1: one, or several with equal scores."""
    return [row for row in section.ranked if row.rank == 1]


def band_verdicts(group: Group, section: Section) -> list[BandVerdict]:
    """For each band, the ranked rows that lie above its best draw, and those that do not."""
    verdicts = []
    for band in section.bands:
        draws = band.values(group.ranking)
        if not draws:
            continue
        above = tuple(row for row in section.ranked if row.values(group.ranking)[0] > max(draws))
        rest = tuple(row for row in section.ranked if row not in above)
        verdicts.append(BandVerdict(band, min(draws), sum(draws) / len(draws), max(draws), above, rest))
    return verdicts


def difference(group: Group, row: Row, best: Row) -> Difference | None:
    """Paired difference row − best in units of the ranking score, the dense model's scores and chance taken as fixed.

    The ranking score is linear in the task scores (in the logarithm of a perplexity), so it is the sum over tasks of
    the task's weight times its mean paired difference, divided by (dense − chance) or dense and by the sum of weights.

    Returns:
        None for bands, and where per-question scores are missing or are of other questions.
    """
    weights = ranking_weights(group)
    if weights is None or len(row.records) != 1 or len(best.records) != 1:
        return None
    pairs = paired_scores(row.records[0], best.records[0], group.tasks)
    if pairs is None:
        return None
    return paired_difference(pairs.first, pairs.second, weights=weights, clusters=pairs.clusters)


def relative_uncertainty(group: Group, record: Record) -> RelativeIntervals:
    """Intervals of the record's relative scores, the dense model's scores being as uncertain as its own.

    Both None for the dense record itself, and where per-question scores are missing or are of other questions.
    """
    if group.dense is None or record is group.dense or group.missing(record):
        return RelativeIntervals(None, None)
    pairs = paired_scores(record, group.dense, group.tasks)
    if pairs is None:
        return RelativeIntervals(None, None)
    known = _INTERVALS.setdefault(group, {})  # many plans come out alike, and each is shown more than once
    key = tuple(pairs.first.values())
    if key not in known:
        known[key] = relative_intervals(
            pairs.first,
            pairs.second,
            group.chances,
            group.weights,
            lower_is_better=group.lower_is_better,
            log_scale=group.log_scale,
            clusters=pairs.clusters,
        )
    return known[key]


def ranking_weights(group: Group) -> dict[str, float] | None:
    """Factor of each task's mean per-question score in the ranking score, up to a constant that all rows share.

    Returns:
        None where there is no ranking score, or where it is not linear in the task scores.
    """
    if group.dense is None or group.ranking is None:
        return None
    weights, total = {}, sum(group.weights.values())
    for task in group.tasks:
        reference, floor = group.reference[task], 0.0
        dense = next(result.score for result in group.dense.tasks if result.task == task)
        if group.ranking == "chance_corrected":
            floor = reference.chance or 0.0
        elif not reference.higher_is_better:
            return None  # dense / score is not linear in the score
        if reference.log_scale:  # its per-question scores are logarithms, and so is the ranking score
            dense, floor = math.log(dense), math.log(floor) if floor > 0 else 0.0
        weights[task] = group.weights[task] / ((dense - floor) * total)
    return weights


def question_scores(record: Record, task: str) -> dict[str, float] | None:
    """Score of each question of a task by its id; None where the record does not hold one for each."""
    result = result_of(record, task)
    return dict(zip(result.ids, _marks(result), strict=True)) if result is not None and _per_question(result) else None


def flips_from_dense(group: Group, record: Record) -> Flips | None:
    """Answers that pruning turned from right to wrong and from wrong to right, over all tasks; None where one has none.

    A question of several tasks counts in each.
    """
    counts = flips_by_task(group, record)
    if not counts or set(counts) != set(group.tasks):
        return None
    return Flips(sum(c.right_to_wrong for c in counts.values()), sum(c.wrong_to_right for c in counts.values()))


def flips_by_task(group: Group, record: Record) -> dict[str, Flips]:
    """The same by task, for those where every answer is right or wrong: by its verdict, else by its score."""
    found: dict[str, Flips] = {}
    if group.dense is None:
        return found
    for task in group.tasks:
        before, after = _verdicts(group.dense, task), _verdicts(record, task)
        if before is not None and after is not None and set(before) == set(after):
            found[task] = flips(list(before.values()), [after[question] for question in before])
    return found


def jaccard(first: Row, second: Row) -> float | None:
    """Overlap |A ∩ B| / |A ∪ B| of the removed layers, averaged over all pairs of draws; None without plans."""
    plans_a = [record.plan for record in first.shown if record.plan is not None]
    plans_b = [record.plan for record in second.shown if record.plan is not None]
    if first is second and len(plans_a) > 1:  # a draw always equals itself; that says nothing about the strategy
        pairs = [(a, b) for i, a in enumerate(plans_a) for b in plans_a[i + 1 :]]
    else:
        pairs = [(a, b) for a in plans_a for b in plans_b]
    return sum(a.diff(b).jaccard for a, b in pairs) / len(pairs) if pairs else None


def planted_precision(record: Record) -> float | None:
    """Share of what is removed that lies in layers redundant by construction; None where nothing is planted or removed.

    A layer that goes whole counts 1, its attention or its MLP alone counts a half.
    """
    removable = record.model.planted_removable
    if removable is None or record.plan is None:
        return None
    halves = [layer for layer in record.plan.removed_layers for _ in range(2)]
    halves += [layer for layer, _ in record.plan.removed_sublayers]
    return sum(layer in removable for layer in halves) / len(halves) if halves else None


def paired_scores(first: Record, second: Record, tasks: Sequence[str]) -> Pairs | None:
    """Both records' scores of the same questions; None where one lacks them, or they are of other questions."""
    pairs = Pairs({}, {}, {})
    for task in tasks:
        one, two = result_of(first, task), result_of(second, task)
        if one is None or two is None or not _per_question(one) or not _per_question(two):
            return None
        by_id = dict(zip(two.ids, _marks(two), strict=True))
        if set(one.ids) != set(by_id):
            return None
        pairs.first[task], pairs.clusters[task] = tuple(_marks(one)), one.clusters
        pairs.second[task] = tuple(by_id[question] for question in one.ids)
    return pairs if pairs.first else None


def _verdicts(record: Record, task: str) -> dict[str, float] | None:
    """Right (1) or wrong (0) by question; None where answers are not just that, or not known one by one."""
    result = result_of(record, task)
    if result is None or not result.ids or len(set(result.ids)) != len(result.ids):
        return None
    if len(result.verdicts) == len(result.ids):
        found = result.verdicts
    elif _per_question(result):
        marks = (score / result.scale for score in result.scores)
        found = tuple(mark if result.higher_is_better else 1 - mark for mark in marks)  # a mark of an error is wrong
    else:
        return None
    return dict(zip(result.ids, found, strict=True)) if is_binary(found) else None


def _marks(result: TaskResult) -> Sequence[float]:
    return whole_marks(result.scores, result.verdicts, result.scale) if result.higher_is_better else result.scores


def _per_question(result: TaskResult) -> bool:
    """True where the task's score is the mean of one score for each of its questions."""
    count = len(result.scores)
    if not count or count != len(result.ids) or count != result.n or len(set(result.ids)) != count:
        return False
    score = math.log(result.score) if result.log_scale and result.score > 0 else result.score
    return abs(sum(result.scores) / count - score) <= 1e-6 * max(1.0, abs(score))
