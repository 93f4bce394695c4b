"""A run that is cut short goes on where it was, and comes out as if it had never stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import TINY, comparable, invoke, leftovers, records_of, write_plugin

KILLER = """
import os

@dataclass(frozen=True)
class Killer(ScoreStrategy):
    "Ends the process, or interrupts it, if it is told to."
    name = "killer"

    def score(self, context):
        how = os.environ.get("PRUNEBENCH_TEST_KILL")
        if how == "exit":
            os._exit(9)
        if how == "interrupt":
            raise KeyboardInterrupt
        return np.arange(context.model.n_layers, dtype=float)


@hookimpl
def prunebench_register_strategies(register):
    register(Killer)
"""
FINISHED = ["bi at sparsity 0.5", "dense at sparsity 0"]
ALL = [*FINISHED, "killer at sparsity 0.5", "last_n at sparsity 0.5"]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plugin(tmp_path_factory.mktemp("plugin"), KILLER, "killer")


def command(plugin: Path, out: Path) -> list[str]:
    strategies = ("-s", "cosine", "-s", "killer", "-s", "last_n")
    return [str(x) for x in ("--plugin", plugin, "run", *TINY, *strategies, "--sparsity", 0.5, "--out", out)]


@pytest.fixture(scope="module")
def unbroken(plugin: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("unbroken")
    assert invoke(*command(plugin, out)).exit_code == 0
    return {label: comparable(record) for label, record in records_of(out).items()}


def check_that_it_goes_on(plugin: Path, out: Path, unbroken) -> None:
    assert sorted(records_of(out)) == FINISHED and not leftovers(out)
    (trace,) = (out / "traces").iterdir()
    files = [*(out / "records").iterdir(), trace]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
    again = invoke(*command(plugin, out))
    assert again.exit_code == 0 and "2 of 4 cells are finished already" in again.stderr
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files} == before
    records = records_of(out)
    assert sorted(records) == ALL and sorted(unbroken) == ALL
    assert {label: comparable(record) for label, record in records.items()} == unbroken


def test_a_run_that_was_killed_goes_on(plugin, tmp_path, unbroken):
    environment = {**os.environ, "PRUNEBENCH_TEST_KILL": "exit", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "prunebench", *command(plugin, tmp_path)], env=environment, capture_output=True
    )
    assert done.returncode == 9
    check_that_it_goes_on(plugin, tmp_path, unbroken)


def test_a_run_that_was_interrupted_goes_on(plugin, tmp_path, unbroken, monkeypatch):
    monkeypatch.setenv("PRUNEBENCH_TEST_KILL", "interrupt")
    stopped = invoke(*command(plugin, tmp_path))
    assert stopped.exit_code == 130
    assert "interrupted: run the same command again to go on; finished cells are kept" in stopped.stderr
    monkeypatch.delenv("PRUNEBENCH_TEST_KILL")
    check_that_it_goes_on(plugin, tmp_path, unbroken)


def test_a_failed_cell_runs_again_and_the_others_do_not(plugin, tmp_path, unbroken, monkeypatch):
    import prunebench_baselines.controls as controls

    def no_luck(*_):
        raise RuntimeError("no luck")

    with monkeypatch.context() as patch:
        patch.setattr(controls.LastN, "score", no_luck)
        assert invoke(*command(plugin, tmp_path)).exit_code == 1
    assert records_of(tmp_path)["last_n at sparsity 0.5"].error == "RuntimeError: no luck"
    again = invoke(*command(plugin, tmp_path))
    assert again.exit_code == 0 and "3 of 4 cells are finished already" in again.stderr
    assert {label: comparable(record) for label, record in records_of(tmp_path).items()} == unbroken


def test_operations_that_two_methods_share_are_evaluated_once(plugin, tmp_path, unbroken):
    first, second = unbroken["killer at sparsity 0.5"], unbroken["last_n at sparsity 0.5"]  # both take the last layers
    assert first["plan"]["ops"] == second["plan"]["ops"] and first["evaluated_in"] is None
    assert second["evaluated_in"] == first["id"] and second["tasks"] == first["tasks"]
    alone = [str(x) for x in ("run", *TINY, "-s", "last_n", "--sparsity", 0.5, "--out", tmp_path)]
    assert invoke(*alone).exit_code == 0
    other = comparable(records_of(tmp_path)["last_n at sparsity 0.5"])
    assert other["evaluated_in"] is None and other["tasks"] == second["tasks"]


def test_timing_again_keeps_the_answers(tmp_path):
    timed = [word for word in TINY if word != "--no-latency"]
    grid = [str(x) for x in ("run", *timed, "-s", "last_n", "--sparsity", 0.5, "--out", tmp_path)]
    assert invoke(*grid).exit_code == 0
    before = records_of(tmp_path)
    assert invoke(*grid, "--remeasure").exit_code == 0
    after = records_of(tmp_path)
    assert after.keys() == before.keys()
    for label, record in after.items():
        old = before[label]
        kept = {"latency", "memory", "seconds"}
        assert record.model_dump(exclude=kept) == old.model_dump(exclude=kept)
        assert record.latency is not None and record.latency != old.latency  # another measurement
        assert record.seconds["evaluate"] == old.seconds["evaluate"]
