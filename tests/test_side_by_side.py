"""Plans side by side from one counted pass, and how far they depend on the calibration samples; on the testbed."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from prunebench.agreement import rank_correlation
from prunebench.budget import Budget
from prunebench.calibration.collect import calibrate
from prunebench.config import Spec
from prunebench.errors import StoreError, UsageError
from prunebench.grid import build_strategies, every_strategy
from prunebench.plugins import get_plugins
from prunebench.report.plans import describe, layer_map, score_columns, triangle
from prunebench.report.robustness import as_markdown
from prunebench.reporter import Reporter
from prunebench.robustness import Asked, half_rows, load_robustness, measure_robustness, part_of_trace
from prunebench.runner import Session
from prunebench.side_by_side import Pass, Planned, SideBySide, count_samples, plan_side_by_side, removed_units
from tests.commands import error_line, invoke, write_plugin
from tests.factories import make_narrow, make_thinned

N = 24
ODD = """
from prunebench.errors import PlanError

@dataclass(frozen=True)
class Lame(ScoreStrategy):
    "Cannot run."
    name = "lame"

    def score(self, context):
        raise PlanError("lame: needs a model that sings")


@dataclass(frozen=True)
class Broken(ScoreStrategy):
    "Has a bug."
    name = "broken"

    def score(self, context):
        return 1 / 0


@dataclass(frozen=True)
class Flat(ScoreStrategy):
    "All layers alike."
    name = "flat"

    def score(self, context):
        return np.ones(context.model.n_layers)


@dataclass(frozen=True)
class Asking(ScoreStrategy):
    "Asks the model twice: with layer 0 left out, and with nothing left out."
    name = "asking"
    needs_model = True

    def score(self, context):
        context.probe.loss((0,))
        context.probe.loss(())
        return np.arange(context.model.n_layers, dtype=float)


@hookimpl
def prunebench_register_strategies(register):
    for one in (Lame, Broken, Flat, Asking):
        register(one)
"""


def make_session(out, *names, n=N, **changes) -> Session:
    values = {"model": "testbed", "strategies": names, "budgets": (Budget(value=0.5),), "n_calibration": n, "out": out}
    return Session(Spec.build({**values, **changes}), Reporter.silent())


def every_reader() -> list[str]:
    """All that ``all`` stands for, less what asks the model itself."""
    plugins = get_plugins()
    return [name for name in every_strategy(plugins) if not plugins.get("strategies", name).needs_model]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Every strategy side by side at two budgets, and the samples that our own hook saw."""
    session = make_session(
        tmp_path_factory.mktemp("all"), *every_reader(), budgets=(Budget(value=0.25), Budget(value=0.5))
    )
    seen: list[int] = []
    session.loaded.layers[0].register_forward_hook(lambda module, args, output: seen.append(args[0].shape[0]))
    return session, plan_side_by_side(session), seen


def test_all_leaves_out_dense_random_and_fuse():
    names = every_strategy(get_plugins())
    assert not {"dense", "random", "fuse"} & set(names) and {"topo", "bi", "last_n"} <= set(names)
    assert len(names) == len(set(names))
    assert "fuse" in every_strategy(get_plugins(), ["fuse.scores"])
    assert "fuse" not in every_strategy(get_plugins(), ["scores"])
    given = {"model": "testbed", "strategies": ("all", "cosine", "random"), "params": {"select": "contiguous"}}
    built = build_strategies(Spec.build(given), get_plugins())
    assert list(built) == [*names, "random"] and built["topo"].select == built["random"].select == "contiguous"


def test_every_strategy_and_budget_from_one_forward_per_sample(together):
    session, tables, seen = together
    assert sum(seen) == N  # no matter how many strategies and budgets
    for found in tables:
        assert (found.calibration.samples, found.calibration.forwards, found.calibration.per_sample) == (N, N, 1.0)
        assert not found.calibration.reused and {row.strategy for row in found.rows} == set(session.strategies)
        assert all(row.passes == 0 for row in found.rows)
    assert len(tables) == 2 and len(tables[0].planned) >= 10
    again = plan_side_by_side(session.recalibrated())  # without what it holds in memory
    assert again[0].calibration.reused and again[0].calibration.forwards == 0 and sum(seen) == N
    assert [row.plan.digest for row in again[1].planned] == [row.plan.digest for row in tables[1].planned]


def test_plans_are_those_of_each_strategy_alone(together):
    session, tables, _ = together
    for name in ("bi", "topo", "last_n"):
        own = session.recalibrated()
        own.strategies = {name: session.strategies[name]}
        job = next(job for job in own.cells() if job.strategy.name == name and job.cell.budget.value == 0.5)
        row = next(row for row in tables[1].planned if row.strategy == name)
        assert own.plan(job)[0].digest == row.plan.digest


