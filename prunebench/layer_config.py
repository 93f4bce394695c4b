"""What a configuration says about single decoder layers, and what it has to say once some of them are gone.

Masks, rotary embeddings and caches are chosen by a layer's position in these attributes, and a saved model is rebuilt
from them: a stale one changes answers in silence. What cannot be said anew exactly is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from prunebench.errors import PlanError

__all__ = ["LAYER_INDEX_LISTS", "PER_LAYER_LISTS", "config_changes", "module_changes"]

PER_LAYER_LISTS = (
    "layer_types",
    "no_rope_layers",
    "mlp_layer_types",
    "attention_layer_types",
    "layers_block_type",
    "block_types",
    "block_configs",
    "hybrid_override_pattern",
    "layer_rope_theta",
    "num_attention_heads_per_layer",
    "num_key_value_heads_per_layer",
)
"""Attributes with one entry per layer. An allow-list: a list may have the model's depth by chance."""

LAYER_INDEX_LISTS = ("cross_attention_layers", "full_attn_idxs", "mlp_only_layers", "moe_layers")
"""Attributes that name layers by their index; the decoder module may hold a copy of its own."""

PREFIX_COUNTS = ("first_k_dense_replace", "num_dense_layers")
"""Attributes that say how many layers at the beginning are of one kind."""

PERIODS = {
    "attn_layer_period": (None, 0, 1),
    "expert_layer_period": (None, 0, 1),
    "moe_layer_freq": (None, 0, 1),
    "num_kv_shared_layers": (None, 0),
}
"""Attributes that tie a layer's kind to its position, with the values at which all layers are alike."""

WITHOUT_KEYS = ("linear_attention", "conv", "mamba", "recurrent")
"""Layer types that keep a state instead of keys and values."""

_POSITIONAL = re.compile(r"layer|block|pattern|moe|mlp")


def config_changes(config: Any, kept: Sequence[int], n_layers: int) -> dict[str, Any]:
    """New values of the decoder's configuration, in the order in which they have to be set.

    Args:
        config: the configuration object that the decoder reads; it is not changed.
        kept: original ids of the layers that stay, ascending.
        n_layers: layers before.

    Raises:
        PlanError: the architecture ties layers to their position in a way that cannot be said for `kept` alone.
    """
    kind = getattr(config, "model_type", type(config).__name__)
    for name, neutral in PERIODS.items():
        if (value := getattr(config, name, None)) not in neutral:
            raise PlanError(
                f"layers of {kind!r} are of a kind by their position ({name}={value!r}): "
                "removing any would turn the others into another kind after a reload, so it is refused"
            )
    changes: dict[str, Any] = _kinds_of_experts(config, kept, n_layers)
    for name in PER_LAYER_LISTS:
        value = _own(config, name)
        if isinstance(value, (list, tuple, str)) and len(value) == n_layers:
            part = [value[layer] for layer in kept]
            changes[name] = "".join(part) if isinstance(value, str) else type(value)(part)
    for name in LAYER_INDEX_LISTS:
        if name not in changes and isinstance(value := _own(config, name), (list, tuple)):
            changes[name] = _renumbered(value, kept)
    for name in PREFIX_COUNTS:
        if isinstance(value := _own(config, name), int):
            changes[name] = sum(layer < value for layer in kept)
    _refuse_unknown(config, n_layers, kind)
    _refuse_no_keys(config, changes, kind)
    changes["num_hidden_layers"] = len(kept)  # last: transformers checks the lists against it when it writes them
    return changes


def module_changes(decoder: Any, kept: Sequence[int], n_layers: int) -> dict[str, Any]:
    """New values of the copies that the decoder module itself holds."""
    changes: dict[str, Any] = {}
    for name in LAYER_INDEX_LISTS:
        if isinstance(value := vars(decoder).get(name), (list, tuple)):
            changes[name] = _renumbered(value, kept)
    for name in PER_LAYER_LISTS:
        value = vars(decoder).get(name)
        if isinstance(value, (list, tuple)) and len(value) == n_layers:
            changes[name] = type(value)(value[layer] for layer in kept)
    return changes


def _renumbered(value: Sequence[int], kept: Sequence[int]) -> Any:
    position = {layer: index for index, layer in enumerate(kept)}
    return type(value)(position[layer] for layer in value if layer in position)  # type: ignore[call-arg]


def _own(config: Any, name: str) -> Any:
    """The attribute, unless it is computed from others."""
    if isinstance(getattr(type(config), name, None), property):
        return None
    return getattr(config, name, None)


def _kinds_of_experts(config: Any, kept: Sequence[int], n_layers: int) -> dict[str, Any]:
    """A step between expert layers said as the list of layers without experts, which any subset can be said by."""
    step = _own(config, "decoder_sparse_step")
    if not isinstance(step, int) or step <= 1:
        return {}
    dense = {layer for layer in range(n_layers) if (layer + 1) % step} | set(_own(config, "mlp_only_layers") or ())
    return {"decoder_sparse_step": 1, "mlp_only_layers": _renumbered(sorted(dense), kept)}


def _refuse_unknown(config: Any, n_layers: int, kind: str) -> None:
    known = {*PER_LAYER_LISTS, *LAYER_INDEX_LISTS}
    for name, value in vars(config).items():
        if name in known or name.startswith("_") or not _POSITIONAL.search(name):
            continue
        if not isinstance(value, (list, tuple)) or not value:
            continue
        indices = all(isinstance(item, int) and not isinstance(item, bool) for item in value) and "layer" in name
        if len(value) == n_layers or indices:
            raise PlanError(
                f"{name!r} in the configuration of {kind!r} may speak of single layers, and nothing here knows how: "
                "an adapter of its own is needed to prune this model"
            )


def _refuse_no_keys(config: Any, changes: dict[str, Any], kind: str) -> None:
    """Caches of hybrid models count tokens by a layer that has keys: one has to stay."""
    before, after = _own(config, "layer_types"), changes.get("layer_types")
    if not after or not any(entry in WITHOUT_KEYS for entry in before):
        return
    if all(entry in WITHOUT_KEYS for entry in after):
        raise PlanError(
            f"the plan removes every attention layer of the hybrid model {kind!r}: "
            "its cache counts tokens by one, so at least one has to stay"
        )
