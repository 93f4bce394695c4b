"""lmms-eval's task objects as we need them: serial, seeded per question, and watched while they score."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

from prunebench.errors import EvaluationError
from prunebench_lmms_eval.check import OUTPUT_TYPES
from prunebench_lmms_eval.model import seeded
from prunebench_lmms_eval.tasks_index import read_config

if TYPE_CHECKING:
    from prunebench.suites import Task

__all__ = ["Watch", "fresh_folders", "make_manager"]


class Watch:
    """What happens while answers are scored: question by question, filter by filter."""

    def __init__(self, wanted: str) -> None:
        self.wanted = wanted
        self.tasks: dict[str, Any] = {}
        self.filters: dict[str, list[str]] = {}  # task → its filters, in the order in which they are scored
        self._passes: dict[str, int] = {}
        self._at: dict[str, int] = {}
        self._drew: dict[tuple[str, int, str], bool] = {}
        self.warnings: dict[str, None] = {}

    def put_on(self, name: str, task: Any) -> None:
        """Watch one task object."""
        from lmms_eval.utils import create_iterator

        self.tasks[name] = task
        self.filters[name] = [one.name for one in getattr(task, "_filters", [])] or ["none"]
        score, combine = task.process_results, task.aggregation

        def doc_iterator(**settings: Any) -> Iterator[tuple[int, Any]]:
            self._passes[name] = self._passes.get(name, -1) + 1
            # without media, as lmms-eval's command line scores: else every picture would be read again, and lists of
            # pictures would stay in the logged documents
            for doc_id, doc in create_iterator(enumerate(task.eval_docs_no_media), **settings):
                self._at[name] = doc_id
                yield doc_id, doc

        def process_results(doc: Any, results: Any, *args: Any, **settings: Any) -> Any:
            doc_id = self._at[name]
            with seeded(name, doc_id) as draw:
                found = score(doc, results, *args, **settings)
            key = (name, doc_id, self.filters[name][self._passes[name]])
            self._drew[key] = self._drew.get(key, False) or draw.consumed
            return found

        def aggregation() -> dict[str, Any]:
            return {metric: self._watched(metric, function) for metric, function in combine().items()}

        task.doc_iterator, task.process_results, task.aggregation = doc_iterator, process_results, aggregation

    def _watched(self, metric: str, function: Any) -> Any:
        """An aggregation that says so where it draws: those draws belong to no question."""
        if not callable(function):
            return function

        @wraps(function)
        def aggregate(*args: Any, **settings: Any) -> Any:
            with seeded(metric, 0) as draw:
                found = function(*args, **settings)
            if draw.consumed:
                self.warnings[f"{metric} draws among options where it cannot read an answer; who answers differently "
                              "meets other draws"] = None  # fmt: skip
            return found

        return aggregate

    def _filter(self, task: str) -> str:
        there = self.filters.get(task, ["none"])
        return self.wanted if self.wanted in there else there[0]

    def chosen(self, task: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The samples of the filter that was asked for: lmms-eval puts those of all filters into one list."""
        there = self.filters.get(task, ["none"])
        size = len(rows) // len(there)
        start = there.index(self._filter(task)) * size
        return rows[start : start + size]

    def unparsable(self) -> frozenset[tuple[str, int]]:
        """(task, doc_id) where scoring the answer drew random numbers."""
        return frozenset(
            (task, doc) for (task, doc, kind), drew in self._drew.items() if drew and kind == self._filter(task)
        )


def make_manager(task: Task, folder: Path, profile: str) -> tuple[Any, Watch]:
    """A task manager that knows the YAML files of `folder` only, and what watches its tasks.

    Args:
        task: of a suite.
        folder: where `override.write_override` wrote.
        profile: chooses among prompts that a task has for several models (``model_name`` in lmms-eval's words).
    """
    watch = Watch(task.filter)
    manager = _class()("ERROR", include_path=[str(folder)], include_defaults=False, model_name=profile)
    manager.watch, manager.suite_task = watch, task
    return manager, watch


