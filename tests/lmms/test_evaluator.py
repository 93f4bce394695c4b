"""From lmms-eval's samples to a `TaskResult`: intervals, and what a result says about where it comes from."""

from __future__ import annotations

import numpy as np
import pytest
from prunebench_lmms_eval.call import Outcome
from prunebench_lmms_eval.evaluator import interval, source_of

from prunebench.stats import mean_interval, wilson
from prunebench.suites import Task

TASK = Task(id="t", evaluator="lmms", metric="acc", options={"profile": "qwen_vl"})


def outcome(targets=("A", "B"), **about) -> Outcome:
    rows = [{"doc_id": i, "target": target} for i, target in enumerate(targets)]
    about = {"configs": {"t": {"dataset_path": "org/data", "dataset_name": "en"}}, "versions": {"t": 0.1}, **about}
    return Outcome("t", {}, {}, {"t": rows}, {}, frozenset(), about)


def test_an_interval_is_on_the_scale_of_the_metric():
    low, high, method = interval(75.0, [100, 100, 0, 100], (), 100.0)
    assert (low, high) == pytest.approx([100 * bound for bound in wilson(3, 4)]) and method == "wilson"
    parts = list(np.random.default_rng(0).uniform(0, 800, 20))
    found = interval(sum(parts) / 20, parts, (), 800.0)
    plain = mean_interval([part / 800 for part in parts])
    assert found[:2] == pytest.approx([800 * plain.low, 800 * plain.high]) and found[2] == "bootstrap"


def test_an_interval_knows_of_clusters():
    scores, images = [1, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0], [str(i // 3) for i in range(12)]
    apart, together = interval(0.5, scores, (), 1.0), interval(0.5, scores, images, 1.0)
    assert together[2] == "wilson-clustered"
    assert together[1] - together[0] > apart[1] - apart[0]


def test_rounded_marks_are_right_or_wrong_all_the_same():
    """A task that rounds 2/3 to 0.6667: marks of 1.00005, whose interval is Wilson's of 20 in 30."""
    verdicts = [1.0] * 20 + [0.0] * 10
    scores = [value * 0.6667 * 1.5 for value in verdicts]
    low, high, method = interval(0.6667, scores, (), 1.0, verdicts)
    assert (low, high) == pytest.approx(wilson(20, 30)) and method == "wilson"


def test_strata_have_a_fixed_number_of_questions():
    """Two strata of 120 and 40 questions that count alike: the score's variance is the sum of theirs over four."""
    random = np.random.default_rng(1)
    answers = [(random.uniform(size=size) < share).astype(float) for size, share in ((120, 0.5), (40, 0.95))]
    shares = [160 / 240] * 120 + [160 / 80] * 40
    scores = [800 * value * share for value, share in zip(np.concatenate(answers), shares, strict=True)]
    score = sum(scores) / 160
    assert score == pytest.approx(400 * (answers[0].mean() + answers[1].mean()))
    low, high, method = interval(score, scores, (), 800.0, (), shares)
    error = 400 * np.sqrt(sum(one.var() / one.size for one in answers))
    assert (low, high) == pytest.approx((score - 1.96 * error, score + 1.96 * error), rel=0.03)
    assert method == "bootstrap"
    loose = interval(score, scores, (), 800.0)
    assert loose[1] - loose[0] > 1.2 * (high - low)  # the number of questions of each stratum was drawn, too
    full = [800 * share for share in shares]
    low, high, method = interval(800.0, full, (), 800.0, (), shares)
    assert low == pytest.approx(800 * wilson(160, 160)[0]) and high == 800 and method == "wilson"
    images = [str(i // 2) for i in range(160)]
    low, high, method = interval(800.0, full, images, 800.0, (), shares)
    assert 650 < low < 700 and high == 800 and method == "hoeffding"


def test_no_interval_is_made_up():
    assert interval(0.7, (), (), 1.0) == (0.7, 0.7, "none")
    assert interval(0.7, (1.0, 0.0), (), 1.0) == (0.7, 0.7, "none")


def test_the_source_says_what_was_asked():
    asked = {("t", 0): "fingerprint a", ("t", 1): "fingerprint b"}
    source = source_of(TASK, outcome(), asked, 2)
    assert source["dataset"] == "org/data/en" and source["version"] == "0.1"
    assert (source["task"], source["profile"]) == ("t", "qwen_vl")
    assert source["package"].startswith("lmms-eval ")
    assert source_of(TASK, outcome(), dict(reversed(asked.items())), 2) == source
    # other words or media, other answers, fewer questions: other documents
    others = [
        source_of(TASK, outcome(), {**asked, ("t", 1): "fingerprint c"}, 2),
        source_of(TASK, outcome(("A", "C")), asked, 2),
        source_of(TASK, outcome(("A",)), {("t", 0): "fingerprint a"}, 1),
    ]
    assert len({source["docs"], *(other["docs"] for other in others)}) == 4
    assert "asked" not in source and source_of(TASK, outcome(), asked, 1)["asked"] == "2"  # two make one score


def test_own_files_are_said_to_be_so():
    assert source_of(TASK.model_copy(update={"data": {"test": "/x"}}), outcome(), {}, 0)["dataset"] == "own files"
    assert source_of(TASK.model_copy(update={"data": {"media": "/x"}}), outcome(), {}, 0)["dataset"] == "org/data/en"
