"""PruneBench's questions in a form that lmms-eval reads: one parquet file per task, media without loss."""

from __future__ import annotations

import atexit
import io
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from prunebench.errors import EvaluationError, MissingExtra, StoreError
from prunebench.metrics import METRICS, is_outside

if TYPE_CHECKING:
    from prunebench.calibration.samples import Sample
    from prunebench.evaluator import TaskResult
    from prunebench.suites import Suite, Task
    from prunebench_lmms_eval.tasks_index import Entry

__all__ = [
    "as_local",
    "asks_own",
    "export_questions",
    "export_suite",
    "questions_of",
    "task_yaml",
    "write_questions",
]

SHARED = ("_questions", "questions.py")
"""What every exported task needs beside it."""


def export_questions(dataset: str, split: str, n: int, seed: int, domain: str | None, folder: Path) -> Path:
    """Write the questions of a registered dataset as `folder`/questions.parquet.

    Images and frames are PNG, sounds are float32 with their sampling rate; video and sound *files* stay where they are
    and are named by their paths. Drawn once per process, however many models are asked.

    Args:
        dataset: as in a suite: ``name`` or ``name:reference``.

    Raises:
        UnknownName, BadParameter: no such dataset.
        EvaluationError: it has no such questions, or one without an answer.
        MissingExtra: pyarrow is not installed.
        MediaError: an image file that cannot be read.
    """
    drawn = _drawn(dataset, split, n, seed, domain).path
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "questions.parquet"
    try:
        shutil.copyfile(drawn, target)
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error.strerror or error}") from error
    return target


class _Drawn(NamedTuple):
    """A file of this process's own, its questions without their media, and what they are worth to one who guesses."""

    path: Path
    questions: list[Sample]
    chance: float | None
    majority: float


@lru_cache(maxsize=64)
def _drawn(dataset: str, split: str, n: int, seed: int, domain: str | None) -> _Drawn:
    from prunebench.evaluate_local import chance_level, majority_level

    path = _folder() / f"{_drawn.cache_info().misses}.parquet"
    samples = questions_of(dataset, split, n, seed, domain)
    write_questions(samples, path)
    questions = [replace(sample, images=(), video=None, audio=None) for sample in samples]
    return _Drawn(path, questions, chance_level(samples), majority_level(samples))


def as_local(task: Task, result: TaskResult) -> TaskResult:
    """The outcome of PruneBench's own questions with all that the evaluator `local` says of them.

    That is their ids, the scores of a uniform guess and of the commonest answers, and how many answers are none of the
    options. Of tasks without `dataset` the outcome comes back as it is.
    """
    if task.dataset is None:
        return result
    drawn = _drawn(task.dataset, task.split, task.n, task.seed, task.domain)
    asked = drawn.questions[: result.n]
    return result.model_copy(
        update={
            "ids": tuple(sample.id for sample in asked),
            "chance": drawn.chance if task.chance is None else task.chance,
            "majority": drawn.majority if task.majority is None else task.majority,
            "unparsable": sum(
                is_outside(task.metric, answer, sample) for answer, sample in zip(result.answers, asked, strict=True)
            ),
        }
    )


