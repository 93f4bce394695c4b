"""The cost table of one budget: sizes, times, memory, and what the search took."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prunebench.comparison import DENSE, Group, Row, Section
from prunebench.kinds import is_thinned, keeps_shapes, params_zeroed, removes_layers
from prunebench.report.markdown import MISSING, code, one_line, size, spread, table
from prunebench.report.reduction import achieved_by
from prunebench.report.tables import name
from prunebench.store import Phase, Record

__all__ = ["SAME_TIME", "cost_table", "kernel_notes"]

SAME_TIME = "1.00× (dense kernels)"
"""The time of a plan that changes values alone, where no sparse kernel was timed."""

Measure = Callable[[Record], tuple[float, float | None] | None]
"""A quantity of a record with its ratio to the dense model; None where it was not measured."""


def cost_table(group: Group, section: Section) -> str | None:
    """Sizes, times and memory with their ratio to the dense model; None where no row has any."""
    rows = [row for row in section.rows if row.shown]
    if not rows:
        return None
    thinned, layers = is_thinned(section.kind), removes_layers(section.kind)
    times: list[tuple[str, Measure, Callable[[float], str]]] = [
        ("Prefill ms", lambda record: _phase(record.latency and record.latency.prefill), _ms),
        ("Decode ms/token", lambda record: _phase(record.latency and record.latency.decode), _ms),
        ("End-to-end ms", lambda record: _phase(record.latency and record.latency.end_to_end), _ms),
    ]
    disk = [("On disk", _stored, size), ("On disk, compressed", _compressed, size)]
    whole = [("Weights", _weights, size), ("KV cache per token", _kv, size), *times, ("Peak memory", _peak, size)]
    columns = [*disk, *times] if thinned else whole if layers else [*whole, *disk]
    used = [column for column in columns if any(column[1](record) for row in rows for record in row.shown)]
    timed = {column[0] for column in times} & {column[0] for column in used}
    untimed = thinned and not timed
    removed = ["Whole model zeroed %"] if thinned else ["LM parameters removed %", "Whole model removed %"]
    headers = ["Strategy", *removed, *(column[0] for column in used), *(["Time"] if untimed else [])]
    body = []
    for row in ([group.row([group.dense])] if group.dense else []) + rows:
        shares = [(record, share) for record in row.shown if (share := achieved_by(record))]
        if thinned:
            cells = [name(row), spread([100 * params_zeroed(s) / r.model.model_params for r, s in shares])]
        else:
            cells = [name(row), *(spread([100 * getattr(s, key) for _, s in shares]) for key in _REMOVED)]
        for header, measure, form in used:
            text = _with_ratio([found for record in row.shown if (found := measure(record))], form)
            cells.append(_same_time(row) if thinned and header in timed and text == MISSING else text)
        cells += [_same_time(row)] if untimed else []
        body.append([*cells, MISSING if row.strategy == DENSE else _seconds(row)])
        body[-1] += [] if layers else _search(row)
        if section.recovery:
            spent = [record.plan.cost.recovery for record in row.shown if record.plan and record.plan.cost.recovery]
            body[-1] += [spread([cost.tokens for cost in spent], digits=0), spread([cost.seconds for cost in spent])]
    search = [] if layers else ["Search peak memory", "Forward passes", "Backward passes"]
    recovery = ["Recovery tokens", "Recovery s"] if section.recovery else []
    return table([*headers, "Search s (calibration + scoring)", *search, *recovery], body)


def kernel_notes(section: Section) -> str:
    """Which sparse kernels ran, and why none did, row by row; empty where there is nothing beyond dense kernels."""
    lines: dict[str, list[str]] = {}
    for row in section.rows:
        for record in row.shown:
            said = record.latency.kernels if record.latency is not None else record.untimed
            if said is not None and is_thinned(section.kind):
                lines.setdefault(one_line(said), []).append(code(row.label))
    return "\n".join(f"- {text}: {', '.join(dict.fromkeys(labels))}" for text, labels in sorted(lines.items()))


_REMOVED = ("lm_params", "model_params")


def _same_time(row: Row) -> str:
    """What is known without a measurement: the same shapes run the same kernels."""
    plans = [record.plan for record in row.shown if record.plan is not None]
    return SAME_TIME if plans and all(keeps_shapes(plan) for plan in plans) else MISSING


def _search(row: Row) -> list[str]:
    """Peak memory, forward and backward passes of single samples."""
    costs = [record.plan.cost for record in row.shown if record.plan is not None and row.strategy != DENSE]
    peaks = [cost.peak_memory for cost in costs if cost.peak_memory is not None]
    peak = size(sum(peaks) / len(peaks)) if peaks else MISSING
    counts = [[float(getattr(cost, key)) for cost in costs] for key in ("forward_passes", "backward_passes")]
    return [peak, *(spread(values, form=lambda value: f"{value:,.0f}") for values in counts)]


def _phase(phase: Phase | None) -> tuple[float, float | None] | None:
    return (phase.median, phase.dense_median / phase.median) if phase is not None and phase.median > 0 else None


def _weights(record: Record) -> tuple[float, float | None] | None:
    memory = record.memory
    return (memory.weights, _share(memory.weights, memory.dense_weights)) if memory else None


def _stored(record: Record) -> tuple[float, float | None] | None:
    memory = record.memory
    return (memory.stored, _share(memory.stored, memory.dense_stored)) if memory and memory.stored else None


def _compressed(record: Record) -> tuple[float, float | None] | None:
    memory = record.memory
    if memory is None or memory.stored_compressed is None:
        return None
    return memory.stored_compressed, _share(memory.stored_compressed, memory.dense_stored)


def _kv(record: Record) -> tuple[float, float | None] | None:
    memory = record.memory
    if memory is None:
        return None
    return memory.kv_bytes_per_token, _share(memory.kv_bytes_per_token, record.model.kv_bytes_per_token)


def _peak(record: Record) -> tuple[float, float | None] | None:
    memory = record.memory
    if memory is None or memory.torch_peak_allocated is None:
        return None
    return memory.torch_peak_allocated, _share(memory.torch_peak_allocated, memory.dense_torch_peak_allocated)


def _share(part: float, whole: float | None) -> float | None:
    return part / whole if whole else None


def _with_ratio(found: Sequence[tuple[float, float | None]], form: Callable[[float], str]) -> str:
    if not found:
        return MISSING
    ratios = [ratio for _, ratio in found if ratio is not None]
    text = form(sum(value for value, _ in found) / len(found))
    return f"{text} ({sum(ratios) / len(ratios):.2f}×)" if ratios else text


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _seconds(row: Row) -> str:
    costs = [record.plan.cost for record in row.shown if record.plan is not None]
    if not costs:
        return MISSING
    calibration, search = (
        sum(values) / len(values)
        for values in ([c.calibration_seconds for c in costs], [c.search_seconds for c in costs])
    )
    return f"{calibration:.1f} + {search:.2f}"
