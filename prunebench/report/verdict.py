"""One budget's findings in plain words."""

from __future__ import annotations

from prunebench.comparison import DENSE, Group, Section
from prunebench.findings import band_verdicts, best_rows
from prunebench.report.definitions import RANKINGS
from prunebench.report.markdown import code, percent, words
from prunebench.report.tables import name
from prunebench.significance import ALPHA, Significance, significance

__all__ = ["verdict"]

MIN_DRAWS = 5
NAMED = 3
"""Of more rows that tie with the best, the rest is counted: the table has their group."""


def verdict(group: Group, section: Section) -> str:
    """Who is best, who ties with it, what the questions can tell, and who does not beat the bands."""
    best = best_rows(section)
    if not best or group.ranking is None:
        return "No row can be ranked here."
    top = percent(best[0].values(group.ranking)[0])
    who = words([name(row) for row in best])
    told = significance(group, section)
    lines = [f"**Best: {who}** with {top} ({RANKINGS[group.ranking]})."]
    if tied := [name(row) for row in told.ties()]:
        tied = tied if len(tied) <= NAMED + 1 else [*tied[:NAMED], f"{len(tied) - NAMED} more"]
        lines.append(f"Not told apart from {name(best[0])}: {words(tied)}.")
    lines += [*_against_dense(group, told), *_detectable(told)]
    for found in band_verdicts(group, section):
        seeds = len(found.band.records)
        band = f"{name(found.band)}, {percent(found.low)} to {percent(found.high)}"
        if not found.above:
            lines.append(f"**No strategy is above every draw of the band {band}.**")
        elif found.not_above:
            lines.append(f"Not above every draw of the band {band}: {words([name(row) for row in found.not_above])}.")
        else:
            lines.append(f"Every ranked strategy is above every draw of the band {band}.")
        below = [name(row) for row in found.not_above if row.values(group.ranking)[0] < found.mean]
        if seeds < MIN_DRAWS:
            lines.append(f"{seeds} draws are few for a band: take at least {MIN_DRAWS} seeds.")
        if below:
            lines.append(f"Below that band's mean of {percent(found.mean)}: {words(below)}.")
    return " ".join(lines)


def _against_dense(group: Group, told: Significance) -> list[str]:
    rows = told.against_dense
    if not rows:
        return []
    alike = [row for row, p in rows.items() if p > ALPHA]
    if not alike:
        return [
            f"Every ranked row is told apart from {code(DENSE)}."
            if len(rows) > 1
            else f"Told apart from {code(DENSE)}."
        ]
    if len(rows) == 1:
        return [f"Not told apart from {code(DENSE)}."]
    lowest = f"{name(alike[-1])}, {percent(alike[-1].values(group.ranking)[0])}"
    last = f", down to {lowest}" if len(alike) > 1 else f": {lowest}"
    return [f"{len(alike)} of {len(rows)} ranked rows are not told apart from {code(DENSE)}{last}."]


def _detectable(told: Significance) -> list[str]:
    if told.detectable is None:
        return []
    effect = f", design effect of shared images or videos {told.design_effect:.1f}" if told.design_effect != 1.0 else ""
    return [f"Smallest difference to the best that these questions detect: {percent(told.detectable)} points{effect}."]