def test_matrices_are_those_of_the_plans(together):
    _, tables, _ = together
    data = tables[1].as_data()
    rows = {row["label"]: row for row in data["strategies"]}
    a, b = data["planned"].index("bi"), data["planned"].index("topo")
    first, second = set(rows["bi"]["removed_layers"]), set(rows["topo"]["removed_layers"])
    assert data["jaccard"][a][b] == pytest.approx(len(first & second) / len(first | second))
    assert data["kendall"][a][b] == pytest.approx(rank_correlation(rows["bi"]["scores"], rows["topo"]["scores"]))
    scoreless = data["planned"].index("even_spacing")
    assert data["kendall"][scoreless] == [None] * len(data["planned"]) and data["jaccard"][a][a] == 1.0
    assert data["calibration"]["forwards_per_sample"] == 1.0
    json.dumps(data, allow_nan=False)


@pytest.mark.parametrize("view", ["standardised", "raw", "ranks"])
def test_text_fits_a_terminal(together, view):
    _, tables, _ = together
    text = describe(tables[1], view)
    assert max(map(len, text.splitlines())) <= 120
    assert f"{N} forward passes of single samples counted = 1 per sample" in text
    row = next(row for row in tables[1].planned if row.strategy == "last_n")
    assert re.search(rf"last_n +{re.escape(layer_map(row.plan))} +8$", text, re.MULTILINE)
    assert layer_map(row.plan) == "........########"
    column = score_columns([row], view)[0]
    assert [text.endswith("*") for text in column] == [False] * 8 + [True] * 8
    values = [float(text.rstrip("* ")) for text in column]
    if view == "ranks":
        assert values == list(range(16, 0, -1))
    if view == "standardised":
        assert (np.mean(values), np.std(values)) == pytest.approx((0, 1), abs=0.01)


def test_many_methods_break_into_pieces_that_fit(together):
    _, tables, _ = together
    rows = [row for _ in range(4) for row in tables[1].planned][:40]
    values = [[(i + j) / 100 for j in range(len(rows))] for i in range(len(rows))]
    text = triangle(rows, values)
    assert max(map(len, text.splitlines())) <= 120
    cells = re.findall(r"(?<= )(?:\.\d\d|[01]\.0)(?= |$)", text, re.MULTILINE)
    assert len(cells) == len(rows) * (len(rows) - 1) // 2  # each pair once


def test_a_strategy_that_cannot_run_is_a_line(tmp_path):
    get_plugins([write_plugin(tmp_path, ODD)])
    (found,) = plan_side_by_side(make_session(tmp_path / "out", "bi", "lame", "broken", "flat", "asking"))
    rows = {row.strategy: row for row in found.rows}
    assert rows["lame"].plan is None and rows["lame"].reason == "lame: needs a model that sings"
    assert rows["broken"].plan is None and "ZeroDivisionError" in rows["broken"].reason
    assert rows["bi"].plan is not None and rows["flat"].plan is not None
    # 16 layers without loss of the first, 15 with: two passes at most, as counted in layers.
    assert 1.5 < rows["asking"].passes <= 2.0
    text = describe(found)
    assert "lame: needs a model that sings" in text and "further full passes per sample: asking" in text
    at = [row.strategy for row in found.planned].index("flat")
    assert found.correlation("kendall")[at] == [None] * len(found.planned)  # constant scores rank nothing
    assert {"–*", "– "} == set(score_columns([rows["flat"]], "standardised")[0])


def test_a_statistic_that_the_model_cannot_give_costs_only_its_strategies(tmp_path):
    get_plugins(
        [
            write_plugin(
                tmp_path,
                """
@dataclass(frozen=True)
class Odd(ScoreStrategy):
    "Asks for what is not there."
    name = "odd"

    def requires(self):
        return frozenset({"token_states=99999"})

    def score(self, context):
        return np.ones(context.model.n_layers)


@hookimpl
def prunebench_register_strategies(register):
    register(Odd)
""",
            )
        ]
    )
    with pytest.raises(UsageError, match="token_states"):  # a mistake in the method, not in the model
        plan_side_by_side(make_session(tmp_path / "out", "bi", "odd"))


def test_sublayers_and_layers_overlap_in_units(together):
    from prunebench.ops import DropSublayer
    from prunebench.plan import Plan

    session, _, _ = together
    info = session.loaded.info
    parts = Plan.of(info, [DropSublayer(layer=3, part="attention"), DropSublayer(layer=4, part="mlp")])
    assert removed_units(parts) == {(3, "attention"), (4, "mlp")}
    assert removed_units(Plan.drop(info, [3])) == {(3, "attention"), (3, "mlp")}
    assert removed_units(Plan.drop(info)) == frozenset()
    assert layer_map(parts) == "...am..........." and layer_map(Plan.drop(info)) == "." * 16
    everything = Plan.drop(info, range(15))
    rows = [Planned(name, name, 0, plan) for name, plan in (("none", Plan.drop(info)), ("all", everything))]
    assert "0.0" in triangle(rows, [[1.0, 0.0], [0.0, 1.0]])


