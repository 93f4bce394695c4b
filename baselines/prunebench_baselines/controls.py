"""Controls that stand in every table: a method that does not beat these has found nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prunebench.budget import Budget
from prunebench.plan import Plan
from prunebench.selection import select_layers
from prunebench.strategy import PlanContext, ScoreStrategy, Strategy

__all__ = ["Dense", "EvenSpacing", "FirstN", "LastN", "LastNKeepFinal", "MiddleN", "Random"]


@dataclass(frozen=True)
class Dense(Strategy):
    """Removes nothing: the row that all others are measured against."""

    name = "dense"
    in_all = False

    def plan(self, context: PlanContext) -> Plan:
        context.budget = Budget(value=0.0)
        return self.build_plan(context, ())


@dataclass(frozen=True)
class Random(ScoreStrategy):
    """Removes layers drawn uniformly without replacement; shown as a band over seeds."""

    name = "random"
    in_all = False
    control = True
    stochastic = True
    meaning = "a random permutation of the layers"

    def score(self, context: PlanContext) -> np.ndarray:
        return np.random.default_rng(context.seed).permutation(context.model.n_layers).astype(float)


@dataclass(frozen=True)
class FirstN(ScoreStrategy):
    """Removes the first n layers."""

    name = "first_n"
    control = True
    meaning = "nearness to the input"

    def score(self, context: PlanContext) -> np.ndarray:
        return -np.arange(context.model.n_layers, dtype=float)


@dataclass(frozen=True)
class LastN(ScoreStrategy):
    """Removes the last n layers."""

    name = "last_n"
    control = True
    meaning = "nearness to the output"

    def score(self, context: PlanContext) -> np.ndarray:
        return np.arange(context.model.n_layers, dtype=float)


@dataclass(frozen=True)
class LastNKeepFinal(LastN):
    """Removes the n layers before the very last one, which stays: the simple baseline of arXiv 2403.17887."""

    name = "last_n_keep_final"
    paper = "https://arxiv.org/abs/2403.17887"

    def never_removed(self, context: PlanContext) -> frozenset[int]:
        return frozenset({context.model.n_layers - 1})


@dataclass(frozen=True)
class MiddleN(ScoreStrategy):
    """Removes the n layers nearest to the middle of the depth."""

    name = "middle_n"
    control = True
    meaning = "nearness to the middle"

    def score(self, context: PlanContext) -> np.ndarray:
        n_layers = context.model.n_layers
        return -np.abs(np.arange(n_layers) - (n_layers - 1) / 2)


@dataclass(frozen=True)
class EvenSpacing(Strategy):
    """Removes n layers at equal distances: the centres of n equal stretches of the depth."""

    name = "even_spacing"
    control = True

    def plan(self, context: PlanContext) -> Plan:
        n_layers, count = context.model.n_layers, context.n_remove
        allowed = [layer for layer in range(n_layers) if layer not in set(context.model.protected)]
        select_layers(np.zeros(n_layers), count, protected=context.model.protected)  # refuses more than may go
        positions = [int((i + 0.5) * len(allowed) / count) for i in range(count)]
        return self.build_plan(
            context, [allowed[p] for p in positions], protected=context.model.protected, selection="even_spacing"
        )
