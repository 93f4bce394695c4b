"""The audio tower: BEATs (arXiv 2212.09058), a transformer over 16×16 patches of a log-mel spectrogram.

Post-norm layers with a scaled residual; a bucketed relative position bias, computed once and shared by all layers, is
gated per layer, head and position by the unscaled query.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["Beats", "BeatsConfig"]

FBANK_MEAN, FBANK_STD = 15.41663, 6.55582
MEL_BINS = 128


class BeatsConfig(PretrainedConfig):
    """Shape of the tower; the defaults are BEATs_iter3+, the official size.

    ``tie_word_embeddings`` is what lets transformers look at ``_tied_weights_keys``: the tower has no words.
    """

    model_type = "videollama2_beats"

    def __init__(
        self,
        embed_dim: int = 512,
        encoder_layers: int = 12,
        encoder_embed_dim: int = 768,
        encoder_ffn_embed_dim: int = 3072,
        encoder_attention_heads: int = 12,
        conv_pos: int = 128,
        conv_pos_groups: int = 16,
        num_buckets: int = 320,
        max_distance: int = 800,
        predictor_class: int = 527,
        input_patch_size: int = 16,
        **kwargs: Any,
    ) -> None:
        self.embed_dim = embed_dim
        self.encoder_layers = encoder_layers
        self.encoder_embed_dim = encoder_embed_dim
        self.encoder_ffn_embed_dim = encoder_ffn_embed_dim
        self.encoder_attention_heads = encoder_attention_heads
        self.conv_pos = conv_pos
        self.conv_pos_groups = conv_pos_groups
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.predictor_class = predictor_class
        self.input_patch_size = input_patch_size
        super().__init__(**{**kwargs, "tie_word_embeddings": True})


class PositionConv(nn.Module):
    """Grouped 1-d convolution whose weight is a direction times a magnitude per kernel step."""

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.kernel, self.groups = kernel, groups
        self.bias = nn.Parameter(torch.zeros(width))
        self.weight_g = nn.Parameter(torch.ones(1, 1, kernel))
        self.weight_v = nn.Parameter(torch.randn(width, width // groups, kernel))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width), padded so that N stays."""
        energy = self.weight_v.square().sum((0, 1), keepdim=True)
        weight = self.weight_g * self.weight_v * torch.rsqrt(energy + 1e-6)
        out = F.conv1d(x.transpose(1, 2), weight, self.bias, padding=self.kernel // 2, groups=self.groups)
        return out[..., : x.shape[1]].transpose(1, 2)


class BeatsAttention(nn.Module):
    """Self-attention with the gated relative position bias."""

    def __init__(self, config: BeatsConfig, bias: nn.Embedding) -> None:
        super().__init__()
        width, self.heads = config.encoder_embed_dim, config.encoder_attention_heads
        self.head_dim = width // self.heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.grep_linear = nn.Linear(self.head_dim, 8)
        self.grep_a = nn.Parameter(torch.ones(1, self.heads, 1, 1))
        self.relative_attention_bias = bias  # one table under the name of every layer

    def forward(self, x: Tensor, position_bias: Tensor) -> Tensor:
        """(B, N, width) with the shared bias (heads, N, N)."""
        query, key, value = (
            proj(x).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        first, second = self.grep_linear(query).unflatten(-1, (2, 4)).sum(-1, keepdim=True).sigmoid().unbind(-2)
        gate = first * (second * self.grep_a - 1.0) + 2.0  # (B, heads, N, 1)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=gate * position_bias)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class BeatsLayer(nn.Module):
    """Attention and feed-forward, each followed by a norm; the residual is scaled up (deep norm)."""

    def __init__(self, config: BeatsConfig, bias: nn.Embedding) -> None:
        super().__init__()
        width = config.encoder_embed_dim
        self.self_attn = BeatsAttention(config, bias)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.encoder_ffn_embed_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_embed_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.alpha = (2 * config.encoder_layers) ** 0.25

    def forward(self, x: Tensor, position_bias: Tensor) -> Tensor:
        x = self.self_attn_layer_norm(self.alpha * x + self.self_attn(x, position_bias))
        return self.final_layer_norm(self.alpha * x + self.fc2(F.gelu(self.fc1(x))))


class BeatsEncoder(nn.Module):
    """Positions by convolution, then the layers."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.num_buckets, self.max_distance = config.num_buckets, config.max_distance
        self.pos_conv = nn.Sequential(PositionConv(config.encoder_embed_dim, config.conv_pos, config.conv_pos_groups))
        bias = nn.Embedding(config.num_buckets, config.encoder_attention_heads)
        self.layers = nn.ModuleList([BeatsLayer(config, bias) for _ in range(config.encoder_layers)])
        self.layer_norm = nn.LayerNorm(config.encoder_embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer_norm(x + F.gelu(self.pos_conv(x)))
        buckets = relative_buckets(x.shape[1], self.num_buckets, self.max_distance).to(x.device)
        position_bias = self.layers[0].self_attn.relative_attention_bias(buckets).permute(2, 0, 1)
        for layer in self.layers:
            x = layer(x, position_bias)
        return x


class Beats(PreTrainedModel):
    """Filterbanks (B, frames, 128) → features (B, frames // 16 · 8, width), ordered by time, then frequency."""

    config_class = BeatsConfig
    base_model_prefix = ""
    main_input_name = "fbank"
    _no_split_modules = ["BeatsLayer"]  # noqa: RUF012 (transformers reads these from the class)

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__(config)
        patch = config.input_patch_size
        self.patch_embedding = nn.Conv2d(1, config.embed_dim, patch, stride=patch, bias=False)
        self.layer_norm = nn.LayerNorm(config.embed_dim)
        self.post_extract_proj = nn.Linear(config.embed_dim, config.encoder_embed_dim)
        self.encoder = BeatsEncoder(config)
        self.predictor = nn.Linear(config.encoder_embed_dim, config.predictor_class)  # stored, never used
        shared = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
        self._tied_weights_keys = {shared.format(layer): shared.format(0) for layer in range(1, config.encoder_layers)}
        self.post_init()

    def forward(self, fbank: Tensor) -> Tensor:
        x = (fbank - FBANK_MEAN) / (2 * FBANK_STD)
        x = self.patch_embedding(x.unsqueeze(1).to(self.patch_embedding.weight.dtype))
        return self.encoder(self.post_extract_proj(self.layer_norm(x.flatten(2).transpose(1, 2))))


def relative_buckets(n: int, num_buckets: int, max_distance: int) -> Tensor:
    """Bucket of every pair (query, key) as int64 (n, n): half for keys ahead; exact up close, then log-spaced."""
    steps = torch.arange(n)
    offset = steps[None, :] - steps[:, None]
    half = num_buckets // 2
    exact = half // 2
    distance = offset.abs()
    ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (ratio * (half - exact)).long()).clamp(max=half - 1)
    return (offset > 0).long() * half + torch.where(distance < exact, distance, far)
