"""What a pruned model takes of the dense one: bytes on disk, time, or parameters. No torch here."""

from __future__ import annotations

import math
from typing import Literal, get_args

from prunebench.budget import achieved
from prunebench.errors import BadParameter, UnknownName
from prunebench.kinds import is_thinned, keeps_shapes, params_zeroed
from prunebench.store import Record

__all__ = [
    "LACKING",
    "LEVELS",
    "QUANTITIES",
    "UNMEASURED",
    "Quantity",
    "check_quantity",
    "parse_levels",
    "share_of",
]

Quantity = Literal["bytes", "latency", "params"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
LEVELS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
"""Shares of the dense model, where none are asked for."""

UNMEASURED = "dense kernels"
"""How the time of a plan is known that was not timed: it is the dense model's."""

LACKING: dict[Quantity, str] = {
    "bytes": "no record holds the bytes of its weights: measure them with `prunebench run`",
    "latency": "no record was timed (masks run dense kernels, and are not): run methods that remove layers or widths "
    "without --no-latency",
    "params": "no record says how many parameters its plan takes",
}


def check_quantity(word: str) -> Quantity:
    """``bytes``, ``latency`` or ``params``.

    Raises:
        UnknownName: any other word.
    """
    if word not in QUANTITIES:
        raise UnknownName("quantity to match", word, QUANTITIES)
    return word  # type: ignore[return-value]


def parse_levels(text: str | None) -> tuple[float, ...]:
    """``0.9,0.75`` → shares of the dense model, largest first; the default levels for None.

    Raises:
        BadParameter: not numbers, or outside (0, 1].
    """
    if text is None:
        return LEVELS
    found = set()
    for word in text.split(","):
        try:
            level = float(word)
        except ValueError:
            level = math.nan
        if not 0 < level <= 1:
            raise BadParameter(
                f"a level is a share of the dense model in (0, 1], got {word.strip()!r}: write --levels 0.9,0.75"
            )
        found.add(level)
    return tuple(sorted(found, reverse=True))


def share_of(record: Record, quantity: Quantity) -> tuple[float, str] | None:
    """What the pruned model takes of the dense one, and how that is known; None where the record does not say.

    ``bytes``: all weights on disk, compressed where the record counted that, else plain. ``latency``: medians of
    generating from end to end; a plan that only makes weights zero and was not timed runs dense kernels and takes 1.0.
    ``params``: those that are neither removed nor zero.
    """
    if quantity == "bytes":
        return _bytes(record)
    if quantity == "latency":
        if record.latency is not None and record.latency.end_to_end.dense_median > 0:
            phase = record.latency.end_to_end
            return phase.median / phase.dense_median, "measured"
        same = record.plan is not None and is_thinned(record.kind) and keeps_shapes(record.plan)
        return (1.0, UNMEASURED) if same else None
    if record.plan is None:
        return None
    got = record.plan.budget.achieved if record.plan.budget is not None else None
    if got is None and record.kind == "layers":
        got = achieved(record.model, record.plan.removed_layers)
    if got is None or not record.model.model_params:
        return None
    return 1.0 - got.model_params - params_zeroed(got) / record.model.model_params, "counted"


def _bytes(record: Record) -> tuple[float, str] | None:
    memory = record.memory
    if memory is None:
        return None
    if memory.stored is not None and memory.dense_stored:
        if memory.stored_compressed is not None:
            return memory.stored_compressed / memory.dense_stored, "compressed"
        return memory.stored / memory.dense_stored, "plain"
    return (memory.weights / memory.dense_weights, "plain") if memory.dense_weights else None
