"""Export, top to bottom: read the source, load without what goes, write, reload elsewhere, compare, move into place."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prunebench.adapter import LoadedModel
from prunebench.checkpoint.narrowing import check_reloads
from prunebench.errors import BadParameter, PlanError, UsageError
from prunebench.exporting.card import Card
from prunebench.exporting.folder import check_free, check_target, whole_folder
from prunebench.exporting.source import Source, find_source
from prunebench.exporting.verify import Expected, expect, verify
from prunebench.exporting.writing import push_folder, write_checkpoint
from prunebench.loading import load
from prunebench.measure.cost import weight_bytes
from prunebench.plan import Plan
from prunebench.plugins import get_plugins
from prunebench.store import Record

__all__ = ["ExportReport", "export"]

STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        folder: the finished checkpoint.
        kept_layers: ids of the dense model's layers that are in it.
        dtype: number format of the weights.
        nbytes: bytes of the weights in memory.
        model_class: ``module:Class`` that loads it.
        pushed: ``ORG/NAME`` on the hub, or None.
    """

    folder: Path
    kept_layers: tuple[int, ...]
    dtype: str
    nbytes: int
    model_class: str
    pushed: str | None = None


def export(
    source: Plan | Record | str | Path,
    to: str | Path,
    *,
    model: str | None = None,
    model_path: str | Path | None = None,
    model_revision: str | None = None,
    dtype: str | None = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
    push: str | None = None,
    force: bool = False,
    out: str | Path = "runs",
    command: str | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> ExportReport:
    """Write the pruned model as a checkpoint that plain ``from_pretrained`` loads, or nothing at all.

    Layers that were narrowed to different widths are the one thing that plain loading has no words for: such a
    checkpoint is loaded by `prunebench.load` with its ``path``, and its card says so.

    The layers that the plan removes are never read, but for those that it merges into others. Before the folder
    appears, a fresh process has loaded it without PruneBench and found no key missing, unexpected or of another shape,
    the same weights, and the same logits.

    Args:
        source: a plan or its file; a record, its file, or its id in `out`; a run folder that holds one plan.
        to: the new folder; it must not exist, or be empty.
        model: name to load the base model by; None takes the name that the plan was made for.
        model_path: folder of the base model, where not the adapter's default.
        model_revision: hub commit, branch or tag of the base model.
        dtype: number format to write; None keeps that of the base model's files.
        device: where the logits are computed.
        trust_remote_code: run Python that comes with the base model.
        push: ``ORG/NAME`` to upload the finished folder to.
        force: replace `to`.
        out: folder of runs in which record ids are looked up.
        command: what the card says was typed.
        note: called with lines about progress.

    Raises:
        UsageError: the source or the place makes no sense.
        PlanError: the plan is for another model.
        ModelError: the base model cannot be read, or the export did not reload as it should.
        StoreError: it cannot be written, or not be pushed.
    """
    target = Path(to)
    found = find_source(source, out)
    check_target(target, force)
    if push is not None and (push.count("/") != 1 or not all(push.split("/"))):
        raise BadParameter(f"--push wants ORG/NAME, got {push!r}")
    options = {
        "path": str(model_path) if model_path else None,
        "device": device,
        "dtype": dtype or (found.record.model.dtype if found.record else "float32"),
        "trust_remote_code": trust_remote_code,
        "revision": model_revision,
        "plan": found.plan,
    }
    name = model or _base_name(found, model_path is not None)
    removed = list(found.plan.removed_layers)
    note(f"load {name} without layers {removed}" if removed else f"load {name}")
    loaded = _load(name, options)
    if dtype is None and (stored := _stored_dtype(loaded.path)) not in (None, options["dtype"]):
        options["dtype"] = stored
        del loaded
        _release()
        loaded = _load(name, options)
    check_free(target, int(1.02 * weight_bytes(loaded.model)))
    expected = expect(loaded.model, loaded.adapter.reload_class(loaded.model))
    card = _card(target, loaded, options["dtype"], expected, command, found)
    if check_reloads(loaded.model):
        card = replace(card, loader=name.partition(":")[0])
        note("warning: layers of different widths: only PruneBench loads this export, plain from_pretrained does not")
    with whole_folder(target, force) as folder:
        note(f"write {target}")
        write_checkpoint(folder, loaded, found, card)
        del loaded
        _release()
        note("reload it in a fresh process and compare")
        verify(folder, expected)
    if card.needs:
        note(f"warning: {card.needs}")
    if push is not None:
        note(f"push to {push}")
        push_folder(target, push)
    return ExportReport(target, found.plan.kept_layers, card.dtype, card.nbytes, card.model_class, push)


def _base_name(source: Source, has_path: bool) -> str:
    """How to ask for the model that a plan was made for: a registered name, or the adapter that a record names."""
    name = source.plan.target.model
    if name in get_plugins().registry("models"):
        return name
    if source.record is None:
        raise UsageError(f"the plan was made for {name!r}, which no adapter is called: name the base model by --model")
    adapter = source.record.model.adapter
    return f"{adapter}:{name}" if "/" in name and not has_path else adapter


def _load(name: str, options: dict[str, Any]) -> LoadedModel:
    try:
        return load(name, **options)
    except PlanError as error:
        raise PlanError(f"{error}; another base model is named by --model or --model-path") from error


def _release() -> None:
    """Give memory back that nothing holds any more: another copy of the model is about to need it."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _stored_dtype(folder: Path | None) -> str | None:
    """Number format of most of the bytes in a checkpoint folder; None where there is none that models compute in."""
    from prunebench.checkpoint import Checkpoint

    if folder is None:
        return None
    sizes: dict[str, int] = {}
    for entry in Checkpoint.open(folder).tensors.values():
        if entry.dtype in STORED:
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.nbytes
    return STORED[max(sizes, key=lambda kind: sizes[kind])] if sizes else None


def _card(
    target: Path, loaded: LoadedModel, dtype: str, expected: Expected, command: str | None, source: Source
) -> Card:
    removes = bool(source.plan.removed_layers)
    more = loaded.adapter.layers_removed(loaded.model, source.plan.kept_layers) if removes else None
    if more is not None:
        more()
    return Card(
        title=target.absolute().name,
        base=loaded.info,
        repository=_repository(loaded),
        dtype=dtype,
        params=sum(p.numel() for p in loaded.model.parameters()),
        nbytes=weight_bytes(loaded.model),
        model_class=expected.model_class,
        command=command or f"prunebench.export(..., {str(target.name)!r})",
        needs=""
        if more is None
        else (
            "This family ties inputs to layer positions. Load it with PruneBench (--model-path), which re-maps them "
            "by the kept layers in config.json; plain loading is sure to be right for text only."
        ),
    )


def _repository(loaded: LoadedModel) -> str | None:
    """``ORG/NAME`` of the base model where it came from the hub: its name says so, or its folder in the hub's cache."""
    if loaded.info.name.count("/") == 1:
        return loaded.info.name
    parts = loaded.path.absolute().parts if loaded.path is not None else ()
    found = next((part for part in parts if part.startswith("models--")), "")
    return "/".join(found.split("--")[1:3]) if found.count("--") >= 2 else None
