"""What a run asks of a suite: checked before the model is loaded, judged tasks left out and said so, weights kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunebench import leaderboard
from prunebench.comparison import group_records
from prunebench.config import Cell
from prunebench.findings import difference, ranking_weights
from prunebench.results import frame
from prunebench.stats import relative_score
from prunebench.store import load_records
from tests.commands import TINY, error_line, invoke, records_of, write_plugin
from tests.factories import make_dense, make_record, make_task

EVALUATOR = """
import os
from pathlib import Path
from prunebench.errors import EvaluationError, UnknownName
from prunebench.evaluator import TaskResult


class Seen(Evaluator):
    "Gives what a task says; knows two metrics."
    name = "seen"

    def check(self, task):
        if task.metric not in ("share", "other"):
            raise UnknownName("metric", task.metric, ("share", "other"))

    def revision(self, task):
        return os.environ.get("PRUNEBENCH_TEST_REVISION", "")

    def evaluate(self, loaded, task, progress=None):
        progress(1, 1)
        score = len(loaded.layers) / 100
        return TaskResult(task=task.id, metric=task.metric, n=1, score=score, ci_low=score, ci_high=score,
                          ci_method="none", ids=("q",), scores=(score,), chance=0.0, warnings=("odd prompt",),
                          answers=(str(task.limit),))


@hookimpl
def prunebench_register_evaluators(register):
    register(Seen)


@hookimpl
def prunebench_register_suites(register):
    register(Path(__file__).with_name("mine.yaml"))
"""
SUITE = """
title: Mine
tasks:
  - {id: plain, evaluator: seen, metric: share}
  - {id: heavy, evaluator: seen, metric: share, weight: 3, limit: 5}
  - {id: described, evaluator: seen, metric: share, judge: openai}
"""
KEY = "OPENAI_API_KEY"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`prunebench run` on the suite, with what is given changed in its text."""
    monkeypatch.delenv(KEY, raising=False)

    def go(out: str, *more: object, text: str = SUITE, latency: bool = False):
        folder = tmp_path / f"plugin-{out}"
        plugin = write_plugin(folder, EVALUATOR, "seen")
        (folder / "mine.yaml").write_text(text, encoding="utf-8")
        tiny = [word for word in TINY if not (latency and word == "--no-latency")]
        grid = ("-s", "last_n", "--sparsity", 0.5, "--suite", "mine", "--out", tmp_path / out)
        return invoke("--plugin", plugin, "run", *tiny, *grid, *more), tmp_path / out

    return go


def cells(out: Path) -> dict[str, Cell]:
    return {label: record.cell for label, record in records_of(out).items()}


def test_judged_tasks_are_left_out_and_said_everywhere(run, monkeypatch):
    said = "left out: described (its answers are scored by openai); set OPENAI_API_KEY to include it"
    result, out = run("without")
    assert result.exit_code == 0 and f"warning: {said}" in result.stderr
    for record in records_of(out).values():
        assert [task.task for task in record.tasks] == ["plain", "heavy"]
        assert record.warnings == (said,) and record.cell.left_out == {"described": "judge openai"}
    table = (out / "leaderboard.md").read_text(encoding="utf-8")
    assert "**Left out of the suite**: `described` (judge openai: no key was set)" in table

    monkeypatch.setenv(KEY, "a-secret-value")
    result, whole = run("with")
    assert result.exit_code == 0 and "left out" not in result.stderr
    for record in records_of(whole).values():
        assert len(record.tasks) == 3 and record.warnings == () and record.cell.left_out == {}
    assert "Left out" not in (whole / "leaderboard.md").read_text(encoding="utf-8")
    written = "".join(path.read_text(encoding="utf-8", errors="ignore") for path in whole.rglob("*") if path.is_file())
    assert "a-secret-value" not in written and '"left_out"' not in written
    one, other = cells(out)["last_n at sparsity 0.5"], cells(whole)["last_n at sparsity 0.5"]
    assert one.suite_digest != other.suite_digest and one.id != other.id
    assert len(group_records(load_records([out, whole]))) == 2  # never ranked together


