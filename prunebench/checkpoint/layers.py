"""Which keys of a checkpoint are decoder layers, and what they are called once some of them are gone.

Keys in files are not module paths: the library renames families' keys while it loads and saves, and towers have layers
of their own. So the decoder's layers are found by what they are made of: of all groups ``PREFIX.layers.N.*`` the one
whose tensors have the names and shapes of the decoder's layers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunebench.checkpoint.files import Checkpoint
from prunebench.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["decoder_keys", "renumbered"]

_LAYER = re.compile(r"^(?P<prefix>(?:.*?\.)?layers\.)(?P<layer>\d+)\.(?P<rest>.+)$")


def decoder_keys(checkpoint: Checkpoint, model: nn.Module, decoder: nn.Module) -> dict[str, tuple[int, str]]:
    """Keys of the decoder's layers → (layer, the key with ``{}`` for the layer's number).

    Args:
        checkpoint: the files.
        model: the whole model; meta tensors will do.
        decoder: the part of it that holds ``layers``.

    Returns:
        Empty where no group of keys looks like the decoder's layers.

    Raises:
        ModelError: two groups fit equally well.
    """
    groups: dict[str, dict[str, tuple[int, str]]] = {}
    for key in checkpoint.tensors:
        if match := _LAYER.match(key):
            groups.setdefault(match["prefix"], {})[key] = (int(match["layer"]), match["rest"])
    expected = [{name: tuple(t.shape) for name, t in layer.state_dict().items()} for layer in decoder.layers]
    words = _words(next(name for name, module in model.named_modules() if module is decoder))

    def rank(prefix: str) -> tuple[int, int]:
        shapes = checkpoint.tensors
        fits = sum(
            layer < len(expected) and expected[layer].get(rest) == shapes[key].shape
            for key, (layer, rest) in groups[prefix].items()
        )
        return fits, -len(_words(prefix) ^ words)

    ranked = sorted(groups, key=rank, reverse=True)
    if not ranked or rank(ranked[0])[0] == 0:
        return {}
    if len(ranked) > 1 and rank(ranked[0]) == rank(ranked[1]):
        raise ModelError(
            f"cannot tell the decoder's layers in {checkpoint.folder}: {ranked[0]}* and {ranked[1]}* look alike"
        )
    best = ranked[0]
    return {key: (layer, f"{best}{{}}.{rest}") for key, (layer, rest) in groups[best].items()}


def renumbered(checkpoint: Checkpoint, layer_keys: dict[str, tuple[int, str]], kept: Sequence[int]) -> dict[str, str]:
    """Keys that are read when only `kept` layers stay → their names with the layers counted anew."""
    position = {layer: index for index, layer in enumerate(kept)}
    names = {}
    for key in checkpoint.tensors:
        if key not in layer_keys:
            names[key] = key
        elif layer_keys[key][0] in position:
            layer, pattern = layer_keys[key]
            names[key] = pattern.replace("{}", str(position[layer]))
    return names


def _words(path: str) -> frozenset[str]:
    return frozenset(path.split(".")) - {"", "model", "layers"}
