"""A check, its outcome, and the report of many.

A check is a function of a case. Its name is the function's, what it proves is the first line of its docstring. It
passes by returning, fails by raising `Failed` (or anything else), and is left out by raising `Skipped`.
"""

from __future__ import annotations

import time
import unittest
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from prunebench.errors import PruneBenchError, first_line, typed_line

__all__ = ["Check", "Checklist", "Failed", "Report", "Result", "Skipped", "run_checks"]


class Failed(AssertionError):
    """The contract is broken; the text is one line that says how, and what to do."""


class Skipped(unittest.SkipTest):
    """The check does not apply here; pytest shows it as skipped, with the reason."""


@dataclass(frozen=True)
class Result:
    """How one check went."""

    name: str
    proves: str
    status: Literal["passed", "failed", "skipped"]
    reason: str = ""
    on: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Check:
    """One check, bound to the case that it is run on. Calling it runs it; what goes wrong is raised.

    Args:
        name: what `prunebench check` calls it.
        proves: what holds if it passes.
        function: takes `case`.
        case: what is checked, with all that is shared by its checks.
        on: the model that it runs on, where there are several.
    """

    name: str
    proves: str
    function: Callable[[Any], None] = field(repr=False)
    case: Any = field(repr=False)
    on: str = ""

    @property
    def __name__(self) -> str:  # pytest names a parametrised test by it
        return f"{self.name}-{self.on}" if self.on else self.name

    def __call__(self) -> None:
        try:
            self.function(self.case)
        except (Failed, Skipped):
            raise
        except PruneBenchError as error:
            raise Failed(first_line(error)) from error
        except (Exception, SystemExit) as error:
            raise Failed(f"raised {typed_line(error)}") from error

    def result(self) -> Result:
        """Run, and say how it went."""
        started, status, reason = time.perf_counter(), "passed", ""
        try:
            self()
        except Skipped as skip:
            status, reason = "skipped", first_line(skip)
        except Failed as failure:
            status, reason = "failed", first_line(failure)
        return Result(self.name, self.proves, status, reason, self.on, round(time.perf_counter() - started, 4))


class Checklist:
    """The checks of one kind of thing, in the order in which they are written down.

    ``@checklist`` above a function adds it.
    """

    def __init__(self) -> None:
        self.functions: list[Callable[[Any], None]] = []

    def __call__(self, function: Callable[[Any], None]) -> Callable[[Any], None]:
        self.functions.append(function)
        return function

    def bind(self, case: Any, on: str = "") -> list[Check]:
        """The checks on `case`."""
        return [Check(f.__name__.replace("_", "-"), _first_sentence(f), f, case, on) for f in self.functions]


def _first_sentence(function: Callable) -> str:
    return (function.__doc__ or "").strip().splitlines()[0].rstrip(".")


@dataclass(frozen=True)
class Report:
    """All checks of one thing.

    Attributes:
        kind: ``strategy``, ``model``, ``dataset``, ``evaluator``, ``suite`` or ``plugin``.
        name: the thing's own.
        results: in the order in which they ran.
    """

    kind: str
    name: str
    results: tuple[Result, ...]

    @property
    def ok(self) -> bool:
        """No check failed, and not all were left out."""
        return not self.failed and any(result.status == "passed" for result in self.results)

    @property
    def failed(self) -> tuple[Result, ...]:
        return tuple(result for result in self.results if result.status == "failed")

    def count(self, status: str) -> int:
        return sum(result.status == status for result in self.results)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"kind": self.kind, "name": self.name, "ok": self.ok, "checks": [asdict(r) for r in self.results]}

    def raise_for_failures(self) -> None:
        """Raise `Failed` with a line for each check that failed."""
        if self.failed:
            lines = [f"  {r.name}{f' [{r.on}]' if r.on else ''}: {r.reason}" for r in self.failed]
            raise Failed("\n".join([f"{self.kind} {self.name}: {len(lines)} of {len(self.results)} failed", *lines]))


def run_checks(kind: str, name: str, checks: Iterable[Check]) -> Report:
    """Run `checks` one after the other; a failure does not stop the others."""
    return Report(kind, name, tuple(check.result() for check in checks))
