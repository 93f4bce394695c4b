"""`prunebench check`: names, files and plugins in; a table or JSON, and an exit code, out."""

from __future__ import annotations

import json

import pytest

from tests.commands import error_line, invoke, strategy_plugin, write_plugin

GOOD = "return np.arange(context.model.n_layers, dtype=float)"
WRONG = "return np.random.random(context.model.n_layers)"
TINY = "tests/tiny_plugin.py"


@pytest.fixture(autouse=True)
def at_the_root(pytestconfig, monkeypatch):
    monkeypatch.chdir(pytestconfig.rootpath)


def reports(*arguments) -> dict[tuple[str, str], dict]:
    result = invoke("check", *arguments, "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == (0 if found["ok"] else 1)
    assert found["ok"] == all(report["ok"] for report in found["reports"])
    return {(report["kind"], report["name"]): report for report in found["reports"]}


def test_a_file_is_loaded_and_all_in_it_checked(tmp_path):
    path = strategy_plugin(tmp_path, GOOD)
    result = invoke("check", path)
    lines = result.stdout.splitlines()
    assert result.exit_code == 0 and "✗" not in result.stdout
    assert "plugin my_method" in lines and "strategy mine" in lines
    assert any(line.split()[:3] == ["✓", "determinism", "[tiny-gemma3]"] for line in lines)
    assert lines[-1] == "29 passed, 0 failed, 2 skipped"


def test_a_wrong_strategy_fails_with_what_to_do(tmp_path):
    result = invoke("check", strategy_plugin(tmp_path, WRONG))
    failed = [line for line in result.stdout.splitlines() if line.startswith("  ✗")]
    assert result.exit_code == 1
    assert {line.split()[1] for line in failed} == {"determinism", "seeds"}
    assert all("np.random.default_rng(context.seed)" in line for line in failed if "determinism" in line)
    assert result.stdout.splitlines()[-1].endswith("4 failed, 2 skipped")


def test_a_broken_plugin_is_reported_by_name(tmp_path):
    result = invoke("check", write_plugin(tmp_path, "1 / 0", "bad_one"))
    assert result.exit_code == 1
    assert "plugin bad_one\n  ✗  loads  cannot be imported: ZeroDivisionError: division by zero" in result.stdout


def test_a_plugin_that_provides_nothing_is_told_how(tmp_path):
    result = invoke("check", write_plugin(tmp_path, "x = 1", "empty"))
    assert result.exit_code == 1 and "it provides nothing: add a hook" in result.stdout


def test_of_a_plugin_that_is_broken_in_part_the_rest_is_checked(tmp_path):
    path = strategy_plugin(tmp_path, GOOD)
    path.write_text(path.read_text().replace("    register(Mine)", "    register(int)\n    register(Mine)"))
    found = reports(path)
    assert not found["plugin", "my_method"]["ok"] and found["strategy", "mine"]["ok"]


def test_files_given_before_are_kept(tmp_path):
    first = strategy_plugin(tmp_path / "a", GOOD, name="first", file="first_file")
    second = strategy_plugin(tmp_path / "b", GOOD, name="second", file="second_file")
    result = invoke("--plugin", first, "check", second, "first", "--json")
    names = [report["name"] for report in json.loads(result.stdout)["reports"]]
    assert result.exit_code == 0 and names == ["second_file", "second", "first"]
    assert invoke("--plugin", first, "check", first).exit_code == 0  # the same file twice is one plugin


def test_a_name_and_its_alias_are_one_thing():
    found = reports("topo", "topology", "cosine")
    assert list(found) == [("strategy", "topo"), ("plugin", "topology"), ("strategy", "bi")]
    assert all(report["ok"] for report in found.values())


def test_a_plugin_by_name_is_all_that_it_provides():
    found = reports("baselines")
    assert found.pop(("plugin", "baselines"))["ok"]
    assert {name for _, name in found} >= {"dense", "random", "first_n", "last_n", "even_spacing", "bi"}
    assert all(report["ok"] for report in found.values())


def test_models_and_datasets_are_checked_too():
    result = invoke("--plugin", TINY, "check", "tiny-llama", "tiny-media")
    assert result.exit_code == 0, result.stdout
    assert "model tiny-llama" in result.stdout and "dataset tiny-media" in result.stdout
    assert "✓  truth" in result.stdout and "✓  disjoint-splits" in result.stdout


def test_strategies_are_checked_on_the_models_that_are_asked_for():
    found = reports("cosine", "--model", "testbed", "--model", "tiny-llama")["strategy", "bi"]
    assert found["ok"] and {check["on"] for check in found["checks"]} == {"", "testbed", "tiny-llama"}


def test_strategies_are_checked_with_the_parameters_that_are_asked_for(tmp_path):
    path = strategy_plugin(tmp_path, "return {}['lost'] if self.protect_last else np.arange(context.model.n_layers)")
    assert reports(path)["strategy", "mine"]["ok"]
    found = reports(path, "-P", "protect_last=1")["strategy", "mine"]
    assert {check["reason"] for check in found["checks"] if check["status"] == "failed"} == {"raised KeyError: 'lost'"}


def test_a_suite_is_checked_for_what_it_names(tmp_path):
    hook = f"@hookimpl\ndef prunebench_register_suites(register):\n    register({str(tmp_path / 'odd.yaml')!r})"
    task = "title: Odd\ntasks: [{{id: a, dataset: {dataset}, domain: general}}]"
    (tmp_path / "odd.yaml").write_text(task.format(dataset="testbed"), encoding="utf-8")
    path = write_plugin(tmp_path, hook)
    assert reports(path)["suite", "odd"]["ok"] and reports("testbed-image")["suite", "testbed-image"]["ok"]
    (tmp_path / "odd.yaml").write_text(task.format(dataset="testbet"), encoding="utf-8")
    failed = [check for check in reports(path)["suite", "odd"]["checks"] if check["status"] == "failed"]
    assert [check["name"] for check in failed] == ["accepted", "questions"]
    assert all("did you mean 'testbed'?" in check["reason"] for check in failed)


def test_an_evaluator_without_a_model_of_its_own_is_checked_on_a_suite_that_is_here(tmp_path):
    code = """
    from prunebench.evaluate_local import LocalEvaluator

    class Mine(LocalEvaluator):
        "As the built-in one."
        name = "mine"

    @hookimpl
    def prunebench_register_evaluators(register):
        register(Mine)
    """
    path = write_plugin(tmp_path, code)
    (skipped,) = [c for c in reports(path)["evaluator", "mine"]["checks"] if c["name"] == "result"]
    assert skipped["status"] == "skipped" and "no model that is here fits" in skipped["reason"]
    suites = "\n@hookimpl\ndef prunebench_register_suites(register):\n"
    for name, text in (
        ("broken", "tasks: ["),
        ("own", "title: Own\ntasks: [{id: a, evaluator: mine, dataset: testbed, domain: general}]"),
    ):
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
        suites += f"    register({str(tmp_path / name)!r} + '.yaml')\n"
    path.write_text(path.read_text(encoding="utf-8") + suites, encoding="utf-8")
    result = invoke("check", path, "--json")
    found = next(r for r in json.loads(result.stdout)["reports"] if (r["kind"], r["name"]) == ("evaluator", "mine"))
    assert found["ok"] and {check["status"] for check in found["checks"]} == {"passed"}


def test_a_suite_file_is_checked_without_a_plugin(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("title: Own\ntasks: [{id: a, dataset: testbed, metric: exact_match}]", encoding="utf-8")
    assert reports(path)["suite", "own"]["ok"]
    path.write_text("title: Own\ntasks: [{id: a, dataset: testbed, metric: exact_mtch}]", encoding="utf-8")
    (failed,) = [check for check in reports(path)["suite", "own"]["checks"] if check["status"] == "failed"]
    assert failed["name"] == "accepted" and "did you mean 'exact_match'?" in failed["reason"]


MANY = """
from prunebench import LoadOptions
from prunebench.errors import ModelError
from prunebench.testing.tiny import TinyLlama

class Many(TinyLlama):
    "Any model."
    name, aliases, takes_reference = "many", ("other",), True

    def load(self, options=LoadOptions()):
        raise ModelError(f"fetching {options.name} {options.reference}")

@hookimpl
def prunebench_register_models(register):
    register(Many)
"""


def test_an_adapter_of_many_models_fetches_none_unless_it_is_asked_for(tmp_path):
    path = write_plugin(tmp_path, MANY)
    (report,) = [report for (kind, _), report in reports(path).items() if kind == "model"]
    assert report["ok"] and {c["name"] for c in report["checks"] if c["status"] == "passed"} == {
        "docstring",
        "declaration",
    }
    result = invoke("--plugin", path, "check", "many", "other", "many:7b")
    assert result.exit_code == 1
    for words in ("fetching many None", "fetching other None", "fetching many 7b"):
        assert words in result.stdout


def test_the_folder_is_that_of_the_weights(tmp_path):
    found = reports("testbed", "--model-path", tmp_path)
    failed = [check for check in found["model", "testbed"]["checks"] if check["status"] == "failed"]
    assert [check["name"] for check in failed] == ["load"]
    assert f"no testbed model in {tmp_path}" in failed[0]["reason"] and "--model-path" in failed[0]["reason"]
    assert found["dataset", "testbed"]["ok"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["tpo"], "unknown strategy, model, dataset, evaluator, suite or plugin 'tpo'; did you mean 'topo'?"),
        (["no/such/method.py"], "no such plugin file: no/such/method.py"),
        (["topo", "--model", "testbet"], "unknown model 'testbet'; did you mean 'testbed'?"),
        (["topo", "--model", "testbed:7b"], "model 'testbed' takes nothing after a colon, got '7b'"),
        (["topo", "--model", "testbed", "--model-path", "no-such-folder"], "no testbed model in no-such-folder"),
        (["topo", "-P", "k=many"], "topo: k=many"),
        (["topo", "-P", "kk=3"], "unknown parameter of topo 'kk'"),
        (["testbed:7b"], "model 'testbed' takes nothing after a colon, got '7b'"),
    ],
)
def test_wrong_usage_is_one_line(words, says):
    assert says in error_line(invoke("check", *words))


def test_nothing_to_check_is_wrong_usage():
    assert invoke("check").exit_code == 2