@lru_cache(maxsize=1)
def _folder() -> Path:
    folder = tempfile.mkdtemp(prefix="prunebench-questions-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def asks_own(task: Task, entry: Entry) -> bool:
    """Whether a suite's task asks questions of PruneBench's, which are written when it runs.

    Raises:
        UnknownName, BadParameter: no such dataset, or no such domain in it.
        EvaluationError: a dataset for a benchmark that has questions of its own, or the other way round.
    """
    from prunebench.dataset import check_domain, open_dataset
    from prunebench.plugins import get_plugins
    from prunebench_lmms_eval.tasks_index import leaves

    ours = any(one.config.get("doc_to_messages") == "questions.doc_to_messages" for one in leaves(entry))
    if task.dataset is None:
        if ours and not task.data:
            raise EvaluationError(f"task {task.id!r}: {entry.name!r} has no questions: say `dataset:` and `domain:`")
        return False
    if task.data:
        raise EvaluationError(f"task {task.id!r}: its questions are of `dataset` or of `data`: drop one of them")
    if not ours or entry.kind != "task":
        raise EvaluationError(
            f"task {task.id!r}: {entry.name!r} has questions of its own: drop `dataset`, or say "
            "`task: prunebench_questions`"
        )
    check_domain(open_dataset(get_plugins(), task.dataset), task.dataset, task.domain)
    return True


def questions_of(dataset: str, split: str, n: int, seed: int, domain: str | None) -> list[Sample]:
    """The samples, each with an expected answer; errors as in `export_questions`."""
    from prunebench.dataset import answered, open_dataset
    from prunebench.plugins import get_plugins

    return answered(open_dataset(get_plugins(), dataset), dataset, split, n, seed=seed, domain=domain)


def write_questions(samples: Sequence[Sample], path: Path) -> None:
    """One row per sample; the columns are those that `tasks/questions.py` reads."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtra("pyarrow", "lmms", "writing questions for lmms-eval") from error
    # Lists of bytes stand in a struct called `bytes`: lmms-eval knows such columns as media and keeps them out of logs.
    pictures = pa.struct([("bytes", pa.list_(pa.binary()))])
    schema = pa.schema(
        [
            *((name, pa.string()) for name in ("id", "instruction", "answer", "domain", "kind")),
            ("options", pa.list_(pa.string())),
            ("layout", pa.string()),
            ("images", pictures),
            ("frames", pictures),
            ("waveform", pa.binary()),
            ("sampling_rate", pa.int64()),
            ("video_path", pa.string()),
            ("audio_path", pa.string()),
        ]
    )
    try:
        pq.write_table(pa.Table.from_pylist([_row(sample) for sample in samples], schema=schema), path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def _row(sample: Sample) -> dict[str, Any]:
    from prunebench.media import VideoFile, images_of
    from prunebench.media.files import MediaFile

    row: dict[str, Any] = {
        "id": sample.id,
        "instruction": sample.instruction,
        "answer": sample.answer,
        "domain": sample.domain,
        "kind": sample.kind,
        "options": list(sample.options),
        "layout": json.dumps(list(sample.layout)),
        "images": {"bytes": [_png(image) for image in images_of(sample)]},
        "frames": {"bytes": []},
        "waveform": None,
        "sampling_rate": None,
        "video_path": None,
        "audio_path": None,
    }
    if isinstance(sample.video, VideoFile):
        row["video_path"] = str(sample.video.path.absolute())
    elif sample.video is not None:
        from PIL import Image

        row["frames"] = {"bytes": [_png(Image.fromarray(frame)) for frame in np.asarray(sample.video)]}
    if isinstance(sample.audio, MediaFile):
        row["audio_path"] = str(sample.audio.path.absolute())
    elif sample.audio is not None:
        row["waveform"] = np.ascontiguousarray(sample.audio, dtype="<f4").tobytes()
        row["sampling_rate"] = sample.sampling_rate
    return row


def _png(image: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()


def task_yaml(name: str, task: Task, parquet: Path) -> str:
    """The file of one exported task for plain lmms-eval."""
    generation = {"max_new_tokens": task.max_new_tokens, "do_sample": False, "temperature": 0, "until": []}
    return (
        f"# {task.dataset} {task.split}, domain {task.domain}, seed {task.seed}: written by `prunebench export-tasks`\n"
        f"include: _questions\ntask: {name}\n"
        f"dataset_kwargs: {json.dumps({'data_files': {'test': str(parquet)}})}\n"
        f"generation_kwargs: {json.dumps({**generation, **task.generation})}\n"
        "metric_list:\n"
        f"  - {{metric: {task.metric}, aggregation: mean, higher_is_better: {str(task.higher_is_better).lower()}}}\n"
    )


def export_suite(suite: Suite, folder: Path) -> list[str]:
    """Write a suite of PruneBench's own questions as lmms-eval tasks; returns their names, the group's first.

    Args:
        folder: for ``--include_path``. Its parquet files are named by absolute paths: write anew where it moves.

    Raises:
        EvaluationError: a task of the suite has no dataset of PruneBench, or another metric than its own.
        StoreError: the folder cannot be written, or it holds other things.
    """
    for task in suite.tasks:
        if task.dataset is None or task.metric not in METRICS:
            raise EvaluationError(
                f"task {task.id!r} of suite {suite.name!r} does not ask PruneBench's own questions by a metric of its "
                f"own ({', '.join(METRICS)}): lmms-eval has it already, or cannot score it"
            )
    folder = Path(os.path.abspath(folder))
    if folder.exists() and any(folder.iterdir()) and not (folder / SHARED[0]).is_file():
        raise StoreError(f"{folder} holds other things: name an absent or empty folder")
    group = _word(suite.name)
    names = [f"{group}_{_word(task.id)}" for task in suite.tasks]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in SHARED:
            shutil.copyfile(Path(__file__).parent / "tasks" / file, folder / file)
        for name, task in zip(names, suite.tasks, strict=True):
            assert task.dataset is not None
            parquet = folder / f"{name}.parquet"
            write_questions(questions_of(task.dataset, task.split, task.count, task.seed, task.domain), parquet)
            (folder / f"{name}.yaml").write_text(task_yaml(name, task, parquet), encoding="utf-8")
        (folder / f"{group}.yaml").write_text(_group_yaml(group, names, suite), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write {folder}: {error.strerror or error}") from error
    return [group, *names]


def _group_yaml(group: str, names: Sequence[str], suite: Suite) -> str:
    metrics = "".join(
        f"  - {{metric: {metric}, aggregation: mean, weight_by_size: true}}\n"
        for metric in dict.fromkeys(task.metric for task in suite.tasks)
    )
    return f"group: {group}\ntask: [{', '.join(names)}]\naggregate_metric_list:\n{metrics}"


def _word(name: str) -> str:
    """A name as lmms-eval's command line takes it: letters, digits and underscores."""
    return "".join(letter if letter.isalnum() else "_" for letter in name)
