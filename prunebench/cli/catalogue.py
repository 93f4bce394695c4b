"""`prunebench list` and `prunebench plugins`: what there is, from where, which version, which error."""

from __future__ import annotations

from typing import Any

import click

__all__ = ["list_command", "plugins_command", "warn_of_plugin_errors"]

LISTED = ("strategies", "models", "suites", "datasets", "evaluators", "executors")


@click.command("list")
@click.argument("kind", type=click.Choice(LISTED))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(kind: str, as_json: bool) -> None:
    """What is registered: strategies, models, suites, ..."""
    import json

    from prunebench.plugins import get_plugins

    plugins = get_plugins()
    rows = []
    for name, entry in sorted(plugins.registry(kind).items()):
        info = plugins.infos[entry.plugin]
        row = {"name": name, "plugin": entry.plugin, "version": info.version, "origin": info.origin}
        rows.append(row | _details(kind, name, entry.value))
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        version = f" {row['version']}" if row["version"] else ""
        click.echo(f"{row['name']:24} {row['summary']}  [{row['plugin']}{version}]")
        for parameter, detail in row.get("params", {}).items():
            click.echo(f"    -P {parameter}={detail['default']}  ({detail['type']})")
    warn_of_plugin_errors()


@click.command("plugins")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plugins_command(as_json: bool) -> None:
    """The plugins: where each comes from, what it provides, and what went wrong."""
    import dataclasses
    import json

    from prunebench.plugins import get_plugins

    plugins = get_plugins()
    plugins.load_all()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(i) | {"status": i.status} for i in plugins.infos.values()], indent=1))
        return
    for info in plugins.infos.values():
        version = f" {info.distribution or ''} {info.version}" if info.version else ""
        click.echo(f"{info.name:16} {info.status:6} {info.origin}{version}")
        if info.provides:
            click.echo(f"    provides {', '.join(info.provides)}")
        for error in info.errors:
            click.echo(f"    error: {error}")


def _details(kind: str, name: str, value: Any) -> dict[str, Any]:
    if kind == "strategies":
        return _strategy(name, value)
    if kind == "suites":
        from prunebench.errors import EvaluationError
        from prunebench.suites import load_suite

        try:
            suite = load_suite(value)
        except EvaluationError as error:  # a broken suite is listed with its error
            return {"summary": f"error: {error}", "error": str(error)}
        tasks = ", ".join(_task(task) for task in suite.tasks)
        return {"summary": f"{suite.title}: {tasks}", "tasks": [task.model_dump(mode="json") for task in suite.tasks]}
    summary = (value.__doc__ or "").strip().splitlines()[0] if value.__doc__ else ""
    details: dict[str, Any] = {"summary": summary}
    if name != value.name:
        details["alias_of"] = value.name
    if kind == "models":
        details["modalities"] = list(value.modalities)
    return details


def _task(task: Any) -> str:
    """The task with its number of questions, where that is known beforehand, and its judge."""
    known = task.dataset is not None or task.questions is not None or task.limit is not None
    parts = [*([f"{task.count:,}"] if known else []), *([f"judge {task.judge}"] if task.judged else [])]
    return f"{task.id} ({', '.join(parts)})" if parts else task.id


def _strategy(name: str, cls: Any) -> dict[str, Any]:
    import dataclasses

    from prunebench.strategy import strategy_params

    types = strategy_params(cls)
    params = {}
    for field in dataclasses.fields(cls):
        default = field.default if field.default is not dataclasses.MISSING else None
        params[field.name] = {"default": default, "type": _type_name(types[field.name])}
    details: dict[str, Any] = {"summary": cls.summary(), "kind": cls.kind, "paper": cls.paper, "params": params}
    if name != cls.name:
        details |= {"alias_of": cls.name, "summary": f"same as {cls.name}"}
        details.pop("params")
    return details


def _type_name(annotation: Any) -> str:
    import typing

    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) is typing.Literal:
        return " | ".join(str(value) for value in typing.get_args(annotation))
    return getattr(annotation, "__name__", str(annotation))


def warn_of_plugin_errors() -> None:
    """One line on stderr for each thing that went wrong in a plugin."""
    from prunebench.plugins import get_plugins

    for info in get_plugins().infos.values():
        for error in info.errors:
            click.echo(f"warning: plugin {info.name!r}: {error}", err=True)
