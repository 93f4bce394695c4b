"""What can be said about a task before anything is loaded: wrong names, wrong keys, data that is not there."""

from __future__ import annotations

import hashlib
from pathlib import Path

from prunebench.environment import package_version
from prunebench.errors import EvaluationError, UnknownName
from prunebench.media.files import file_digest
from prunebench.suites import Task
from prunebench_lmms_eval.override import member_data, overridden
from prunebench_lmms_eval.questions_export import asks_own
from prunebench_lmms_eval.rules import read_rules
from prunebench_lmms_eval.tasks_index import (
    Entry,
    aggregated_metrics,
    find,
    leaves,
    lmms_eval_folder,
    metric_keys,
    own_tasks_folder,
)

__all__ = ["GENERATION", "OUTPUT_TYPES", "check", "revision"]

OUTPUT_TYPES = ("generate_until", "multiple_choice")
"""Kinds of tasks that can be asked; the others want several rounds, tools, or pictures as answers. lmms-eval 0.7.3
ships no task of the kind ``loglikelihood``, and what it calls its perplexity takes a loss for a likelihood."""

GENERATION: dict[str, tuple[type, ...]] = {
    "max_new_tokens": (int,),
    "until": (list, str),
    "do_sample": (bool,),
    "temperature": (int, float),
    "top_p": (int, float),
    "num_beams": (int,),
}
"""What `generation` of a suite may say; decoding stays greedy whatever it says of sampling and beams."""


def check(task: Task) -> None:
    """Refuse a task that cannot be right; reads YAML files and looks for data, imports nothing of lmms-eval.

    Raises:
        MissingExtra: lmms-eval is not installed.
        UnknownName: no such task, metric, filter, option, generation setting or prompt profile.
        EvaluationError: a setting of the wrong form, data that is not there, or a kind of task that cannot be asked.
    """
    entry = find(task.source)
    read_rules(task)
    asks_own(task, entry)
    members = leaves(entry)
    for member in members:
        kind = str(member.config.get("output_type", "generate_until"))
        if kind not in OUTPUT_TYPES:
            raise EvaluationError(
                f"task {task.id!r}: {member.name!r} is of the kind {kind!r}: only {', '.join(OUTPUT_TYPES)} will do"
            )
    _check_metric(task, entry)
    _check_direction(task, members)
    _check_likelihood(task, members)
    _check_generation(task, members)
    _check_profile(task, members)
    data = member_data(task, members)
    for member in members:
        overridden(task, member, data[member.name])
        media = data[member.name].get("media")
        if media is not None and not Path(media).expanduser().is_dir():
            raise EvaluationError(f"task {task.id!r}: no such folder of media: {media}")


def _check_metric(task: Task, entry: Entry) -> None:
    key = f"{task.metric},{task.filter}"
    known = metric_keys(entry)
    if "aggregate" in task.options:
        if entry.kind == "task":
            raise EvaluationError(f"task {task.id!r}: option 'aggregate' is for groups, {entry.name!r} is one task")
        if aggregated_metrics(entry):
            raise EvaluationError(f"task {task.id!r}: {entry.name!r} has a score of its own: drop option 'aggregate'")
        known = list(dict.fromkeys(one for member in leaves(entry) for one in metric_keys(member)))
    if not known:
        members = ", ".join(member.name for member in leaves(entry)[:5])
        raise EvaluationError(
            f"task {task.id!r}: the {entry.kind} {entry.name!r} has no score of its own: name one of its tasks "
            f"({members}, ...), or say `options: {{aggregate: mean}}`"
        )
    if key in known:
        return
    metrics = list(dict.fromkeys(one.rpartition(",")[0] for one in known))
    if task.metric not in metrics:
        raise UnknownName(f"metric of task {task.id!r}", task.metric, metrics)
    filters = [one.rpartition(",")[2] for one in known if one.rpartition(",")[0] == task.metric]
    raise UnknownName(f"filter of metric {task.metric!r} of task {task.id!r}", task.filter, filters)


def _check_direction(task: Task, members: list[Entry]) -> None:
    """An error rate that counts as a score would make the worst model the best. The other way round, the suite holds:
    some of lmms-eval's files say `true` of everything."""
    if not task.higher_is_better:
        return
    listed = [one for member in members for one in member.config.get("metric_list") or () if one]
    names = {str(one.get("metric")).rpartition(".")[2] for one in listed if one.get("higher_is_better") is False}
    if task.metric in names:
        raise EvaluationError(
            f"task {task.id!r}: of {task.metric!r} less is better, lmms-eval says: add `direction: lower`"
        )


