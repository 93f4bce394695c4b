"""What of the differences between methods their score explains, and what the selection rule."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunebench import jsonio
from prunebench.comparison import Group, Row
from prunebench.paired import percentiles

__all__ = ["LEVEL", "Structure", "crossed", "score_and_rule"]

LEVEL = 0.95


@dataclass(frozen=True)
class Structure:
    """Shares of the sum of squares over a complete grid of scores × selection rules; they add up to 1.

    Attributes:
        rest: interaction and noise.
        noise: what resampled questions add, as a share of the same sum; part of all three.
        score_interval, rule_interval: 95 % over resampled questions; None without per-question scores.
        lead: rule − score with its interval.
    """

    scores: tuple[str, ...]
    rules: tuple[str, ...]
    score: float
    rule: float
    rest: float
    noise: float | None = None
    score_interval: tuple[float, float] | None = None
    rule_interval: tuple[float, float] | None = None
    lead: np.ndarray | None = None


def crossed(group: Group, rows: Sequence[Row], drawn: np.ndarray | None) -> Structure | None:
    """Two-way decomposition over the largest complete grid of scores × selection rules; None without one.

    Σ(y − ȳ)² = (rules) Σ(score mean − ȳ)² + (scores) Σ(rule mean − ȳ)² + Σ(rest)².

    Args:
        group: for the ranking score.
        rows: candidates; those of one score differ by their ``select`` alone.
        drawn: resampled scores of `rows`, (rows, n_boot).
    """
    cells: dict[str, dict[str, int]] = {}
    for index, row in enumerate(rows):
        if (key := score_and_rule(row)) is not None:
            cells.setdefault(key[0], {}).setdefault(key[1], index)
    rules = sorted({rule for own in cells.values() for rule in own})
    best: tuple[list[str], tuple[str, ...]] = [], ()
    for size in range(2, len(rules) + 1):
        for subset in itertools.combinations(rules, size):
            scores = sorted(score for score, own in cells.items() if set(subset) <= set(own))
            if len(scores) > 1 and len(scores) * size > len(best[0]) * len(best[1]):
                best = scores, subset
    scores, chosen = best
    if not scores or group.ranking is None:
        return None
    places = np.array([[cells[score][rule] for rule in chosen] for score in scores])
    values = np.array([row.values(group.ranking)[0] for row in rows])[places]
    score, rule = _shares(values[:, :, None])
    if np.isnan(score[0]):
        return None  # all alike: nothing to explain
    names = tuple(scores), chosen
    shares = float(score[0]), float(rule[0]), max(0.0, 1 - float(score[0] + rule[0]))
    if drawn is None:
        return Structure(*names, *shares)
    by_score, by_rule = _shares(drawn[places])
    if np.isnan(by_score).any():
        return Structure(*names, *shares)
    variance = float(values.var())
    noise = max(0.0, float(drawn[places].reshape(values.size, -1).var(axis=0).mean()) - variance) / variance
    return Structure(
        *names,
        *shares,
        noise=noise,
        score_interval=percentiles(by_score, LEVEL),
        rule_interval=percentiles(by_rule, LEVEL),
        lead=by_rule - by_score,
    )


def score_and_rule(row: Row) -> tuple[str, str] | None:
    """What scores, with its parameters, and what selects; None for a method without a selection rule."""
    record = row.records[0]
    plan = record.plan
    if plan is None or plan.provenance is None or "select" not in plan.provenance.params:
        return None
    own = {key: value for key, value in record.cell.strategy_params.items() if key not in ("select", "min_gap")}
    return jsonio.canonical([row.strategy, own]), str(plan.provenance.params["select"])


def _shares(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares of score and of rule in the sum of squares of (scores, rules, n), (n,) each; NaN where all are equal."""
    centred = values - values.mean(axis=(0, 1))
    total = (centred**2).sum(axis=(0, 1))
    total = np.where(total > 1e-18, total, np.nan)
    by_score = values.shape[1] * (centred.mean(axis=1) ** 2).sum(axis=0)
    by_rule = values.shape[0] * (centred.mean(axis=0) ** 2).sum(axis=0)
    return by_score / total, by_rule / total
