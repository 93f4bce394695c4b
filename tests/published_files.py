"""Published figures and records for tests of what is shown and refused."""

from __future__ import annotations

from pathlib import Path

from prunebench.evaluator import TaskResult
from prunebench.model_info import ModelInfo
from prunebench.store import Record
from tests.factories import make_dense, make_model, make_record, make_task

LLAVA_NEXT = "llava-hf/llama3-llava-next-8b-hf"

SMALL = """
title: A small paper
id: arXiv:0000.00000
url: https://example.org
kind: paper
models: {Small-1B: [org/small-1b]}
tables:
  - {name: T1, columns: [
      {id: look, label: Look, tasks: [look], metric: exact_match, scale: 100},
      {id: mme, label: MME, tasks: [mme], metric: mme_cognition_score, scale: 800}],
     relative: {to: dense},
     rows: [
      {model: Small-1B, method: dense, kind: dense, values: [90.0, 400]},
      {model: Small-1B, method: half, kind: layers, removed: {share: 0.5, unit: layers}, values: [45.0, null],
       relative: 50}]}
"""


def write_small(folder: Path) -> Path:
    """The small paper as a folder of one file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "small.yaml").write_text(SMALL, encoding="utf-8")
    return folder


def of_task(
    task: str, metric: str, score: float, scale: float = 1.0, half: float = 0.01, **changes: object
) -> TaskResult:
    """A task's result with an interval of ± `half` of full marks."""
    interval = {"ci_low": score - half * scale, "ci_high": score + half * scale}
    values = {
        "metric": metric,
        "score": score,
        "scale": scale,
        "chance": None,
        "majority": None,
        "ids": (),
        "scores": (),
    }
    return make_task(task, 0, **{**interval, **values, **changes})


def llava_next(factor: float = 1.0, model: ModelInfo | None = None) -> list[Record]:
    """Dense and one pruned record (16 of 32 layers, 90 % of each score) on three of the four tasks of TopoVLM."""

    def tasks(share: float) -> list[TaskResult]:
        return [
            of_task("mme", "mme_cognition_score", 376 * share, 800),
            of_task("mmmu_val", "mmmu_acc", 0.401 * share),
            of_task("mmbench_en_dev_static", "gpt_eval_score", 72 * share, 100),
        ]

    model = model or make_model(32, LLAVA_NEXT)
    dense = make_dense({}, tasks=tasks(factor), model=model)
    return [dense, make_record("topo", tuple(range(8, 24)), tasks=tasks(0.9 * factor), model=model)]
