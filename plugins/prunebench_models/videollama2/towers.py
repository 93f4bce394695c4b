"""The vision tower, under the names of the official checkpoints."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from prunebench.errors import ModelError

__all__ = ["VisionTower"]

KINDS = {
    "clip_vision_model": (CLIPVisionConfig, CLIPVisionModel),
    "siglip_vision_model": (SiglipVisionConfig, SiglipVisionModel),
}


class _Named(nn.Module):
    """Holds the tower as ``vision_model``: transformers 5 dropped that level, the checkpoints' key names have it."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.vision_model = tower


class VisionTower(nn.Module):
    """A CLIP or SigLIP tower that returns patch features of one of its hidden states.

    The chosen state (the last but one, officially) is computed by running the layers up to it and no further.
    transformers' ``output_hidden_states`` is not used: below a language model that was asked for hidden states it
    returns a longer list, and an index from the end then picks another layer without a word.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        *,
        select_layer: int = -2,
        select_feature: str = "patch",
        attn_implementation: str | None = None,
    ) -> None:
        super().__init__()
        kind = settings.get("model_type")
        if kind not in KINDS:
            raise ModelError(f"vision tower of type {kind!r} is not supported: {' or '.join(KINDS)}")
        if select_feature != "patch":
            raise ModelError(
                f"mm_vision_select_feature {select_feature!r} is not supported: the connectors need 'patch'"
            )
        config_class, model_class = KINDS[kind]
        config = config_class(**{key: value for key, value in settings.items() if key != "model_type"})
        if attn_implementation is not None:
            config._attn_implementation = attn_implementation
        self.vision_tower = _Named(model_class(config))
        depth = config.num_hidden_layers
        self.n_run = select_layer if select_layer >= 0 else depth + 1 + select_layer
        if not 0 <= self.n_run <= depth:
            raise ModelError(f"mm_vision_select_layer {select_layer} does not fit a tower of {depth} layers")
        self.has_class_token = kind == "clip_vision_model"

    @property
    def config(self) -> Any:
        """The tower's own configuration."""
        return self.vision_tower.vision_model.config

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (N, 3, H, W) → patch features (N, patches, width)."""
        model = self.vision_tower.vision_model
        states = model.embeddings(pixels)
        if self.has_class_token:
            states = model.pre_layrnorm(states)
        for layer in model.encoder.layers[: self.n_run]:
            output = layer(states, attention_mask=None)
            states = output[0] if isinstance(output, tuple) else output
        return states[:, 1:] if self.has_class_token else states
