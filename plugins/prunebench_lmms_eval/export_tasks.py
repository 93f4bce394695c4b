"""`prunebench export-tasks`: PruneBench's own questions for plain lmms-eval."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["export_tasks_command"]


@click.command("export-tasks")
@click.option(
    "--suite", "-s", "name", required=True, metavar="NAME|FILE", help="A suite of PruneBench's own questions."
)
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="The folder to write.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N questions per task.")
def export_tasks_command(name: str, out: Path, limit: int | None) -> None:
    """Write a suite's questions as lmms-eval tasks, so that any model of lmms-eval can be asked them.

    \b
    prunebench export-tasks --suite testbed --out testbed-tasks
    lmms-eval --include_path testbed-tasks --tasks testbed_general --model ...
    """
    from prunebench.plugins import get_plugins
    from prunebench.suite_run import suite_file
    from prunebench.suite_selection import limited
    from prunebench.suites import load_suite
    from prunebench_lmms_eval.questions_export import export_suite

    suite = load_suite(suite_file(name, get_plugins()))
    names = export_suite(limited(suite, limit), out)
    click.echo(f"{out}: {', '.join(names)}")
    click.echo(f"lmms-eval --include_path {out} --tasks {names[0]} --model ...")
