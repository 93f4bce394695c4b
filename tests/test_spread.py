"""Spread between methods, its noise, the two-way decomposition, regimes and standings: records with known variances."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from click.testing import CliRunner

from prunebench import leaderboard
from prunebench.budget import Budget
from prunebench.cli.leaderboard import leaderboard as command
from prunebench.comparison import group_records
from prunebench.errors import UnknownName
from prunebench.findings import planted_precision
from prunebench.ops import DropSublayer
from prunebench.robustness import Robustness, Stability, Stat
from prunebench.spread import Resamples, comparable, regimes, spreads
from prunebench.standing import standings
from prunebench.store import Store
from tests.factories import CALIBRATION, make_dense, make_model, make_record, make_task

WEIGHT = 1 / (0.85 - 0.25)  # dense 85 %, chance 25 %, one task


def answers(scores, name="look"):
    """A task with these 0/1 scores."""
    n = len(scores)
    return make_task(name, int(sum(scores)), n, scores=tuple(map(float, scores)), score=float(np.mean(scores)))


def dense(n=100):
    return make_dense({}, tasks=[answers([1] * (85 * n // 100) + [0] * (15 * n // 100))])


def method(name, scores, layers=(2, 3), **changes):
    return make_record(name, layers, tasks=[answers(scores)], calibration=CALIBRATION, **changes)


def first_right(count, n=100):
    return [1] * count + [0] * (n - count)


def only(records):
    (group,) = group_records(records)
    return group


def test_sd_and_range_by_hand():
    records = [dense(), *(method(name, first_right(n)) for name, n in (("a", 60), ("b", 70), ("c", 80)))]
    records.append(make_record("control", tasks=[answers(first_right(25))]))  # reads no calibration samples
    records += [make_record("dice", tasks=[answers(first_right(30 + 10 * i))], cell={"seed": i}) for i in range(3)]
    (found,) = spreads(only(records))
    assert [row.label for row in found.rows] == ["c", "b", "a"]
    assert found.sd == pytest.approx(0.10 * WEIGHT) and found.range == pytest.approx(0.20 * WEIGHT)
    assert found.all_sd == pytest.approx(np.std([0.6, 0.7, 0.8, 0.25], ddof=1) * WEIGHT)
    (band,) = found.bands
    assert (band.n, band.sd) == (3, pytest.approx(0.10 * WEIGHT))
    error = math.sqrt(np.mean([p * (1 - p) for p in (0.6, 0.7, 0.8)]) / 100) * WEIGHT
    assert found.error == pytest.approx(error)
    assert found.told_apart == 1.0


def test_noise_is_that_of_the_closed_form():
    # Over resampled questions Cov(x_i, x_j) = Σ_ij / n with Σ the covariance of the per-question scores, so resampling
    # adds trace(Σ (I − 11ᵀ / m)) / (n (m − 1)) to the variance of the m rows.
    random = np.random.default_rng(1)
    scores = (random.random((5, 200)) < np.array([[0.5], [0.55], [0.6], [0.65], [0.7]])).astype(int)
    (found,) = spreads(only([dense(200), *(method(f"m{i}", row) for i, row in enumerate(scores))]))
    covariance = np.cov(scores, ddof=0)
    centred = np.eye(5) - np.ones((5, 5)) / 5
    exact = WEIGHT**2 * np.trace(covariance @ centred) / 200 / 4
    assert found.noise**2 == pytest.approx(exact, rel=0.1)
    assert found.corrected**2 == pytest.approx(max(0.0, found.sd**2 - found.noise**2))


def test_methods_that_are_all_alike_have_no_spread_left():
    random = np.random.default_rng(2)
    rows = (random.random((12, 400)) < 0.6).astype(int)
    (found,) = spreads(only([dense(400), *(method(f"m{i}", row) for i, row in enumerate(rows))]))
    assert found.sd > 0.6 * found.noise and found.interval[0] == 0.0  # what is seen is noise
    assert found.told_apart < 0.2
    same = [dense(), *(method(name, first_right(60)) for name in "abc")]
    (alike,) = spreads(only(same))
    assert (alike.sd, alike.noise, alike.corrected, *alike.interval) == pytest.approx((0,) * 5, abs=1e-9)
    assert alike.told_apart == 0


def test_a_spread_that_is_there_is_found():
    random = np.random.default_rng(3)
    true = np.linspace(0.4, 0.8, 15)
    rows = (random.random((15, 400)) < true[:, None]).astype(int)
    (found,) = spreads(only([dense(400), *(method(f"m{i:02}", row) for i, row in enumerate(rows))]))
    assert found.interval[0] < true.std(ddof=1) * WEIGHT < found.interval[1]
    assert found.corrected == pytest.approx(true.std(ddof=1) * WEIGHT, rel=0.12)


def test_one_row_per_strategy_and_no_interval_without_questions():
    records = [dense(), method("a", first_right(60)), method("a", first_right(20), params={"k": 9})]
    assert spreads(only(records)) == []  # one strategy, whatever its variants
    (found,) = spreads(only([*records, method("b", first_right(70))]))
    assert {row.label for row in found.rows} == {"a", "b"}
    blank = make_task("look", 50, ids=(), scores=())
    (found,) = spreads(only([dense(), method("a", first_right(60)), make_record("b", tasks=[blank],
                                                                                calibration=CALIBRATION)]))  # fmt: skip
    assert found.sd == pytest.approx(np.std([0.6, 0.5], ddof=1) * WEIGHT)
    assert found.noise is found.corrected is found.interval is found.told_apart is found.error is None


def crossed_rows(values, layers=(2, 3)):
    """Rows of scores × rules with these numbers of right answers."""
    return [
        method(f"score{i}", first_right(right), layers, params={"select": rule})
        for i, row in enumerate(values)
        for rule, right in zip(("independent", "contiguous", "spaced"), row, strict=False)
    ]


@pytest.mark.parametrize(
    ("values", "score", "rule"),
    [
        ([[30, 50], [30, 50]], 0.0, 1.0),
        ([[30, 30], [50, 50]], 1.0, 0.0),
        ([[30, 50], [50, 30]], 0.0, 0.0),  # interaction alone
        ([[30, 40], [50, 60]], 0.8, 0.2),  # effects ±10 and ±5
        ([[30, 40, 50], [40, 50, 60]], 0.25 * 6 / (0.25 * 6 + 4), 4 / (0.25 * 6 + 4)),
    ],
)
def test_shares_of_score_and_rule_by_hand(values, score, rule):
    (found,) = spreads(only([dense(), *crossed_rows(values)]))
    grid = found.structure
    assert (grid.score, grid.rule) == pytest.approx((score, rule))
    assert grid.score + grid.rule + grid.rest == pytest.approx(1.0)
    assert len(grid.scores) == len(values) and len(grid.rules) == len(values[0])
    assert grid.rule_interval[0] - 1e-9 <= grid.rule <= grid.rule_interval[1] + 1e-9


def test_the_grid_is_the_largest_complete_one():
    rows = crossed_rows([[30, 40, 50], [35, 45, 55], [40, 60]])  # the third score lacks a rule
    (found,) = spreads(only([dense(), *rows]))
    assert (len(found.structure.scores), len(found.structure.rules)) in {(2, 3), (3, 2)}
    alone = [dense(), method("a", first_right(40), params={"select": "spaced"}), method("b", first_right(50))]
    assert spreads(only(alone))[0].structure is None


def three_regimes(spread_by_budget):
    """Six budgets of an 8-layer model; at each, two scores × two rules: ± the first by score, ± the second by rule."""
    records = [dense()]
    for layers, (score, rule) in enumerate(spread_by_budget, start=1):
        values = [[50 + a * score + b * rule for b in (-1, 1)] for a in (-1, 1)]
        records += crossed_rows(values, range(layers))
    return records


def test_three_regimes_are_seen_where_they_are():
    found = spreads(only(three_regimes([(15, 3), (14, 3), (3, 2), (2, 2), (2, 18), (3, 20)])))
    seen = regimes(found)
    assert [[one.section.layers for one in part] for part in seen.parts] == [[1, 2], [3, 4], [5, 6]]
    assert seen.sds[0] > seen.sds[1] and seen.fall[1] > 0 and seen.lead[2][1] > 0 > seen.lead[0][2]
    text = leaderboard.build(three_regimes([(15, 3), (14, 3), (3, 2), (2, 2), (2, 18), (3, 20)]))
    assert "Methods **do converge** from low to moderate" in text and "Structure **does decide** at high" in text


def test_three_regimes_are_denied_where_they_are_not():
    text = leaderboard.build(three_regimes([(3, 2), (3, 2), (15, 3), (14, 3), (18, 2), (20, 3)]))
    assert "Methods **do not converge**" in text and "does **not** decide at high budgets, the score does" in text
    few = leaderboard.build([dense(), method("a", first_right(60)), method("b", first_right(70))])
    assert "Not tested: it takes at least three budgets" in few
    uncrossed = [r for r in three_regimes([(9, 1)] * 6) if r.cell.strategy_params.get("select") != "contiguous"]
    assert "**not tested**: no scores were crossed" in leaderboard.build(uncrossed)


# -- standing ------------------------------------------------------------------------------------------------------


def contest():
    """`mine` wins at 2 layers, ties at 3 (one question apart), loses at 4 to `other` and to a control."""
    scores = {2: (80, 60), 3: (60, 61), 4: (40, 70)}
    records = [dense()]
    for count, (mine, other) in scores.items():
        layers = range(count)
        records += [method("mine", first_right(mine), layers), method("other", first_right(other), layers)]
        records.append(make_record("control", layers, tasks=[answers(first_right(50))]))
        records += [
            make_record("dice", layers, tasks=[answers(first_right(30 + 15 * i))], cell={"seed": i}) for i in range(2)
        ]
    records.append(method("mine", first_right(75), range(4), params={"k": 3}))
    return records


def test_standing_by_hand():
    group = only(contest())
    found = standings(group, "mine")
    assert [(one.section.layers, one.rank, one.of, one.best.label) for one in found] == [
        (2, 1, 3, "mine"),
        (3, 2, 3, "other"),
        (4, 4, 4, "mine (k=3)"),
    ]
    assert [one.tied for one in found] == [True, True, False] and [one.above_draws for one in found] == [True] * 2 + [
        False
    ]
    assert found[1].interval == (1, 2) and found[2].interval == (4, 4)
    assert found[2].variant.label == "mine (k=3)" and found[2].blind.label == "control"
    assert found[2].blind_gap.mean == pytest.approx(-0.10 * WEIGHT)
    assert standings(group, "nobody") == []


def test_standing_in_words_whoever_wins():
    text = leaderboard.build(contest(), highlight="mine")
    assert "`mine` is first at 1 of 3 budgets (2 layers)." in text
    assert "not told apart from the first, at 1 (3 layers)" in text
    assert "**Behind the first at 1** (4 layers); ahead there: `mine (k=3)`." in text
    assert "Above every random draw at 2 of 3 budgets. **Not above every random draw** (4 layers)." in text
    assert "better at 2, worse at 1" in text
    other = leaderboard.build(contest(), highlight="other")
    assert "Where `other` stands" in other and "Where `mine` stands" not in other
    assert "stands" not in leaderboard.build(contest())
    with pytest.raises(UnknownName, match="strategy in these records"):
        leaderboard.build(contest(), highlight="mime")


def test_the_file_says_what_it_highlights(tmp_path):
    records, path = contest(), tmp_path / "board.md"
    leaderboard.write(records, path, highlight="mine")
    assert leaderboard.check(records, path) and leaderboard.check(records, path, highlight="mine")
    assert not leaderboard.check(records, path, highlight="other") and not leaderboard.check(records[:-1], path)
    assert not leaderboard.check([r for r in records if r.cell.strategy != "mine"], path)
    data = leaderboard.as_data(records, "mine")[0]
    assert [one["rank"] for one in data["standing"]] == [1, 2, 4] and len(data["spread"]) == 3


def test_trained_rows_are_ranked_apart_beside_the_trained_dense_model():
    tune = {"recovery": {"method": "tune", "tokens": 1000}}
    records = [
        dense(),
        method("a", first_right(60)),
        method("b", first_right(50)),
        method("a", first_right(80), cell=tune),
        method("b", first_right(82), cell=tune),
        make_record("dense", (), tasks=[answers(first_right(90))], calibration=CALIBRATION, cell=tune),
    ]
    pruned, trained = only(records).sections
    assert [(row.label, row.rank) for row in pruned.rows] == [("a", 1), ("b", 2)] and not pruned.references
    assert [(row.strategy, row.rank) for row in trained.rows] == [("b", 1), ("a", 2)]
    assert [(row.strategy, row.rank) for row in trained.references] == [("dense", None)]
    text = leaderboard.build(records)
    assert "### 2 of 8 layers removed, trained on 1,000 tokens" in text and "0 of 8 layers" not in text
    table = text.split("### 2 of 8 layers removed, trained")[1].split("### ")[0]
    assert "| — | `dense + tune` | — | 108.3 [" in table
    (found,) = spreads(only(records))
    assert {row.label for row in found.rows} == {"a", "b"}  # the spread is that of pruning alone
    own = only([dense(), method("a", first_right(60)), records[-1]])  # nothing to stand beside: a row of its own
    assert [[row.strategy for row in section.rows] for section in own.sections] == [["a"], ["dense"]]


# -- the whole table -----------------------------------------------------------------------------------------------


def test_forty_methods_stay_readable():
    sets = list(itertools.combinations(range(8), 3))
    records = [dense(), *(method(f"method_{i:02}", first_right(40 + i), sets[i]) for i in range(40))]
    records.append(method("copycat", first_right(10), sets[39]))
    text = leaderboard.build(records, highlight="method_07")
    overlap = text.split("### Overlap of removed layers")[1].split("## How")[0]
    rows = [line for line in overlap.splitlines() if line.startswith("|")]
    assert (
        len(rows) == 42
        and rows[0].startswith("|  | 1 | 2 |")
        and rows[2].startswith("| 1: `method_39`, `copycat` | 1.00 |")
    )
    assert sum(cell.strip() == "" for cell in rows[2].split("|")[1:-1]) == 39  # the upper half is left out
    widths = {line.count("|") for line in rows}
    assert len(widths) == 1


def test_planted_precision_of_all_budgets():
    model = make_model(planted={"redundant": (2, 3), "decoy": (4,), "critical": (0, 1, 5, 6, 7)})
    records = [make_dense({}, tasks=[answers(first_right(85))], model=model)]
    for count in (1, 2):
        records.append(method("a", first_right(60), range(3 - count, 3), model=model))
    text = leaderboard.build(records)
    about, table = text.split("Planted precision: share of the removed layers")[1].split("###")[0].split("\n\n", 1)
    assert "removable by construction" in about and "| `a` | 1.00 | 0.50 |" in table


def halves(*parts):
    """A plan's operations: parts of layers that stay."""
    return [DropSublayer(layer=layer, part=part) for layer, part in parts]


