"""What lmms-eval reports for a task, and the per-question scores behind it.

The reported number is always lmms-eval's own. Per-question scores are read by the suite's rules (`rules.py`) and are
only believed where their mean is that number: to relative 1e-6, or as the task's own code rounds it (half of the last
digit is at most 5e-5 of full marks; they are then stretched by that little, so that their mean is the reported number).
Ratios of sums (word error rates, F1) get first-order parts (`aggregation.first_order`). Where nothing fits (BLEU,
CIDEr, ...), `scores` stays empty with a warning, and 0/1 values per question, if there are any, are kept as `verdicts`.

Where a metric is a mean or a sum of means over strata, question i of a stratum with n_s of all N questions counts
N/(S·n_s) times (a sum: N/n_s times), S the number of strata, so that the plain mean of `scores` is the metric again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from prunebench.errors import EvaluationError
from prunebench.suites import Task
from prunebench_lmms_eval.override import PREFIX
from prunebench_lmms_eval.reported import fits, reported, strata_weights
from prunebench_lmms_eval.rules import Rules, read_rules
from prunebench_lmms_eval.samples import Unit, readings, units_of, unscored
from prunebench_lmms_eval.tasks_index import aggregated_metrics, find

if TYPE_CHECKING:
    from prunebench_lmms_eval.call import Outcome

__all__ = ["Scored", "score_samples"]


@dataclass(frozen=True)
class Scored:
    """One task's score and its questions; the lists are empty or have one value per question (`ids`).

    `scores` are contributions whose mean is `score`, `verdicts` are 1 right / 0 wrong where `scores` are not just that.
    `shares` say how often each question counts, 1 on average, where strata or members of a group count by themselves.
    """

    score: float
    ids: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    clusters: tuple[str, ...] = ()
    verdicts: tuple[float, ...] = ()
    answers: tuple[str, ...] = ()
    empty: int = 0
    unparsable: int = 0
    kinds: dict[str, tuple[int, float]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()

    @property
    def n(self) -> int:
        """How many questions, or units that are judged together."""
        return len(self.ids)


@dataclass(frozen=True)
class _Part:
    """One task's questions before they are joined to a group's.

    `values` are what the benchmark's code gave (as `kinds` shows them), `scores` have the task's score as mean, `right`
    are 0/1; None where there is no such thing. `lost` says why there are no scores.
    """

    name: str
    score: float
    units: list[Unit]
    values: list[float] | None = None
    scores: list[float] | None = None
    right: list[float] | None = None
    lost: str = ""
    shares: list[float] | None = None


def score_samples(task: Task, outcome: Outcome) -> Scored:
    """The score of `task` and of its questions.

    Raises:
        EvaluationError: the metric is not among what the task reports, or it is no number; says which and why.
    """
    rules = read_rules(task)
    if outcome.name in outcome.samples:
        part = _one(task, rules, outcome, outcome.name)
        return _scored(task, rules, outcome, part.score, [part], [1.0], _losses(task, outcome, [part]))
    results = outcome.results
    score = reported(task, {**results.get(outcome.name, {}), **outcome.groups.get(outcome.name, {})})
    key = f"{task.metric},{task.filter}"
    names = [name for name in outcome.samples if key in results.get(name, {})]
    parts = [_one(task, rules, outcome, name) for name in names]
    questions = sum(len(part.units) for part in parts)
    sizes = [float(results[name].get("samples") or len(part.units)) for name, part in zip(names, parts, strict=True)]
    if not _by_size(task):
        sizes = [1.0] * len(parts)
    weights = [
        size / sum(sizes) * questions / len(part.units) if part.units else 0.0
        for size, part in zip(sizes, parts, strict=True)
    ]
    return _scored(task, rules, outcome, score, parts, weights, _losses(task, outcome, parts))


def _losses(task: Task, outcome: Outcome, parts: Sequence[_Part]) -> list[str]:
    """Whose questions have no scores, and why: one line for each reason, however many members a group has."""
    by_reason: dict[str, list[_Part]] = {}
    for part in parts:
        if part.lost:
            by_reason.setdefault(part.lost, []).append(part)
    found = []
    for reason, those in by_reason.items():
        names = _plain_name(those[0].name) + (f" and {len(those) - 1} more of {len(parts)}" if len(those) > 1 else "")
        score = f" = {those[0].score:.6g}" if len(those) == 1 else ""
        found.append(f"{names}: the scores of single questions {reason}, {task.metric}{score}: no paired statistics")
    if lost := sum(unscored(outcome.samples[part.name]) for part in parts):
        found.append(f"the benchmark's code leaves {lost} questions out of the score")
    return found


def _by_size(task: Task) -> bool:
    """Whether the group's score is the mean over questions, not over members."""
    said = task.options.get("aggregate")
    if said is not None:
        return said == "size"
    return any(one["weight_by_size"] for one in aggregated_metrics(find(task.source)) if one["metric"] in task.metric)


