"""Questions out of the samples that lmms-eval logs, and the values that a benchmark's own code gave them."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunebench_lmms_eval.aggregation import Aggregation, first_order
from prunebench_lmms_eval.rules import AUTOMATIC_KEYS, Rules

__all__ = ["Unit", "answer_of", "field_of", "number", "readings", "units_of"]

PATIENCE = 60.0
"""Seconds for a task's own aggregation where nobody asked for it."""

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
    if hasattr(value, "item") and getattr(value, "size", 1) == 1:
        value = value.item()
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


def readings(
    rules: Rules, metric: str, units: Sequence[Unit], function: Callable[..., Any] | None, whole: float
) -> Iterator[list[float]]:
    """Ways to read one value per unit; the first that fits the reported score is the right one.

    With rules, the one way that they name. Without: the metric's value where it is a number or true/false; else the
    first of `AUTOMATIC_KEYS` in it, and the next, and so on; else the task's own aggregation of one question alone,
    where that takes nothing but values (those that take `args` write files or ask services). An aggregation that is a
    ratio of sums is read by `aggregation.first_order`.

    Args:
        function: the task's own aggregation, if it is known.
        whole: the reported score.

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
        yield alone
        yield from _parts(rules, aggregation, values, alone, whole)
    elif rules.equal:
        left, right = rules.equal
        yield [
            min(float(_same(field_of(row, metric, left), field_of(row, metric, right))) for row in unit.rows)
            for unit in units
        ]
    elif rules.keys:
        yield [min(_keyed(row, metric, rules.keys) for row in unit.rows) for unit in units]
    else:
        plain = _plain(units, lambda row: row[metric])
        if plain is not None:
            yield plain
        for key in AUTOMATIC_KEYS:
            values = _plain(units, lambda row, key=key: row[metric][key] if isinstance(row[metric], Mapping) else None)
            if values is not None:
                yield values
        if aggregation is not None and not aggregation.takes_args:
            raw = [[row[metric] for row in unit.rows] for unit in units]
            alone = aggregation.of(raw)
            if alone is not None:
                yield alone
                yield from _parts(rules, aggregation, raw, alone, whole)


def _parts(
    rules: Rules, aggregation: Aggregation, values: list[list[Any]], alone: list[float], whole: float
) -> Iterator[list[float]]:
    parts = None if rules.strata else first_order(aggregation, values, alone, whole)
    if parts is not None:
        yield parts


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
