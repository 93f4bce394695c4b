"""`prunebench doctor`: what is installed, what is missing and which command adds it, what this machine can measure."""

from __future__ import annotations

from typing import Any

import click

__all__ = ["doctor"]

REQUIRED = (
    "torch",
    "transformers",
    "accelerate",
    "safetensors",
    "numpy",
    "numba",
    "pluggy",
    "click",
    "pydantic",
    "pandas",
)
EXTRAS = {
    "gudhi": ("topology", "ordinary persistence, the zigzag=false ablation"),
    "matplotlib": ("figures", "figures and plots"),
    "av": ("media", "video files, and sound in containers"),
    "soundfile": ("media", "sound files"),
    "peft": ("lora", "low-rank adapters, --recover lora"),
    "nvidia-ml-py": ("gpu", "GPU memory per process by NVML (module pynvml)"),
    "lmms-eval": ("lmms", "the benchmarks of the evaluator `lmms`"),
    "dionysus": ("dionysus", "the dionysus zigzag engine; builds from source and needs Boost headers"),
}
BY_MAKE = {"lmms-eval": "make lmms", "dionysus": "make dionysus"}
"""What pip alone would install in a way that does not work on every machine."""


@click.command("doctor")
@click.option(
    "--suite", metavar="NAME|FILE.yaml", help="Look at the tasks of this suite: what they lack, what they cost."
)
@click.option("--model", "-m", metavar="NAME", help="With --suite: the model that will run it.")
@click.option("--model-path", metavar="DIR", help="With --suite: folder with the weights.")
@click.option(
    "--models", type=click.IntRange(min=1), metavar="N", help="With --suite: number of models, dense and plans."
)
@click.option("--task", "tasks", multiple=True, metavar="ID", help="With --suite: only this task; may be repeated.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="With --suite: questions of each task.")
@click.option("--data", multiple=True, metavar="TASK=PATH", help="With --suite: own data, as for `prunebench run`.")
@click.option("--out", metavar="DIR", help="With --suite: run folder whose records tell the speed (default runs).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(context: click.Context, as_json: bool, suite: str | None, **options: Any) -> None:
    """Look at this installation and say what to do about what is missing.

    With --suite, look at each of its tasks before a long run: packages, keys, data, disk, and the time it will take
    by the speed that was last measured. Nothing is downloaded. The exit code is 1 where a task that a
    run would ask cannot run.

    \b
    prunebench doctor
    prunebench doctor --suite topovlm-image --model llava --models 9
    """
    import json

    if suite is not None:
        from prunebench.cli.doctor_suite import as_data, as_text, look_at_suite

        given = {**options, "out": options["out"] or "runs", "models": options["models"] or 1}
        found = look_at_suite(suite, **given)
        click.echo(json.dumps(as_data(found), indent=1) if as_json else as_text(found), nl=as_json)
        if not found.ready:
            context.exit(1)
        return
    if misplaced := [name for name, value in options.items() if value not in (None, ())]:
        from prunebench.errors import UsageError

        option = "task" if misplaced[0] == "tasks" else misplaced[0].replace("_", "-")
        raise UsageError(f"--{option} is about a suite: add --suite NAME (see `prunebench list suites`)")
    findings = examine()
    if as_json:
        click.echo(json.dumps(findings, indent=1))
    else:
        for finding in findings:
            click.echo(f"{finding['status']:8} {finding['what']}: {finding['detail']}")
            if finding.get("do"):
                click.echo(f"         → {finding['do']}")
    if any(finding["status"] == "error" for finding in findings):
        context.exit(1)


def examine() -> list[dict[str, Any]]:
    """Findings, each with ``status`` (ok, missing, warning, error), ``what``, ``detail`` and perhaps ``do``."""
    import platform

    from prunebench.environment import package_version
    from prunebench.plugins import get_plugins

    findings: list[dict[str, Any]] = [_finding("ok", "python", platform.python_version())]
    for package in REQUIRED:
        version = package_version(package)
        if version:
            findings.append(_finding("ok", package, version))
        else:
            findings.append(_finding("error", package, "not installed", f"pip install {package}"))
    for package, (extra, purpose) in EXTRAS.items():
        version = package_version(package)
        if version:
            findings.append(_finding("ok", package, f"{version} ({purpose})"))
        else:
            command = f"pip install 'prunebench[{extra}]'"
            if package in BY_MAKE:
                command = f"{BY_MAKE[package]} (in the repository), or {command}"
            findings.append(_finding("missing", package, purpose, command))
    findings += [_torchvision(), *_gpu()]
    plugins = get_plugins()
    plugins.load_all()
    for info in plugins.infos.values():
        if info.errors:
            findings.append(_finding("warning", f"plugin {info.name}", info.errors[0], "prunebench plugins"))
        else:
            findings.append(
                _finding("ok", f"plugin {info.name}", f"{len(info.provides)} registrations from {info.origin}")
            )
    return findings


def _finding(status: str, what: str, detail: str, do: str | None = None) -> dict[str, Any]:
    return {"status": status, "what": what, "detail": detail, "do": do}


def _torchvision() -> dict[str, Any]:
    """PyPI's torchvision does not load beside a CPU build of torch, and a broken torchvision breaks transformers."""
    from prunebench.environment import package_version

    version = package_version("torchvision")
    if version is None:
        return _finding("ok", "torchvision", "not installed (not needed; an unfitting build breaks transformers)")
    try:
        import torchvision  # noqa: F401
    except Exception as error:
        detail = f"{version} is installed but does not load ({type(error).__name__}): transformers will fail"
        return _finding("error", "torchvision", detail, "pip uninstall torchvision")
    return _finding("ok", "torchvision", version)


def _gpu() -> list[dict[str, Any]]:
    try:
        import torch
    except ImportError:
        return [_finding("error", "torch", "cannot be imported", "pip install torch")]
    if not torch.cuda.is_available():
        return [_finding("ok", "gpu", "none: everything runs on the CPU, GPU fields of records stay null")]
    findings = [_finding("ok", "gpu", f"{torch.cuda.device_count()} × {torch.cuda.get_device_name(0)}")]
    try:
        import pynvml

        pynvml.nvmlInit()
        driver = pynvml.nvmlSystemGetDriverVersion()
        pynvml.nvmlShutdown()
        findings.append(_finding("ok", "nvml", f"driver {driver}"))
    except ImportError:
        findings.append(_finding("missing", "nvml", "module pynvml", "pip install 'prunebench[gpu]'"))
    except Exception as error:  # NVML raises types of its own
        findings.append(_finding("warning", "nvml", f"does not answer: {error}", "NVML memory stays null in records"))
    return findings
