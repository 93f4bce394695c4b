"""One bad plugin is reported by its name and never hides the others."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
from types import SimpleNamespace

import pytest

from prunebench import hookspecs
from prunebench.errors import UnknownName
from prunebench.plugins import Plugins, get_plugins, reset_plugins
from tests.commands import TINY, invoke, records_of, strategy_plugin, write_plugin

GOOD = "return np.arange(context.model.n_layers, dtype=float)"
HOOK = "\n@hookimpl\ndef prunebench_register_strategies(register):\n"


def load(*files) -> Plugins:
    plugins = get_plugins(files)
    plugins.load_all()
    return plugins


BROKEN = {
    "broken import": ("import a_package_that_is_not_there", "ModuleNotFoundError: No module named 'a_package_that"),
    "sys.exit at import": ("import sys\nsys.exit(3)", "cannot be imported: SystemExit: 3"),
    "syntax error": ("def broken(:\n", "cannot be imported: SyntaxError"),
    "exception at import": ("1 / 0", "ZeroDivisionError: division by zero"),
    "wrong signature": ("@hookimpl\ndef prunebench_register_models(wrong): ...", "wrong hook signature"),
    "unknown hook": ("@hookimpl\ndef prunebench_register_strategy(register): ...", "prunebench_register_strategies"),
    "hook raises": (HOOK + "    raise RuntimeError('no luck\\nsecond line')", "RuntimeError: no luck"),
    "hook exits": (HOOK + "    raise SystemExit(4)", "prunebench_register_strategies: SystemExit: 4"),
    "not a strategy": (HOOK + "    register(dict)", "strategies must be subclasses of Strategy, got <class 'dict'>"),
    "not a class": (HOOK + "    register('topo')", "strategies must be subclasses of Strategy, got 'topo'"),
    "abstract": (
        "@dataclass(frozen=True)\nclass A(ScoreStrategy):\n    name = 'a'\n" + HOOK + "    register(A)",
        "A does not implement score",
    ),
    "no name": (
        "@dataclass(frozen=True)\nclass A(Strategy):\n    def plan(self, c): ...\n" + HOOK + "    register(A)",
        "A has no `name`",
    ),
    "not a dataclass": (
        "class A(Strategy):\n    name = 'a'\n    k: int = 1\n    def plan(self, c): ...\n" + HOOK + "    register(A)",
        "A must be decorated with @dataclass(frozen=True)",
    ),
    "not frozen": (
        "@dataclass\nclass A(Strategy):\n    name = 'a'\n    def plan(self, c): ...\n" + HOOK + "    register(A)",
        "non-frozen dataclass",
    ),
    "no default": (
        "@dataclass(frozen=True)\nclass A(Strategy):\n    name = 'a'\n    k: int\n    def plan(self, c): ...\n"
        + HOOK
        + "    register(A)",
        "A: parameter 'k' has no default value",
    ),
    "a name that is taken": (
        "@dataclass(frozen=True)\nclass A(Strategy):\n    name = 'topo'\n    def plan(self, c): ...\n"
        + HOOK
        + "    register(A)",
        "the name 'topo' is already taken by plugin 'topology'; left out",
    ),
    "a suite that is not there": (
        "@hookimpl\ndef prunebench_register_suites(register):\n    register('no/such/suite.yaml')",
        "no such suite file or folder: no/such/suite.yaml",
    ),
}


@pytest.mark.parametrize(("code", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_a_bad_plugin_is_reported_by_name_and_the_others_work(tmp_path, code, words):
    bad, good = write_plugin(tmp_path, code, "bad_one"), strategy_plugin(tmp_path, GOOD)
    plugins = load(bad, good)
    assert any(words in error for error in plugins.infos["bad_one"].errors), plugins.infos["bad_one"].errors
    assert all("\n" not in error for error in plugins.infos["bad_one"].errors)
    assert {name for name, info in plugins.infos.items() if info.status == "error"} == {"bad_one"}
    assert plugins.get("strategies", "mine").name == "mine"
    assert plugins.registry("strategies")["topo"].plugin == "topology"
    shown = invoke("--plugin", bad, "--plugin", good, "plugins")
    assert shown.exit_code == 0 and words in shown.stdout and "strategies:mine" in shown.stdout


def test_one_bad_class_does_not_cost_a_plugin_its_other_ones(tmp_path):
    path = strategy_plugin(tmp_path, GOOD)
    path.write_text(path.read_text().replace("    register(Mine)", "    register(int)\n    register(Mine)"))
    plugins = load(path)
    assert plugins.infos["my_method"].provides == ["strategies:mine"]
    assert len(plugins.infos["my_method"].errors) == 1


def test_a_method_that_is_missing_because_its_plugin_is_broken_says_so(tmp_path):
    bad = write_plugin(tmp_path, HOOK + "    raise RuntimeError('no luck')")
    result = invoke("--plugin", bad, "plan", "-s", "mine", "-m", "testbed", "--sparsity", "0.5")
    assert result.exit_code == 2
    assert "error: unknown strategy 'mine'" in result.stderr and "RuntimeError: no luck" in result.stderr


def test_a_missing_plugin_file_is_reported_in_whatever_way_it_was_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("absent.py", "./absent.py", str(tmp_path / "absent.py")):
        result = invoke("--plugin", path, "list", "strategies")
        assert result.exit_code == 0 and "topo" in result.stdout
        assert "warning: plugin 'absent': cannot be imported: PluginError: no such plugin file" in result.stderr


# -- one file is a method ----------------------------------------------------------------------------------------------


def test_one_file_makes_a_working_strategy(tmp_path):
    path = strategy_plugin(tmp_path, GOOD)
    rows = json.loads(invoke("--plugin", path, "list", "strategies", "--json").stdout)
    mine = next(row for row in rows if row["name"] == "mine")
    assert mine["origin"] == str(path) and mine["summary"] == "Made on the spot."
    assert mine["params"]["protect_first"] == {"default": 0, "type": "int"}
    out = tmp_path / "out"
    asked = ("--plugin", path, "plan", "-s", "mine", "-m", "testbed", "--layers", 3, "--out", out, "--json")
    (plan,) = json.loads(invoke(*asked).stdout)
    assert [op["layer"] for op in plan["ops"]] == [13, 14, 15]
    assert plan["provenance"]["plugin"] == "my_method" and plan["provenance"]["strategy"] == "mine"


def test_a_file_named_like_a_package_does_not_shadow_it(tmp_path):
    import numpy

    plugins = load(strategy_plugin(tmp_path, GOOD, file="numpy"))
    assert plugins.infos["numpy"].provides == ["strategies:mine"]
    assert importlib.import_module("numpy") is numpy


def test_two_files_of_one_name_are_not_mixed_up(tmp_path):
    first = strategy_plugin(tmp_path / "a", GOOD, name="first")
    second = strategy_plugin(tmp_path / "b", GOOD, name="second")
    plugins = load(first, second)
    assert "first" in plugins.registry("strategies") and "second" not in plugins.registry("strategies")
    (left_out,) = [info for info in plugins.infos.values() if info.origin == str(second)]
    assert left_out.errors == [f"duplicate plugin name 'my_method': already loaded from {first}; this one is left out"]
    assert "duplicate plugin name" in invoke("--plugin", first, "--plugin", second, "list", "models").stderr


# -- entry points ------------------------------------------------------------------------------------------------------


def entry_point(name: str, value: str, load, version: str = "1.2"):
    return SimpleNamespace(
        name=name, value=value, load=load, dist=SimpleNamespace(name="dist-" + name, version=version)
    )


def fake_entry_points(monkeypatch, *added):
    real = tuple(importlib.metadata.entry_points(group="prunebench"))
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: (*real, *added))
    reset_plugins()
    plugins = get_plugins()
    plugins.load_all()
    return plugins


def module(**hooks):
    return SimpleNamespace(__name__="fake", **hooks)


def test_an_installed_plugin_that_breaks_is_named_with_its_distribution(monkeypatch):
    def broken():
        raise ImportError("libmissing.so")

    plugins = fake_entry_points(monkeypatch, entry_point("extra", "extra.plugin", broken))
    info = plugins.infos["extra"]
    assert (info.origin, info.version, info.distribution) == ("extra.plugin", "1.2", "dist-extra")
    assert info.errors == ["cannot be imported: ImportError: libmissing.so"]
    assert "topo" in plugins.registry("strategies") and "local" in plugins.registry("executors")


def test_of_two_installed_plugins_of_one_name_one_is_left_out_and_reported(monkeypatch):
    plugins = fake_entry_points(
        monkeypatch,
        entry_point("extra", "a.plugin", lambda: module()),
        entry_point("extra", "b.plugin", lambda: module()),
    )
    assert plugins.infos["extra"].origin == "a.plugin" and not plugins.infos["extra"].errors
    (other,) = [info for info in plugins.infos.values() if info.origin == "b.plugin"]
    assert "already loaded from a.plugin" in other.errors[0]


def test_the_same_entry_point_found_twice_is_one_plugin(monkeypatch):
    loads = []
    twice = [entry_point("extra", "a.plugin", lambda: loads.append(1) or module()) for _ in range(2)]
    plugins = fake_entry_points(monkeypatch, *twice)
    assert len(loads) == 1 and not plugins.infos["extra"].errors


def test_the_environment_restricts_what_is_loaded(monkeypatch):
    monkeypatch.setenv("PRUNEBENCH_PLUGINS", "builtin, topology,modls")
    plugins = load()
    assert set(plugins.registry("strategies")) == {"topo", "topology"} and not plugins.registry("models")
    assert list(plugins.infos) == ["builtin", "topology", "modls"]
    (error,) = plugins.infos["modls"].errors
    assert "unknown plugin 'modls'; did you mean 'models'?" in error
    with pytest.raises(UnknownName, match="unknown strategy 'cosine'"):
        plugins.get("strategies", "cosine")


# -- what is told ------------------------------------------------------------------------------------------------------


def test_plugins_as_json_say_where_from_which_version_and_what_is_wrong(tmp_path):
    bad = write_plugin(tmp_path, "1 / 0", "bad_one")
    rows = {row["name"]: row for row in json.loads(invoke("--plugin", bad, "plugins", "--json").stdout)}
    assert {"topology", "models", "baselines", "builtin", "lmms_eval", "bad_one"} == set(rows)
    own = rows["topology"]
    assert own["origin"] == "prunebench_topology.plugin" and own["distribution"] == "prunebench"
    assert own["version"] == importlib.metadata.version("prunebench") and own["status"] == "ok" and not own["errors"]
    assert set(own["provides"]) == {"strategies:topo", "strategies:topology"}
    assert rows["bad_one"]["status"] == "error" and "ZeroDivisionError" in rows["bad_one"]["errors"][0]


@pytest.mark.parametrize("kind", ["strategies", "models", "suites", "datasets", "evaluators", "executors"])
def test_every_list_is_valid_json_with_origin_and_version(kind):
    rows = json.loads(invoke("list", kind, "--json").stdout)
    assert rows
    for row in rows:
        assert row["name"] and row["plugin"] and row["origin"] and row["version"] and row["summary"]
    text = invoke("list", kind).stdout
    assert all(row["name"] in text for row in rows)


def test_a_broken_suite_is_listed_with_its_error(tmp_path):
    (tmp_path / "odd.yaml").write_text("tasks: [", encoding="utf-8")
    hook = f"@hookimpl\ndef prunebench_register_suites(register):\n    register({str(tmp_path / 'odd.yaml')!r})"
    result = invoke("--plugin", write_plugin(tmp_path, hook), "list", "suites", "--json")
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert "is not YAML" in rows["odd"]["error"] and "error" not in rows["testbed"]


# -- the other hooks ---------------------------------------------------------------------------------------------------

COMMAND = """
import click

