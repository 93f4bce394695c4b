"""Plans that narrow and mask layers of a model at hand, by seeded chance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from prunebench.bits import pack
from prunebench.coupled import coupled_groups

__all__ = ["Keeps", "masks", "slices", "zeroed_columns"]

Keeps = dict[tuple[int, str], torch.Tensor]


def slices(
    loaded: Any, layers: Iterable[int], counts: Mapping[str, int], seed: int = 0
) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor], Keeps]:
    """Operations, their tensors, and what stays: (layer, ``heads`` or ``channels``) → (groups,) bool.

    Args:
        loaded: the model.
        layers: which layers; those without such groups are left out.
        counts: ``heads`` or ``channels`` → how many stay.
        seed: of the choice.
    """
    generator = torch.Generator().manual_seed(seed)
    config = loaded.adapter.text_config(loaded.model)
    ops, tensors, keeps = [], {}, {}
    for number in layers:
        groups = coupled_groups(loaded.layers[number], config)
        op: dict[str, Any] = {"op": "slice", "layer": number, "tensors": f"s{number}", "params_removed": 0}
        for word, count in counts.items():
            if (found := getattr(groups, word)) is None:
                continue
            keep = torch.zeros(found.groups, dtype=torch.bool)
            keep[torch.randperm(found.groups, generator=generator)[:count]] = True
            keeps[number, word] = keep
            tensors[f"s{number}.{word}"] = pack(keep)
            op[word] = (count, found.groups)
            op["params_removed"] += (found.groups - count) * found.params_per_group
        ops += [op] if len(op) > 4 else []
    return ops, tensors, keeps


def masks(
    loaded: Any, layers: Iterable[int], share: float = 0.5, seed: int = 0
) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Operations that zero `share` of every linear module's weights, their tensors, and the masks by the same names."""
    generator = torch.Generator().manual_seed(seed)
    ops, tensors, keeps = [], {}, {}
    for number in layers:
        zeros = 0
        for name, module in loaded.layers[number].named_modules():
            if isinstance(module, nn.Linear):
                keep = torch.rand(module.weight.shape, generator=generator) >= share
                keeps[f"m{number}.{name}.weight"], zeros = keep, zeros + int((~keep).sum())
                tensors[f"m{number}.{name}.weight"] = pack(keep)
        ops.append({"op": "mask", "layer": number, "tensors": f"m{number}", "zeros": zeros})
    return ops, tensors, keeps


class zeroed_columns:
    """The same model with zeros in the columns that lead out of the groups that `keeps` leaves out: a second way."""

    def __init__(self, loaded: Any, keeps: Keeps) -> None:
        self.loaded, self.keeps, self.undo = loaded, keeps, []

    def __enter__(self) -> Any:
        for (number, word), keep in self.keeps.items():
            layer = self.loaded.layers[number]
            names = ("o_proj", "out_proj") if word == "heads" else ("down_proj", "w2", "fc2")
            module = next(m for path, m in layer.named_modules() if path.rpartition(".")[2] in names)
            assert module.in_features % len(keep) == 0
            columns = keep.repeat_interleave(module.in_features // len(keep))
            self.undo.append((module, module.weight))
            module.weight = nn.Parameter(module.weight.detach() * columns)
        return self.loaded

    def __exit__(self, *_: object) -> None:
        for module, weight in self.undo:
            module.weight = weight