def test_a_part_of_a_layer_is_half_of_it_in_planted_precision():
    model = make_model(planted={"redundant": (2, 3), "critical": (0, 1, 4, 5, 6, 7)})
    record = method("a", first_right(60), (2,), model=model)
    ops = (*record.plan.ops, *halves((3, "mlp"), (0, "attention")))
    mixed = record.model_copy(update={"plan": record.plan.model_copy(update={"ops": ops})})
    assert planted_precision(record) == 1.0 and planted_precision(mixed) == pytest.approx(3 / 4)
    only_parts = record.model_copy(update={"plan": record.plan.model_copy(update={"ops": tuple(halves((3, "mlp")))})})
    assert planted_precision(only_parts) == 1.0


def test_what_wins_and_what_has_no_score_is_said():
    broken = make_record("mine", (), status="failed", error="no room", budget=Budget(value=5, unit="layers"))
    records = [*contest(), broken]
    records += [method("other", first_right(40), range(5))]
    text = leaderboard.build(records)
    lines = text.split("What wins at each budget:")[1].split("First (alone")[0].splitlines()
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in lines if line.startswith("| ")}
    assert [row[1] for row in rows.values()][2:] == ["`mine`", "`other`", "`mine (k=3)`", "`other`"]
    assert rows["3 of 8 layers removed"][3:6] == ["1 of 2 others", "3 of 3", "`control` (41.7) |"]
    # `other` lost five questions to `mine (k=3)` and won none: p = 2 / 2^5. `mine` with 40 is below the draw of 45.
    assert rows["4 of 8 layers removed"][3:5] == ["1 of 3 others", "3 of 4"]
    assert "is recovered: `mine` 2, `other` 2." in text
    assert "No score, by layers removed: `mine` (5)." in text


