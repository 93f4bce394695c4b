"""Recovery in a run from the command line: cells, records, the leaderboard, and a run that is cut short in training."""

from __future__ import annotations

import re

import pytest

from prunebench import Plan, load_results
from prunebench.recovery import training
from prunebench.store import Store
from tests.commands import TINY, comparable, error_line, invoke, leftovers, records_of

ARGUMENTS = (
    "run",
    *TINY,
    "-s",
    "last_n_keep_final",
    "--layers",
    "3",
    "--recover-tokens",
    "400",
    "-P",
    "recover.accumulate=1",
)
FEW = ("--recover", "none", "--recover", "replaceme", "--recover", "layer", "--recover", "tune")
AT = "last_n_keep_final at 3 layers"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    result = invoke(*ARGUMENTS, *FEW, "--out", out)
    assert result.exit_code == 0, result.output
    return out, result


def without_seconds(record):
    raw = comparable(record)
    if (cost := raw["plan"]["cost"].get("recovery")) is not None:
        cost.pop("seconds")
    return raw


def test_each_recovery_is_a_row_and_dense_has_the_same_budget(finished):
    out, result = finished
    found = records_of(out)
    after = ["", ", recovery replaceme", ", recovery layer", ", recovery tune"]
    dense = ["dense at sparsity 0", "dense at sparsity 0, recovery tune"]
    assert sorted(found) == sorted([*dense, *(AT + words for words in after)])
    assert len(list((out / "records").iterdir())) == 6
    trained = [record for record in found.values() if record.cell.recovery is not None and record.cell.recovery.trained]
    assert all(400 <= record.plan.cost.recovery.tokens < 1500 for record in trained)
    assert all(record.seconds["recover"] > 0 for record in trained)
    assert found[AT].plan.removed_layers == (12, 13, 14) and found[AT].plan.cost.recovery is None
    assert found[f"{AT}, recovery layer"].plan.budget.achieved.layers_removed == 2, "one comes back, and that is said"
    assert found[f"{AT}, recovery layer"].plan.budget.layers_asked == 3
    assert found["dense at sparsity 0, recovery tune"].plan.removed_layers == ()
    for words in ("closed-form compensation", "trained on 400 tokens", "`dense + tune`", "Recovery tokens"):
        assert words in result.stdout


def test_records_hold_what_the_plan_needs_to_be_replayed(finished):
    out, _ = finished
    store = Store(out)
    for record in records_of(out).values():
        if record.cell.recovery is not None:
            assert record.plan.tensors_digest is not None
            assert store.whole_plan(record.plan).tensors.digest == record.plan.tensors_digest


def test_how_well_it_went_is_said(finished):
    _, result = finished
    for line in (
        r"recovery replaceme: mean square error of layers 12-15 [\d.]+ → [\d.]+; [\d,]+ tokens, [\d.]+ s",
        r"recovery layer: held-out mean square error of layers 12-15 [\d.]+ → [\d.]+; \d+ steps, [\d,]+ tokens",
        r"recovery tune: held-out answer loss [\d.e-]+ → [\d.e-]+; \d+ steps, [\d,]+ tokens, [\d.]+ s",
        r"recovery tune: 400 of 400, loss ",
    ):
        assert re.search(line, result.stderr), line


def test_the_table_of_results_says_what_was_recovered(finished):
    table = load_results(finished[0])
    rows = table[table["recovery"] == "tune"]
    assert set(rows["strategy"]) == {"dense", "last_n_keep_final"} and set(rows["recovery_budget"]) == {400}
    assert (rows["recovery_tokens"] >= 400).all() and (rows["recovery_seconds"] > 0).all()
    assert table[table["strategy"] == "dense"]["recovery"].isna().any()
    assert (table[table["recovery"] == "replaceme"]["recovery_budget"].isna()).all()


def test_the_same_command_again_does_nothing(finished):
    out, _ = finished
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    again = invoke(*ARGUMENTS, *FEW, "--out", out)
    assert again.exit_code == 0 and "6 of 6 cells are finished already" in again.stderr
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_run_that_is_cut_short_in_training_goes_on(finished, tmp_path, monkeypatch):
    step, steps = training._Loop._step, []

    def interrupted(loop):
        steps.append(1)
        if len(steps) == 2:
            raise KeyboardInterrupt
        step(loop)

    monkeypatch.setattr(training._Loop, "_step", interrupted)
    stopped = invoke(*ARGUMENTS, "--recover", "tune", "--out", tmp_path)
    assert stopped.exit_code not in (0, 1) and list(records_of(tmp_path)) == ["dense at sparsity 0"]
    assert len(list((tmp_path / "recovery").iterdir())) == 1 and not leftovers(tmp_path)
    before = len(steps)
    assert invoke(*ARGUMENTS, "--recover", "tune", "--out", tmp_path).exit_code == 0
    unbroken = {record.id: without_seconds(record) for record in records_of(finished[0]).values()}
    resumed = {record.id: without_seconds(record) for record in records_of(tmp_path).values()}
    assert len(resumed) == 3 and all(unbroken[key] == resumed[key] for key in resumed if key in unbroken)
    trained = sum(
        record.plan.provenance.notes["recovery"]["steps"]
        for record in records_of(tmp_path).values()
        if record.cell.recovery
    )
    assert len(steps) - before == trained - 1, "the step that was done is not done again"


def test_keep_count_removes_more_and_meets_the_budget(tmp_path):
    """By `prunebench plan`, whose plan is the recovered one, ready to be exported."""
    arguments = (
        "-m",
        "testbed",
        "-s",
        "last_n_keep_final",
        "--layers",
        "3",
        "--n-calibration",
        "16",
        "--out",
        tmp_path,
    )
    params = ("-P", "recover.keep_count=true", "--recover", "layer", "--recover-tokens", "1")
    done = invoke("plan", *arguments, *params, "--save", tmp_path / "plan.json")
    assert done.exit_code == 0 and "recovery layer: held-out mean square error of layers 11-15" in done.stdout
    plan = Plan.load(tmp_path / "plan.json")
    assert plan.removed_layers == (12, 13, 14) and [op.start for op in plan.ops] == [11] and plan.tensors
    assert plan.budget.achieved.layers_removed == plan.budget.layers_asked == 3
    assert plan.provenance.notes["keep_count"] == {"asked": 3, "removed_first": 4}
    refused = error_line(invoke("plan", *arguments, *params, "-s", "first_n"))
    assert "--recover goes with one strategy" in refused


def test_a_recovery_that_does_not_fit_is_a_failed_row(tmp_path):
    result = invoke("run", *TINY, "-s", "first_n", "--layers", "2", "--recover", "replaceme", "--out", tmp_path)
    assert result.exit_code == 1
    record = records_of(tmp_path)["first_n at 2 layers, recovery replaceme"]
    assert record.status == "failed" and "no layer stands in front" in record.error


def test_wrong_words_are_said_before_anything_is_loaded(tmp_path):
    plain = ("run", "--model", "testbed", "-s", "last_n", "--layers", "2", "--out", tmp_path)
    assert "did you mean 'tune'" in error_line(invoke(*plain, "--recover", "tuned"))
    assert "did you mean 'alpha'" in error_line(invoke(*plain, "--recover", "replaceme", "-P", "recover.alhpa=1"))
    assert "add --recover tune" in error_line(invoke(*plain, "--recover-tokens", "5"))
