"""Finished tasks of a cell that is still at work: one file each, so that a run cut short goes on at the next task.

A file is found by the content that its answers come from, never by a path: which weights, which plan, which questions,
which evaluator. Two plans at one model path can therefore never share answers. Once the cell's record is written, which
holds the same results, its task files are removed; of a cell that failed or was cut short they stay.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from prunebench import jsonio
from prunebench.environment import package_version
from prunebench.errors import StoreError
from prunebench.evaluator import TaskResult
from prunebench.plan_parts import first_problem

if TYPE_CHECKING:
    from prunebench.model_info import ModelInfo
    from prunebench.plan import Plan
    from prunebench.store import Store
    from prunebench.suites import Task

__all__ = ["TaskFile", "TaskFiles", "task_identity"]

SCHEMA_VERSION = 1
LIBRARIES = ("torch", "transformers")


def task_identity(
    model: ModelInfo,
    plan: Plan,
    task: Task,
    *,
    loading: dict[str, Any],
    device: str,
    evaluator_version: str,
    dataset_revision: str | None = None,
    task_revision: str = "",
) -> dict[str, Any]:
    """All that a task's answers depend on, as JSON.

    Args:
        model: the dense model; its revision stands for the weights.
        plan: by its digest, which covers target, operations and tensors, so also what recovery trained.
        loading: loading options that can change a result.
        device: ``cpu``, ``cuda``, ...: kinds of devices round differently, and a record names one.
        evaluator_version: of the plugin that the evaluator comes from.
        dataset_revision: of the task's dataset, where it has one.
        task_revision: what the evaluator says of the task's own data and code.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "model": model.name,
        "model_revision": model.revision,
        "dtype": model.dtype,
        "loading": loading,
        "device": device,
        "libraries": {name: package_version(name) for name in LIBRARIES},
        "plan": plan.digest,
        "task": task.identity(),
        "dataset_revision": dataset_revision,
        "task_revision": task_revision,
        "evaluator": task.evaluator,
        "evaluator_version": evaluator_version,
    }


class TaskFile(BaseModel):
    """What a file holds: the result, and what it is the result of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    identity: dict[str, Any]
    result: TaskResult


class TaskFiles:
    """The folder ``tasks/`` of a store.

    Args:
        store: where it lies, and where damaged files go.
        warn: told of every damaged file.
    """

    def __init__(self, store: Store, warn: Callable[[str], None] = lambda text: None) -> None:
        self.store, self._warn = store, warn

    def path(self, identity: dict[str, Any]) -> Path:
        return self.store.tasks / f"{jsonio.digest(identity)[:32]}.json"

    def read(self, identity: dict[str, Any]) -> TaskResult | None:
        """The finished result of exactly this task, or None. A damaged file is moved away, never trusted or deleted."""
        path = self.path(identity)
        if not path.exists():
            return None
        try:
            found = TaskFile.model_validate_json(path.read_text(encoding="utf-8"))
            if found.identity == identity:
                return found.result
            problem = "it is of another task"
        except ValidationError as error:
            problem = first_problem(error)
        except (OSError, UnicodeDecodeError) as error:
            problem = str(error)
        moved = self.store.quarantine(path)
        self._warn(f"finished task {path} is damaged: {problem}; moved to {moved}, asked anew")
        return None

    def write(self, identity: dict[str, Any], result: TaskResult) -> Path:
        """Keep a finished task, whole or not at all.

        Raises:
            StoreError: the file cannot be written.
        """
        path = self.path(identity)
        jsonio.write_text(path, TaskFile(identity=identity, result=result).model_dump_json() + "\n")
        return path

    def remove(self, identities: Iterable[dict[str, Any]]) -> None:
        """Remove what a record holds by now; the folder too once it is empty.

        Raises:
            StoreError: a file cannot be removed.
        """
        for identity in identities:
            try:
                self.path(identity).unlink(missing_ok=True)
            except OSError as error:
                raise StoreError(f"cannot remove {self.path(identity)}: {error}") from error
        with contextlib.suppress(OSError):  # not there, or not empty: other cells are at work
            self.store.tasks.rmdir()
