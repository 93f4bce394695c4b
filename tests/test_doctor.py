"""`prunebench doctor --suite`: what each task lacks, and what the suite will cost, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunebench.budget import Budget
from prunebench.cli.doctor_suite import words
from prunebench.power import planned_difference
from prunebench.store import Store, load_records
from tests.commands import error_line, invoke, write_plugin
from tests.factories import make_model, make_record, make_task

EVALUATOR = """
from pathlib import Path
from prunebench.errors import EvaluationError
from prunebench.evaluator import Need


class Far(Evaluator):
    "Is never asked here."
    name = "far"

    def evaluate(self, loaded, task, progress=None):
        raise AssertionError("the doctor asks nothing")

    def check(self, task):
        if task.metric == "no":
            raise EvaluationError(f"task {task.id!r}: there is no metric 'no'")

    def needs(self, task):
        return [Need("missing" if task.options.get("bare") else "ok", "telescope", "4 m", "buy one")]


@hookimpl
def prunebench_register_evaluators(register):
    register(Far)


@hookimpl
def prunebench_register_suites(register):
    register(Path(__file__).with_name("sky.yaml"))
"""
SUITE = """
title: Sky
tasks:
  - {id: stars, evaluator: far, questions: 600, disk_gb: 2, why: none}
  - {id: films, evaluator: far, questions: 40, disk_gb: 1.5, modality: video, why: none}
  - {id: moons, evaluator: far, why: none}
"""


@pytest.fixture
def look(tmp_path, monkeypatch):
    """`prunebench doctor --suite sky` → (data, exit code), with what is given changed in the suite's text."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def go(*more: object, text: str = SUITE):
        plugin = write_plugin(tmp_path, EVALUATOR, "far")
        (tmp_path / "sky.yaml").write_text(text, encoding="utf-8")
        words = ("--plugin", plugin, "doctor", "--suite", "sky", "--out", tmp_path / "runs", *more)
        result = invoke(*words, "--json")
        if result.exit_code == 2:
            return result, 2
        text_result = invoke(*words)
        assert text_result.exit_code == result.exit_code
        found = json.loads(result.stdout)
        for task in found["tasks"]:
            state = f"LEFT OUT, {task['left_out']}" if task["left_out"] else "ready" if task["ready"] else "CANNOT RUN"
            assert f"{task['task']}: {state}" in text_result.stdout
            assert all(f"{need['what']}: {need['detail']}" in text_result.stdout for need in task["needs"])
        return {
            **found,
            "text": text_result.stdout,
            **{task["task"]: task for task in found["tasks"]},
        }, result.exit_code

    return go


def keep(
    tmp_path: Path, name: str, seconds: dict[str, float], n: int = 100, day: int = 1, suite: str = "sky", **changes
):
    """A record of earlier answers."""
    tasks = [make_task(task, 50, n, seconds=value) for task, value in seconds.items()]
    model = make_model(name=name).model_copy(update={"modalities": ("image", "video")})
    finished = f"2026-01-{day:02}T00:00:00+00:00"
    cell = {"suite": suite, **changes}
    record = make_record("dense", (), tasks=tasks, model=model, budget=Budget(value=0.0), cell=cell, finished=finished)
    Store(tmp_path / "runs").write(record)


def test_what_is_there_and_what_it_costs_without_any_record(look):
    found, code = look("--models", 3)
    assert code == 0 and found["ready"] and found["models"] == 3
    assert [need["what"] for need in found["stars"]["needs"]] == ["telescope"]
    assert found["questions"] == 640 and found["moons"]["questions"] is None  # not known is no number
    assert found["seconds"] is None and found["untimed"] == ["stars", "films", "moons"] and found["disk_gb"] == 3.5
    assert "640 questions × 3 models = 1,920, and those of moons" in found["text"]
    assert "no speed known yet" in found["text"] and "data: 3.5 GB" in found["text"]


