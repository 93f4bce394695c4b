"""The command line: help, a whole run, the table, plans and the doctor."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prunebench.calibration.trace import Trace
from prunebench.cli import cli
from prunebench.plan import Plan
from prunebench.store import load_records
from tests.commands import TINY, error_line, invoke, records_of, strategy_plugin

LABELS = [
    "bi at sparsity 0.25",
    "bi at sparsity 0.5",
    "dense at sparsity 0",
    "topo at sparsity 0.25",
    "topo at sparsity 0.5",
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory):
    """Two strategies at two budgets, run once for all tests that only look at what came out."""
    out = tmp_path_factory.mktemp("demo") / "run"
    grid = ("run", *TINY, "-s", "topo", "-s", "cosine", "--sparsity", 0.25, "--sparsity", 0.5, "--out", out)
    result = invoke(*grid)
    assert result.exit_code == 0, result.output
    return grid, out, result


def stamps(out: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (out / "records").glob("*.json")}


# -- help --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["", *sorted(cli.commands)])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_everything_explains_itself(command, flag):
    result = invoke(*command.split(), flag)
    assert result.exit_code == 0 and result.stdout.startswith("Usage: prunebench") and not result.stderr
    if not command:
        assert all(name in result.stdout for name in ("run", "plan", "list", "plugins", "leaderboard", "doctor"))


def test_every_option_is_described():
    for command in cli.commands.values():
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert parameter.help, (command.name, parameter.name)


def test_help_loads_neither_torch_nor_transformers():
    code = """
import sys
from prunebench.cli import main
for words in (["--help"], ["run", "--help"], ["plugins", "--help"], ["list", "suites"], ["list", "evaluators"]):
    sys.argv = ["prunebench", *words]
    try:
        main()
    except SystemExit:
        pass
names = "torch transformers scipy pandas matplotlib numba gudhi lmms_eval datasets"
heavy = set(names.split()) & set(sys.modules)
print("HEAVY", sorted(heavy))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("Usage: prunebench") == 3 and done.stdout.splitlines()[-1] == "HEAVY []"


def test_help_is_there_at_once():
    def best(*arguments: str) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
            times.append(time.perf_counter() - start)
        return min(times)

    assert best("-m", "prunebench", "--help") - best("-c", "pass") < 0.5


def test_version_is_that_of_the_package():
    import importlib.metadata

    assert importlib.metadata.version("prunebench") in invoke("--version").stdout


# -- a run -------------------------------------------------------------------------------------------------------------


def test_a_run_gives_a_record_per_cell_one_trace_and_a_table(demo):
    _, out, result = demo
    records = records_of(out)
    assert sorted(records) == LABELS and {record.status for record in records.values()} == {"ok"}
    for label, record in records.items():
        asked = {"dense at sparsity 0": 0, "0.25": 4, "0.5": 8}[label if "dense" in label else label.split()[-1]]
        assert len(record.plan.removed_layers) == asked
        assert [task.n for task in record.tasks] == [2, 2, 2, 2] and record.latency is None
        assert record.memory.weights < record.memory.dense_weights or asked == 0
        assert record.environment and record.plan.cost.search_seconds >= 0
        assert record.plan.provenance.strategy == record.cell.strategy
    (trace,) = (out / "traces").iterdir()
    assert Trace.load(trace).meta.n_samples == 40
    table = (out / "leaderboard.md").read_text(encoding="utf-8")
    assert result.stdout == table and "`topo`" in table and "`bi`" in table
    assert "load testbed" in result.stderr and "load testbed" not in result.stdout


def test_the_same_command_again_touches_nothing(demo):
    grid, out, first = demo
    before = stamps(out)
    again = invoke(*grid)
    assert again.exit_code == 0 and "5 of 5 cells are finished already and skipped" in again.stderr
    assert stamps(out) == before and again.stdout == first.stdout
    assert "calibrate" not in again.stderr


def test_a_larger_grid_runs_only_what_is_missing(demo):
    grid, out, _ = demo
    before = stamps(out)
    more = invoke(*grid, "-s", "last_n")
    assert more.exit_code == 0 and "5 of 7 cells are finished already" in more.stderr
    after = stamps(out)
    assert {name: after[name] for name in before} == before and len(after) == 7
    for name in set(after) - set(before):
        (out / "records" / name).unlink()


def test_force_runs_finished_cells_again(tmp_path):
    grid = ("run", *TINY, "-s", "last_n", "--layers", 3, "--suite", "testbed-image", "--out", tmp_path)
    assert invoke(*grid).exit_code == 0
    before = stamps(tmp_path)
    again = invoke(*grid, "--force")
    after = stamps(tmp_path)
    assert again.exit_code == 0 and "skipped" not in again.stderr and set(after) == set(before)
    assert all(after[name][0] > before[name][0] for name in before)


