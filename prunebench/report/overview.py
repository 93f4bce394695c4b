"""The tables over all budgets: ranking score, a task's own scores, planted precision."""

from __future__ import annotations

from collections.abc import Callable

from prunebench.comparison import Group, Row
from prunebench.findings import planted_precision
from prunebench.kinds import removes_layers
from prunebench.report.markdown import MISSING, code, figure, spread, table

__all__ = ["overview_tables", "precision_tables", "scores_table"]


def overview_tables(group: Group) -> list[tuple[str, str]]:
    """The ranking score of every strategy at every budget, the best in bold: one table per kind and way of recovery.

    Returns:
        (what is ranked apart here, table) for each kind and recovery that has at least two budgets; whole layers that
        go without recovery have an empty name.
    """
    found = []
    for kind, recovery in dict.fromkeys((section.kind, section.recovery) for section in group.sections):
        text = _budgets(group, lambda row: spread(row.values(group.ranking), 100), kind, recovery)
        parts = [f"kind `{kind}`" if kind != "layers" else "", recovery]
        found += [(", ".join(filter(None, parts)), text)] if text else []
    return found


def precision_tables(group: Group) -> list[str]:
    """Planted precision in the rows and columns of the overviews without recovery; empty where nothing is planted."""
    if group.model.planted_roles is None:
        return []

    def text(row: Row) -> str:
        return spread([value for record in row.shown if (value := planted_precision(record)) is not None], digits=2)

    kinds = dict.fromkeys(section.kind for section in group.sections if removes_layers(section.kind))
    return [found for kind in kinds if (found := _budgets(group, text, kind, bold=False))]


def scores_table(group: Group, task: str) -> str | None:
    """One task's own scores in the rows and columns of the first overview, the row ranked first in bold."""
    logs, (scale, digits) = task in group.log_scale, group.display(task)

    def text(row: Row) -> str:
        found = [result.score for record in row.records if (result := row.result(task, record))]
        return spread(found, scale, digits, form=figure if logs else None, logs=logs)

    return _budgets(group, text)


def _budgets(
    group: Group, form: Callable[[Row], str], kind: str = "layers", recovery: str = "", *, bold: bool = True
) -> str | None:
    sections = [s for s in group.sections if s.ranked and (s.kind, s.recovery) == (kind, recovery)]
    if len(sections) < 2:
        return None
    scores: dict[str, dict[int, str]] = {}
    means: dict[str, list[float]] = {}
    for column, section in enumerate(sections):
        for row in section.rows:
            values = row.values(group.ranking)
            if not values:
                continue
            text = form(row)
            scores.setdefault(row.label, {})[column] = f"**{text}**" if bold and row.rank == 1 else text
            means.setdefault(row.label, []).append(sum(values) / len(values))
    order = sorted(scores, key=lambda label: (-len(means[label]), -sum(means[label]) / len(means[label]), label))
    body = [[code(label), *(scores[label].get(i, MISSING) for i in range(len(sections)))] for label in order]
    # Kind and recovery stand above the table, not in each of its headings.
    return table(["Strategy", *(section.budget for section in sections)], body)
