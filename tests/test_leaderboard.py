"""Ranking, bands, holes and groups of the leaderboard, on records made by hand and numbers worked out by hand."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from prunebench import leaderboard
from prunebench.budget import Budget
from prunebench.cli.leaderboard import leaderboard as command
from prunebench.comparison import group_records
from prunebench.errors import PruneBenchError, StoreError, UsageError
from prunebench.findings import band_verdicts, difference, flips_from_dense, jaccard, planted_precision
from prunebench.ops import DropLayer
from prunebench.report.markdown import code, layer_ranges, one_line, percent, size, spread, table, words
from prunebench.results import COLUMNS, frame, load_results
from prunebench.store import Store
from tests.factories import (
    CALIBRATION,
    make_dense,
    make_latency,
    make_memory,
    make_model,
    make_narrow,
    make_record,
    make_stored,
    make_task,
    make_thinned,
)

DENSE = {"look": 85, "count": 75}  # above chance (25): 60 and 50 points


def only_section(records, number=0):
    groups = group_records(records)
    assert len(groups) == 1
    return groups[0], groups[0].sections[number]


def lines_of(text: str, start: str) -> list[list[str]]:
    """The cells of table rows whose strategy is `start`."""
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("|")
    ]
    return [row for row in rows if any(cell.startswith(f"`{start}") for cell in row[:2])]


# -- ranking -----------------------------------------------------------------------------------------------------------


def test_relative_scores_by_hand():
    group, section = only_section([make_dense(DENSE), make_record(right={"look": 55, "count": 25})])
    score = section.rows[0].relative[0]
    assert score.plain == pytest.approx((55 / 85 + 25 / 75) / 2)
    assert score.chance_corrected == pytest.approx((30 / 60 + 0 / 50) / 2)
    assert group.ranking == "chance_corrected"
    cells = lines_of(leaderboard.build(group.records), "alpha")[0]
    assert cells[:3] == ["1", "`alpha`", "2: 2, 3"] and cells[3].startswith("25.0 [") and cells[4] == "49.0"


def test_rank_follows_the_chance_corrected_score_not_the_plain_one():
    # Above chance, dense has 60 points of look and 5 of count. Corrected: alpha (60/60 + 2/5) / 2, beta
    # (54/60 + 4/5) / 2. Plain: alpha (85/85 + 27/30) / 2 = 0.95, beta (79/85 + 29/30) / 2 = 0.948.
    records = [
        make_dense({"look": 85, "count": 30}),
        make_record("alpha", right={"look": 85, "count": 27}),
        make_record("beta", right={"look": 79, "count": 29}),
    ]
    _, section = only_section(records)
    assert [(row.label, row.rank) for row in section.rows] == [("beta", 1), ("alpha", 2)]
    beta, alpha = (row.relative[0] for row in section.rows)
    assert (beta.chance_corrected, alpha.chance_corrected) == pytest.approx((0.85, 0.7))
    assert beta.plain < alpha.plain == pytest.approx(0.95)


def test_chance_is_the_one_of_the_dense_record():
    names = [f"s{i}" for i in range(6)]  # some sort before the dense record, some after
    records = [make_dense({"look": 85}), *(make_record(n, tasks=[make_task("look", 55, chance=0.5)]) for n in names)]
    _, section = only_section(records)
    assert [row.relative[0].chance_corrected for row in section.rows] == pytest.approx([0.5] * 6)


def test_equal_scores_share_a_rank():
    records = [make_dense(DENSE), *(make_record(name, right={"look": 60, "count": 50}) for name in ("a", "b"))]
    records.append(make_record("c", right={"look": 50, "count": 50}))
    _, section = only_section(records)
    assert [(row.label, row.rank) for row in section.rows] == [("a", 1), ("b", 1), ("c", 3)]


def test_ranked_by_plain_where_a_task_has_no_chance():
    def tasks(right):
        return [make_task("look", right), make_task("caption", 40, chance=None, majority=None)]

    records = [make_dense({}, tasks=tasks(80)), make_record("a", tasks=tasks(40)), make_record("b", tasks=tasks(60))]
    group, section = only_section(records)
    assert group.ranking == "plain"
    assert [row.label for row in section.rows] == ["b", "a"]
    assert section.rows[0].relative[0] == pytest.approx((0.875, None))
    text = leaderboard.build(records)
    assert "The chance-corrected score is not defined here" in text
    assert lines_of(text, "b")[0][3] == "—" and lines_of(text, "b")[0][4].startswith("87.5 [")


def test_sections_by_layers_removed_and_by_kind():
    records = [
        make_dense(DENSE),
        make_record("a", (1,), DENSE),
        make_record("a", (1, 2), DENSE),
        make_record("mask", (), DENSE, kind="weights", budget=Budget(value=0.5)),
    ]
    group = group_records(records)[0]
    assert [(s.kind, s.layers) for s in group.sections] == [("layers", 1), ("layers", 2), ("weights", None)]
    text = leaderboard.build(records)
    assert "### sparsity 0.5 (kind `weights`)" in text and "### 2 of 8 layers removed (kind `layers`)" in text
    assert all(section.rows[0].rank == 1 for section in group.sections)


def test_parameters_are_part_of_the_row():
    records = [
        make_dense(DENSE),
        make_record("bi", right=DENSE),
        make_record("bi", right=DENSE, params={"k": 5, "s": 0.5}),
    ]
    _, section = only_section(records)
    assert [row.label for row in section.rows] == ["bi", "bi (k=5, s=0.5)"]


def test_two_versions_of_a_strategy_are_two_rows():
    records = [make_dense(DENSE), *(make_record("bi", right=DENSE, cell={"strategy_version": v}) for v in ("1", "2"))]
    _, section = only_section(records)
    assert [row.label for row in section.rows] == ["bi v1", "bi v2"]
    assert not any(row.is_band for row in section.rows)


# -- bands -------------------------------------------------------------------------------------------------------------


def band(rights, **changes):
    return [
        make_record("random", (i, i + 1), {"look": r, "count": 50}, cell={"seed": i}, **changes)
        for i, r in enumerate(rights)
    ]


def test_seeds_become_one_band_without_rank():
    records = [make_dense(DENSE), *band([31, 37, 43, 49, 55]), make_record("good", right={"look": 61, "count": 50})]
    group, section = only_section(records)
    assert [(row.label, row.rank, row.is_band) for row in section.rows] == [("good", 1, False), ("random", None, True)]
    # look above chance: 6, 12, 18, 24, 30 of 60; count: 25 of 50.
    assert section.bands[0].values("chance_corrected") == pytest.approx((0.3, 0.35, 0.4, 0.45, 0.5))
    text = leaderboard.build(records)
    row = lines_of(text, "random")[0]
    assert row[0] == "band" and row[1] == "`random` (5 seeds)" and row[3] == "40.0 (30.0 to 50.0)"
    assert row[2] == "2: differ by seed"
    assert "Every ranked strategy is above every draw of the band `random` (5 seeds), 30.0 to 50.0." in text
    verdict = band_verdicts(group, section)[0]
    assert (verdict.low, verdict.mean, verdict.high) == pytest.approx((0.3, 0.4, 0.5))


def test_a_strategy_inside_the_band_is_named():
    records = [make_dense(DENSE), *band([31, 37, 43, 49, 55])]
    records += [
        make_record("good", right={"look": 61, "count": 50}),
        make_record("lucky", right={"look": 46, "count": 50}),
    ]
    records += [make_record("weak", right={"look": 34, "count": 50})]
    text = leaderboard.build(records)
    assert "Not above every draw of the band `random` (5 seeds), 30.0 to 50.0: `lucky` and `weak`." in text
    assert "Below that band's mean of 40.0: `weak`." in text
    order = [row.label for row in only_section(records)[1].rows]
    assert order == ["good", "lucky", "random", "weak"]


def test_reaching_the_best_draw_is_not_beating_the_band():
    records = [make_dense(DENSE), *band([31, 55]), make_record("equal", right={"look": 55, "count": 50})]
    text = leaderboard.build(records)
    assert "**No strategy is above every draw of the band `random` (2 seeds), 30.0 to 50.0.**" in text
    assert "2 draws are few for a band" in text


def test_a_failed_seed_leaves_the_mean_alone_and_is_told():
    failed = make_record("random", (5, 6), cell={"seed": 7}, status="failed", error="ValueError: no")
    records = [make_dense(DENSE), *band([31, 55]), failed]
    _, section = only_section(records)
    assert section.rows[0].values("chance_corrected") == pytest.approx((0.3, 0.5))
    row = lines_of(leaderboard.build(records), "random")[0]
    assert row[1] == "`random` (2 of 3 seeds)" and row[-1] == "failed: ValueError: no"


def test_the_same_removal_asked_in_two_units_is_no_band():
    records = [
        make_dense(DENSE),
        make_record("a", right=DENSE),
        make_record("a", right=DENSE, budget=Budget(value=0.25)),
    ]
    _, section = only_section(records)
    assert len(section.rows) == 1 and not section.rows[0].is_band and section.rows[0].rank == 1
    assert "1 further record of the same removal left out" in leaderboard.build(records)


# -- holes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["failed", "oom", "interrupted"])
def test_a_failed_cell_is_a_row(status):
    records = [make_dense(DENSE), make_record("a", right=DENSE)]
    records.append(make_record("broken", status=status, error="out | of\nmemory <b>"))
    _, section = only_section(records)
    assert [(row.label, row.rank, row.status) for row in section.rows] == [("a", 1, "ok"), ("broken", None, status)]
    row = next(line for line in leaderboard.build(records).splitlines() if "`broken`" in line)
    assert f"{status}: out \\| of memory &lt;b>" in row
    assert row.count("—") == 6  # rank, layers, two relative scores, two tasks
    assert "0.0" not in row


def test_a_missing_task_makes_a_row_incomplete_and_unranked():
    records = [make_dense(DENSE), make_record("a", right=DENSE), make_record("half", right={"look": 85})]
    group, section = only_section(records)
    row = section.rows[-1]
    assert (row.label, row.rank, row.status, row.relative) == ("half", None, "incomplete", ())
    assert group.relative(row.shown[0]) == (None, None)
    cells = lines_of(leaderboard.build(records), "half")[0]
    assert cells[3:5] == ["—", "—"] and cells[5].startswith("85.0 [") and cells[6] == "—"
    assert cells[7] == "incomplete: 1 of 2 tasks"


def test_fewer_questions_make_a_row_incomplete():
    short = make_record("short", tasks=[make_task("look", 50, n=60), make_task("count", 75)])
    _, section = only_section([make_dense(DENSE), short])
    assert section.rows[0].status == "incomplete"
    assert "incomplete: 60 of 100 questions of look" in leaderboard.build([make_dense(DENSE), short])


def test_a_score_that_is_no_number_cannot_become_a_record():
    """NaN is written to JSON as null and could not be read back: such a result has to be a failed cell instead."""
    with pytest.raises(ValidationError, match="finite number"):
        make_task("look", 50, score=math.nan)


def test_a_record_without_tasks_has_no_score():
    _, section = only_section([make_dense(DENSE), make_record("empty", right={})])
    assert section.rows[0].status == "incomplete"


def test_no_dense_row_no_relative_score():
    records = [make_record("a", right={"look": 60}), make_record("b", right={"look": 50})]
    group, section = only_section(records)
    assert group.ranking is None and all(row.rank is None for row in section.rows)
    text = leaderboard.build(records)
    assert "There is no complete dense row, so no relative score and no rank" in text
    assert "Relative, plain |" not in text and "**Best" not in text
    assert lines_of(text, "a")[0][3].startswith("60.0 [")


def test_a_failed_dense_row_is_told():
    records = [make_dense({}, status="oom", error="too big"), make_record("a", right={"look": 60})]
    assert "no complete dense row (oom: too big)" in leaderboard.build(records)


def test_what_was_not_measured_is_a_dash_or_no_column():
    records = [make_dense(DENSE), make_record("a", right=DENSE, latency=make_latency(), memory=make_memory())]
    records.append(make_record("b", right=DENSE))
    text = leaderboard.build(records)
    assert "Peak memory" not in text
    costs = lines_of(text, "a")[2]
    # two of eight layers: 200 of 1,000 and of 2,000 parameters
    assert costs == ["`a`", "20.0", "10.0", "6.0 KiB (0.75×)", "96 B (0.75×)", *["20.00 (1.50×)"] * 3, "4.0 + 0.50"]
    assert lines_of(text, "b")[2][3:8] == ["—"] * 5


def test_layers_that_differ_from_what_was_asked_are_told():
    record = make_record("a", (1, 2), DENSE)
    report = record.plan.budget.model_copy(update={"layers_asked": 3})
    record = record.model_copy(update={"plan": record.plan.model_copy(update={"budget": report})})
    assert lines_of(leaderboard.build([make_dense(DENSE), record]), "a")[0][2] == "2: 1, 2 (asked 3)"


def test_a_budget_that_no_model_has_still_gets_its_row():
    record = make_record("a", status="failed", error="too much", budget=Budget(value=99, unit="layers"))
    assert "failed: too much" in leaderboard.build([make_dense(DENSE), record])


# -- groups ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"model_revision": "other"},
        {"suite": "other"},
        {"suite_digest": "other"},
        {"limit": 10},
        {"dtype": "bfloat16"},
        {"latency": {"batch_size": 8}},
    ],
)
def test_other_settings_are_never_ranked_together(change):
    records = [make_dense(DENSE), make_record("a", right=DENSE), make_record("b", right={"look": 99}, cell=change)]
    groups = group_records(records)
    assert len(groups) == 2
    assert sorted(len(group.records) for group in groups) == [1, 2]
    text = leaderboard.build(records)
    assert "2 groups of records. Nothing is ranked across groups" in text
    headings = [line for line in text.splitlines() if line.startswith("## toy on ")]
    assert len(headings) == len(set(headings)) == 2


def test_records_without_calibration_stand_in_every_calibration():
    other = CALIBRATION.model_copy(update={"domain": "maths"})
    records = [make_dense(DENSE), make_record("first", (0, 1), DENSE)]
    records += [make_record("a", right=DENSE, calibration=c) for c in (CALIBRATION, other)]
    groups = group_records(records)
    assert len(groups) == 2
    for group in groups:
        assert [row.label for row in group.sections[0].rows] == ["a", "first"]
        assert group.dense is not None


def test_other_calibration_revision_is_another_group():
    records = [make_dense(DENSE), make_record("a", right=DENSE, calibration=CALIBRATION)]
    records.append(make_record("a", right=DENSE, calibration=CALIBRATION, cell={"calibration_revision": "rev-2"}))
    assert len(group_records(records)) == 2


def test_mixed_software_is_told():
    records = [make_dense(DENSE), make_record("a", right=DENSE, environment={"torch": "2.10.0"})]
    assert "torch 2.10.0 / 2.9.0 (mixed)" in leaderboard.build(records)


# -- findings ----------------------------------------------------------------------------------------------------------


def test_planted_precision_by_hand():
    model = make_model(planted={"redundant": (2, 3), "decoy": (6,), "vital": (0, 1, 4, 5, 7)})
    records = [make_dense(DENSE, model=model), make_record("a", (0, 2, 6), DENSE, model=model)]
    assert planted_precision(records[1]) == pytest.approx(2 / 3)
    assert planted_precision(records[0]) is None
    text = leaderboard.build(records)
    assert "Planted precision |" in text and "0.67" in lines_of(text, "a")[0]
    assert "not evidence about real vision-language models" in text
    assert "decoy: 6; redundant: 2, 3; vital: 0, 1, 4, 5, 7" in text
    assert planted_precision(make_record("a", (0, 2), DENSE)) is None
    assert "Planted" not in leaderboard.build([make_dense(DENSE), make_record("a", (0, 2), DENSE)])


def test_difference_is_in_units_of_the_ranking_score():
    best = make_record("best", (1, 2), {"look": 73, "count": 65})
    rival = make_record("rival", (2, 3), {"look": 61, "count": 65})
    group, section = only_section([make_dense(DENSE), best, rival])
    found = difference(group, section.rows[1], section.rows[0])
    # look: 12 of 100 questions lost, of the 60 points above chance; half the weight.
    assert found.mean == pytest.approx(-0.12 / 0.6 / 2)
    scores = [row.relative[0].chance_corrected for row in section.rows]
    assert found.mean == pytest.approx(scores[1] - scores[0])
    assert found.high < 0
    row = lines_of(leaderboard.build(group.records), "rival")[1]
    # Twelve questions of one task, all lost: 2 / 2^12, against one row.
    assert row[1].startswith("-10.0 [") and row[2:4] == ["<0.001", "b"]


def test_a_small_difference_is_a_tie():
    records = [make_dense(DENSE), make_record("best", right={"look": 73, "count": 65})]
    records.append(make_record("close", right={"look": 72, "count": 65}))
    text = leaderboard.build(records)
    assert "Not told apart from `best`: `close`." in text
    assert lines_of(text, "close")[1][2:4] == ["1.00", "a"]


def test_pairs_are_matched_by_question_not_by_place():
    task = make_task("look", 60)
    turned = task.model_copy(update={"ids": task.ids[::-1], "scores": task.scores[::-1]})
    records = [make_dense({}, tasks=[task]), make_record("turned", tasks=[turned])]
    group, _ = only_section(records)
    assert flips_from_dense(group, records[1]) == (0, 0)


def test_other_questions_are_not_paired():
    task = make_task("look", 60)
    other = task.model_copy(update={"ids": tuple(f"x{i}" for i in range(100))})
    records = [make_dense({}, tasks=[task]), make_record("a", tasks=[task]), make_record("b", tasks=[other])]
    group, section = only_section(records)
    assert flips_from_dense(group, records[2]) is None
    assert difference(group, section.rows[1], section.rows[0]) is None
    assert lines_of(leaderboard.build(records), "b")[1][1:] == ["—", "—", "not paired", "—", "—"]


def test_flips_by_hand():
    dense = make_task("look", 60)
    pruned = dense.model_copy(
        update={"scores": (0.0,) * 5 + dense.scores[5:60] + (1.0,) * 3 + (0.0,) * 37, "score": 0.58}
    )
    records = [make_dense({}, tasks=[dense]), make_record("a", tasks=[pruned])]
    group, _ = only_section(records)
    assert flips_from_dense(group, records[1]) == (5, 3)


def test_overlap_of_removed_layers_by_hand():
    a, b = make_record("a", (1, 2, 3), DENSE), make_record("b", (2, 3, 4), DENSE)
    draws = [
        make_record("r", layers, DENSE, cell={"seed": i}) for i, layers in enumerate([(1, 2, 3), (5, 6, 7), (1, 2, 7)])
    ]
    group, section = only_section([make_dense(DENSE), a, b, *draws])
    rows = {row.label: row for row in section.rows}
    assert jaccard(rows["a"], rows["b"]) == pytest.approx(2 / 4)
    assert jaccard(rows["a"], rows["r"]) == pytest.approx((1 + 0 + 2 / 4) / 3)
    assert jaccard(rows["r"], rows["r"]) == pytest.approx((0 + 2 / 4 + 1 / 5) / 3)
    assert "### Overlap of removed layers" in leaderboard.build(group.records)


def test_a_score_not_above_the_most_common_answer_is_marked():
    weak = make_task("look", 38, ci_low=0.29, ci_high=0.48)
    clear = make_task("look", 41, ci_low=0.31, ci_high=0.51)
    records = [make_dense({"look": 85}), make_record("weak", tasks=[weak]), make_record("clear", tasks=[clear])]
    text = leaderboard.build(records)
    assert lines_of(text, "weak")[0][-1] == "38.0 [29.0, 48.0] †"
    assert lines_of(text, "clear")[0][-1] == "41.0 [31.0, 51.0]"


def test_scores_outside_zero_to_one_are_shown_as_they_are():
    def tasks(score):
        return [make_task("mme", 0, score=score, ci_low=score - 50, ci_high=score + 50, chance=500.0, majority=None)]

    records = [make_dense({}, tasks=tasks(1500.0)), make_record("a", tasks=tasks(1000.0))]
    cells = lines_of(leaderboard.build(records), "a")[0]
    assert cells[3:] == ["50.0", "66.7", "1000.0 [950.0, 1050.0]"]


def test_many_tasks_stand_in_tables_of_their_own():
    right = {f"task{i}": 60 for i in range(13)}
    text = leaderboard.build([make_dense(right), make_record("a", right=right)])
    widest = max(line.count(" | ") for line in text.splitlines())
    assert widest < 12
    assert all(f"task{i} |" in text for i in range(13))


# -- the text ----------------------------------------------------------------------------------------------------------


def everything():
    records = [make_dense(DENSE), *band([31, 37, 43, 49, 55], latency=make_latency(), memory=make_memory())]
    records += [make_record("a", right={"look": 61, "count": 60}, calibration=CALIBRATION, params={"k": 3})]
    return [*records, make_record("b", (4,), DENSE), make_record("c", status="oom", error="no memory")]


def test_same_records_same_bytes_in_any_order():
    records = everything()
    text = leaderboard.build(records)
    for seed in range(3):
        random.Random(seed).shuffle(records)
        assert leaderboard.build(records) == text
    assert leaderboard.build([*records, records[0]]) == text
    assert len(group_records([*records, *records])[0].records) == len(records)
    changed = [r.model_copy(update={"seconds": {"plan": 1.0}}) if r.status == "oom" else r for r in records]
    assert leaderboard.build(changed) != text


def test_header_says_what_was_measured():
    text = leaderboard.build(everything(), title="My title")
    assert text.startswith("# My title\n\n## toy on toy-suite, calibrated on shapes-calibration\n")
    assert "8 decoder layers, 2,000 parameters (1,000 in the language model), revision `0123456789ab`, float32" in text
    assert "`shapes-calibration`, 64 samples of split `calibration`, seed 3, revision `rev-1`" in text
    assert "prunebench 0.1.0, torch 2.9.0, transformers 5.17.0" in text and "Machine: Test CPU" in text
    assert "perf_counter on cpu, batch 1, prompt of 40 tokens, 16 new tokens, median of 7 rounds" in text
    assert "| look | exact_match (%) | 100 | 25.0 | 30.0 |" in text
    assert "Generated by `prunebench leaderboard` from 9 records" in text
    assert text.endswith("\n") and not text.endswith("\n\n")


def test_every_table_is_rectangular():
    blocks = [block for block in leaderboard.build(everything()).split("\n\n") if block.startswith("|")]
    assert len(blocks) >= 6
    for block in blocks:
        assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1


def test_write_and_check(tmp_path):
    records = everything()
    path = leaderboard.write(records, tmp_path / "new" / "table.md")
    assert leaderboard.check(records, path)
    assert not leaderboard.check(records, path, title="Other")
    path.write_text(path.read_text(encoding="utf-8").replace("61.0", "62.0"), encoding="utf-8")
    assert not leaderboard.check(records, path)
    with pytest.raises(StoreError, match="write it with --out"):
        leaderboard.check(records, tmp_path / "absent.md")


def test_nothing_to_show_is_said():
    for use in (leaderboard.build, leaderboard.as_data, frame):
        with pytest.raises(UsageError, match="no records"):
            use([])


def test_markdown_pieces():
    assert layer_ranges([13, 2, 3, 4, 5, 9, 11, 12]) == "2–5, 9, 11–13"
    assert layer_ranges([7, 8]) == "7, 8" and layer_ranges([]) == "none" and layer_ranges([0]) == "0"
    assert percent(0.8743) == "87.4" and percent(None) == "—" and percent(-0.0001, sign=True) == "+0.0"
    assert spread([]) == "—" and spread([0.5], 100) == "50.0" and spread([-1.0, 2.0]) == "0.5 (-1.0 to 2.0)"
    assert spread([2.0, 2.0], digits=0) == "2" and spread([-0.01]) == "0.0"
    assert size(None) == "—" and size(100) == "100 B" and size(1536) == "1.5 KiB" and size(3 * 2**30) == "3.0 GiB"
    assert words(["a"]) == "a" and words(["a", "b", "c"]) == "a, b and c"
    assert table(["A", "B|C"], [["x|y", "1"]]) == "| A | B\\|C |\n| :-- | --: |\n| x\\|y | 1 |"
    assert code("a`b") == "`` a`b ``" and one_line("a\n  <b>") == "a &lt;b>"
    assert len(one_line("x" * 500)) == 160


# -- command, frame, picture -------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = Store(tmp_path / "run")
    for record in everything():
        store.write(record)
    return store.root


def test_command_prints_writes_and_checks(folder, tmp_path):
    runner = CliRunner()
    shown = runner.invoke(command, [str(folder)])
    assert shown.exit_code == 0 and shown.stdout == leaderboard.build(everything())
    out = tmp_path / "table.md"
    assert runner.invoke(command, [str(folder), "--out", str(out)]).exit_code == 0
    assert out.read_text(encoding="utf-8") == shown.stdout
    good = runner.invoke(command, [str(folder), "--check", str(out)])
    assert good.exit_code == 0 and "up to date" in good.stderr
    out.write_text("old", encoding="utf-8")
    bad = runner.invoke(command, [str(folder), "--check", str(out)])
    assert bad.exit_code == 1 and "out of date" in bad.stderr and bad.stdout == ""
    assert out.read_text(encoding="utf-8") == "old"


def test_command_json_has_no_invented_numbers(folder):
    found = json.loads(CliRunner().invoke(command, [str(folder), "--json"]).stdout)
    rows = {row["label"]: row for section in found[0]["sections"] for row in section["rows"]}
    assert rows["c"]["status"] == "oom" and rows["c"]["relative"] == [] and rows["c"]["rank"] is None
    assert rows["a (k=3)"]["relative_chance_corrected"] == pytest.approx([(36 / 60 + 35 / 50) / 2])
    assert len(rows["random"]["relative"]) == 5 and rows["random"]["band"]


def test_command_leaves_errors_to_the_root(tmp_path):
    result = CliRunner().invoke(command, [str(tmp_path / "absent")])
    assert isinstance(result.exception, PruneBenchError) and "no such run folder" in str(result.exception)
    both = CliRunner().invoke(command, [str(tmp_path), "--check", "x.md", "--json"])
    assert isinstance(both.exception, UsageError)
    assert isinstance(command, click.Command) and command.name == "leaderboard"


def test_load_results_is_long_and_never_zero(folder):
    table = load_results(folder)
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 8 * 2 + 1  # eight finished records of two tasks, one failed
    row = table[(table.strategy == "a") & (table.task == "look")].iloc[0]
    assert (row.score, row.n, row.chance, row.dense_score) == (0.61, 100, 0.25, 0.85)
    assert row.relative == pytest.approx(61 / 85) and row.relative_corrected == pytest.approx(36 / 60)
    assert row.mean_relative_corrected == pytest.approx((36 / 60 + 35 / 50) / 2)
    assert row.removed_layers == (2, 3) and row.layers_removed == 2 and row.sparsity == 0.25
    assert row.lm_params_removed == pytest.approx(0.2) and row.model_params_removed == pytest.approx(0.1)
    failed = table[table.status == "oom"].iloc[0]
    missing = ["score", "relative", "mean_relative", "layers_removed", "prefill_ms", "weights_bytes", "task"]
    assert failed[missing].isna().all() and failed.error == "no memory" and not failed.complete
    timed = table[table.strategy == "random"].iloc[0]
    assert (timed.prefill_ms, timed.prefill_dense_ms, timed.prefill_speedup) == (20.0, 30.0, 1.5)
    assert timed.weights_bytes == 6144 and math.isnan(timed.peak_rss_bytes or math.nan)
    with pytest.raises(UsageError):
        load_results()


def test_plot_is_whole_and_the_same_twice(folder, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "curves.png"
    result = CliRunner().invoke(command, [str(folder), "--plot", str(picture), "--out", str(tmp_path / "t.md")])
    assert result.exit_code == 0, result.exception
    first = picture.read_bytes()
    assert first.startswith(b"\x89PNG") and first.rstrip().endswith(b"IEND\xaeB`\x82")
    from prunebench.report.curves import accuracy_curves

    accuracy_curves(everything(), picture)
    assert picture.read_bytes() == first


def test_plot_without_matplotlib_says_what_to_install(monkeypatch, tmp_path):
    import sys

    from prunebench.errors import MissingExtra
    from prunebench.report.curves import accuracy_curves

    for name in ("matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=r"prunebench\[figures\]"):
        accuracy_curves(everything(), tmp_path / "x.png")


def test_plot_of_nothing_is_refused(tmp_path):
    pytest.importorskip("matplotlib")
    from prunebench.report.curves import accuracy_curves

    with pytest.raises(UsageError, match="nothing to plot"):
        accuracy_curves([make_dense(DENSE)], tmp_path / "x.png")


# -- kinds that remove no layers ---------------------------------------------------------------------------------------


def all_kinds():
    """Whole layers, masks at two budgets, two patterns, and widths; one of them failed."""
    untimed = {"untimed": "dense kernels: no shape changes"}
    kernels = make_latency(30.0, 24.0).model_copy(update={"kernels": "Sparse in 3 of 4 linear modules; dense: 1 (odd)"})
    return [
        make_dense(DENSE, memory=make_stored(1.0, 1.0), latency=make_latency(30.0, 30.0)),
        make_record("drop", right={"look": 60, "count": 50}, latency=make_latency(), memory=make_memory()),
        *(
            make_thinned("thin", share, {"look": look, "count": 60}, **untimed)
            for share, look in [(0.3, 75), (0.5, 70)]
        ),
        *(make_thinned("other", share, {"look": 40, "count": 60}, **untimed) for share in (0.3, 0.5)),
        make_thinned("thin", 0.5, {"look": 66, "count": 60}, kind="2:4", untimed="dense kernels; no CUDA"),
        make_thinned("other", 0.5, {"look": 65, "count": 60}, kind="2:4", latency=kernels),
        make_narrow("narrow", 0.25, {"look": 66, "count": 61}, kept=(3, 45), latency=make_latency()),
        make_narrow("narrow", 0.5, status="failed", error="too narrow", memory=None),
    ]


def section_text(records, heading: str) -> str:
    return leaderboard.build(records).split(f"### {heading}\n")[1].split("\n###")[0].split("\n## How")[0]


def table_of(text: str, first: str) -> dict[str, dict[str, str]]:
    """Strategy → header → cell, of the table with the header `first`."""
    for block in text.split("\n\n"):
        lines = [[c.strip() for c in line.strip("|").split(" | ")] for line in block.splitlines()]
        if block.startswith("|") and first in lines[0]:
            return {row[lines[0].index("Strategy")]: dict(zip(lines[0], row, strict=True)) for row in lines[2:]}
    raise AssertionError(first)


def test_kinds_are_ranked_among_themselves_and_layers_come_first():
    group = group_records(all_kinds())[0]
    assert [(s.kind, s.budget, [row.rank for row in s.rows]) for s in group.sections] == [
        ("layers", "2 of 8 layers removed", [1]),
        ("2:4", "sparsity 0.5", [1, 2]),
        ("weights", "sparsity 0.3", [1, 2]),
        ("weights", "sparsity 0.5", [1, 2]),
        ("width", "sparsity 0.25", [1]),
        ("width", "sparsity 0.5", [None]),
    ]
    text = leaderboard.build(all_kinds())
    assert "No score, by layers removed: `narrow` (sparsity 0.5, kind `width`)." in text
    assert "**Kind `weights`**, ranked apart" in text and "**Kinds that remove no layers**" in text
    assert "**Kinds that remove no layers**" not in leaderboard.build(all_kinds()[:2])
    first = text.split("What wins at each budget:")[1].split("Chance-corrected relative score, the best")[0]
    assert "of the 1 budgets at which whole layers go and nothing is recovered: `drop` 1." in first


def test_thinned_rows_show_zeros_bytes_and_what_the_search_took():
    text = section_text(all_kinds(), "sparsity 0.5 (kind `weights`)")
    assert table_of(text, "Rank")["`thin`"]["Weights zeroed %"] == "50.0" and "Removed layers" not in text
    costs = table_of(text, "Time")
    assert costs["`thin`"] == {
        "Strategy": "`thin`",
        "Whole model zeroed %": "20.0",  # 400 of 2,000
        "On disk": "7.8 KiB (1.00×)",
        "On disk, compressed": "6.6 KiB (0.85×)",
        "Time": "1.00× (dense kernels)",
        "Search s (calibration + scoring)": "0.0 + 0.50",
        "Search peak memory": "3.0 MiB",
        "Forward passes": "64",
        "Backward passes": "8",
    }
    assert costs["`dense`"]["On disk, compressed"] == "7.8 KiB (1.00×)"
    assert costs["`dense`"]["Search peak memory"] == costs["`dense`"]["Forward passes"] == "—"
    assert "- dense kernels: no shape changes: `thin`, `other`" in text


def test_a_share_of_the_linear_weights_where_those_are_counted():
    counted = make_model().model_copy(update={"linear_params": 500})
    records = [record.model_copy(update={"model": counted}) for record in all_kinds()]
    text = section_text(records, "sparsity 0.5 (kind `weights`)")
    assert table_of(text, "Rank")["`thin`"]["Weights zeroed %"] == "80.0"  # 400 of 500


def test_a_pattern_shows_a_time_only_where_a_sparse_kernel_ran():
    text = section_text(all_kinds(), "sparsity 0.5 (kind `2:4`)")
    costs = table_of(text, "End-to-end ms")
    thin, other = costs["`thin (pattern=2:4)`"], costs["`other (pattern=2:4)`"]
    assert {thin[name] for name in ("Prefill ms", "Decode ms/token", "End-to-end ms")} == {"1.00× (dense kernels)"}
    assert other["End-to-end ms"] == "24.00 (1.25×)" and "Time" not in other
    assert "- Sparse in 3 of 4 linear modules; dense: 1 (odd): `other (pattern=2:4)`" in text
    assert "- dense kernels; no CUDA: `thin (pattern=2:4)`" in text


def test_a_mask_with_something_else_and_no_time_claims_none():
    mask = make_thinned("thin", 0.5, DENSE)
    ops = (*mask.plan.ops[:7], DropLayer(layer=7))
    both = mask.model_copy(update={"plan": mask.plan.model_copy(update={"ops": ops})})
    text = section_text([make_dense(DENSE), both], "sparsity 0.5 (kind `weights`)")
    assert table_of(text, "Time")["`thin`"]["Time"] == "—"


def test_widths_show_what_is_kept_and_what_it_costs():
    text = section_text(all_kinds(), "sparsity 0.25 (kind `width`)")
    assert table_of(text, "Rank")["`narrow`"]["Kept widths"] == "heads 3 of 4; channels 45 of 60"
    costs = table_of(text, "Weights")["`narrow`"]
    assert (costs["LM parameters removed %"], costs["Whole model removed %"]) == ("20.0", "10.0")
    assert costs["On disk"] == "7.0 KiB (0.90×)" and costs["End-to-end ms"] == "20.00 (1.50×)"
    assert (costs["Forward passes"], costs["Backward passes"]) == ("64", "8")
    record = make_narrow("narrow", 0.25, DENSE)
    uneven = tuple(op.model_copy(update={"heads": (1 + op.layer % 3, 4), "channels": None}) for op in record.plan.ops)
    record = record.model_copy(update={"plan": record.plan.model_copy(update={"ops": uneven[2:]})})
    text = section_text([make_dense(DENSE), record], "sparsity 0.25 (kind `width`)")
    assert table_of(text, "Rank")["`narrow`"]["Kept widths"] == "heads 1–3 of 4; in 6 of 8 layers"


def test_a_failed_row_stands_in_its_kind():
    text = section_text(all_kinds(), "sparsity 0.5 (kind `width`)")
    row = table_of(text, "Rank")["`narrow`"]
    assert row["Kept widths"] == row["Relative, plain"] == "—" and row["Note"] == "failed: too narrow"


def test_masks_of_unequal_size_are_told():
    records = [make_dense(DENSE), make_thinned("a", 0.5, DENSE)]
    fewer = make_thinned("b", 0.3, DENSE)
    cell = fewer.cell.model_copy(update={"budget": Budget(value=0.5)})
    records.append(fewer.model_copy(update={"cell": cell, "id": cell.id}))
    text = section_text(records, "sparsity 0.5 (kind `weights`)")
    assert "24.0 to 40.0 % of the language model's parameters become zero." in text


def test_planted_precision_is_of_layers_alone():
    model = make_model(planted={"redundant": (2, 3), "critical": (0, 1)})
    records = [make_dense(DENSE, model=model), make_record("a", right=DENSE, model=model)]
    records += [make_thinned(name, share, DENSE, model=model) for name in "bc" for share in (0.3, 0.5)]
    text = leaderboard.build(records)
    assert "Planted precision" in section_text(records, "2 of 8 layers removed (kind `layers`)")
    assert "Planted precision" not in section_text(records, "sparsity 0.5 (kind `weights`)")
    assert "Planted precision: share of the removed layers" not in text  # one budget of layers makes no overview


def test_every_table_with_kinds_is_rectangular_and_stable():
    records = all_kinds()
    text = leaderboard.build(records)
    for block in [block for block in text.split("\n\n") if block.startswith("|")]:
        assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1
    assert leaderboard.build(records[::-1]) == text
    rows = {
        (section["kind"], row["label"], section["budget"]): row
        for section in leaderboard.as_data(records)[0]["sections"]
        for row in section["rows"]
    }
    thin = rows["weights", "thin", "sparsity 0.5"]
    assert (thin["zeroed"], thin["stored_compressed"], thin["dense_stored"]) == ([0.5], [6800], [8000])
    assert rows["width", "narrow", "sparsity 0.25"]["widths"][0]["heads"] == [(3, 4)] * 8
    assert "zeroed" not in rows["layers", "drop", "2 of 8 layers removed"]
    json.dumps(leaderboard.as_data(records), allow_nan=False)


def test_spread_and_standing_do_not_mix_kinds():
    from prunebench.spread import Resamples, spreads
    from prunebench.standing import standings

    records = [make_dense(DENSE)]
    for name, look in (("thin", 70), ("other", 60)):
        records += [make_thinned(name, 0.5, {"look": look, "count": 60}, calibration=CALIBRATION)]
        records += [make_record(name, right={"look": look - 20, "count": 60}, calibration=CALIBRATION)]
    (group,) = group_records(records)
    assert [one.section.kind for one in spreads(group)] == ["layers"]
    (found,) = standings(group, "thin", Resamples(group))
    assert (found.section.kind, found.of) == ("layers", 2)


def test_the_picture_has_no_masks_on_its_axis_of_layers(tmp_path):
    pytest.importorskip("matplotlib")
    from prunebench.report.curves import _rows, _title, accuracy_curves

    (group,) = group_records(all_kinds())
    assert {row.label for _, row in _rows(group)} == {"drop"}
    assert _title([group]).endswith("; not on this axis: 2:4, weights, width")
    accuracy_curves(all_kinds(), tmp_path / "kinds.png")
    with pytest.raises(UsageError, match="nothing to plot"):
        accuracy_curves([make_dense(DENSE), make_thinned("thin", 0.5, DENSE)], tmp_path / "none.png")


def test_load_results_tells_zeros_from_what_is_gone():
    table = frame(all_kinds())
    assert tuple(table.columns) == COLUMNS
    thin = table[(table.strategy == "thin") & (table.kind == "weights") & (table.budget == "sparsity 0.5")].iloc[0]
    assert (thin.lm_params_zeroed, thin.model_params_zeroed, thin.lm_params_removed) == pytest.approx((0.4, 0.2, 0.0))
    assert (thin.stored_bytes, thin.stored_compressed_bytes, thin.dense_stored_bytes) == (8000, 6800, 8000)
    assert (thin.forward_passes, thin.backward_passes, thin.search_peak_bytes) == (64, 8, 3 * 2**20)
    assert thin.untimed == "dense kernels: no shape changes" and math.isnan(thin.end_to_end_ms)
    kernels = table[(table.strategy == "other") & (table.kind == "2:4")].iloc[0]
    assert kernels.kernels.startswith("Sparse in 3") and kernels.end_to_end_speedup == 1.25
    drop = table[table.strategy == "drop"].iloc[0]
    assert drop.model_params_zeroed == 0.0 and drop.isna().stored_bytes and drop.isna().search_peak_bytes
    failed = table[table.status == "failed"].iloc[0]
    assert failed.kind == "width" and failed.isna()[["model_params_zeroed", "stored_bytes", "forward_passes"]].all()
