"""The contract of an evaluator: a loaded (dense or pruned) model and a task in, per-question scores out."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, SerializerFunctionWrapHandler, model_serializer

from prunebench.plan_parts import without_default

if TYPE_CHECKING:
    from prunebench.adapter import LoadedModel
    from prunebench.suites import Task

__all__ = ["LOG_METRICS", "Evaluator", "Need", "Progress", "TaskResult"]

LOG_METRICS = frozenset({"perplexity"})
"""Metrics that are exp(mean of per-question scores): differences mean something between their logarithms only."""

Progress = Callable[[int, int], None]
"""Called with (questions done, questions in all)."""


class TaskResult(BaseModel):
    """One task's outcome for one model. `scores[i]` and `answers[i]` belong to question `ids[i]`.

    `score` is the mean of `scores`, or exp of that mean for the metrics in `LOG_METRICS`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    metric: str
    n: int
    score: FiniteFloat
    ci_low: FiniteFloat
    ci_high: FiniteFloat
    ci_method: str
    higher_is_better: bool = True
    chance: float | None = Field(default=None, description="score of a uniform guess")
    majority: float | None = Field(
        default=None, description="score of always giving each question kind's most common answer"
    )
    empty: int = 0
    unparsable: int = Field(default=0, description="answers outside the question's options")
    seconds: float = 0.0
    ids: tuple[str, ...] = ()
    scores: tuple[FiniteFloat, ...] = ()
    answers: tuple[str, ...] = ()
    kinds: dict[str, tuple[int, float]] = Field(default_factory=dict, description="question kind → (n, mean score)")
    scale: float = Field(default=1.0, gt=0, description="full marks of `score`")
    weight: float = Field(default=1.0, gt=0, description="in the relative score")
    clusters: tuple[str, ...] = Field(
        default=(), description="what question i shares with others (an image, a video); empty: each stands alone"
    )
    verdicts: tuple[FiniteFloat, ...] = Field(
        default=(), description="1 right, 0 wrong, where `scores` are contributions to a metric that is no plain mean"
    )
    source: dict[str, str] = Field(
        default_factory=dict, description="what made the questions and scored them: package, task version, data"
    )
    warnings: tuple[str, ...] = ()

    @model_serializer(mode="wrap")
    def _said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what came later and has nothing to say: older results read as they always did."""
        return without_default(self, handler(self), "scale", "weight", "clusters", "verdicts", "source", "warnings")

    @property
    def asked(self) -> int:
        """Questions that the model was asked: `n`, unless `source` says under ``asked`` that several make one score."""
        said = self.source.get("asked", "")
        return int(said) if said.isdigit() else self.n

    @property
    def log_scale(self) -> bool:
        """True where `score` is exp(mean of `scores`), and rows compare by its logarithm."""
        return self.metric in LOG_METRICS


class Need(NamedTuple):
    """One thing that a task needs before it can run, for `prunebench doctor --suite`.

    Attributes:
        status: ``ok``, ``missing`` (the task cannot run) or ``warning``.
        what: package, key, data, disk.
        detail: one line.
        do: the command or step that adds it, or None.
    """

    status: str
    what: str
    detail: str
    do: str | None = None


class Evaluator(abc.ABC):
    """Base of all evaluators. One instance lives for one run, so that it may cache encoder outputs over plans."""

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def evaluate(self, loaded: LoadedModel, task: Task, progress: Progress | None = None) -> TaskResult:
        """Ask every question of `task`.

        Raises:
            EvaluationError: the task cannot be evaluated on this model.
        """

    def check(self, task: Task) -> None:
        """Refuse a task that cannot be right, before anything slow happens.

        Raises:
            MissingExtra: the package behind this evaluator is not installed.
            UnknownName: no such task (names the nearest), or no such metric (names those there are).
        """
        return None

    def needs(self, task: Task) -> list[Need]:
        """What `task` needs on this machine; nothing is loaded or downloaded."""
        return []

    def data_split(self, task: Task) -> str:
        """The split that `task` asks its questions from: what data of one's own are where no split is named."""
        return "test"

    def revision(self, task: Task) -> str:
        """What stands for data of the user's own (`Task.data`) and code that scores; empty where the suite says all.

        It is part of every result's identity.
        """
        return ""
