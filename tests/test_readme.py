"""What README.md says, run."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

import prunebench
from prunebench.cli import cli
from prunebench.comparison import group_records
from prunebench.match import matched
from prunebench.plugins import get_plugins, reset_plugins
from prunebench.recovery import recovery_class
from prunebench.robustness import load_robustness

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```console\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.startswith("prunebench")
]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)


def small(words: list[str]) -> list[str]:
    """The same command on fewer samples and questions."""
    if "run" in words:
        return [*words, "--limit", "4", "--n-calibration", "48", "--no-latency"]
    return [*words, "--n-calibration", "48"] if "plan" in words else words


def test_there_are_commands_to_run():
    assert len(COMMANDS) >= 6
    assert "prunebench run --strategy topo --model testbed --sparsity 0.5 --controls" in COMMANDS


@pytest.mark.parametrize(
    # Every strategy, also those that ask the model again and again, takes its time.
    "command",
    [pytest.param(line, marks=pytest.mark.slow) if "--strategy all" in line else line for line in COMMANDS],
)
def test_commands(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    method = next(code for code in PYTHON if code.startswith("# my_method.py"))
    (tmp_path / "my_method.py").write_text(method)
    result = CliRunner().invoke(cli, small(shlex.split(command)[1:]), catch_exceptions=False)
    reset_plugins()
    assert result.exit_code == 0, result.output
    assert "error:" not in result.stderr


def test_python_examples(tmp_path, monkeypatch):
    import numpy as np

    monkeypatch.chdir(tmp_path)
    names = {"adjacency": np.ones((2, 4, 4), bool) & ~np.eye(4, dtype=bool)}
    exec(next(code for code in PYTHON if "flag_zigzag_barcodes" in code), names)
    assert names["bars0"].tolist() == [[0, 3]]  # one component through both layers and their intersection
    assert names["bars1"].tolist() == []
    code = next(code for code in PYTHON if "prunebench.run(" in code)
    code = code.replace('out="runs/python")', 'out="runs/python", limit=3, n_calibration=48)')
    exec(code, names)
    assert len(names["records"]) == 2
    assert set(names["table"]["strategy"]) == {"dense", "topo"}


def test_public_names_exist():
    for name in prunebench.__all__:
        assert getattr(prunebench, name) is not None


def test_every_strategy_and_make_target_is_documented():
    for entry in get_plugins().registry("strategies").values():
        assert f"`{entry.value.name}`" in README
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for target in re.findall(r"`make ([a-z-]+)`", README):
        assert target in targets


def test_committed_leaderboards_are_what_their_records_say():
    for table in sorted((ROOT / "leaderboards").glob("*.md")):
        folder = table.with_suffix("")
        folder = folder.with_name(folder.name.removesuffix("-bytes").removesuffix("-latency"))
        if (folder / "records").is_dir():
            title = table.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
            result = CliRunner().invoke(cli, ["leaderboard", str(folder), "--title", title, "--check", str(table)])
            assert result.exit_code == 0, result.output


def test_wheel_is_whole(tmp_path):
    """The built wheel, away from this tree: every package, the suites, the shipped weights, every entry point."""
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT]
    subprocess.run([str(word) for word in build], check=True, capture_output=True)
    wheel = next(tmp_path.glob("*.whl"))
    assert wheel.stat().st_size < 25e6
    place = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    code = f"""
import prunebench, prunebench_topology, prunebench_baselines
from prunebench.plugins import get_plugins
from prunebench_models.testbed import weights_dir
plugins = get_plugins()
plugins.load_all()
assert not [info for info in plugins.infos.values() if info.errors], plugins.infos
for path in (prunebench.__file__, prunebench_topology.__file__, prunebench_baselines.__file__, weights_dir()):
    assert str(path).startswith({str(place)!r}), path
