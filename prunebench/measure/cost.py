"""Costs that can be counted: parameters, bytes, prefill FLOPs and key-value bytes, per decoder layer and in all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunebench.coupled import coupled_groups
from prunebench.errors import ModelError
from prunebench.layer_parts import layer_parts
from prunebench.model_info import Cost, LayerCost, ModelInfo

if TYPE_CHECKING:
    from torch import nn

    from prunebench.adapter import ModelAdapter

__all__ = ["REFERENCE_TOKENS", "SAMPLED_ABOVE", "checkpoint_revision", "describe", "layer_cost", "weight_bytes"]

REFERENCE_TOKENS = 1024
"""Prompt length that prefill FLOPs are stated for."""

SAMPLED_ABOVE = 1 << 30
"""Bytes of weights from which a revision is no longer a hash of every byte."""

SAMPLE_BYTES = 4096
"""Bytes of each tensor that such a revision reads."""


def weight_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers, each storage counted once (tied weights)."""
    seen: dict[int, int] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        seen[tensor.data_ptr() if tensor.device.type != "meta" else id(tensor)] = tensor.numel() * tensor.element_size()
    return sum(seen.values())


def layer_cost(layer: nn.Module, config: Any, tokens: int = REFERENCE_TOKENS) -> LayerCost:
    """Cost of one decoder layer.

    Prefill FLOPs for T tokens: 2·T per weight of each linear map, plus 2·T·(T + 1)·heads·head_dim for the two products
    of causal attention (scores and values, T·(T + 1)/2 pairs, 2 FLOPs per multiply-add each).
    """
    heads = getattr(config, "num_attention_heads", 0) or 0
    head_dim = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    if (groups := coupled_groups(layer, config)).heads is not None:  # a layer may have fewer than the others
        heads, kv_heads, head_dim = groups.heads.groups * groups.query_heads, groups.heads.groups, groups.head_dim
    itemsize = next((p.element_size() for p in layer.parameters()), 4)
    products, kept = float(2 * tokens * (tokens + 1) * heads * head_dim), 2 * kv_heads * head_dim * itemsize
    whole = _cost([layer], tokens, products, kept)
    parts = {
        name: _cost(
            [getattr(layer, child) for child in part.modules],
            tokens,
            *((products, kept) if name == "attention" else (0.0, 0)),
        )
        for name, part in layer_parts(layer).items()
    }
    return LayerCost(**whole.model_dump(), **parts)


def _cost(modules: Sequence[nn.Module], tokens: int, products: float, kept: int) -> Cost:
    from torch import nn

    together = nn.ModuleList(modules)
    linear = sum(m.weight.numel() for m in together.modules() if isinstance(m, nn.Linear))
    return Cost(
        params=sum(p.numel() for p in together.parameters()),
        bytes=weight_bytes(together),
        prefill_flops=2 * tokens * linear + products,
        kv_bytes_per_token=kept,
    )


def describe(
    model: nn.Module, adapter: ModelAdapter, *, name: str, revision: str, dtype: str, **extra: Any
) -> ModelInfo:
    """Measure a dense model by counting."""
    decoder, config = adapter.decoder(model), adapter.text_config(model)
    layers = tuple(layer_cost(layer, config) for layer in decoder.layers)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    lm = {id(p): p for part in (decoder, head) if part is not None for p in part.parameters()}
    head_flops = 2.0 * REFERENCE_TOKENS * head.weight.numel() if head is not None else 0.0
    return ModelInfo(
        name=name,
        adapter=adapter.name,
        revision=revision,
        n_layers=len(layers),
        hidden_size=config.hidden_size,
        dtype=dtype,
        layers=layers,
        lm_params=sum(p.numel() for p in lm.values()),
        model_params=sum(p.numel() for p in model.parameters()),
        model_bytes=weight_bytes(model),
        lm_prefill_flops=sum(cost.prefill_flops for cost in layers) + head_flops,
        kv_bytes_per_token=sum(cost.kv_bytes_per_token for cost in layers),
        reference_tokens=REFERENCE_TOKENS,
        protected=adapter.protected_layers(model),
        modalities=adapter.modalities,
        linear_params=_linear_params(decoder.layers),
        **extra,
    )


def _linear_params(layers: nn.Module) -> int:
    from torch import nn

    weights = {id(m.weight): m.weight for m in layers.modules() if isinstance(m, nn.Linear)}
    return sum(weight.numel() for weight in weights.values())


def checkpoint_revision(folder: Path) -> str:
    """SHA-256 (hex) that identifies the weights and JSON files of a checkpoint folder, wherever it is copied to.

    Up to `SAMPLED_ABOVE` bytes of weights it runs over the names and bytes of all of these files. Above, a safetensors
    file counts by its size, its header and `SAMPLE_BYTES` from the middle of each of its tensors: other weights of the
    same shape differ there, a copy does not, and layers that a plan removes are not read for it.

    Raises:
        ModelError: there are no safetensors in it, or a large one is damaged.
    """
    files = sorted(p for p in Path(folder).iterdir() if p.suffix in {".safetensors", ".json"})
    weights = [p for p in files if p.suffix == ".safetensors"]
    if not weights:
        raise ModelError(f"{folder} holds no *.safetensors weights (pickled checkpoints are not loaded)")
    sampled = sum(p.stat().st_size for p in weights) > SAMPLED_ABOVE
    digest = hashlib.sha256(b"sampled\0" if sampled else b"")
    for path in files:
        digest.update(path.name.encode() + b"\0")
        if sampled and path.suffix == ".safetensors":
            _sample(path, digest.update)
            continue
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _sample(path: Path, update: Callable[[bytes], None]) -> None:
    """Feed size, header and the middle of each tensor of a safetensors file to `update`."""
    from prunebench.checkpoint.files import open_for_parts, read_header

    entries = sorted(read_header(path).items(), key=lambda item: item[1].offset)
    update(f"{path.stat().st_size}\0".encode())
    with open_for_parts(path) as file:
        update(file.read(min((entry.offset for _, entry in entries), default=0)))
        for _, entry in entries:
            length = min(entry.nbytes, SAMPLE_BYTES)
            file.seek(entry.offset + (entry.nbytes - length) // 2)
            update(file.read(length))
