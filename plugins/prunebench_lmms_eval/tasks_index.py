"""Names, files and settings of lmms-eval's tasks, read from their YAML files without importing lmms_eval.

lmms-eval's own `TaskManager` parses every file in pure Python (10 s for its 1985 names); this reads the same files in
the same order in about a second, once per process, and executes nothing: a `!function` stays the text that names it.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml

from prunebench.errors import EvaluationError, UnknownName
from prunebench_lmms_eval.compat import not_installed

__all__ = [
    "Entry",
    "Function",
    "aggregated_metrics",
    "eval_split",
    "filter_names",
    "find",
    "index",
    "leaves",
    "lmms_eval_folder",
    "metric_keys",
    "nearest",
    "own_tasks_folder",
    "read_config",
]

_DEFAULT_METRICS = {
    "loglikelihood": ("perplexity", "acc"),
    "multiple_choice": ("acc", "acc_norm"),
    "generate_until": ("exact_match",),
    "generate_until_multi_round": ("exact_match",),
    "generate_until_agentic": ("exact_match",),
}
"""What a task without `metric_list` is scored by (DEFAULT_METRIC_REGISTRY of lmms_eval/api/registry.py, 0.7.3)."""


class Function(str):
    """The text of a `!function module.name` in a task's YAML."""

    __slots__ = ()


@dataclass(frozen=True)
class Entry:
    """One name of lmms-eval.

    Attributes:
        name: as the user writes it.
        path: its YAML file (that of the outer group for a nested one); None for a tag.
        config: its settings with all `include` files merged in; `!function` values are `Function` text.
        kind: ``task``, ``group`` (tasks with, often, a score of their own) or ``tag`` (a mere list of tasks).
        members: names of a group's or a tag's direct members.
    """

    name: str
    path: Path | None
    config: dict[str, Any] = field(hash=False)
    kind: str
    members: tuple[str, ...] = ()


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML that neither imports nor refuses lmms-eval's own tags."""


def _text(loader: Any, node: yaml.Node) -> Function:
    return Function(node.value if isinstance(node, yaml.ScalarNode) else "")


