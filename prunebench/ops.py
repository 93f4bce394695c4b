"""The vocabulary of a plan: what can be done to a decoder layer, keyed by original 0-based layer ids.

Only the surgery gives these words meaning. A plan that holds an operation this version does not know is refused when it
is read, so a plan written by a newer version never half-applies.

The order of operations in a plan means nothing. What is done to one layer is done in this order: what the layer is
(`DropLayer`, `ReplaceBlock`, `Merge`, `DropSublayer`), then its widths (`Slice`), then matrices that are multiplied
into it (`Fold`), then the values of its parameters (`SetWeights`), then which of them become zero (`Mask`). So matrices
and values for a sliced layer have the sizes that slicing leaves. Operations that speak of one layer are refused
(`prunebench.overlap`), but for these:

- `DropSublayer` of attention and of the MLP: together they drop the layer whole;
- several `Fold` on one layer, each for another module or side;
- `Fold`, one `SetWeights` and one `Mask` on a layer that stays, whatever else is done to it;
- one `Slice` on a layer that stays with these, and with nothing that changes what the layer is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, FiniteFloat, Tag, model_validator

__all__ = [
    "PARTS",
    "DropLayer",
    "DropSublayer",
    "Fold",
    "Mask",
    "Merge",
    "Op",
    "Part",
    "ReplaceBlock",
    "SetWeights",
    "Slice",
    "canonical_ops",
    "layers_touched",
    "reads_bits",
    "removed_layers",
    "removed_sublayers",
    "tensor_names",
    "without_attention",
]

Part = Literal["attention", "mlp"]
PARTS: tuple[Part, ...] = ("attention", "mlp")

Layer = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*$")]
"""Of a tensor, of a group of tensors, or of a module inside a layer."""


class _Op(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DropLayer(_Op):
    """Remove decoder layer `layer` whole."""

    op: Literal["drop_layer"] = "drop_layer"
    layer: Layer


class DropSublayer(_Op):
    """Remove the attention or the MLP of `layer`, with the norms that serve it alone: the residual stream passes by."""

    op: Literal["drop_sublayer"] = "drop_sublayer"
    layer: Layer
    part: Part


class ReplaceBlock(_Op):
    """Put one module in the place of layers [start, stop): slot `start` gets it, the other layers go.

    ``decoder_layer`` is a layer of the class and configuration of layer `start`, with all its parameters given;
    ``ffn`` is down(activation(up(h))) with ``up.weight`` (f, d), ``down.weight`` (d, f), optional biases and the
    configuration's activation, without residual and norm; ``linear`` has ``weight`` (d, d) and an optional ``bias``.

    Attributes:
        start, stop: half-open range of original ids.
        module: what stands there.
        tensors: the parameters are the plan's tensors ``{tensors}.{parameter}``.
    """

    op: Literal["replace_block"] = "replace_block"
    start: Layer
    stop: Layer
    module: Literal["decoder_layer", "ffn", "linear"]
    tensors: Name

    @model_validator(mode="after")
    def _has_layers(self) -> ReplaceBlock:
        if self.stop <= self.start:
            raise ValueError(f"the block [{self.start}, {self.stop}) holds no layer")
        return self


class Fold(_Op):
    """Multiply a square matrix M into a linear module of `layer`.

    Attributes:
        layer: original id.
        module: path inside the layer, e.g. ``mlp.down_proj``.
        side: ``out`` makes W ← M W and b ← M b, ``in`` makes W ← W M.
        tensor: the plan's tensor that holds M.
    """

    op: Literal["fold"] = "fold"
    layer: Layer
    module: Name
    side: Literal["out", "in"]
    tensor: Name


class Merge(_Op):
    """θ_into ← Σ_k c_k θ_source_k; every source other than `into` goes.

    Attributes:
        into: original id of the layer that gets the sum.
        sources: original ids; `into` may be one of them.
        coefficients: one per source.
        parameters: shell patterns (``mlp.*``) of the parameters that are summed, the others stay; empty for all.
    """

    op: Literal["merge"] = "merge"
    into: Layer
    sources: tuple[Layer, ...] = Field(min_length=1)
    coefficients: tuple[FiniteFloat, ...]
    parameters: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _matches(self) -> Merge:
        if len(self.sources) != len(self.coefficients):
            raise ValueError(f"{len(self.coefficients)} coefficients for {len(self.sources)} layers to merge")
        if len(set(self.sources)) != len(self.sources):
            raise ValueError(f"a layer is merged twice into layer {self.into}: {list(self.sources)}")
        return self


class SetWeights(_Op):
    """Give parameters of `layer` new values: the plan's tensors ``{tensors}.{parameter}``; the others stay."""

    op: Literal["set_weights"] = "set_weights"
    layer: Layer
    tensors: Name


class Slice(_Op):
    """Take head groups and MLP channels out of `layer`: its matrices become smaller.

    A head group is one key-value head with all query heads that read it (see `prunebench.coupled`).

    Attributes:
        layer: original id.
        tensors: what stays is told by the bits of the plan's tensors ``{tensors}.heads`` (key-value heads) and
            ``{tensors}.channels``, uint8 as `prunebench.bits.pack` makes them.
        heads: (kept, of) key-value heads; None leaves the attention as it is.
        channels: (kept, of) MLP channels; None leaves the MLP as it is.
        params_removed: weights and biases that go.
    """

    op: Literal["slice"] = "slice"
    layer: Layer
    tensors: Name
    heads: tuple[int, int] | None = None
    channels: tuple[int, int] | None = None
    params_removed: int = Field(ge=0)

    @model_validator(mode="after")
    def _says_what(self) -> Slice:
        if self.heads is None and self.channels is None:
            raise ValueError(f"slice of layer {self.layer} names neither heads nor channels")
        for word, pair in self.widths().items():
            if not 1 <= pair[0] <= pair[1]:
                raise ValueError(f"slice of layer {self.layer} keeps {pair[0]} of {pair[1]} {word}: keep at least one")
        return self

    def widths(self) -> dict[str, tuple[int, int]]:
        """``heads`` and ``channels``, where they are sliced → (kept, of)."""
        both = {"heads": self.heads, "channels": self.channels}
        return {word: pair for word, pair in both.items() if pair is not None}


