"""Suites are data: a YAML file names tasks, where their questions come from and how they are scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prunebench import jsonio
from prunebench.errors import EvaluationError, UsageError
from prunebench.plan import first_problem

__all__ = ["Suite", "Task", "builtin_suites_dir", "load_suite", "suite_files"]


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
    judge: str = Field(default="none", description="the service that scores answers, where rules do not do it alone")
    limit: int | None = Field(default=None, ge=1, description="only the first questions; None takes all")
    generation: dict[str, Any] = Field(default_factory=dict, description="overrides: max_new_tokens, until")
    data: dict[str, str] = Field(
        default_factory=dict, description="split → file or folder of one's own; `media` → folder of media files"
    )
    cluster: str | None = Field(default=None, description="field that questions about one image or video share")
    questions: int | None = Field(default=None, ge=1, description="how many the whole benchmark has; for estimates")
    disk_gb: float | None = Field(default=None, ge=0, description="size of its data; for estimates")
    needs: tuple[str, ...] = Field(default=(), description="packages beside the evaluator's own, by their PyPI names")
    why: str = Field(default="", description="what this task tells about a pruned model")
    options: dict[str, Any] = Field(default_factory=dict, description="for the evaluator")


    @property
    def source(self) -> str:
        """The task's name in its evaluator's own words."""
        return self.task or self.id

    @property
    def count(self) -> int:
        """Questions that will be asked, as far as is known beforehand."""
        known = self.questions or self.n
        return min(known, self.limit) if self.limit is not None else known


class Suite(_Strict):
    """Tasks that are run together and ranked together."""

    name: str
    title: str = ""
    description: str = ""
    tasks: tuple[Task, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique(self) -> Suite:
        ids = [task.id for task in self.tasks]
        if twice := sorted({i for i in ids if ids.count(i) > 1}):
            raise ValueError(f"task id {twice[0]!r} stands twice")
        return self

    def digest(self, revisions: dict[str, str] | None = None) -> str:
        """Hash of all that changes the questions or their scoring; wording for people and defaults left out.

        Args:
            revisions: dataset name → revision.
        """
        tasks = [task.model_dump(mode="json", exclude={"why"}, exclude_defaults=True) for task in self.tasks]
        return jsonio.digest({"tasks": tasks, "revisions": revisions or {}})[:16]


def builtin_suites_dir() -> Path:
    """The folder of the suites that ship: inside the installed package, or the repository's in an editable install."""
    inside = Path(__file__).parent / "_suites"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "suites"


def suite_files(path: Path) -> list[Path]:
    """The suite files that `path` (a file, or a folder of them) stands for.

    Raises:
        UsageError: there is none.
    """
    if path.is_dir():
        files = sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
        if files:
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
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"cannot read suite {path}: {error}") from error
    except yaml.YAMLError as error:
        raise EvaluationError(f"suite {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise EvaluationError(f"suite {path} must hold `name:` and `tasks:`")
    values.setdefault("name", Path(path).stem)
    try:
        return Suite.model_validate(values)
    except ValidationError as error:
        raise EvaluationError(f"suite {path}: {first_problem(error)}") from error
