"""YAML files that people write: read in one place, and what is wrong with one is said in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from prunebench.errors import PruneBenchError, UsageError

__all__ = ["read_mapping", "shipped_dir", "yaml_files"]


def shipped_dir(in_wheel: str, in_repository: str) -> Path:
    """A folder of files that ship: inside the installed package, or the repository's in an editable install."""
    package = Path(__file__).parent
    inside = package / in_wheel
    return inside if inside.is_dir() else package.parent / in_repository


def yaml_files(folder: Path) -> list[Path]:
    """The YAML files of a folder, in the order of their names."""
    return sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])


def read_mapping(
    path: Path, must: str, what: str = "", error: type[PruneBenchError] = UsageError, *, empty: bool = False
) -> dict[Any, Any]:
    """The keys and values of a YAML file.

    Args:
        path: the file.
        must: what it has to hold, for the error of a file that holds no keys.
        what: what the file is, in front of its path.
        error: what is raised.
        empty: take a file without anything in it for one without keys.

    Raises:
        PruneBenchError: `error`, where the file cannot be read, is not YAML, or holds no keys but something else.
    """
    name = f"{what} {path}" if what else str(path)
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"cannot read {name}: {problem}") from problem
    except yaml.YAMLError as problem:
        raise error(f"{name} is not YAML: {' '.join(str(problem).split())}") from problem
    if values is None and empty:
        return {}
    if not isinstance(values, dict):
        raise error(f"{name} must hold {must}")
    return values
