"""What a decoder layer can be narrowed by: rows and columns of its linear modules that only make sense together.

A head group is one key-value head with all query heads that read it: rows of the query, key and value projections and
columns of the output projection. An MLP channel is a row of every projection into the inner width and a column of the
one out of it. Removing all rows and columns of a group leaves the others' result as it was (LLM-Pruner, arXiv
2305.11627; groups by key-value heads keep the ratio of grouped-query attention).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from prunebench.errors import PlanError
from prunebench.layer_parts import part_names

if TYPE_CHECKING:
    from torch import nn

__all__ = ["WIDTHS", "CoupledGroups", "Coupling", "Member", "Width", "coupled_groups"]

Width = Literal["heads", "channels"]
WIDTHS: tuple[Width, ...] = ("heads", "channels")

QUERY, KEY, VALUE = ("q_proj",), ("k_proj",), ("v_proj",)
OUTPUT = ("o_proj", "out_proj", "dense")
MLPS = (
    ("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"), ("up_proj", "down_proj"), ("fc1", "fc2"),
    ("c_fc", "c_proj"), ("dense_h_to_4h", "dense_4h_to_h"),
)  # fmt: skip
"""What families call the projections into the inner width, and, last, the one out of it."""


@dataclass(frozen=True)
class Member:
    """Group g owns rows (``out``) or columns (``in``) [g · width, (g + 1) · width) of a linear module.

    Attributes:
        module: path in the layer, e.g. ``self_attn.q_proj``.
        axis: ``out`` for rows of the weight and entries of the bias, ``in`` for columns.
        width: how many of them.
    """

    module: str
    axis: Literal["out", "in"]
    width: int


@dataclass(frozen=True)
class Coupling:
    """The groups of one kind.

    Attributes:
        part: path of the module that holds them, e.g. ``self_attn``.
        groups: how many there are.
        members: where each of them lies.
        params_per_group: weights and biases that go with one.
    """

    part: str
    groups: int
    members: tuple[Member, ...]
    params_per_group: int


@dataclass(frozen=True)
class CoupledGroups:
    """The groups of one layer.

    Attributes:
        heads: one per key-value head, with its query heads; None where the attention cannot be narrowed.
        channels: of the MLP; None likewise.
        head_dim: numbers per head; 0 where unknown.
        query_heads: per key-value head.
        reasons: ``heads`` or ``channels`` → why there are none.
    """

    heads: Coupling | None
    channels: Coupling | None
    head_dim: int = 0
    query_heads: int = 0
    reasons: Mapping[str, str] = field(default_factory=dict)

    def need(self, width: Width, layer: int) -> Coupling:
        """The groups of a kind.

        Raises:
            PlanError: there are none; naming `layer`, the module, and why.
        """
        found: Coupling | None = getattr(self, width)
        if found is None:
            what = "heads cannot be taken out of" if width == "heads" else "channels cannot be taken out of the MLP of"
            raise PlanError(f"{what} layer {layer}: {self.reasons[width]}; remove layers or zero weights instead")
        return found


class _Unfit(Exception):
    """Why a part cannot be narrowed."""


def coupled_groups(layer: nn.Module, config: Any) -> CoupledGroups:
    """Which rows and columns of a layer belong together; meta tensors will do.

    Args:
        layer: a decoder layer.
        config: the decoder's configuration.
    """
    names = part_names(layer)
    reasons: dict[str, str] = {}
    found: dict[str, Coupling] = {}
    head_dim = query_heads = 0
    if names is None:
        reasons = dict.fromkeys(WIDTHS, f"{type(layer).__name__} has no attention and MLP that can be told apart")
        return CoupledGroups(None, None, reasons=reasons)
    try:
        found["heads"], head_dim, query_heads = _heads(layer, names[0], config)
    except _Unfit as unfit:
        reasons["heads"] = str(unfit)
    try:
        found["channels"] = _channels(layer, names[1])
    except _Unfit as unfit:
        reasons["channels"] = str(unfit)
    return CoupledGroups(found.get("heads"), found.get("channels"), head_dim, query_heads, reasons)


def _heads(layer: nn.Module, part: str, config: Any) -> tuple[Coupling, int, int]:
    if shared := getattr(config, "num_kv_shared_layers", None):
        raise _Unfit(f"keys and values of one layer are read by others (num_kv_shared_layers={shared})")
    attention = getattr(layer, part)
    linear = _linears(attention, part)
    paths = [_one(linear, names, part) for names in (QUERY, KEY, VALUE, OUTPUT)]
    q, k, v, o = (linear[path] for path in paths)
    size = getattr(attention, "head_dim", None) or getattr(config, "head_dim", None)
    size = int(size or config.hidden_size // config.num_attention_heads)
    rows = (q.out_features, k.out_features, v.out_features, o.in_features)
    fits = not any(n % size for n in rows) and rows[1] == rows[2] and rows[0] == rows[3] and rows[0] % rows[1] == 0
    if not fits:
        raise _Unfit(f"{part} has {rows} query, key, value and output features, which are not heads of {size}")
    _nothing_else(attention, part, [path.removeprefix(f"{part}.") for path in paths], size)
    ratio = rows[0] // rows[1]
    widths = (ratio * size, size, size, ratio * size)
    axes: tuple[Literal["out", "in"], ...] = ("out", "out", "out", "in")
    members = tuple(Member(*member) for member in zip(paths, axes, widths, strict=True))
    return Coupling(part, rows[1] // size, members, _params(linear, members)), size, ratio


def _channels(layer: nn.Module, part: str) -> Coupling:
    mlp = getattr(layer, part)
    linear = _linears(mlp, part)
    names = next((names for names in MLPS if all(f"{part}.{name}" in linear for name in names)), None)
    if names is None:
        inner = ", ".join(name.removeprefix(f"{part}.") for name in linear) or "none"
        raise _Unfit(f"{part} ({type(mlp).__name__}) is no plain MLP, its own linear modules are: {inner}")
    *into, out = (f"{part}.{name}" for name in names)
    inner_size = linear[out].in_features
    if any(linear[path].out_features != inner_size for path in into):
        raise _Unfit(f"{part} projects into other widths than the {inner_size} that {out} takes")
    _nothing_else(mlp, part, names, None)
    members = (*(Member(path, "out", 1) for path in into), Member(out, "in", 1))
    return Coupling(part, inner_size, members, _params(linear, members))


def _linears(module: nn.Module, part: str) -> dict[str, nn.Linear]:
    from torch import nn

    return {f"{part}.{name}": child for name, child in module.named_children() if isinstance(child, nn.Linear)}


def _one(linear: Mapping[str, nn.Linear], names: Sequence[str], part: str) -> str:
    for name in names:
        if (path := f"{part}.{name}") in linear:
            return path
    have = ", ".join(path.removeprefix(f"{part}.") for path in linear) or "none"
    raise _Unfit(f"{part} has no linear {' or '.join(names)} of its own (its linear modules: {have})")


def _nothing_else(module: nn.Module, part: str, known: Sequence[str], per_head: int | None) -> None:
    """Refuse parameters that may be laid out by heads or channels too; one norm that all heads share is none."""
    for name, parameter in module.named_parameters(remove_duplicate=False):
        own, of_a_list = name.rpartition(".")[0] in known, any(word.isdigit() for word in name.split("."))
        within = per_head is not None and "norm" in name and tuple(parameter.shape) == (per_head,) and not of_a_list
        if not own and not within:
            raise _Unfit(
                f"{part}.{name} {tuple(parameter.shape)} reaches over all of them, or nothing here knows how it is cut"
            )


def _params(linear: Mapping[str, nn.Linear], members: Sequence[Member]) -> int:
    total = 0
    for member in members:
        module = linear[member.module]
        across = module.in_features if member.axis == "out" else module.out_features
        total += member.width * (across + (member.axis == "out" and module.bias is not None))
    return total
