"""`prunebench plan`: score and select only, nothing is pruned or evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from prunebench.cli.options import build_spec, spec_options

__all__ = ["plan_command"]


@click.command("plan")
@spec_options
@click.option(
    "--figures", type=click.Path(file_okay=False), metavar="DIR", help="Draw what the strategy saw, into DIR."
)
@click.option(
    "--save", type=click.Path(dir_okay=False), metavar="FILE.json", help="Write the plan (one strategy, one budget)."
)
@click.option("--json", "as_json", is_flag=True, help="Print the plans as JSON.")
@click.pass_context
def plan_command(context: click.Context, figures: str | None, save: str | None, as_json: bool, **values: Any) -> None:
    """Score the layers and print which ones would go.

    \b
    prunebench plan --strategy topo --model testbed --sparsity 0.5 --figures figures
    """
    import json

    from prunebench.errors import UsageError
    from prunebench.reporter import Reporter
    from prunebench.runner import Session

    spec = build_spec(**values)
    if not spec.strategies:
        raise UsageError("name a strategy: --strategy topo (see `prunebench list strategies`)")
    if not spec.budgets:
        raise UsageError("say how much to remove: --sparsity 0.5 (half of the decoder layers), or --layers 8")
    reporter = Reporter(debug=bool(context.find_root().params.get("debug")))
    session = Session(spec, reporter)
    jobs = [job for job in session.cells() if job.strategy.name in session.strategies]
    if save and len(jobs) != 1:
        raise UsageError(f"--save writes one plan, this command makes {len(jobs)}: give one strategy, budget and seed")
    plans = []
    for job in jobs:
        plan, found = session.plan(job)
        plans.append(plan)
        for line in found.warnings:
            reporter.warn(line)
        if figures:
            _draw(found, plan.removed_layers, Path(figures), reporter, job.cell.label)
        if not as_json:
            click.echo(_describe(job.cell.label, plan))
    if save:
        plans[0].save(save)
        reporter.note(f"wrote {save}")
    if as_json:
        click.echo(json.dumps([plan.model_dump(mode="json") for plan in plans], indent=1))


def _draw(found: Any, removed: tuple[int, ...], folder: Path, reporter: Any, label: str) -> None:
    drawable = [value for value in found.artefacts.values() if hasattr(value, "draw")]
    if not drawable:
        reporter.warn(f"{label}: this strategy has nothing to draw")
    for value in drawable:
        for path in value.draw(list(removed), folder):
            reporter.note(f"wrote {path}")


def _describe(label: str, plan: Any) -> str:
    """The plan for people: layers, budget in every unit, and the score of every layer."""
    from tabulate import tabulate

    report = plan.budget
    lines = [f"{label}: remove {list(plan.removed_layers)} of {plan.target.n_layers} layers"]
    if report is not None:
        got = report.achieved
        lines.append(
            f"budget: {report.layers_asked} layers asked (rounding: {report.rounding}), {got.layers_removed} removed = "
            f"{got.layers:.1%} of layers, {got.lm_params:.1%} of LM parameters, "
            f"{got.model_params:.1%} of all parameters, {got.bytes:.1%} of bytes, "
            f"{got.prefill_flops:.1%} of prefill FLOPs, {got.kv_bytes_per_token:.1%} of KV bytes"
        )
    if plan.provenance is not None and "epsilon" in plan.provenance.notes:
        interval = plan.provenance.notes["epsilon"]
        lines.append(
            f"threshold rule: the same layers for any epsilon in [{interval[0]:.4f}, {interval[1]:.4f})"
            if interval
            else "threshold rule: no epsilon gives exactly these layers"
        )
    if plan.scores is not None:
        gone, protected = set(plan.removed_layers), set(plan.provenance.protected) if plan.provenance else set()
        names = list(plan.scores.columns)
        rows = [
            [
                layer,
                value,
                *(plan.scores.columns[name][layer] for name in names),
                "remove" if layer in gone else "protected" if layer in protected else "",
            ]
            for layer, value in enumerate(plan.scores.values)
        ]
        lines.append(f"score: {plan.scores.meaning} (higher goes first)")
        lines.append(tabulate(rows, headers=["layer", "score", *names, ""], floatfmt=".5g"))
    return "\n".join(lines) + "\n"