def _one(task: Task, rules: Rules, outcome: Outcome, name: str) -> _Part:
    """One task, or one member of a group."""
    score = reported(task, outcome.results.get(name, {}), rules)
    part = _Part(name, score, [])
    why = "do not average to it"
    try:
        units = units_of(rules, task.metric, outcome.samples.get(name, ()))
        part = _Part(name, score, units)
        if units:
            shares = strata_weights(_strata(rules, task.metric, units), rules.sums)
            unasked = rules.automatic and task.judged  # it may ask the judge, once for every question
            function = None if unasked else _aggregation(outcome, name, task.metric)
            for reading in readings(rules, task.metric, units, function, score, task.scale):
                read = _read(task, rules, part, reading.values, shares)
                if read.scores is not None and reading.holds():
                    return read if read.right is not None else replace(read, right=part.right)
                part = replace(part, right=read.right) if part.right is None else part
            if _is_of_answered(task, part):
                why = "do not average to it: answers that are empty are left out of it"
    except KeyError as error:
        why = f"cannot be read ({error.args[0]})"
    except ValueError as error:
        why = f"cannot be read ({error})"
    if math.isnan(part.score):
        raise EvaluationError(f"task {task.id!r}: {task.metric!r} is None, and its questions do not all score 0")
    return replace(part, lost=why)


def _is_of_answered(task: Task, part: _Part) -> bool:
    """Whether the reported score is the mean over the questions that have an answer: silence then costs nothing."""
    if part.right is None:
        return False
    answered = [right for right, unit in zip(part.right, part.units, strict=True) if any(map(str.strip, unit.answers))]
    if not 0 < len(answered) < len(part.units):
        return False
    return fits(task.scale * sum(answered) / len(answered), part.score, task.scale)


def _read(task: Task, rules: Rules, part: _Part, values: list[float], shares: list[float]) -> _Part:
    """`part` with the values of one reading; without `scores` where they are not what the reported score is made of."""
    full = rules.full or _full_marks(values, task.scale)
    better = task.higher_is_better  # else full marks are of an error
    right = None if full is None else [float((value >= full * (1 - 1e-9)) == better) for value in values]
    contributions = [value * share for value, share in zip(values, shares, strict=True)]
    mean = sum(contributions) / len(contributions)
    score = part.score
    if math.isnan(score) and not any(values):
        score = 0.0  # the task says None for it
    for factor in dict.fromkeys((1.0, task.scale, 100.0, 0.01)):
        if fits(mean * factor, score, task.scale):
            scores = [one * factor for one in contributions]
            read = _Part(part.name, score, part.units, [value * factor for value in values], scores, right)
            return replace(read, shares=shares)
    return _Part(part.name, score, part.units, None, None, right)


def _full_marks(values: Sequence[float], scale: float) -> float | None:
    """The one value beside 0, where there is but one and it is full marks on some scale; else None."""
    above = {value for value in values if value != 0}
    if not above:
        return 1.0
    return above.pop() if len(above) == 1 and above <= {1.0, 100.0, scale} else None


def _strata(rules: Rules, metric: str, units: Sequence[Unit]) -> list[list[str]]:
    return [[level.value(unit.field(metric, level.key)) for level in rules.strata] for unit in units]


