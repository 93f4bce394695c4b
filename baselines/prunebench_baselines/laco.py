"""LaCo: windows of layers collapsed into one, from the top down, as long as the final state hardly turns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from prunebench.errors import BadParameter, BudgetError
from prunebench.ops import DropLayer, Merge, Op
from prunebench.plan import Plan
from prunebench.strategy import PlanContext, Strategy
from prunebench_baselines.loss_driven import asked_of, check_samples, note_work

__all__ = ["LaCo", "Slot", "collapse"]


@dataclass(frozen=True)
class Slot:
    """A layer of the collapsed model: θ = Σ_k mix[k] θ_k over original layers.

    Attributes:
        layer: the original layer whose place it is.
        mix: original layer → coefficient.
        norms: the original layer that its norms are of, where they are not mixed.
        gone: further original layers that went into it, or went without a trace.
    """

    layer: int
    mix: Mapping[int, float]
    norms: int | None = None
    gone: frozenset[int] = frozenset()

    def operations(self, others: Mapping[int, tuple[str, ...]]) -> list[Op]:
        """What makes it of the dense model; `others` are each layer's parameters that are no norms."""
        lost = sorted(self.gone - set(self.mix))
        ops: list[Op] = [DropLayer(layer=layer) for layer in lost]
        if dict(self.mix) != {self.layer: 1.0}:
            sources = tuple(sorted(self.mix))
            kept = others[self.layer] if self.norms is not None else ()
            ops.append(
                Merge(
                    into=self.layer, sources=sources, coefficients=tuple(self.mix[k] for k in sources), parameters=kept
                )
            )
        return ops


def collapse(window: list[Slot], variant: str) -> Slot:
    """A window of slots as one, in the place of the first.

    ``paper``: θ* = θ_l + Σ_{k≥1} (θ_{l+k} − θ_l). ``released_code`` subtracts the running sum itself instead of θ_l,
    which leaves θ_{l+K}, the last layer of the window; norms are not merged and stay those of layer l.
    """
    first, last = window[0], window[-1]
    gone = frozenset().union(*({slot.layer, *slot.gone} for slot in window)) - {first.layer}
    if variant == "released_code":
        return Slot(first.layer, dict(last.mix), first.layer if first.norms is None else first.norms, gone)
    mix: dict[int, float] = {layer: (2 - len(window)) * value for layer, value in first.mix.items()}
    for slot in window[1:]:
        for layer, value in slot.mix.items():
            mix[layer] = mix.get(layer, 0.0) + value
    return Slot(first.layer, {layer: value for layer, value in mix.items() if value}, None, gone)