assert set(plugins.registry("suites")) >= {{"testbed", "testbed-image", "testbed-video", "testbed-audio"}}
assert set(plugins.registry("suites")) >= {{"topovlm-image", "topovlm-video-audio", "quick", "testbed-lmms"}}
assert plugins.get("models", "testbed")().load().info.n_layers == 16
import pathlib, prunebench_lmms_eval
from prunebench.published import published_dir
assert sorted(published_dir().glob("*.yaml")) and str(published_dir()).startswith({str(place)!r})
assert (pathlib.Path(prunebench_lmms_eval.__file__).parent / "tasks" / "_questions").is_file()
"""
    environment = {"PYTHONPATH": str(place), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_numbers_are_those_of_the_committed_records():
    """Accuracies of the testbed and the zigzag's speed, as README states them."""
    records = prunebench.load_records([ROOT / "leaderboards" / "testbed"])
    dense = next(record for record in records if record.cell.strategy == "dense")
    for task in dense.tasks:
        assert f"{task.task} {100 * task.score:.1f} ({100 * task.majority:.1f})" in README
    zigzag = json.loads((ROOT / "benchmarks" / "records" / "zigzag.json").read_text(encoding="utf-8"))
    ratio = zigzag["engines"]["dionysus"]["cpu_s"] / zigzag["engines"]["numba"]["cpu_s"]
    assert f"{ratio:.0f}×" in README
    assert ratio >= 25
    loading = json.loads((ROOT / "benchmarks" / "records" / "loading.json").read_text(encoding="utf-8"))
    half = next(row for row in loading["rows"] if 2 * row["kept"] == row["of"])
    assert f"{half['ratios']['peak_growth_mib']:.1f}× less memory" in README
    assert abs(half["ratios"]["fetched_mib"] - 2) < 0.1  # "half of the disk reads"


def test_what_is_said_of_the_testbed_is_in_its_table():
    """What keeps 99 %, where `topo` stands, whose order depends most on the domain, and which regimes show."""
    (group,) = group_records(prunebench.load_records([ROOT / "leaderboards" / "testbed"]))
    kept = {}
    for record in group.records:
        cell = record.cell
        if record.kind == "layers" and record.complete and cell.recovery is None and not cell.strategy_params:
            score = group.relative(record).chance_corrected
            kept.setdefault(cell.strategy, {})[len(record.plan.removed_layers)] = score
    for name in ("oracle_loo", "sleb", "shortened_ppl", "shortened_magnitude"):
        assert [count for count, score in sorted(kept[name].items()) if score >= 0.99] == [2, 3, 5, 6, 8, 10]
    assert [count for count, score in sorted(kept["bi"].items()) if score >= 0.99] == [2, 3, 5]
    assert all(
        score < max(rows[count] for rows in kept.values() if count in rows) for count, score in kept["topo"].items()
    )
    (robust,) = load_robustness([ROOT / "leaderboards" / "testbed"])
    order = {
        row.strategy: row.kendall.mean for row in robust.rows if row.kind == "domains" and row.kendall.mean is not None
    }
    assert len(order) > 10 and min(order, key=order.get) == "topo"
    table = (ROOT / "leaderboards" / "testbed.md").read_text(encoding="utf-8")
    for said in (
        "**do matter** at low",
        "**do not converge** from low",
        "does **not** decide at high budgets, the score",
    ):
        assert said in table


def test_what_is_said_of_smollm2_is_in_its_table():
    """First: `topo` at 10 %, contiguous at 20 %, `fuse` at 30 %, `sleb` from 40 to 60 %, of plans of whole layers."""
    records = prunebench.load_records([ROOT / "leaderboards" / "smollm2"])
    best = {}
    for budget in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
        rows = [r for r in records if r.cell.budget.value == budget and r.status == "ok" and r.kind == "layers"]
        rows = [r for r in rows if not recovery_class(r.cell.recovery, r.plan)]
        lowest = min(r.tasks[0].score for r in rows)
        best[budget] = [(r.cell.strategy, r.cell.strategy_params) for r in rows if r.tasks[0].score == lowest]
        assert all(r.tasks[0].kinds["token"][0] == 20440 for r in rows)
    assert ("topo", {}) in best[0.1] and ("topo", {"select": "contiguous"}) in best[0.2]
    assert min(len(best[0.1]), len(best[0.2])) > 1 and best[0.3] == [("fuse", {})]
    assert all(best[budget] == [("sleb", {"samples": 4})] for budget in (0.4, 0.5, 0.6))
    assert "Structure **does decide** at high budgets" in (ROOT / "leaderboards" / "smollm2.md").read_text("utf-8")


