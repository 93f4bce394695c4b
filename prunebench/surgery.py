"""The only place that changes a model.

Removing a decoder layer takes more than deleting it from the list: the key-value cache is indexed by `layer_idx`, and
configurations hold per-layer lists that masks are chosen from by position, or name layers by index. Leaving one of
these out breaks generation or, worse, changes answers in silence. The procedure below holds for the transformers
families that keep their decoder layers in one `nn.ModuleList`; what a family needs beyond it is its adapter's
`layers_removed`.

Weights are never written to: an operation that changes some puts new parameters in the place of old ones, and undoing
it puts the old ones back, the very same objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prunebench.cache_slots import cache_kinds, cache_slots
from prunebench.errors import PlanError
from prunebench.layer_config import LAYER_INDEX_LISTS, PER_LAYER_LISTS, config_changes, module_changes
from prunebench.layer_parts import layer_parts, need_part
from prunebench.ops import (
    DropLayer,
    Fold,
    Mask,
    Merge,
    ReplaceBlock,
    SetWeights,
    Slice,
    canonical_ops,
    without_attention,
)
from prunebench.plan import Plan

if TYPE_CHECKING:
    from torch import nn

    from prunebench.adapter import LoadedModel

__all__ = ["LAYER_INDEX_LISTS", "PER_LAYER_LISTS", "apply_plan", "check_fits", "prune", "pruned", "record_kept"]

MARK = "prunebench_applied"
"""Attribute of a decoder whose layers were changed, not only removed: the digest of the plan."""


@contextmanager
def pruned(loaded: LoadedModel, plan: Plan) -> Iterator[LoadedModel]:
    """Apply `plan` for the length of a ``with`` block; the model is as before afterwards, also if the body raises.

    No weight is changed, and none copied but those that an operation makes anew: dropping layers and undoing it cost
    nothing, so many plans can be evaluated on one model.

    Raises:
        PlanError: the plan was made for another model, or an operation does not fit.
    """
    check_fits(loaded, plan)
    undo = _apply(loaded, plan)
    try:
        yield loaded
    finally:
        undo()


def prune(loaded: LoadedModel, plan: Plan) -> LoadedModel:
    """Apply `plan` for good. The removed layers are released, and ``save_pretrained`` writes a smaller checkpoint.

    The original ids of the layers that stayed are kept in the configuration under ``prunebench``, and so are widths
    that it has no other words for. A model that has lost a part of a layer, or holds a module of another kind, is not
    rebuilt by plain ``from_pretrained``: load the dense checkpoint with the plan instead.

    Raises:
        PlanError: as `pruned`; also if the model has lost layers before.
    """
    check_fits(loaded, plan)
    _apply(loaded, plan)
    if not plan.is_empty:
        from prunebench.checkpoint.narrowing import record_pruned

        record_pruned(loaded.model, loaded.adapter.text_config(loaded.model), plan, loaded.adapter.decoder)
    return loaded


def record_kept(config: Any, plan: Plan) -> None:
    """Write which layers stayed into `config` under ``prunebench``, as ids of the model that was never pruned.

    A checkpoint that was pruned before says which of those its layers are; the new plan counts from there.
    """
    before = getattr(config, "prunebench", None) or {}
    origin = before.get("kept_layers", list(range(plan.target.n_layers)))
    removed = {*before.get("removed_layers", ()), *(origin[layer] for layer in plan.removed_layers)}
    config.prunebench = {
        "kept_layers": [origin[layer] for layer in plan.kept_layers],
        "removed_layers": sorted(removed),
        "plan_digest": plan.digest,
    }
    words = {op.op for op in canonical_ops(plan.ops) if not isinstance(op, DropLayer)}
    if words := words | set(before.get("operations", ())):
        config.prunebench["operations"] = sorted(words)


def check_fits(loaded: LoadedModel, plan: Plan) -> None:
    """Refuse a plan that was made for other weights or another depth, or that takes a protected layer.

    Raises:
        PlanError: with what differs.
    """
    if getattr(loaded.decoder, MARK, None) is not None:
        raise PlanError("the layers of this model were changed by a plan before: load the dense model")
    have = len(loaded.layers)
    if have != loaded.info.n_layers:
        raise PlanError(
            f"the plan is for {plan.target.n_layers} decoder layers, the model has {have}: load the dense model"
        )
    plan.check_target(loaded.info)


def _apply(loaded: LoadedModel, plan: Plan) -> Callable[[], None]:
    """Make the change, the family's own part of it too; returns a function that undoes it."""
    config = loaded.adapter.text_config(loaded.model)
    undo = apply_plan(loaded.decoder, config, plan, range(plan.target.n_layers))
    if not plan.removed_layers:
        return undo
    try:
        family_undo = loaded.adapter.layers_removed(loaded.model, plan.kept_layers)
    except BaseException:
        undo()
        raise

    def undo_both() -> None:
        try:
            if family_undo:
                family_undo()
        finally:
            undo()

    return undo_both


class _Changes:
    """Attributes that were set, so that they can be set back; `for_good` they cannot, and nothing old is held."""

    def __init__(self, for_good: bool = False) -> None:
        self._for_good = for_good
        self._log: list[Callable[[], None]] = []

    def assign(self, owner: Any, name: str, value: Any) -> None:
        if self._for_good:
            pass
        elif hasattr(owner, name):
            before = getattr(owner, name)
            self._log.append(lambda: setattr(owner, name, before))
        else:
            self._log.append(lambda: delattr(owner, name))
        setattr(owner, name, value)

    def undo(self) -> None:
        while self._log:
            self._log.pop()()


