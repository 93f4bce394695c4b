"""Options that `run` and `plan` share, and the spec they build."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

__all__ = ["build_spec", "spec_options"]

_OPTIONS = [
    click.option("--strategy", "-s", "strategies", multiple=True, metavar="NAME", help="A strategy; may be repeated."),
    click.option("--model", "-m", metavar="NAME", help="A model: NAME or NAME:VARIANT (`prunebench list models`)."),
    click.option("--model-path", metavar="DIR", help="Folder with the weights, where not the adapter's default."),
    click.option("--model-revision", metavar="REV", help="Commit, branch or tag of a hub model."),
    click.option("--trust-remote-code", is_flag=True, help="Run Python that comes with the weights (recorded)."),
    click.option("--attn-implementation", metavar="NAME", help="sdpa, eager, flash_attention_2 (default: library's)."),
    click.option("--device-map", metavar="NAME", help="Spread layers over devices by accelerate: auto, balanced, ..."),
    click.option("--offload-folder", metavar="DIR", help="Where layers go that fit on no device."),
    click.option(
        "--sparsity",
        type=float,
        multiple=True,
        metavar="R",
        help="Share to remove, in [0, 1): of decoder layers, or of what a method takes instead (weights, width).",
    ),
    click.option("--layers", type=int, multiple=True, metavar="N", help="Number of decoder layers to remove instead."),
    click.option(
        "-P", "--param", "params", multiple=True, metavar="NAME=VALUE", help="Strategy parameter: k=25, topo.k=25."
    ),
    click.option(
        "--suite", metavar="NAME|FILE.yaml", help="What to evaluate on: a suite's name or a file of your own."
    ),
    click.option("--task", "tasks", multiple=True, metavar="ID", help="Only this task of the suite; may be repeated."),
    click.option(
        "--data",
        multiple=True,
        metavar="TASK=PATH",
        help="Own data of a task: TASK=PATH, TASK:SPLIT=PATH, TASK:media=DIR; may be repeated.",
    ),
    click.option("--calibration", metavar="NAME", help="Dataset of the calibration samples."),
    click.option("--n-calibration", type=int, metavar="N", help="Calibration samples (default 512)."),
    click.option("--calibration-seed", type=int, metavar="N", help="Another draw of calibration samples."),
    click.option("--calibration-domain", metavar="NAME", help="Only calibration samples of this domain."),
    click.option(
        "--recover",
        multiple=True,
        metavar="NAME",
        help="After pruning: none, replaceme (closed form), layer, layer:ffn, layer:linear, tune or lora (needs peft); "
        "may be repeated.",
    ),
    click.option("--recover-tokens", type=int, metavar="N", help="Token budget of training (default: whole epochs)."),
    click.option("--seed", type=int, metavar="N", help="First seed of stochastic strategies (default 0)."),
    click.option("--device", metavar="NAME", help="auto, cpu, cuda:0 (default auto)."),
    click.option("--dtype", metavar="NAME", help="float32, bfloat16 or float16 (default float32)."),
    click.option("--batch-size", type=int, metavar="N", help="Samples per forward pass (default 32)."),
    click.option("--encode-cache", metavar="SIZE", help="Encoder outputs kept on disk: 0, 500M, 4G (default 2G)."),
    click.option("--threads", type=int, metavar="N", help="CPU threads (default: 1 for small models, else torch's)."),
    click.option(
        "-c", "--config", type=click.Path(dir_okay=False), metavar="FILE.yaml", help="Read the run from a file."
    ),
    click.option("--out", metavar="DIR", help="Where records, traces and tables go (default runs)."),
]


def spec_options(command: Callable) -> Callable:
    """Add the shared options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def build_spec(**values: Any) -> Any:
    """A `Spec` from the options, over a configuration file where one is given."""
    from pathlib import Path

    from prunebench.budget import Budget
    from prunebench.config import Spec, parse_params
    from prunebench.errors import UsageError
    from prunebench.suite_selection import parse_data

    config = values.pop("config", None)
    sparsity, layers = values.pop("sparsity"), values.pop("layers")
    params = parse_params(values.pop("params"))
    data = parse_data(values.pop("data", ()))
    # 0 is a value that was given; None, an empty tuple and an unset flag are not.
    given = {key: value for key, value in values.items() if value is not None and value is not False and value != ()}
    budgets = [Budget(value=value) for value in sparsity] + [Budget(value=n, unit="layers") for n in layers]
    if budgets:
        given["budgets"] = list(dict.fromkeys(budgets))
    if params:
        given["params"] = params
    if data:
        given["data"] = data
    if config:
        return Spec.read(Path(config), given)
    if "model" not in given:
        raise UsageError("name a model: --model testbed (see `prunebench list models`)")
    return Spec.build(given)
