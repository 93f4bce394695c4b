"""Plans: artefacts that survive a round trip, are told apart by what they do, and refuse nonsense in one line."""

from __future__ import annotations

import json

import pytest

from prunebench.budget import Budget, BudgetReport, achieved
from prunebench.errors import PlanError, StoreError
from prunebench.ops import DropLayer
from prunebench.plan import Plan, PlanCost, Provenance, ScoreTable, Target
from tests.factories import make_model

MODEL = make_model(8)


def full_plan() -> Plan:
    return Plan.drop(
        MODEL,
        (5, 2),
        scores=ScoreTable(values=tuple(i / 8 for i in range(8)), meaning="depth", columns={"twice": tuple(range(8))}),
        budget=BudgetReport(asked=Budget(value=0.25), layers_asked=2, achieved=achieved(MODEL, (5, 2))),
        provenance=Provenance(strategy="alpha", params={"k": 3}, protected=(0, 7), warnings=("careful",)),
        cost=PlanCost(forward_passes=4, search_seconds=0.5),
    )


def write(tmp_path, text: str):
    path = tmp_path / "plan.json"
    path.write_text(text, encoding="utf-8")
    return path


def one_line(error: pytest.ExceptionInfo, *words: str) -> None:
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


# -- what a plan says --------------------------------------------------------------------------------------------------


def test_removed_and_kept_layers_are_ascending_and_complementary():
    plan = Plan.drop(MODEL, (6, 1, 4))
    assert plan.removed_layers == (1, 4, 6) and plan.kept_layers == (0, 2, 3, 5, 7)


def test_the_empty_plan_keeps_every_layer():
    plan = Plan.drop(MODEL)
    assert plan.is_empty and plan.removed_layers == () and plan.kept_layers == tuple(range(8))
    assert not Plan.drop(MODEL, (0,)).is_empty
    assert Plan.from_json(plan.to_json()) == plan


def test_a_plan_comes_back_as_it_went(tmp_path):
    plan = full_plan()
    assert Plan.from_json(plan.to_json()) == plan
    path = tmp_path / "folder" / "plan.json"
    plan.save(path)
    assert Plan.load(path) == plan and Plan.load(path).digest == plan.digest
    raw = json.loads(path.read_text(encoding="utf-8"))
    assert raw["ops"] == [{"op": "drop_layer", "layer": 2}, {"op": "drop_layer", "layer": 5}]
    assert raw["schema_version"] == 1 and raw["provenance"]["strategy"] == "alpha"


# -- digest ------------------------------------------------------------------------------------------------------------


def test_the_digest_does_not_depend_on_why_how_or_in_which_order():
    bare = Plan.drop(MODEL, (2, 5))
    assert full_plan().digest == bare.digest
    turned = Plan(target=bare.target, ops=tuple(reversed(bare.ops)))
    assert turned.ops != bare.ops and turned.digest == bare.digest
    assert len(bare.digest) == 64 and int(bare.digest, 16) >= 0


def test_the_digest_depends_on_layers_and_on_the_weights_they_are_taken_from():
    base = Plan.drop(MODEL, (2, 5))
    others = [
        Plan.drop(MODEL, (2, 6)),
        Plan.drop(MODEL, (2,)),
        Plan.drop(MODEL),
        Plan.drop(make_model(9), (2, 5)),
        Plan.drop(make_model(8, name="other"), (2, 5)),
        Plan.drop(MODEL.model_copy(update={"revision": "later"}), (2, 5)),
    ]
    assert len({base.digest, *(other.digest for other in others)}) == 7


# -- diff --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "only_first", "only_second", "common", "jaccard"),
    [
        ((1, 2, 3), (2, 3, 4, 5), (1,), (4, 5), (2, 3), 2 / 5),
        ((1, 2), (3, 4), (1, 2), (3, 4), (), 0.0),
        ((1, 2), (1, 2), (), (), (1, 2), 1.0),
        ((), (1,), (), (1,), (), 0.0),
        ((), (), (), (), (), 1.0),
    ],
)
def test_diff_against_numbers_by_hand(first, second, only_first, only_second, common, jaccard):
    diff = Plan.drop(MODEL, first).diff(Plan.drop(MODEL, second))
    assert (diff.only_first, diff.only_second, diff.common) == (only_first, only_second, common)
    assert diff.jaccard == pytest.approx(jaccard)


def test_plans_for_models_of_different_depth_cannot_be_compared():
    with pytest.raises(PlanError, match="8 and 9 layers") as caught:
        Plan.drop(MODEL, (1,)).diff(Plan.drop(make_model(9), (1,)))
    one_line(caught)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ((3, 3), "two operations touch layer 3"),
        ((8,), "layer 8 does not exist: the model has layers 0..7"),
        ((-1,), "greater than or equal to 0"),
        (range(8), "removes every layer"),
    ],
)
def test_inconsistent_layers_are_refused_in_one_line(layers, words):
    with pytest.raises(PlanError) as caught:
        Plan.drop(MODEL, layers)
    one_line(caught, words)


def test_all_layers_but_one_may_go():
    assert Plan.drop(MODEL, range(1, 8)).kept_layers == (0,)


def test_scores_for_another_number_of_layers_are_refused():
    with pytest.raises(PlanError, match="3 scores for 8 layers"):
        Plan.drop(MODEL, (1,), scores=ScoreTable(values=(1, 2, 3), meaning="too few"))


def changed(**changes) -> str:
    return json.dumps({**json.loads(full_plan().to_json()), **changes})


REFUSED = {
    "unknown operation": (changed(ops=[{"op": "halve_layer", "layer": 1}]), "drop_layer"),
    "unknown field": (changed(surprise=1), "surprise"),
    "unknown field of an operation": (changed(ops=[{"op": "drop_layer", "layer": 1, "half": True}]), "half"),
    "layer in words": (changed(ops=[{"op": "drop_layer", "layer": "one"}]), "ops.0.drop_layer.layer"),
    "no target": (json.dumps({"ops": []}), "target"),
    "layer out of range": (changed(ops=[{"op": "drop_layer", "layer": 8}]), "layer 8 does not exist"),
    "layer twice": (changed(ops=[{"layer": 2}, {"layer": 2}]), "touch layer 2"),
    "of a later version": (changed(schema_version=2), "plan schema 2 is not readable here"),
    "empty file": ("", "JSON"),
    "cut off": (full_plan().to_json()[:60], "JSON"),
    "a list": ("[]", "plan.json"),
}


@pytest.mark.parametrize(("text", "word"), REFUSED.values(), ids=REFUSED.keys())
def test_a_file_that_is_no_plan_is_refused_in_one_line(tmp_path, text, word):
    path = write(tmp_path, text)
    with pytest.raises(PlanError) as caught:
        Plan.load(path)
    one_line(caught, str(path), word)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(StoreError, match="cannot read plan") as caught:
        Plan.load(tmp_path / "absent.json")
    one_line(caught, "absent.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StoreError, match="cannot read plan"):
        Plan.load(tmp_path / "binary.json")


def test_a_plan_cannot_be_changed_after_the_check():
    plan = full_plan()
    with pytest.raises(ValueError, match="frozen"):
        plan.ops = ()
    with pytest.raises(ValueError, match="frozen"):
        plan.ops[0].layer = 7
    assert plan.ops[0] == DropLayer(layer=2) and plan.target == Target(
        model="toy", revision="0123456789abcdef", n_layers=8
    )
