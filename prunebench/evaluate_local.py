"""The built-in evaluator: questions from a registered dataset, greedy answers, one score per question."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunebench.calibration.samples import Sample
from prunebench.dataset import answered, dataset_need, registered
from prunebench.encoded import EncoderCache
from prunebench.errors import EvaluationError, UnknownName
from prunebench.evaluator import Evaluator, Need, Progress, TaskResult
from prunebench.metrics import METRICS, is_outside, normalise
from prunebench.stats import mean_interval

if TYPE_CHECKING:
    from prunebench.adapter import LoadedModel
    from prunebench.suites import Task

__all__ = ["METRICS", "LocalEvaluator", "chance_level", "majority_level", "normalise"]


class LocalEvaluator(Evaluator):
    """Evaluates without any foreign harness.

    Towers and projectors are never pruned, so their outputs come from `encoder`, which computes them once per input
    and keeps them for all plans of a run (a run gives it its own, which also keeps them on disk).
    """

    name = "local"

    def __init__(self, batch_size: int = 32, encoder: EncoderCache | None = None) -> None:
        self.batch_size = batch_size
        self.encoder = encoder or EncoderCache()
        self._samples: dict[tuple, list[Sample]] = {}

    def check(self, task: Task) -> None:
        self._check_metric(task)
        registered(task, self.name)

    def needs(self, task: Task) -> list[Need]:
        return [dataset_need(task, self.name)]

    def _check_metric(self, task: Task) -> None:
        if task.metric not in METRICS:
            raise EvaluationError(f"task {task.id!r}: {UnknownName('metric', task.metric, METRICS)}")

    def evaluate(self, loaded: LoadedModel, task: Task, progress: Progress | None = None) -> TaskResult:
        import torch

        self._check_metric(task)
        samples = self._questions(task)
        if task.metric == "option_match" and (open_ := [sample.id for sample in samples if not sample.options]):
            raise EvaluationError(f"task {task.id!r}: metric 'option_match' needs options, {open_[0]!r} has none")
        step = self.batch_size if loaded.adapter.batching else 1
        answers: list[str] = [""] * len(samples)
        started = time.perf_counter()
        with torch.inference_mode():
            for start in range(0, len(samples), step):
                rows = range(start, min(start + step, len(samples)))
                inputs = self.encoder.encode(loaded, [samples[i] for i in rows])
                texts = loaded.generate(inputs, task.max_new_tokens)
                if len(texts) != len(rows):
                    raise EvaluationError(f"task {task.id!r}: {len(texts)} answers for {len(rows)} questions")
                for row, text in zip(rows, texts, strict=True):
                    answers[row] = text
                if progress:
                    progress(rows.stop, len(samples))
        scores = [METRICS[task.metric](answer, sample) for answer, sample in zip(answers, samples, strict=True)]
        low, high, method = mean_interval(scores)
        by_kind: dict[str, list[float]] = defaultdict(list)
        for sample, score in zip(samples, scores, strict=True):
            by_kind[sample.kind].append(score)
        return TaskResult(
            task=task.id,
            metric=task.metric,
            n=len(samples),
            score=sum(scores) / len(scores),
            ci_low=low,
            ci_high=high,
            ci_method=method,
            higher_is_better=task.higher_is_better,
            chance=task.chance if task.chance is not None else chance_level(samples),
            majority=task.majority if task.majority is not None else majority_level(samples),
            empty=sum(not answer.strip() for answer in answers),
            unparsable=sum(is_outside(task.metric, *pair) for pair in zip(answers, samples, strict=True)),
            seconds=time.perf_counter() - started,
            ids=tuple(sample.id for sample in samples),
            scores=tuple(scores),
            answers=tuple(answers),
            kinds={kind: (len(values), sum(values) / len(values)) for kind, values in sorted(by_kind.items())},
        )

    def _questions(self, task: Task) -> list[Sample]:
        dataset = registered(task, self.name)
        key = (task.dataset, task.split, task.count, task.seed, task.domain)
        if key not in self._samples:
            try:
                self._samples[key] = answered(
                    dataset, task.dataset or "", task.split, task.count, seed=task.seed, domain=task.domain
                )
            except EvaluationError as error:
                raise EvaluationError(f"task {task.id!r}: {error}") from error
        return self._samples[key]


def chance_level(samples: Sequence[Sample]) -> float | None:
    """Expected score of a uniform guess among each question's options; None where a question is open."""
    if not all(sample.options for sample in samples):
        return None
    return sum(1.0 / len(sample.options) for sample in samples) / len(samples)


def majority_level(samples: Sequence[Sample]) -> float:
    """Score of answering every question with the most common answer of its kind."""
    answers: dict[str, Counter] = defaultdict(Counter)
    for sample in samples:
        answers[sample.kind][normalise(sample.answer or "")] += 1
    return sum(counter.most_common(1)[0][1] for counter in answers.values()) / len(samples)
