"""The models: a language model with a vision tower, a connector, and an audio tower where there is one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import MistralForCausalLM, MistralModel, Qwen2ForCausalLM, Qwen2Model

from prunebench.errors import ModelError

from .beats import Beats, BeatsConfig
from .configuration import DEFAULT_FRAMES, MultimodalFields, Videollama2MistralConfig, Videollama2Qwen2Config
from .connector import StcConnector
from .towers import VisionTower

__all__ = [
    "AUDIO",
    "IMAGE",
    "MODELS",
    "VIDEO",
    "Multimodal",
    "Videollama2MistralForCausalLM",
    "Videollama2Qwen2ForCausalLM",
]

IMAGE, VIDEO, AUDIO = -200, -201, -202
"""Ids that stand in a prompt where media features go."""


def add_towers(model: nn.Module, config: Any) -> None:
    """Give the inner model its towers and projectors, under the official names."""
    if not config.vision_config:
        raise ModelError(
            f"the configuration names no vision tower that is known (mm_vision_tower {config.mm_vision_tower!r})"
        )
    model.vision_tower = VisionTower(
        config.vision_config,
        select_layer=config.mm_vision_select_layer,
        select_feature=config.mm_vision_select_feature,
        attn_implementation=config._attn_implementation,
    )
    width = model.vision_tower.config.hidden_size
    if config.mm_hidden_size not in (None, width):
        raise ModelError(f"mm_hidden_size is {config.mm_hidden_size}, but the vision tower is {width} wide")
    model.mm_projector = StcConnector(config.mm_projector_type, width, config.hidden_size)
    if config.has_audio:
        shape = BeatsConfig(**(config.beats_config or {}))
        model.audio_tower = Beats(shape)
        model.mm_projector_a = audio_projector(config.mm_projector_a_type, shape.encoder_embed_dim, config.hidden_size)


def audio_projector(kind: str, width_in: int, width: int) -> nn.Module:
    """``linear``, or ``mlp2x_gelu``: two linear maps with a GELU between."""
    if kind == "linear":
        return nn.Linear(width_in, width)
    if kind == "mlp2x_gelu":
        return nn.Sequential(nn.Linear(width_in, width), nn.GELU(), nn.Linear(width, width))
    raise ModelError(f"mm_projector_a_type {kind!r} is not supported: mlp2x_gelu or linear")


class Multimodal:
    """From media to input embeddings; mixed into both language models."""

    config: MultimodalFields

    def encode_frames(self, pixels: Tensor, repeat: int = 1) -> Tensor:
        """Frames (T, 3, H, W) of one video to tokens (tokens, d); each frame is taken `repeat` times."""
        inner = self.model  # type: ignore[attr-defined]
        features = inner.vision_tower(pixels.to(self.dtype))  # type: ignore[attr-defined]
        return inner.mm_projector(features.unsqueeze(0), repeat)[0]

    def encode_image(self, pixels: Tensor) -> Tensor:
        """An image (1, 3, H, W) to tokens (tokens, d): a video of `num_frames` equal frames."""
        return self.encode_frames(pixels, self.config.num_frames or DEFAULT_FRAMES)

    def encode_audio(self, fbank: Tensor) -> Tensor:
        """Filterbanks (1, frames, 128) of one sound to tokens (tokens, d).

        Raises:
            ModelError: a model without an audio tower.
        """
        inner = self.model  # type: ignore[attr-defined]
        if not hasattr(inner, "audio_tower"):
            raise ModelError("this checkpoint has no audio tower: use the AV variant for sound")
        return inner.mm_projector_a(inner.audio_tower(fbank))[0]

    def splice(self, input_ids: Tensor, media: list[Tensor]) -> tuple[Tensor, Tensor]:
        """One prompt with its media in place.

        Args:
            input_ids: (tokens,) with a negative id where a media item goes.
            media: one (tokens, d) per negative id, in order.

        Returns:
            Embeddings (T, d), and int64 (T,): for each position the token id, or the negative id of its media.

        Raises:
            ModelError: more or fewer media than places.
        """
        places = (input_ids < 0).nonzero().flatten().tolist()
        if len(places) != len(media):
            raise ModelError(f"the prompt has {len(places)} places for media, {len(media)} are given")
        words = self.get_input_embeddings()(input_ids.clamp(min=0))  # type: ignore[attr-defined]
        parts, ids, start = [], [], 0
        for place, tokens in zip(places, media, strict=True):
            parts += [words[start:place], tokens.to(words)]
            ids += [input_ids[start:place], input_ids[place].expand(len(tokens))]
            start = place + 1
        return torch.cat([*parts, words[start:]]), torch.cat([*ids, input_ids[start:]])


class Videollama2MistralModel(MistralModel):
    """Mistral with towers beside its layers."""

    config_class = Videollama2MistralConfig

    def __init__(self, config: Videollama2MistralConfig) -> None:
        super().__init__(config)
        add_towers(self, config)
        self.post_init()


class Videollama2MistralForCausalLM(Multimodal, MistralForCausalLM):
    """VideoLLaMA2-7B and -7B-16F."""

    config_class = Videollama2MistralConfig

    def __init__(self, config: Videollama2MistralConfig) -> None:
        super().__init__(config)
        self.model = Videollama2MistralModel(config)
        self.post_init()


class Videollama2Qwen2Model(Qwen2Model):
    """Qwen2 with towers beside its layers."""

    config_class = Videollama2Qwen2Config

    def __init__(self, config: Videollama2Qwen2Config) -> None:
        super().__init__(config)
        add_towers(self, config)
        self.post_init()


class Videollama2Qwen2ForCausalLM(Multimodal, Qwen2ForCausalLM):
    """VideoLLaMA2.1-7B-16F and -7B-AV, and other Qwen2 sizes."""

    config_class = Videollama2Qwen2Config

    def __init__(self, config: Videollama2Qwen2Config) -> None:
        super().__init__(config)
        self.model = Videollama2Qwen2Model(config)
        self.post_init()


MODELS = {kind.config_class.model_type: kind for kind in (Videollama2MistralForCausalLM, Videollama2Qwen2ForCausalLM)}
"""``model_type`` → class."""
