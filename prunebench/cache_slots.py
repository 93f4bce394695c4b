"""Which place in the key-value cache each layer has, once some layers hold no attention any more.

A cache has one place per layer, of the kind that the configuration says for that position, and it counts the tokens
seen at its first place and at the first one of each kind. So layers without attention must leave no hole there.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from prunebench.errors import PlanError
from prunebench.layer_config import WITHOUT_KEYS

__all__ = ["cache_kinds", "cache_slots"]

OTHER_LISTS = ("layers_block_type", "block_types", "hybrid_override_pattern", "attention_layer_types")
"""Lists that say what a layer keeps, in families whose caches are not made from ``layer_types``."""


def cache_kinds(config: Any, n_layers: int) -> tuple[str, ...] | None:
    """What each layer keeps in the cache, by the configuration; None where all keep the same.

    Raises:
        PlanError: the configuration says it in a way that is not known here.
    """
    if shared := getattr(config, "num_kv_shared_layers", None):
        raise PlanError(
            f"the last {shared} layers of {getattr(config, 'model_type', type(config).__name__)!r} read keys and "
            "values of layers before them: no layer can lose its attention alone"
        )
    kinds = vars(config).get("layer_types")
    if isinstance(kinds, (list, tuple)) and len(kinds) == n_layers:
        return tuple(kinds)
    computed = isinstance(getattr(type(config), "layer_types", None), property)
    if computed or any(getattr(config, name, None) for name in OTHER_LISTS):
        raise PlanError(
            f"what the layers of {getattr(config, 'model_type', type(config).__name__)!r} keep in the cache is fixed "
            "by their position: attention cannot be dropped alone, drop whole layers"
        )
    return None


def cache_slots(
    attention: Sequence[bool], kinds: Sequence[str] | None = None, pinned: Collection[int] = ()
) -> tuple[list[int | None], tuple[str, ...] | None]:
    """The place of each layer, and what the configuration has to say of all layers.

    Layers of one kind get the places of that kind in order. A layer without attention is said to be of the kind of the
    first layer that has keys (its mask is not looked at): so the first place and the first of each kind are filled.

    Args:
        attention: per position, whether the layer has attention (or another mixer that keeps a state).
        kinds: per position, what it keeps; None where all keep the same.
        pinned: positions that must have the place of their own number.

    Returns:
        Places, None for layers without one; and the kinds, with those of layers without attention changed.

    Raises:
        PlanError: no layer with keys is left to count tokens by.
    """
    said = list(kinds) if kinds is not None else ["all"] * len(attention)
    with_keys = [at for at, has in enumerate(attention) if has and at not in pinned and said[at] not in WITHOUT_KEYS]
    if not with_keys:
        raise PlanError("the plan leaves no layer with attention: the cache counts tokens by one, so keep at least one")
    said = [kind if has else said[with_keys[0]] for kind, has in zip(said, attention, strict=True)]
    free: dict[str, list[int]] = {}
    for at, kind in enumerate(said):
        if at not in pinned:
            free.setdefault(kind, []).append(at)
    slots: list[int | None] = []
    for at, has in enumerate(attention):
        slots.append(None if not has else at if at in pinned else free[said[at]].pop(0))
    return slots, tuple(said) if kinds is not None else None
