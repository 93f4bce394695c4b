"""Records as a table: one row per record and task, and one row for a record that failed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunebench import jsonio
from prunebench.budget import achieved
from prunebench.comparison import Group, group_records
from prunebench.errors import UsageError
from prunebench.findings import planted_precision
from prunebench.kinds import params_zeroed
from prunebench.stats import relative_score
from prunebench.store import Record, load_records

if TYPE_CHECKING:
    import pandas

__all__ = ["COLUMNS", "frame", "load_results"]

PHASES = ("encoder", "prefill", "decode", "end_to_end")
MEMORY = (
    "weights",
    "dense_weights",
    "kv_bytes_per_token",
    "torch_peak_allocated",
    "dense_torch_peak_allocated",
    "torch_peak_reserved",
    "dense_torch_peak_reserved",
    "nvml_process",
    "peak_rss",
    "stored",
    "stored_compressed",
    "dense_stored",
)
SHARES = ("lm_params_zeroed", "model_params_zeroed")
COLUMNS = (
    *("cell", "group", "status", "error", "model", "model_revision", "dtype", "suite", "limit"),
    *("strategy", "label", "params", "kind", "seed", "budget", "sparsity_asked", "layers_asked"),
    *("layers_removed", "removed_layers", "removed_sublayers", "sparsity", "lm_params_removed", "model_params_removed"),
    *SHARES,
    *("task", "metric", "score", "ci_low", "ci_high", "ci_method", "n", "chance", "majority", "dense_score"),
    *("relative", "relative_corrected", "mean_relative", "mean_relative_corrected", "complete", "planted_precision"),
    *("calibration", "calibration_n", "calibration_seed", "calibration_seconds", "search_seconds"),
    *("forward_passes", "backward_passes", "search_peak_bytes"),
    *("recovery", "recovery_budget", "recovery_tokens", "recovery_seconds"),
    *(f"{phase}_{part}" for phase in PHASES for part in ("ms", "dense_ms", "speedup")),
    *("latency_device", "batch_size", "prompt_tokens", "new_tokens", "kernels", "untimed"),
    *(f"{name}_bytes" if not name.startswith("kv") else name for name in MEMORY),
    *("prunebench", "torch", "transformers", "device", "started", "finished"),
)


def load_results(*paths: str | Path) -> pandas.DataFrame:
    """Read run folders or record files into a long table.

    Columns are those of `COLUMNS`: shares (`score`, `sparsity`, `relative`, ...) as fractions, times in milliseconds
    (`*_ms`) or seconds, sizes in bytes. What is missing is None or NaN, never zero. `relative` is score / dense score
    of one task, `mean_relative` the mean over all tasks by their weights; both refer to the complete dense record of
    the same group. `group` numbers the groups of records that may be compared. A record without calibration that
    belongs to several groups stands in each.

    `sparsity`, `*_params_removed` and `*_params_zeroed` are apart: zeroed weights stay in place. `stored_bytes` is what
    the pruned weights take in a safetensors file, `stored_compressed_bytes` with each tensor in its smallest exact
    form, `dense_stored_bytes` what the dense ones take. `forward_passes` and `backward_passes` of the search are single
    samples. `kernels` names sparse kernels that were timed; `untimed` says why a plan has no time.

    Args:
        paths: run folders, folders of records, or record files.

    Raises:
        UsageError: no path, or no record in them.
        StoreError: a path that does not exist, or a record that cannot be read.
    """
    if not paths:
        raise UsageError("load_results needs at least one run folder or record file")
    return frame(load_records(paths))


def frame(records: Iterable[Record]) -> pandas.DataFrame:
    """The same table from records in memory.

    Raises:
        UsageError: there is no record.
    """
    import pandas  # half a second that no other command should wait for

    rows = []
    for number, group in enumerate(group_records(records)):
        for record in group.records:
            common = {"group": number, **_common(group, record)}
            rows += [{**common, **part} for part in _tasks(group, record)]
    return pandas.DataFrame(rows, columns=list(COLUMNS))


def _common(group: Group, record: Record) -> dict[str, Any]:
    cell, plan, model = record.cell, record.plan, record.model
    removed = plan.removed_layers if plan is not None else None
    shares = plan.budget.achieved if plan is not None and plan.budget is not None else None
    if shares is None and removed is not None and record.kind == "layers":
        shares = achieved(model, removed)
    relative = group.relative(record)
    environment = record.environment
    calibration = cell.calibration
    recovery = plan.cost.recovery if plan is not None else None
    values: dict[str, Any] = {
        "cell": record.id,
        "status": record.status,
        "error": record.error,
        "model": model.name,
        "model_revision": cell.model_revision,
        "dtype": cell.dtype,
        "suite": cell.suite,
        "limit": cell.limit,
        "strategy": cell.strategy,
        "label": group.label(record),
        "params": jsonio.canonical(cell.strategy_params),
        "kind": record.kind,
        "seed": cell.seed,
        "budget": str(cell.budget),
        "sparsity_asked": cell.budget.value if cell.budget.unit == "sparsity" else None,
        "layers_asked": plan.budget.layers_asked if plan is not None and plan.budget is not None else None,
        "layers_removed": len(removed) if removed is not None else None,
        "removed_layers": removed,
        "removed_sublayers": plan.removed_sublayers if plan is not None else None,
        "sparsity": shares.layers if shares else None,
        "lm_params_removed": shares.lm_params if shares else None,
        "model_params_removed": shares.model_params if shares else None,
        "lm_params_zeroed": _over(params_zeroed(shares), model.lm_params) if shares else None,
        "model_params_zeroed": _over(params_zeroed(shares), model.model_params) if shares else None,
        "mean_relative": relative.plain,
        "mean_relative_corrected": relative.chance_corrected,
        "complete": not group.missing(record),
        "planted_precision": planted_precision(record),
        "calibration": (calibration.domain or calibration.dataset) if calibration else None,
        "calibration_n": calibration.n if calibration else None,
        "calibration_seed": calibration.seed if calibration else None,
        "calibration_seconds": plan.cost.calibration_seconds if plan is not None else None,
        "search_seconds": plan.cost.search_seconds if plan is not None else None,
        "forward_passes": plan.cost.forward_passes if plan is not None else None,
        "backward_passes": plan.cost.backward_passes if plan is not None else None,
        "search_peak_bytes": plan.cost.peak_memory if plan is not None else None,
        "untimed": record.untimed,
        "recovery": cell.recovery.label if cell.recovery is not None else None,
        "recovery_budget": getattr(cell.recovery, "tokens", None),
        "recovery_tokens": recovery.tokens if recovery is not None else None,
        "recovery_seconds": recovery.seconds if recovery is not None else None,
        "started": record.started,
        "finished": record.finished,
    }
    values |= {key: environment.get(key) for key in ("prunebench", "torch", "transformers", "device")}
    if record.latency is not None:
        for name in PHASES:
            phase = getattr(record.latency, name)
            values |= {f"{name}_ms": phase.median, f"{name}_dense_ms": phase.dense_median}
            values[f"{name}_speedup"] = phase.speedup
        values["latency_device"] = record.latency.device
        values |= {
            key: getattr(record.latency, key) for key in ("batch_size", "prompt_tokens", "new_tokens", "kernels")
        }
    if record.memory is not None:
        for name in MEMORY:
            values[name if name.startswith("kv") else f"{name}_bytes"] = getattr(record.memory, name)
    return values


def _over(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _tasks(group: Group, record: Record) -> Iterable[dict[str, Any]]:
    if not record.tasks:
        yield {}
    dense = {result.task: result for result in group.dense.tasks} if group.dense else {}
    for result in record.tasks:
        reference = dense.get(result.task)
        own = {"task": result.task, "dense_score": reference.score if reference else None}
        own |= {key: getattr(result, key) for key in ("metric", "score", "ci_low", "ci_high", "ci_method", "n")}
        own |= {"chance": result.chance, "majority": result.majority}
        if reference is not None and reference.n == result.n:
            name = result.task
            lower = () if result.higher_is_better else (name,)
            logs = (name,) if result.log_scale else ()
            scores, chances = ({name: result.score}, {name: reference.score}), {name: result.chance}
            parts = relative_score(*scores, chances, lower_is_better=lower, log_scale=logs)
            own |= {"relative": parts.plain, "relative_corrected": parts.chance_corrected}
        yield own
