"""What is written beside the weights: the model card, and the same layers as a recipe for mergekit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from prunebench import jsonio
from prunebench.environment import package_version
from prunebench.evaluator import TaskResult
from prunebench.exporting.source import Source
from prunebench.model_info import ModelInfo
from prunebench.ops import Fold, Mask, Merge, Op, ReplaceBlock, Slice, layers_touched
from prunebench.report.markdown import code, figure, layer_ranges, one_line, percent, size, table

__all__ = ["Card", "kept_runs", "mergekit_recipe", "model_card"]


@dataclass(frozen=True)
class Card:
    """What the model card says besides plan and results.

    Attributes:
        title: name of the folder.
        base: what the pruned model was made from, dense.
        repository: ``ORG/NAME`` of the base model on the hub, or None.
        dtype: number format of the exported weights.
        params: parameters of the exported model.
        nbytes: bytes of its weights.
        model_class: ``module:Class`` that loads it.
        command: what was typed.
        needs: what plain loading does not restore, in words; empty where nothing is missing.
        loader: model name for ``prunebench.load`` where layers are of different widths, which plain loading cannot
            build; None where plain loading does.
    """

    title: str
    base: ModelInfo
    repository: str | None
    dtype: str
    params: int
    nbytes: int
    model_class: str
    command: str
    needs: str = ""
    loader: str | None = None


def kept_runs(kept: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending layer ids as half-open ranges: ``[0, 1, 4]`` → ``[(0, 2), (4, 5)]``."""
    runs: list[tuple[int, int]] = []
    for layer in kept:
        if runs and runs[-1][1] == layer:
            runs[-1] = (runs[-1][0], layer + 1)
        else:
            runs.append((layer, layer + 1))
    return runs


def mergekit_recipe(source: Source, card: Card) -> str:
    """The kept layers as a passthrough merge of one model with itself; ranges are half-open, ids the base model's."""
    model = card.repository or card.base.name
    slices = [
        {"sources": [{"model": model, "layer_range": [start, end]}]}
        for start, end in kept_runs(source.plan.kept_layers)
    ]
    head = f"# {model} at revision {card.base.revision}: the same decoder layers, for mergekit\n"
    return head + yaml.safe_dump(
        {"merge_method": "passthrough", "slices": slices, "dtype": card.dtype}, sort_keys=False, default_flow_style=None
    )


def model_card(source: Source, card: Card) -> str:
    """README.md of the export."""
    parts = [_front(card), f"# {one_line(card.title)}", _what(source, card)]
    if card.base.planted_roles is not None:
        parts.append(
            "**The base model is a constructed diagnostic**: which of its layers are redundant was planted in "
            "training. It is no evidence about "
            "real vision-language models; this checkpoint is for tests and demonstrations."
        )
    parts += ["## What was removed", _removed(source, card), "## Results", _results(source, card)]
    parts += ["## Loading", _loading(card), "## License", "Inherits the base model's license and its terms of use."]
    return "\n\n".join(parts) + "\n"


def _front(card: Card) -> str:
    values: dict[str, Any] = {"library_name": "transformers", "tags": ["prunebench", "layer-pruning"]}
    if card.repository is not None:
        values["base_model"] = card.repository
    values |= {"license": "other", "license_name": "same-as-base-model"}
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---"


def _what(source: Source, card: Card) -> str:
    plan = source.plan
    removed, total = len(plan.removed_layers), plan.target.n_layers
    share = f"without {removed} of its {total} decoder layers" if removed else f"with all of its {total} decoder layers"
    text = f"{code(card.base.name)} (revision {code(card.base.revision)}) {share}."
    if plan.only_drops:
        return f"{text} The layers that stay have the base model's weights, unchanged; nothing was trained afterwards."
    changed = sorted({layer for op in plan.ops for layer in layers_touched(op)} & set(plan.kept_layers))
    return (
        f"{text} Of the layers that stay, {layer_ranges(changed)} have other weights than the base model's "
        "(`plan.json` says where they come from); the others are unchanged."
    )


_DEEDS = {
    "replace_block": "layers replaced by one decoder layer",
    "merge": "layers merged into one",
    "fold": "a matrix folded into",
    "set_weights": "weights set in",
}


def _place(op: Op) -> str:
    if isinstance(op, ReplaceBlock):
        return f"{layer_ranges(range(op.start, op.stop))} by {op.start}"
    if isinstance(op, Merge):
        terms = zip(op.coefficients, op.sources, strict=True)
        return f"{op.into} = " + " + ".join(f"{factor:g} · {layer}" for factor, layer in terms)
    return f"layer {op.layer}" + (f", {code(op.module)}, side {op.side}" if isinstance(op, Fold) else "")