def _any_tag(loader: Any, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return node.value
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("!function", _text)
_Loader.add_multi_constructor("", _any_tag)


def lmms_eval_folder() -> Path:
    """Where lmms-eval is installed; it is not imported.

    Raises:
        MissingExtra: it is not installed.
    """
    spec = importlib.util.find_spec("lmms_eval")
    if spec is None or not spec.submodule_search_locations:
        raise not_installed()
    return Path(next(iter(spec.submodule_search_locations)))


def own_tasks_folder() -> Path:
    """The folder of the tasks that PruneBench itself adds."""
    return Path(__file__).parent / "tasks"


def read_config(path: Path) -> dict[str, Any]:
    """One YAML file with its `include` files merged beneath it, the first of several includes on top.

    Raises:
        EvaluationError: unreadable, or not a mapping.
    """
    return dict(_read(str(path)))


@cache
def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            config = yaml.load(file, Loader=_Loader)
    except (OSError, yaml.YAMLError) as error:
        raise EvaluationError(f"cannot read the task file {path}: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise EvaluationError(f"the task file {path} holds no settings")
    includes = config.pop("include", None)
    if includes is None:
        return config
    merged: dict[str, Any] = {}
    for name in reversed([includes] if isinstance(includes, str) else includes):
        # As lmms-eval does; but a relative name never means the current folder here.
        merged.update(_read(name if os.path.isabs(name) else os.path.join(os.path.dirname(path), name)))
    merged.update(config)
    return merged


def _scan(folder: Path) -> dict[str, Entry]:
    """The names in one folder, in the order and with the precedence of TaskManager._get_task_and_group."""
    found: dict[str, Entry] = {}
    tags: dict[str, list[str]] = {}
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in ("__pycache__", ".ipynb_checkpoints")]
        for file in files:
            if not file.endswith(".yaml"):
                continue
            path = Path(root, file)
            try:
                config = _read(str(path))
            except EvaluationError:
                continue  # data files of a task that happen to be YAML
            task = config.get("task")
            if isinstance(task, list) and isinstance(config.get("group"), str):
                name = config["group"]
                tags.pop(name, None)
                found[name] = Entry(name, path, config, "group", tuple(_member_names(task)))
            elif isinstance(task, str):
                tags.pop(task, None)
                found[task] = Entry(task, path, config, "task")
                for key in () if "class" in config else ("tag", "group"):
                    listed = config.get(key) or ()
                    for tag in [listed] if isinstance(listed, str) else listed:
                        if tag in found:
                            break
                        tags.setdefault(tag, []).append(task)
    for tag, members in tags.items():
        found[tag] = Entry(tag, None, {}, "tag", tuple(members))
    return found


def _member_names(task: Iterable[Any]) -> list[str]:
    """Names of the members of a group, written as names or as nested `{group: name, task: [...]}`."""
    return [str(member.get("group", member.get("task")) if isinstance(member, dict) else member) for member in task]


def index(*extra: Path) -> dict[str, Entry]:
    """Every name → entry: lmms-eval's own tasks, PruneBench's, then those in `extra` folders; the first one wins.

    Raises:
        MissingExtra: lmms-eval is not installed.
    """
    return _index(str(lmms_eval_folder() / "tasks"), str(own_tasks_folder()), *map(str, extra))


@lru_cache(maxsize=8)
def _index(*folders: str) -> dict[str, Entry]:
    names: dict[str, Entry] = {}
    for folder in folders:
        names = {**_scan(Path(folder)), **names}
    return names


def nearest(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """The `n` names that are most like `name`; those that contain it come first."""
    known = list(known)
    low = name.lower()
    inside = sorted((k for k in known if low and low in k.lower()), key=lambda k: (len(k), k))
    like = difflib.get_close_matches(low, known, n=n, cutoff=0.4)
    return list(dict.fromkeys([*like[:1], *inside, *like]))[:n]


def find(name: str, *extra: Path) -> Entry:
    """The task, group or tag called `name`.

    Args:
        extra: further folders with task YAMLs.

    Raises:
        MissingExtra: lmms-eval is not installed.
        UnknownName: no such name; says the nearest three.
    """
    names = index(*extra)
    if name not in names:
        near = nearest(name, names)
        error = UnknownName("lmms-eval task", name, near)
        error.args = (f"unknown lmms-eval task {name!r}; the nearest: {', '.join(near) or 'none'}",)
        raise error
    return names[name]


def leaves(entry: Entry, *extra: Path) -> list[Entry]:
    """The tasks that really run for `entry`: itself, or what its groups and tags hold, each name once, in order.

    Raises:
        UnknownName: a group names a task that does not exist.
        EvaluationError: a group changes settings of its members, which is not supported.
    """
    if entry.kind == "task":
        return [entry]
    found: dict[str, Entry] = {}
    for member in _members(entry, extra):
        for leaf in leaves(member, *extra):
            found.setdefault(leaf.name, leaf)
    return list(found.values())


def _members(entry: Entry, extra: tuple[Path, ...]) -> Iterable[Entry]:
    if entry.kind == "tag":
        yield from (find(name, *extra) for name in entry.members)
        return
    for member in entry.config["task"]:
        if isinstance(member, str):
            yield find(member, *extra)
        elif isinstance(member, dict) and isinstance(member.get("task"), list):
            name = str(member.get("group", f"{entry.name}_part"))
            yield Entry(name, entry.path, dict(member), "group", tuple(_member_names(member["task"])))
        else:  # nobody writes it so in lmms-eval 0.7.3
            raise EvaluationError(f"the group {entry.name!r} changes its member {member!r}: run its tasks one by one")


def filter_names(config: dict[str, Any]) -> list[str]:
    """Names of the answer filters of a task; ``none`` where it has none of its own."""
    listed = config.get("filter_list")
    return [str(one["name"]) for one in listed] if isinstance(listed, list) and listed else ["none"]


def aggregated_metrics(entry: Entry) -> list[dict[str, Any]]:
    """How a group makes its score of its members': `[{metric, weight_by_size, aggregation}]`; empty where it has none.

    `aggregation` is ``mean`` or the `Function` that does it.
    """
    listed = entry.config.get("aggregate_metric_list") or []
    listed = [listed] if isinstance(listed, dict) else listed
    return [{"aggregation": "mean", "weight_by_size": False, **one} for one in listed]


def metric_keys(entry: Entry, *extra: Path) -> list[str]:
    """The keys ``metric,filter`` under which lmms-eval reports scores of `entry`; none for a tag.

    A group reports a member's key wherever the name in its `aggregate_metric_list` is part of it: lmms-eval 0.7.3 does
    not compare filters (consolidate_group_results in evaluator_utils.py).
    """
    if entry.kind == "task":
        listed = entry.config.get("metric_list")
        if listed is None:
            metrics = list(_DEFAULT_METRICS.get(str(entry.config.get("output_type", "generate_until")), ()))
        else:
            metrics = [str(one["metric"]).rpartition(".")[2] for one in listed if one and "metric" in one]
        return [f"{metric},{name}" for metric in metrics for name in filter_names(entry.config)]
    if entry.kind == "tag":
        return []
    wanted = [str(one["metric"]) for one in aggregated_metrics(entry)]
    keys = dict.fromkeys(key for leaf in leaves(entry, *extra) for key in metric_keys(leaf))
    return [key for key in keys if any(metric in key for metric in wanted)]


def eval_split(config: dict[str, Any]) -> str | None:
    """The split that a task asks its questions from."""
    return config.get("test_split") or config.get("validation_split")
