"""Questions out of the samples that lmms-eval logs, and the values that a benchmark's own code gave them."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from prunebench_lmms_eval.aggregation import Aggregation, first_order
from prunebench_lmms_eval.reported import unwrapped
from prunebench_lmms_eval.rules import AUTOMATIC_KEYS, Rules

__all__ = ["Reading", "Unit", "answer_of", "field_of", "number", "readings", "units_of", "unscored"]


class Reading(NamedTuple):
    """One value per unit; `holds` says, after some work, whether the metric is made of them."""

    values: list[float]
    holds: Callable[[], bool] = lambda: True


PATIENCE = 60.0
"""Seconds for a task's own aggregation where nobody asked for it."""

LOGGED = frozenset(
    ("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "token_counts", "doc_hash", "input_media")
)
"""What lmms-eval logs of every question; beside that stand the values that the task's code gave it."""

Sample = Mapping[str, Any]


@dataclass(frozen=True)
class Unit:
    """One question, or several that are judged together.

    Attributes:
        id: the question's number in its task, or what the questions share.
        rows: their samples, as lmms-eval logged them.
        answers: what the model said to each.
    """

    id: str
    rows: tuple[Sample, ...]
    answers: tuple[str, ...]

    def field(self, metric: str, key: str) -> Any:
        """A field of the first question; KeyError where it has none."""
        return field_of(self.rows[0], metric, key)


def number(value: Any) -> float | None:
    """A number or a truth value as a float; None for anything else."""
    value = unwrapped(value)
    return float(value) if isinstance(value, numbers.Real) else None


def field_of(sample: Sample, metric: str, key: str) -> Any:
    """`key` of the metric's value, else of the question's document, else of the sample.

    Raises:
        KeyError: it stands nowhere; the message names what there is.
    """
    places = [place for place in (sample.get(metric), sample.get("doc"), sample) if isinstance(place, Mapping)]
    for place in places:
        if key in place:
            return place[key]
    there = dict.fromkeys(str(name) for place in places[:2] for name in place)
    raise KeyError(f"no field {key!r}; there are {', '.join(there)}")


def answer_of(sample: Sample) -> str:
    """What the model said; of a question by likelihood, the number (from 0) of the likeliest option."""
    said = sample.get("resps") or sample.get("filtered_resps") or [""]
    first = said[0]
    while isinstance(first, list) and first:
        first = first[0]
    if isinstance(first, tuple):  # (loss, ...) for each option
        losses = [one[0] if isinstance(one, list) else one for one in said]
        return str(min(range(len(losses)), key=lambda place: losses[place][0]))
    return "" if first is None or first == [] else str(first)


def units_of(rules: Rules, metric: str, samples: Sequence[Sample]) -> list[Unit]:
    """The questions that count for `metric`, joined where the rules say so, in the order in which they were asked.

    Raises:
        KeyError: a question lacks the field that joins them.
    """
    joined: dict[str, list[Sample]] = {}
    for sample in samples:
        if metric not in sample:
            continue  # it counts for another metric of the same task
        found = [field_of(sample, metric, key) for key in rules.unit]
        if rules.modulo is not None:
            found = [int(found[0]) % rules.modulo]
        name = "/".join(map(str, found)) if rules.unit else str(sample["doc_id"])
        joined.setdefault(name, []).append(sample)
    return [Unit(name, tuple(rows), tuple(map(answer_of, rows))) for name, rows in joined.items()]


def unscored(samples: Sequence[Sample]) -> int:
    """How many questions the task's own code gave no value at all, of any metric: they are in none of its means."""
    return sum(set(sample) <= LOGGED for sample in samples)


def readings(
    rules: Rules,
    metric: str,
    units: Sequence[Unit],
    function: Callable[..., Any] | None,
    whole: float,
    scale: float = 1.0,
) -> Iterator[Reading]:
    """Ways to read one value per unit; the first that fits the reported score, and holds, is the right one.

    With rules, the one way that they name. Without: the metric's value where it is a number or true/false; else the
    first of `AUTOMATIC_KEYS` in it, and the next, and so on; else the task's own aggregation of one question alone,
    where that takes nothing but values (those that take `args` write files or ask services). An aggregation that is a
    ratio of sums is read by `aggregation.first_order`. Where nothing was said, an average that is the reported score
    by chance is no reading: the task's own aggregation has to give the averages of two halves of the questions, too.

    Args:
        function: the task's own aggregation, if it is known.
        whole: the reported score.
        scale: full marks.

    Raises:
        KeyError: a field that the rules name is missing.
        ValueError: what the rules name is no number.
    """
    patience = None if rules.aggregate else PATIENCE
    aggregation = None if function is None else Aggregation(function, rules.none_is_zero, patience)
    if rules.aggregate:
        values = [[row[metric] for row in unit.rows] for unit in units]
        alone = None if aggregation is None else aggregation.of(values)
        if aggregation is None or alone is None:
            raise ValueError("the task's own aggregation gives no number for one question alone")
        yield Reading(alone)
        yield from _parts(rules, aggregation, units, values, alone, whole)
    elif rules.equal:
        left, right = rules.equal
        yield Reading(
            [
                min(float(_same(field_of(row, metric, left), field_of(row, metric, right))) for row in unit.rows)
                for unit in units
            ]
        )
    elif rules.keys:
        yield Reading([min(_keyed(row, metric, rules.keys) for row in unit.rows) for unit in units])
    else:
        yield from _guesses(rules, metric, units, aggregation, whole, scale)


def _guesses(
    rules: Rules, metric: str, units: Sequence[Unit], aggregation: Aggregation | None, whole: float, scale: float
) -> Iterator[Reading]:
    """What the suite says nothing about."""
    raw = [[row[metric] for row in unit.rows] for unit in units]
    asked = None if aggregation is None or aggregation.takes_args else aggregation

    def guess(values: list[float]) -> Reading:
        if rules.strata or asked is None:
            return Reading(values)
        return Reading(values, lambda: _averages(asked, raw, values, whole, scale))

    plain = _plain(units, lambda row: row[metric])
    if plain is not None:
        yield guess(plain)
    for key in AUTOMATIC_KEYS:
        values = _plain(units, lambda row, key=key: row[metric][key] if isinstance(row[metric], Mapping) else None)
        if values is not None:
            yield guess(values)
    alone = None if asked is None else asked.of(raw)
    if asked is not None and alone is not None:
        yield guess(alone)
        yield from _parts(rules, asked, units, raw, alone, whole)


def _averages(
    aggregation: Aggregation, raw: list[list[Any]], values: Sequence[float], whole: float, scale: float
) -> bool:
    """Whether `aggregation` is the average of `values`, but for one factor, in both halves of the questions as well.

    True where that cannot be seen: nothing but zeros, or an aggregation that refuses half of the questions.
    """
    mean = sum(values) / len(values)
    if mean == 0 or len(values) < 2:
        return True
    for half in (slice(0, None, 2), slice(1, None, 2)):
        found = aggregation.of([[one for unit in raw[half] for one in unit]])
        if found is None:
            return True
        expected = whole / mean * sum(values[half]) / len(values[half])
        if abs(found[0] - expected) > 1e-3 * scale:  # benchmarks round to 5e-5 of full marks
            return False
    return True


def _parts(
    rules: Rules,
    aggregation: Aggregation,
    units: Sequence[Unit],
    values: list[list[Any]],
    alone: list[float],
    whole: float,
) -> Iterator[Reading]:
    parts = None if rules.strata else first_order(aggregation, values, alone, whole)
    if parts is None:
        return
    for unit, part, own in zip(units, parts, alone, strict=True):
        left_out = abs(part - whole) <= 1e-9 * max(1.0, abs(whole)) < abs(own - whole)
        if left_out and not any(map(str.strip, unit.answers)):
            return  # who says nothing must not get the score of those who do
    yield Reading(parts)


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, list) and len(left) == 1 and not isinstance(right, list):
        left = left[0]
    if isinstance(left, str) and isinstance(right, str):
        return left.strip().casefold() == right.strip().casefold()
    return left == right or str(left) == str(right)


def _keyed(row: Sample, metric: str, keys: Sequence[str]) -> float:
    for key in keys:
        try:
            found = field_of(row, metric, key)
        except KeyError:
            continue
        value = number(found)
        if value is not None:
            return value
        if found is not None:
            raise ValueError(f"field {key!r} is {found!r}, not a number")
    field_of(row, metric, keys[0])
    raise ValueError(f"field {keys[0]!r} holds no number")


def _plain(units: Sequence[Unit], read: Callable[[Sample], Any]) -> list[float] | None:
    values = []
    for unit in units:
        try:
            found = [number(read(row)) for row in unit.rows]
        except (KeyError, TypeError):
            return None
        if None in found:
            return None
        values.append(min(found))
    return values