def apply_plan(
    decoder: nn.Module, config: Any, plan: Plan, present: Sequence[int], *, for_good: bool = False
) -> Callable[[], None]:
    """Do what `plan` says to the layers of a decoder; returns a function that undoes it.

    `pruned` and `prune` check that plan and model fit; this is their common part, and that of loading with a plan.

    Args:
        decoder: the module with ``layers``.
        config: the configuration that it reads.
        plan: what to do; original ids.
        present: original ids of the layers that the decoder has, ascending: all, or those that were loaded.
        for_good: let go of old weights as soon as new ones stand in their place, so that memory never holds both of
            all layers; what is returned then does nothing.

    Raises:
        PlanError: an operation does not fit the model, which is then as it was (`for_good`: half changed, of no use).
    """
    import torch

    changes = _Changes(for_good)
    if plan.is_empty:
        return changes.undo
    try:
        with torch.inference_mode(False), torch.no_grad():
            _change_layers(decoder, config, plan, list(present), changes)
    except BaseException:
        changes.undo()
        raise
    return changes.undo


def _change_layers(decoder: Any, config: Any, plan: Plan, present: list[int], changes: _Changes) -> None:
    from torch import nn

    at = dict(zip(present, decoder.layers, strict=True))
    kept = plan.kept_layers
    positions = [present.index(layer) for layer in kept]
    goes = len(positions) < len(present)
    # Looked at first: what cannot be said of the layers that stay is refused before anything is made.
    new_config = config_changes(config, positions, len(present)) if goes else {}
    new_attributes = module_changes(decoder, positions, len(present)) if goes else {}
    standing = {layer: at[layer] for layer in kept}
    if not plan.only_drops:
        _change_weights(plan, config, at, standing, changes)
        changes.assign(decoder, MARK, plan.digest)
    if goes or any(standing[layer] is not at[layer] for layer in kept):
        changes.assign(decoder, "layers", nn.ModuleList([standing[layer] for layer in kept]))
    for owner, values in ((decoder, new_attributes), (config, new_config)):
        for name, value in values.items():
            changes.assign(owner, name, value)
    _number(plan, decoder, config, standing, changes)


def _change_weights(
    plan: Plan, config: Any, at: Mapping[int, nn.Module], standing: dict[int, nn.Module], changes: _Changes
) -> None:
    """Everything but dropping whole layers, in the order that `prunebench.ops` states; `standing` gets new layers."""
    from torch import nn

    from prunebench.surgery_modules import NoPart, replacement
    from prunebench.surgery_slices import masked, sliced
    from prunebench.surgery_weights import folded, given, merged, put, shared_modules

    tensors, ops = plan.need_tensors(), canonical_ops(plan.ops)
    shared = shared_modules(standing.values())
    for op in ops:
        if isinstance(op, ReplaceBlock):
            _refuse_cross_attention(op.start, at, config, op.module != "decoder_layer")
            standing[op.start] = replacement(op, at[op.start], config, tensors.group(op.tensors))
    for op in ops:
        if isinstance(op, Merge):
            put(at[op.into], op.into, merged(op, at), shared, changes)
    for layer, name in plan.removed_sublayers:
        part = need_part(at[layer], layer, name)
        _refuse_cross_attention(layer, at, config, name == "attention")
        if id(at[layer]) in shared:
            raise PlanError(f"layer {layer} is the same module as another layer: it cannot be changed alone")
        before = getattr(at[layer], part.child)
        changes.assign(at[layer], part.child, NoPart(before, part).train(before.training))
        for norm in part.norms:
            changes.assign(at[layer], norm, nn.Identity())
    for op in ops:
        if isinstance(op, Slice):
            smaller, settings = sliced(op, standing[op.layer], config, tensors.group(op.tensors))
            put(standing[op.layer], op.layer, smaller, shared, changes)
            for owner, name, value in settings:
                changes.assign(owner, name, value)
    for op in sorted((op for op in ops if isinstance(op, Fold)), key=lambda op: op.side, reverse=True):
        layer = standing[op.layer]
        put(layer, op.layer, folded(op, layer, tensors.torch(op.tensor)), shared, changes, tied=False)
    for op in ops:
        if isinstance(op, SetWeights):
            layer = standing[op.layer]
            put(layer, op.layer, given(op, layer, tensors.group(op.tensors)), shared, changes)
    for op in ops:
        if isinstance(op, Mask):
            layer = standing[op.layer]
            put(layer, op.layer, masked(op, layer, tensors.group(op.tensors)), shared, changes)


def _refuse_cross_attention(layer: int, at: Mapping[int, nn.Module], config: Any, takes_attention: bool) -> None:
    """A decoder passes over such a layer where nothing was put into its cache: it needs its attention to run at all."""
    crossed = getattr(config, "cross_attention_layers", None) or ()
    if takes_attention and list(at).index(layer) in crossed:
        raise PlanError(f"layer {layer} is a cross-attention layer: it runs with its attention or not at all, drop it")


def _number(plan: Plan, decoder: Any, config: Any, standing: Mapping[int, nn.Module], changes: _Changes) -> None:
    """Give each layer its position, and each attention its place in the cache."""
    without = without_attention(plan.ops)
    slots: list[int | None] = list(range(len(standing)))
    if without:
        kinds = cache_kinds(config, len(standing))
        crossed = getattr(config, "cross_attention_layers", None) or ()
        slots, said = cache_slots([layer not in without for layer in standing], kinds, crossed)
        if said is not None and said != kinds:
            changes.assign(config, "layer_types", type(config.layer_types)(said))
    for position, (layer, slot) in enumerate(zip(standing.values(), slots, strict=True)):
        part = layer_parts(layer).get("attention") if without and slot is not None else None
        mixers = set(getattr(layer, part.child).modules()) if part else set(layer.modules()) - {layer}
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                changes.assign(module, "layer_idx", position if slot is None or module not in mixers else slot)
