"""`prunebench run`: the main job."""

from __future__ import annotations

from typing import Any

import click

from prunebench.cli.options import build_spec, spec_options
from prunebench.cli.published import dense_check, load, published_options, stopping_at_gap

__all__ = ["run_command"]


@click.command("run")
@spec_options
@click.option(
    "--controls", is_flag=True, help="Add random (a band over seeds), first-n, last-n, middle-n, even spacing, bi."
)
@click.option("--seeds", type=int, metavar="N", help="Draws of each stochastic strategy (default 5).")
@click.option("--limit", type=int, metavar="N", help="Only the first N questions of each task.")
@click.option("--no-latency", is_flag=True, help="Leave latency out.")
@click.option("--executor", metavar="NAME", help="Where cells run (default local: this process).")
@click.option("--force", is_flag=True, help="Run finished cells again.")
@click.option("--remeasure", is_flag=True, help="Time finished cells again, keep their answers.")
@published_options
@click.option("--dry-run", is_flag=True, help="Print the cells and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the records' ids and status as JSON, not the table.")
@click.pass_context
def run_command(
    context: click.Context,
    dry_run: bool,
    as_json: bool,
    no_latency: bool,
    published: str | None,
    allow_gap: bool,
    **values: Any,
) -> None:
    """Calibrate, plan, prune, evaluate, measure, record, rank.

    Dense is always measured in the same run. Running the same command again finishes what is missing.

    \b
    prunebench run --strategy topo --model testbed --sparsity 0.5 --controls
    prunebench run -s topo -s cosine -m testbed --sparsity 0.25 --sparsity 0.5 -P k=25
    """
    import json

    from prunebench.config import LatencySpec
    from prunebench.errors import UsageError

    figures = load(published, allow_gap)
    spec = build_spec(**values)
    if no_latency:
        spec = spec.model_copy(update={"latency": LatencySpec(enabled=False)})
    if not spec.strategies and not spec.controls:
        raise UsageError("name a strategy: --strategy topo (see `prunebench list strategies`), or --controls")
    if not spec.budgets and spec.strategies != ("dense",):
        raise UsageError("say how much to remove: --sparsity 0.5 (half of the decoder layers), or --layers 8")

    from prunebench import leaderboard
    from prunebench.cli.catalogue import warn_of_plugin_errors
    from prunebench.reporter import Reporter
    from prunebench.robustness import load_robustness
    from prunebench.runner import Session

    root = context.find_root()
    reporter = Reporter(debug=bool(root.params.get("debug")))
    session = Session(spec, reporter)
    if dry_run:
        for job in session.cells():
            done = "finished" if session.store.finished(job.cell) else "to run"
            click.echo(f"{job.cell.id}  {done:8}  {job.cell.label}")
        return
    if figures is not None:
        session.after_dense = dense_check(figures, allow_gap, reporter)
    with stopping_at_gap(context, f" (records kept: {session.store.root / 'records'})"):
        records = session.run()
    out = session.store.root / "leaderboard.md"
    highlight = next(iter(session.strategies)) if spec.strategies and session.strategies else None
    options: dict[str, Any] = {"highlight": highlight, "robustness": load_robustness([session.store.root])}
    options |= {"published": figures, "allow_gap": allow_gap} if figures is not None else {}
    leaderboard.write(records, out, **options)
    failed = [record for record in records if record.status != "ok"]
    if as_json:
        rows = [
            {"id": r.id, "label": r.cell.label, "status": r.status, "record": str(session.store.path(r.id))}
            for r in records
        ]
        click.echo(json.dumps({"leaderboard": str(out), "cells": rows}, indent=1))
    else:
        click.echo(leaderboard.build(records, **options), nl=False)
    reporter.note(f"leaderboard: {out}   records: {session.store.root / 'records'}")
    warn_of_plugin_errors()
    if failed:
        reporter.warn(
            f"{len(failed)} of {len(records)} cells failed; the first: {failed[0].cell.label}: {failed[0].error}"
        )
        context.exit(1)
