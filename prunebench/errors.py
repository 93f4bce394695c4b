"""One exception tree. Every message is one line that says what to do next; the CLI prints it without a traceback.

PruneBenchError
├── UsageError              wrong words on the command line or in a file (exit code 2)
│   ├── UnknownName         no such strategy, model, suite, parameter, ... (names the nearest real one)
│   ├── BadParameter        a value outside what is allowed
│   └── BudgetError         more asked than a model has
├── MissingExtra            an optional package is not installed (names the command that adds it)
├── PluginError             a plugin that cannot be loaded or misbehaves
├── ModelError              a model folder that cannot be read, or a model that does not fit
├── MediaError              an image, video or sound that cannot be read
├── CalibrationError        samples or hidden states that cannot be used
├── PlanError               a plan that is inconsistent, or does not fit the model
├── RecoveryError           a recovery that does not fit the plan or the model, or that diverges
├── EvaluationError         a suite or a task that cannot be evaluated
└── StoreError              a record, trace or folder that cannot be read or written
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BadParameter",
    "BudgetError",
    "CalibrationError",
    "EvaluationError",
    "MediaError",
    "MissingExtra",
    "ModelError",
    "PlanError",
    "PluginError",
    "PruneBenchError",
    "RecoveryError",
    "StoreError",
    "UnknownName",
    "UsageError",
    "first_line",
    "typed_line",
]


class PruneBenchError(Exception):
    """Base of everything that PruneBench raises on purpose."""


class UsageError(PruneBenchError):
    """Wrong words on the command line or in a configuration file."""


class UnknownName(UsageError):
    """A name that is not registered, with the nearest one that is."""

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        listing = f" Known: {', '.join(known)}." if known else " None is registered."
        super().__init__(f"unknown {what} {name!r}{hint}{listing}")
        self.what, self.name, self.suggestion = what, name, near[0] if near else None


class BadParameter(UsageError):
    """A value outside what is allowed."""


class BudgetError(UsageError):
    """More asked for than the model has."""


class MissingExtra(PruneBenchError):
    """An optional package is missing; `command` installs it where the extra alone would not do."""

    def __init__(self, package: str, extra: str, purpose: str, command: str | None = None) -> None:
        command = command or f"pip install 'prunebench[{extra}]'"
        super().__init__(f"{purpose} needs {package!r}: {command}")
        self.package, self.extra = package, extra


class PluginError(PruneBenchError):
    """A plugin that cannot be loaded or misbehaves."""


class ModelError(PruneBenchError):
    """A model folder that cannot be read, or a model that does not fit."""


class MediaError(PruneBenchError):
    """An image, a video or a sound that cannot be read."""


class CalibrationError(PruneBenchError):
    """Samples or hidden states that cannot be used."""


class PlanError(PruneBenchError):
    """A plan that is inconsistent, or does not fit the model."""


class RecoveryError(PruneBenchError):
    """A recovery that does not fit the plan or the model, or that diverges."""


class EvaluationError(PruneBenchError):
    """A suite or a task that cannot be evaluated."""


class StoreError(PruneBenchError):
    """A record, trace or folder that cannot be read or written."""


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def typed_line(error: BaseException) -> str:
    """The type of a foreign exception and the first line of its text."""
    name = type(error).__name__
    return f"{name}: {first_line(error)}" if str(error).strip() else name
