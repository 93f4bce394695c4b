"""The testbed model: a CLIP tower, a Whisper encoder, two projectors and a Llama decoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import CLIPVisionModel, GenerationMixin, LlamaModel, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from prunebench_models.transformers_adapter import position_ids as count_positions

from .configuration import TestbedConfig

__all__ = ["Projector", "TestbedForConditionalGeneration"]

MEDIA_RMS = 0.5  # media tokens and word embeddings start at the same scale: neither drowns the other


class Projector(nn.Module):
    """Two linear layers from tower width to decoder width, normalised to the scale of word embeddings."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width_in, width_out)
        self.linear_2 = nn.Linear(width_out, width_out)
        self.norm = nn.RMSNorm(width_out, eps=1e-6)

    def forward(self, features: Tensor) -> Tensor:
        """(..., width_in) to (..., width_out)."""
        return self.norm(self.linear_2(nn.functional.gelu(self.linear_1(features))))


class TestbedForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Answers questions about an image, a short video or a sound.

    The forward pass comes in two halves, so that callers may keep encoder outputs: ``embed`` (towers, projectors,
    splicing) and ``forward(inputs_embeds=...)`` (decoder and head).
    """

    __test__ = False
    config_class = TestbedConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("text", "image", "video", "audio")
    _no_split_modules = ["LlamaDecoderLayer", "CLIPEncoderLayer", "WhisperEncoderLayer"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: TestbedConfig) -> None:
        super().__init__(config)
        width = config.text_config.hidden_size
        self.vision_tower = CLIPVisionModel(config.vision_config)
        self.vision_projector = Projector(config.vision_config.hidden_size, width)
        self.frame_embedding = nn.Embedding(config.max_frames, width)
        self.audio_tower = WhisperEncoder(config.audio_config)
        self.audio_projector = Projector(config.audio_config.d_model * config.audio_stack, width)
        self.language_model = LlamaModel(config.text_config)
        self.lm_head = nn.Linear(width, config.text_config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.RMSNorm):
            nn.init.constant_(module.weight, MEDIA_RMS)
        elif isinstance(module, nn.Embedding) and module.embedding_dim == self.config.text_config.hidden_size:
            nn.init.normal_(module.weight, std=MEDIA_RMS)
        else:
            super()._init_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        """The word embedding."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embedding."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def get_decoder(self, **kwargs: Any) -> LlamaModel:
        """The Llama decoder; its ``layers`` is the ModuleList that pruning works on."""
        return self.language_model

    @property
    def tokens_per_image(self) -> int:
        """Media tokens of one image or one video frame."""
        return (self.config.vision_config.image_size // self.config.vision_config.patch_size) ** 2

    @property
    def tokens_per_audio(self) -> int:
        """Media tokens of one waveform."""
        return self.config.audio_config.max_source_positions // self.config.audio_stack

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Images or frames (N, 3, H, W), normalised, to tokens (N, tokens_per_image, d), row by row."""
        hidden = self.vision_tower(pixel_values=pixel_values.to(self.dtype)).last_hidden_state
        return self.vision_projector(hidden[:, 1:])  # without the class token

    def encode_audio(self, audio_features: Tensor) -> Tensor:
        """Log-mel spectrograms (N, mel bins, frames) to tokens (N, tokens_per_audio, d), in order of time."""
        hidden = self.audio_tower(audio_features.to(self.dtype)).last_hidden_state
        stacked = hidden.reshape(hidden.shape[0], self.tokens_per_audio, -1)
        return self.audio_projector(stacked)

    def embed(
        self, input_ids: Tensor, pixel_values: Tensor | None = None, audio_features: Tensor | None = None
    ) -> Tensor:
        """Word embeddings (B, T, d) with the media tokens in place of their placeholders.

        Args:
            input_ids: (B, T) token ids; each ``<image>``, ``<video>`` or ``<audio>`` id stands for one media token.
            pixel_values: (N, 3, H, W), all images and frames of the batch in the order of their placeholders.
            audio_features: (M, mel bins, frames), all waveforms of the batch in the order of their placeholders.

        Raises:
            ValueError: if the number of placeholders and of media tokens differ.
        """
        embeds = self.get_input_embeddings()(input_ids)
        video = input_ids == self.config.video_token_id
        visual = (input_ids == self.config.image_token_id) | video
        tokens = None if pixel_values is None else self.encode_images(pixel_values)
        embeds = _splice(embeds, visual, tokens, "image and video")
        if bool(video.any()):
            frame = (video.cumsum(-1) - 1).clamp(min=0) // self.tokens_per_image
            if int(frame.max()) >= self.config.max_frames:
                raise ValueError(f"this model reads at most {self.config.max_frames} video frames")
            embeds = embeds + self.frame_embedding(frame) * video.unsqueeze(-1)
        tokens = None if audio_features is None else self.encode_audio(audio_features)
        return _splice(embeds, input_ids == self.config.audio_token_id, tokens, "audio")

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        audio_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, vocabulary) for ``input_ids`` with media, or for ``inputs_embeds`` from ``embed``.

        ``attention_mask`` (B, T) marks padding, which belongs on the left; ``position_ids`` default to counting the
        unmasked tokens. ``labels`` (B, T) are token ids, -100 where no loss is wanted.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give input_ids or inputs_embeds, and not both")
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if inputs_embeds is None:
            # Media stand in the prompt alone. generate() still passes them at every step, and a damaged model may well
            # answer with a media tag: after the prompt that is a word like any other.
            words = self.get_input_embeddings()
            inputs_embeds = self.embed(input_ids, pixel_values, audio_features) if past == 0 else words(input_ids)
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            position_ids = count_positions(attention_mask)[:, -inputs_embeds.shape[1] :]
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def _splice(embeds: Tensor, places: Tensor, tokens: Tensor | None, name: str) -> Tensor:
    wanted, given = int(places.sum()), 0 if tokens is None else tokens.shape[0] * tokens.shape[1]
    if wanted != given:
        raise ValueError(f"the prompt has {wanted} {name} placeholders, but the media make {given} tokens")
    if tokens is None:
        return embeds
    return embeds.masked_scatter(places.unsqueeze(-1), tokens.reshape(-1, tokens.shape[-1]).to(embeds.dtype))
