"""Which operations may speak of one layer; the head of `prunebench.ops` states the rules."""

from __future__ import annotations

from collections.abc import Sequence

from prunebench.ops import DropSublayer, Fold, Mask, Op, SetWeights, Slice, layers_touched, removed_layers

__all__ = ["check_overlap"]

_LATER = (Fold, SetWeights, Slice, Mask)
"""What is done to a layer that stays, after it is settled what the layer is."""

_ONCE = {SetWeights: "its weights are set twice", Slice: "it is sliced twice", Mask: "it is masked twice"}


def check_overlap(ops: Sequence[Op]) -> None:
    """Refuse operations that would get into each other's way (see the head of `prunebench.ops`).

    Raises:
        ValueError: naming the layer.
    """
    found: dict[int, list[Op]] = {}
    for op in ops:
        for layer in layers_touched(op):
            found.setdefault(layer, []).append(op)
    gone = removed_layers(ops)
    for layer, here in sorted(found.items()):
        made = [op for op in here if not isinstance(op, _LATER)]
        parts = [op.part for op in made if isinstance(op, DropSublayer)]
        if len(made) > 1 and not (len(parts) == len(made) == len(set(parts))):
            raise ValueError(f"two operations touch layer {layer}")
        if layer in gone and len(made) < len(here):
            raise ValueError(f"two operations touch layer {layer}: one removes it, the other sets its weights")
        if made and any(isinstance(op, Slice) for op in here):
            raise ValueError(f"two operations touch layer {layer}: {made[0].op} and slice do not go together")
        folds = [(op.module, op.side) for op in here if isinstance(op, Fold)]
        if twice := sorted(fold for fold in set(folds) if folds.count(fold) > 1):
            raise ValueError(
                f"two operations touch layer {layer}: {twice[0][0]} is folded twice on side {twice[0][1]!r}, "
                "multiply the matrices"
            )
        for kind, words in _ONCE.items():
            if sum(isinstance(op, kind) for op in here) > 1:
                raise ValueError(f"two operations touch layer {layer}: {words}")
