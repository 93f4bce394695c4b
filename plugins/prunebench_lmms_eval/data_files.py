"""From a split and a path of the user's own to what `datasets.load_dataset` opens without a network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from prunebench.errors import EvaluationError

__all__ = ["BUILDERS", "split_files"]

BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".arrow": "arrow"}
"""File suffix → builder of `datasets`."""

_SHARD = re.compile(r"^(?P<split>.+?)-\d{5}-of-\d{5}(-[0-9a-f]+)?$")
_USUAL_SPLITS = frozenset({"train", "test", "val", "valid", "validation", "dev", "testmini", "eval"})


def split_files(task: str, split: str, path: Path, dataset_name: str | None = None) -> tuple[str, list[Path]]:
    """The builder and the files that hold `split`.

    Args:
        task: for the messages.
        split: as the task calls it.
        path: a file; or a folder: of `Dataset.save_to_disk` or `DatasetDict.save_to_disk`, a copy (or cache folder) of
            a Hub dataset, or any folder in which the files of a split are called `test.parquet`,
            `test-00000-of-00003.parquet` or `test/*.parquet`. A folder with files of one unnamed split is that split.
        dataset_name: the configuration (a subset of the benchmark) that the task asks for; the folder of that name is
            looked into first.

    Raises:
        EvaluationError: nothing there that can be read, or only other splits; says what there is.
    """
    if path.is_file():
        if path.suffix.lower() not in BUILDERS:
            kinds = ", ".join(BUILDERS)
            raise EvaluationError(f"task {task!r}: cannot read {path}: data files end with {kinds}")
        return BUILDERS[path.suffix.lower()], [path]
    if not path.is_dir():
        raise EvaluationError(f"task {task!r}: no such file or folder for split {split!r}: {path}")
    path = _snapshot(path)
    saved = _saved_to_disk(task, split, path)
    if saved:
        return "arrow", saved
    described = _described(path, split, dataset_name)
    if described:
        return _one_builder(task, path, described)
    seen: set[str] = set()
    for folder in _places(path, split, dataset_name):
        files = _data_files(folder, deep=folder.name == split)
        if not files:
            continue
        if folder.name == split:
            return _one_builder(task, folder, files)
        named = {file: _split_of(file) for file in files}
        mine = [file for file, name in named.items() if name == split]
        if mine:
            return _one_builder(task, folder, mine)
        others = {name for name in named.values() if name is not None}
        if not others:
            return _one_builder(task, folder, files)
        seen |= others
    if seen:
        raise EvaluationError(f"task {task!r}: {path} holds no split {split!r}, but {', '.join(sorted(seen))}")
    inside = sorted(child.name for child in path.iterdir())[:5]
    said = f"it holds {', '.join(inside)}" if inside else "it is empty"
    raise EvaluationError(f"task {task!r}: no {', '.join(BUILDERS)} file for split {split!r} in {path}: {said}")


def _snapshot(path: Path) -> Path:
    """The files inside a folder of the Hub's cache (`datasets--owner--name`); other folders as they are."""
    snapshots = path / "snapshots"
    if not snapshots.is_dir():
        return path
    main = path / "refs" / "main"
    if main.is_file() and (snapshots / main.read_text(encoding="utf-8").strip()).is_dir():
        return snapshots / main.read_text(encoding="utf-8").strip()
    revisions = sorted(child for child in snapshots.iterdir() if child.is_dir())
    return revisions[-1] if revisions else path


def _saved_to_disk(task: str, split: str, path: Path) -> list[Path]:
    """The Arrow files of a folder that `save_to_disk` wrote; none where it did not."""
    listing = path / "dataset_dict.json"
    if listing.is_file():
        splits = [str(name) for name in _json(task, listing).get("splits", [])]
        if split not in splits:
            raise EvaluationError(f"task {task!r}: {path} holds no split {split!r}, but {', '.join(splits)}")
        path = path / split
    state = path / "state.json"
    if not state.is_file():
        return []
    files = [path / str(one["filename"]) for one in _json(task, state).get("_data_files", [])]
    lost = [file for file in files if not file.is_file()]
    if lost or not files:
        raise EvaluationError(f"task {task!r}: {path} is not whole: {lost[0] if lost else 'it'} holds no data")
    return files


def _json(task: str, path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise EvaluationError(f"task {task!r}: cannot read {path}: {error}") from error


def _described(path: Path, split: str, dataset_name: str | None) -> list[Path]:
    """What the dataset card's `configs` names for the split; none where there is no card or it names no such split."""
    card = path / "README.md"
    if not card.is_file():
        return []
    parts = card.read_text(encoding="utf-8", errors="replace").split("---\n")
    try:
        said = yaml.safe_load(parts[1]) if len(parts) > 2 else None
    except yaml.YAMLError:
        return []
    configs = said.get("configs") if isinstance(said, dict) else None
    for config in configs if isinstance(configs, list) else ():
        names = (dataset_name,) if dataset_name else ("default", config.get("config_name"))
        listed = config.get("data_files")
        if config.get("config_name") not in names or not isinstance(listed, list):
            continue
        for one in listed:
            if isinstance(one, dict) and one.get("split") == split:
                patterns = one.get("path")
                patterns = [patterns] if isinstance(patterns, str) else patterns or []
                return sorted({file for pattern in patterns for file in path.glob(str(pattern)) if file.is_file()})
    return []


def _places(path: Path, split: str, dataset_name: str | None) -> Iterable[Path]:
    """Folders to look into, the likeliest first."""
    roots = [path / dataset_name, path / "data" / dataset_name] if dataset_name else []
    for root in [*roots, path, path / "data"]:
        if root.is_dir():
            if (root / split).is_dir():
                yield root / split
            yield root


def _data_files(folder: Path, deep: bool) -> list[Path]:
    found = folder.rglob("*") if deep else folder.iterdir()
    own = ("state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json")
    return sorted(file for file in found if file.suffix.lower() in BUILDERS and file.name not in own)


def _split_of(file: Path) -> str | None:
    """The split that a file's name says, or None where it says none."""
    stem = file.stem
    shard = _SHARD.match(stem)
    if shard:
        return shard["split"]
    return stem if stem in _USUAL_SPLITS else None


def _one_builder(task: str, folder: Path, files: list[Path]) -> tuple[str, list[Path]]:
    builders = {BUILDERS.get(file.suffix.lower()) for file in files}
    if len(builders) > 1 or None in builders:
        kinds = ", ".join(sorted({file.suffix for file in files}))
        raise EvaluationError(f"task {task!r}: {folder} mixes {kinds} files: name the file to read")
    return str(builders.pop()), files
