"""Suites are data: a YAML file names tasks, where their questions come from and how they are scored."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from prunebench import jsonio
from prunebench.errors import BadParameter, EvaluationError, UnknownName, UsageError
from prunebench.plan import first_problem
from prunebench.yaml_files import read_mapping, shipped_dir, yaml_files

__all__ = [
    "JUDGES",
    "MEDIA",
    "NO_JUDGE",
    "Suite",
    "Task",
    "builtin_suites_dir",
    "load_suite",
    "resolve_data",
    "suite_files",
]

JUDGES = {"openai": "OPENAI_API_KEY"}
"""Services that score answers → the environment variable that holds the key. Its value is never written anywhere."""

NO_JUDGE = "none"

MEDIA = "media"
"""The key in `Task.data` that is no split: a folder of media files."""

WORDING = {"why", "questions", "disk_gb", "needs", "data"}
"""Fields that change no question and no score. Of one's own data the content counts, by the evaluator's `revision`."""

DIRECTIONS = {"higher": True, "lower": False}


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Task(_Strict):
    """One table column: questions from one source, one metric."""

    id: str
    evaluator: str = "local"
    dataset: str | None = Field(default=None, description="a registered dataset (evaluator `local`)")
    domain: str | None = None
    split: str = "test"
    seed: int = 0
    n: int = Field(default=500, ge=1)
    metric: str = "exact_match"
    higher_is_better: bool = True
    modality: str = "image"
    chance: float | None = Field(default=None, description="score of a uniform guess, where it is known beforehand")
    majority: float | None = Field(default=None, description="score of the most common answer, where known beforehand")
    max_new_tokens: int = Field(default=4, ge=1)
    task: str | None = Field(default=None, description="what the evaluator calls it; the id where absent")
    filter: str = Field(default="none", description="which post-processing of answers the metric is read from")
    scale: float = Field(default=1.0, gt=0, description="full marks of the metric: 1, 100, 800, ...")
    weight: float = Field(default=1.0, gt=0, description="in the relative score")
    judge: str = Field(default=NO_JUDGE, description="the service that scores answers, where rules do not do it alone")
    limit: int | None = Field(default=None, ge=1, description="only the first questions; None takes all")
    generation: dict[str, Any] = Field(default_factory=dict, description="overrides: max_new_tokens, until")
    data: dict[str, str] = Field(
        default_factory=dict,
        description="split → file or folder of one's own; `media` → folder of media files; `member/split` in groups",
    )
    cluster: str | None = Field(default=None, description="field that questions about one image or video share")
    questions: int | None = Field(default=None, ge=1, description="how many the whole benchmark has; for estimates")
    disk_gb: float | None = Field(default=None, ge=0, description="size of its data; for estimates")
    needs: tuple[str, ...] = Field(default=(), description="packages beside the evaluator's own, by their PyPI names")
    why: str = Field(default="", description="what this task tells about a pruned model")
    options: dict[str, Any] = Field(default_factory=dict, description="for the evaluator")

    @model_validator(mode="before")
    @classmethod
    def _direction(cls, values: Any) -> Any:
        """``direction: lower`` is another way to write ``higher_is_better: false``."""
        if not isinstance(values, Mapping) or "direction" not in values:
            return values
        values = dict(values)
        direction = values.pop("direction")
        if direction not in DIRECTIONS:
            raise ValueError(f"direction is higher or lower, got {direction!r}")
        if values.setdefault("higher_is_better", DIRECTIONS[direction]) is not DIRECTIONS[direction]:
            raise ValueError(f"direction {direction} and higher_is_better contradict each other: give one of them")
        return values

    @field_validator("judge")
    @classmethod
    def _known_judge(cls, value: str) -> str:
        if value not in (NO_JUDGE, *JUDGES):
            raise ValueError(str(UnknownName("judge", value, (NO_JUDGE, *JUDGES))))
        return value

    def identity(self) -> dict[str, Any]:
        """All that changes the questions or their scoring, as JSON; wording for people and defaults left out."""
        return self.model_dump(mode="json", exclude=WORDING, exclude_defaults=True)

    @property
    def judged(self) -> bool:
        """Whether a service scores answers."""
        return self.judge != NO_JUDGE

    @property
    def source(self) -> str:
        """The task's name in its evaluator's own words."""
        return self.task or self.id

    @property
    def count(self) -> int:
        """Questions that will be asked, as far as is known beforehand."""
        known = self.n if self.dataset is not None else self.questions or self.n
        return min(known, self.limit) if self.limit is not None else known


class Suite(_Strict):
    """Tasks that are run together and ranked together."""

    name: str
    title: str = ""
    description: str = ""
    tasks: tuple[Task, ...]

    @model_validator(mode="after")
    def _unique(self) -> Suite:
        if not self.tasks:  # said here: pydantic would also count the tasks that are wrong as missing
            raise ValueError("a suite needs at least one task")
        ids = [task.id for task in self.tasks]
        if twice := sorted({i for i in ids if ids.count(i) > 1}):
            raise ValueError(f"task id {twice[0]!r} stands twice")
        return self

    def changed(self, changes: Mapping[str, Mapping[str, Any]]) -> Suite:
        """The suite with other values of some tasks' fields: task id → field → value."""
        tasks = tuple(task.model_copy(update=dict(changes.get(task.id, {}))) for task in self.tasks)
        return self.model_copy(update={"tasks": tasks})

    def without(self, ids: Iterable[str]) -> Suite:
        """The suite without some tasks."""
        out = set(ids)
        return self.model_copy(update={"tasks": tuple(task for task in self.tasks if task.id not in out)})

    def digest(self, revisions: dict[str, str] | None = None) -> str:
        """Hash of all that changes the questions or their scoring; wording for people and defaults left out.

        Args:
            revisions: dataset name → revision, and what evaluators say of the tasks' own data and code.
        """
        tasks = [task.identity() for task in self.tasks]
        return jsonio.digest({"tasks": tasks, "revisions": revisions or {}})[:16]


