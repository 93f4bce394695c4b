"""What a run may ask for: names, parameters, budgets, and the cells that they unfold into. Nothing is trained here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prunebench.comparison import group_records
from prunebench.config import Cell, Spec
from prunebench.errors import BadParameter, UnknownName, UsageError
from prunebench.grid import build_cells, build_strategies
from prunebench.ops import Fold
from prunebench.plan import Plan
from prunebench.plugins import get_plugins
from prunebench.recovery import dense_recoveries, parse_recovery, recovery_class
from prunebench.store import load_records
from prunebench.suites import load_suite
from tests.factories import make_model, make_record

RECORDS = Path(__file__).resolve().parents[2] / "leaderboards"


def cells(**values):
    spec = Spec.build({"model": "testbed", "strategies": ("last_n",), "budgets": [{"value": 0.5}], **values})
    plugins = get_plugins()
    dataset = plugins.get("datasets", "testbed")()
    suite = load_suite(plugins.get("suites", "testbed"))
    jobs = build_cells(spec, plugins, build_strategies(spec, plugins), make_model(), suite, dataset)
    return [job.cell for job in jobs]


def test_released_defaults_and_their_names():
    layer, tune = parse_recovery("layer:ffn"), parse_recovery("tune", 5000, {"layers": "5, 3,3"})
    assert (layer.module, layer.learning_rate, layer.min_learning_rate, layer.weight_decay) == ("ffn", 2e-4, 5e-5, 1e-3)
    assert (layer.batch_size, layer.accumulate, layer.clip, layer.variant) == (8, 16, 5.0, "paper")
    assert (tune.learning_rate, tune.warmup, tune.batch_size, tune.accumulate) == (1e-5, 0.03, 16, 2)
    assert tune.chosen() == (3, 5) and tune.tokens == 5000 and tune.trained
    assert parse_recovery("replaceme", 5000) == parse_recovery("replaceme") and not parse_recovery("replaceme").trained
    assert parse_recovery("none") is None
    assert [parse_recovery(name).label for name in ("layer", "layer:linear", "tune")] == [
        "layer",
        "layer:linear",
        "tune",
    ]


def test_parameters_of_one_recovery_do_not_disturb_another():
    params = {"learning_rate": "1e-3", "keep_count": "true", "layers": "all", "alpha": "0.5"}
    assert parse_recovery("layer", None, params).keep_count is True
    assert parse_recovery("tune", None, params).layers == "all"
    assert parse_recovery("replaceme", None, params).alpha == 0.5


@pytest.mark.parametrize(
    ("name", "params", "error", "says"),
    [
        ("tunes", {}, UnknownName, "did you mean 'tune'"),
        ("layer:fnn", {}, UnknownName, "did you mean 'layer:ffn'"),
        ("tune", {"learningrate": "1"}, UnknownName, "did you mean 'learning_rate'"),
        ("tune", {"learning_rate": "0"}, BadParameter, "learning_rate"),
        ("tune", {"layers": "first"}, BadParameter, "neighbours, all, or layer ids"),
        ("layer", {"variant": "released"}, BadParameter, "variant"),
        ("layer", {"held_out": "1"}, BadParameter, "held_out"),
        ("replaceme", {"alpha": "-1"}, BadParameter, "alpha"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(name, params, error, says):
    with pytest.raises(error, match=says) as caught:
        parse_recovery(name, None, params)
    assert "\n" not in str(caught.value)


def test_a_spec_refuses_budgets_and_parameters_that_nothing_takes():
    assert Spec.build({"model": "m"}).recoveries() == (None,)
    assert Spec.build({"model": "m", "recover": "tune"}).recoveries() == (parse_recovery("tune"),)
    with pytest.raises(UsageError, match="add --recover tune"):
        Spec.build({"model": "m", "recover": ("replaceme",), "recover_tokens": 100}).recoveries()
    with pytest.raises(UsageError, match=r"recover\.alpha needs --recover"):
        Spec.build({"model": "m", "params": {"recover.alpha": "1"}}).recoveries()
    with pytest.raises(UnknownName, match="did you mean 'alpha'"):
        Spec.build({"model": "m", "recover": ("replaceme",), "params": {"recover.alfa": "1"}}).recoveries()


def test_cells_without_recovery_keep_their_ids():
    """Committed records are found again: their ids are the hash of their cells as these are read today."""
    records = load_records(RECORDS.glob("*/records"))
    assert len(records) > 100
    assert all(record.cell.id == record.id for record in records)
    plain = [record for record in records if record.cell.recovery is None]
    assert 100 < len(plain) < len(records)
    assert all("recovery" not in record.cell.model_dump() for record in plain)


def test_each_recovery_is_a_cell_of_its_own():
    plain = cells()[1]
    ids = {plain.id}
    for name, tokens, params in [
        ("replaceme", None, {}), ("replaceme", None, {"alpha": 1.0}), ("layer", None, {}), ("layer:ffn", None, {}),
        ("tune", None, {}), ("tune", 100, {}), ("tune", 100, {"layers": "all"}),
    ]:  # fmt: skip
        cell = plain.model_copy(update={"recovery": parse_recovery(name, tokens, params)})
        ids.add(cell.id)
        assert Cell.model_validate_json(cell.model_dump_json()) == cell
    assert len(ids) == 8


def test_the_grid_adds_a_dense_row_of_the_same_budget():
    found = cells(recover=("none", "replaceme", "layer", "tune"), recover_tokens=900, params={"recover.seed": "3"})
    assert [cell.label.replace(" at sparsity", "") for cell in found] == [
        "dense 0", "dense 0, recovery tune",
        "last_n 0.5", "last_n 0.5, recovery replaceme", "last_n 0.5, recovery layer", "last_n 0.5, recovery tune",
    ]  # fmt: skip
    assert found[0].recovery is None and found[0].calibration is None and found[0].id == cells()[0].id
    assert found[1].recovery.tokens == 900
    assert found[2].calibration is None and found[2].id == cells()[1].id, "a cell that reads no sample names none"
    assert all(cell.calibration is not None for cell in found[3:]), "a recovery reads calibration samples"
    assert [len(cells(recover=name)) for name in ("none", "replaceme", "tune")] == [2, 2, 3]


def test_dense_gets_the_budget_of_what_it_stands_beside():
    layer, tune = parse_recovery("layer", 700, {"seed": 5}), parse_recovery("tune", 700, {"layers": "3", "seed": 5})
    assert dense_recoveries([None, parse_recovery("replaceme")]) == ()
    (beside,) = dense_recoveries([layer, parse_recovery("layer:ffn", 700)])
    assert beside == parse_recovery("tune", 700)
    assert dense_recoveries([layer, tune]) == (parse_recovery("tune", 700, {"layers": "all", "seed": 5}),)


def recovered(strategy, name, tokens=None, **changes):
    record = make_record(strategy, right={"task": 50}, **changes)
    cell = record.cell.model_copy(update={"recovery": parse_recovery(name, tokens)})
    return record.model_copy(update={"cell": cell, "id": cell.id})


def test_trained_rows_are_ranked_apart():
    dense, plain = make_record("dense", (), {"task": 50}), make_record("alpha", right={"task": 50})
    closed, layer, tuned = (recovered("alpha", *r) for r in (("replaceme",), ("layer", 900), ("tune", 900)))
    tuned_dense, more = recovered("dense", "tune", 900, layers=()), recovered("alpha", "tune", 5000)
    (group,) = group_records([dense, plain, closed, layer, tuned, tuned_dense, more])
    assert group.dense == dense and group.dense_records == [dense]
    found = {section.heading(False): [row.label for row in section.rows] for section in group.sections}
    assert {name: sorted(labels) for name, labels in found.items()} == {
        "2 of 8 layers removed": ["alpha"],
        "2 of 8 layers removed, closed-form compensation": ["alpha + replaceme"],
        "2 of 8 layers removed, trained on 900 tokens": ["alpha + layer", "alpha + tune"],
        "2 of 8 layers removed, trained on 5,000 tokens": ["alpha + tune"],
    }
    beside = {section.heading(False): [row.label for row in section.references] for section in group.sections}
    assert beside.pop("2 of 8 layers removed, trained on 900 tokens") == ["dense + tune"]
    assert not any(beside.values()), "the dense row stands beside what had its own budget, and nowhere else"
    assert all(row.rank == 1 for section in group.sections for row in section.rows), "all rows have the same scores"


def test_a_method_that_folds_by_itself_is_ranked_with_closed_forms():
    dense, plain, folds = make_record("dense", (), {"task": 50}), *(make_record(n, right={"task": 50}) for n in "ab")
    fold = Fold(layer=0, module="mlp.down_proj", side="out", tensor="m")
    plan = Plan.of(folds.model, [*folds.plan.ops, fold], {"m": np.eye(4, dtype=np.float32)})
    (group,) = group_records([dense, plain, folds.model_copy(update={"plan": plan}), recovered("a", "replaceme")])
    found = {section.recovery: sorted(row.label for row in section.rows) for section in group.sections}
    assert found == {"": ["a"], "closed-form compensation": ["a + replaceme", "b"]}


def test_classes():
    assert recovery_class(None) == "" and recovery_class(parse_recovery("replaceme")) == "closed-form compensation"
    assert recovery_class(parse_recovery("layer")) == recovery_class(parse_recovery("tune"))
    assert "2 epochs" in recovery_class(parse_recovery("tune", None, {"epochs": 2}))
