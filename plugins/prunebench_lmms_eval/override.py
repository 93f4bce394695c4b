"""Every task runs through a YAML of ours that includes the shipped one: own data, own generation limits, own name.

Most shipped tasks say ``token: true``, which fails without a login even where the data are public; without it, a login
that is there is used all the same, so we leave it out.

`simple_evaluate(tasks=[{...}])` would lose the chat form of a task, so the change has to be a file. Our file includes
the shipped YAML by absolute path (its `!function` entries then resolve beside it) and lies in a folder that is the
whole include path, so lmms-eval need not index its other 1985 names.

`Task.data` for a single task: `{split: path}` (paths: see `data_files.split_files`), and `media`, the folder of videos,
sounds or images that stands for the task's ``$HF_HOME/<dataset_kwargs.cache_dir>``, laid out as the benchmark's own
archives unpack. For a group, the same keys hold for every member (a copy of the Hub dataset serves them all: each
member looks into the folder of its own configuration), and `member/split`, `member/media` for one member alone. Either
every member has data of one's own, or none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from prunebench.errors import EvaluationError
from prunebench.suites import Task
from prunebench_lmms_eval.data_files import split_files
from prunebench_lmms_eval.questions_export import asks_own, export_questions
from prunebench_lmms_eval.switches import hf_home, is_on
from prunebench_lmms_eval.tasks_index import Entry, eval_split, find, leaves

__all__ = ["PREFIX", "media_home", "member_data", "overridden", "run_name", "write_override"]

PREFIX = "prunebench_"
"""Starts the name of everything that we hand to lmms-eval; no shipped name does."""

_DOWNLOADS = frozenset(
    {"video", "cache_dir", "create_link", "force_download", "force_unzip", "From_YouTube", "local_files_only"}
)
"""Keys of dataset_kwargs that make lmms-eval fetch or unpack media (`download` in lmms_eval/api/task.py)."""


def run_name(name: str) -> str:
    """What lmms-eval sees for the task or member `name`: the key in its results and samples."""
    return f"{PREFIX}{name}"


def write_override(task: Task, folder: Path) -> str:
    """Write the YAML of `task` (of a group: of each of its members, too) into `folder`.

    A group without a score of its own gets one where `task.options` has `aggregate: mean` (plain mean over members) or
    `aggregate: size` (weighted by their questions).

    Returns:
        The name to run, the same for the same task always; `TaskManager(include_defaults=False, include_path=[folder])`
        knows it.

    Raises:
        UnknownName: lmms-eval has no such task.
        EvaluationError: data that cannot be used.
    """
    entry = find(task.source)
    members = leaves(entry)
    data = member_data(task, members)
    folder.mkdir(parents=True, exist_ok=True)
    if asks_own(task, entry):  # with the limit of tokens of the evaluator `local`
        assert task.dataset is not None
        parquet = export_questions(task.dataset, task.split, task.n, task.seed, task.domain, folder / "questions")
        data = {member.name: {"test": str(parquet)} for member in members}
        task = task.model_copy(update={"generation": {"max_new_tokens": task.max_new_tokens, **task.generation}})
    for member in members:
        values = {"include": str(member.path), "task": run_name(member.name)}
        _write(folder, values | overridden(task, member, data[member.name]))
    if entry.kind == "task":
        return run_name(entry.name)
    values = {"group": run_name(entry.name), "task": [run_name(member.name) for member in members]}
    if entry.kind == "group":
        values = {"include": str(entry.path)} | values
    how = task.options.get("aggregate")
    if how is not None:
        values["aggregate_metric_list"] = [
            {
                "metric": task.metric,
                "aggregation": "mean",
                "weight_by_size": how == "size",
                "filter_list": [task.filter],
            }
        ]
    _write(folder, values)
    return run_name(entry.name)


def _write(folder: Path, values: Mapping[str, Any]) -> None:
    name = values.get("group", values["task"])
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def overridden(task: Task, member: Entry, data: Mapping[str, str]) -> dict[str, Any]:
    """What our YAML says differently from the shipped one of `member`.

    Args:
        data: the member's own part of `task.data`.

    Raises:
        EvaluationError: data that cannot be used.
    """
    values: dict[str, Any] = {}
    if task.generation:
        values["generation_kwargs"] = {**(member.config.get("generation_kwargs") or {}), **task.generation}
        by_model = member.config.get("model_specific_generation_kwargs")
        if isinstance(by_model, dict):  # lmms-eval lays these over generation_kwargs: ours must come last
            values["model_specific_generation_kwargs"] = {
                model: {key: value for key, value in (said or {}).items() if key not in task.generation}
                for model, said in by_model.items()
            }
    splits = {key: Path(path) for key, path in data.items() if key != "media"}
    if splits:
        values |= _data_override(member, splits)
        return values
    said = member.config.get("dataset_kwargs") or {}
    dropped = _DOWNLOADS if "media" in data else frozenset()
    if said.get("token") is True and not is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        dropped |= {"token"}
    if any(key in said for key in dropped):
        values["dataset_kwargs"] = {key: value for key, value in said.items() if key not in dropped}
    return values


def _data_override(member: Entry, splits: Mapping[str, Path]) -> dict[str, Any]:
    config = member.config
    keys = ("test_split", "validation_split", "training_split", "fewshot_split")
    known = list(dict.fromkeys(str(config[key]) for key in keys if config.get(key)))
    for split in splits:
        if split not in known:
            raise EvaluationError(f"task {member.name!r} has no split {split!r}, but {', '.join(known)}")
    asked = eval_split(config)
    if asked is not None and asked not in splits:
        raise EvaluationError(f"task {member.name!r} takes its questions from split {asked!r}: add `{asked}: PATH`")
    files, builders = {}, {}
    for split, path in splits.items():
        path = path.expanduser().absolute()
        builders[split], found = split_files(member.name, split, path, config.get("dataset_name"))
        files[split] = [str(file) for file in found]
    if len(set(builders.values())) > 1:
        said = ", ".join(f"{split}: {builder}" for split, builder in builders.items())
        raise EvaluationError(f"task {member.name!r}: all splits must be of one kind of file, not {said}")
    return {
        "dataset_path": next(iter(builders.values())),
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: one[0] if len(one) == 1 else one for split, one in files.items()}},
    }


def member_data(task: Task, members: list[Entry]) -> dict[str, dict[str, str]]:
    """Each member's part of `task.data`: {member name: {split or ``media``: path}}.

    Raises:
        EvaluationError: a key that names no member, or data for some of the members only.
    """
    names = [member.name for member in members]
    shared = {key: path for key, path in task.data.items() if "/" not in key}
    parts = {name: dict(shared) for name in names}
    for key, path in task.data.items():
        name, slash, split = key.rpartition("/")
        if not slash:
            continue
        if name not in parts:
            known = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise EvaluationError(f"task {task.id!r}: data key {key!r} names no task of {task.source!r}: {known}")
        parts[name][split] = path
    with_data = [name for name in names if any(key != "media" for key in parts[name])]
    if with_data and len(with_data) < len(names):
        lost = next(name for name in names if name not in with_data)
        raise EvaluationError(f"task {task.id!r}: {lost!r} has no data of your own, but {with_data[0]!r} has")
    return parts


def media_home(task: Task, folder: Path) -> dict[str, str]:
    """Make the folder that stands for ``HF_HOME`` while `task` runs, with a link to the user's media where it looks.

    What the real ``HF_HOME`` holds is linked beside it, so that nothing else goes missing. The change must be in force
    before lmms-eval loads the task: its code reads the variable on import.

    Args:
        folder: will hold the links; `task.options` may name the folder under HF_HOME as `media_dir` where the task's
            YAML does not.

    Returns:
        Environment variables to set; empty where `task.data` names no media.

    Raises:
        EvaluationError: no such media folder, or a task that looks for none.
    """
    members = leaves(find(task.source))
    links: dict[str, Path] = {}
    for name, data in member_data(task, members).items():
        if "media" not in data:
            continue
        media = Path(data["media"]).expanduser().absolute()
        if not media.is_dir():
            raise EvaluationError(f"task {task.id!r}: no such folder of media: {media}")
        member = next(one for one in members if one.name == name)
        where = task.options.get("media_dir") or (member.config.get("dataset_kwargs") or {}).get("cache_dir")
        if not where:
            raise EvaluationError(
                f"task {name!r} does not say where under HF_HOME it looks for media: drop `media`, or say "
                "`options: {media_dir: NAME}`"
            )
        where = os.path.expanduser(os.path.expandvars(str(where).strip()))
        if os.path.isabs(where):
            raise EvaluationError(f"task {name!r} looks for its media in {where} itself: put them there, drop `media`")
        if links.setdefault(where, media) != media:
            raise EvaluationError(f"task {task.id!r}: two folders of media for one place, {where!r}: put them together")
    if not links:
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    for where, media in links.items():
        link = folder / where
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink():
            link.unlink()
        link.symlink_to(media, target_is_directory=True)
    real = hf_home().absolute()
    for child in real.iterdir() if real.is_dir() and real != folder.absolute() else ():
        if not os.path.lexists(folder / child.name):
            (folder / child.name).symlink_to(child, target_is_directory=child.is_dir())
    return {"HF_HOME": str(folder.absolute())}