def builtin_suites_dir() -> Path:
    """The folder of the suites that ship: inside the installed package, or the repository's in an editable install."""
    return shipped_dir("_suites", "suites")


def suite_files(path: Path) -> list[Path]:
    """The suite files that `path` (a file, or a folder of them) stands for.

    Raises:
        UsageError: there is none.
    """
    if path.is_dir():
        if files := yaml_files(path):
            return files
        raise UsageError(f"no suite (*.yaml) in {path}")
    if path.is_file():
        return [path]
    raise UsageError(f"no such suite file or folder: {path}")


def load_suite(path: Path) -> Suite:
    """Read and validate one suite.

    Raises:
        EvaluationError: unreadable, not YAML, or a field that is unknown or wrong.
    """
    values = read_mapping(path, "`name:` and `tasks:`", "suite", EvaluationError)
    values.setdefault("name", Path(path).stem)
    try:
        suite = Suite.model_validate(values)
    except ValidationError as error:
        raise EvaluationError(f"suite {path}: {_problem(error)}") from error
    try:
        own = {
            task.id: resolve_data(task.id, task.data, Path(path).absolute().parent) for task in suite.tasks if task.data
        }
    except BadParameter as error:
        raise EvaluationError(f"suite {path}: {error}") from error
    return suite.changed({task: {"data": data} for task, data in own.items()})


def resolve_data(task: str, data: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The paths of a task's data, absolute; relative ones are relative to `folder`.

    Raises:
        BadParameter: no such file or folder.
    """
    found = {}
    for split, path in data.items():
        absolute = Path(os.path.abspath(folder / Path(path).expanduser()))
        if not absolute.exists():
            raise BadParameter(f"task {task!r}: data for {split!r} is not there: {absolute}")
        if split.rpartition("/")[2] == MEDIA and not absolute.is_dir():
            raise BadParameter(f"task {task!r}: {split!r} is a folder of media files, {absolute} is none")
        found[split] = str(absolute)
    return found


def _problem(error: ValidationError) -> str:
    """The first problem of a suite file; an unknown key with the nearest real one."""
    for found in error.errors():
        if found["type"] == "extra_forbidden":
            *where, key = found["loc"]
            known = {*Task.model_fields, "direction"} if where and where[0] == "tasks" else set(Suite.model_fields)
            return f"{'.'.join(map(str, found['loc']))}: {UnknownName('key', str(key), known)}"
    return first_problem(error)