def test_kinds_have_overviews_of_their_own():
    records = [dense()]
    for count in (2, 3):
        records += [method("a", first_right(60), range(count)), method("b", first_right(80), range(count))]
        budget = Budget(value=count, unit="layers")
        records.append(method("parts", first_right(84), range(count), kind="sublayers", budget=budget))
    overview = leaderboard.build(records).split("### All budgets")[1].split("###")[0]
    whole, parts = overview.split("**Kind `sublayers`**, ranked apart")
    assert "| `b` | **91.7** | **91.7** |" in whole and "| `parts` |" not in whole.split("Rows with a score")[1]
    assert "| `parts` | **98.3** | **98.3** |" in parts and "| `b` |" not in parts


def test_parts_of_unequal_size_are_told():
    records = [dense()]
    for name, share in (("a", (2, 3)), ("b", (2, 3, 4))):
        records.append(method(name, first_right(60), share, kind="sublayers", budget=Budget(value=2, unit="layers")))
    text = leaderboard.build(records)
    assert "**These plans are not of equal size**: 20.0 to 30.0 % of the language model's parameters go." in text
    assert "not of equal size" not in leaderboard.build(records[:2]) + leaderboard.build(contest())


def test_a_crowded_picture_colours_those_closest_to_the_best():
    from prunebench.report.curves import CROWDED, _closest

    records = [dense()]
    for layers in (1, 2, 3):
        records += [method(f"m{i:02}", first_right(80 - 3 * i), range(layers)) for i in range(20)]
        records += [method("twin", first_right(80), range(layers)), method("m00", first_right(79), range(layers),
                                                                         params={"k": 2})]  # fmt: skip
    records.append(method("seldom", first_right(84), range(1)))  # a score at one budget of three
    found = _closest([only(records)], "m19")
    assert found[0] == "m19" and len(found) == CROWDED
    assert found[1:] == [f"m{i:02}" for i in range(CROWDED - 1)]  # no equal one, no variant, none of one budget