class Mask(_Op):
    """Make weights of `layer` zero; the shapes stay.

    Attributes:
        layer: original id.
        tensors: the plan's tensors ``{tensors}.{parameter}`` hold the bits of what stays, packed along the last axis
            of the parameter, uint8 as `prunebench.bits.pack` makes them; the other parameters stay.
        zeros: how many weights become zero in all.
        pattern: ``unstructured``, or ``N:M``: at most N stay of every M neighbours of a row.
    """

    op: Literal["mask"] = "mask"
    layer: Layer
    tensors: Name
    zeros: int = Field(ge=0)
    pattern: str = Field(default="unstructured", pattern=r"^(unstructured|[1-9]\d*:[1-9]\d*)$")


def _word(value: Any) -> str:
    word = value.get("op", "drop_layer") if isinstance(value, Mapping) else getattr(value, "op", None)
    return word if isinstance(word, str) else repr(word)


Op = Annotated[
    Annotated[DropLayer, Tag("drop_layer")]
    | Annotated[DropSublayer, Tag("drop_sublayer")]
    | Annotated[ReplaceBlock, Tag("replace_block")]
    | Annotated[Fold, Tag("fold")]
    | Annotated[Merge, Tag("merge")]
    | Annotated[SetWeights, Tag("set_weights")]
    | Annotated[Slice, Tag("slice")]
    | Annotated[Mask, Tag("mask")],
    Discriminator(_word),
]
"""Any of them; told apart by the word `op`."""


def layers_touched(op: Op) -> frozenset[int]:
    """Original ids of all layers that `op` removes or changes."""
    if isinstance(op, ReplaceBlock):
        return frozenset(range(op.start, op.stop))
    if isinstance(op, Merge):
        return frozenset({op.into, *op.sources})
    return frozenset({op.layer})


def _takes_whole(op: Op) -> frozenset[int]:
    if isinstance(op, DropLayer):
        return frozenset({op.layer})
    if isinstance(op, ReplaceBlock):
        return frozenset(range(op.start + 1, op.stop))
    if isinstance(op, Merge):
        return frozenset(op.sources) - {op.into}
    return frozenset()


def removed_layers(ops: Iterable[Op]) -> frozenset[int]:
    """Original ids of layers whose place in the decoder goes, also where that is said by both of their parts."""
    ops = list(ops)
    parts = {(op.layer, op.part) for op in ops if isinstance(op, DropSublayer)}
    both = {layer for layer, part in parts if part == "attention" and (layer, "mlp") in parts}
    return frozenset(both).union(*map(_takes_whole, ops))


def removed_sublayers(ops: Iterable[Op]) -> tuple[tuple[int, Part], ...]:
    """(original id, part) of the parts that go from layers that stay, ascending."""
    ops = list(ops)
    gone = removed_layers(ops)
    return tuple(sorted((op.layer, op.part) for op in ops if isinstance(op, DropSublayer) and op.layer not in gone))


def without_attention(ops: Iterable[Op]) -> frozenset[int]:
    """Original ids of the layers that keep their place, but hold no attention any more, and so no keys and values."""
    ops = list(ops)
    dropped = {layer for layer, part in removed_sublayers(ops) if part == "attention"}
    replaced = {op.start for op in ops if isinstance(op, ReplaceBlock) and op.module != "decoder_layer"}
    return frozenset(dropped | replaced)


def canonical_ops(ops: Iterable[Op]) -> list[Op]:
    """The same deeds in fewest words: both parts of a layer are the layer."""
    ops = list(ops)
    parts = [op for op in ops if isinstance(op, DropSublayer)]
    both = {op.layer for op in parts} & removed_layers(ops)
    rest = [op for op in ops if not (isinstance(op, DropSublayer) and op.layer in both)]
    return [*rest, *(DropLayer(layer=layer) for layer in sorted(both))]


def reads_bits(op: Op) -> bool:
    """Whether the tensors of `op` are packed bits, and not numbers."""
    return isinstance(op, (Mask, Slice))


def tensor_names(op: Op, known: Iterable[str]) -> list[str]:
    """Which of the plan's tensors `op` reads, ascending.

    Raises:
        ValueError: there is none.
    """
    if isinstance(op, Fold):
        if op.tensor in set(known):
            return [op.tensor]
        raise ValueError(f"{op.op} of layer {op.layer} needs the tensor {op.tensor!r}, which the plan does not hold")
    if isinstance(op, Slice):
        names = [f"{op.tensors}.{word}" for word in sorted(op.widths())]
        if missing := sorted(set(names) - set(known)):
            raise ValueError(f"slice of layer {op.layer} needs the tensor {missing[0]!r}, which the plan does not hold")
        return names
    if isinstance(op, (ReplaceBlock, SetWeights, Mask)):
        if names := sorted(name for name in known if name.startswith(f"{op.tensors}.")):
            return names
        layer = op.start if isinstance(op, ReplaceBlock) else op.layer
        raise ValueError(
            f"{op.op} of layer {layer} needs tensors '{op.tensors}.*', of which the plan does not hold one"
        )
    return []
