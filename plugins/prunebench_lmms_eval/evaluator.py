"""The evaluator ``lmms``: tasks of lmms-eval on any model that PruneBench has in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunebench.encoded import EncoderCache
from prunebench.evaluator import Evaluator, Progress, TaskResult

if TYPE_CHECKING:
    from prunebench.adapter import LoadedModel
    from prunebench.suites import Task

__all__ = ["LmmsEvaluator"]


class LmmsEvaluator(Evaluator):
    """One `simple_evaluate` per task, on the live model."""

    name = "lmms"

    def __init__(self, batch_size: int = 1, encoder: EncoderCache | None = None) -> None:
        self.batch_size = batch_size
        self.encoder = encoder or EncoderCache()

    def evaluate(self, loaded: LoadedModel, task: Task, progress: Progress | None = None) -> TaskResult:
        raise NotImplementedError