def _check_likelihood(task: Task, members: list[Entry]) -> None:
    """``acc`` takes the option of the least loss per token, as lmms-eval's adapters give it.

    ``acc_norm`` divides that by the option's letters once more, so that long options win (`process_results` in
    lmms_eval/api/task.py, 0.7.3).
    """
    for member in members if task.metric == "acc_norm" else ():
        if member.config.get("output_type") == "multiple_choice" and not member.config.get("process_results"):
            raise EvaluationError(
                f"task {task.id!r}: 'acc_norm' of {member.name!r} divides losses by lengths twice: take 'acc', "
                "which lmms-eval makes of losses per token"
            )


def _check_generation(task: Task, members: list[Entry]) -> None:
    for name, value in task.generation.items():
        if name not in GENERATION:
            raise UnknownName(f"generation setting of task {task.id!r}", str(name), GENERATION)
        wrong = isinstance(value, bool) and bool not in GENERATION[name]
        if wrong or not isinstance(value, GENERATION[name]):
            kinds = " or ".join(kind.__name__ for kind in GENERATION[name])
            raise EvaluationError(f"task {task.id!r}: generation {name!r} must be {kinds}, not {value!r}")
        if name == "max_new_tokens" and value < 1:
            raise EvaluationError(f"task {task.id!r}: generation 'max_new_tokens' must be at least 1, not {value}")
    for member in members if task.generation else ():
        kind = str(member.config.get("output_type", "generate_until"))
        if kind != "generate_until":
            raise EvaluationError(f"task {task.id!r}: {member.name!r} ({kind}) generates nothing: drop `generation`")


def _check_profile(task: Task, members: list[Entry]) -> None:
    profile = task.options.get("profile", "default")
    known = {
        str(name)
        for member in members
        for key in ("lmms_eval_specific_kwargs", "model_specific_generation_kwargs", "model_specific_target_kwargs")
        for name in (member.config.get(key) or {})
    }
    if profile != "default" and profile not in known:
        raise UnknownName(f"prompt profile of task {task.id!r}", profile, known | {"default"})


def revision(task: Task) -> str:
    """What stands for the code that scores and the data of the user's own.

    lmms-eval's version; the settings of PruneBench's own tasks; and for `Task.data` a hash of every file's content, of
    media files their names and sizes only (they are large, and a changed one seldom keeps its size).

    Raises:
        MissingExtra: lmms-eval is not installed.
        EvaluationError: data that is not there.
    """
    entry = find(task.source)
    parts = [f"lmms-eval {_version()}"]
    members = leaves(entry)
    own = [member for member in members if member.path is not None and own_tasks_folder() in member.path.parents]
    if own:
        digest = hashlib.sha256()
        for file in sorted(own_tasks_folder().iterdir()):
            if file.is_file():
                digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
        parts.append(f"tasks {digest.hexdigest()[:16]}")
    if task.data:
        digest = hashlib.sha256()
        for name, data in sorted(member_data(task, members).items()):
            member = next(one for one in members if one.name == name)
            changed = overridden(task, member, data)
            files = (changed.get("dataset_kwargs") or {}).get("data_files") or {}
            for split, listed in sorted(files.items()):
                for file in [listed] if isinstance(listed, str) else listed:
                    digest.update(f"{name}\0{split}\0".encode() + bytes.fromhex(file_digest(Path(file))))
            if "media" in data:
                digest.update(_listing(Path(data["media"]).expanduser().absolute()).encode())
        parts.append(f"data {digest.hexdigest()[:16]}")
    return "; ".join(parts)


def _version() -> str:
    """lmms-eval's version as installed; of a copy without metadata, the folder's own hash is not worth its time."""
    return package_version("lmms-eval") or f"in {lmms_eval_folder().name}"


def _listing(folder: Path) -> str:
    if not folder.is_dir():
        raise EvaluationError(f"no such folder of media: {folder}")
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return "\n".join(f"{file.relative_to(folder).as_posix()}\0{file.stat().st_size}" for file in files)