def test_a_suite_of_judged_tasks_alone_is_refused(run, tmp_path):
    result, out = run("all", "--task", "described")
    assert "every task that is asked for is scored by a judge, and OPENAI_API_KEY is not set" in error_line(result)
    assert not out.exists()


def test_tasks_are_checked_before_the_model_is_loaded(run):
    result, out = run("typo", text=SUITE.replace("metric: share, weight", "metric: shar, weight"))
    assert "unknown metric 'shar'; did you mean 'share'?" in error_line(result)
    assert "load" not in result.stderr and not out.exists()


def test_a_suite_file_of_ones_own(run, tmp_path):
    """Found from where the command was given, and the same run as under the registered name."""
    _, named = run("named")
    file = tmp_path / "plugin-named" / "mine.yaml"
    result, own = run("own", "--suite", file)
    assert result.exit_code == 0, result.stderr
    assert {c.id for c in cells(own).values()} == {c.id for c in cells(named).values()}
    result, _ = run("none", "--suite", tmp_path / "absent.yaml")
    assert f"cannot read suite {tmp_path / 'absent.yaml'}" in error_line(result)
    result, _ = run("typo", "--suite", "min")
    assert "unknown suite 'min'; did you mean 'mine'?" in error_line(result)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ("domain: genera", "unknown domain of dataset 'testbed' 'genera'; did you mean 'general'?"),
        ("split: tests", "unknown split 'tests'; did you mean 'test'?"),
    ],
)
def test_questions_that_a_dataset_does_not_have_are_refused_before_the_model_is_loaded(run, changes, words):
    result, out = run("wrong", text=f"tasks:\n  - {{id: a, dataset: testbed, {changes}}}\n")
    assert f"task 'a': {words}" in error_line(result)
    assert "load" not in result.stderr and not out.exists()


def test_data_that_an_evaluator_would_not_look_at_are_refused(run, tmp_path):
    text = "tasks:\n  - {id: a, dataset: testbed, domain: general}\n"
    result, out = run("ignored", "--data", f"a={tmp_path}", text=text)
    assert "task 'a': its questions are those of dataset 'testbed', data of your own" in error_line(result)
    assert not out.exists()


def test_some_tasks_alone(run):
    result, out = run("some", "--task", "heavy", latency=True)
    assert result.exit_code == 0
    record = records_of(out)["last_n at sparsity 0.5"]
    (task,) = record.tasks
    assert task.task == "heavy" and task.weight == 3 and task.answers == ("2",)  # --limit 2 is below its own limit
    assert record.cell.left_out == {"plain": "not asked for", "described": "not asked for"}
    assert record.latency is not None  # calibration samples are timed where no task has questions of its own
    assert "heavy: odd prompt" in result.stderr
    result, _ = run("none", "--task", "heav")
    assert "unknown task of suite 'mine' 'heav'; did you mean 'heavy'?" in error_line(result)


def test_what_an_evaluator_says_of_its_data_is_part_of_the_identity(run, monkeypatch):
    _, plain = run("plain")
    monkeypatch.setenv("PRUNEBENCH_TEST_REVISION", "own data 1")
    _, own = run("own")
    digests = {cell.suite_digest for out in (plain, own) for cell in cells(out).values()}
    assert len(digests) == 2


def test_data_of_ones_own_is_checked_by_name_and_place(run, tmp_path):
    result, _ = run("data", "--data", "plan=.")
    assert "unknown task of suite 'mine' 'plan'; did you mean 'plain'?" in error_line(result)
    result, _ = run("data", "--data", f"plain={tmp_path / 'absent'}")
    assert "task 'plain': data for 'test' is not there" in error_line(result)


