"""What ScoreStrategy does with the optional parts of a method: windows, rescoring, layers that never go, operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from prunebench.budget import Budget
from prunebench.errors import BadParameter, BudgetError, PlanError
from prunebench.ops import DropSublayer, Fold, SetWeights
from prunebench.plan import ScoreTable
from prunebench.strategy import PlanContext, ScoreStrategy
from tests.factories import make_model

CALLS: list[tuple] = []


@dataclass(frozen=True)
class Depth(ScoreStrategy):
    """Deeper layers go first."""

    name = "depth"

    def score(self, context):
        CALLS.append(("score",))
        return np.arange(context.model.n_layers)


@dataclass(frozen=True)
class Blocks(Depth):
    """Blocks that start early score high, whatever their layers score."""

    name = "blocks"

    def windows(self, context):
        CALLS.append(("windows",))
        n_layers = context.model.n_layers
        windows = np.full((n_layers + 1,) * 2, np.nan)
        for start in range(n_layers):
            windows[start, start + 1 :] = -start
        return windows


@dataclass(frozen=True)
class Falling(Depth):
    """Once a layer is gone, the one before it is best."""

    name = "falling"

    def rescore(self, context, removed):
        CALLS.append(removed)
        return -np.abs(np.arange(context.model.n_layers) - (min(removed) - 2.0))


@dataclass(frozen=True)
class Careful(Depth):
    """Keeps layer 6 and rounds its budget down to an even number."""

    name = "careful"
    kept: ClassVar[int] = 6

    def never_removed(self, context):
        return frozenset({self.kept})

    def layers_to_remove(self, context):
        return context.n_remove // 2 * 2


def context(n: int, **changes) -> PlanContext:
    CALLS.clear()
    return PlanContext(model=make_model(8).model_copy(update=changes), budget=Budget(value=n, unit="layers"))


def test_windows_decide_what_blocks_are_worth():
    assert Depth(select="contiguous").plan(context(3)).removed_layers == (5, 6, 7)
    assert Blocks(select="contiguous").plan(context(3)).removed_layers == (0, 1, 2)
    assert Blocks(select="contiguous").plan(context(3, protected=(1,))).removed_layers == (2, 3, 4)
    assert Blocks(select="triplet").plan(context(2)).removed_layers == (1, 4)


@pytest.mark.parametrize("rule", ["independent", "spaced", "global_threshold"])
def test_windows_are_not_asked_for_where_no_rule_reads_them(rule):
    Blocks(select=rule).plan(context(2))
    assert CALLS == [("score",)]


def test_greedy_by_windows_asks_for_them_once():
    plan = Blocks(select="greedy").plan(context(4))
    assert plan.provenance.notes["removal_order"] == [7, 0, 1, 2]  # by its own score, then the run from the start
    assert CALLS == [("score",), ("windows",)]
    found = Blocks().rescore(context(4), (1, 4))
    np.testing.assert_array_equal(found, [0.0, np.nan, -1.0, -3.0, np.nan, -4.0, -6.0, -7.0])


def test_greedy_asks_a_method_that_can_score_anew():
    plan = Falling(select="greedy").plan(context(4))
    assert plan.provenance.notes["removal_order"] == [7, 5, 3, 1]
    assert CALLS == [("score",), (7,), (7, 5), (7, 5, 3)]
    assert Falling().plan(context(4)).removed_layers == (4, 5, 6, 7) and CALLS == [("score",)]


def test_scores_without_rescoring_stay_what_they_were():
    np.testing.assert_array_equal(Depth().rescore(context(2), (7,)), np.arange(8.0))
    assert Depth(select="greedy").plan(context(3)).provenance.notes["removal_order"] == [7, 6, 5]


def test_a_method_may_keep_layers_and_round_by_itself():
    plan = Careful(protect_last=1).plan(context(5))
    assert plan.removed_layers == (2, 3, 4, 5) and plan.provenance.protected == (6, 7)
    assert (plan.budget.layers_asked, plan.budget.achieved.layers_removed) == (5, 4)
    assert Careful().must_stay(context(1, protected=(0,))) == {0}
    assert Careful().protected_layers(context(1, protected=(0,))) == {0, 6}
    with pytest.raises(BudgetError, match=r"6 layers asked for, but only 5 of 8 may go \(protected: \[0, 6, 7\]\)"):
        Careful(protect_first=1, protect_last=1).plan(context(7))


def test_negative_protection_and_an_epsilon_without_its_rule_are_refused():
    with pytest.raises(BadParameter, match="depth: protect_first and protect_last must not be negative"):
        Depth(protect_first=-1).plan(context(1))
    with pytest.raises(BadParameter, match="epsilon is for select=global_threshold, not for select=independent"):
        Depth.from_params({"epsilon": "0.5"})


def test_a_table_is_taken_as_it_is():
    table = ScoreTable(values=(0.0,) * 7 + (1.0,), meaning="the last", columns={"more": (2.0,) * 8})
    choice = type("Table", (Depth,), {"score": lambda self, context: table})().choose(context(1))
    assert choice.layers == [7] and choice.scores == table


@pytest.mark.parametrize("count", [7, 9])
def test_a_table_of_another_depth_is_refused(count):
    table = ScoreTable(values=(0.0,) * count, meaning="too few or too many")
    wrong = type("Table", (Depth,), {"score": lambda self, context: table})
    with pytest.raises(PlanError, match=rf"depth: score\(\) must return 8 values, got shape \({count},\)"):
        wrong().choose(context(1))


def test_the_summary_is_the_first_line_of_the_docstring():
    assert Depth.summary() == "Deeper layers go first."
    for text, line in (("", ""), ("  ", ""), ("\n    One.\n\n    More.\n", "One."), (None, "")):
        assert type("Other", (Depth,), {"__doc__": text}).summary() == line


def test_warnings_of_a_rule_are_the_strategy_s():
    asked = context(2)
    plan = Depth(select="global_threshold", epsilon=0.5).plan(asked)
    assert plan.removed_layers == (4, 5, 6, 7)
    assert plan.provenance.warnings == ("depth: global_threshold: epsilon=0.5 removes 4 layers, 2 were asked for",)


def test_a_plan_with_operations_and_tensors():
    matrix = np.eye(4, dtype=np.float32)
    plan = Depth().build_plan(
        context(2),
        [3],
        ops=[Fold(layer=2, module="mlp.down_proj", side="out", tensor="map")],
        tensors={"map": matrix},
        selection="by hand",
    )
    assert plan.removed_layers == (3,) and [op.op for op in plan.ops] == ["drop_layer", "fold"]
    assert plan.budget.achieved.layers_removed == 1 and plan.budget.layers_asked == 2
    np.testing.assert_array_equal(plan.tensors["map"], matrix)
    other = Depth().build_plan(context(2), [3], ops=plan.ops[1:], tensors={"map": 2 * matrix})
    assert other.digest != plan.digest
    assert Depth().build_plan(context(2)).is_empty


@pytest.mark.parametrize(
    ("layers", "ops", "words"),
    [
        ([9], [], "layer 9 does not exist"),
        ([3, 3], [], "two operations touch layer 3"),
        ([3], [SetWeights(layer=3, tensors="w")], "layer 3"),
        ([], [SetWeights(layer=3, tensors="w")], "needs tensors 'w"),
        ([], [DropSublayer(layer=8, part="mlp")], "layer 8 does not exist"),
        (range(8), [], "removes every layer"),
    ],
)
def test_operations_that_do_not_fit_are_refused(layers, ops, words):
    with pytest.raises(PlanError, match=words):
        Depth().build_plan(context(2), layers, ops=ops)


def test_a_probe_that_was_not_made_is_told():
    with pytest.raises(PlanError, match="no probe was made: set needs_model = True"):
        context(1).need_probe()
