"""How one question's score is read from what a benchmark's own code returns: the options of a suite's task.

Options of an `lmms` task (`Task.options`); all may be left out:

===============  ======================================================================================================
``profile``      whose prompt the task uses: a key of its `lmms_eval_specific_kwargs` (``default``)
``score``        one question's score: `KEY` (or a list: the first that is there) of what `process_results` returns for
                 the metric; `{equal: [KEY, KEY]}`: 1 where two of its values agree (case and outer spaces left out);
                 `aggregate`: the task's own aggregation of this question, or unit, alone (its part, where the
                 metric is a ratio of sums: word error rates, F1)
``unit``         questions that are judged together share this: `KEY`, `[KEY, ...]`, or `{key: KEY, modulo: 1000000}`
``strata``       the metric is a mean of means: over the values of `KEY`, or nested `[OUTER, INNER]`; or
                 `{key: ..., of: sum}` for a sum of means; `strip`: a regular expression that is cut from the value
``full``         marks of one unit where they are not all or nothing; a verdict is 1 at full marks only
``answers``      a parsable answer matches this regular expression (somewhere; anchor it with ^ and $)
``kind``         `KEY`: what the result's table of question kinds is made by
``aggregate``    a group without a score of its own gets the `mean` of its members, or by `size` (questions)
``media_dir``    the folder under HF_HOME where the task looks for media, if its YAML does not say
``none_is_zero`` the task reports None in place of 0; believed only where every question scores 0
===============  ======================================================================================================

A `KEY` is looked up in the metric's value, then in the question's document, then in the sample itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunebench.errors import EvaluationError, UnknownName
from prunebench.suites import Task

__all__ = ["AUTOMATIC_KEYS", "OPTIONS", "Level", "Rules", "read_rules"]

OPTIONS = (
    "profile",
    "score",
    "unit",
    "strata",
    "full",
    "answers",
    "kind",
    "aggregate",
    "media_dir",
    "none_is_zero",
)

AUTOMATIC_KEYS = (
    "score",
    "acc",
    "accuracy",
    "correct",
    "is_correct",
    "hit",
    "true_false",
    "exact_match",
    "overall",
    "match",
    "rating",
)
"""Tried in this order where a metric's value is a dictionary and the suite does not say `score`."""


@dataclass(frozen=True)
class Level:
    """One level of strata: questions with the same value of `key`, after `strip` is cut from it."""

    key: str
    strip: str | None = None

    def value(self, found: Any) -> str:
        return re.sub(self.strip, "", str(found)) if self.strip else str(found)


@dataclass(frozen=True)
class Rules:
    """The options of one task, read and checked.

    Attributes:
        keys: tried in order for a question's score; empty: automatic, or `equal`, or `aggregate`.
        equal: two keys whose values must agree.
        aggregate: use the task's own aggregation on one unit.
        unit: keys that questions judged together share; empty: each stands alone.
        modulo: of the (integer) unit key.
        strata: levels, outermost first.
        sums: the outermost level is summed, not averaged.
        full: marks of one unit.
    """

    keys: tuple[str, ...] = ()
    equal: tuple[str, str] | None = None
    aggregate: bool = False
    unit: tuple[str, ...] = ()
    modulo: int | None = None
    strata: tuple[Level, ...] = ()
    sums: bool = False
    full: float | None = None
    answers: re.Pattern[str] | None = None
    kind: str | None = None
    none_is_zero: bool = False

    @property
    def automatic(self) -> bool:
        """True where the suite does not say how a question's score is read."""
        return not (self.keys or self.equal or self.aggregate)


