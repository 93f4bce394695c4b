"""A task's own aggregation, asked about single questions: what each of them adds to the reported score."""

from __future__ import annotations

import inspect
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunebench_lmms_eval.host import Host
from prunebench_lmms_eval.reported import unwrapped

__all__ = ["Aggregation", "first_order"]

PROBES = 64
"""How many questions are tried as the low one of the two that others are weighed against."""


class Aggregation:
    """The function that turns the values of many questions into the reported score.

    Args:
        function: of the task.
        none_is_zero: take None for 0.
        patience: seconds after which a run of it is given up; some load a model each time that they are called.
    """

    def __init__(self, function: Callable[..., Any], none_is_zero: bool = False, patience: float | None = None) -> None:
        self.function, self.none_is_zero, self.patience = function, none_is_zero, patience
        try:
            self.takes_args = "args" in inspect.signature(function).parameters
        except (TypeError, ValueError):
            self.takes_args = False

    def of(self, groups: Sequence[Sequence[Any]]) -> list[float] | None:
        """The score of each group of values alone; None where one has none, or `patience` is at its end.

        The function may print, log, write files, set seeds and change its values: nothing of that stays.
        """
        extra = {"args": None} if self.takes_args else {}
        scores: list[float] = []
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder, Host(Path(folder)).away():
            for values in groups:
                if self.patience is not None and time.monotonic() - started > self.patience:
                    return None
                copies = [dict(value) if isinstance(value, Mapping) else value for value in values]
                try:
                    found = unwrapped(self.function(copies, **extra))
                except Exception:  # foreign code on fewer values than it was made for
                    return None
                if found is None and self.none_is_zero:
                    found = 0.0
                if not isinstance(found, int | float):
                    return None
                scores.append(float(found))
        return scores


def first_order(
    aggregation: Aggregation, units: Sequence[Sequence[Any]], alone: Sequence[float], whole: float
) -> list[float] | None:
    """Per-question parts of a ratio of sums, such as a corpus' word error rate, precision, recall or F1.

    Let question i have the rate r_i alone and the (unknown) weight w_i, so that any set of questions scores
    R = sum(w_i r_i) / sum(w_i). Weights follow from scoring i together with one other question p, whose weight is
    known: w_i = w_p (r_p - R) / (R - r_i). The part of question i is then R + (r_i - R) w_i N / sum(w): the mean of all
    parts is R, and their spread is the delta method's for R.

    Args:
        units: the values of each unit.
        alone: the score of each unit.
        whole: the score of all.

    Returns:
        One part per unit, or None where weights cannot be had. Whether their mean is `whole`, that is whether the
        metric is of this kind at all, is for the caller to see.
    """
    n = len(alone)
    high = max(range(n), key=alone.__getitem__)
    least = min(alone)
    if alone[high] == least:
        return None
    if whole in (alone[high], least):  # whoever scores otherwise has no weight, or the metric is of another kind
        at = alone.index(whole)
        others = [i for i in range(n) if alone[i] != whole]
        pooled = aggregation.of([[*units[i], *units[at]] for i in others])
        return [whole] * n if pooled is not None and all(one == whole for one in pooled) else None
    lows = sorted((i for i in range(n) if alone[i] < alone[high]), key=alone.__getitem__)[:PROBES]
    pooled = aggregation.of([[*units[i], *units[high]] for i in lows])
    if pooled is None:
        return None
    found = next(((i, r) for i, r in zip(lows, pooled, strict=True) if alone[i] < r < alone[high]), None)
    if found is None:
        return None
    low, rate = found
    weights = dict.fromkeys(range(n), 1.0)
    weights[low] = (alone[high] - rate) / (rate - alone[low])
    others = [i for i in range(n) if i not in (low, high)]
    probes = [high if alone[high] - alone[i] >= alone[i] - alone[low] else low for i in others]
    pooled = aggregation.of([[*units[i], *units[p]] for i, p in zip(others, probes, strict=True)])
    if pooled is None:
        return None
    for i, p, rate in zip(others, probes, pooled, strict=True):
        if rate == alone[i]:
            return None
        weights[i] = weights[p] * (alone[p] - rate) / (rate - alone[i])
        if weights[i] < -1e-9:
            return None
    total = sum(weights.values())
    mean = sum(weights[i] * alone[i] for i in range(n)) / total
    return [mean + (alone[i] - mean) * weights[i] * n / total for i in range(n)]
