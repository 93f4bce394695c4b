"""The tables of one budget: quality, differences, and overlap of the removed layers."""

from __future__ import annotations

from prunebench.comparison import Group, Row, Section
from prunebench.findings import (
    best_rows,
    difference,
    flips_from_dense,
    jaccard,
    planted_precision,
    relative_uncertainty,
)
from prunebench.kinds import removes_layers
from prunebench.report.markdown import MISSING, code, figure, one_line, percent, probability, spread, table
from prunebench.report.reduction import reduced, reduction_header
from prunebench.significance import significance

__all__ = ["difference_table", "name", "overlap_table", "quality_tables", "task_score"]

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
    """Rank, what goes, relative and raw scores; with many tasks the raw scores stand in tables of their own."""
    dense = group.row([group.dense]) if group.dense else None
    fixed = [*([dense] if dense else []), *section.references]
    rows = [*fixed, *section.rows]
    notes = [_note(group, row) for row in rows]
    planted = group.model.planted_roles is not None and removes_layers(section.kind)
    headers = ["Rank", "Strategy", reduction_header(section.kind)]
    if group.dense is not None:
        headers += ["Relative, chance-corrected", "Relative, plain"]
    headers += ["Planted precision"] if planted else []
    inline = group.tasks if len(group.tasks) <= TASKS_PER_TABLE else ()
    headers += list(inline)
    headers += ["Note"] if any(notes) else []
    lines = []
    for row, note in zip(rows, notes, strict=True):
        rank = MISSING if row in fixed else "band" if row.is_band and row.records else str(row.rank or MISSING)
        cells = [rank, name(row), MISSING if row in fixed else reduced(section.kind, row)]
        if group.dense is not None:
            cells += [_relative(group, row, "chance_corrected"), _relative(group, row, "plain")]
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


def _relative(group: Group, row: Row, score: str) -> str:
    """A relative score; the one that ranks with its interval, where one record has per-question scores."""
    form = figure if group.log_scale and score == "plain" else None  # of a perplexity a millionth may be left
    text = spread(row.values(score), 100, form=form)
    if score != group.ranking or len(row.records) != 1:
        return text
    found = getattr(relative_uncertainty(group, row.records[0]), score)
    if found is None or found.method == "none":
        return text
    return f"{text} [{', '.join(spread([bound], 100, form=form) for bound in (found.low, found.high))}]"


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


def difference_table(group: Group, section: Section) -> str | None:
    """Each row against the best one and random plans, and the answers that changed from the dense model.

    None without a best row.
    """
    best = best_rows(section)
    if not best or group.ranking is None:
        return None
    told = significance(group, section)
    bands = {label: null for nulls in told.nulls.values() for label, null in nulls.items()}
    body = []
    for row in section.rows:
        if not row.records:
            continue
        found = None if row is best[0] else difference(group, row, best[0])
        gap, tied = MISSING, "band" if row.is_band else told.letter(row) or "not paired"
        if found is not None:
            mean, low, high = (percent(value, sign=True) for value in found[:3])
            gap = f"{mean} [{low}, {high}]"
        nulls = told.nulls.get(row, {})
        chances = [probability(nulls[label].p) if label in nulls else MISSING for label in bands]
        changed = [flips_from_dense(group, record) for record in row.records]
        counts = [c for c in changed if c is not None]
        lost, won = (spread([float(c[i]) for c in counts], digits=0) for i in (0, 1))
        body.append([name(row), gap, probability(told.against_best.get(row)), tied, *chances, lost, won])
    headers = [
        "Strategy",
        f"Difference to {code(best[0].label)} [95 % CI]",
        "p (Holm)",
        "Tie group",
        *(f"p against {code(label)} (least {probability(null.smallest)})" for label, null in bands.items()),
        "Right → wrong",
        "Wrong → right",
    ]
    if not any(set(line[-2:]) != {MISSING} for line in body):  # nothing to count flips of
        headers, body = headers[:-2], [line[:-2] for line in body]
    if len(body) == 1 and set(body[0][1:]) <= {MISSING, "a", "not paired"}:
        return None  # one row alone
    return table(headers, body)


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
