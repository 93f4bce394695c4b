"""The tables of one budget: quality, cost, differences, and overlap of the removed layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prunebench.budget import Achieved, achieved
from prunebench.comparison import DENSE, Group, Row, Section
from prunebench.findings import best_rows, difference, flips_from_dense, jaccard, planted_precision
from prunebench.report.markdown import MISSING, code, figure, layer_ranges, one_line, percent, size, spread, table
from prunebench.store import Phase, Record

__all__ = [
    "cost_table",
    "difference_table",
    "name",
    "overlap_table",
    "quality_tables",
    "sizes",
    "task_score",
]

TASKS_PER_TABLE = 6
LABELLED_COLUMNS = 12
"""With more rows, an overlap table joins equal ones, numbers its columns, and leaves half of itself out."""
BELOW_MAJORITY = "†"


def name(row: Row) -> str:
    """A row's label as markdown, with the number of seeds of a band."""
    if not row.is_band:
        return code(row.label)
    of = f" of {len(row.records) + len(row.others)}" if row.others else ""
    return f"{code(row.label)} ({len(row.records)}{of} seeds)"


def quality_tables(group: Group, section: Section) -> list[str]:
    """Rank, removed layers, relative and raw scores; with many tasks the raw scores stand in tables of their own."""
    dense = group.row([group.dense]) if group.dense else None
    fixed = [*([dense] if dense else []), *section.references]
    rows = [*fixed, *section.rows]
    notes = [_note(group, row) for row in rows]
    planted = group.model.planted_roles is not None
    headers = ["Rank", "Strategy", "Removed layers"]
    if group.dense is not None:
        headers += ["Relative, chance-corrected", "Relative, plain"]
    headers += ["Planted precision"] if planted else []
    inline = group.tasks if len(group.tasks) <= TASKS_PER_TABLE else ()
    headers += list(inline)
    headers += ["Note"] if any(notes) else []
    lines = []
    for row, note in zip(rows, notes, strict=True):
        rank = MISSING if row in fixed else "band" if row.is_band and row.records else str(row.rank or MISSING)
        cells = [rank, name(row), MISSING if row in fixed else _removed(group, row)]
        if group.dense is not None:
            form = figure if group.log_scale else None  # what is left of a perplexity may be a millionth
            cells += [spread(row.values("chance_corrected"), 100), spread(row.values("plain"), 100, form=form)]
        if planted:
            found = [planted_precision(record) for record in row.shown]
            cells.append(spread([value for value in found if value is not None], digits=2))
        cells += [task_score(group, row, task) for task in inline]
        cells += [note] if any(notes) else []
        lines.append(cells)
    tables = [table(headers, lines, left=3)]
    if not inline:
        for start in range(0, len(group.tasks), TASKS_PER_TABLE):
            chunk = group.tasks[start : start + TASKS_PER_TABLE]
            body = [[name(row), *(task_score(group, row, task) for task in chunk)] for row in rows]
            tables.append(table(["Strategy", *chunk], body))
    return tables


def sizes(section: Section) -> str:
    """For kinds whose plans at one budget differ in size: from how much to how much goes; empty for whole layers."""
    if section.kind == "layers":
        return ""
    plans = [share for row in section.ranked for record in row.records if (share := _achieved(record))]
    shares = sorted(100 * share.lm_params for share in plans)
    if len(shares) < 2 or shares[-1] - shares[0] < 0.1:
        return ""
    return (
        f"**These plans are not of equal size**: {shares[0]:.1f} to {shares[-1]:.1f} % of the language model's "
        "parameters go. A rank here is one among unequal cuts."
    )


def task_score(group: Group, row: Row, task: str) -> str:
    """``87.4 [84.1, 90.1]``; mean and range over the seeds of a band; marked where not above the majority answer."""
    results = [result for record in row.shown if (result := row.result(task, record))]
    if not results:
        return MISSING
    scale, digits = group.display(task)
    logs = task in group.log_scale
    form = figure if logs else None
    text = spread([result.score for result in results], scale, digits, form=form, logs=logs)
    if len(results) > 1:
        return text
    result = results[0]
    if result.ci_method == "none":
        return f"{text} [no interval]"
    low, high = (spread([bound], scale, digits, form=form) for bound in (result.ci_low, result.ci_high))
    majority = group.reference[task].majority
    weak = majority is not None and result.higher_is_better and result.ci_low <= majority
    return f"{text} [{low}, {high}]{f' {BELOW_MAJORITY}' if weak else ''}"


