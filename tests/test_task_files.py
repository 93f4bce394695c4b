"""Each finished task is kept at once, found again by what its answers come from, and never taken for another's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from prunebench.errors import StoreError
from prunebench.plan import Plan
from prunebench.reporter import Reporter
from prunebench.runner import Session
from prunebench.store import Store
from prunebench.suites import Task
from prunebench.task_files import TaskFiles, task_identity
from tests.commands import TINY, comparable, invoke, leftovers, records_of, write_plugin
from tests.factories import make_model, make_task

EVALUATOR = """
import os
from pathlib import Path
from prunebench.evaluator import TaskResult
from prunebench.testing.tiny import TinyLlama


class Counted(Evaluator):
    "Writes down each task that it is asked, and may end the process, or fail, in one."
    name = "counted"

    def evaluate(self, loaded, task, progress=None):
        with open(os.environ["PRUNEBENCH_TEST_LOG"], "a") as log:
            log.write(f"{len(loaded.layers)} {task.id}\\n")
        if os.environ.get("PRUNEBENCH_TEST_TASK") == task.id:
            if os.environ["PRUNEBENCH_TEST_HOW"] == "exit":
                os._exit(9)
            raise RuntimeError("no luck")
        score = len(loaded.layers) / 100
        return TaskResult(task=task.id, metric="share", n=1, score=score, ci_low=score, ci_high=score, ci_method="none",
                          ids=(task.id,), scores=(score,), answers=(str(score),), chance=0.0)


@hookimpl
def prunebench_register_evaluators(register):
    register(Counted)


@hookimpl
def prunebench_register_suites(register):
    register(Path(__file__).with_name("five.yaml"))