@click.command({name!r})
def command():
    "Greets."
    click.echo("hello from a plugin")

@hookimpl
def prunebench_register_commands(cli):
    cli.add_command(command)
"""


def test_a_plugin_adds_a_command(tmp_path):
    path = write_plugin(tmp_path, COMMAND.format(name="greet"))
    assert invoke("--plugin", path, "greet").stdout == "hello from a plugin\n"
    assert "greet" in invoke("--plugin", path, "--help").stdout


def test_a_plugin_cannot_take_the_place_of_a_command(tmp_path):
    path = write_plugin(tmp_path, COMMAND.format(name="plugins"))
    assert "Greets." not in invoke("--plugin", path, "--help").stdout
    assert "commands: the name 'plugins' is already taken; left out" in invoke("plugins").stdout


def test_a_command_hook_that_raises_costs_nothing_but_itself(tmp_path):
    path = write_plugin(tmp_path, "@hookimpl\ndef prunebench_register_commands(cli):\n    raise OSError('no screen')")
    assert invoke("--plugin", path, "--help").exit_code == 0
    assert "prunebench_register_commands: OSError: no screen" in invoke("plugins").stdout


def test_finished_cells_are_announced_and_a_listener_that_raises_does_no_harm(tmp_path):
    log = tmp_path / "log.txt"
    listener = write_plugin(
        tmp_path,
        f"""
        @hookimpl
        def prunebench_cell_finished(record):
            with open({str(log)!r}, "a") as file:
                print(record.id, record.status, file=file)
        """,
        "listener",
    )
    raiser = write_plugin(tmp_path, "@hookimpl\ndef prunebench_cell_finished(record):\n    1 / 0", "raiser")
    failing = strategy_plugin(tmp_path, "raise KeyError('lost')")
    out = tmp_path / "out"
    files = ("--plugin", listener, "--plugin", raiser, "--plugin", failing)
    result = invoke(
        *files, "run", *TINY, "-s", "mine", "-s", "last_n", "--layers", 2, "--suite", "testbed-image", "--out", out
    )
    assert result.exit_code == 1
    records = records_of(out)
    assert sorted(record.status for record in records.values()) == ["failed", "ok", "ok"]
    told = [line.split() for line in log.read_text().splitlines()]
    assert sorted(told) == sorted([record.id, record.status] for record in records.values())
    assert "warning: plugin 'raiser': prunebench_cell_finished: ZeroDivisionError" in result.stderr


def test_there_are_at_most_eight_hooks_and_each_is_documented():
    hooks = {name: value for name, value in vars(hookspecs).items() if name.startswith("prunebench_")}
    assert 1 <= len(hooks) <= 8
    for name, hook in hooks.items():
        assert hook.prunebench_spec is not None and inspect.getdoc(hook), name
