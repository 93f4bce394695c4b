"""Records on disk: one JSON file per cell, whole or absent, that says everything needed to trust its numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from prunebench import jsonio
from prunebench.config import Cell
from prunebench.errors import StoreError
from prunebench.evaluator import TaskResult
from prunebench.model_info import ModelInfo
from prunebench.plan import Plan, first_problem
from prunebench.plan_parts import without_default
from prunebench.plan_tensors import PlanTensors

__all__ = ["Latency", "Memory", "Phase", "Record", "Store", "load_records", "now", "read_record"]

SCHEMA_VERSION = 1
Status = Literal["ok", "failed", "oom", "interrupted"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Phase(_Part):
    """One timed phase, in milliseconds: dense and pruned were timed in turn, in one process."""

    median: FiniteFloat
    p10: FiniteFloat
    p90: FiniteFloat
    dense_median: FiniteFloat
    dense_p10: FiniteFloat
    dense_p90: FiniteFloat
    n: int

    @property
    def speedup(self) -> float:
        return self.dense_median / self.median if self.median > 0 else float("nan")


class Latency(_Part):
    """Time of each phase for one fixed shape.

    ``encoder`` is towers and projectors (never pruned), ``prefill`` the prompt pass up to the first token (TTFT without
    the encoder), ``decode`` one further token, ``end_to_end`` all of it for `new_tokens` tokens.
    """

    device: str
    clock: str
    batch_size: int
    prompt_tokens: int
    new_tokens: int
    encoder: Phase
    prefill: Phase
    decode: Phase
    end_to_end: Phase
    kernels: str | None = Field(
        default=None, description="which sparse kernels ran in the pruned model, and where none could; null: dense ones"
    )

    @model_serializer(mode="wrap")
    def _said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_default(self, handler(self), "kernels")


class Memory(_Part):
    """Memory in bytes. What a machine cannot tell is null, never zero.

    ``stored`` is what the weights of the pruned model take in a safetensors file (header left out, tied weights once),
    ``stored_compressed`` the same with each tensor in its smallest exact format (`prunebench.measure.stored`),
    ``dense_stored`` what the dense model takes as it is. Records made before these were counted lack them.
    """

    weights: int
    dense_weights: int
    kv_bytes_per_token: int
    torch_peak_allocated: int | None = None
    dense_torch_peak_allocated: int | None = None
    torch_peak_reserved: int | None = None
    dense_torch_peak_reserved: int | None = None
    nvml_process: int | None = None
    peak_rss: int | None = Field(default=None, description="of the whole process so far, dense and pruned alike")
    stored: int | None = None
    stored_compressed: int | None = None
    dense_stored: int | None = None

    @model_serializer(mode="wrap")
    def _said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_default(self, handler(self), "stored", "stored_compressed", "dense_stored")


class Record(_Part):
    """What came out of one cell."""

    schema_version: int = SCHEMA_VERSION
    id: str
    cell: Cell
    status: Status
    error: str | None = None
    model: ModelInfo
    kind: str = "layers"
    plan: Plan | None = None
    tasks: tuple[TaskResult, ...] = ()
    evaluated_in: str | None = Field(
        default=None, description="id of the record of the same operations in the same run whose answers these are"
    )
    latency: Latency | None = None
    untimed: str | None = Field(
        default=None, description="why there is no latency although it was asked for: the dense model's kernels run"
    )
    memory: Memory | None = None
    seconds: dict[str, float] = Field(default_factory=dict, description="wall seconds of each stage")
    warnings: tuple[str, ...] = ()
    environment: dict[str, Any] = Field(default_factory=dict)
    started: str
    finished: str

    @model_serializer(mode="wrap")
    def _said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_default(self, handler(self), "untimed")

    @property
    def complete(self) -> bool:
        return self.status == "ok" and bool(self.tasks)


def now() -> str:
    """UTC time in ISO 8601, to the second."""
    return datetime.now(timezone.utc).replace(microsecond=0).isoformat()


class Store:
    """A folder with ``records/<cell id>.json``, ``plans/``, ``traces/`` and the tables made from them.

    ``tasks/`` holds the finished tasks of cells that are still at work (`prunebench.task_files`).

    A record holds its plan as JSON; the numbers of plans that need some lie in ``plans/<tensors_digest>.safetensors``,
    once for all records that share them.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @property
    def traces(self) -> Path:
        return self.root / "traces"

    @property
    def tasks(self) -> Path:
        return self.root / "tasks"

    def path(self, cell_id: str) -> Path:
        return self.root / "records" / f"{cell_id}.json"

    def tensors_path(self, digest: str) -> Path:
        """Where the tensors of that digest lie."""
        return self.root / "plans" / f"{digest}.safetensors"

    def keep_tensors(self, plan: Plan) -> None:
        """Write a plan's tensors where they are not there yet; a plan without any, or without them at hand, is passed.

        Raises:
            StoreError: the file cannot be written.
        """
        if plan.tensors and plan.tensors_digest is not None:
            path = self.tensors_path(plan.tensors_digest)
            if not path.exists():
                plan.tensors.save(path)

    def whole_plan(self, plan: Plan) -> Plan:
        """The plan of a record with its tensors, as it can be applied.

        Raises:
            StoreError: the tensors are missing or damaged.
            PlanError: they are not those that the plan was made with.
        """
        if plan.tensors_digest is None or plan.tensors:
            return plan
        return plan.with_tensors(PlanTensors.load(self.tensors_path(plan.tensors_digest), plan.tensors_digest))

    def finished(self, cell: Cell, warn: Callable[[str], None] | None = None) -> Record | None:
        """The cell's record if it finished well; a failed one does not count, so that it runs again.

        A record that cannot be read is moved to ``quarantine/``, `warn` is told, and the cell runs again.
        """
        path = self.path(cell.id)
        if not path.exists():
            return None
        try:
            record = read_record(path)
        except StoreError as error:
            moved = self.quarantine(path)
            if warn is not None:
                warn(f"{error}; moved to {moved} and made anew")
            return None
        return record if record.status == "ok" and record.id == cell.id else None

    def quarantine(self, path: Path) -> Path:
        """Move a damaged file out of the way, never delete it."""
        target = self.root / "quarantine" / path.name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        except OSError as error:
            raise StoreError(f"cannot move the damaged file {path} to {target}: {error}") from error
        return target

    def write(self, record: Record) -> Path:
        """Write a record, whole or not at all; before it the tensors of its plan."""
        path = self.path(record.id)
        if record.plan is not None:
            self.keep_tensors(record.plan)
        jsonio.write_text(path, record.model_dump_json() + "\n")
        return path

    def check_writable(self) -> None:
        """Fail before hours of work, not after.

        Raises:
            StoreError: nothing can be written below this folder.
        """
        probe = self.root / "records" / ".probe"
        jsonio.write_text(probe, "")
        probe.unlink(missing_ok=True)


