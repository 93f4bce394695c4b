"""Which tasks of a suite a run asks, how many questions of each, and on whose data."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from prunebench.errors import BadParameter, EvaluationError, UnknownName
from prunebench.suites import JUDGES, MEDIA, Suite, Task, resolve_data

__all__ = ["NOT_ASKED", "judge_key", "limited", "only_tasks", "parse_data", "unkeyed", "with_data", "without_judged"]

NOT_ASKED = "not asked for"
"""Why a task is left out that ``--task`` does not name."""


def limited(suite: Suite, limit: int | None) -> Suite:
    """The suite with at most `limit` questions per task."""
    if limit is None:
        return suite
    changes: dict[str, dict[str, Any]] = {}
    for task in suite.tasks:
        changes[task.id] = {"n": min(task.n, limit)}
        if task.limit is not None or task.dataset is None:  # `n` alone says it all of a dataset's samples
            changes[task.id]["limit"] = min(task.limit or limit, limit)
    return suite.changed(changes)


def only_tasks(suite: Suite, ids: Iterable[str]) -> tuple[Suite, dict[str, str]]:
    """The suite with the tasks `ids` alone (all where there is none), and those that are left out → `NOT_ASKED`.

    Raises:
        UnknownName: the suite has no such task.
    """
    wanted = set(ids)
    if not wanted:
        return suite, {}
    _known(suite, wanted)
    out = {task.id: NOT_ASKED for task in suite.tasks if task.id not in wanted}
    return suite.without(out), out


def judge_key(task: Task) -> str | None:
    """The environment variable that a judged task needs; None for a task that rules score."""
    return JUDGES.get(task.judge)


def unkeyed(suite: Suite, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The tasks whose judge has no key in the environment → ``judge SERVICE``."""
    environ = os.environ if environ is None else environ
    return {t.id: f"judge {t.judge}" for t in suite.tasks if (key := judge_key(t)) and not environ.get(key)}


def without_judged(suite: Suite, environ: Mapping[str, str] | None = None) -> tuple[Suite, dict[str, str]]:
    """The suite without the tasks whose judge has no key in the environment, and these → ``judge SERVICE``.

    Raises:
        EvaluationError: no task would be left.
    """
    out = unkeyed(suite, environ)
    if len(out) == len(suite.tasks):
        keys = " and ".join(sorted({key for task in suite.tasks if (key := judge_key(task))}))
        raise EvaluationError(
            f"suite {suite.name!r}: every task that is asked for is scored by a judge, and {keys} is not set: "
            "set it, or take another suite or task"
        )
    return suite.without(out), out


def parse_data(pairs: Iterable[str]) -> dict[str, str]:
    """``["a=x.parquet", "b:media=videos"]`` → ``{"a": "x.parquet", "b:media": "videos"}``."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not (equals and name.strip() and path.strip()):
            raise BadParameter(
                f"--data wants TASK=PATH, TASK:SPLIT=PATH or TASK:{MEDIA}=DIR, got {pair!r}: "
                "for example --data nextqa_mc_test=questions.parquet"
            )
        found[name.strip()] = path.strip()
    return found


def with_data(
    suite: Suite,
    data: Mapping[str, str],
    folder: Path | None = None,
    split_of: Callable[[Task], str] = lambda task: "test",
) -> Suite:
    """The suite with data of one's own for some tasks.

    Args:
        data: ``task``, ``task:split`` or ``task:media`` → file or folder.
        folder: what relative paths are relative to; None takes the working directory.
        split_of: the split that a task alone stands for (`Evaluator.data_split`).

    Raises:
        UnknownName: the suite has no such task.
        BadParameter: no such file or folder.
    """
    own: dict[str, dict[str, str]] = {}
    tasks = {task.id: task for task in suite.tasks}
    for key, path in data.items():
        task, _, split = key.partition(":")
        _known(suite, [task])
        own.setdefault(task, {})[split or split_of(tasks[task])] = path
    found = {task: resolve_data(task, paths, folder or Path.cwd()) for task, paths in own.items()}
    return suite.changed({task: {"data": {**tasks[task].data, **paths}} for task, paths in found.items()})


def _known(suite: Suite, ids: Iterable[str]) -> None:
    known = [task.id for task in suite.tasks]
    for name in ids:
        if name not in known:
            raise UnknownName(f"task of suite {suite.name!r}", name, known)
