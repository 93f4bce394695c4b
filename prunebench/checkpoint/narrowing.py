"""Checkpoints whose decoder layers are of other widths than their configuration says.

Where all layers were narrowed alike, config.json can say so, and plain ``from_pretrained`` loads what was saved. Where
they were not, it has no words for that (transformers' ``per_layer_config`` is not read by the decoders that are pruned
here): ``prunebench.widths`` in config.json then names the groups that each layer has left, and the model is narrowed
as it is built, before a weight is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunebench.adapter import find_decoder as usual_decoder
from prunebench.checkpoint.files import read_json
from prunebench.coupled import WIDTHS, CoupledGroups, coupled_groups
from prunebench.errors import ModelError, PlanError, UsageError, first_line
from prunebench.ops import Slice
from prunebench.plan import Plan

if TYPE_CHECKING:
    from torch import nn

__all__ = ["check_reloads", "folder_class", "narrowed_class", "record_pruned", "saved_widths"]

Widths = dict[int, dict[str, int]]
"""Position of a layer in the checkpoint → ``heads`` (key-value heads) and ``channels`` that it has."""


def saved_widths(config: Any, kept: Sequence[int] | None = None) -> Widths:
    """What a configuration says of layers that are narrower than the rest of it says.

    Args:
        config: of the whole model.
        kept: positions of the layers that are built; the result counts them anew. None takes all.

    Raises:
        ModelError: it is not readable.
    """
    said = (getattr(config, "prunebench", None) or {}).get("widths") or {}
    try:
        widths = {int(layer): {str(word): int(n) for word, n in pairs.items()} for layer, pairs in said.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError("prunebench.widths in config.json is damaged: fetch it anew") from error
    if kept is None:
        return widths
    return {new: widths[old] for new, old in enumerate(kept) if old in widths}


def narrowed_class(
    model_class: Any, widths: Widths, find_decoder: Callable[[nn.Module], nn.Module] | None = None
) -> Any:
    """A subclass that builds narrower layers; for the rest it is the class.

    Args:
        model_class: a ``PreTrainedModel``.
        widths: as `saved_widths` gives them.
        find_decoder: module with ``layers`` of a model.
    """

    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, config, *args, **kwargs)
        _narrow((find_decoder or usual_decoder)(self), widths)

    own = {"__init__": build, "__module__": model_class.__module__, "__qualname__": model_class.__qualname__}
    return type(model_class.__name__, (model_class,), own)


def folder_class(model_class: Any, folder: str | Path) -> Any:
    """The class whose ``from_pretrained`` loads a folder with narrow layers: `narrowed_class` of what it says.

    Raises:
        ModelError: there is no config.json in it, or it is damaged.
    """
    from types import SimpleNamespace

    said = read_json(Path(folder) / "config.json").get("prunebench")
    return narrowed_class(model_class, saved_widths(SimpleNamespace(prunebench=said)))


def check_reloads(model: Any) -> bool:
    """Whether a narrowed model in memory needs PruneBench to be loaded again.

    Raises:
        UsageError: it could not be built again at all.
    """
    from prunebench.checkpoint.loading import meta_model

    if not saved_widths(model.config):
        return False
    try:
        again = meta_model(type(model), type(model.config).from_dict(model.config.to_dict()), "float32")
        shapes = {name: tensor.shape for name, tensor in again.state_dict().items()}
        fits, why = shapes == {name: tensor.shape for name, tensor in model.state_dict().items()}, "shapes differ"
    except Exception as error:  # whatever a class makes of its configuration
        fits, why = False, first_line(error)
    if not fits:
        raise UsageError(
            f"a {type(model).__name__} with layers of different widths cannot be exported ({why}): keep the plan, and "
            "load the model by prunebench.load(MODEL, plan=FILE)"
        )
    return True


def _narrow(decoder: Any, widths: Widths) -> None:
    import torch

    from prunebench.surgery_slices import cut

    for position, said in widths.items():
        if not 0 <= position < len(decoder.layers):
            raise ModelError(f"config.json says how wide layer {position} is, the model has {len(decoder.layers)}")
        layer = decoder.layers[position]
        groups = coupled_groups(layer, decoder.config)
        for word, kept in said.items():
            try:
                found = groups.need(word, position)  # type: ignore[arg-type]
            except (PlanError, AttributeError) as error:
                raise ModelError(f"the {word} of layer {position} that config.json counts: {error}") from error
            if not 1 <= kept <= found.groups:
                raise ModelError(f"config.json says {kept} {word} in layer {position}, there are {found.groups}")
            new, settings = cut(groups, word, layer, torch.arange(kept, device="cpu"))
            for name, value in new.items():
                path, _, own = name.rpartition(".")
                setattr(layer.get_submodule(path), own, value)
            for owner, name, size in settings:
                setattr(owner, name, size)


def record_pruned(
    model: Any, config: Any, plan: Plan, find_decoder: Callable[[nn.Module], nn.Module] | None = None
) -> None:
    """Make the configuration of a pruned model in memory say which layers stayed, and how wide they are.

    Args:
        model: the whole model, after surgery.
        config: of its decoder; gets the new widths where they are those of all layers and the class can be built of
            them. Otherwise ``prunebench.widths`` of the model's configuration gets those that differ.
        plan: what was done.
        find_decoder: module with ``layers`` of a model.
    """
    from prunebench.surgery import record_kept

    narrow = bool(saved_widths(model.config)) or any(isinstance(op, Slice) for op in plan.ops)
    record_kept(model.config, plan)
    if narrow:
        _record_widths(model, config, find_decoder or usual_decoder)


def _record_widths(model: Any, config: Any, find: Callable[[nn.Module], nn.Module]) -> None:
    decoder: Any = find(model)
    have = [coupled_groups(layer, config) for layer in decoder.layers]
    stated = _stated(model, find)
    for word in WIDTHS:
        if _counts(have, word) == _counts(stated, word):
            continue
        undo = _say_for_all(have, word, config)
        now = _stated(model, find)
        if _counts(now, word) != _counts(have, word) or now[0].head_dim != have[0].head_dim:
            undo()
    stated = _stated(model, find)
    widths: dict[str, dict[str, int]] = {}
    for word in WIDTHS:
        said = _counts(stated, word) if stated else [None] * len(have)
        for position, (real, other) in enumerate(zip(_counts(have, word), said, strict=True)):
            if real is not None and real != other:
                widths.setdefault(str(position), {})[word] = real
    if widths:
        model.config.prunebench = {**model.config.prunebench, "widths": dict(sorted(widths.items(), key=_number))}


def _number(item: tuple[str, Any]) -> int:
    return int(item[0])


def _counts(groups: Sequence[CoupledGroups], word: str) -> list[int | None]:
    return [found.groups if (found := getattr(each, word)) is not None else None for each in groups]


def _say_for_all(have: Sequence[CoupledGroups], word: str, config: Any) -> Callable[[], None]:
    """Put the width that all layers have into the configuration, where they have one; returns what takes it back."""
    counts = set(_counts(have, word))
    if len(counts) != 1 or None in counts:
        return lambda: None
    (count,) = counts
    values = {"intermediate_size": count}
    if word == "heads":
        values = {"head_dim": have[0].head_dim, "num_attention_heads": count * have[0].query_heads}  # type: ignore[operator]
        if hasattr(config, "num_key_value_heads"):
            values["num_key_value_heads"] = count
    before = {name: getattr(config, name) for name in values if hasattr(config, name)}
    for name, value in values.items():
        setattr(config, name, value)

    def undo() -> None:
        for name in values:
            setattr(config, name, before[name]) if name in before else delattr(config, name)

    return undo


def _stated(model: Any, find: Callable[[nn.Module], nn.Module]) -> list[CoupledGroups]:
    """The groups of the layers that the saved configuration alone would build; empty where it would build none."""
    from prunebench.checkpoint.loading import meta_model

    try:
        config = type(model.config).from_dict(model.config.to_dict())
        decoder: Any = find(meta_model(type(model), config, "float32"))
        return [coupled_groups(layer, decoder.config) for layer in decoder.layers]
    except Exception:  # whatever a class makes of numbers that it does not accept
        return []
