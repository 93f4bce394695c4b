"""PruneBench: which layers can a large vision-language model lose, by which method, and what does that cost?

Names are imported on first use, so that ``import prunebench`` and the command line's help load neither torch nor
transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from prunebench.hookspecs import hookimpl

if TYPE_CHECKING:
    from prunebench.adapter import DecoderInputs, LoadedModel, LoadOptions, ModelAdapter
    from prunebench.budget import Budget
    from prunebench.calibration.samples import Sample
    from prunebench.calibration.trace import Trace
    from prunebench.config import Spec
    from prunebench.dataset import Dataset
    from prunebench.errors import PruneBenchError
    from prunebench.evaluator import Evaluator, TaskResult
    from prunebench.executor import Executor
    from prunebench.exporting import export
    from prunebench.loading import load
    from prunebench.model_info import ModelInfo
    from prunebench.plan import Plan, ScoreTable
    from prunebench.results import load_results
    from prunebench.runner import run
    from prunebench.store import Record, load_records
    from prunebench.strategy import PlanContext, ScoreStrategy, Strategy
    from prunebench.surgery import prune, pruned

_HOMES = {
    "Budget": "budget",
    "Dataset": "dataset",
    "DecoderInputs": "adapter",
    "Evaluator": "evaluator",
    "Executor": "executor",
    "LoadOptions": "adapter",
    "LoadedModel": "adapter",
    "ModelAdapter": "adapter",
    "ModelInfo": "model_info",
    "Plan": "plan",
    "PlanContext": "strategy",
    "PruneBenchError": "errors",
    "Record": "store",
    "Sample": "calibration.samples",
    "ScoreStrategy": "strategy",
    "ScoreTable": "plan",
    "Spec": "config",
    "Strategy": "strategy",
    "TaskResult": "evaluator",
    "Trace": "calibration.trace",
    "export": "exporting",
    "load": "loading",
    "load_records": "store",
    "load_results": "results",
    "prune": "surgery",
    "pruned": "surgery",
    "run": "runner",
}

__all__ = [
    "Budget",
    "Dataset",
    "DecoderInputs",
    "Evaluator",
    "Executor",
    "LoadOptions",
    "LoadedModel",
    "ModelAdapter",
    "ModelInfo",
    "Plan",
    "PlanContext",
    "PruneBenchError",
    "Record",
    "Sample",
    "ScoreStrategy",
    "ScoreTable",
    "Spec",
    "Strategy",
    "TaskResult",
    "Trace",
    "export",
    "hookimpl",
    "load",
    "load_records",
    "load_results",
    "prune",
    "pruned",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'prunebench' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"prunebench.{_HOMES[name]}"), name)
    globals()[name] = value  # also keeps the name from being taken by the submodule of the same name
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