def test_time_comes_from_the_newest_record_of_the_model(look, tmp_path):
    keep(tmp_path, "testbed", {"stars": 500.0}, day=1)
    keep(tmp_path, "testbed", {"stars": 50.0, "moons": 20.0}, day=2, seed=1)
    keep(tmp_path, "elsewhere", {"stars": 900.0, "films": 900.0}, day=3)
    found, code = look("--model", "testbed", "--models", 2)
    assert code == 0
    assert found["stars"]["seconds_per_question"] == 0.5 and found["stars"]["seconds"] == 300.0
    assert found["stars"]["measured"] == "stars on testbed, ?, 2026-01-02"
    # nothing of a video was measured on this model: any task's speed stands in, and says which
    assert found["films"]["seconds"] == 40 * 0.5 and "stars on testbed" in found["films"]["measured"]
    assert found["moons"]["questions"] == 100 and found["moons"]["seconds"] == 20.0
    assert found["seconds"] == 340.0 and "about 11 min (6 min for each model)" in found["text"]
    assert look("--model", "testbed", "--limit", 10)[0]["seconds"] == pytest.approx(10 * 0.5 + 10 * 0.5 + 10 * 0.2)


def test_a_task_of_the_same_modality_is_nearer_than_any(look, tmp_path):
    keep(
        tmp_path, "testbed", {"video": 700.0}, day=1, suite="testbed"
    )  # a registered suite: its tasks' senses are known
    keep(tmp_path, "testbed", {"stars": 50.0}, day=2)
    found, _ = look("--model", "testbed")
    assert found["films"]["seconds_per_question"] == 7.0 and found["stars"]["seconds_per_question"] == 0.5


def test_a_speed_of_another_model_is_no_speed(look, tmp_path):
    keep(tmp_path, "elsewhere", {"stars": 900.0})
    found, _ = look("--model", "testbed")
    assert found["seconds"] is None
    assert "no speed of testbed known yet (those of elsewhere are)" in found["text"]
    assert look()[0]["stars"]["seconds"] == 5400.0  # nobody asked about a model


WRONG = {
    "its evaluator says so": (SUITE.replace("disk_gb: 2", "options: {bare: true}"), "stars", "telescope", "4 m"),
    "its check refuses it": (SUITE.replace("disk_gb: 2", "metric: 'no'"), "stars", "task", "there is no metric 'no'"),
    "no such evaluator": (SUITE.replace("far, why", "fa, why"), "moons", "evaluator", "unknown evaluator 'fa'"),
    "no such dataset": (
        SUITE.replace("far, why", "local, dataset: testbet, why"),
        "moons",
        "data",
        "unknown dataset 'testbet'; did you mean 'testbed'?",
    ),
    "a sense that the model lacks": (
        SUITE.replace("modality: video", "modality: touch"),
        "films",
        "model",
        "asks about touch, testbed takes text, image, video, audio",
    ),
}


@pytest.mark.parametrize(("text", "task", "what", "detail"), WRONG.values(), ids=WRONG.keys())
def test_a_task_that_cannot_run_is_named_with_what_it_lacks(look, text, task, what, detail):
    found, code = look("--model", "testbed", text=text)
    assert code == 1 and not found["ready"] and f"cannot run here: {task}" in found["text"]
    lacking = [need for need in found[task]["needs"] if need["status"] == "missing"]
    assert [need["what"] for need in lacking] == [what] and detail in lacking[0]["detail"]
    assert all(found[other]["ready"] for other in ("stars", "films", "moons") if other != task)
    rest = [word for other in ("stars", "films", "moons") if other != task for word in ("--task", other)]
    assert look("--model", "testbed", *rest, text=text)[1] == 0  # the others can


def test_a_judged_task_without_its_key_is_left_out_as_a_run_does(look):
    judged = SUITE.replace("questions: 600", "questions: 600, judge: openai")
    found, code = look("--model", "testbed", text=judged)
    assert code == 0 and found["ready"] and not found["stars"]["ready"]
    assert found["stars"]["left_out"] == "judge openai" and found["films"]["left_out"] is None
    assert [need["status"] for need in found["stars"]["needs"] if need["what"] == "key"] == ["warning"]
    assert found["questions"] == 40 and found["disk_gb"] == 1.5  # without its 600 questions and 2 GB
    assert "left out of a run: stars" in found["text"] and "cannot run here" not in found["text"]
    found, code = look("--task", "stars", text=judged)  # what `run` refuses
    assert code == 1 and not found["ready"] and "so that nothing remains" in found["text"]


