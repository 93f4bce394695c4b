"""The conformance kit on methods that thin: right ones pass, and each mistake is caught by the check of that name."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from prunebench import testing
from prunebench.kinds import n_of_m
from prunebench.layerwise import LayerwiseStrategy, Thinned
from prunebench.ops import DropLayer, SetWeights
from prunebench.plan import Plan
from tests.layerwise.walks import RowWise


class Keeping(RowWise):
    """The largest of each row, or of each M neighbours."""

    def __init__(self, share, pattern):
        super().__init__(share)
        self.groups = n_of_m(pattern)

    def keep(self, view):
        if self.groups is None:
            return super().keep(view)
        sizes = (view.weight.abs().double() * view.squares.sqrt()).unflatten(1, (-1, self.groups[1]))
        order = sizes.argsort(dim=-1, descending=True)[..., : self.groups[0]]
        return torch.zeros_like(sizes, dtype=torch.bool).scatter_(-1, order, True).flatten(1)


@dataclass(frozen=True)
class Right(LayerwiseStrategy):
    """The smallest of a row go: score_ij = |W_ij| ‖x_j‖."""

    name = "right"
    samples: int = 4

    def asked(self, context):
        return context.share

    def thinner(self, context, scout):
        return Keeping(self.asked(context), self.pattern)


def why(cls, params=None):
    report = testing.check_strategy(cls, [testing.tiny_benches()[0]], params)
    assert all("\n" not in result.reason for result in report.results)
    return {result.name: result.reason for result in report.results if result.status == "failed"}, report


@pytest.mark.parametrize("pattern", ["unstructured", "1:4"])
def test_right_ones_pass(pattern):
    failed, report = why(Right, {"pattern": pattern})
    assert not failed
    skipped = {result.name for result in report.results if result.status == "skipped"}
    assert skipped == {"trace-untouched", "budget", "largest-budget", "protected", "scores"}


def wrong(**members):
    return dataclass(frozen=True)(type("Wrong", (Right,), {"name": "wrong", "__doc__": Right.__doc__, **members}))


def planned(change):
    def plan(self, context):
        return change(context, LayerwiseStrategy.plan(self, context))

    return plan


def with_ops(context, plan, ops, tensors=()):
    parts = {"kind": plan.kind, "provenance": plan.provenance, "cost": plan.cost, "budget": plan.budget}
    return Plan.of(context.model, [*plan.ops, *ops], {**plan.tensors, **dict(tensors)}, **parts)


def norm_too(context, plan):
    name = "input_layernorm.weight"
    return with_ops(context, plan, [SetWeights(layer=2, tensors="n")], {f"n.{name}": torch.ones(32)})


def lying(context, plan):
    achieved = plan.budget.achieved
    achieved = achieved.model_copy(update={"params_zeroed": achieved.params_zeroed + 7})
    return plan.model_copy(update={"budget": plan.budget.model_copy(update={"achieved": achieved})})


def layer_too(context, plan):
    kept = [op for op in plan.ops if op.layer != 3]
    tensors = {name: value for name, value in plan.tensors.items() if not name.startswith("keep.3.")}
    return Plan.of(context.model, [*kept, DropLayer(layer=3)], tensors, kind=plan.kind, budget=plan.budget)


WRONG = {
    "half of what was asked": (wrong(asked=lambda self, c: c.share / 2), "zeros", "is 11520, the plan makes"),
    "always as many": (wrong(asked=lambda self, c: 0.25), "zeros", "sparsity 0.5 of 46080 weights is 23040"),
    "other parameters": (wrong(plan=planned(norm_too)), "zeros", "input_layernorm.weight of layer 2 changes"),
    "a layer goes too": (wrong(plan=planned(layer_too)), "zeros", "layers [3] or parts of layers go"),
    "a number that is not so": (wrong(plan=planned(lying)), "zeros", "weights become zero"),
    "another kind than declared": (
        wrong(plan=planned(lambda c, p: p.model_copy(update={"kind": "2:4"}))),
        "contract",
        "the plan is of kind '2:4', the strategy declares 'weights'",
    ),
    "an unknown kind": (wrong(kind="heads"), "declaration", "kind is 'heads': it has to be one of"),
}


@pytest.mark.parametrize(("cls", "name", "words"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_one_is_caught_by_name(cls, name, words):
    failed, _ = why(cls)
    assert words in failed.get(name, ""), failed


def test_kinds_may_be_patterns():
    failed, _ = why(wrong(kind="3:5"))
    assert "declaration" not in failed
    assert Thinned(torch.ones(1, 1, dtype=torch.bool)).weight is None