def _thinned(ops: Sequence[Op]) -> list[tuple[str, str]]:
    """Slices and masks, of which there is one per layer, together."""
    rows = []
    if slices := [op for op in ops if isinstance(op, Slice)]:
        gone = sum(op.params_removed for op in slices)
        layers = layer_ranges(op.layer for op in slices)
        rows.append(("heads and MLP channels taken out", f"{gone:,} parameters of layers {layers}"))
    for pattern in sorted({op.pattern for op in ops if isinstance(op, Mask)}):
        masks = [op for op in ops if isinstance(op, Mask) and op.pattern == pattern]
        layers, zeros = layer_ranges(op.layer for op in masks), sum(op.zeros for op in masks)
        rows.append((f"weights set to zero ({pattern})", f"{zeros:,} in layers {layers}"))
    return rows


def _removed(source: Source, card: Card) -> str:
    plan, made = source.plan, source.plan.provenance
    rows = [
        ("layers removed (base model's ids, from 0)", layer_ranges(plan.removed_layers)),
        ("layers kept", layer_ranges(plan.kept_layers)),
        *((_DEEDS[op.op], _place(op)) for op in plan.ops if op.op in _DEEDS),
        *_thinned(plan.ops),
        ("parameters", f"{card.params:,} of {card.base.model_params:,}"),
        ("weights", f"{size(card.nbytes)} as {card.dtype}"),
    ]
    if made is not None:
        rows.append(("method", f"{code(made.strategy)} {code(jsonio.canonical(made.params))}, seed {made.seed}"))
        if made.version:
            rows.append(("method's version", code(f"{made.plugin or made.strategy} {made.version}")))
        if made.selection:
            rows.append(("selection", one_line(made.selection)))
    if source.record is not None and source.record.cell.calibration is not None:
        used = source.record.cell.calibration
        domain = f", domain {used.domain}" if used.domain else ""
        rows.append(
            ("calibration", f"{used.n} samples of {code(used.dataset)} ({used.split}, seed {used.seed}{domain})")
        )
    rows += [
        ("plan", f"`plan.json`, digest {code(plan.digest)}"),
        ("made by", f"{code(card.command)} (PruneBench {package_version('prunebench') or 'unknown'})"),
    ]
    return table(("", ""), rows, left=2)


def _results(source: Source, card: Card) -> str:
    record = source.record
    if record is None or not record.tasks:
        return "None was measured: this export was made from a plan alone."
    dense = {result.task: result for result in source.dense.tasks} if source.dense is not None else {}
    rows = [
        (one_line(r.task), r.metric, str(r.n), _score(dense.get(r.task)), _score(r), _chance(r)) for r in record.tasks
    ]
    versions = ", ".join(
        f"{key} {record.environment[key]}" for key in ("torch", "transformers") if key in record.environment
    )
    other = (
        "" if record.model.dtype == card.dtype else f" The weights here are {card.dtype}: numbers may differ slightly."
    )
    return (
        f"Suite {code(record.cell.suite)}, measured by PruneBench in {record.model.dtype} "
        f"({versions or 'versions unknown'}; record {code(record.id)}, {record.finished[:10]}). "
        f"Intervals are 95%.{other}\n\n"
        + table(("task", "metric", "questions", "dense", "this model", "chance"), rows, left=2)
    )


def _score(result: TaskResult | None) -> str:
    if result is None:
        return percent(None)
    values = (result.score, result.ci_low, result.ci_high)
    # A share is shown in percent, anything else (a perplexity) as it is.
    middle, low, high = (percent(v) if all(0 <= x <= 1 for x in values) else figure(v) for v in values)
    return f"{middle} [{low}, {high}]"


def _chance(result: TaskResult) -> str:
    return percent(result.chance)


def _loading(card: Card) -> str:
    module, _, name = card.model_class.partition(":")
    if card.loader is not None:
        return (
            f"```python\nimport prunebench\n\nmodel = prunebench.load({card.loader!r}, path=FOLDER).model\n```\n\n"
            "The decoder's layers are of different widths, which plain `from_pretrained` cannot build: "
            "`prunebench.widths` in config.json names them, and PruneBench narrows the layers before it reads their "
            f"weights (`prunebench.checkpoint.narrowing.folder_class({name}, FOLDER).from_pretrained(FOLDER)`). "
            "This was done in a fresh process before the folder was finished: no key was missing, left over or of "
            "another shape, every weight was equal, and so were the logits on fixed token ids, bit for bit."
        )
    text = (
        f"```python\nfrom {module} import {name}\n\nmodel = {name}.from_pretrained(FOLDER)\n```\n\n"
        "This was done in a fresh process before the folder was finished: no key was missing, left over or of another "
        "shape, every weight was equal, and so were the logits on fixed token ids, bit for bit."
    )
    return text if not card.needs else f"{text}\n\n**{card.needs}**"
