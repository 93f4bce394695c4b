"""What can be left out of a decoder: a layer, or the attention or the MLP of a layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from prunebench.errors import PlanError
from prunebench.ops import PARTS, Part

__all__ = ["Left", "Unit", "first_difference", "join", "left_out", "prefix", "several", "whole"]

Unit = int | tuple[int, Part]
"""A layer by its original 0-based id, or (layer, ``attention`` | ``mlp``)."""

Left = Mapping[int, frozenset[str]]
"""Layer → the parts of it that are left out, never empty; both parts are the whole layer."""


def left_out(units: Iterable[Unit], n_layers: int) -> dict[int, frozenset[str]]:
    """Units by layer.

    Raises:
        PlanError: a layer or a part that does not exist, or nothing that stays.
    """
    found: dict[int, frozenset[str]] = {}
    for unit in units:
        layer, parts = (int(unit[0]), (unit[1],)) if isinstance(unit, tuple) else (int(unit), PARTS)
        if not 0 <= layer < n_layers:
            raise PlanError(f"layer {layer} does not exist: the model has layers 0..{n_layers - 1}")
        if unknown := set(parts) - set(PARTS):
            raise PlanError(f"a layer has no part {unknown.pop()!r}: say attention or mlp")
        found[layer] = found.get(layer, frozenset()) | frozenset(parts)
    if sum(whole(parts) for parts in found.values()) >= n_layers:
        raise PlanError(f"all {n_layers} layers are left out: at least one has to stay")
    return found


def several(candidate: Unit | Sequence[Unit]) -> tuple[Unit, ...]:
    """A unit, or several: (3, "mlp") is one."""
    if isinstance(candidate, int | np.integer):
        return (int(candidate),)
    if len(candidate) == 2 and isinstance(candidate[1], str):
        return (candidate,)  # type: ignore[return-value]
    return tuple(candidate)  # type: ignore[arg-type]


def join(first: Iterable[Unit], second: Iterable[Unit]) -> tuple[Unit, ...]:
    """The units of both."""
    return (*first, *second)


def whole(parts: frozenset[str]) -> bool:
    """Whether these parts are all of a layer."""
    return len(parts) == len(PARTS)


def prefix(left: Left, boundary: int) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """What is left out in front of a boundary: all that the state there depends on besides the input."""
    return tuple((layer, tuple(sorted(parts))) for layer, parts in sorted(left.items()) if layer < boundary)


def first_difference(base: Left, left: Left) -> int:
    """The first layer where more is left out than in `base`; 0 where nothing is."""
    return min((layer for layer, parts in left.items() if parts != base.get(layer)), default=0)
