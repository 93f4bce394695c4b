"""The model: SmolLM2's own class with a vision tower, a projector and frame embeddings beside it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from prunebench_models.testbed.modeling import Projector

__all__ = ["SmolLM2VL", "SmolLM2VLConfig"]


class SmolLM2VLConfig(LlamaConfig):
    """SmolLM2's configuration with the tower's.

    Attributes:
        vision_config: of the CLIP tower, which sees one image or one video frame at a time.
        max_frames: how many video frames have an embedding of their own.
    """

    model_type = "prunebench_smollm2_vl"

    def __init__(self, vision_config: dict[str, Any] | None = None, max_frames: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vision_config = vision_config or {}
        self.max_frames = max_frames


class SmolLM2VL(LlamaForCausalLM):
    """A Llama decoder that also reads image tokens: ``embed_media`` makes them, the rest is the parent's."""

    config_class = SmolLM2VLConfig
    config: SmolLM2VLConfig

    def __init__(self, config: SmolLM2VLConfig) -> None:
        super().__init__(config)
        vision = CLIPVisionConfig(**config.vision_config)
        self.vision_tower = CLIPVisionModel(vision)
        self.vision_projector = Projector(vision.hidden_size, config.hidden_size)
        self.frame_embedding = nn.Embedding(config.max_frames, config.hidden_size)
        self.post_init()

    def embed_media(self, pixel_values: Tensor, frames: Tensor | None = None) -> Tensor:
        """Images (N, 3, H, W) → tokens (N, patches, hidden), row by row.

        Args:
            pixel_values: in [-1, 1].
            frames: (N,) place of each in its video; None for still images.
        """
        hidden = self.vision_tower(pixel_values.to(self.dtype)).last_hidden_state
        tokens = self.vision_projector(hidden[:, 1:])  # without the class token
        return tokens if frames is None else tokens + self.embed_frames(frames)

    def embed_frames(self, frames: Tensor) -> Tensor:
        """What is added to the tokens of these frames: (N,) places → (N, 1, hidden)."""
        return self.frame_embedding(frames)[:, None]
