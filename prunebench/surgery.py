"""The only place that changes a model.

Removing a decoder layer takes more than deleting it from the list: the key-value cache is indexed by `layer_idx`, and
configurations hold per-layer lists that masks are chosen from by position. Leaving one of these out breaks generation
or, worse, changes answers in silence. The procedure below holds for the transformers families that keep their decoder
layers in one `nn.ModuleList`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prunebench.errors import PlanError
from prunebench.plan import Plan

if TYPE_CHECKING:
    from prunebench.adapter import LoadedModel

__all__ = ["PER_LAYER_LISTS", "check_fits", "prune", "pruned"]

PER_LAYER_LISTS = (
    "layer_types",
    "no_rope_layers",
    "mlp_layer_types",
    "attention_layer_types",
    "layers_block_type",
    "block_types",
)
"""Configuration attributes with one entry per layer. An allow-list: a list may have the model's depth by chance."""


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
        loaded.model.config.prunebench = {
            "kept_layers": list(plan.kept_layers),
            "removed_layers": list(plan.removed_layers),
            "plan_digest": plan.digest,
        }
    return loaded


def check_fits(loaded: LoadedModel, plan: Plan) -> None:
    """Refuse a plan that was made for other weights or another depth, or that takes a protected layer.

    Raises:
        PlanError: with what differs.
    """
    info, target = loaded.info, plan.target
    if target.n_layers != info.n_layers or len(loaded.layers) != info.n_layers:
        have = len(loaded.layers)
        raise PlanError(f"the plan is for {target.n_layers} decoder layers, the model has {have}: load the dense model")
    if (target.model, target.revision) != (info.name, info.revision):
        raise PlanError(
            f"the plan was made for {target.model} ({target.revision[:12]}), "
            f"this is {info.name} ({info.revision[:12]}): plan anew"
        )
    if taken := sorted(set(plan.removed_layers) & set(info.protected)):
        raise PlanError(f"layer {taken[0]} of {info.name} cannot be removed: the architecture needs it")


def _apply(loaded: LoadedModel, plan: Plan) -> Any:
    """Make the change; returns a function that undoes it."""
    from torch import nn

    if plan.is_empty:
        return lambda: None
    decoder, config = loaded.decoder, loaded.adapter.text_config(loaded.model)
    layers, kept = decoder.layers, plan.kept_layers
    undo_log: list[tuple[Any, str, Any]] = []

    def assign(owner: Any, name: str, value: Any) -> None:
        undo_log.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def undo() -> None:
        for owner, name, value in reversed(undo_log):
            setattr(owner, name, value)

    try:
        assign(decoder, "layers", nn.ModuleList([layers[layer] for layer in kept]))
        for position, layer in enumerate(kept):
            for module in layers[layer].modules():
                if isinstance(getattr(module, "layer_idx", None), int):
                    assign(module, "layer_idx", position)
        # The count last: transformers checks per-layer lists against it when a configuration is written.
        for name in PER_LAYER_LISTS:
            value = getattr(config, name, None)
            if isinstance(value, (list, tuple)) and len(value) == len(layers):
                assign(config, name, type(value)(value[layer] for layer in kept))
        assign(config, "num_hidden_layers", len(kept))
    except BaseException:
        undo()
        raise
    return undo