# -- the command ---------------------------------------------------------------------------------------------------


def test_command_shows_and_tells_the_same(tmp_path):
    asked = ("plan", "-s", "bi", "-s", "last_n", "-m", "testbed", "--layers", 2, "--n-calibration", N)
    shown = invoke(*asked, "--out", tmp_path / "a", "--ranks")
    assert shown.exit_code == 0, shown.output
    assert "Jaccard overlap" in shown.stdout and "ranks of the scores" in shown.stdout
    told = json.loads(invoke(*asked, "--out", tmp_path / "a", "--json").stdout)
    (table,) = told["tables"]
    assert table["planned"] == ["bi", "last_n"] and [len(plan["ops"]) for plan in told["plans"]] == [2, 2]
    assert "not both" in error_line(invoke(*asked, "--out", tmp_path / "a", "--ranks", "--raw"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("-s", "bi", "--calibration-draws", 1), "at least 2"),
        (("-s", "bi", "--resamples", 0), "at least 2"),
        (("-s", "last_n", "--calibration-draws", 2), "none of these strategies reads calibration samples"),
        (("-s", "bi", "--across-domains", "--calibration-domain", "math"), "takes 'math' alone"),
        (("-s", "bi", "--calibration-draws", 2, "--save", "plan.json"), "--save and --figures"),
    ],
)
def test_draws_that_make_no_sense_are_refused(words, says, tmp_path):
    asked = ("plan", "-m", "testbed", "--layers", 2, "--n-calibration", 8, "--out", tmp_path)
    assert says in error_line(invoke(*asked, *words))


# -- robustness ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def robust(tmp_path_factory):
    out = tmp_path_factory.mktemp("robust")
    session = make_session(out, "bi", "angular", "last_n")
    with count_samples(session.loaded) as seen:
        found = measure_robustness(session, Asked(draws=3, domains=True, halves=4))
    return session, found, sum(seen)


