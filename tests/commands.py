"""The command line in this process, and plugin files made on the spot."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from prunebench.cli import cli
from prunebench.store import Record, load_records

TINY = ("--model", "testbed", "--limit", "2", "--n-calibration", "40", "--no-latency")
"""A run of seconds: two questions per task, few calibration samples, no timing."""


def invoke(*arguments: object) -> Result:
    """`prunebench ARGUMENTS`; no exception may get past the command line."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], prog_name="prunebench")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError(f"an exception got out: {result.exception!r}") from result.exception
    assert "Traceback" not in result.output
    return result


def error_line(result: Result, code: int = 2) -> str:
    """The one line that says what was wrong."""
    assert result.exit_code == code, result.output
    lines = [line for line in result.stderr.splitlines() if line.lower().startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert "unexpected" not in lines[0], lines[0]
    return lines[0]


def write_plugin(folder: Path, code: str, name: str = "my_method") -> Path:
    """A plugin file with the imports that every example needs."""
    head = """
    from __future__ import annotations
    from dataclasses import dataclass
    import numpy as np
    from prunebench import Evaluator, Plan, ScoreStrategy, ScoreTable, Strategy, hookimpl
    """
    path = folder / f"{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(head) + textwrap.dedent(code), encoding="utf-8")
    return path


def strategy_plugin(folder: Path, body: str, name: str = "mine", file: str = "my_method") -> Path:
    """A plugin file with one strategy whose ``score`` has `body`."""
    code = f"""
@dataclass(frozen=True)
class Mine(ScoreStrategy):
    "Made on the spot."
    name = {name!r}
    meaning = "depth"

    def score(self, context):
{textwrap.indent(textwrap.dedent(body).strip(), " " * 8)}


@hookimpl
def prunebench_register_strategies(register):
    register(Mine)
"""
    return write_plugin(folder, code, file)


def records_of(out: Path) -> dict[str, Record]:
    """Records of a run by the label of their cell."""
    return {record.cell.label: record for record in load_records([out])}


def leftovers(out: Path) -> list[str]:
    """Files that a write cut short would leave."""
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.suffix == ".tmp" or ".tmp" in path.name)


def comparable(record: Record) -> dict[str, Any]:
    """All of a record that must not depend on when it ran."""
    raw = record.model_dump(mode="json", exclude={"seconds", "started", "finished", "environment"})
    for task in raw["tasks"]:
        task.pop("seconds")
    if raw["plan"] is not None:
        raw["plan"]["cost"].pop("calibration_seconds")
        raw["plan"]["cost"].pop("search_seconds")
        raw["plan"]["provenance"]["notes"].pop("seconds", None)
    if raw["memory"] is not None:
        raw["memory"].pop("peak_rss")
    return raw
