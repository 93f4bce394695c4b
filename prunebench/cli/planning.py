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
@click.option("--ranks", is_flag=True, help="Several strategies: show ranks of scores, not standardised scores.")
@click.option("--raw", is_flag=True, help="Several strategies: show scores as the methods give them.")
@click.option(
    "--calibration-draws", type=int, metavar="K", help="Plan on K draws of calibration samples: how stable is it?"
)
@click.option("--across-domains", is_flag=True, help="Plan on each domain of the calibration data alone, and compare.")
@click.option("--resamples", type=int, metavar="K", help="Plan on K halves of the same samples: costs no forward pass.")
@click.option("--json", "as_json", is_flag=True, help="Print the plans, and all that is compared, as JSON.")
@click.pass_context
def plan_command(context: click.Context, as_json: bool, **values: Any) -> None:
    """Score the layers and print which ones would go.

    One strategy gets a line for each layer. Several, or `--strategy all`, are set side by side: scores, removed
    layers, overlap and rank correlation, all from one calibration pass.

    \b
    prunebench plan --strategy topo --model testbed --sparsity 0.5 --figures figures
    prunebench plan --strategy all --model testbed --sparsity 0.5
    prunebench plan --strategy all --model testbed --sparsity 0.5 --calibration-draws 5 --across-domains
    """
    import json

    from prunebench.errors import UsageError
    from prunebench.grid import ALL
    from prunebench.recovery.cell import recover_cell
    from prunebench.reporter import Reporter
    from prunebench.robustness import Asked
    from prunebench.runner import Session

    names = ("figures", "save", "ranks", "raw", "calibration_draws", "across_domains", "resamples")
    own = {name: values.pop(name) for name in names}
    if own["ranks"] and own["raw"]:
        raise UsageError("give --ranks or --raw, not both")
    asked = Asked.checked(own["calibration_draws"], own["across_domains"], own["resamples"])
    spec = build_spec(**values)
    if not spec.strategies:
        raise UsageError("name a strategy: --strategy topo, or all (see `prunebench list strategies`)")
    if not spec.budgets:
        raise UsageError("say how much to remove: --sparsity 0.5 (half of the decoder layers), or --layers 8")
    if any(spec.recoveries()) and (asked or len(set(spec.strategies)) > 1 or ALL in spec.strategies):
        raise UsageError("--recover goes with one strategy's plan here; `prunebench run` recovers those of several")
    reporter = Reporter(debug=bool(context.find_root().params.get("debug")))
    session = Session(spec, reporter)
    if asked:
        _robustness(session, asked, own, as_json)
        return
    if len(session.strategies) > 1:
        _side_by_side(session, own, as_json)
        return
    jobs = [job for job in session.cells() if job.strategy.name in session.strategies]
    _check_save(own["save"], len(jobs))
    plans = []
    for job in jobs:
        plan, found = session.plan(job)
        for line in found.warnings:
            reporter.warn(line)
        plan = recover_cell(session, job, plan)
        plans.append(plan)
        if own["figures"]:
            _draw(found.artefacts, plan.removed_layers, Path(own["figures"]), reporter, job.cell.label)
        if not as_json:
            click.echo(_describe(job.cell.label, plan))
    if own["save"]:
        plans[0].save(own["save"])
        reporter.note(f"wrote {own['save']}")
    if as_json:
        click.echo(json.dumps([plan.model_dump(mode="json") for plan in plans], indent=1))


def _check_save(path: str | None, count: int) -> None:
    from prunebench.errors import UsageError

    if path and count != 1:
        raise UsageError(f"--save writes one plan, this command makes {count}: give one strategy, budget and seed")


def _side_by_side(session: Any, own: dict[str, Any], as_json: bool) -> None:
    """Several strategies from one calibration pass."""
    import json

    from prunebench.report.plans import describe
    from prunebench.side_by_side import plan_side_by_side

    _check_save(own["save"], len(session.strategies) * len(session.spec.budgets))
    tables = plan_side_by_side(session)
    for found in tables:
        for row in found.planned:
            for line in row.warnings:
                session.reporter.warn(line)
            if own["figures"] and row.plan is not None:
                label = f"{row.label} at {found.budget}"
                folder = Path(own["figures"]) / row.strategy
                _draw(row.artefacts, row.plan.removed_layers, folder, session.reporter, label)
    if as_json:
        plans = [row.plan.model_dump(mode="json") for found in tables for row in found.planned if row.plan is not None]
        click.echo(json.dumps({"plans": plans, "tables": [found.as_data() for found in tables]}, indent=1))
        return
    view = "ranks" if own["ranks"] else "raw" if own["raw"] else "standardised"
    click.echo("\n".join(describe(found, view) for found in tables), nl=False)


def _robustness(session: Any, asked: Any, own: dict[str, Any], as_json: bool) -> None:
    """How much plans depend on the calibration samples."""
    from prunebench.errors import UsageError
    from prunebench.report.robustness import as_markdown
    from prunebench.robustness import measure_robustness

    if own["save"] or own["figures"]:
        raise UsageError("--save and --figures are for one plan, not for draws of calibration samples")
    found = measure_robustness(session, asked)
    path = found.save(session.store.root)
    click.echo(found.model_dump_json(indent=1) if as_json else as_markdown([found]))
    session.reporter.note(f"wrote {path}; `prunebench leaderboard` shows it beside the records of that folder")


def _draw(artefacts: dict[str, Any], removed: tuple[int, ...], folder: Path, reporter: Any, label: str) -> None:
    drawable = [value for value in artefacts.values() if hasattr(value, "draw")]
    if not drawable:
        reporter.warn(f"{label}: this strategy has nothing to draw")
    for value in drawable:
        for path in value.draw(list(removed), folder):
            reporter.note(f"wrote {path}")


def _describe(label: str, plan: Any) -> str:
    """The plan for people: layers, budget in every unit, and the score of every layer."""
    from tabulate import tabulate

    from prunebench.kinds import removes_layers, share_words
    from prunebench.recovery.outcome import outcome

    report = plan.budget
    parts = ", ".join(f"{part} of {layer}" for layer, part in plan.removed_sublayers)
    if not removes_layers(plan.kind):
        lines = [f"{label}: {share_words(plan)}; all {plan.target.n_layers} layers stay"]
    elif plan.removed_layers or not parts:
        lines = [f"{label}: remove {list(plan.removed_layers)} of {plan.target.n_layers} layers"]
        lines += [f"parts of layers that stay: remove {parts}"] if parts else []
    else:
        lines = [f"{label}: no whole layer of {plan.target.n_layers} goes, remove {parts}"]
    if report is not None and removes_layers(plan.kind):
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
    if line := outcome(plan):
        lines.append(f"recovery {line}")
    if plan.scores is not None:
        marks = {layer: f"remove {part}" for layer, part in plan.removed_sublayers}
        marks |= dict.fromkeys(plan.provenance.protected if plan.provenance else (), "protected")
        marks |= dict.fromkeys(plan.removed_layers, "remove")
        names = list(plan.scores.columns)
        rows = [
            [
                layer,
                value,
                *(plan.scores.columns[name][layer] for name in names),
                marks.get(layer, ""),
            ]
            for layer, value in enumerate(plan.scores.values)
        ]
        lines.append(f"score: {plan.scores.meaning} (higher goes first)")
        lines.append(tabulate(rows, headers=["layer", "score", *names, ""], floatfmt=".5g"))
    return "\n".join(lines) + "\n"
