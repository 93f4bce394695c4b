"""The spatial-temporal convolution connector: tower patches of all frames → tokens of the language model.

RegNet stage of four bottleneck blocks per frame, a strided 3-d convolution over time and space, a second stage, and a
two-layer readout (arXiv 2406.07476, section 2.2; block as in RegNet-Y, arXiv 2003.13678).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunebench.errors import ModelError

__all__ = ["PADDING", "StcConnector"]

PADDING = {"stc_connector": 1, "stc_connector_v35": 0}
"""Padding of the 3-d convolution: all that the two versions differ in."""

DEPTH = 4
SE_RATIO = 0.25
EPS = 1e-5


class ChannelNorm(nn.Module):
    """Layer norm over the channels of (N, C, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        moved = x.permute(0, 2, 3, 1)
        return F.layer_norm(moved, moved.shape[-1:], self.weight, self.bias, EPS).permute(0, 3, 1, 2)


class ConvNorm(nn.Module):
    """Convolution without bias, then the norm that the checkpoints call ``bn``."""

    def __init__(self, width_in: int, width_out: int, kernel: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width_out, kernel, padding=kernel // 2, groups=groups, bias=False)
        self.bn = ChannelNorm(width_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class SqueezeExcite(nn.Module):
    """Each channel times a gate computed from the means of all channels."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc2(F.silu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * gate.sigmoid()


class Bottleneck(nn.Module):
    """1×1, depthwise 3×3, gate, 1×1, and the shortcut, (N, width_in, H, W) → (N, width, H, W)."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(width_in, width)
        self.conv2 = ConvNorm(width, width, kernel=3, groups=width)
        self.se = SqueezeExcite(width, round(width_in * SE_RATIO))
        self.conv3 = ConvNorm(width, width)
        self.downsample = ConvNorm(width_in, width) if width_in != width else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.silu(self.conv1(x))
        x = self.se(F.silu(self.conv2(x)))
        return F.silu(self.conv3(x) + shortcut)


class Stage(nn.Sequential):
    """Blocks ``b1`` to ``b4``."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        for number in range(1, DEPTH + 1):
            self.add_module(f"b{number}", Bottleneck(width_in if number == 1 else width, width))


class StcConnector(nn.Module):
    """Frame features → tokens for the language model.

    Args:
        kind: ``stc_connector`` (8 frames of 24×24 patches: 5·13·13 = 845 tokens) or ``stc_connector_v35`` (16 frames
            of 27×27: 8·13·13 = 1352).
        width_in: of the tower.
        width: of the language model.
    """

    def __init__(self, kind: str, width_in: int, width: int) -> None:
        super().__init__()
        if kind not in PADDING:
            raise ModelError(f"mm_projector_type {kind!r} is not supported: {' or '.join(PADDING)}")
        self.s1 = Stage(width_in, width)
        self.sampler = nn.Sequential(nn.Conv3d(width, width, 2, stride=2, padding=PADDING[kind]), nn.SiLU())
        self.s2 = Stage(width, width)
        self.readout = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, features: Tensor, repeat: int = 1) -> Tensor:
        """Features (B, frames, patches, width_in) → tokens (B, tokens, width), ordered by time, row, column.

        Args:
            features: of a square patch grid.
            repeat: each frame is taken this many times. An image is one frame repeated; what happens per frame is
                done once.
        """
        batch, frames, patches, width = features.shape
        side = math.isqrt(patches)
        if side * side != patches:
            raise ModelError(f"{patches} patches are not a square grid")
        x = features.reshape(batch * frames, side, side, width).permute(0, 3, 1, 2)
        x = self.s1(x)
        x = x.reshape(batch, frames, *x.shape[1:]).transpose(1, 2)  # (B, C, T, H, W)
        x = self.sampler(x.repeat_interleave(repeat, 2) if repeat > 1 else x)
        time = x.shape[2]
        x = self.s2(x.transpose(1, 2).flatten(0, 1))
        x = x.reshape(batch, time, *x.shape[1:]).permute(0, 1, 3, 4, 2)  # (B, T, H, W, C)
        return self.readout(x.flatten(1, 3))