def test_a_dry_run_shows_the_cells_and_runs_none(demo, tmp_path):
    grid, out, _ = demo
    before = stamps(out)
    shown = invoke(*grid, "-s", "last_n", "--dry-run").stdout.splitlines()
    assert len(shown) == 7 and sum("finished" in line for line in shown) == 5 and sum("to run" in s for s in shown) == 2
    assert {line.split()[0] for line in shown if "finished" in line} == {Path(name).stem for name in before}
    fresh = invoke(*grid[:-1], tmp_path / "new", "--dry-run")
    assert fresh.exit_code == 0 and fresh.stdout.count("to run") == 5 and not (tmp_path / "new").exists()


def test_latency_by_a_file_with_flags_over_it(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        "model: testbed\nstrategies: [last_n]\nsparsity: 0.25\nsuite: testbed-image\nlimit: 2\n"
        "latency: {rounds: 2, warmup: 1, new_tokens: 3}\n",
        encoding="utf-8",
    )
    out = tmp_path / "out"
    result = invoke("run", "-c", config, "--sparsity", 0.5, "--out", out)
    assert result.exit_code == 0, result.output
    records = records_of(out)
    assert sorted(records) == ["dense at sparsity 0", "last_n at sparsity 0.5"]
    latency = records["last_n at sparsity 0.5"].latency
    assert latency.new_tokens == 3 and latency.prefill.n == 2
    for phase in (latency.encoder, latency.prefill, latency.decode, latency.end_to_end):
        assert 0 < phase.p10 <= phase.median <= phase.p90 and phase.dense_median > 0


def test_the_model_alone_can_be_run(tmp_path):
    result = invoke("run", *TINY, "-s", "dense", "--suite", "testbed-image", "--out", tmp_path)
    assert result.exit_code == 0 and list(records_of(tmp_path)) == ["dense at sparsity 0"]


def test_controls_come_along_and_chance_is_a_band(tmp_path):
    shown = invoke("run", *TINY, "--controls", "--seeds", 3, "--layers", 4, "--out", tmp_path, "--dry-run").stdout
    labels = [line.split("  ")[-1] for line in shown.splitlines()]
    assert sorted(labels) == sorted(
        ["dense at sparsity 0", "random at 4 layers", "random seed 1 at 4 layers", "random seed 2 at 4 layers"]
        + [
            f"{name} at 4 layers"
            for name in ("first_n", "last_n", "last_n_keep_final", "middle_n", "even_spacing", "bi")
        ]
    )


def test_an_alias_is_the_same_strategy(tmp_path):
    def cells(*arguments):
        return invoke("run", *TINY, "--sparsity", 0.5, "--out", tmp_path, "--dry-run", *arguments).stdout

    assert cells("-s", "topology") == cells("-s", "topo") == cells("-s", "topo", "-s", "topology")
    scoped = cells("-s", "topology", "-P", "topology.k=9")
    assert scoped == cells("-s", "topo", "-P", "k=9") != cells("-s", "topo")


def test_records_as_json(demo):
    grid, _, _ = demo
    told = json.loads(invoke(*grid, "--json").stdout)
    assert {cell["label"] for cell in told["cells"]} == set(LABELS) and Path(told["leaderboard"]).is_file()
    assert all(Path(cell["record"]).is_file() and cell["status"] == "ok" for cell in told["cells"])


# -- the table ---------------------------------------------------------------------------------------------------------


def test_the_table_can_be_made_and_checked_from_records_alone(demo, tmp_path):
    _, out, first = demo
    for records in (out, out / "records"):
        assert invoke("leaderboard", records, "--highlight", "topo").stdout == first.stdout
    path = tmp_path / "table.md"
    assert invoke("leaderboard", out, "--out", path).exit_code == 0
    assert invoke("leaderboard", out, "--check", path).exit_code == 0
    path.write_text(path.read_text(encoding="utf-8").replace("topo", "tope", 1), encoding="utf-8")
    stale = invoke("leaderboard", out, "--check", path)
    assert stale.exit_code == 1 and "out of date" in stale.stderr
    assert json.loads(invoke("leaderboard", out, "--json").stdout)


def test_a_table_of_nothing_is_refused(tmp_path):
    assert "no such run folder or record" in error_line(invoke("leaderboard", tmp_path / "absent"))
    assert invoke("leaderboard").exit_code == 2


# -- plan --------------------------------------------------------------------------------------------------------------


def test_plan_prints_layers_budget_in_every_unit_and_scores(demo):
    _, out, _ = demo
    shown = invoke("plan", "-s", "topo", "-m", "testbed", "--sparsity", 0.5, "--n-calibration", 40, "--out", out)
    record = records_of(out)["topo at sparsity 0.5"]
    assert shown.exit_code == 0 and f"remove {list(record.plan.removed_layers)} of 16 layers" in shown.stdout
    assert shown.stdout.count("  remove") == 8 and shown.stdout.count("  protected") == 2
    for unit in ("50.0% of layers", "of LM parameters", "of all parameters", "of prefill FLOPs", "of KV bytes"):
        assert unit in shown.stdout