def cost_table(group: Group, section: Section) -> str | None:
    """Sizes, times and memory with their ratio to the dense model; None where no row has any."""
    rows = [row for row in section.rows if row.shown]
    if not rows:
        return None
    columns: list[tuple[str, Callable[[Record], tuple[float, float | None] | None], Callable[[float], str]]] = [
        ("Weights", _weights, size),
        ("KV cache per token", _kv, size),
        ("Prefill ms", lambda record: _phase(record.latency and record.latency.prefill), _ms),
        ("Decode ms/token", lambda record: _phase(record.latency and record.latency.decode), _ms),
        ("End-to-end ms", lambda record: _phase(record.latency and record.latency.end_to_end), _ms),
        ("Peak memory", _peak, size),
    ]
    used = [column for column in columns if any(column[1](record) for row in rows for record in row.shown)]
    headers = ["Strategy", "LM parameters removed %", "Whole model removed %", *(column[0] for column in used)]
    body = []
    for row in ([group.row([group.dense])] if group.dense else []) + rows:
        shares = [share for record in row.shown if (share := _achieved(record))]
        cells = [name(row), spread([100 * s.lm_params for s in shares]), spread([100 * s.model_params for s in shares])]
        for _, measure, form in used:
            cells.append(_with_ratio([found for record in row.shown if (found := measure(record))], form))
        body.append([*cells, MISSING if row.strategy == DENSE else _seconds(row)])
        if section.recovery:
            spent = [record.plan.cost.recovery for record in row.shown if record.plan and record.plan.cost.recovery]
            body[-1] += [spread([cost.tokens for cost in spent], digits=0), spread([cost.seconds for cost in spent])]
    recovery = ["Recovery tokens", "Recovery s"] if section.recovery else []
    return table([*headers, "Search s (calibration + scoring)", *recovery], body)


def difference_table(group: Group, section: Section) -> str | None:
    """Each row against the best one, and the answers that changed from the dense model; None without a best row."""
    best = best_rows(section)
    if not best or group.ranking is None:
        return None
    body = []
    for row in section.rows:
        if not row.records:
            continue
        found = None if row is best[0] else difference(group, row, best[0])
        gap, verdict = MISSING, "best" if row is best[0] else "band, see above" if row.is_band else "not paired"
        if found is not None:
            mean, low, high = (percent(value, sign=True) for value in found[:3])
            gap = f"{mean} [{low}, {high}]"
            verdict = "tie" if found.is_tie else "worse" if found.high < 0 else "better"
        changed = [flips_from_dense(group, record) for record in row.records]
        counts = [c for c in changed if c is not None]
        lost, won = (spread([float(c[i]) for c in counts], digits=0) for i in (0, 1))
        body.append([name(row), gap, verdict, lost, won])
    if len(body) == 1 and set(body[0][1:]) <= {MISSING, "best"}:
        return None  # one row alone, and nothing to count flips from
    headers = [
        "Strategy",
        f"Difference to {code(best[0].label)} [95 % CI]",
        "Verdict",
        "Right → wrong",
        "Wrong → right",
    ]
    filled = len(headers) if any(set(line[3:]) != {MISSING} for line in body) else 3  # nothing to count flips of
    return table(headers[:filled], [line[:filled] for line in body])


def overlap_table(section: Section) -> str | None:
    """Jaccard overlap of the removed layers of every two strategies; None with fewer than two plans.

    With many rows, those that remove the same layers share one line, columns are numbered, and half is left out.
    """
    rows = [row for row in section.rows if any(record.plan for record in row.shown)]
    if section.layers is None or len(rows) < 2:
        return None
    if len(rows) <= LABELLED_COLUMNS:
        body = [[code(first.label), *(_overlap(first, second) for second in rows)] for first in rows]
        return table(["", *(code(row.label) for row in rows)], body)
    alike: dict[object, list[Row]] = {}
    for row in rows:
        plans = [record.plan.removed_layers for record in row.shown if record.plan is not None]
        alike.setdefault(row if row.is_band else plans[0], []).append(row)
    firsts, body = [own[0] for own in alike.values()], []
    for number, own in enumerate(alike.values(), start=1):
        texts = [_overlap(own[0], second) for second in firsts[:number]]
        label = f"{number}: {', '.join(code(row.label) for row in own)}"
        body.append([label, *texts, *[""] * (len(firsts) - number)])
    return table(["", *map(str, range(1, len(firsts) + 1))], body)


def _overlap(first: Row, second: Row) -> str:
    value = jaccard(first, second)
    return MISSING if value is None else f"{value:.2f}"


def _note(group: Group, row: Row) -> str:
    parts = [one_line(group.missing(record)) for record in row.others]
    if row.duplicates:
        parts.append(f"{row.duplicates} further record{'s' if row.duplicates > 1 else ''} of the same removal left out")
    return "; ".join(dict.fromkeys(parts))


def _removed(group: Group, row: Row) -> str:
    plans = [record.plan for record in row.shown if record.plan is not None]
    if not plans:
        return MISSING
    if len({plan.removed_layers for plan in plans}) > 1:
        return f"{spread([float(len(plan.removed_layers)) for plan in plans], digits=0)}: differ by seed"
    removed, budget = plans[0].removed_layers, plans[0].budget
    text = f"{len(removed)}: {layer_ranges(removed)}"
    for part, name in (("attention", "attention"), ("mlp", "MLP")):
        if layers := [layer for layer, each in plans[0].removed_sublayers if each == part]:
            text += f"; {name} of {len(layers)}: {layer_ranges(layers)}"
    return f"{text} (asked {budget.layers_asked})" if budget and budget.layers_asked != len(removed) else text


def _achieved(record: Record) -> Achieved | None:
    if record.plan is None:
        return None
    if record.plan.budget is not None:
        return record.plan.budget.achieved
    return achieved(record.model, record.plan.removed_layers) if record.kind == "layers" else None


def _phase(phase: Phase | None) -> tuple[float, float | None] | None:
    return (phase.median, phase.dense_median / phase.median) if phase is not None and phase.median > 0 else None


def _weights(record: Record) -> tuple[float, float | None] | None:
    memory = record.memory
    return (memory.weights, _share(memory.weights, memory.dense_weights)) if memory else None


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
