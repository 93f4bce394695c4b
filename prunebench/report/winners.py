"""What wins at each budget, and what has no score there, in one table each and in words."""

from __future__ import annotations

from prunebench.comparison import Group, Row, Section
from prunebench.findings import band_verdicts, best_rows, planted_precision
from prunebench.kinds import removes_layers
from prunebench.report.markdown import MISSING, code, percent, spread, table, words
from prunebench.report.tables import name
from prunebench.significance import significance
from prunebench.spread import informed

__all__ = ["holes", "winners"]

NAMED = 3
"""Of more rows that are first with equal scores, the rest is counted."""


def winners(group: Group) -> list[str]:
    """A table with one line per budget, and which strategies are first how often; empty with fewer than two budgets."""
    sections = [section for section in group.sections if section.ranked]
    if group.ranking is None or len(sections) < 2:
        return []
    kinds = {section.kind for section in sections}
    banded, planted = any(section.bands for section in sections), group.model.planted_roles is not None
    headers = ["Budget", "Best", "Score", *(["Planted precision"] if planted else []), "Not told apart from it"]
    headers += ["Above every random draw"] if banded else []
    headers += ["Best row without calibration"]
    body = []
    for section in sections:
        best = best_rows(section)
        others = [row for row in section.ranked if row not in best]
        ties = len(significance(group, section).ties())
        cells = [section.heading(len(kinds) > 1), _named(best), percent(best[0].values(group.ranking)[0])]
        if planted:
            found = [planted_precision(row.records[0]) for row in best]
            cells.append(spread([value for value in found if value is not None], digits=2))
        cells.append(f"{ties} of {len(others)} others" if others else MISSING)
        if banded:
            verdicts = band_verdicts(group, section)
            above = [row for row in section.ranked if all(row in verdict.above for verdict in verdicts)]
            cells.append(f"{len(above)} of {len(section.ranked)}" if verdicts else MISSING)
        blind = next((row for row in section.ranked if not informed(row)), None)
        cells.append(MISSING if blind is None else f"{name(blind)} ({percent(blind.values(group.ranking)[0])})")
        body.append(cells)
    return ["What wins at each budget:", table(headers, body, left=2), _firsts(sections)]


def holes(group: Group) -> str:
    """Which rows have no score at some budgets, in one line; empty where all have."""
    lost: dict[str, list[str]] = {}
    for section in group.sections:
        place = str(section.layers) if section.layers is not None else section.budget
        place += "" if removes_layers(section.kind) else f", kind `{section.kind}`"
        for row in section.rows:
            if not row.records:
                lost.setdefault(row.label, []).append(place)
    if not lost:
        return ""
    texts = [f"{code(label)} ({', '.join(places)})" for label, places in sorted(lost.items())]
    return f"No score, by layers removed: {'; '.join(texts)}. The reason stands in the note of that budget's table."


def _named(best: list[Row]) -> str:
    shown = [name(row) for row in best[:NAMED]]
    return words(shown if len(best) <= NAMED else [*shown, f"{len(best) - NAMED} more"])


def _firsts(sections: list[Section]) -> str:
    """How often each strategy, whatever its variant, is first, where whole layers go and nothing is recovered."""
    own = [section for section in sections if section.kind == "layers" and not section.recovery]
    counts: dict[str, int] = {}
    for section in own:
        for strategy in dict.fromkeys(row.strategy for row in best_rows(section)):
            counts[strategy] = counts.get(strategy, 0) + 1
    order = sorted(counts, key=lambda strategy: (-counts[strategy], strategy))
    texts = [f"{code(strategy)} {counts[strategy]}" for strategy in order]
    return f"First (alone or with equal scores), in any variant, by number of the {len(own)} budgets at which whole " \
        f"layers go and nothing is recovered: {', '.join(texts)}." if texts else ""  # fmt: skip
