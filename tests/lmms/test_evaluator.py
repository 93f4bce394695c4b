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


def test_no_interval_is_made_up():
    assert interval(0.7, (), (), 1.0) == (0.7, 0.7, "none")
    assert interval(0.7, (1.0, 0.0), (), 1.0) == (0.7, 0.7, "none")


def test_the_source_says_what_was_asked():
    asked = {("t", 0): "fingerprint a", ("t", 1): "fingerprint b"}
    source = source_of(TASK, outcome(), asked)
    assert source["dataset"] == "org/data/en" and source["version"] == "0.1"
    assert (source["task"], source["profile"]) == ("t", "qwen_vl")
    assert source["package"].startswith("lmms-eval ")
    assert source_of(TASK, outcome(), dict(reversed(asked.items()))) == source
    # other words or media, other answers, fewer questions: other documents
    others = [
        source_of(TASK, outcome(), {**asked, ("t", 1): "fingerprint c"}),
        source_of(TASK, outcome(("A", "C")), asked),
        source_of(TASK, outcome(("A",)), {("t", 0): "fingerprint a"}),
    ]
    assert len({source["docs"], *(other["docs"] for other in others)}) == 4


def test_own_files_are_said_to_be_so():
    assert source_of(TASK.model_copy(update={"data": {"test": "/x"}}), outcome(), {})["dataset"] == "own files"
    assert source_of(TASK.model_copy(update={"data": {"media": "/x"}}), outcome(), {})["dataset"] == "org/data/en"
