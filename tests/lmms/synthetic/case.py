"""What the tests know about one task of lmms-eval: a few documents, their answers, and what must come out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from prunebench.suites import Task, builtin_suites_dir, load_suite, suite_files

__all__ = ["LETTERS", "Case", "Document", "Written", "share", "shipped", "write"]

LETTERS = "ABCDE"


@dataclass(frozen=True)
class Document:
    """One row of a data set with what a model may say to it.

    Attributes:
        fields: the columns that the task's code reads.
        right: an answer that its rules take for right.
        wrong: one that they can read, and take for wrong.
        draws: what its rules draw from where they can read nothing; empty: such an answer is wrong.
        target: the one that such a draw has to hit.
        unread: what an answer that cannot be read scores where nothing is drawn: a few rules take it for a no.
        option: its number, where options are compared by likelihood: what a result shows as the answer.
    """

    fields: dict[str, Any]
    right: str
    wrong: str
    draws: tuple[str, ...] = ()
    target: str = ""
    unread: float = 0.0
    option: int | None = None

    @property
    def shown(self) -> str:
        """The right answer as a result shows it."""
        return self.right if self.option is None else str(self.option)


def share(right: Sequence[float]) -> float:
    """The mean: what most metrics are, but for their scale."""
    return sum(right) / len(right)


@dataclass(frozen=True)
class Case:
    """One task.

    Attributes:
        task: its name in lmms-eval, and in a suite.
        metric: its name without the filter.
        documents: makes the documents, and media files in the folder that it is given.
        split: of the task, where the documents go.
        filter: which post-processing the metric is read after.
        scale: full marks of the metric.
        score: for each document 1 where its answer is right, or 0 → what lmms-eval must report.
        full: what it must report where every answer is right; below `scale` where the documents are too few for that.
        media: where below the task's media folder the files go, or None where there are none.
        form: of the file: parquet, jsonl or csv.
        modality: image, video, audio or text.
        garbage: an answer that says nothing; None where none is beyond reading: a judge is asked, words are counted,
            or options are compared by likelihood.
        judge: who is asked about an answer that the rules cannot read, where no suite that ships says it.
        options: how per-question scores are read, where no suite that ships says it.
        asked: documents that the metric is about; None: all.
        units: documents that are judged together; empty: each alone.
        paired: False where the metric is no mean over these documents.
        higher_is_better: or lower.
        extra: further splits, such as the one that examples for the prompt are taken from.
    """

    task: str
    metric: str
    documents: Callable[[Path], list[Document]]
    split: str = "test"
    filter: str = "none"
    scale: float = 1.0
    score: Callable[[Sequence[float]], float] | None = None
    full: float | None = None
    media: str | None = None
    form: str = "jsonl"
    modality: str = "image"
    garbage: str | None = "###"
    judge: str = "none"
    options: dict[str, Any] = field(default_factory=dict)
    asked: Sequence[int] | None = None
    units: Sequence[Sequence[int]] = ()
    paired: bool = True
    higher_is_better: bool = True
    extra: dict[str, Callable[[], list[dict[str, Any]]]] = field(default_factory=dict)

    def expected(self, right: Sequence[float]) -> float:
        """The metric's value for documents answered right (1) and wrong (0)."""
        return self.score(right) if self.score else self.scale * share(right)

    @property
    def full_marks(self) -> float:
        return self.scale if self.full is None else self.full


@dataclass(frozen=True)
class Written:
    """A case on disk: `data` is what `Task.data` says."""

    case: Case
    documents: list[Document]
    data: dict[str, str]

    @property
    def questions(self) -> list[tuple[int, ...]]:
        """Documents of each question that is scored."""
        case = self.case
        return [tuple(unit) for unit in case.units] or [(i,) for i in case.asked or range(len(self.documents))]

    def task(self, **changes: Any) -> Task:
        """The entry of the suites that ship, or one made from the case where none has it, with this data."""
        case = self.case
        fields = {
            "id": case.task, "evaluator": "lmms", "metric": case.metric, "filter": case.filter, "scale": case.scale,
            "higher_is_better": case.higher_is_better, "modality": case.modality, "judge": case.judge,
            "options": case.options,
        }  # fmt: skip
        entry = shipped().get(case.task) or Task(**fields)
        return Task.model_validate({**entry.model_dump(), "data": self.data, **changes})


@cache
def shipped() -> dict[str, Task]:
    """What the suites that ship say about each task of lmms-eval."""
    suites = [load_suite(path) for path in suite_files(builtin_suites_dir())]
    return {task.source: task for suite in suites for task in suite.tasks if task.evaluator == "lmms"}


def write(case: Case, folder: Path) -> Written:
    """Make the documents of `case` and its files below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    media = folder / "media"
    documents = case.documents(media / (case.media or ""))
    data = {case.split: _file(folder / f"{case.split}.{case.form}", [document.fields for document in documents])}
    for split, rows in case.extra.items():
        data[split] = _file(folder / f"{split}.{case.form}", rows())
    if case.media is not None:
        data["media"] = str(media)
    return Written(case, documents, data)


def _file(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)
    from datasets import Dataset  # knows how to put images into a table

    table = Dataset.from_list(rows)
    table.to_parquet(str(path)) if path.suffix == ".parquet" else table.to_csv(str(path))
    return str(path)