def test_each_set_costs_one_forward_per_sample_and_halves_none(robust):
    _, found, seen = robust
    sets = {kind: [one for one in found.sets if one.kind == kind] for kind in ("draws", "domains", "halves")}
    assert {kind: len(own) for kind, own in sets.items()} == {"draws": 3, "domains": 4, "halves": 4}
    assert all(one.sample_forwards == one.n == N for one in (*sets["draws"], *sets["domains"]))
    assert all((one.sample_forwards, one.n) == (0, N // 2) for one in sets["halves"])
    assert seen == sum(one.sample_forwards for one in found.sets) == 7 * N
    assert len({one.fingerprint for one in found.sets}) == 11
    assert found.overlap["draws"] < 0.2 < found.overlap["halves"] and found.independent == ("last_n",)


def test_agreement_is_that_of_plans_made_one_by_one(robust):
    session, found, _ = robust
    plans = []
    for seed in range(3):
        own = session.recalibrated(seed=seed)
        plans.append(own.plan(next(job for job in own.cells() if job.strategy.name == "bi"))[0])
    row = next(row for row in found.rows if row.label == "bi" and row.kind == "draws")
    assert row.removed_layers == tuple(plan.removed_layers for plan in plans) and row.kendall.n_pairs == 3
    pairs = [(0, 1), (0, 2), (1, 2)]
    taus = [rank_correlation(plans[i].scores.values, plans[j].scores.values) for i, j in pairs]
    overlaps = [plans[i].diff(plans[j]).jaccard for i, j in pairs]
    assert (row.kendall.mean, row.kendall.least) == pytest.approx((np.mean(taus), min(taus)))
    assert (row.jaccard.mean, row.jaccard.least) == pytest.approx((np.mean(overlaps), min(overlaps)))
    domains = next(row for row in found.rows if row.label == "bi" and row.kind == "domains")
    assert {(pair.first, pair.second) for pair in domains.pairs} >= {("general", "math")} and len(domains.pairs) == 6


def test_draws_are_reproducible_saved_and_shown(robust, tmp_path):
    session, found, _ = robust
    again = measure_robustness(session, Asked(draws=3, domains=True, halves=4))
    assert again.rows == found.rows and again.id == found.id
    path = found.save(tmp_path)
    assert path.parent.name == "robustness" and load_robustness([tmp_path]) == [found]
    (tmp_path / "records").mkdir()
    assert load_robustness([tmp_path / "records", tmp_path]) == [found] and load_robustness([tmp_path / "gone"]) == []
    text = as_markdown([found])
    row = next(row for row in found.rows if row.label == "bi" and row.kind == "draws")
    assert f"{row.kendall.mean:.2f} ({row.kendall.least:.2f})" in text and "`last_n`" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(StoreError, match="damaged or of another version"):
        load_robustness([tmp_path])


def test_halves_are_halves_of_each_domain_without_replacement():
    domains = ["a"] * 7 + ["b"] * 6 + ["c"] * 5
    rows = half_rows(domains, seed=3)
    assert len(set(rows.tolist())) == len(rows) == 9 and list(rows) == sorted(rows)
    counts = [sum(domains[row] == name for row in rows) for name in "abc"]
    assert counts == [3, 3, 3]  # 7 and 5 are odd: one rounds down, the next up
    assert half_rows(domains, 3).tolist() == rows.tolist() != half_rows(domains, 4).tolist()


def test_part_of_a_trace_is_the_trace_of_the_part(robust):
    session, _, _ = robust
    trace, samples = session.trace(), session.samples()
    rows = half_rows(trace.meta.domains, 1)
    part = part_of_trace(trace, rows)
    alone = calibrate(session.loaded, [samples[row] for row in rows], trace.meta.statistics)
    assert part.meta.sample_ids == alone.meta.sample_ids and part.meta.n_samples == N // 2
    assert part.meta.tokens == alone.meta.tokens
    np.testing.assert_allclose(part["token_cosine"], alone["token_cosine"], rtol=2e-4, atol=2e-3)
    np.testing.assert_array_equal(part["token_count"], alone["token_count"])


def test_the_variance_of_halves_is_that_of_whole_draws():
    # 2000 halves of one draw scatter around its mean as means of draws scatter around the truth.
    random = np.random.default_rng(0)
    values = random.normal(size=400)
    means = [values[half_rows(["a"] * 400, seed)].mean() for seed in range(2000)]
    assert np.var(means) == pytest.approx(values.var(ddof=1) / 400, rel=0.1)


# -- kinds that remove no layers -----------------------------------------------------------------------------------


def test_other_kinds_are_lines_of_their_own(together):
    _, tables, _ = together
    thin, narrow = make_thinned("thin", 0.5), make_narrow("narrow", 0.5)
    rows = [Planned(one.cell.strategy, one.cell.strategy, 0, one.plan) for one in (thin, narrow)]
    layers = [row for row in tables[1].planned if row.strategy in ("bi", "last_n")]
    found = SideBySide(thin.model, "sparsity 0.5", Pass(), (layers[0], *rows, layers[1]))
    text = describe(found)
    assert "thin, kind weights: 400 parameters zeroed = 40.0 % of the language model's" in text
    assert (
        "narrow, kind width: 40.0 % of the language model's parameters removed, channels 240 of 480 in 8 layers" in text
    )
    assert max(map(len, text.splitlines())) <= 120
    maps = text.split("removed layers (")[1].split("Jaccard")[0]
    assert "thin" not in maps and "narrow" not in maps and re.search(r"  1 \w+ .*\n  2 \w+ ", maps)
    data = found.as_data()
    assert data["planned"] == [layers[0].label, "thin", "narrow", layers[1].label]
    assert data["jaccard"][0][1] is data["jaccard"][1][1] is data["jaccard"][1][2] is None
    assert data["jaccard"][0][0] == 1.0 and isinstance(data["jaccard"][0][3], float)
    told = {row["label"]: row for row in data["strategies"]}
    assert told["thin"]["kind"] == "weights" and told["thin"]["achieved"]["params_zeroed"] == 400
    json.dumps(data, allow_nan=False)
    alone = describe(SideBySide(thin.model, "sparsity 0.5", Pass(), tuple(rows)))
    assert "no strategy could be planned" not in alone and "removed layers (" not in alone


def test_robustness_is_of_plans_that_remove_layers(tmp_path):
    get_plugins(
        [
            write_plugin(
                tmp_path,
                """
@dataclass(frozen=True)
class Thins(ScoreStrategy):
    "Would make weights zero."
    name = "thins"
    kind = "weights"

    def requires(self):
        return frozenset({"token_cosine"})

    def score(self, context):
        raise AssertionError("is never asked")


@hookimpl
def prunebench_register_strategies(register):
    register(Thins)
""",
            )
        ]
    )
    session = make_session(tmp_path / "out", "bi", "thins")
    found = measure_robustness(session, Asked(draws=2))
    assert {row.strategy for row in found.rows} == {"bi"} and "thins" not in found.independent
    with pytest.raises(UsageError, match="remove no layers"):
        measure_robustness(make_session(tmp_path / "alone", "thins"), Asked(draws=2))