def test_regimes_compare_the_same_methods_and_one_grid():
    records = three_regimes([(15, 3), (14, 3), (3, 2), (2, 2), (2, 18), (3, 20)])
    records += [method("short", first_right(2), range(layers)) for layers in (1, 2)]  # cannot remove more
    records += [method("score0", first_right(5), range(1), params={"select": "spaced"})]
    records += [method("score1", first_right(5), range(1), params={"select": "spaced"})]
    group = only(records)
    resamples = Resamples(group)
    found = spreads(group, resamples)
    same = comparable(group, found, resamples)
    assert [len(one.rows) for one in found] == [3, 3, 2, 2, 2, 2] and [len(one.rows) for one in same] == [2] * 6
    assert len(found[0].structure.rules) == 3 and {one.structure.rules for one in same} == {
        ("contiguous", "independent")
    }
    alone = comparable(only(three := three_regimes([(15, 3)] * 6)), spreads(only(three)), Resamples(only(three)))
    assert [one.sd for one in same[:1]] == [one.sd for one in alone[:1]]
    text = leaderboard.build(records)
    assert "the scores of the 2 methods with a score at every budget" in text
    assert "The grid is the same at all budgets: 2 scores × contiguous, independent." in text


def test_robustness_stands_beside_the_records(tmp_path):
    stat = Stat(mean=0.875, least=0.75, n_pairs=3)
    row = Stability(strategy="a", label="a", budget="sparsity 0.5", kind="draws", sets=("x", "y"),
                    removed_layers=((1,), (2,)), kendall=stat, jaccard=stat)  # fmt: skip
    one = Robustness(model="toy", model_revision="0123", dtype="float32", n_layers=8, calibration=CALIBRATION,
                     calibration_revision="r", sets=(), overlap={}, rows=(row,), independent=(), environment={},
                     created="2026-01-01T00:00:00+00:00")  # fmt: skip
    store = Store(tmp_path)
    for record in contest():
        store.write(record)
    plain = CliRunner().invoke(command, [str(tmp_path)]).stdout
    one.save(tmp_path)
    shown = CliRunner().invoke(command, [str(tmp_path), "--highlight", "mine"]).stdout
    assert "Calibration robustness" not in plain and "0.88 (0.75)" in shown
    path = tmp_path / "board.md"
    assert CliRunner().invoke(command, [str(tmp_path), "--highlight", "mine", "--out", str(path)]).exit_code == 0
    assert CliRunner().invoke(command, [str(tmp_path), "--check", str(path)]).exit_code == 0
    (tmp_path / "robustness" / f"{one.id}.json").unlink()
    assert CliRunner().invoke(command, [str(tmp_path), "--check", str(path)]).exit_code == 1


def test_resamples_are_the_same_for_every_row_and_time():
    group = only(contest())
    rows = group.sections[0].ranked
    first, second = Resamples(group).scores(rows), Resamples(group).scores(rows[:1])
    np.testing.assert_array_equal(first[0], second[0])
    assert first.shape == (len(rows), 2000)
    spread_of_means = first[0].std() / WEIGHT
    assert spread_of_means == pytest.approx(math.sqrt(0.8 * 0.2 / 100), rel=0.06)
