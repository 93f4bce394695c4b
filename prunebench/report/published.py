"""Published figures beside a group's dense and best rows, as markdown: never with a rank."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from prunebench.comparison import Group, Row, group_records, result_of
from prunebench.findings import best_rows
from prunebench.gate import RULE, GateFinding, gate, refuse
from prunebench.kinds import removes_layers, share_words
from prunebench.published import Column, Paper, Published, Table
from prunebench.published import Row as PrintedRow
from prunebench.recomputed import mean_of_ratios, recompute
from prunebench.report.markdown import MISSING, code, one_line, table, words
from prunebench.report.printed import (
    decimals,
    disagreements,
    notes_of,
    plain,
    relative_cells,
    removed_words,
    value_cell,
)
from prunebench.store import Record

__all__ = ["add_data", "as_data", "findings_of", "gap_note", "group_parts", "with_published"]

OURS = "ours"
VERDICTS = {"ok": "agrees", "off": "**off**", "limited": "not comparable", "unpublished": MISSING}


def findings_of(group: Group, published: Published) -> list[GateFinding]:
    """What the dense gate says of a group; nothing without a complete dense record."""
    return gate(group.dense, published) if group.dense is not None else []


def with_published(parts: list[str], group: Group, published: Published, allow_gap: bool) -> list[str]:
    """A group's parts with what is published after them, and its mark below its heading where dense is off.

    Raises:
        DenseGap: the dense model is off and that is not allowed.
    """
    findings = findings_of(group, published)
    if not allow_gap:
        refuse(findings)
    note = gap_note(findings)
    return [parts[0], *([note] if note else []), *parts[1:], *group_parts(group, published, findings)]


def gap_note(findings: Sequence[GateFinding]) -> str | None:
    """The mark of a group whose dense model is off, which `--allow-gap` let through."""
    off = [finding for finding in findings if finding.status == "off"]
    if not off:
        return None
    lines = "; ".join(one_line(finding.line, 400) for finding in off)
    return (
        f"**The dense model does not score what is printed of it** (let through by `--allow-gap`): {lines}. Rows of "
        "this group may be compared with each other, not with published ones."
    )


def group_parts(group: Group, published: Published, findings: Sequence[GateFinding]) -> list[str]:
    """The dense gate and the published rows of a group: of the same weights, else of others asked the same tasks."""
    same, others, unshared = [], [], []
    for paper, printed in published.tables():
        shared = _shared(group, printed)
        own = any(paper.is_of(row, group.model.name) for row in printed.rows)
        rows = [row for row in printed.rows if any(printed.value(row, column) is not None for column in shared)]
        rows = [row for row in rows if not own or paper.is_of(row, group.model.name)]
        if rows:
            (same if own else others).append((paper, printed, shared, rows))
        elif own:
            unshared.append(f"{paper.title}: {printed.name}")
    parts = [
        "### Published, not ranked",
        "Figures as others printed them, made with other software, prompts and machines. They have no rank. Scores of "
        "our own rows are put into the printed unit; our rows are the best of each budget.",
        *_gate_parts(group, findings),
    ]
    if not same:
        parts.append(f"No published row is kept of the weights {code(group.model.name)} on these tasks.")
    for known in same:
        parts += _beside(group, *known)
    if unshared:
        parts.append(
            f"Tables of these weights that share no task with this group: {one_line('; '.join(unshared), 600)}. "
            "`prunebench leaderboard --published` shows them."
        )
    if others and not same:
        parts += ["### Published on other models, not ranked", "Of other weights, but asked the same tasks."]
        for known in others:
            parts += _beside(group, *known)
    return parts


def add_data(data: Sequence[dict[str, Any]], records: Iterable[Record], published: Published, allow_gap: bool) -> None:
    """Put ``published`` into the data of each group (`prunebench.leaderboard.as_data` of the same records).

    Raises:
        DenseGap: as `with_published`.
    """
    for entry, group in zip(data, group_records(records), strict=True):
        findings = findings_of(group, published)
        if not allow_gap:
            refuse(findings)
        entry["published"] = as_data(group, published, findings)


def as_data(group: Group, published: Published, findings: Sequence[GateFinding]) -> dict[str, Any]:
    """The gate and the rows of the same weights as JSON-able values, null where nothing is printed."""
    return {
        "gate": [
            {
                "task": finding.task,
                "status": finding.status,
                "asked": finding.asked,
                "questions": finding.questions,
                "references": [
                    {
                        "source": one.source,
                        "printed": one.printed,
                        "measured": one.measured,
                        "interval": [one.low, one.high],
                        "tolerance": one.tolerance,
                        "excess": one.excess,
                        "derived": one.derived or None,
                    }
                    for one in finding.references
                ],
            }
            for finding in findings
        ],
        "rows": [
            {
                "source": paper.cite(printed),
                "id": paper.id,
                "model": row.model,
                "method": row.method,
                "kind": row.kind,
                "removed": row.removed.words if row.removed else None,
                "recovery": row.recovery or None,
                "values": {column.label: value for column, value in zip(printed.columns, row.values, strict=True)},
                "relative": row.relative,
                "average": row.average,
            }
            for paper, printed in published.tables()
            for row in printed.rows
            if paper.is_of(row, group.model.name)
        ],
    }


# -- beside a group ----------------------------------------------------------------------------------------------------


def _shared(group: Group, printed: Table) -> list[Column]:
    return [c for c in printed.columns if any(c.measures(result) for result in group.reference.values())]


def _gate_parts(group: Group, findings: Sequence[GateFinding]) -> list[str]:
    if group.dense is None:
        return ["**Dense gate**: there is no complete dense row to hold against printed ones."]
    if all(finding.status == "unpublished" for finding in findings):
        return [
            f"**Dense gate**: no published dense score of {code(group.model.name)} is kept for any of these tasks, so "
            "the gate says nothing about this model."
        ]
    body = []
    for finding in findings:
        for one in finding.references:
            verdict = VERDICTS["ok" if one.agrees else "off"] if finding.status in ("ok", "off") else finding.words
            derived = " (derived)" if one.derived else ""
            interval = f"{_ours(one.low, one.column)} to {_ours(one.high, one.column)}"
            cells = [finding.task, _ours(one.measured, one.column), interval, plain(one.printed) + derived]
            body.append([*cells, plain(round(one.tolerance, 6)), verdict, one_line(one.source)])
        if not finding.references:
            body.append([finding.task, *[MISSING] * 4, finding.words, MISSING])
    headers = ["Task", "Our dense", "95 % interval", "Printed dense", "Tolerance", "Verdict", "Source"]
    return [f"**Dense gate.** {RULE}", table(headers, body)]


def _beside(
    group: Group, paper: Paper, printed: Table, shared: Sequence[Column], rows: Sequence[PrintedRow]
) -> list[str]:
    with_relative = printed.relative is not None
    whole = all(column in shared for column in printed.columns if column.what == "score")
    headers = ["By", "Row", "Kind", "Removed", "Recovery", *(column.label for column in shared)]
    headers += ["Relative, printed", "Mean of ratios"] if with_relative else []
    body = []
    for label, kind, removed, recovery, record in _our_rows(group):
        cells = [OURS, label, kind, removed, recovery or MISSING]
        cells += [_our_value(group, record, column) for column in shared]
        cells += [MISSING, _our_ratios(group, record, shared) if whole else MISSING] if with_relative else []
        body.append(cells)
    found = {id(one.row): one for one in recompute(printed)}
    digits = {column.id: decimals(printed.value(row, column) for row in printed.rows) for column in shared}
    many = len({row.model for row in rows}) > 1 or not paper.is_of(rows[0], group.model.name)
    for row in rows:
        who = f"{one_line(row.method)}, {one_line(row.model)}" if many else one_line(row.method)
        cells = ["published", who, code(row.kind), removed_words(row), one_line(row.recovery) or MISSING]
        cells += [value_cell(printed.value(row, column), digits[column.id]) for column in shared]
        cells += relative_cells(printed, row, found.get(id(row))) if with_relative else []
        body.append(cells)
    parts = [f"**{one_line(paper.cite(printed), 400)}**; {paper.kind}.", table(headers, body, left=5)]
    notes = notes_of(rows, shared)
    relative = [c.label for c in shared if c.what == "relative"]
    notes += [f"Percent of the dense score: {words(relative)}."] if relative else []
    notes += disagreements(printed, rows)
    return [*parts, *([" ".join(notes)] if notes else [])]


def _our_rows(group: Group) -> list[tuple[str, str, str, str, Record]]:
    """Label, kind, what is removed, recovery and record: dense, then the best row of every section."""
    found = [(code("dense"), code("dense"), MISSING, "", group.dense)] if group.dense is not None else []
    for section in group.sections:
        for row in best_rows(section):
            record = row.shown[0]
            found.append(
                (code(row.label), code(section.kind), _achieved(group, section.kind, row), section.recovery, record)
            )
    return found  # type: ignore[return-value]


def _achieved(group: Group, kind: str, row: Row) -> str:
    plan = row.shown[0].plan
    if plan is None or plan.budget is None:
        return MISSING
    if not removes_layers(kind):
        return share_words(plan, group.model)
    got = plan.budget.achieved
    return f"{100 * got.layers:.4g} % of layers ({got.layers_removed}), {100 * got.model_params:.1f} % of parameters"


def _our_share(group: Group, record: Record, column: Column) -> float | None:
    """The score as a share of full marks, or of the dense score in columns that print such shares."""
    result = next((result for result in record.tasks if column.measures(result)), None)
    if result is None:
        return None
    if column.what != "relative":
        return result.score / result.scale
    dense = result_of(group.dense, result.task) if group.dense else None
    return result.score / dense.score if dense is not None and dense.score else None


def _our_value(group: Group, record: Record, column: Column) -> str:
    share = _our_share(group, record, column)
    return MISSING if share is None else _ours(share * (column.scale or 1.0), column)


def _our_ratios(group: Group, record: Record, shared: Sequence[Column]) -> str:
    """Our own mean of ratios to dense over the table's score columns, all of which are shared."""
    if group.dense is None:
        return MISSING
    scores = [column for column in shared if column.what == "score"]
    mean = mean_of_ratios((c, _our_share(group, record, c), _our_share(group, group.dense, c)) for c in scores)
    return MISSING if mean is None else f"{mean:.1f}"


def _ours(value: float, column: Column) -> str:
    return f"{value:.1f}" if (column.scale or 1.0) >= 10 else f"{value:.3f}"