def test_all_tasks_that_the_model_has_no_sense_for_are_named(run):
    text = SUITE.replace("{id: plain,", "{id: plain, modality: touch,")
    text = text.replace("{id: heavy,", "{id: heavy, modality: taste,")
    result, out = run("senses", text=text.replace("judge: openai", "why: none"))
    line = error_line(result)
    assert "asks about touch, taste" in line and "plain, heavy need: run the others by --task described" in line
    assert not list(out.glob("records/*.json"))


# -- weights -----------------------------------------------------------------------------------------------------------


def weighted(*weights: float):
    dense = make_dense({}, tasks=[make_task(f"t{i}", 80 - 10 * i, weight=w) for i, w in enumerate(weights)])
    first = make_record("a", (1, 2), tasks=[make_task(f"t{i}", 60 - 7 * i, weight=w) for i, w in enumerate(weights)])
    second = make_record("b", (3, 4), tasks=[make_task(f"t{i}", 50 + 5 * i, weight=w) for i, w in enumerate(weights)])
    return dense, first, second


def test_weights_reach_relative_scores_and_differences():
    records = weighted(1, 2, 5)
    (group,) = group_records(records)
    kept = [(0.60 - 0.25) / (0.80 - 0.25), (0.53 - 0.25) / (0.70 - 0.25), (0.46 - 0.25) / (0.60 - 0.25)]
    expected = (1 * kept[0] + 2 * kept[1] + 5 * kept[2]) / 8
    found = group.relative(records[1])
    assert found.chance_corrected == pytest.approx(expected, rel=1e-12)
    assert found.plain == pytest.approx((0.60 / 0.80 + 2 * 0.53 / 0.70 + 5 * 0.46 / 0.60) / 8, rel=1e-12)
    rows = {row.strategy: row for row in group.sections[0].rows}
    gap = difference(group, rows["a"], rows["b"])
    apart = group.relative(records[1]).chance_corrected - group.relative(records[2]).chance_corrected
    assert gap is not None and gap.mean == pytest.approx(apart, rel=1e-9)
    table = frame(records).set_index("strategy")
    assert table.mean_relative_corrected["a"].iloc[0] == pytest.approx(expected, rel=1e-12)
    text = leaderboard.build(records)
    assert "means over tasks by the weights in the table below" in text
    assert [line.split("|")[-2].strip() for line in text.splitlines() if line.startswith("| t")][:3] == ["1", "2", "5"]


def test_equal_weights_change_nothing():
    ones, plain = weighted(1, 1, 1), weighted(*[1.0] * 3)
    assert leaderboard.build(ones) == leaderboard.build(plain) and "Weight" not in leaderboard.build(ones)
    (group,) = group_records(ones)
    scores = {result.task: result.score for result in ones[1].tasks}
    dense = {result.task: result.score for result in ones[0].tasks}
    unweighted = relative_score(scores, dense, dict.fromkeys(scores, 0.25))
    assert group.relative(ones[1]) == unweighted  # to the last bit
    assert ranking_weights(group) == {task: 1 / ((value - 0.25) * 3) for task, value in dense.items()}
    alike = weighted(4, 4, 4)
    (same,) = group_records(alike)
    assert same.relative(alike[1]).plain == pytest.approx(unweighted.plain, rel=1e-12)
    assert "Weight" not in leaderboard.build(alike)


def test_a_cell_without_anything_left_out_reads_as_it_always_did():
    cell = make_dense({"look": 5}).cell
    assert "left_out" not in json.loads(cell.model_dump_json())
    assert Cell.model_validate_json(cell.model_dump_json()).left_out == {}


def test_the_list_of_suites_says_how_many_questions_where_that_is_known(tmp_path):
    plugin = write_plugin(tmp_path, EVALUATOR, "seen")
    text = SUITE + "  - {id: far, evaluator: seen, questions: 1234}\n  - {id: near, dataset: testbed, n: 7}\n"
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    line = next(x for x in invoke("--plugin", plugin, "list", "suites").stdout.splitlines() if x.startswith("mine "))
    assert "Mine: plain, heavy (5), described (judge openai), far (1,234), near (7)" in line
