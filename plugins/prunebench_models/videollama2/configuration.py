"""Configurations of the two model types: the language model's own, with the official multimodal fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import MistralConfig, Qwen2Config

from prunebench.errors import ModelError

from .tower_settings import image_settings, tower_settings

__all__ = [
    "CONFIGS",
    "DEFAULT_FRAMES",
    "MultimodalFields",
    "Videollama2MistralConfig",
    "Videollama2Qwen2Config",
    "config_class",
]


DEFAULT_FRAMES = 8


class MultimodalFields:
    """What both configurations share; the official names, with the values that an absent field stands for.

    Attributes:
        mm_vision_tower: hub name of the tower, or a folder beside the weights.
        mm_hidden_size: the tower's width.
        mm_projector_type: ``stc_connector`` or ``stc_connector_v35``.
        mm_vision_select_layer: index into the tower's n + 1 hidden states.
        num_frames: video frames per sample, an image is repeated as often; null samples one frame per second.
        mm_audio_tower: set where the checkpoint holds an audio tower.
        mm_projector_a_type: ``mlp2x_gelu`` or ``linear``.
        beats_config: shape of the audio tower where it is not the official one.
        vision_config: the tower's configuration.
        vision_preprocessing: how images are made ready for the tower. Official files hold neither of these two: they
            are filled in when a checkpoint is read, and written, so that a saved model needs no other folder.
    """

    mm_vision_tower: str | None = None
    mm_hidden_size: int | None = None
    mm_projector_type: str = "stc_connector"
    mm_vision_select_layer: int = -2
    mm_vision_select_feature: str = "patch"
    num_frames: int | None = DEFAULT_FRAMES
    mm_audio_tower: str | None = None
    mm_projector_a_type: str = "mlp2x_gelu"
    mm_hidden_size_a: int | None = None
    beats_config: dict[str, Any] | None = None
    vision_config: dict[str, Any] | None = None
    vision_preprocessing: dict[str, Any] | None = None

    @classmethod
    def get_config_dict(cls, name_or_path: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """As transformers', with what the vision tower's name stands for, and the cache switched on."""
        found, rest = super().get_config_dict(name_or_path, **kwargs)  # type: ignore[misc]
        if tower := found.get("mm_vision_tower"):
            folder = Path(name_or_path) if Path(name_or_path).is_dir() else None
            found["vision_config"] = found.get("vision_config") or tower_settings(tower, folder)
            found["vision_preprocessing"] = found.get("vision_preprocessing") or image_settings(tower, folder)
        found["use_cache"] = True  # training leaves it off in some official files
        return found, rest

    @property
    def has_audio(self) -> bool:
        """Whether the checkpoint holds an audio tower."""
        return self.mm_audio_tower is not None


class Videollama2MistralConfig(MultimodalFields, MistralConfig):
    """VideoLLaMA2-7B and -7B-16F."""

    model_type = "videollama2_mistral"


class Videollama2Qwen2Config(MultimodalFields, Qwen2Config):
    """VideoLLaMA2.1-7B-16F, -7B-AV and VideoLLaMA2-72B."""

    model_type = "videollama2_qwen2"


CONFIGS = {kind.model_type: kind for kind in (Videollama2MistralConfig, Videollama2Qwen2Config)}


def config_class(model_type: object) -> type[MultimodalFields]:
    """The configuration class of a ``model_type``.

    Raises:
        ModelError: one that is not ported.
    """
    if model_type in CONFIGS:
        return CONFIGS[model_type]  # type: ignore[index,return-value]
    if model_type == "videollama2_mixtral":
        raise ModelError("VideoLLaMA2-8x7B (Mixtral) is not supported: use a Mistral or Qwen2 variant")
    raise ModelError(f"model type {model_type!r} is not VideoLLaMA2; supported: {', '.join(CONFIGS)}")
