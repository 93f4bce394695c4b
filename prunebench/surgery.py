"""The only place that changes a model.

Removing a decoder layer takes more than deleting it from the list: the key-value cache is indexed by `layer_idx`, and
configurations hold per-layer lists that masks are chosen from by position, or name layers by index. Leaving one of
these out breaks generation or, worse, changes answers in silence. The procedure below holds for the transformers
families that keep their decoder layers in one `nn.ModuleList`; what a family needs beyond it is its adapter's
`layers_removed`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prunebench.errors import PlanError
from prunebench.layer_config import LAYER_INDEX_LISTS, PER_LAYER_LISTS, config_changes, module_changes
from prunebench.plan import Plan

if TYPE_CHECKING:
    from prunebench.adapter import LoadedModel

__all__ = ["LAYER_INDEX_LISTS", "PER_LAYER_LISTS", "check_fits", "prune", "pruned", "record_kept"]


@contextmanager
def pruned(loaded: LoadedModel, plan: Plan) -> Iterator[LoadedModel]:
    """Apply `plan` for the length of a ``with`` block; the model is as before afterwards, also if the body raises.

    No weight is copied or changed: applying and undoing cost nothing, so many plans can be evaluated on one model.

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

    The original ids of the layers that stayed are kept in the configuration under ``prunebench``.

    Raises:
        PlanError: as `pruned`; also if the model has lost layers before.
    """
    check_fits(loaded, plan)
    _apply(loaded, plan)
    if not plan.is_empty:
        record_kept(loaded.model.config, plan)
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


def check_fits(loaded: LoadedModel, plan: Plan) -> None:
    """Refuse a plan that was made for other weights or another depth, or that takes a protected layer.

    Raises:
        PlanError: with what differs.
    """
    have = len(loaded.layers)
    if have != loaded.info.n_layers:
        raise PlanError(
            f"the plan is for {plan.target.n_layers} decoder layers, the model has {have}: load the dense model"
        )
    plan.check_target(loaded.info)


def _apply(loaded: LoadedModel, plan: Plan) -> Any:
    """Make the change; returns a function that undoes it."""
    from torch import nn

    if plan.is_empty:
        return lambda: None
    decoder, config = loaded.decoder, loaded.adapter.text_config(loaded.model)
    layers, kept = decoder.layers, plan.kept_layers
    new_config = config_changes(config, kept, len(layers))
    new_attributes = module_changes(decoder, kept, len(layers))
    undo_log: list[Callable[[], None]] = []

    def assign(owner: Any, name: str, value: Any) -> None:
        before = getattr(owner, name)
        undo_log.append(lambda: setattr(owner, name, before))
        setattr(owner, name, value)

    def undo() -> None:
        for step in reversed(undo_log):
            step()

    try:
        assign(decoder, "layers", nn.ModuleList([layers[layer] for layer in kept]))
        for position, layer in enumerate(kept):
            for module in layers[layer].modules():
                if isinstance(getattr(module, "layer_idx", None), int):
                    assign(module, "layer_idx", position)
        for name, value in new_attributes.items():
            assign(decoder, name, value)
        for name, value in new_config.items():
            assign(config, name, value)
        if family_undo := loaded.adapter.layers_removed(loaded.model, kept):
            undo_log.append(family_undo)
    except BaseException:
        undo()
        raise
    return undo