@dataclass(frozen=True)
class LaCo(Strategy):
    """Collapses windows of layers where the final state stays alike: θ_l ← θ_l + Σ_k (θ_{l+k} − θ_l).

    LaCo (Yang et al., arXiv 2402.11187, github.com/yangyifei729/LaCo). From l = L − C on downwards the C layers from l
    on become one if cos(final state before, after) > T: the state after the final norm, flattened over a sample's
    tokens, averaged over samples. The scan then goes on `interval` layers lower, and below the end of what is left.

    T is no function of a budget, in the original it is tuned by hand. Without `threshold` the largest T that removes as
    many layers as were asked for is looked for, in steps of `step` from 1 downwards, and written into the plan; the
    last window is made smaller where it would remove too many. With `threshold` as many go as come out.

    Where it is released, merging subtracts the running sum instead of θ_l, so that the last layer of a window takes the
    place of all, with the first one's norms (issues 4 and 5 there): ``variant=released_code``.

    Args:
        window: C, how many layers become one; the original used 7 for Llama-2-13B, 3 for Baichuan2-13B.
        interval: how many layers lower the scan goes on.
        lowest: no window begins below this layer.
        threshold: T; None looks for it.
        step: of T where it is looked for.
        samples: calibration samples, the first ones with domains taking turns; the original used 5 sentences.
        variant: the paper's merge, or what the released code computes.
    """

    name = "laco"
    paper = "https://arxiv.org/abs/2402.11187"
    needs_model = True

    window: int = 4
    interval: int = 1
    lowest: int = 0
    threshold: float | None = None
    step: float = 0.05
    samples: int = 5
    variant: Literal["paper", "released_code"] = "paper"

    def __post_init__(self) -> None:
        check_samples(self.name, self.samples)
        if self.window < 2 or self.interval < 1 or self.lowest < 0 or not 0 < self.step <= 1:
            raise BadParameter("laco: window >= 2, interval >= 1, lowest >= 0 and 0 < step <= 1 are needed")

    def plan(self, context: PlanContext) -> Plan:
        search = _Search(self, context)
        if context.n_remove == 0:
            slots, threshold = search.dense, self.threshold
        elif self.threshold is not None:
            slots, threshold = search.scan(self.threshold, None), self.threshold
            if (gone := context.model.n_layers - len(slots)) != context.n_remove:
                context.warnings.append(
                    f"laco: threshold={threshold:g} removes {gone} layers, {context.n_remove} were asked for"
                )
        else:
            slots, threshold = self._search(search, context)
        context.notes |= {"threshold": threshold, "merges": [_said(slot) for slot in slots if slot.gone]}
        note_work(context, self.samples)
        ops = [op for slot in slots for op in slot.operations(search.others)]
        return self.build_plan(context, ops=ops, protected=context.model.protected, selection="top-down scan")

    def _search(self, search: _Search, context: PlanContext) -> tuple[list[Slot], float]:
        """The first of T = 1 − step, 1 − 2·step, ... that meets the budget."""
        most = 0
        for number in range(1, round(2 / self.step) + 2):
            threshold = 1.0 - number * self.step
            slots = search.scan(threshold, context.n_remove)
            most = max(most, gone := context.model.n_layers - len(slots))
            if gone == context.n_remove:
                return slots, threshold
        raise BudgetError(
            f"laco: {context.n_remove} layers asked for, {most} can be merged away whatever the threshold: "
            "lower the budget, or lowest and interval"
        )


class _Search:
    """Scans of one model; a collapsed model is measured once, however many thresholds look at it."""

    def __init__(self, method: LaCo, context: PlanContext) -> None:
        self.method, self.context = method, context
        self.probe = asked_of(context, method.name, method.samples)
        self.dense = [Slot(layer, {layer: 1.0}) for layer in range(context.model.n_layers)]
        self.others: dict[int, tuple[str, ...]] = {  # layer by layer: some families have layers of several kinds
            layer: tuple(name for name in self.probe.parameter_names(layer) if "norm" not in name)
            for layer in range(context.model.n_layers)
        }
        self._known: dict[str, float] = {}

    def scan(self, threshold: float, budget: int | None) -> list[Slot]:
        """One pass from the top down; at most `budget` layers go."""
        slots, method = self.dense, self.method
        start = max(len(slots) - method.window, method.lowest)
        while start >= method.lowest and (budget is None or len(self.dense) - len(slots) < budget):
            left = len(slots) if budget is None else budget - (len(self.dense) - len(slots))
            more = min(method.window - 1, len(slots) - 1 - start, left)
            if more > 0:
                window = slots[start : start + more + 1]
                merged = [*slots[:start], collapse(window, method.variant), *slots[start + more + 1 :]]
                stay = self.context.model.protected
                if not {slot.layer for slot in window} & set(stay) and self.similarity(merged) > threshold:
                    slots = merged
            start = min(start - method.interval, max(len(slots) - method.window, method.lowest))
        return slots

    def similarity(self, slots: list[Slot]) -> float:
        """Mean over samples of the cosine of the flattened final states, collapsed and dense; −1 where not finite."""
        ops = [op for slot in slots for op in slot.operations(self.others)]
        key = repr(ops)
        if key not in self._known:
            values = self.probe.similarity(Plan.of(self.context.model, ops))
            self._known[key] = float(np.where(np.isfinite(values), values, -1.0).mean())
        return self._known[key]


def _said(slot: Slot) -> dict[str, object]:
    return {"into": slot.layer, "removed": sorted(slot.gone), "mix": {str(k): v for k, v in sorted(slot.mix.items())}}
