"""Do 95 % intervals hold the truth in 95 % of cases?  By simulation, where the truth is known."""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from prunebench import stats
from prunebench.stats import mean_interval

ROOT = Path(__file__).parent.parent


def _simulation():
    spec = importlib.util.spec_from_file_location("interval_coverage", ROOT / "benchmarks" / "interval_coverage.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # NamedTuple looks its module up
    spec.loader.exec_module(module)
    return module


SIMULATION = _simulation()
LOW, HIGH = 0.93, 0.97
QUICK = {
    ("mean, Wilson", 200),
    ("mean, clustered", 200),
    ("difference", 200),
    ("difference, clustered", 200),
    ("difference near 1, clustered", 300),
    ("relative, chance-corrected", 200),
    ("relative, chance-corrected, clustered", 300),
}


def named(case):
    return f"{case.name}-{case.n}"


@pytest.mark.parametrize("case", [c for c in SIMULATION.CASES if (c.name, c.n) in QUICK], ids=named)
def test_intervals_cover(case):
    # The binomial error of 2,000 simulations is 0.5 points.
    assert LOW < SIMULATION.coverage(case, simulations=2000, n_boot=500, seed=1)["covered"] < HIGH


@pytest.mark.parametrize("name", ["mean, Wilson", "difference", "relative, plain"])
def test_a_broken_interval_is_found_out(name, monkeypatch):
    """What these tests would let pass: neither an interval at 90 % that says 95, nor one at 99 %."""
    case = next(case for case in SIMULATION.CASES if case.name == name)
    for level in (0.9, 0.99):
        for statistic in ("mean_interval", "paired_difference", "relative_intervals"):
            monkeypatch.setattr(SIMULATION, statistic, functools.partial(getattr(stats, statistic), level=level))
        assert not LOW < SIMULATION.coverage(case, simulations=1500, n_boot=300, seed=3)["covered"] < HIGH


def test_every_quick_case_is_there():
    assert not QUICK - {(case.name, case.n) for case in SIMULATION.CASES}


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in SIMULATION.CASES if not c.blind], ids=named)
def test_every_interval_covers(case):
    assert LOW < SIMULATION.coverage(case, simulations=5000, seed=2)["covered"] < HIGH


@pytest.mark.parametrize("name", ["mean, alone", "difference, alone", "relative, chance-corrected, alone"])
def test_clustered_answers_need_the_clusters(name):
    """An interval that takes each answer about one image for an answer of its own is far too narrow."""
    case = next(case for case in SIMULATION.CASES if case.name == name)
    assert case.blind and case.images and SIMULATION.effect(case) > 2
    blind = SIMULATION.coverage(case, simulations=500, n_boot=300)
    told = SIMULATION.coverage(case._replace(blind=False), simulations=500, n_boot=300)
    assert blind["covered"] < 0.87
    assert told["covered"] > 0.92 and told["width"] > 1.3 * blind["width"]


def test_the_simulated_truth_is_the_truth():
    """The answers' means are those that the intervals are asked to hold, and answers about one image go together."""
    case = next(case for case in SIMULATION.CASES if case.name == "difference, clustered")
    random = np.random.default_rng(3)
    draws = [SIMULATION.answers(random, case) for _ in range(400)]
    for part, truth in ((0, case.pruned), (1, case.dense)):
        means = [draw[part].mean() for draw in draws]
        assert np.mean(means) == pytest.approx(truth, abs=4 * np.std(means) / 20)
    pruned, _, images = draws[0]
    assert len(images) == len(pruned) == case.n and len(set(images)) == case.images
    assert mean_interval(pruned, clusters=images).method == "wilson-clustered"


def test_the_committed_record_says_the_same():
    record = json.loads((ROOT / "benchmarks" / "records" / "interval_coverage.json").read_text(encoding="utf-8"))
    rows = {(row["name"], row["n"]): row for row in record["rows"]}
    assert record["simulations"] >= 4000 and set(rows) == {(case.name, case.n) for case in SIMULATION.CASES}
    for row in record["rows"]:
        assert row["covered"] < 0.87 if row["blind"] else LOW < row["covered"] < HIGH, row["name"]
