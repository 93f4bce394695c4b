"""What a strategy class has to keep to before it plans anything: declaration, docstring, parameters."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from prunebench import jsonio
from prunebench.errors import UnknownName, UsageError, typed_line
from prunebench.kinds import is_pattern
from prunebench.strategy import strategy_params
from prunebench.testing.plans import StrategyCase
from prunebench.testing.report import Checklist, Failed

__all__ = ["KINDS", "OF_CLASS"]

KINDS = ("layers", "sublayers", "width", "weights")
"""Beside these, patterns N:M such as 2:4."""

OF_CLASS = Checklist()


@OF_CLASS
def docstring(case: StrategyCase) -> None:
    """The docstring says what is removed; a score from statistics has its formula or its source."""
    text = vars(case.cls).get("__doc__") or ""
    if not text.strip() or text.startswith(f"{case.cls.__name__}("):  # what @dataclass writes where there is none
        raise Failed(f"{case.cls.__name__} has no docstring: say which layers go first, with the formula and the paper")
    if case.strategy.requires() and not case.cls.paper and not re.search(r"=|https?://|arxiv|doi", text, re.I):
        raise Failed("the docstring has neither a formula (score(l) = ...) nor a source: add one, or set `paper`")


@OF_CLASS
def declaration(case: StrategyCase) -> None:
    """Name, aliases, kind, paper and flags are declared with the right types."""
    cls = case.cls
    for name in (getattr(cls, "name", None), *cls.aliases):
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w-]*", name):
            raise Failed(f"{name!r} is no name that can be typed: use letters, digits, _ and -")
    for kind in (cls.kind, case.strategy.plan_kind):
        if kind not in KINDS and not is_pattern(kind):
            raise Failed(f"kind is {kind!r}: it has to be one of {', '.join(KINDS)}, or a pattern such as 2:4")
    if not isinstance(cls.paper, str):
        raise Failed(f"paper is {cls.paper!r}: give a link as text")
    for flag in ("stochastic", "control"):
        if not isinstance(getattr(cls, flag), bool):
            raise Failed(f"{flag} is {getattr(cls, flag)!r}: it has to be True or False")


@OF_CLASS
def frozen(case: StrategyCase) -> None:
    """It is a frozen dataclass with a default for every parameter."""
    case.cls.check_class()
    field = next(iter(dataclasses.fields(case.cls)), None)
    if field is not None:
        try:
            setattr(case.strategy, field.name, None)
        except dataclasses.FrozenInstanceError:
            return
        raise Failed(f"{field.name} can be changed after construction: do not override __setattr__")


@OF_CLASS
def parameters(case: StrategyCase) -> None:
    """Hyper-parameters are typed, their defaults fit their types, and JSON holds them."""
    values = case.strategy.params()
    try:
        jsonio.canonical(values)
    except (TypeError, ValueError) as error:
        raise Failed(f"the parameters are no JSON ({typed_line(error)}): use numbers, text, booleans") from error
    types = strategy_params(case.cls)
    if loose := [name for name, annotation in types.items() if annotation is Any]:
        raise Failed(f"parameter {loose[0]!r} has the type Any: say what it takes")
    again = case.cls.from_params(values)
    if again != case.strategy:
        raise Failed(f"built from its own parameters {values} it is another strategy: {again.params()}")


@OF_CLASS
def unknown_parameter(case: StrategyCase) -> None:
    """A parameter that does not exist, and a value of the wrong type, are refused."""
    try:
        case.cls.from_params({"no_such_parameter": 1})
    except UnknownName:
        pass
    else:
        raise Failed("from_params takes a parameter that does not exist: do not override it")
    for name, annotation in strategy_params(case.cls).items():
        if annotation in (int, float, bool):
            try:
                case.cls.from_params({name: "neither a number nor a flag"})
            except UsageError:
                return
            raise Failed(f"{name} = 'neither a number nor a flag' is taken: do not override from_params")


@OF_CLASS
def statistics(case: StrategyCase) -> None:
    """requires() names calibration statistics that exist."""
    from prunebench.calibration.statistics import resolve

    asked = case.strategy.requires()
    if isinstance(asked, str) or not isinstance(asked, (frozenset, set)):
        raise Failed(f"requires() returned {type(asked).__name__}: return frozenset({{'token_cosine'}})")
    for name in sorted(asked):
        try:
            resolve(name)
        except UsageError as error:
            raise Failed(f"requires(): {error}") from None
