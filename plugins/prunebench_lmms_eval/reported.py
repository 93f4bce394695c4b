"""The number that lmms-eval reports, and what per-question scores must do to be its parts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from prunebench.errors import EvaluationError
from prunebench.suites import Task
from prunebench_lmms_eval.rules import Rules

__all__ = ["fits", "reported", "strata_weights", "unwrapped"]


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
    value = unwrapped(result[key])
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
        judge = f"; it needs the judge {task.judge!r}" if task.judged else ""
        raise EvaluationError(f"task {task.id!r}: {key!r} is {value[:80]!r}, not a number{judge}")
    if isinstance(value, Mapping):
        raise EvaluationError(f"task {task.id!r}: {key!r} is a table ({', '.join(map(str, value))}), not one number")
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise EvaluationError(f"task {task.id!r}: {key!r} is {value!r}, not a finite number")
    return float(value)


def unwrapped(value: Any) -> Any:
    """A number out of NumPy or torch as Python's own; anything else as it is."""
    return value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else value


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