"""
FIVE = "name: five\ntitle: Five\ntasks:\n" + "".join(
    f"  - {{id: {name}, evaluator: counted, metric: share, why: none}}\n" for name in "abcde"
)
LABELS = ("dense at sparsity 0", "last_n at sparsity 0.5")


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    (tmp_path / "plugin").mkdir()
    (tmp_path / "plugin" / "five.yaml").write_text(FIVE, encoding="utf-8")
    return write_plugin(tmp_path / "plugin", EVALUATOR, "counted")


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRUNEBENCH_TEST_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


def command(plugin: Path, out: Path, *more: str) -> list[str]:
    grid = ("-s", "last_n", "--sparsity", 0.5, "--suite", "five", "--out", out)
    return [str(x) for x in ("--plugin", plugin, "run", *TINY, *grid, *more)]


def asked(log: Path) -> list[str]:
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


DENSE = [f"16 {name}" for name in "abcde"]
PRUNED = [f"8 {name}" for name in "abcde"]


def test_a_run_that_was_killed_in_a_task_goes_on_there(plugin, log, tmp_path, monkeypatch):
    out, whole = tmp_path / "out", tmp_path / "whole"
    environment = {**os.environ, "PRUNEBENCH_TEST_TASK": "c", "PRUNEBENCH_TEST_HOW": "exit", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "prunebench", *command(plugin, out)], env=environment, timeout=300)
    assert done.returncode == 9 and asked(log) == DENSE[:3]
    assert not list((out / "records").glob("*.json")) and not leftovers(out)
    kept = {path: path.read_bytes() for path in (out / "tasks").iterdir()}
    assert sorted(json.loads(content)["result"]["task"] for content in kept.values()) == ["a", "b"]

    again = invoke(*command(plugin, out))
    assert again.exit_code == 0 and "answered before and kept: a, b" in again.stderr
    assert asked(log) == [*DENSE[2:], *PRUNED]
    assert invoke(*command(plugin, whole)).exit_code == 0 and asked(log) == [*DENSE, *PRUNED]
    found, unbroken = records_of(out), records_of(whole)
    assert sorted(found) == sorted(LABELS)
    assert {name: comparable(r) for name, r in found.items()} == {name: comparable(r) for name, r in unbroken.items()}
    assert not (out / "tasks").exists()  # the records hold it all


def test_a_task_that_fails_is_named_and_the_next_run_goes_on_there(plugin, log, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setenv("PRUNEBENCH_TEST_TASK", "d")
        patch.setenv("PRUNEBENCH_TEST_HOW", "raise")
        assert invoke(*command(plugin, out)).exit_code == 1
    assert asked(log) == [*DENSE[:4], *PRUNED[:4]]
    for label in LABELS:
        record = records_of(out)[label]
        assert (record.status, record.error) == ("failed", "task 'd': RuntimeError: no luck")
    assert len(list((out / "tasks").iterdir())) == 6
    assert invoke(*command(plugin, out)).exit_code == 0
    assert asked(log) == [*DENSE[3:], *PRUNED[3:]]
    scores = {label: {t.score for t in record.tasks} for label, record in records_of(out).items()}
    assert scores == {LABELS[0]: {0.16}, LABELS[1]: {0.08}} and not (out / "tasks").exists()


def test_force_asks_everything_anew_and_damaged_files_are_moved_away(plugin, log, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setenv("PRUNEBENCH_TEST_TASK", "c")
        patch.setenv("PRUNEBENCH_TEST_HOW", "raise")
        assert invoke(*command(plugin, out)).exit_code == 1
    asked(log)
    first, *others = sorted((out / "tasks").iterdir())
    kept = {path: path.read_bytes() for path in others}
    first.write_bytes(first.read_bytes()[:-20])
    damaged = json.loads(others[0].read_text(encoding="utf-8"))
    damaged["identity"]["plan"] = "0" * 64
    others[0].write_text(json.dumps(damaged), encoding="utf-8")
    again = invoke(*command(plugin, out))
    assert again.exit_code == 0 and again.stderr.count("is damaged") == 2
    assert len(asked(log)) == 6 + 2
    assert sorted(path.name for path in (out / "quarantine").iterdir()) == sorted({first.name, others[0].name})
    for path, content in kept.items():  # what is there already is not looked at
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    assert invoke(*command(plugin, out, "--force")).exit_code == 0
    assert asked(log) == [*DENSE, *PRUNED] and not (out / "tasks").exists()


# -- identity ----------------------------------------------------------------------------------------------------------

TASK = Task(
    id="look", dataset="shapes", n=10, why="because", disk_gb=1.0, questions=9, needs=("a",), data={"test": "x"}
)


def identity(model=None, plan=None, task=TASK, **changes):
    model = model or make_model()
    given = {"loading": {}, "device": "cpu", "evaluator_version": "1", "dataset_revision": "r", "task_revision": ""}
    return task_identity(model, plan or Plan.drop(model, (2,)), task, **{**given, **changes})


def test_two_plans_at_one_path_share_nothing(tmp_path):
    model, files = make_model(), TaskFiles(Store(tmp_path))
    a, b = ({"w.mlp.weight": np.full((4, 4), value, np.float32)} for value in (1.0, 2.0))
    set_weights = {"op": "set_weights", "layer": 0, "tensors": "w"}
    plans = [Plan.drop(model, (2, 3)), Plan.drop(model, (2, 4)), Plan.drop(model)]
    plans += [Plan.of(model, [set_weights], tensors) for tensors in (a, b)]
    assert plans[3].ops == plans[4].ops  # they differ in tensors only
    made = [identity(plan=plan) for plan in plans]
    for index, one in enumerate(made):
        files.write(one, make_task("look", index))
    assert len({files.path(one) for one in made}) == len(plans)
    assert [files.read(one) for one in made] == [make_task("look", index) for index in range(len(plans))]
    read = Plan.from_json(plans[3].to_json())  # from a record: its tensors lie elsewhere
    assert identity(plan=read) == made[3]


def test_every_part_of_the_identity_counts_and_wording_does_not(tmp_path):
    files, model = TaskFiles(Store(tmp_path)), make_model()
    others = [
        identity(model=model.model_copy(update={"revision": "other"})),
        identity(model=model.model_copy(update={"name": "other"})),
        identity(model=model.model_copy(update={"dtype": "bfloat16"})),
        identity(loading={"attn_implementation": "eager"}),
        identity(device="cuda"),
        identity(evaluator_version="2"),
        identity(dataset_revision="s"),
        identity(task_revision="own data"),
        *(
            identity(task=TASK.model_copy(update={name: value}))
            for name, value in {
                "n": 11,
                "limit": 3,
                "seed": 1,
                "metric": "f1",
                "generation": {"max_new_tokens": 1},
                "options": {"profile": "qwen_vl"},
                "evaluator": "lmms",
                "task": "look_lite",
            }.items()
        ),
    ]
    files.write(identity(), make_task("look", 5))
    assert all(files.read(other) is None for other in others)
    assert len({files.path(other) for other in [identity(), *others]}) == len(others) + 1
    plain = Task(id="look", dataset="shapes", n=10)
    assert files.read(identity(task=plain)) == make_task("look", 5)
    text = files.path(identity()).read_text(encoding="utf-8")
    assert str(tmp_path) not in text and "object at 0x" not in text
    assert identity(model=model.model_copy(update={"planted_roles": {"decoy": (1,)}})) == identity()


def test_plans_at_one_path_answer_for_themselves_with_what_encoders_and_tasks_left(tmp_path):
    """One folder, two plans that differ in one layer: as in folders of their own."""
    from prunebench.config import LatencySpec, Spec

    def session(out: str) -> Session:
        spec = Spec(model="testbed", suite="testbed", limit=8, latency=LatencySpec(enabled=False), out=tmp_path / out)
        return Session(spec, Reporter.silent())

    shared = session("shared")
    info = shared.loaded.info
    plans = [Plan.drop(info, layers) for layers in ((0, 1), (0, 2), ())]
    together = [shared.evaluate(plan) for plan in plans]
    assert len(list((tmp_path / "shared" / "tasks").iterdir())) == 3 * len(shared.suite.tasks)

    def said(results):
        return [(result.task, result.scores, result.answers) for result in results]

    for index, plan in enumerate(plans):
        assert said(session(f"own-{index}").evaluate(plan)) == said(together[index])
    assert len({str(said(results)) for results in together}) == len(plans)  # they do answer differently
    kept = session("shared")
    kept.questions.evaluators = {}  # nobody is there to be asked
    assert [kept.evaluate(plan) for plan in plans] == together


def test_a_store_that_cannot_be_written_to_stops_the_run(tmp_path):
    store = Store(tmp_path)
    (tmp_path / "tasks").write_text("in the way", encoding="utf-8")
    with pytest.raises(StoreError, match="cannot write"):
        TaskFiles(store).write(identity(), make_task("look", 1))
