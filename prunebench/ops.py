"""The vocabulary of a plan: what can be done to a decoder layer, keyed by original 0-based layer ids.

Only the surgery gives these words meaning. A plan that holds an operation this version does not know is refused when it
is read, so a plan written by a newer version never half-applies.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["DropLayer", "Op", "layers_touched"]


class _Op(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DropLayer(_Op):
    """Remove decoder layer `layer` whole."""

    op: Literal["drop_layer"] = "drop_layer"
    layer: int = Field(ge=0)


# With a second operation this becomes a union that pydantic tells apart by the `op` word.
Op = DropLayer


def layers_touched(op: Op) -> frozenset[int]:
    """Original layer ids that `op` changes; two operations that share one are refused."""
    return frozenset({op.layer})
