"""Greedy search over attentions and MLPs: the part whose absence does least damage goes, again and again."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunebench.errors import BudgetError, PlanError
from prunebench.ops import PARTS, DropSublayer, Part
from prunebench.plan import Plan, ScoreTable
from prunebench.strategy import PlanContext, Strategy
from prunebench_baselines.loss_driven import check_samples, note_work

__all__ = ["GreedySublayers", "Sublayer"]

Sublayer = tuple[int, Part]


@dataclass(frozen=True)
class GreedySublayers(Strategy):
    """Base of methods that remove parts of layers one by one; n layers asked for are 2n parts removed.

    A layer whose two parts both go is dropped whole. One attention always stays: without any, no token would see
    another. Of parts that do equal damage the deeper one goes, of one layer its MLP.
    """

    kind = "sublayers"
    needs_model = True
    meaning = ""

    samples: int = 64

    def __post_init__(self) -> None:
        check_samples(self.name, self.samples)

    @abc.abstractmethod
    def damage(self, context: PlanContext, candidates: Sequence[Sublayer], removed: Sequence[Sublayer]) -> np.ndarray:
        """What it costs to remove each candidate once `removed` are gone, (candidates,); the least goes."""

    def plan(self, context: PlanContext) -> Plan:
        count = 2 * context.n_remove
        free = self._free(context)
        if count > len(free):
            raise BudgetError(
                f"{self.name}: {context.n_remove} layers are {count} parts, and {len(free)} may go: lower the budget"
            )
        first: dict[Sublayer, float] = {}
        removed: list[Sublayer] = []
        while len(removed) < count or not first:
            candidates = [part for part in free if part not in removed and not _is_last(part, removed, context)]
            if not candidates:
                raise BudgetError(
                    f"{self.name}: after {len(removed)} of {count} parts only one attention is left, and it stays: "
                    "lower the budget"
                )
            found = self.damage(context, candidates, removed)
            first = first or dict(zip(candidates, found.tolist(), strict=True))
            if len(removed) < count:
                removed.append(min(zip(found, candidates, strict=True), key=_order)[1])
        context.notes["removal_order"] = [f"{layer}.{part}" for layer, part in removed]
        note_work(context, self.samples)
        return self.build_plan(
            context,
            ops=[DropSublayer(layer=layer, part=part) for layer, part in sorted(removed)],
            scores=self._table(context, first),
            protected=context.model.protected,
            selection="greedy over sub-layers",
        )

    def _free(self, context: PlanContext) -> list[Sublayer]:
        layers = [layer for layer in range(context.model.n_layers) if layer not in context.model.protected]
        for layer in layers:
            cost = context.model.layers[layer]
            if cost.attention is None or cost.mlp is None:
                raise PlanError(
                    f"{self.name}: layer {layer} of {context.model.name} has no attention and MLP that can be told "
                    "apart: use a method that removes whole layers"
                )
        return [(layer, part) for layer in layers for part in PARTS]

    def _table(self, context: PlanContext, first: dict[Sublayer, float]) -> ScoreTable:
        """Before the first removal: minus the damage of each part, and its sum by layer; the worst where it stays."""
        worst = max(first.values())
        columns = {
            part: tuple(-first.get((layer, part), worst) for layer in range(context.model.n_layers)) for part in PARTS
        }
        values = tuple(sum(pair) for pair in zip(*columns.values(), strict=True))
        return ScoreTable(values=values, meaning=f"minus the sum over both parts: {self.meaning}", columns=columns)


def _order(item: tuple[float, Sublayer]) -> tuple[float, int, int]:
    damage, (layer, part) = item
    return float(damage), -layer, -PARTS.index(part)


def _is_last(part: Sublayer, removed: Sequence[Sublayer], context: PlanContext) -> bool:
    gone = sum(kind == "attention" for _, kind in removed)
    return part[1] == "attention" and gone == context.model.n_layers - 1