def _aggregation(outcome: Outcome, name: str, metric: str) -> Callable[..., Any] | None:
    """The function by which the task itself makes its score, if it is known."""
    task = outcome.tasks.get(name)
    found = task.aggregation().get(metric) if task is not None else None
    return found if callable(found) else None


def _plain_name(name: str) -> str:
    return name.removeprefix(PREFIX)


def _scored(
    task: Task,
    rules: Rules,
    outcome: Outcome,
    score: float,
    parts: Sequence[_Part],
    weights: Sequence[float],
    warnings: list[str],
) -> Scored:
    """The questions of all parts together."""
    units = [unit for part in parts for unit in part.units]
    several = outcome.name not in outcome.samples
    ids = [f"{_plain_name(part.name)}/{unit.id}" if several else unit.id for part in parts for unit in part.units]
    scores = [
        one * weight
        for part, weight in zip(parts, weights, strict=True)
        for one in (part.scores if part.scores is not None else [math.nan] * len(part.units))
    ]
    values = [one for part in parts for one in part.values or ()]
    right = [one for part in parts for one in part.right or ()]
    scores = [] if any(map(math.isnan, scores)) else scores
    if scores and not fits(sum(scores) / len(scores), score, task.scale):
        warnings.append(f"the scores of single questions do not average to {task.metric} = {score:.6g} of the group")
        scores = []
    scores = _stretched(scores, score)
    right = right if len(right) == len(units) else []
    shares = [one * weight for part, weight in zip(parts, weights, strict=True) for one in part.shares or ()]
    shares = shares if scores and len(shares) == len(units) and max(shares) - min(shares) > 1e-9 else []
    if scores and right:
        distances = [abs(one - verdict * task.scale) for one, verdict in zip(scores, right, strict=True)]
        right = [] if max(distances) <= 1e-9 * task.scale else right
    empty, unparsable = _unanswered(rules, outcome, parts)
    return Scored(
        score=score,
        ids=tuple(ids),
        scores=tuple(scores),
        clusters=_clusters(task, units, warnings),
        verdicts=tuple(right),
        shares=tuple(shares),
        answers=tuple(" | ".join(unit.answers) for unit in units),
        empty=empty,
        unparsable=unparsable,
        kinds=_kinds(task, rules, units, values, warnings),
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _stretched(scores: list[float], score: float) -> list[float]:
    """Scores whose mean was rounded on its way to the reported one, with that one as their mean."""
    mean = sum(scores) / len(scores) if scores else 0.0
    if mean == 0 or abs(mean - score) <= 1e-9 * abs(score):
        return scores
    return [one * (score / mean) for one in scores]


def _unanswered(rules: Rules, outcome: Outcome, parts: Sequence[_Part]) -> tuple[int, int]:
    """How many answers are blank, and of how many others the benchmark could make nothing."""
    empty, unparsable = 0, 0
    for part in parts:
        for unit in part.units:
            for row, answer in zip(unit.rows, unit.answers, strict=True):
                if not answer.strip():
                    empty += 1
                else:
                    drawn = (part.name, row["doc_id"]) in outcome.unparsable
                    unparsable += drawn or (rules.answers is not None and not rules.answers.search(answer))
    return empty, unparsable


def _clusters(task: Task, units: Sequence[Unit], warnings: list[str]) -> tuple[str, ...]:
    if task.cluster is None:
        return ()
    try:
        return tuple(str(unit.field(task.metric, task.cluster)) for unit in units)
    except KeyError as error:
        warnings.append(f"questions cannot be clustered, each counts as independent: {error.args[0]}")
        return ()


def _kinds(
    task: Task, rules: Rules, units: Sequence[Unit], values: Sequence[float], warnings: list[str]
) -> dict[str, tuple[int, float]]:
    if rules.kind is None or len(values) != len(units):
        return {}
    found: dict[str, list[float]] = {}
    try:
        for unit, value in zip(units, values, strict=True):
            found.setdefault(str(unit.field(task.metric, rules.kind)), []).append(value)
    except KeyError as error:
        warnings.append(f"no table of question kinds: {error.args[0]}")
        return {}
    return {kind: (len(one), sum(one) / len(one)) for kind, one in sorted(found.items())}
