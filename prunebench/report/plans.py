"""Plans side by side as text for a terminal of 120 columns: scores, removed layers, overlap and rank correlation."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from prunebench.kinds import share_words
from prunebench.model_info import ModelInfo
from prunebench.ops import ReplaceBlock
from prunebench.plan import Plan
from prunebench.side_by_side import Planned, SideBySide

__all__ = ["WIDTH", "describe", "layer_map", "score_columns", "triangle"]

WIDTH = 120
UNKNOWN = "–"
MARKS = "# whole layer, a its attention, m its MLP, R replaced by another module"
View = Literal["standardised", "raw", "ranks"]
VIEWS = {
    "standardised": "scores, (score − mean) / standard deviation over layers; the highest goes first",
    "raw": "scores as the methods give them; the highest goes first",
    "ranks": "ranks of the scores; 1 goes first",
}


def describe(found: SideBySide, view: View = "standardised") -> str:
    """All of one budget: calibration, methods, scores, removed layers, and how far the methods agree."""
    rows = found.of_layers
    parts = [f"{found.budget} of {found.model.name} ({found.model.n_layers} decoder layers)", _passes(found)]
    if failed := [row for row in found.rows if row.plan is None]:
        lines = [f"{row.label}: {row.reason.removeprefix(f'{row.strategy}: ')}" for row in failed]
        parts.append("\n".join(["not planned:", *(_wrapped(line, "  ") for line in lines)]))
    if others := found.of_other_kinds:
        lines = [_wrapped(_other(row, found.model), "  ") for row in others if row.plan is not None]
        parts.append("\n".join(["no layer goes, ranked by kind and apart from those below:", *lines]))
    if not rows:
        none = [] if others else ["no strategy could be planned"]
        return "\n\n".join([*parts, *none]) + "\n"
    parts.append(f"removed layers ({MARKS})\n{_map(rows)}")
    if any(row.scores is not None for row in rows):
        parts.append(f"{VIEWS[view]}; * removed, {UNKNOWN} no score\n{_scores(rows, view)}")
    if len(rows) > 1:
        parts.append(f"Jaccard overlap of what is removed\n{triangle(rows, found.jaccard(rows))}")
    if sum(row.scores is not None for row in rows) > 1:
        for name, key in (("Kendall τ-b", "kendall"), ("Spearman ρ", "spearman")):
            note = f"{name} of the scores over all layers ({UNKNOWN}: no score, or the same for every layer)"
            parts.append(f"{note}\n{triangle(rows, found.correlation(key, rows))}")
    return "\n\n".join(parts) + "\n"


def _other(row: Planned, model: ModelInfo) -> str:
    """``NAME, kind weights: 50.0 % of ...``"""
    assert row.plan is not None
    return f"{row.label}, kind {row.plan.kind}: {share_words(row.plan, model)}"


def score_columns(rows: Sequence[Planned], view: View) -> list[list[str]]:
    """One column of texts per method, one text per layer, removed layers with a star."""
    found = []
    for row in rows:
        assert row.plan is not None
        count, gone = row.plan.target.n_layers, set(row.plan.removed_layers)
        values = [None] * count if row.scores is None else _seen(np.array(row.scores), view)
        texts = map(_FORMS[view], values)
        found.append([f"{text}{'*' if layer in gone else ' '}" for layer, text in enumerate(texts)])
    return found


def layer_map(plan: Plan) -> str:
    """One character per layer: ``#`` gone, ``a`` and ``m`` without attention or MLP, ``R`` replaced, ``.`` stays."""
    marks = ["."] * plan.target.n_layers
    for layer, part in plan.removed_sublayers:
        marks[layer] = part[0]
    for op in plan.ops:
        if isinstance(op, ReplaceBlock):
            marks[op.start] = "R"
    for layer in plan.removed_layers:
        marks[layer] = "#"
    return "".join(marks)