def read_record(path: Path) -> Record:
    """Read one record.

    Raises:
        StoreError: missing, damaged, or of a schema that this version does not read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"cannot read record {path}: {error}") from error
    try:
        record = Record.model_validate_json(text)
    except ValidationError as error:
        problem = first_problem(error)
        raise StoreError(
            f"record {path} is damaged or of another version: {problem}; remove it and run again"
        ) from error
    if record.schema_version != SCHEMA_VERSION:
        raise StoreError(f"record {path} has schema {record.schema_version}, this version reads {SCHEMA_VERSION}")
    if record.id != record.cell.id:
        raise StoreError(f"record {path} was changed by hand: its id does not fit its cell; remove it and run again")
    return record


def _record_files(paths: Iterable[str | Path]) -> Iterator[Path]:
    for given in paths:
        path = Path(given)
        if path.is_file():
            yield path
        elif (path / "records").is_dir():
            yield from sorted((path / "records").glob("*.json"))
        elif path.is_dir():
            yield from sorted(path.glob("*.json"))
        else:
            raise StoreError(f"no such run folder or record: {path}")


def load_records(paths: Iterable[str | Path]) -> list[Record]:
    """All records in run folders, record folders or files, ordered by id; the same cell twice counts once.

    Raises:
        StoreError: a path that does not exist, or a record that cannot be read.
    """
    records = {record.id: record for record in (read_record(path) for path in _record_files(paths))}
    return [records[key] for key in sorted(records)]
