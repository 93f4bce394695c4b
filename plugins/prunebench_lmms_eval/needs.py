"""What a task of lmms-eval needs on this machine; nothing of lmms-eval is imported, nothing is downloaded."""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from prunebench.dataset import dataset_need
from prunebench.environment import package_version
from prunebench.errors import PruneBenchError, first_line
from prunebench.evaluator import Need
from prunebench.suites import Task
from prunebench_lmms_eval.compat import COMMAND
from prunebench_lmms_eval.override import member_data
from prunebench_lmms_eval.switches import hf_home, offline
from prunebench_lmms_eval.tasks_index import Entry, Function, find, leaves, lmms_eval_folder

__all__ = ["needs", "task_imports"]

OLDEST, BEFORE = (0, 7, 3), (0, 8)
"""Versions of lmms-eval whose inner behaviour is known."""

PYPI = {
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "bs4": "beautifulsoup4",
    "Bio": "biopython",
    "dateutil": "python-dateutil",
    "docx": "python-docx",
}
"""Modules whose package has another name."""


def needs(task: Task) -> list[Need]:
    """Package, packages of the task's own, its questions and its media; see `Evaluator.needs`."""
    package = _package()
    if package.status == "missing":
        return [package, *_declared(task)]
    try:
        members = leaves(find(task.source))
        data = member_data(task, members)
    except PruneBenchError as error:
        return [package, *_declared(task), Need("missing", "task", first_line(error))]
    found = [package, *_declared(task), *_imported(task, members)]
    if task.dataset is not None:
        return [*found, dataset_need(task, "lmms")]
    return [*found, *_data(task, members, data), *_media(members, data)]


def _package() -> Need:
    version = package_version("lmms-eval")
    if version is None or find_spec("lmms_eval") is None:
        return Need("missing", "lmms-eval", "not installed", COMMAND)
    number = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if not OLDEST <= number < BEFORE:
        return Need("warning", "lmms-eval", f"{version}: only 0.7.3 and later 0.7 were tried", COMMAND)
    return Need("ok", "lmms-eval", version)


def _declared(task: Task) -> Iterator[Need]:
    """The packages that the suite names."""
    lacking = [name for name in task.needs if package_version(name) is None]
    if lacking:
        yield Need("missing", "packages", f"{', '.join(lacking)} not installed", f"pip install {' '.join(lacking)}")
    elif task.needs:
        yield Need("ok", "packages", ", ".join(f"{name} {package_version(name)}" for name in task.needs))


# -- what the task's code imports --------------------------------------------------------------------------------------


def _imported(task: Task, members: list[Entry]) -> Iterator[Need]:
    lacking = sorted({PYPI.get(name, name) for name in task_imports(members) if find_spec(name) is None})
    if lacking := [name for name in lacking if name not in task.needs]:
        yield Need("missing", "imports", f"its code imports {', '.join(lacking)}", f"pip install {' '.join(lacking)}")


def task_imports(members: list[Entry]) -> set[str]:
    """Foreign top-level modules that the code of some tasks imports as soon as it is loaded; what it tries is not."""
    todo = [file for member in members for file in _code(member)]
    seen: set[Path] = set()
    found: set[str] = set()
    while todo:
        file = todo.pop()
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        for module in _imports(file):
            top = module.partition(".")[0]
            if module.startswith("lmms_eval.tasks."):
                place = lmms_eval_folder().joinpath(*module.split(".")[1:])
                todo += [place.with_suffix(".py"), place / "__init__.py"]
            elif (
                top != "lmms_eval" and top not in sys.stdlib_module_names and not (file.parent / f"{top}.py").is_file()
            ):
                found.add(top)
    return found


def _code(member: Entry) -> Iterator[Path]:
    """The files that a task's `!function` entries are in."""
    if member.path is None:
        return
    for name in _functions(member.config):
        yield member.path.parent.joinpath(*name.split(".")[:-1]).with_suffix(".py")


def _functions(value: object) -> Iterator[str]:
    if isinstance(value, Function):
        yield str(value)
    elif isinstance(value, dict):
        for one in value.values():
            yield from _functions(one)
    elif isinstance(value, list):
        for one in value:
            yield from _functions(one)


