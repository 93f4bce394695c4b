"""The contract of an evaluator: a loaded (dense or pruned) model and a task in, per-question scores out."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

if TYPE_CHECKING:
    from prunebench.adapter import LoadedModel
    from prunebench.suites import Task

__all__ = ["LOG_METRICS", "Evaluator", "Progress", "TaskResult"]

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

    @property
    def log_scale(self) -> bool:
        """True where `score` is exp(mean of `scores`), and rows compare by its logarithm."""
        return self.metric in LOG_METRICS


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
