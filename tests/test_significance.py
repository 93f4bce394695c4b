"""Tests, tie groups, null bands and flips of a leaderboard's sections, on records made by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import norm

from prunebench import leaderboard
from prunebench.comparison import group_records
from prunebench.findings import (
    difference,
    flips_by_task,
    flips_from_dense,
    ranking_weights,
    relative_uncertainty,
)
from prunebench.report.markdown import probability
from prunebench.significance import Significance, null_rows, significance
from prunebench.spread import Resamples
from prunebench.stats import holm, mcnemar, relative_score, standard_error
from tests.factories import CALIBRATION, make_dense, make_record, make_task

PAIRS = tuple(f"image-{i // 2}" for i in range(100))


def answers(right, name="look", **changes):
    """A task whose questions in `right` were answered right, all 100 named."""
    scores = tuple(float(i in right) for i in range(100))
    return make_task(name, 0, score=sum(scores) / 100, scores=scores, **changes)


def first(count, name="look", **changes):
    return answers(range(count), name, **changes)


def board(*tasks_by_row, dense=None, names="abcdefgh", layers=(2, 3)):
    """A group with one row for each list of tasks, and its only section."""
    records = [make_dense({}, tasks=dense or [first(85)])]
    records += [make_record(names[i], layers, tasks=tasks) for i, tasks in enumerate(tasks_by_row)]
    (group,) = group_records(records)
    return group, group.sections[0]


def labels(found):
    return {row.label: value for row, value in found.items()}


def test_p_values_are_mcnemar_adjusted_over_the_section():
    group, section = board([first(80)], [first(74)], [first(70)], [first(80)])
    told = significance(group, section)
    scores = {count: [float(i < count) for i in range(100)] for count in (70, 74, 80, 85)}
    raw = {"d": 1.0, "b": mcnemar(scores[74], scores[80]), "c": mcnemar(scores[70], scores[80])}
    assert told.best.label == "a" and raw["b"] == pytest.approx(2 / 2**6)
    assert labels(told.against_best) == pytest.approx(dict(zip(raw, holm(list(raw.values())), strict=True)))
    dense = {"a": 80, "d": 80, "b": 74, "c": 70}
    expected = holm([mcnemar(scores[count], scores[85]) for count in dense.values()])
    assert labels(told.against_dense) == pytest.approx(dict(zip(dense, expected, strict=True)))
    assert [row.label for row in told.ties()] == ["b"]  # 0.0625; `d` is best itself, `c` has 2 / 2^10 × 3
    assert [told.letter(row) for row in section.ranked] == ["a", "a", "a", "b"]
    assert significance(group, section) is told


def test_several_tasks_are_tested_in_the_score_that_ranks():
    """Lost in one task and won in the other: told by the weighted sum, over tasks of unequal worth."""
    dense = [first(85), first(45, "count")]  # 60 and 20 points above chance
    group, section = board(
        [first(70), first(40, "count")], [first(79), first(37, "count")], [first(70), first(34, "count")], dense=dense
    )
    told = significance(group, section)
    # The first loses 9 questions of 60 and wins 3 of 20: equal, so no test can tell them apart.
    first_row, second = section.ranked[:2]
    scores = [row.values(group.ranking)[0] for row in (first_row, second)]
    assert scores[0] == pytest.approx(scores[1]) and told.against_best[second] == 1.0
    third = section.ranked[2]
    assert told.against_best[third] < 1.0
    assert difference(group, third, first_row).mean < 0


def test_task_weights_are_those_of_the_suite():
    dense = [first(85, weight=3.0), first(75, "count")]
    group, section = board([first(55, weight=3.0), first(75, "count")], dense=dense)
    assert ranking_weights(group) == pytest.approx({"look": 0.75 / 0.6, "count": 0.25 / 0.5})
    score = section.rows[0].relative[0]
    assert score.chance_corrected == pytest.approx(0.75 * 0.5 + 0.25)
    found = relative_uncertainty(group, section.rows[0].records[0])
    assert found.chance_corrected.low < score.chance_corrected < found.chance_corrected.high
    assert found.plain.low < score.plain < found.plain.high


def test_questions_about_one_image_are_one_coin():
    """Six images with two lost answers each: 2 / 2^6, where twelve questions alone would give 2 / 2^12."""
    shared = {"clusters": PAIRS}
    group, section = board([first(80, **shared)], [first(68, **shared)], dense=[first(85, **shared)])
    assert list(significance(group, section).against_best.values()) == pytest.approx([2 / 2**6])
    alone, apart = board([first(80)], [first(68)])
    assert list(significance(alone, apart).against_best.values()) == pytest.approx([2 / 2**12])
    told = significance(group, section)
    assert told.design_effect == pytest.approx(2, rel=0.05) and significance(alone, apart).design_effect == 1.0
    wide, narrow = (difference(g, s.rows[1], s.rows[0]) for g, s in ((group, section), (alone, apart)))
    assert wide.high - wide.low > 1.25 * (narrow.high - narrow.low)
    rank = [Resamples(one).scores(two.ranked)[0] for one, two in ((group, section), (alone, apart))]
    drawn = [np.ptp(np.quantile(scores, [0.025, 0.975])) for scores in rank]
    assert drawn[0] > 1.25 * drawn[1]
    text = leaderboard.build(group.records)
    assert "design effect of shared images or videos 2.0" in text and "design effect" not in leaderboard.build(
        alone.records
    )


def test_the_detectable_difference_is_the_median_over_rows():
    group, section = board([first(80)], [first(74)], [first(70)], [first(60)], [first(80)])
    lost = np.array([float(70 <= i < 80) for i in range(100)])  # of the middle row of those that differ
    error = standard_error(lost) / 0.6
    expected = (norm.ppf(0.975) + norm.ppf(0.8)) * error
    assert significance(group, section).detectable == pytest.approx(expected)
    assert f"these questions detect: {100 * expected:.1f} points." in leaderboard.build(group.records)


def test_the_null_band_is_of_random_plans_alone():
    random = [make_record("dice", (i, i + 1), tasks=[first(50 + i)], cell={"seed": i}) for i in range(4)]
    chosen = [
        make_record("annealed", (i, i + 1), tasks=[first(70 + i)], cell={"seed": i}, calibration=CALIBRATION)
        for i in range(3)
    ]
    records = [make_dense({}, tasks=[first(85)]), *random, *chosen]
    records += [make_record("good", tasks=[first(80)]), make_record("poor", tasks=[first(51)])]
    (group,) = group_records(records)
    section = group.sections[0]
    assert [row.label for row in null_rows(section)] == ["dice"] and len(section.bands) == 2
    nulls = labels(significance(group, section).nulls)
    assert nulls["good"] == {"dice": (1 / 5, 1 / 5, 4)} and nulls["poor"]["dice"].p == pytest.approx(4 / 5)
    text = leaderboard.build(records)
    assert "| p against `dice` (least 0.20) |" in text and "p against `annealed`" not in text


def test_the_table_of_a_section():
    group, _ = board([first(80)], [first(76)], [first(60)])
    text = leaderboard.build(group.records)
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    rows = {row[0]: row for row in rows if len(row) == 6}
    assert rows["`a`"] == ["`a`", "—", "—", "a", "5", "0"]
    assert rows["`b`"][2:] == ["0.12", "a", "9", "0"]  # 2 / 2^4
    assert rows["`c`"][2:] == ["<0.001", "b", "25", "0"]
    assert "Not told apart from `a`: `b`." in text
    assert "1 of 3 ranked rows are not told apart from `dense`: `a`, 91.7." in text
    assert "| 1 | `a` | 2: 2, 3 | 91.7 [" in text and "p (Holm)" in text.split("## How to read")[1]


def mcnemar_of(one, other):
    return mcnemar(*([float(i < count) for i in range(100)] for count in (one, other)))


def test_many_ties_are_counted():
    group, _ = board(*([first(80 - i)] for i in range(6)), names="abcdef")
    assert "Not told apart from `a`: `b`, `c`, `d` and 2 more." in leaderboard.build(group.records)


def test_rows_of_other_questions_have_no_tests():
    other = first(79).model_copy(update={"ids": tuple(f"x{i}" for i in range(100))})
    group, section = board([first(80)], [other], [first(60)])
    told = significance(group, section)
    assert set(labels(told.against_best)) == {"c"} and told.letter(section.ranked[1]) is None
    best_is_other = board([other], [first(60)])
    told = significance(*best_is_other)
    assert told.against_best == {} and told.groups == {} and told.detectable is None


def test_without_a_dense_row_nothing_is_tested():
    (group,) = group_records([make_record("a", tasks=[first(80)]), make_record("b", tasks=[first(70)])])
    told = significance(group, group.sections[0])
    assert told.best is None and told.nulls == {} and told.ties() == []


def test_letters():
    rows = [object() for _ in range(60)]
    told = Significance(groups={row: i for i, row in enumerate(rows)})
    assert [told.letter(rows[i]) for i in (0, 25, 26, 51, 52)] == ["a", "z", "aa", "az", "ba"]


# -- flips -------------------------------------------------------------------------------------------------------------


def test_flips_by_task_and_in_all():
    group, section = board([first(80), first(30, "count")], dense=[first(85), answers(range(5, 40), "count")])
    found = flips_by_task(group, section.rows[0].records[0])
    assert found == {"look": (5, 0), "count": (10, 5)}
    assert flips_from_dense(group, section.rows[0].records[0]) == (15, 5)
    data = leaderboard.as_data(group.records)[0]["sections"][0]["rows"][0]
    assert data["flips"][0]["count"] == {"right_to_wrong": 10, "wrong_to_right": 5}


def test_verdicts_are_counted_where_scores_are_contributions():
    def contributed(right):
        flags = tuple(float(i in right) for i in range(100))
        scores = tuple(8.0 * flag for flag in flags)
        return answers(right).model_copy(update={"scores": scores, "verdicts": flags, "score": sum(scores) / 100})

    group, section = board([contributed(range(5, 80))], dense=[contributed(range(75))])
    assert flips_from_dense(group, section.rows[0].records[0]) == (5, 5)
    # Of a metric that is no mean, verdicts alone are known: flips are counted, differences are not paired.
    loose = [
        task.model_copy(update={"scores": (), "score": 500.0})
        for task in (contributed(range(5, 80)), contributed(range(75)))
    ]
    group, section = board([loose[0]], dense=[loose[1]])
    row = section.rows[0]
    assert flips_from_dense(group, row.records[0]) == (5, 5)
    assert relative_uncertainty(group, row.records[0]) == (None, None)


def test_marks_out_of_a_hundred_are_right_or_wrong():
    def percent(right):
        task = first(right)
        scores = tuple(100 * score for score in task.scores)
        return task.model_copy(update={"scores": scores, "score": 100 * task.score, "scale": 100.0, "chance": 25.0})

    group, section = board([percent(70)], dense=[percent(85)])
    assert flips_from_dense(group, section.rows[0].records[0]) == (15, 0)
    assert list(significance(group, section).against_dense.values()) == [mcnemar_of(70, 85)]


def test_marks_of_an_error_are_wrong_answers():
    """Of a rate of errors, 1 is a wrong answer: more errors than the dense model are answers lost."""
    group, section = board(
        [first(40, higher_is_better=False, chance=0.9)], dense=[first(15, higher_is_better=False, chance=0.9)]
    )
    record = section.rows[0].records[0]
    assert flips_from_dense(group, record) == (25, 0) and section.rows[0].relative[0].chance_corrected < 1
    said = [
        task.model_copy(update={"verdicts": tuple(1 - score for score in task.scores)})
        for task in (first(40, higher_is_better=False), first(15, higher_is_better=False))
    ]
    group, section = board([said[0]], dense=[said[1]])
    assert flips_from_dense(group, section.rows[0].records[0]) == (25, 0)


def test_a_benchmark_that_rounds_its_score_keeps_the_exact_tests():
    """lmms-eval rounds some scores, and marks are stretched to have them as mean: p must not become smaller by that."""

    def rounded(right, scale=1.0):
        task, stretch = first(right), 1 + 4e-5 / (right / 100)  # as if 0.80 had been reported as 0.80004
        scores = tuple(scale * stretch * score for score in task.scores)
        changes = {"scores": scores, "score": sum(scores) / 100, "scale": scale, "verdicts": task.scores}
        return task.model_copy(update={**changes, "chance": 0.25 * scale})

    for scale in (1.0, 100.0):
        group, section = board([rounded(80, scale)], [rounded(74, scale)], dense=[rounded(85, scale)])
        told = significance(group, section)
        assert list(told.against_best.values()) == [mcnemar_of(74, 80)] and mcnemar_of(74, 80) == 2 / 2**6
        found = difference(group, section.rows[1], section.rows[0])
        assert found.mean == pytest.approx(-6 / 60, abs=1e-4)
        assert relative_uncertainty(group, section.rows[0].records[0]).chance_corrected.method == "bootstrap"


def test_a_task_of_graded_answers_has_no_flips():
    graded = make_task("text", 0, score=0.5, scores=(0.5,) * 100)
    group, section = board([first(80), graded], dense=[first(85), graded])
    record = section.rows[0].records[0]
    assert flips_from_dense(group, record) is None and set(flips_by_task(group, record)) == {"look"}


# -- intervals of relative scores --------------------------------------------------------------------------------------


def test_relative_intervals_hold_what_the_table_shows():
    group, section = board([first(70), first(40, "count")], dense=[first(85), first(45, "count")])
    found = relative_uncertainty(group, section.rows[0].records[0])
    told = section.rows[0].relative[0]
    assert told == relative_score(
        {"look": 0.7, "count": 0.4}, {"look": 0.85, "count": 0.45}, {"look": 0.25, "count": 0.25}
    )
    for interval, value in zip(found, told, strict=True):
        assert interval.low < value < interval.high and interval.high - interval.low < 1
    assert relative_uncertainty(group, group.dense) == (None, None)
    data = leaderboard.as_data(group.records)[0]["sections"][0]["rows"][0]
    data = json.loads(json.dumps(data, allow_nan=False))
    assert data["relative_chance_corrected_interval"] == [list(found.chance_corrected[:2])]


def test_probabilities_as_text():
    assert [probability(p) for p in (None, 1.0, 0.0994, 0.031, 0.0012, 0.0004, 1 / 6)] == [
        "—", "1.00", "0.099", "0.031", "0.001", "<0.001", "0.17",
    ]  # fmt: skip
