"""Calibration robustness as markdown: how far a method's plans agree over calibration sets."""

from __future__ import annotations

from collections.abc import Sequence

from prunebench.report.markdown import MISSING, code, one_line, table, words
from prunebench.robustness import KINDS, Robustness, Stability, Stat

__all__ = ["as_markdown"]

TITLES = {"draws": "Draws", "domains": "Domains", "halves": "Halves"}


def as_markdown(found: Sequence[Robustness], level: str = "##") -> str:
    """A section with one table per model, calibration data and budget; empty without any."""
    if not found:
        return ""
    parts = [
        f"{level} Calibration robustness",
        "The same strategies planned from other calibration samples; nothing was evaluated. τ: Kendall's τ-b of the "
        "scores of all layers. Jaccard: overlap of what is removed. Mean over pairs of sets (lowest pair). "
        + " ".join(f"*{TITLES[kind]}*: {meaning}." for kind, meaning in KINDS.items())
        + f" Where domains agree less than draws, it is the domain that matters. {MISSING} is not defined or not "
        "measured.",
    ]
    for one in found:
        parts.append(_facts(one))
        for budget in dict.fromkeys(row.budget for row in one.rows):
            rows = [row for row in one.rows if row.budget == budget]
            parts += [f"**{budget}**", _table(rows)]
            if lines := _weakest(rows):
                parts.append(lines)
    return "\n\n".join(parts)


def _facts(one: Robustness) -> str:
    counts = {kind: [s for s in one.sets if s.kind == kind] for kind in KINDS}
    known = one.calibration
    domain = f", domain {known.domain}" if known.domain else ""
    lines = [
        f"Model {code(one.model)}, revision {code(one.model_revision[:12])}, {one.dtype}; calibration "
        f"{code(known.dataset)}{domain}, {known.n} samples asked, revision {code(one.calibration_revision[:12])}"
    ]
    for kind, sets in counts.items():
        if not sets:
            continue
        sizes = sorted({s.n for s in sets})
        size = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        passes = sum(s.sample_forwards for s in sets)
        total = sum(s.n for s in sets)
        cost = f"{passes / total:g} forward passes per sample" if passes else "no forward pass in this run"
        shared = one.overlap.get(kind)
        overlap = f", samples overlap {shared:.2f}" if shared is not None else ""
        lines.append(f"{TITLES[kind]}: {len(sets)} sets of {size} samples, {cost}{overlap}")
    if one.independent:
        names = words([code(name) for name in one.independent])
        lines.append(f"Without calibration, and so the same on every set: {names}")
    return "\n".join(f"- {line}" for line in lines)


def _table(rows: Sequence[Stability]) -> str:
    kinds = [kind for kind in KINDS if any(row.kind == kind for row in rows)]
    labels = dict.fromkeys(row.label for row in rows)
    by = {(row.label, row.kind): row for row in rows}

    def order(label: str) -> tuple[float, str]:
        row = by.get((label, kinds[0]))
        mean = row.jaccard.mean if row is not None else None
        return (-mean if mean is not None else 1.0, label)

    notes = {label: _note([by[label, kind] for kind in kinds if (label, kind) in by]) for label in labels}
    headers = ["Strategy", *(f"{TITLES[kind]}: {what}" for kind in kinds for what in ("τ", "Jaccard"))]
    headers += ["Note"] if any(notes.values()) else []
    body = []
    for label in sorted(labels, key=order):
        cells = [code(label)]
        for kind in kinds:
            row = by.get((label, kind))
            cells += [_stat(row.kendall), _stat(row.jaccard)] if row is not None else [MISSING, MISSING]
        body.append([*cells, *([notes[label]] if any(notes.values()) else [])])
    return table(headers, body)


def _weakest(rows: Sequence[Stability]) -> str:
    """Which two domains each strategy agrees on least, where there are more than two domains."""
    parts = []
    for row in rows:
        pairs = [pair for pair in row.pairs if pair.kendall is not None]
        if row.kind == "domains" and len(pairs) > 1:
            low = min(pairs, key=lambda pair: (pair.kendall, pair.jaccard))
            parts.append(f"{code(row.label)} {low.first} and {low.second} (τ {low.kendall:.2f})")
    return f"Domains that agree least: {'; '.join(parts)}." if parts else ""


def _stat(stat: Stat) -> str:
    if stat.mean is None or stat.least is None:
        return MISSING
    return f"{stat.mean:.2f} ({stat.least:.2f})"


def _note(rows: Sequence[Stability]) -> str:
    reasons = [one_line(row.reason, 120) for row in rows if row.reason]
    passes = sum(row.further_passes for row in rows)
    return "; ".join([*dict.fromkeys(reasons), *([f"{passes:.1f} further passes per sample"] if passes else [])])
