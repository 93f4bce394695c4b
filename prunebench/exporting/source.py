"""What an export starts from: a plan in a file, or a record of a run, which holds its plan and its results."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from prunebench.comparison import DENSE, group_records
from prunebench.errors import PruneBenchError, StoreError, UsageError, first_line
from prunebench.ops import ReplaceBlock
from prunebench.plan import Plan
from prunebench.store import Record, Store, load_records, read_record

__all__ = ["Source", "find_source"]

SHOWN = 8
"""Candidates that an error lists."""


@dataclass(frozen=True)
class Source:
    """A plan, with the results that were measured with it where there are any.

    Attributes:
        plan: changes something, and puts no part or module in place that a checkpoint cannot say.
        record: of the cell that ran it.
        dense: of the dense model in the same group of records.
    """

    plan: Plan
    record: Record | None = None
    dense: Record | None = None


def find_source(given: Plan | Record | str | Path, out: str | Path = "runs") -> Source:
    """Read a plan file, a record file, a run folder with one candidate, or the id of a record in `out`.

    Raises:
        UsageError: nothing of that name, several candidates, or a plan that cannot be exported.
        StoreError, PlanError: a file that cannot be read.
    """
    if isinstance(given, Plan):
        return _checked(Source(given), "the plan")
    if isinstance(given, Record):
        return _of_record(given, [given], Path(out))
    path = Path(given)
    if path.is_dir():
        return _of_folder(path)
    if path.is_file():
        return _of_file(path)
    records = Path(out) / "records"
    found = sorted(records.glob(f"{given}*.json")) if str(given).isalnum() else []
    if len(found) == 1:
        return _of_file(found[0])
    if found:
        raise UsageError(f"{len(found)} records in {out} begin with {given}: give more of the id")
    raise UsageError(f"no plan file, record, run folder or record id {str(given)!r} (ids are looked for in {records})")


def _of_file(path: Path) -> Source:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {path}: {first_line(error)}") from error
    if not isinstance(content, dict) or "cell" not in content:
        return _checked(Source(Plan.load(path)), str(path))
    record = read_record(path)
    try:
        siblings = load_records([path.parent])
    except PruneBenchError:  # a damaged neighbour takes nothing from this record
        siblings = [record]
    return _of_record(record, siblings, path.absolute().parent.parent)


def _of_folder(folder: Path) -> Source:
    records = load_records([folder])
    candidates = [r for r in records if r.status == "ok" and r.plan is not None and not r.plan.is_empty]
    if len(candidates) == 1:
        return _of_record(candidates[0], records, folder)
    if not candidates:
        raise UsageError(f"{folder} holds no finished record with a plan: run something first, or give a plan file")
    listing = "; ".join(f"{record.id} {record.cell.label}" for record in candidates[:SHOWN])
    more = f"; and {len(candidates) - SHOWN} more" if len(candidates) > SHOWN else ""
    raise UsageError(f"{folder} holds {len(candidates)} plans, choose one by its record id: {listing}{more}")


def _of_record(record: Record, siblings: list[Record], root: Path) -> Source:
    """With the plan's tensors, which lie in the run folder `root` that the record is from."""
    if record.status != "ok" or record.plan is None:
        raise UsageError(f"record {record.id} ({record.cell.label}) has no results: its status is {record.status}")
    groups = [group for group in group_records([*siblings, record]) if record.id in {r.id for r in group.records}]
    dense = next((group.dense for group in groups if group.dense is not None), None)
    name = f"record {record.id} ({record.cell.label})"
    plan = Store(root).whole_plan(record.plan)
    return _checked(Source(plan, record, dense if record.cell.strategy != DENSE else None), name)


def _checked(source: Source, name: str) -> Source:
    if source.plan.is_empty:
        raise UsageError(f"{name} removes nothing: there is nothing to export")
    strange = [f"layer {layer} without its {part}" for layer, part in source.plan.removed_sublayers]
    replaced = [op for op in source.plan.ops if isinstance(op, ReplaceBlock) and op.module != "decoder_layer"]
    strange += [f"a module of another kind ({op.module}) in the place of layer {op.start}" for op in replaced]
    if strange:
        raise UsageError(
            f"{name} cannot be exported: {strange[0]} is nothing that plain from_pretrained can build; keep the plan, "
            "and load the model by prunebench.load(MODEL, plan=FILE)"
        )
    return source