def test_a_saved_plan_is_the_plan_of_the_run(demo, tmp_path):
    _, out, _ = demo
    asked = ("plan", "-m", "testbed", "--n-calibration", 40, "--out", out)
    path = tmp_path / "plans" / "plan.json"
    result = invoke(*asked, "-s", "cosine", "--sparsity", 0.5, "--save", path, "--json")
    assert result.exit_code == 0, result.output
    saved = Plan.load(path)
    assert saved.digest == records_of(out)["bi at sparsity 0.5"].plan.digest
    (told,) = json.loads(result.stdout)
    assert Plan.model_validate(told) == saved
    several = invoke(*asked, "-s", "cosine", "-s", "topo", "--sparsity", 0.5, "--save", path)
    assert "--save writes one plan, this command makes 2" in error_line(several)
    many = json.loads(invoke(*asked, "-s", "cosine", "-s", "topo", "--layers", 2, "--layers", 3, "--json").stdout)
    assert [len(plan["ops"]) for plan in many["plans"]] == [2, 2, 3, 3]


def test_figures_are_drawn_of_what_the_strategy_saw(demo, tmp_path):
    pytest.importorskip("matplotlib")
    _, out, _ = demo
    folder = tmp_path / "figures"
    asked = ("plan", "-m", "testbed", "--sparsity", 0.5, "--n-calibration", 40, "--out", out, "--figures", folder)
    result = invoke(*asked, "-s", "topo")
    assert result.exit_code == 0, result.output
    drawn = list(folder.iterdir())
    assert drawn and all(str(path) in result.stderr for path in drawn)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn if path.suffix == ".png")
    assert "last_n at sparsity 0.5: this strategy has nothing to draw" in invoke(*asked, "-s", "last_n").stderr


def test_a_seeded_strategy_is_planned_once_per_seed(tmp_path):
    asked = ("plan", "-s", "random", "-m", "testbed", "--layers", 4, "--out", tmp_path, "--json")
    plans = [Plan.model_validate(raw) for raw in json.loads(invoke(*asked).stdout)]
    assert [plan.provenance.seed for plan in plans] == [0, 1, 2, 3, 4]
    assert len({plan.digest for plan in plans}) > 1
    assert [p.digest for p in plans] == [Plan.model_validate(r).digest for r in json.loads(invoke(*asked).stdout)]


def test_plans_need_no_records_folder(tmp_path):
    plugin = strategy_plugin(tmp_path, "return np.arange(context.model.n_layers, dtype=float)")
    out = tmp_path / "out"
    done = invoke("--plugin", plugin, "plan", "-s", "mine", "-m", "testbed", "--layers", 2, "--out", out)
    assert done.exit_code == 0 and not out.exists()


# -- doctor ------------------------------------------------------------------------------------------------------------


def test_the_doctor_looks_at_packages_gpu_and_plugins():
    findings = json.loads(invoke("doctor", "--json").stdout)
    found = {finding["what"]: finding for finding in findings}
    assert {"python", "torch", "transformers", "numba", "gudhi", "gpu", "plugin topology"} <= set(found)
    assert {finding["status"] for finding in findings} <= {"ok", "missing", "warning", "error"}
    assert all(finding["do"] for finding in findings if finding["status"] != "ok")
    text = invoke("doctor")
    assert text.exit_code == 0 and all(what in text.stdout for what in found)


def test_the_doctor_says_which_command_adds_what_is_missing(monkeypatch):
    import prunebench.environment

    real = prunebench.environment.package_version
    lacking = {"accelerate", "gudhi", "lmms-eval"}
    monkeypatch.setattr(prunebench.environment, "package_version", lambda name: None if name in lacking else real(name))
    result = invoke("doctor")
    assert result.exit_code == 1  # accelerate is required, gudhi is an extra
    assert "pip install accelerate" in result.stdout and "pip install 'prunebench[topology]'" in result.stdout
    assert "make lmms (in the repository), or pip install 'prunebench[lmms]'" in result.stdout


def test_the_doctor_reports_a_broken_plugin(tmp_path):
    bad = strategy_plugin(tmp_path, "return 1", file="bad_one")
    bad.write_text("1 / 0", encoding="utf-8")
    findings = {f["what"]: f for f in json.loads(invoke("--plugin", bad, "doctor", "--json").stdout)}
    assert findings["plugin bad_one"]["status"] == "warning" and "ZeroDivision" in findings["plugin bad_one"]["detail"]


def test_records_load_in_python_as_on_the_command_line(demo):
    import prunebench

    _, out, _ = demo
    assert [record.id for record in prunebench.load_records([out])] == [record.id for record in load_records([out])]


def test_a_method_that_looks_at_weights_alone_has_no_calibration(tmp_path):
    out = tmp_path / "run"
    fused = ("-s", "fuse", "-P", "fuse.scores=shortened_magnitude,bi")
    result = invoke("run", *TINY, "-s", "shortened_magnitude", *fused, "--sparsity", 0.5, "--out", out)
    assert result.exit_code == 0, result.output
    records = {record.cell.strategy: record for record in records_of(out).values()}
    blind = records["shortened_magnitude"]
    assert blind.cell.calibration is None and blind.plan.cost.forward_passes == 0
    assert records["fuse"].cell.calibration is not None