def best_kinds(name):
    """Level → kinds of the methods that are best at equal bytes, and their labels; untrained ones alone."""
    (group,) = group_records(prunebench.load_records([ROOT / "leaderboards" / name]))
    untrained = next(table for table in matched(group, "bytes") if not table.trained)
    return {level.share: {(method.kind, method.label) for method in level.best} for level in untrained.levels}


def test_what_is_said_at_equal_bytes_is_in_the_tables():
    """Dropping is best at every level of the testbed; of SmolLM2 masks are, `sparsegpt` from 70 % on."""
    assert {kind for best in best_kinds("testbed").values() for kind, _ in best} == {"layers", "sublayers"}
    found = {share: best for share, best in best_kinds("smollm2").items() if best}
    assert list(found) == [0.9, 0.8, 0.7, 0.6]
    assert found[0.9] == {("weights", "wanda")} and found[0.8] == {("weights", "tamp")}
    assert found[0.7] == found[0.6] == {("weights", "sparsegpt")}
    for name in ("testbed", "smollm2"):
        records = [r for r in prunebench.load_records([ROOT / "leaderboards" / name]) if r.kind in ("weights", "2:4")]
        assert records and all(r.latency is None for r in records)
        assert all(r.untimed for r in records) == (name == "testbed")  # SmolLM2 was not timed at all


def test_what_is_said_of_one_walk_is_in_its_record():
    record = json.loads((ROOT / "benchmarks" / "records" / "layerwise_sweep.json").read_text(encoding="utf-8"))
    dense, sequential = record["sets"]["dense inputs"], record["sets"]["sequential"]
    assert dense["plans"] == sequential["plans"] == 15
    words = " ".join(README.split())
    assert f"take {dense['ratio']:.1f}× less CPU time in one walk than in a walk each, 15 sequential ones" in words
    assert f"15 sequential ones {sequential['ratio']:.1f}×" in words


def test_what_is_said_of_smollm2_vl_is_in_its_log():
    weights = ROOT / "plugins" / "prunebench_models" / "smollm2" / "vl_weights"
    log = [json.loads(line) for line in (weights / "training_log.jsonl").read_text(encoding="utf-8").splitlines()]
    (test,) = [entry for entry in log if entry["event"] == "test"]
    (training,) = [entry for entry in log if entry["event"] == "phase"]
    assert test["n"] == 500
    settings = json.loads((weights / "vl_settings.json").read_text(encoding="utf-8"))
    assert test["accuracy"] == settings["test_accuracy"]
    stated = ", ".join(f"{domain} {100 * accuracy:.1f}" for domain, accuracy in test["accuracy"].items())
    words = " ".join(README.split())
    assert f"Accuracy on 500 test questions per domain: {stated} " in words
    assert f"{training['settings']['steps']:,} steps, {training['cpu_seconds'] / 3600:.1f} CPU-hours" in words


def test_what_is_said_of_intervals_is_in_their_record():
    """Those that know which questions share an image, and those that do not."""
    rows = json.loads((ROOT / "benchmarks" / "records" / "interval_coverage.json").read_text(encoding="utf-8"))["rows"]
    shares = {blind: [100 * row["covered"] for row in rows if row["blind"] is blind] for blind in (True, False)}
    said = [f"{min(shares[blind]):.0f}–{max(shares[blind]):.0f} %" for blind in (True, False)]
    assert f"95 % intervals covered {said[0]} in simulation, and {said[1]} with it" in README
    assert min(shares[False]) >= 93 and max(shares[False]) <= 97