@cache
def _class() -> type:
    from lmms_eval.api.task import ConfigurableTask
    from lmms_eval.tasks import TaskManager

    class WatchedTasks(TaskManager):
        """Prepares every task that it loads."""

        watch: Watch
        suite_task: Task

        def load_task_or_group(self, task_list: Any = None, task_type: str = "chat") -> dict:
            loaded = super().load_task_or_group(task_list, task_type)
            for name, leaf in _leaves(loaded):
                self._prepare(name, leaf)
            return loaded

        def _prepare(self, name: str, leaf: Any) -> None:
            kind = getattr(leaf, "OUTPUT_TYPE", None)
            if kind not in OUTPUT_TYPES:
                raise EvaluationError(
                    f"task {self.suite_task.id!r}: PruneBench asks one question at a time, for words or one of several "
                    f"options; {name!r} is of the kind {kind!r}: leave it out"
                )
            if "acc_mutual_info" in getattr(leaf, "_metric_fn_list", ()):
                raise EvaluationError(
                    f"task {self.suite_task.id!r}: 'acc_mutual_info' needs likelihoods without a question, which "
                    "lmms-eval asks for in a form that it cannot handle itself: take another metric"
                )
            if kind != "generate_until":
                # the chat form of a task builds requests for generation only
                leaf.construct_requests = MethodType(ConfigurableTask.construct_requests, leaf)
            path = self.task_index.get(name, {}).get("yaml_path")
            if kind == "generate_until" and isinstance(path, str):
                _only_its_own_ends(leaf, read_config(Path(path)))
            if (leaf.config.num_fewshot or 0) > 0:
                _steady_examples(leaf)
            self.watch.put_on(name, leaf)

    return WatchedTasks


@contextmanager
def fresh_folders() -> Iterator[None]:
    """lmms-eval remembers where data sets are kept from its first task on; each may have a ``HF_HOME`` of its own."""
    from lmms_eval.api import task

    forget = getattr(getattr(task, "_resolve_hf_datasets_cache_dir", None), "cache_clear", lambda: None)
    forget()
    try:
        yield
    finally:
        forget()


def _only_its_own_ends(task: Any, said: dict[str, Any]) -> None:
    """Drop the end of answers that nobody asked for.

    lmms-eval ends the answers of every task without an ``until`` at the first empty line (its separator of examples in
    the prompt). An answer may begin with one: its own adapters for Qwen and Gemma do not stop there either, and that
    for LLaVA stops nowhere. What a task, or a suite, says itself holds, and so does the separator behind examples.
    """
    if (task.config.num_fewshot or 0) > 0:
        return  # what comes after it would be another example
    settings = task.config.generation_kwargs
    by_model = getattr(task, "model_specific_generation_kwargs", None) or {}
    if settings is not None and "until" not in (said.get("generation_kwargs") or {}) and "until" not in by_model:
        settings["until"] = []


def _steady_examples(task: Any) -> None:
    """Examples in the prompt belong to the question, however often and in whatever order prompts are made.

    lmms-eval makes prompts twice in its chat form, from one stream of draws, and forgets the sampler where a task asks
    for examples without configuring one (0.7.3).
    """
    from lmms_eval.api.samplers import get_sampler

    if not hasattr(task, "sampler"):
        task.sampler = get_sampler("default")(list(task.fewshot_docs()), task, rnd=random.Random(0))
    make = task.fewshot_context

    def fewshot_context(doc: Any, *args: Any, **settings: Any) -> Any:
        words = {key: value for key, value in doc.items() if isinstance(value, str | int | float | list)}
        task.sampler.rnd.seed(zlib.crc32(json.dumps(words, sort_keys=True, default=str).encode()))
        return make(doc, *args, **settings)

    task.fewshot_context = fewshot_context


def _leaves(loaded: dict) -> Iterator[tuple[str, Any]]:
    for name, value in loaded.items():
        if isinstance(value, dict):
            yield from _leaves(value)
        elif isinstance(value, tuple):  # (group, task or None)
            if value[1] is not None:
                yield str(name), value[1]
        else:
            yield str(name), value
