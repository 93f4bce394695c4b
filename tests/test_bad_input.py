"""Wrong words on the command line: one line that says what to do, exit code 2, and nothing written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.commands import TINY, error_line, invoke, leftovers, records_of, write_plugin


def run(out: Path, *arguments: object, strategy: str = "last_n", budget: tuple = ("--layers", 2)):
    return invoke("run", *TINY, "-s", strategy, *budget, "--suite", "testbed-image", "--out", out, *arguments)


def nothing_in(out: Path) -> bool:
    return not out.exists() or not any(path.is_file() for path in out.rglob("*"))


# -- names -------------------------------------------------------------------------------------------------------------

NAMES = {
    "strategy": (["-s", "tpo"], "unknown strategy 'tpo'; did you mean 'topo'?"),
    "model": (["-m", "testbd"], "unknown model 'testbd'; did you mean 'testbed'?"),
    "suite": (["--suite", "testbed-vidoe"], "unknown suite 'testbed-vidoe'; did you mean 'testbed-video'?"),
    "dataset": (["--calibration", "testbet"], "unknown dataset 'testbet'; did you mean 'testbed'?"),
    "executor": (["--executor", "lokal"], "unknown executor 'lokal'; did you mean 'local'?"),
    "parameter": (["-P", "protect_frist=1"], "'protect_frist'; did you mean 'protect_first'?"),
    "scoped parameter": (["-P", "last_n.protect_frist=1"], "'protect_frist'; did you mean 'protect_first'?"),
    "scope": (["-P", "last.protect_first=1"], "'last'; did you mean 'last_n'?"),
    "rule": (["-P", "select=contigous"], "'contigous'; did you mean 'contiguous'?"),
}


@pytest.mark.parametrize(("arguments", "words"), NAMES.values(), ids=NAMES.keys())
def test_an_unknown_name_is_met_with_the_nearest_real_one(tmp_path, arguments, words):
    out = tmp_path / "out"
    assert words in error_line(run(out, *arguments))
    assert nothing_in(out)


def test_an_unknown_command_is_met_with_the_nearest_real_one():
    assert "unknown command 'leaderbord'; did you mean 'leaderboard'?" in error_line(invoke("leaderbord"))
    assert "No such option" in error_line(invoke("run", "--stratgy", "topo"))
    assert "'strategy' is not one of 'strategies'" in error_line(invoke("list", "strategy"))


def test_a_name_like_no_other_lists_what_there_is(tmp_path):
    line = error_line(run(tmp_path, strategy="xyzxyz"))
    assert "did you mean" not in line and "topo" in line and "cosine" in line


# -- values ------------------------------------------------------------------------------------------------------------

VALUES = {
    "all of it": (["--sparsity", "1.0"], "sparsity must lie in [0, 1), got 1"),
    "less than nothing": (["--sparsity", "-0.1"], "sparsity must lie in [0, 1), got -0.1"),
    "not a number": (["--sparsity", "nan"], "sparsity must lie in [0, 1), got nan"),
    "a word": (["--sparsity", "abc"], "'abc' is not a valid float"),
    "nearly all of it": (["--sparsity", "0.99"], "asks for 16 of 16 decoder layers: at least one has to stay"),
    "every layer": (["--layers", "16"], "asks for 16 of 16 decoder layers: at least one has to stay"),
    "less than no layer": (["--layers", "-1"], "the number of layers must be a whole number >= 0"),
    "half a layer": (["--layers", "2.5"], "'2.5' is not a valid integer"),
    "parameter without a value": (["-P", "protect_first"], "-P wants name=value, got 'protect_first'"),
    "parameter of another type": (["-P", "protect_first=one"], "last_n: protect_first=one"),
    "no questions": (["--limit", "0"], "limit"),
    "no samples": (["--n-calibration", "0"], "n_calibration"),
    "no batch": (["--batch-size", "0"], "batch_size"),
    "no threads": (["--threads", "0"], "threads"),
    "no seeds": (["--seeds", "-1"], "seeds"),
    "device": (["--device", "toaster"], "toaster"),
    "dtype": (["--dtype", "float7"], "float7"),
    "no such file": (["-c", "absent.yaml"], "cannot read absent.yaml"),
    "no such folder": (["--model-path", "absent"], "no testbed model in absent"),
}


@pytest.mark.parametrize(("arguments", "words"), VALUES.values(), ids=VALUES.keys())
def test_a_value_out_of_range_is_one_line(tmp_path, arguments, words):
    out = tmp_path / "out"
    budget = () if arguments[0] in ("--sparsity", "--layers") else ("--layers", 2)
    assert words in error_line(run(out, *arguments, budget=budget))
    assert nothing_in(out)


def test_what_is_missing_is_asked_for(tmp_path):
    out = ("--out", tmp_path / "out")
    assert "name a model: --model testbed" in error_line(invoke("run", "-s", "topo", "--sparsity", 0.5, *out))
    for command in ("run", "plan"):
        assert "name a strategy: --strategy topo" in error_line(invoke(command, "-m", "testbed", "--layers", 2, *out))
        assert "--sparsity 0.5" in error_line(invoke(command, "-m", "testbed", "-s", "topo", *out))
    assert nothing_in(tmp_path)


# -- cells that cannot be done -----------------------------------------------------------------------------------------


def failed(out: Path, result, label: str) -> str:
    """The error of the one failed cell; the dense cell beside it has finished."""
    assert result.exit_code == 1, result.output
    records = records_of(out)
    assert records.pop("dense at sparsity 0").status == "ok"
    (record,) = records.values()
    assert record.cell.label == label and record.status == "failed" and record.plan is None and not record.tasks
    assert "\n" not in record.error and record.error in result.stderr and not leftovers(out)
    assert "failed" in (out / "leaderboard.md").read_text(encoding="utf-8")
    assert f"1 of 2 cells failed; the first: {label}: {record.error}" in result.stderr
    return record.error


def test_more_layers_than_the_strategy_may_take(tmp_path):
    result = run(tmp_path, strategy="topo", budget=("--layers", 15))
    line = failed(tmp_path, result, "topo at 15 layers")
    assert "15 layers asked for, but only 14 of 16 may go (protected: [0, 15]): lower the budget" in line


def test_fewer_samples_than_neighbours(tmp_path):
    result = run(tmp_path, "--n-calibration", 10, strategy="topo")
    line = failed(tmp_path, result, "topo at 2 layers")
    assert "10 calibration samples are too few for k=15: give at least 16, or lower -P k" in line


def test_a_calibration_domain_that_does_not_exist(tmp_path):
    result = run(tmp_path, "--calibration-domain", "cooking", strategy="cosine")
    assert "cooking" in failed(tmp_path, result, "bi at 2 layers")


def test_the_plan_command_says_the_same_and_stops(tmp_path):
    line = error_line(invoke("plan", "-s", "last_n", "-m", "testbed", "--layers", 3, "-P", "protect_last=14"))
    assert "3 layers asked for, but only 2 of 16 may go" in line


# -- suites ------------------------------------------------------------------------------------------------------------

SUITES = {
    "not YAML": ("tasks: [", "odd.yaml is not YAML"),
    "unknown field": ("tasks: [{id: a, dataset: testbed, nn: 3}]", "tasks.0.nn"),
    "unknown dataset": ("tasks: [{id: a, dataset: testbet}]", "unknown dataset 'testbet'; did you mean 'testbed'?"),
    "unknown evaluator": (
        "tasks: [{id: a, dataset: testbed, evaluator: locl}]",
        "unknown evaluator 'locl'; did you mean 'local'?",
    ),
    "a sense that the model lacks": (
        "tasks: [{id: a, dataset: testbed, modality: touch}]",
        "suite 'odd' asks about touch, testbed takes text, image, video, audio",
    ),
}
HOOK = "@hookimpl\ndef prunebench_register_suites(register):\n    register({!r})"


@pytest.mark.parametrize(("text", "words"), SUITES.values(), ids=SUITES.keys())
def test_a_suite_that_cannot_be_used_stops_the_run_before_it_starts(tmp_path, text, words):
    (tmp_path / "odd.yaml").write_text(text, encoding="utf-8")
    plugin = write_plugin(tmp_path, HOOK.format(str(tmp_path / "odd.yaml")))
    out = tmp_path / "out"
    result = invoke("--plugin", plugin, "run", *TINY, "-s", "last_n", "--layers", 2, "--suite", "odd", "--out", out)
    assert words in error_line(result)
    assert nothing_in(out)


# -- where to write ----------------------------------------------------------------------------------------------------


def test_a_folder_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("kept", encoding="utf-8")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        line = error_line(run(out))
        assert f"cannot write {out}" in line and "give another folder with --out" in line
    assert (tmp_path / "file").read_text(encoding="utf-8") == "kept"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_stops_the_run_before_the_work(tmp_path, monkeypatch, step):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, full)
    result = run(tmp_path / "out")
    assert "the disk is full" in error_line(result) and "dense" not in result.stderr
    assert nothing_in(tmp_path / "out")


@pytest.mark.parametrize("victim", ["records", "traces"])
def test_a_disk_that_fills_up_later_leaves_whole_files_only(tmp_path, monkeypatch, victim):
    real, written = os.replace, []

    def fills_up(source, target):
        if Path(target).parent.name == victim and Path(target).suffix in (".json", ".safetensors"):
            if victim == "traces" or written:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written.append(target)
        real(source, target)

    monkeypatch.setattr(os, "replace", fills_up)
    line = error_line(run(tmp_path, strategy="cosine"))
    assert "the disk is full" in line and f"{os.sep}{victim}{os.sep}" in line
    assert list(records_of(tmp_path)) == ["dense at sparsity 0"] and not leftovers(tmp_path)
    monkeypatch.setattr(os, "replace", real)
    again = run(tmp_path, strategy="cosine")
    assert again.exit_code == 0 and "1 of 2 cells are finished already" in again.stderr
