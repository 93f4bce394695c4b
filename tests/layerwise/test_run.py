"""Methods that thin layer by layer from the command line: one walk for a run's plans, records of their own kinds."""

from __future__ import annotations

import json

import pytest

from prunebench.layerwise import together
from prunebench.store import Store
from tests.commands import TINY, error_line, invoke, records_of

SMALL = (*TINY, "-P", "wanda.samples=8", "-P", "sparsegpt.samples=8")
FEW = ("--model", "testbed", "--n-calibration", "40", "-P", "wanda.samples=8")
WANDA = ("-s", "wanda", "-P", "wanda.pattern=2:4")
BUDGETS = ("--sparsity", "0.25", "--sparsity", "0.5")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out, groups, real = tmp_path_factory.mktemp("finished"), [], together.plan_together
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            together, "plan_together", lambda pairs, progress=None: groups.append(len(pairs)) or real(pairs, progress)
        )
        result = invoke("run", *SMALL, *WANDA, "-s", "sparsegpt", "-s", "magnitude", "-s", "bi", *BUDGETS, "--out", out)
    return out, result, groups


def test_all_plans_are_made_in_one_go_and_one_that_fails_is_a_record(finished):
    out, result, groups = finished
    assert result.exit_code == 1, result.output
    assert groups == [6], "three methods at two budgets; bi is none of them"
    found = {label.removesuffix(" (pattern=2:4)"): record for label, record in records_of(out).items()}
    failed = [record for record in found.values() if record.status != "ok"]
    assert [(record.kind, record.cell.strategy, record.cell.budget.value) for record in failed] == [
        ("2:4", "wanda", 0.25)
    ]
    assert "--sparsity 0.5" in failed[0].error and failed[0].plan is None
    good = {(record.cell.strategy, record.cell.budget.value): record for record in found.values() if record.plan}
    assert good["wanda", 0.5].kind == "2:4" and good["bi", 0.5].kind == "layers"
    for (name, share), record in good.items():
        if name in ("sparsegpt", "magnitude"):
            assert record.kind == record.plan.kind == "weights"
            zeros = record.plan.budget.achieved.params_zeroed
            assert zeros == pytest.approx(share * 2 * good["wanda", 0.5].plan.budget.achieved.params_zeroed, rel=0.02)
    cost = good["sparsegpt", 0.5].plan.cost
    assert cost.forward_passes == 16 and cost.peak_memory > good["wanda", 0.5].plan.cost.peak_memory > 0
    assert good["magnitude", 0.5].plan.cost.forward_passes == 0
    assert cost.search_seconds > 0 and good["bi", 0.5].plan.cost.peak_memory is None


def test_the_same_command_again_plans_what_is_missing(finished, monkeypatch):
    out, _, _ = finished
    groups, real = [], together.plan_together
    monkeypatch.setattr(
        together, "plan_together", lambda pairs, progress=None: groups.append(len(pairs)) or real(pairs, progress)
    )
    again = invoke("run", *SMALL, *WANDA, "-s", "sparsegpt", "-s", "magnitude", "--sparsity", "0.5", "--out", out)
    assert again.exit_code == 0 and not groups and "4 of 4 cells are finished" in again.stderr


def test_plans_lie_beside_their_records(finished):
    out, _, _ = finished
    store = Store(out)
    plans = [record.plan for record in records_of(out).values() if record.plan is not None]
    whole = [store.whole_plan(plan) for plan in plans if plan.kind != "layers"]
    assert len(whole) == 5 and all(plan.tensors for plan in whole)


def test_plan_shows_one_or_several(tmp_path):
    one = invoke("plan", *FEW, "-s", "wanda", "--sparsity", "0.5", "--out", tmp_path, "--save", tmp_path / "p.json")
    assert one.exit_code == 0 and "parameters zeroed; all 16 layers stay" in one.stdout
    raw = json.loads((tmp_path / "p.json").read_text())
    assert raw["kind"] == "weights" and raw["cost"]["forward_passes"] == 16
    several = invoke("plan", *FEW, *WANDA, "-s", "magnitude", *BUDGETS, "--json", "--out", tmp_path)
    assert several.exit_code == 0, several.output
    data = json.loads(several.stdout)
    assert sorted(plan["kind"] for plan in data["plans"]) == ["2:4", "weights", "weights"]
    rows = data["tables"][0]["strategies"]
    assert "--sparsity 0.5" in next(row["reason"] for row in rows if row["strategy"] == "wanda")
    line = error_line(invoke("plan", *FEW, *WANDA, "--sparsity", "0.25", "--out", tmp_path))
    assert "the pattern 2:4 zeroes exactly 0.5 of the weights" in line


def test_with_little_memory_plans_are_made_one_by_one_and_come_out_the_same(finished, tmp_path, monkeypatch):
    import psutil

    out, _, _ = finished
    groups, real = [], together.plan_together
    monkeypatch.setattr(
        together, "plan_together", lambda pairs, progress=None: groups.append(len(pairs)) or real(pairs, progress)
    )
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1})())
    result = invoke("run", *SMALL[:-4], *SMALL[-2:], "-s", "sparsegpt", "-s", "magnitude", *BUDGETS, "--out", tmp_path)
    assert result.exit_code == 0 and groups == [1, 1, 1, 1]
    before = {r.id: r.plan.digest for r in records_of(out).values() if r.plan is not None}
    own = {r.id: r.plan.digest for r in records_of(tmp_path).values() if r.plan is not None}
    assert len(own) == 5 and own == {key: before[key] for key in own}