def read_rules(task: Task) -> Rules:
    """The rules in `task.options`.

    Raises:
        UnknownName: an option that does not exist.
        EvaluationError: an option of the wrong form; says the right one.
    """
    options = task.options
    for name in options:
        if name not in OPTIONS:
            raise UnknownName(f"option of task {task.id!r}", str(name), OPTIONS)
    for name in ("profile", "kind", "media_dir"):
        if not isinstance(options.get(name, ""), str):
            raise _wrong(task, name, "a name")
    if options.get("aggregate", "mean") not in ("mean", "size"):
        raise _wrong(task, "aggregate", "`mean` or `size`")
    if not isinstance(options.get("none_is_zero", False), bool):
        raise _wrong(task, "none_is_zero", "true or false")
    full = options.get("full")
    if full is not None and (isinstance(full, bool) or not isinstance(full, int | float) or full <= 0):
        raise _wrong(task, "full", "a number above 0")
    keys, equal, aggregate = _score(task, options.get("score"))
    unit, modulo = _unit(task, options.get("unit"))
    strata, sums = _strata(task, options.get("strata"))
    return Rules(
        keys=keys,
        equal=equal,
        aggregate=aggregate or (bool(unit) and not (keys or equal)),
        unit=unit,
        modulo=modulo,
        strata=strata,
        sums=sums,
        full=None if full is None else float(full),
        answers=_pattern(task, "answers", options.get("answers")),
        kind=options.get("kind"),
        none_is_zero=options.get("none_is_zero", False),
    )


def _wrong(task: Task, name: str, form: str) -> EvaluationError:
    return EvaluationError(f"task {task.id!r}: option {name!r} must be {form}, not {task.options[name]!r}")


def _pattern(task: Task, name: str, text: Any) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text)
    except (re.error, TypeError) as error:
        raise EvaluationError(f"task {task.id!r}: option {name!r} is no regular expression: {error}") from error


def _names(value: Any) -> tuple[str, ...] | None:
    """A name, or a list of names; None where it is neither."""
    listed = [value] if isinstance(value, str) else value
    good = isinstance(listed, list) and listed and all(isinstance(name, str) and name for name in listed)
    return tuple(listed) if good else None


def _score(task: Task, value: Any) -> tuple[tuple[str, ...], tuple[str, str] | None, bool]:
    if value is None or value == "aggregate":
        return (), None, value is not None
    if isinstance(value, Mapping):
        pair = _names(value.get("equal"))
        if set(value) != {"equal"} or pair is None or len(pair) != 2:
            raise _wrong(task, "score", "a key, `aggregate` or `{equal: [key, key]}`")
        return (), (pair[0], pair[1]), False
    keys = _names(value)
    if keys is None:
        raise _wrong(task, "score", "a key, `aggregate` or `{equal: [key, key]}`")
    return keys, None, False


def _unit(task: Task, value: Any) -> tuple[tuple[str, ...], int | None]:
    if value is None:
        return (), None
    modulo = None
    if isinstance(value, Mapping):
        modulo = value.get("modulo")
        keys = _names(value.get("key"))
        good = set(value) <= {"key", "modulo"} and (modulo is None or (isinstance(modulo, int) and modulo > 0))
        keys = keys if good and (modulo is None or keys is None or len(keys) == 1) else None
    else:
        keys = _names(value)
    if keys is None:
        raise _wrong(task, "unit", "a key, a list of keys or `{key: KEY, modulo: N}`")
    return keys, modulo


def _strata(task: Task, value: Any) -> tuple[tuple[Level, ...], bool]:
    if value is None:
        return (), False
    form = "a key, a list of keys (outer first) or `{key: ..., of: sum}`"
    sums = False
    if isinstance(value, Mapping) and "of" in value:
        sums = value["of"] == "sum"
        if value["of"] not in ("sum", "mean"):
            raise _wrong(task, "strata", form)
        value = {name: said for name, said in value.items() if name != "of"}
        value = value.get("key") if set(value) == {"key"} else value
    levels = []
    for level in value if isinstance(value, list) else [value]:
        said = {"key": level} if isinstance(level, str) else level
        if not (isinstance(said, Mapping) and isinstance(said.get("key"), str) and set(said) <= {"key", "strip"}):
            raise _wrong(task, "strata", form)
        _pattern(task, "strata", said.get("strip"))
        levels.append(Level(said["key"], said.get("strip")))
    return tuple(levels), sums
