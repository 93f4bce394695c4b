"""A strategy or an evaluation that goes wrong costs its own cell only, and the record says what happened."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import torch

from prunebench.store import Record
from tests.commands import TINY, error_line, invoke, leftovers, records_of, strategy_plugin, write_plugin


def run(out: Path, plugin: Path | None, *arguments: object):
    files = ("--plugin", plugin) if plugin else ()
    return invoke(*files, "run", *TINY, "--suite", "testbed-image", "--out", out, *arguments)


def failed(tmp_path: Path, plugin: Path) -> Record:
    """The record of ``mine``, which failed between two strategies that did not."""
    out = tmp_path / "out"
    result = run(out, plugin, "-s", "first_n", "-s", "mine", "-s", "last_n", "--layers", 2)
    assert result.exit_code == 1, result.output
    records = records_of(out)  # every record can be read back
    record = records.pop("mine at 2 layers")
    assert sorted(records) == ["dense at sparsity 0", "first_n at 2 layers", "last_n at 2 layers"]
    assert {other.status for other in records.values()} == {"ok"}
    assert not record.tasks and record.error and "\n" not in record.error and not leftovers(out)
    assert f"1 of 4 cells failed; the first: mine at 2 layers: {record.error}" in result.stderr
    assert "`mine`" in (out / "leaderboard.md").read_text(encoding="utf-8")
    return record


SCORES = {
    "too few": ("return np.zeros(3)", "mine: score() must return 16 values, got shape (3,)"),
    "too many axes": ("return np.zeros((16, 1))", "mine: score() must return 16 values, got shape (16, 1)"),
    "one number": ("return 0.5", "mine: score() must return 16 values, got shape ()"),
    "NaN": (
        "scores = np.zeros(16)\nscores[4] = np.nan\nreturn scores",
        "the score of layer 4 is not a finite number",
    ),
    "infinite": ("return np.full(16, np.inf)", "the score of layer 0 is not a finite number"),
    "words": ("return ['high'] * 16", "ValueError: could not convert string to float: 'high'"),
    "exception": ("return {}['lost']", "KeyError: 'lost'"),
    "exception of many lines": ("raise RuntimeError('first\\nsecond')", "RuntimeError: first"),
    "exception without words": ("raise RuntimeError", "RuntimeError"),
    "exit": ("raise SystemExit(0)", "SystemExit: 0"),
    "a trace that it did not ask for": (
        "return context.need_trace()['points.last']",
        "this strategy needs calibration statistics, and none were collected",
    ),
    "a table that is NaN beside the scores": (
        "return ScoreTable(values=(0.0,) * 16, meaning='none', columns={'odd': (float('nan'),) * 16})",
        "'mine' made a plan that cannot be kept as JSON",
    ),
    "notes that are no JSON": (
        "context.notes['array'] = np.zeros(3)\nreturn np.zeros(16)",
        "'mine' made a plan that cannot be kept as JSON",
    ),
}


@pytest.mark.parametrize(("body", "words"), SCORES.values(), ids=SCORES.keys())
def test_scores_that_cannot_be_used_fail_one_cell(tmp_path, body, words):
    record = failed(tmp_path, strategy_plugin(tmp_path, body))
    assert record.status == "failed" and words in record.error


PLANS = {
    "nothing": ("return None", "strategy 'mine' returned NoneType, it has to return a Plan"),
    "a list of layers": ("return [1, 2]", "strategy 'mine' returned list, it has to return a Plan"),
    "every layer": ("return self.build_plan(context, range(16))", "the plan removes every layer"),
    "no such layer": (
        "return self.build_plan(context, [3, 16])",
        "mine: layer 16 does not exist: the model has layers 0..15",
    ),
    "a layer below 0": ("return self.build_plan(context, [-1])", "mine: layer -1 does not exist"),
    "a layer twice": ("return self.build_plan(context, [3, 3])", "two operations touch layer 3"),
    "for another model": (
        "return Plan.drop(context.model.model_copy(update={'n_layers': 20}), [19])",
        "20",
    ),
}


def plan_plugin(tmp_path: Path, body: str) -> Path:
    code = "@dataclass(frozen=True)\nclass Mine(Strategy):\n    name = 'mine'\n    def plan(self, context):\n"
    hook = "\n@hookimpl\ndef prunebench_register_strategies(register):\n    register(Mine)\n"
    return write_plugin(tmp_path, code + textwrap.indent(body, " " * 8) + "\n" + hook)


@pytest.mark.parametrize(("body", "words"), PLANS.values(), ids=PLANS.keys())
def test_plans_that_cannot_be_used_fail_one_cell(tmp_path, body, words):
    record = failed(tmp_path, plan_plugin(tmp_path, body))
    assert record.status == "failed" and words in record.error


def test_a_bare_plan_is_enough(tmp_path):
    plugin = plan_plugin(tmp_path, "return Plan.drop(context.model, [7])")
    assert run(tmp_path / "out", plugin, "-s", "mine", "--layers", 1).exit_code == 0
    plan = records_of(tmp_path / "out")["mine at 1 layers"].plan
    assert plan.removed_layers == (7,) and plan.provenance.strategy == "mine"
    assert plan.provenance.plugin == "my_method"


def test_the_plan_command_says_in_one_line_what_went_wrong(tmp_path):
    plugin = strategy_plugin(tmp_path, "return np.zeros(3)")
    result = invoke("--plugin", plugin, "plan", "-s", "mine", "-m", "testbed", "--layers", 2)
    assert "mine: score() must return 16 values, got shape (3,)" in error_line(result)


def test_a_warning_of_a_strategy_is_told_and_kept(tmp_path):
    plugin = strategy_plugin(tmp_path, "context.warnings.append('take care')\nreturn np.arange(16.0)")
    result = run(tmp_path / "out", plugin, "-s", "mine", "--layers", 2)
    record = records_of(tmp_path / "out")["mine at 2 layers"]
    assert "warning: take care" in result.stderr and record.warnings == ("take care",)
    assert record.plan.provenance.warnings == ("take care",)


# -- evaluation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (MemoryError("no room"), "oom", "MemoryError: no room"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"), "oom", "OutOfMemoryError: CUDA out of mem"),
        (ArithmeticError("no sum"), "failed", "ArithmeticError: no sum"),
    ],
    ids=["MemoryError", "torch.OutOfMemoryError", "another"],
)
def test_an_evaluation_that_breaks_costs_one_cell(tmp_path, monkeypatch, error, status, words):
    from prunebench.evaluate_local import LocalEvaluator

    real, depths = LocalEvaluator.evaluate, []

    def breaks_on_13_layers(self, loaded, task, progress=None):
        depths.append(len(loaded.layers))
        if len(loaded.layers) == 13:
            raise error
        return real(self, loaded, task, progress)

    monkeypatch.setattr(LocalEvaluator, "evaluate", breaks_on_13_layers)
    result = run(tmp_path, None, "-s", "last_n", "--layers", 3, "--layers", 2, "--layers", 1)
    assert result.exit_code == 1
    records = records_of(tmp_path)
    broken = records.pop("last_n at 3 layers")
    assert broken.status == status and words in broken.error and "\n" not in broken.error and not broken.tasks
    assert len(records) == 3 and {record.status for record in records.values()} == {"ok"}
    assert depths == [16, 16, 13, 14, 14, 15, 15]  # two tasks each; the model was whole again after the break
    assert status in (tmp_path / "leaderboard.md").read_text(encoding="utf-8")


def test_debug_shows_where_a_bug_is(tmp_path):
    from click.testing import CliRunner

    from prunebench.cli import cli

    plugin = strategy_plugin(tmp_path, "return {}['lost']")
    words = ["--plugin", str(plugin), "--debug", "run", *TINY, "-s", "mine", "--layers", "2", "--out", str(tmp_path)]
    assert isinstance(CliRunner().invoke(cli, words).exception, KeyError)
