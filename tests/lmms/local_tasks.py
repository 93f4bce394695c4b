"""Tiny tasks of lmms-eval made in a test: a YAML, a module beside it, and questions as JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from prunebench_lmms_eval.call import Outcome, run_task
from prunebench_lmms_eval.host import Host
from prunebench_lmms_eval.model import make_lm

from prunebench.adapter import DecoderInputs, LoadedModel
from prunebench.suites import Task
from prunebench.testing.tiny import TinyLlama

CODE = """
def doc_to_text(doc, kwargs=None):
    return (kwargs or {}).get("pre_prompt", "") + doc["question"]

def process_results(doc, results):
    return {"acc": float(results[0].strip() == doc["answer"])}
"""
QUESTIONS = [{"question": f"w{i} w5 w9", "answer": "AB"[i % 2]} for i in range(6)]


class Answering(TinyLlama):
    """A tiny model that answers by the id of the question; `answer` maps ``TASK/DOC`` to text."""

    answer: Callable[[str], str] = staticmethod(lambda sample_id: "A")

    def generate(self, loaded: LoadedModel, inputs: DecoderInputs, max_new_tokens: int) -> list[str]:
        return [self.answer(sample_id) for sample_id in inputs.sample_ids]


def answering(answer: Callable[[str], str]) -> LoadedModel:
    adapter = Answering()
    adapter.answer = answer  # type: ignore[method-assign]
    return adapter.load()


class Tasks:
    """A folder of tasks; what `override.write_override` would write, written by the test itself."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.calls = 0

    def add(self, name: str, *, rows: Sequence[dict[str, Any]] = QUESTIONS, code: str = CODE, **settings: Any) -> Task:
        """A task whose module is `code`; `settings` replace keys of its YAML (None drops one)."""
        module = f"code_{name}"
        (self.folder / f"{module}.py").write_text(code, encoding="utf-8")
        data = self.folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        values: dict[str, Any] = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": Function("doc_to_text"),
            "doc_to_target": "answer",
            "process_results": Function("process_results"),
            "generation_kwargs": {"max_new_tokens": 4},
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": 0.1},
        }
        values = {key: value for key, value in {**values, **settings}.items() if value is not None}
        text = yaml.safe_dump(_marked(values, module), sort_keys=False)
        (self.folder / f"{name}.yaml").write_text(text.replace("'!function ", "!function ").replace("!!'", ""))
        return Task(id=name, evaluator="lmms", metric="acc")

    def group(self, name: str, members: Sequence[str]) -> Task:
        values = {
            "group": name,
            "task": list(members),
            "aggregate_metric_list": [{"metric": "acc", "aggregation": "mean", "weight_by_size": False}],
        }
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
        return Task(id=name, evaluator="lmms", metric="acc")

    def lm(self, loaded: LoadedModel, host: Host, **settings: Any) -> Any:
        return make_lm(loaded, host=host.home, **settings)

    def host(self) -> Host:
        self.calls += 1
        return Host(self.folder.parent / f"scratch{self.calls}")

    def run(self, loaded: LoadedModel, task: Task, **settings: Any) -> Outcome:
        host = self.host()
        return run_task(self.lm(loaded, host, **settings), task, host.folder, host)


class Function(str):
    """A `!function` entry: a name in the task's own module."""


def _marked(value: Any, module: str) -> Any:
    if isinstance(value, Function):
        return f"!function {module}.{value}!!"
    if isinstance(value, dict):
        return {key: _marked(item, module) for key, item in value.items()}
    if isinstance(value, list):
        return [_marked(item, module) for item in value]
    return value


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tasks:
    """Tasks that are run as they stand, offline."""
    made = Tasks(tmp_path / "given")

    def copied(task: Task, folder: Path) -> str:
        shutil.copytree(made.folder, folder)
        return task.source

    monkeypatch.setattr("prunebench_lmms_eval.override.write_override", copied)
    monkeypatch.setattr("prunebench_lmms_eval.override.media_home", lambda task, folder: {})
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return made


def scores(outcome: Outcome, task: str, metric: str = "acc") -> list[float]:
    return [row[metric] for row in outcome.samples[task]]


def answers(outcome: Outcome, task: str) -> list[str]:
    return [row["resps"][0][0] for row in outcome.samples[task]]