def _imports(file: Path) -> Iterator[str]:
    """Modules that a file imports at its top level, outside of any `try` or `if`."""
    try:
        body = ast.parse(file.read_bytes()).body
    except (SyntaxError, ValueError):
        return
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


# -- questions and media -----------------------------------------------------------------------------------------------


def _data(task: Task, members: list[Entry], data: dict[str, dict[str, str]]) -> Iterator[Need]:
    own = {path for name in data for key, path in data[name].items() if key != "media"}
    if own:
        lost = sorted(path for path in own if not Path(path).exists())
        detail = f"not there: {lost[0]}" if lost else f"own data, {', '.join(sorted(own)[:2])}"
        yield Need(
            "missing" if lost else "ok", "data", detail, "mind the path behind --data or data:" if lost else None
        )
        return
    said = {str(member.config["dataset_path"]) for member in members if member.config.get("dataset_path")}
    files = {name for name in said if "/" not in name or Path(name).exists()}  # a builder with files, or a folder
    if files and files == said:
        yield Need("ok", "data", "comes with the task")
        return
    lacking = sorted(name for name in said - files if not _cached(name))
    home = hf_home()
    if not lacking:
        yield Need("ok", "data", f"{', '.join(sorted(said - files))} in {home}")
        return
    names, size = ", ".join(lacking), f" ({task.disk_gb:g} GB)" if task.disk_gb is not None else ""
    by_hand = f"give --data {task.id}=PATH, or put it into {home}"
    if variable := offline():
        yield Need("missing", "data", f"{names} is not in {home}, and {variable} forbids the download", by_hand)
        return
    unset = "" if os.environ.get("HF_HOME") else "; HF_HOME says where, it is not set"
    yield Need("warning", "data", f"{names}{size} will be downloaded into {home}{unset}", f"or {by_hand}")
    yield from _disk(task, home)


def _disk(task: Task, home: Path) -> Iterator[Need]:
    place = next(folder for folder in (home.absolute(), *home.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free / 1e9
    if task.disk_gb is not None and free < task.disk_gb:
        detail = f"{free:.1f} GB free at {place}, the data take {task.disk_gb:g} GB"
        yield Need("missing", "disk", detail, "free some space, or set HF_HOME to a larger disk")
    elif task.disk_gb is not None:
        yield Need("ok", "disk", f"{free:.0f} GB free at {place}")


def _cached(name: str) -> bool:
    """Whether the cache of the Hub or of `datasets` holds something of this dataset; not whether that is all of it."""
    hub = Path(os.environ.get("HF_HUB_CACHE") or hf_home() / "hub").expanduser()
    made = Path(os.environ.get("HF_DATASETS_CACHE") or hf_home() / "datasets").expanduser()
    if any((hub / f"datasets--{name.replace('/', '--')}" / "snapshots").glob("*/*")):
        return True
    wanted = name.replace("/", "___").lower()
    return made.is_dir() and any(child.name.lower() == wanted for child in made.iterdir())


def _media(members: list[Entry], data: dict[str, dict[str, str]]) -> Iterator[Need]:
    """The folder that a task looks for its videos or sounds in; images mostly come with the questions."""
    seen: set[Path] = set()
    for member in members:
        own, kwargs = data[member.name], member.config.get("dataset_kwargs") or {}
        if "media" in own:
            folder, given = Path(own["media"]), True
        elif kwargs.get("cache_dir"):
            said = os.path.expanduser(os.path.expandvars(str(kwargs["cache_dir"]).strip()))
            folder, given = hf_home() / said, False
        else:
            continue
        if folder in seen:
            continue
        seen.add(folder)
        if folder.is_dir() and any(folder.iterdir()):
            yield Need("ok", "media", str(folder))
        elif given:
            yield Need("missing", "media", f"nothing in {folder}", "mind the folder behind media")
        elif (variable := offline()) or own:  # with one's own questions nothing is fetched
            why = f"{variable} forbids the download" if variable else "with own data nothing is downloaded"
            yield Need("missing", "media", f"nothing in {folder}; {why}", "give --data TASK:media=DIR")
        else:
            yield Need("warning", "media", f"will be downloaded and unpacked into {folder}")
