"""`prunebench export`: a plan made into a checkpoint."""

from __future__ import annotations

from typing import Any

import click

__all__ = ["export_command"]


@click.command("export")
@click.argument("source", metavar="RUN|PLAN")
@click.option("--to", required=True, type=click.Path(), metavar="DIR", help="The new folder: absent, or empty.")
@click.option("--model", "-m", metavar="NAME", help="Base model, where not the one that the plan names.")
@click.option("--model-path", type=click.Path(), metavar="DIR", help="Folder with the base model's weights.")
@click.option("--model-revision", metavar="REV", help="Commit, branch or tag of a hub model.")
@click.option("--trust-remote-code", is_flag=True, help="Run Python that comes with the weights.")
@click.option("--dtype", metavar="NAME", help="float32, bfloat16 or float16 (default: as the base model is stored).")
@click.option("--device", default="cpu", metavar="NAME", help="Where logits are compared (default cpu).")
@click.option("--out", default="runs", metavar="DIR", help="Where record ids are looked up (default runs).")
@click.option("--push", metavar="ORG/NAME", help="Then upload the folder to the Hugging Face hub.")
@click.option("--force", is_flag=True, help="Replace DIR if it is not empty.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
@click.pass_context
def export_command(context: click.Context, source: str, to: str, as_json: bool, **values: Any) -> None:
    """Write a pruned model that plain transformers loads (layers of different widths only PruneBench does).

    RUN|PLAN is a plan file, a record file or its id, or a run folder that holds one plan. Removed layers are never
    read. The folder appears only after a fresh process has loaded it and found the same weights and logits.

    \b
    prunebench export runs/plan.json --to exported
    prunebench export 3f2a9c --to exported
    """
    import json
    import shlex
    import sys

    from prunebench.devices import resolve_device, resolve_dtype
    from prunebench.exporting import export
    from prunebench.reporter import Reporter

    if values["dtype"]:
        resolve_dtype(values["dtype"])
    resolve_device(values["device"])
    reporter = Reporter(debug=bool(context.find_root().params.get("debug")))
    command = shlex.join(["prunebench", *sys.argv[1:]])
    report = export(source, to, **values, command=command, note=reporter.note)
    if as_json:
        content = {
            "folder": str(report.folder),
            "kept_layers": list(report.kept_layers),
            "dtype": report.dtype,
            "bytes": report.nbytes,
            "model_class": report.model_class,
            "pushed": report.pushed,
        }
        click.echo(json.dumps(content, indent=1))
    else:
        size = f"{report.nbytes:,} bytes of weights"
        click.echo(f"{report.folder}: {len(report.kept_layers)} decoder layers, {report.dtype}, {size}")