def triangle(rows: Sequence[Planned], values: Sequence[Sequence[float | None]]) -> str:
    """The lower half of a symmetric matrix, methods by their numbers, broken into pieces that fit the width."""
    wide = _name_width(rows)
    fit = max(1, (WIDTH - wide - 4) // 5)
    pieces = []
    for start in range(0, len(rows) - 1, fit):
        columns = range(start, min(start + fit, len(rows) - 1))
        lines = [" " * (wide + 4) + "".join(f"{column + 1:>5}" for column in columns)]
        for i in range(start + 1, len(rows)):
            lines.append(_head(i, rows[i], wide) + "".join(f"{_short(values[i][j]):>5}" for j in columns if j < i))
        pieces.append("\n".join(lines))
    return "\n\n".join(pieces)


def _passes(found: SideBySide) -> str:
    """What the scores cost in forward passes, as counted."""
    shared = found.calibration
    if shared.reused:
        text = f"calibration: statistics of {shared.samples} samples read from disk, no forward pass"
    elif shared.samples:
        text = (
            f"calibration: {shared.samples} samples, {shared.forwards} forward passes of single samples counted = "
            f"{shared.per_sample:g} per sample for all statistics ({shared.seconds:.1f} s)"
        )
    else:
        text = "calibration: no strategy here reads statistics, no forward pass"
    further = [f"{row.label} {row.passes:.1f}" for row in found.rows if row.passes > 0]
    if not further:
        return text
    return "\n".join([text, _wrapped(f"further full passes per sample: {', '.join(further)}")])


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ")


def _map(rows: Sequence[Planned]) -> str:
    wide = _name_width(rows)
    maps = [layer_map(row.plan) for row in rows if row.plan is not None]
    piece, pieces = WIDTH - wide - 12, []
    for start in range(0, len(maps[0]), piece):
        ids = range(start, min(start + piece, len(maps[0])))
        tens = "".join(str(i // 10 % 10) if i % 10 == 0 and i else " " for i in ids)
        lines = [" " * (wide + 6) + tens, " " * (wide + 6) + "".join(str(i % 10) for i in ids)]
        for i, (row, marks) in enumerate(zip(rows, maps, strict=True)):
            lines.append(f"{_head(i, row, wide)}  {marks[ids.start : ids.stop]}  {_gone(row.plan):>4}")
        pieces.append("\n".join(line.rstrip() for line in lines))
    return "\n\n".join(pieces)


def _gone(plan: Plan | None) -> str:
    """Layers that go, a part of one counted as a half."""
    if plan is None:
        return "0"
    return f"{len(plan.removed_layers) + len(plan.removed_sublayers) / 2:g}"


def _scores(rows: Sequence[Planned], view: View) -> str:
    columns = score_columns(rows, view)
    wide = max(len(text) for column in columns for text in column) + 1
    fit = max(1, (WIDTH - 5) // wide)
    pieces = []
    for start in range(0, len(rows), fit):
        shown = columns[start : start + fit]
        lines = ["layer" + "".join(f"{start + i + 1:>{wide - 1}} " for i in range(len(shown)))]
        lines += [
            f"{layer:>5}" + "".join(f"{column[layer]:>{wide}}" for column in shown) for layer in range(len(shown[0]))
        ]
        pieces.append("\n".join(line.rstrip() for line in lines))
    return "\n\n".join(pieces)


def _name_width(rows: Sequence[Planned]) -> int:
    return min(32, max(len(row.label) for row in rows))


def _head(number: int, row: Planned, wide: int) -> str:
    label = row.label if len(row.label) <= wide else row.label[: wide - 1] + "…"
    return f"{number + 1:>3} {label:<{wide}}"


def _seen(scores: np.ndarray, view: View) -> list[float | None]:
    if view == "ranks":
        from scipy.stats import rankdata

        return rankdata(-scores, method="average").tolist()
    if view == "raw":
        return scores.tolist()
    spread = scores.std()
    return ((scores - scores.mean()) / spread).tolist() if np.ptp(scores) > 0 else [None] * len(scores)


def _standard(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:+.2f}"


def _rank(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:g}"


def _raw(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.4g}"


_FORMS: dict[str, Callable[[float | None], str]] = {"standardised": _standard, "ranks": _rank, "raw": _raw}


def _short(value: float | None) -> str:
    """``.83``, ``1.0``, ``-.25``: two digits in four columns."""
    if value is None:
        return UNKNOWN
    text = f"{value:.2f}"
    if text in ("1.00", "-1.00", "0.00", "-0.00"):
        return text[:-1].replace("-0.0", "0.0")
    return text.replace("0.", ".", 1)
