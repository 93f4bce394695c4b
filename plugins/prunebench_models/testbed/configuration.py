"""Configuration of the testbed model: three ordinary transformers configurations and a few numbers of its own."""

from __future__ import annotations

from typing import Any

from transformers import CLIPVisionConfig, LlamaConfig, PretrainedConfig, WhisperConfig

__all__ = ["TestbedConfig"]


class TestbedConfig(PretrainedConfig):
    """Shapes of the testbed model.

    Attributes:
        text_config: the Llama decoder; ``model.get_decoder().config`` is this very object.
        vision_config: the CLIP vision tower, which sees one image or one video frame at a time.
        audio_config: the Whisper encoder, which sees one log-mel spectrogram.
        image_token_id, video_token_id, audio_token_id: placeholders that ``embed`` replaces, one per media token.
        max_frames: how many video frames have a learned temporal embedding.
        audio_stack: encoder steps that are concatenated into one audio token.
        planted_roles: decoder layers (0-based, as trained) by role, see ``prunebench_models.testbed``.
    """

    __test__ = False  # the name starts with "Test": keep pytest from collecting it
    model_type = "prunebench_testbed"
    sub_configs = {  # noqa: RUF012 (transformers reads it from the class)
        "text_config": LlamaConfig,
        "vision_config": CLIPVisionConfig,
        "audio_config": WhisperConfig,
    }

    def __init__(
        self,
        text_config: LlamaConfig | dict[str, Any] | None = None,
        vision_config: CLIPVisionConfig | dict[str, Any] | None = None,
        audio_config: WhisperConfig | dict[str, Any] | None = None,
        image_token_id: int = 4,
        video_token_id: int = 5,
        audio_token_id: int = 6,
        max_frames: int = 4,
        audio_stack: int = 2,
        planted_roles: dict[str, list[int]] | None = None,
        **kwargs: Any,
    ) -> None:
        self.text_config = _sub_config(LlamaConfig, text_config)
        self.vision_config = _sub_config(CLIPVisionConfig, vision_config)
        self.audio_config = _sub_config(WhisperConfig, audio_config)
        self.image_token_id = image_token_id
        self.video_token_id = video_token_id
        self.audio_token_id = audio_token_id
        self.max_frames = max_frames
        self.audio_stack = audio_stack
        self.planted_roles = planted_roles or {}
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)

    @classmethod
    def small(cls, vocab_size: int, layers: int = 16, **kwargs: Any) -> TestbedConfig:
        """The shipped shape with ``layers`` decoder layers: 64×64 images, one second of audio at 16 kHz."""
        text = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=512,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            tie_word_embeddings=False,
        )
        vision = CLIPVisionConfig(
            image_size=64,
            patch_size=16,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=128,
        )
        audio = WhisperConfig(
            num_mel_bins=64,
            d_model=128,
            encoder_layers=2,
            encoder_attention_heads=4,
            encoder_ffn_dim=256,
            max_source_positions=32,
            # the decoder of this configuration is never built; small numbers keep config.json honest
            decoder_layers=1,
            decoder_attention_heads=4,
            decoder_ffn_dim=256,
            vocab_size=vocab_size,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )
        ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        return cls(text_config=text, vision_config=vision, audio_config=audio, **{**ids, **kwargs})


def _sub_config(kind: type[PretrainedConfig], value: PretrainedConfig | dict[str, Any] | None) -> PretrainedConfig:
    if isinstance(value, dict):
        return kind(**value)
    return value if value is not None else kind()
