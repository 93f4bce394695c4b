"""What lmms-eval reports for a task, and the per-question scores behind it.

The reported number is always lmms-eval's own. Per-question scores are read by the suite's rules (`rules.py`) and are only
believed where their mean is that number: relative 1e-6, or the mean as the task's own code rounds it (half of the last
digit is at most 5e-5 of full marks). Where it is not (F1, word error rates over a corpus, ...), `scores` stays empty with a
warning, and 0/1 values per question, if there are any, are kept as `verdicts`.

Where a metric is a mean or a sum of means over strata, question i of a stratum with n_s of all N questions counts
N/(S·n_s) times (a sum: N/n_s times), S the number of strata, so that the plain mean of `scores` is the metric again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prunebench.errors import EvaluationError
from prunebench.suites import Task
from prunebench_lmms_eval.override import PREFIX
from prunebench_lmms_eval.rules import Rules, read_rules
from prunebench_lmms_eval.samples import Unit, collect, metric_values, questions
from prunebench_lmms_eval.tasks_index import aggregated_metrics, find

__all__ = ["Scored", "fits", "reported", "score_samples", "strata_weights"]


@dataclass(frozen=True)
class Scored:
    """One task's score and its questions; the lists are empty or have one value per question (`ids`).

    `scores` are contributions whose mean is `score`, `verdicts` are 1 right / 0 wrong where `scores` are not just that.
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

    @property
    def n(self) -> int:
        """How many questions, or units that are judged together."""
        return len(self.ids)


def score_samples(task: Task, outcome: Any) -> Scored:
    """The score of `task` and of its questions.

    Args:
        outcome: what `call.run_task` returned: `name` (what ran), `results` and `groups` (as lmms-eval reports them),
            `samples` {task name: samples}, `tasks` {task name: task object of lmms-eval}, `unparsable` (a set of (task
            name, doc_id)).

    Raises:
        EvaluationError: the metric is not among what the task reports, or it is no number; says which and why.
    """
    rules = read_rules(task)
    entry = find(task.source)
    names = list(outcome.samples)
    if entry.kind == "task":
        name = names[0] if len(names) == 1 else outcome.name
        return _one(task, rules, outcome, name)
    members, weights = _group_weights(task, outcome, names, _by_size(task, aggregated_metrics(entry)))
    score = reported(task, {**outcome.results.get(outcome.name, {}), **(outcome.groups or {}).get(outcome.name, {})})
    return _joined(task, score, members, weights)


def reported(task: Task, result: Mapping[str, Any], rules: Rules | None = None) -> float:
    """The metric's number in lmms-eval's result of one task; NaN stands for a None that `rules` take for 0.

    Raises:
        EvaluationError: there is none.
    """
    key = f"{task.metric},{task.filter}"
    known = [name for name in result if "," in name and "_stderr" not in name]
    if key not in result:
        said = f"it reports {', '.join(known)}" if known else "it reports nothing (a group without a score of its own?)"
        raise EvaluationError(f"task {task.id!r} does not report {key!r}: {said}")
    value = result[key]
    if hasattr(value, "item") and getattr(value, "size", 1) == 1:
        value = value.item()
    if isinstance(value, list | tuple) and not value:
        raise EvaluationError(
            f"task {task.id!r}: {key!r} is empty: none of the questions asked belongs to it; raise or drop the limit"
        )
    if value is None and rules is not None and rules.none_is_zero:
        return math.nan
    if value is None:
        raise EvaluationError(
            f"task {task.id!r}: {key!r} is None: lmms-eval did not score it (a judge or a server has to, or the task's "
            "code says None for 0: then `options: {none_is_zero: true}`)"
        )
    if isinstance(value, str):
        judge = f"; it needs the judge {task.judge!r}" if task.judge != "none" else ""
        raise EvaluationError(f"task {task.id!r}: {key!r} is {value[:80]!r}, not a number{judge}")
    if isinstance(value, Mapping):
        raise EvaluationError(f"task {task.id!r}: {key!r} is a table ({', '.join(map(str, value))}), not one number")
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise EvaluationError(f"task {task.id!r}: {key!r} is {value!r}, not a finite number")
    return float(value)


def fits(mean: float, score: float, scale: float) -> bool:
    """True where `mean` is `score`: to relative 1e-6, or rounded as benchmarks' code rounds (2 to 6 digits)."""
    if abs(mean - score) <= 1e-6 * max(abs(score), 1e-3 * scale):
        return True
    return any(
        0.5 * 10.0**-digits <= 5.1e-5 * scale and abs(round(mean, digits) - score) <= 1e-9 * max(1.0, abs(score))
        for digits in range(2, 7)
    )


def strata_weights(labels: Sequence[Sequence[str]], sums: bool = False) -> list[float]:
    """How often each question counts, so that a plain mean becomes the mean over nested strata of the means in them.

    Args:
        labels: per question, the names of its strata, outermost first.
        sums: the outermost strata are summed instead.
    """
    n = len(labels)
    sizes = Counter(tuple(label) for label in labels)
    children: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for path in sizes:
        for depth in range(len(path)):
            children.setdefault(path[:depth], set()).add(path[: depth + 1])
    weights = []
    for label in labels:
        path = tuple(label)
        share = 1.0
        for depth in range(len(path)):
            if depth or not sums:
                share /= len(children[path[:depth]])
        weights.append(n * share / sizes[path])
    return weights


def _one(task: Task, rules: Rules, outcome: Any, name: str) -> Scored:
    """A single task."""
    score = reported(task, outcome.results.get(name, {}), rules)
    units, warnings = _units(task, rules, outcome, name)
    if not units:
        return Scored(score=0.0 if math.isnan(score) else score, warnings=("no question of this metric was recorded",))
    found: list[float] | None = None
    verdicts: list[float] | None = None
    for how, values in _readings(rules, units, outcome, name, task.metric):
        weights = _weights(rules, units, warnings)
        parts = [value * weight for value, weight in zip(values, weights, strict=True)]
        mean = sum(parts) / len(parts)
        full = rules.full or _full(values)
        if verdicts is None and full is not None:
            verdicts = [float(value >= full * (1 - 1e-9)) for value in values]
        if math.isnan(score):  # None, which the suite takes for 0
            if not any(values):
                score, found, kept = 0.0, parts, (values, how)
                break
            continue
        factor = next((f for f in dict.fromkeys((1.0, task.scale, 100.0, 0.01)) if fits(mean * f, score, task.scale)), None)
        if factor is not None:
            found, kept = [part * factor for part in parts], (values, how)
            verdicts = None if full is None else [float(value >= full * (1 - 1e-9)) for value in values]
            plain = full is not None and all(abs(part - verdict * task.scale) <= 1e-9 * task.scale
                                             for part, verdict in zip(found, verdicts, strict=True))
            if plain:
                verdicts = None
            break
    if math.isnan(score):
        raise EvaluationError(f"task {task.id!r}: {task.metric!r} is None, although some questions score above 0")
    if found is None:
        warnings.append(
            f"per-question scores of {task.metric} do not average to the reported {score:.6g}: no paired statistics"
        )
    del kept
    return Scored(score=score)
