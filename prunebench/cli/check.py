"""`prunebench check`: does a strategy, an adapter, a dataset, or all of a plugin, keep its contract?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from prunebench.adapter import LoadOptions
    from prunebench.plugins import PluginInfo, Plugins
    from prunebench.testing import Bench, Report

__all__ = ["check_command"]

CHECKED = ("strategies", "models", "datasets", "evaluators", "suites")
MARKS = {"passed": "✓", "failed": "✗", "skipped": "–"}


@dataclass(frozen=True)
class _Job:
    """One thing to check."""

    label: str
    run: Callable[[], Report]


@click.command("check")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--model",
    "-m",
    "models",
    multiple=True,
    metavar="NAME",
    help="Models that strategies are checked on; may be repeated (default: the kit's tiny random ones).",
)
@click.option("--model-path", metavar="DIR", help="Folder with the weights of the model that is checked or planned on.")
@click.option(
    "-P", "--param", "params", multiple=True, metavar="NAME=VALUE", help="Parameter of the strategies that have it."
)
@click.option("--device", default="cpu", show_default=True, metavar="NAME", help="Where models run: cpu, cuda:0, auto.")
@click.option("--dtype", default="float32", show_default=True, metavar="NAME", help="float32, bfloat16 or float16.")
@click.option("--json", "as_json", is_flag=True, help="Print the reports as JSON.")
@click.pass_context
def check_command(
    context: click.Context,
    names: tuple[str, ...],
    models: tuple[str, ...],
    model_path: str | None,
    params: tuple[str, ...],
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Run the conformance checks of a plugin's things.

    NAME is a strategy, a model, a dataset, an evaluator, a suite, a plugin or its distribution (all that it provides),
    or a plugin or suite file. Exits with 1 if a check fails.

    \b
    prunebench check my_method.py
    prunebench check my_suite.yaml
    prunebench check topo cosine --model testbed
    """
    import json

    from prunebench.adapter import LoadOptions
    from prunebench.reporter import Reporter
    from prunebench.testing import Bench, tiny_benches

    plugins = _with_files(names)
    options = LoadOptions(path=model_path, device=device, dtype=dtype)
    benches = [Bench.named(plugins, model, options) for model in models] if models else tiny_benches()
    # Every name is looked up before anything slow happens; what has several names is checked once.
    found: dict[tuple[str, Any], _Thing] = {}
    for name in names:
        for key, thing in _things(plugins, name):
            found.setdefault(key, thing)
    jobs = _jobs(plugins, found, benches, options, params, names)
    if models:
        _ = [bench.loaded for bench in benches]  # a model that cannot be loaded is no fault of a strategy
    reporter, reports = Reporter(), []
    for job in jobs:
        with reporter.step(f"check {job.label}"):
            report = job.run()
        reports.append(report)
        if not as_json:
            click.echo(_table(report))
    ok = all(report.ok for report in reports)
    if as_json:
        rows = [report.to_dict() for report in reports]
        click.echo(json.dumps({"ok": ok, "reports": rows}, indent=1, ensure_ascii=False))
    else:
        counts = {status: sum(report.count(status) for report in reports) for status in MARKS}
        click.echo(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    if not ok:
        context.exit(1)


def _is_file(name: str) -> bool:
    return name.endswith(".py")


def _with_files(names: tuple[str, ...]) -> Plugins:
    """The plugins of this process, with the files among `names` and those given by ``--plugin``."""
    from prunebench.errors import UsageError
    from prunebench.plugins import get_plugins

    files = {Path(name).resolve(): name for name in names if _is_file(name)}
    for path, name in files.items():
        if not path.is_file():
            raise UsageError(f"no such plugin file: {name}")
    plugins = get_plugins()
    given = [i.origin for i in plugins.infos.values() if i.distribution is None and _is_file(i.origin)]
    given = [origin for origin in given if Path(origin).resolve() not in files]
    return get_plugins([*given, *files.values()]) if files else plugins


_Thing = tuple[str, str, Any]
"""Kind, the name that it was asked for by, and the registered object (or what is known of a plugin)."""


def _things(plugins: Plugins, name: str) -> Iterator[tuple[tuple[str, Any], _Thing]]:
    """What NAME stands for: registered things by name or alias, and plugins with all that they provide."""
    from prunebench.errors import UnknownName
    from prunebench.suite_run import is_suite_file

    plugins.load_all()
    if is_suite_file(name, plugins):
        yield ("suites", (Path(name), None)), ("suites", name, Path(name))
        return
    word = name.partition(":")[0]
    entries = [(kind, plugins.registry(kind)[word]) for kind in CHECKED if word in plugins.registry(kind)]
    if _is_file(name):
        path, entries = Path(name).resolve(), []
        owners = [i for i in plugins.infos.values() if _is_file(i.origin) and Path(i.origin).resolve() == path]
    else:
        owners = [info for info in plugins.infos.values() if name in (info.name, info.distribution)]
    if not owners and not entries:
        known = {entry for kind in CHECKED for entry in plugins.registry(kind)} | set(plugins.infos)
        raise UnknownName("strategy, model, dataset, evaluator, suite or plugin", name, known)
    for kind, entry in entries:  # of an adapter of many models, each name is a model of its own
        own = ":" in name or getattr(entry.value, "takes_reference", False)
        yield (kind, (entry.value, name if own else None)), (kind, name, entry.value)
    for info in owners:
        yield ("plugin", info.name), ("plugin", info.name, info)
        for kind in CHECKED:
            for entry in plugins.registry(kind).values():
                if entry.plugin == info.name:
                    yield (kind, (entry.value, None)), (kind, entry.name, entry.value)


def _jobs(
    plugins: Plugins,
    found: dict[tuple[str, Any], _Thing],
    benches: list[Bench],
    options: LoadOptions,
    params: tuple[str, ...],
    names: tuple[str, ...],
) -> list[_Job]:
    """How each thing is checked; wrong names, references and parameters are refused here."""
    from functools import partial

    from prunebench import testing
    from prunebench.config import parse_params, split_params
    from prunebench.dataset import open_dataset
    from prunebench.strategy import strategy_params
    from prunebench.testing.bench import find_adapter

    strategies = {value.name: value for kind, _, value in found.values() if kind == "strategies"}
    given = split_params(parse_params(params), {name: strategy_params(cls) for name, cls in strategies.items()})
    for name, cls in strategies.items():
        cls.from_params(given[name])
    jobs = []
    for kind, name, value in found.values():
        if kind == "strategies":
            run = partial(testing.check_strategy, value, benches, given[value.name])
        elif kind == "models":
            adapter, asked = find_adapter(plugins, name, options)
            # Reached through its plugin, an adapter of many models would fetch the one that is its default.
            load = name in names or not adapter.takes_reference or options.path is not None
            run = partial(testing.check_adapter, adapter, options=asked, load=load)
        elif kind == "datasets":
            run = partial(testing.check_dataset, open_dataset(plugins, name) if ":" in name else value)
        elif kind == "evaluators":
            run = partial(testing.check_evaluator, value)
        elif kind == "suites":
            run = partial(testing.check_suite, value)
        else:
            run = partial(_plugin_report, value)
        jobs.append(_Job(name, run))
    return jobs


def _plugin_report(info: PluginInfo) -> Report:
    """Whether a plugin loads, and all that it has is registered."""
    from prunebench.testing import Report, Result

    proves = "The plugin loads, and everything in it is registered"
    results = [Result("loads", proves, "failed", error) for error in info.errors]
    if not results and not info.provides:
        hint = "add a hook, e.g. @hookimpl def prunebench_register_strategies(register): register(MyStrategy)"
        results = [Result("loads", proves, "failed", f"it provides nothing: {hint}")]
    return Report("plugin", info.name, tuple(results or [Result("loads", proves, "passed")]))


def _table(report: Report) -> str:
    """A line for each check: what it proves where it passed, what to do where it failed."""
    from tabulate import tabulate

    rows = [
        [MARKS[r.status], f"{r.name} [{r.on}]" if r.on else r.name, r.proves if r.status == "passed" else r.reason]
        for r in report.results
    ]
    lines = tabulate(rows, tablefmt="plain", disable_numparse=True).splitlines()
    return "\n".join([f"{report.kind} {report.name}", *(f"  {line}" for line in lines), ""])
