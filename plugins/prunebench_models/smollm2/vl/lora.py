"""Low-rank updates of linear layers (Hu et al., LoRA, arXiv 2106.09685), and what of a model is trained and shipped.

y = W x + (scale / rank) · B A x with A (rank, in) random, B (out, rank) zero at the start, W frozen. Merging adds
(scale / rank) · B A to W, after which the model is an ordinary one.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from prunebench_models.smollm2.vl.modeling import SmolLM2VL

__all__ = ["RANK", "SCALE", "LowRank", "add_low_rank", "merged_state", "shipped_state", "trained_parameters"]

RANK = 16
SCALE = 32.0
SHIPPED = ("vision_tower.", "vision_projector.", "frame_embedding.")


class LowRank(nn.Module):
    """A frozen linear layer with a trained update."""

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.base = base
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))
        self.factor = scale / rank

    def forward(self, x: Tensor) -> Tensor:
        narrow = nn.functional.linear(x, self.lora_a) * self.factor
        return self.base(x) + nn.functional.linear(narrow, self.lora_b)


def add_low_rank(model: SmolLM2VL, rank: int = RANK, scale: float = SCALE) -> None:
    """Put an update beside every linear layer of the decoder; freeze everything but these, projector and frames."""
    model.requires_grad_(False)
    for layer in model.get_decoder().layers:
        for block in (layer.self_attn, layer.mlp):
            for name, module in list(block.named_children()):
                if isinstance(module, nn.Linear):
                    setattr(block, name, LowRank(module, rank, scale).to(module.weight.device))
    model.vision_projector.requires_grad_(True)
    model.frame_embedding.requires_grad_(True)


def trained_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters that training changes."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def shipped_state(model: SmolLM2VL) -> dict[str, Tensor]:
    """What SmolLM2 does not have: updates, projector, frame embedding and the (frozen) tower, in bfloat16."""
    return {
        name: value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in model.state_dict().items()
        if name.startswith(SHIPPED) or name.endswith((".lora_a", ".lora_b"))
    }


def merged_state(base: dict[str, Tensor], shipped: dict[str, Tensor], rank: int, scale: float) -> dict[str, Tensor]:
    """Weights of the whole model in float32: SmolLM2's with the updates added, and the shipped parts beside them.

    Raises:
        KeyError: an update of a layer that `base` does not have.
    """
    state = {name: value.float() for name, value in base.items()}
    state |= {name: value.float() for name, value in shipped.items() if name.startswith(SHIPPED)}
    for name in shipped:
        stem, dot, part = name.rpartition(".")
        if dot and part == "lora_a":
            update = shipped[f"{stem}.lora_b"].float() @ shipped[name].float()
            state[f"{stem}.weight"] = state[f"{stem}.weight"] + (scale / rank) * update
    return state