def test_questions_that_make_one_score_together_are_counted_one_by_one(look, tmp_path):
    """100 scores of 400 questions in 40 s: a tenth of a second for each question."""
    result = make_task("stars", 50, 100, seconds=40.0).model_copy(update={"source": {"asked": "400"}})
    moons = make_task("moons", 50, 100, seconds=20.0).model_copy(update={"source": {"asked": "200"}})
    model = make_model(name="testbed").model_copy(update={"modalities": ("image", "video")})
    changes = {"model": model, "budget": Budget(value=0.0), "cell": {"suite": "sky"}}
    Store(tmp_path / "runs").write(make_record("dense", (), tasks=[result, moons], **changes))
    found, _ = look("--model", "testbed")
    assert found["stars"]["seconds_per_question"] == 0.1 and found["stars"]["seconds"] == 60.0
    assert found["moons"]["questions"] == 200 and found["moons"]["seconds"] == 20.0


def test_a_limit_of_the_run_to_come_does_not_change_the_speed(look, tmp_path):
    text = SUITE.replace("{id: stars, evaluator: far, questions: 600,", "{id: stars, dataset: testbed, n: 600,")
    keep(tmp_path, "testbed", {"stars": 60.0}, n=600)
    whole, short = look("--model", "testbed", text=text)[0], look("--model", "testbed", "--limit", 6, text=text)[0]
    assert whole["stars"]["seconds_per_question"] == short["stars"]["seconds_per_question"] == pytest.approx(0.1)
    assert whole["stars"]["seconds"] == pytest.approx(60.0) and short["stars"]["seconds"] == pytest.approx(0.6)


def test_how_small_a_difference_can_be_told(look):
    found, _ = look()
    for task, n in (("stars", 600), ("films", 40)):
        assert found[task]["detectable"] == planned_difference(n, 0.2)
    assert found["moons"]["detectable"] is None  # its questions are not counted
    low, high = (100 * planned_difference(n, 0.2) for n in (600, 40))
    assert f"apart from {low:.1f} points in stars to {high:.1f} points in films" in found["text"]
    assert (
        look(text=SUITE.replace("questions: 600", "questions: 600, metric: perplexity"))[0]["stars"]["detectable"]
        is None
    )  # no share of right answers


def test_a_suite_file_of_ones_own(look, tmp_path):
    look()
    result = invoke("--plugin", tmp_path / "far.py", "doctor", "--suite", tmp_path / "sky.yaml", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["suite"] == "sky"


def test_a_key_is_seen_and_never_said(look, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "a-secret-value")
    found, code = look(text=SUITE.replace("far, why", "far, judge: openai, why"))
    assert code == 0 and "OPENAI_API_KEY is set" in found["text"] and "a-secret-value" not in json.dumps(found)


def test_our_own_suites_are_ready_and_take_the_time_that_was_recorded():
    committed = Path(__file__).parent.parent / "leaderboards" / "testbed"
    result = invoke("doctor", "--suite", "testbed", "--model", "testbed", "--out", committed, "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0 and found["questions"] == 2000 and found["untimed"] == []
    assert [task["needs"][0]["status"] for task in found["tasks"]] == ["ok"] * 4
    whole = [r for r in load_records([committed]) if r.complete and r.evaluated_in is None]
    newest = max(whole, key=lambda record: (record.finished, record.id))
    assert [task["seconds"] for task in found["tasks"]] == pytest.approx([task.seconds for task in newest.tasks])


def test_wrong_words():
    assert "--limit is about a suite: add --suite NAME" in error_line(invoke("doctor", "--limit", 3))
    assert "--task is about a suite" in error_line(invoke("doctor", "--task", "a"))
    assert "did you mean 'testbed'" in error_line(invoke("doctor", "--suite", "testbet"))
    assert "unknown task of suite 'testbed' 'generl'" in error_line(
        invoke("doctor", "--suite", "testbed", "--task", "generl")
    )
    assert "did you mean 'testbed'" in error_line(invoke("doctor", "--suite", "testbed", "--model", "testbet"))


def test_times_in_words():
    seconds = (0.004, 7.2, 89, 90, 5399, 5400, 100_000, 200_000)
    assert [words(s) for s in seconds] == ["0.004 s", "7 s", "89 s", "2 min", "90 min", "1.5 h", "27.8 h", "2.3 days"]
