"""Tiny random models of every family: six decoder layers, towers of two, and inputs as their processors make them.

Ids: 0 padding, 1 beginning, 2 end, 3..49 words, 50 audio, 51 video, 52 image, 53/54 start and end of a medium.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf

PAD, BOS, EOS, AUDIO, VIDEO, IMAGE, START, END, VOCABULARY = 0, 1, 2, 50, 51, 52, 53, 54, 64
LAYERS = 6
HIDDEN = 32

TEXT: dict[str, Any] = dict(
    vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS,
)  # fmt: skip
LLAMA = {"model_type": "llama", **TEXT}
QWEN2 = {"model_type": "qwen2", **TEXT}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
    "num_attention_heads": 2, "image_size": 16, "patch_size": 8, "projection_dim": 16,
}  # fmt: skip
SIGLIP = {
    "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 16, "patch_size": 8, "vision_use_head": False,
}  # fmt: skip
PIXTRAL = {
    "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "head_dim": 8,
}  # fmt: skip


@dataclass(frozen=True)
class TinyFamily:
    """One line of the family table.

    Attributes:
        name: of the line; several may share one registry row.
        row: alias in the registry.
        build: a model with random weights.
        media: keyword arguments of the model for `n` rows with one medium each, with the ids that stand for it.
        exact_cache: False where a longer prompt is no reference for the cached steps (a prefix that sees itself whole).
    """

    name: str
    row: str
    build: Callable[[], Any]
    media: Callable[[Any, int], tuple[dict[str, Any], list[int]]] | None = None
    exact_cache: bool = True

    def model(self) -> Any:
        """Seeded, large enough weights that every layer matters, in evaluation mode."""
        torch.manual_seed(0)
        model = self.build().float().eval()
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(3.0)
            elif "gate" in name:  # gates of cross-attention begin at zero
                parameter.data.uniform_(0.5, 1.0, generator=generator)
        model.generation_config.pad_token_id, model.generation_config.eos_token_id = PAD, EOS
        return model

    def inputs(self, model: Any, rows: int = 2, *, media: bool = True) -> dict[str, Any]:
        """Left-padded model inputs; row i has 2·i fewer words."""
        with torch.no_grad():
            extra, span = self.media(model, rows) if media and self.media else ({}, [])
        generator = torch.Generator().manual_seed(2)
        ids = []
        for row in range(rows):
            words = torch.randint(3, 50, (9 - 2 * row,), generator=generator).tolist()
            ids.append([BOS, *words[:2], *span, *words[2:]])
        width = max(map(len, ids))
        input_ids = torch.tensor([[PAD] * (width - len(row)) + row for row in ids])
        batch = {"input_ids": input_ids, "attention_mask": (input_ids != PAD).long(), **extra}
        kinds = torch.zeros_like(input_ids)
        kinds[input_ids == IMAGE], kinds[input_ids == VIDEO], kinds[input_ids == AUDIO] = 1, 2, 3
        if batch.pop("_mm", False):
            batch["mm_token_type_ids"] = kinds
        if (types := batch.pop("_types", None)) is not None:  # Gemma 3 marks images, PaliGemma what is not prompt
            batch["token_type_ids"] = (kinds > 0).long() if types == "media" else torch.zeros_like(kinds)
        if (cross := batch.pop("_cross", None)) is not None:  # (images, tiles): every word after the image sees it
            after = (input_ids == IMAGE).cumsum(1) > 0
            batch["cross_attention_mask"] = after[:, :, None, None].long().expand(-1, -1, *cross).contiguous()
        return batch


def _pixels(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def _count(output: Any) -> int:
    """Feature vectors of the first medium."""
    features = getattr(output, "pooler_output", output)
    first = features[0]
    return first.shape[0] if first.dim() == 2 else first.reshape(-1, first.shape[-1]).shape[0]


def _flat_image(side: int = 16) -> Callable[[Any, int], tuple[dict, list[int]]]:
    def media(model: Any, rows: int) -> tuple[dict, list[int]]:
        pixels = _pixels(rows, 3, side, side)
        return {"pixel_values": pixels}, [IMAGE] * _count(model.model.get_image_features(pixel_values=pixels))

    return media


def _sized_image(model: Any, rows: int) -> tuple[dict, list[int]]:
    inputs = {"pixel_values": _pixels(rows, 3, 32, 32), "image_sizes": torch.tensor([[32, 32]] * rows)}
    return inputs, [IMAGE] * _count(model.model.get_image_features(**inputs))


def _anyres_image(model: Any, rows: int) -> tuple[dict, list[int]]:
    inputs = {"pixel_values": _pixels(rows, 5, 3, 16, 16), "image_sizes": torch.tensor([[32, 32]] * rows)}
    return inputs, [IMAGE] * _count(model.model.get_image_features(**inputs))


def _frames(frames: int = 2) -> Callable[[Any, int], tuple[dict, list[int]]]:
    def media(model: Any, rows: int) -> tuple[dict, list[int]]:
        video = _pixels(rows, frames, 3, 16, 16)
        features = model.model.get_video_features(video)
        features = getattr(features, "pooler_output", features)
        count = sum(part.reshape(-1, part.shape[-1]).shape[0] for part in features) // rows
        return {"pixel_values_videos": video}, [VIDEO] * count

    return media


def _video_llava(model: Any, rows: int) -> tuple[dict, list[int]]:
    # One token fewer than there are patches and a class token, per frame, as the model itself counts.
    return {"pixel_values_images": _pixels(rows, 3, 16, 16)}, [IMAGE] * _count(
        model.model.get_image_features(pixel_values_images=_pixels(rows, 3, 16, 16))
    )


def _patches(width: int) -> Callable[[Any, int], tuple[dict, list[int]]]:
    def media(_model: Any, rows: int) -> tuple[dict, list[int]]:
        grid = torch.tensor([[1, 4, 6]] * rows)
        inputs = {"pixel_values": _pixels(rows * 24, width), "image_grid_thw": grid, "_mm": True}
        return inputs, [START, *[IMAGE] * 6, END]

    return media


def _patch_video(width: int) -> Callable[[Any, int], tuple[dict, list[int]]]:
    def media(_model: Any, rows: int) -> tuple[dict, list[int]]:
        inputs = {
            "pixel_values_videos": _pixels(rows * 32, width),
            "video_grid_thw": torch.tensor([[2, 4, 4]] * rows),
            "_mm": True,
        }
        return inputs, [START, *[VIDEO] * 8, END]

    return media


def _video_llama3_image(_model: Any, rows: int) -> tuple[dict, list[int]]:
    inputs = {
        "pixel_values": _pixels(rows * 16, 3 * 8 * 8),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * rows),
        "image_merge_sizes": torch.tensor([2] * rows),
    }
    return inputs, [IMAGE] * 4


def _tiles(side: int) -> Callable[[Any, int], tuple[dict, list[int]]]:
    def media(model: Any, rows: int) -> tuple[dict, list[int]]:
        pixels = _pixels(rows, 1, 3, side, side)
        count = _count(model.model.get_image_features(pixel_values=pixels))
        return {"pixel_values": pixels}, [IMAGE] * count

    return media


def _mllama_image(_model: Any, rows: int) -> tuple[dict, list[int]]:
    inputs = {
        "pixel_values": _pixels(rows, 1, 2, 3, 16, 16),
        "aspect_ratio_ids": torch.ones(rows, 1, dtype=torch.long),
        "aspect_ratio_mask": torch.tensor([[[1, 0]]] * rows),
        "_cross": (1, 2),
    }
    return inputs, [IMAGE]


def _typed(media: Callable, types: str) -> Callable[[Any, int], tuple[dict, list[int]]]:
    def with_types(model: Any, rows: int) -> tuple[dict, list[int]]:
        inputs, span = media(model, rows)
        return {**inputs, "_types": types}, span

    return with_types


def _sound(model: Any, rows: int) -> tuple[dict, list[int]]:
    # 2 · positions of mel frames; convolution and pooling leave a quarter of them.
    frames = 2 * model.config.audio_config.max_source_positions
    mask = torch.ones(rows, frames, dtype=torch.long)
    return {"input_features": _pixels(rows, 8, frames), "feature_attention_mask": mask}, [AUDIO] * (frames // 4)


def _voxtral_sound(model: Any, rows: int) -> tuple[dict, list[int]]:
    frames = 2 * model.config.audio_config.max_source_positions
    features = _pixels(rows, 8, frames)
    return {"input_features": features}, [AUDIO] * _count(_split(model.get_audio_features(features), rows))


def _split(output: Any, rows: int) -> Any:
    features = getattr(output, "pooler_output", output)
    return features.reshape(rows, -1, features.shape[-1])


def _omni_media(model: Any, rows: int) -> tuple[dict, list[int]]:
    """One image and one sound."""
    inputs, span = _patches(PATCH)(model, rows)
    inputs.pop("_mm")
    mask = torch.ones(rows, 40, dtype=torch.long)
    sound = {"input_features": _pixels(rows, 8, 40), "feature_attention_mask": mask}
    return {**inputs, **sound}, [*span, 55, *[AUDIO] * 10, 56]


def _causal(name: str, config: str, **more: Any) -> TinyFamily:
    label = {"Gemma3ForCausalLM": "Gemma3-text", "Qwen3_5ForCausalLM": "Qwen3.5"}.get(name, name)

    def build() -> Any:
        return getattr(tf, name)(getattr(tf, config)(**{**TEXT, **more}))

    return TinyFamily(label.removesuffix("ForCausalLM"), "causal-lm", build)


def _vlm(name: str, config: str, **parts: Any) -> Callable[[], Any]:
    def build() -> Any:
        return getattr(tf, name)(getattr(tf, config)(**parts))

    return build


ALTERNATING = ["sliding_attention", "full_attention"] * 3
GEMMA3 = dict(
    head_dim=8, sliding_window=4, layer_types=["sliding_attention"] * 2 + ["full_attention"] + ALTERNATING[:3]
)
QWEN_VISION = dict(depth=2, embed_dim=16, hidden_size=HIDDEN, num_heads=2, patch_size=4, spatial_merge_size=2)
QWEN25_VISION = dict(
    depth=2, hidden_size=16, out_hidden_size=HIDDEN, intermediate_size=24, num_heads=2, patch_size=4, window_size=16,
    spatial_merge_size=2, fullatt_block_indexes=[1],
)  # fmt: skip
QWEN3_VISION = dict(
    depth=4, hidden_size=16, out_hidden_size=HIDDEN, intermediate_size=24, num_heads=2, patch_size=4,
    spatial_merge_size=2, num_position_embeddings=16, deepstack_visual_indexes=[0, 1, 2],
)  # fmt: skip
AUDIO_TOWER = dict(num_mel_bins=8, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=24, d_model=16)
IDEFICS_VISION = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
)
VISION_IDS = dict(image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END)
PATCH = 3 * 2 * 4 * 4

FAMILIES: tuple[TinyFamily, ...] = (
    _causal("LlamaForCausalLM", "LlamaConfig"),
    _causal("MistralForCausalLM", "MistralConfig", sliding_window=4),
    _causal("Phi3ForCausalLM", "Phi3Config"),
    _causal("Qwen2ForCausalLM", "Qwen2Config", use_sliding_window=True, sliding_window=4, max_window_layers=3),
    _causal("Qwen3ForCausalLM", "Qwen3Config", head_dim=8),
    _causal("SmolLM3ForCausalLM", "SmolLM3Config", no_rope_layers=[1, 1, 1, 0, 1, 0]),
    _causal("Gemma3ForCausalLM", "Gemma3TextConfig", **GEMMA3),
    _causal(
        "Qwen3_5ForCausalLM", "Qwen3_5TextConfig", head_dim=8, linear_key_head_dim=8, linear_value_head_dim=8,
        linear_num_key_heads=2, linear_num_value_heads=4,
        layer_types=["linear_attention", "full_attention"] * 3,
    ),
    _causal(
        "Qwen3MoeForCausalLM", "Qwen3MoeConfig", head_dim=8, moe_intermediate_size=16, num_experts=4,
        num_experts_per_tok=2, decoder_sparse_step=2, mlp_only_layers=[3],
    ),
    _causal(
        "Lfm2ForCausalLM", "Lfm2Config", block_ff_dim=48, conv_L_cache=3, block_auto_adjust_ff_dim=False,
        full_attn_idxs=[1, 3, 4],
    ),
    _causal(
        "DeepseekV3ForCausalLM", "DeepseekV3Config", moe_intermediate_size=16, n_routed_experts=4, n_group=2,
        topk_group=1, num_experts_per_tok=2, n_shared_experts=1, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=8, first_k_dense_replace=2, num_key_value_heads=4,
    ),
    _causal(
        "Phi4MultimodalForCausalLM", "Phi4MultimodalConfig",
        vision_config=dict(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, crop_size=28
        ),
        audio_config=dict(
            hidden_size=16, intermediate_size=24, num_blocks=2, num_attention_heads=2, input_size=8,
            ext_pw_out_channel=16, depthwise_separable_out_channel=16, nemo_conv_channels=16,
        ),
    ),
    TinyFamily(
        "Llava", "llava-1.5",
        _vlm("LlavaForConditionalGeneration", "LlavaConfig", vision_config=CLIP, text_config=LLAMA,
             image_token_index=IMAGE),
        _flat_image(),
    ),
    TinyFamily(
        "Llava-Pixtral", "llava-1.5",
        _vlm("LlavaForConditionalGeneration", "LlavaConfig", vision_config=PIXTRAL, text_config=LLAMA,
             image_token_index=IMAGE, vision_feature_layer=-1, vision_feature_select_strategy="full"),
        _sized_image,
    ),
    TinyFamily(
        "LlavaNext", "llava-next",
        _vlm("LlavaNextForConditionalGeneration", "LlavaNextConfig", vision_config=CLIP, text_config=LLAMA,
             image_token_index=IMAGE, image_grid_pinpoints=[[32, 32]]),
        _anyres_image,
    ),
    TinyFamily(
        "LlavaNext-Mistral", "llava-next",
        _vlm("LlavaNextForConditionalGeneration", "LlavaNextConfig", vision_config=CLIP,
             text_config={"model_type": "mistral", **TEXT}, image_token_index=IMAGE, image_grid_pinpoints=[[32, 32]]),
        _anyres_image,
    ),
    TinyFamily(
        "LlavaNextVideo", "llava-next-video",
        _vlm("LlavaNextVideoForConditionalGeneration", "LlavaNextVideoConfig", vision_config=CLIP, text_config=LLAMA,
             image_token_index=IMAGE, video_token_index=VIDEO, image_grid_pinpoints=[[32, 32]]),
        _frames(),
    ),
    TinyFamily(
        "LlavaOnevision", "llava-onevision",
        _vlm("LlavaOnevisionForConditionalGeneration", "LlavaOnevisionConfig", vision_config=SIGLIP, text_config=QWEN2,
             image_token_index=IMAGE, video_token_index=VIDEO, image_grid_pinpoints=[[32, 32]]),
        _anyres_image,
    ),
    TinyFamily(
        "VideoLlava", "video-llava",
        _vlm("VideoLlavaForConditionalGeneration", "VideoLlavaConfig", vision_config=CLIP, text_config=LLAMA,
             image_token_index=IMAGE, video_token_index=VIDEO),
        _video_llava,
    ),
    TinyFamily(
        "InternVL", "internvl",
        _vlm("InternVLForConditionalGeneration", "InternVLConfig", text_config=QWEN2, image_token_id=IMAGE,
             vision_config=dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
                                image_size=[32, 32], patch_size=[8, 8])),
        _flat_image(32),
    ),
    TinyFamily(
        "VideoLlama3", "videollama3",
        _vlm("VideoLlama3ForConditionalGeneration", "VideoLlama3Config", text_config=QWEN2, image_token_id=IMAGE,
             video_token_id=VIDEO,
             vision_config=dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
                                patch_size=8)),
        _video_llama3_image,
    ),
    TinyFamily(
        "Qwen2Audio", "qwen2-audio",
        _vlm("Qwen2AudioForConditionalGeneration", "Qwen2AudioConfig", text_config=QWEN2, audio_token_index=AUDIO,
             audio_config=dict(**AUDIO_TOWER, max_source_positions=20)),
        _sound,
    ),
    TinyFamily(
        "Qwen2VL", "qwen2-vl",
        _vlm("Qwen2VLForConditionalGeneration", "Qwen2VLConfig", text_config={**TEXT, "rope_parameters": MROPE},
             vision_config=QWEN_VISION, **VISION_IDS),
        _patches(PATCH),
    ),
    TinyFamily(
        "Qwen2VL-video", "qwen2-vl",
        _vlm("Qwen2VLForConditionalGeneration", "Qwen2VLConfig", text_config={**TEXT, "rope_parameters": MROPE},
             vision_config=QWEN_VISION, **VISION_IDS),
        _patch_video(PATCH),
    ),
    TinyFamily(
        "Qwen2.5VL", "qwen2.5-vl",
        _vlm("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLConfig", text_config={**TEXT, "rope_parameters": MROPE},
             vision_config=QWEN25_VISION, **VISION_IDS),
        _patches(PATCH),
    ),
    TinyFamily(
        "Qwen3VL", "qwen3-vl",
        _vlm("Qwen3VLForConditionalGeneration", "Qwen3VLConfig",
             text_config={**TEXT, "head_dim": 8, "rope_parameters": MROPE}, vision_config=QWEN3_VISION, **VISION_IDS),
        _patches(PATCH),
    ),
    TinyFamily(
        "Qwen2.5Omni", "qwen2.5-omni",
        _vlm("Qwen2_5OmniThinkerForConditionalGeneration", "Qwen2_5OmniThinkerConfig",
             text_config={**TEXT, "rope_parameters": MROPE}, vision_config=QWEN25_VISION,
             audio_config=dict(**AUDIO_TOWER, output_dim=HIDDEN), audio_token_index=AUDIO, image_token_index=IMAGE,
             video_token_index=VIDEO, audio_start_token_id=55, audio_end_token_id=56, vision_start_token_id=START,
             vision_end_token_id=END),
        _omni_media,
    ),
    TinyFamily(
        "Idefics3", "idefics3",
        _vlm("Idefics3ForConditionalGeneration", "Idefics3Config", text_config=LLAMA, vision_config=IDEFICS_VISION,
             image_token_id=IMAGE, pad_token_id=PAD),
        _tiles(32),
    ),
    TinyFamily(
        "SmolVLM", "smolvlm",
        _vlm("SmolVLMForConditionalGeneration", "SmolVLMConfig", text_config=LLAMA, vision_config=IDEFICS_VISION,
             image_token_id=IMAGE, pad_token_id=PAD),
        _tiles(32),
    ),
    TinyFamily(
        "PaliGemma", "paligemma",
        _vlm("PaliGemmaForConditionalGeneration", "PaliGemmaConfig", vision_config=SIGLIP,
             text_config={"model_type": "gemma", "head_dim": 8, **TEXT}, image_token_index=IMAGE, projection_dim=HIDDEN,
             hidden_size=HIDDEN, vocab_size=VOCABULARY),
        _typed(_flat_image(), "prompt"), exact_cache=False,
    ),
    TinyFamily(
        "PaliGemma2", "paligemma",
        _vlm("PaliGemmaForConditionalGeneration", "PaliGemmaConfig", vision_config=SIGLIP,
             text_config={"model_type": "gemma2", "head_dim": 8, "sliding_window": 4, "layer_types": ALTERNATING,
                          **TEXT},
             image_token_index=IMAGE, projection_dim=HIDDEN, hidden_size=HIDDEN, vocab_size=VOCABULARY),
        _typed(_flat_image(), "prompt"), exact_cache=False,
    ),
    TinyFamily(
        "Gemma3", "gemma3",
        _vlm("Gemma3ForConditionalGeneration", "Gemma3Config", vision_config=SIGLIP, text_config={**TEXT, **GEMMA3},
             image_token_index=IMAGE, boi_token_index=START, eoi_token_index=END, mm_tokens_per_image=4),
        _typed(_flat_image(), "media"),
    ),
    TinyFamily(
        "Mllama", "mllama",
        _vlm("MllamaForConditionalGeneration", "MllamaConfig", image_token_index=IMAGE,
             text_config={**TEXT, "cross_attention_layers": [1, 4]},
             vision_config=dict(
                 hidden_size=16, num_hidden_layers=2, num_global_layers=1, attention_heads=2, intermediate_size=24,
                 vision_output_dim=32, image_size=16, patch_size=8, max_num_tiles=2, intermediate_layers_indices=[0],
                 supported_aspect_ratios=[[1, 1], [1, 2], [2, 1]])),
        _mllama_image,
    ),
    TinyFamily(
        "Mistral3", "mistral3",
        _vlm("Mistral3ForConditionalGeneration", "Mistral3Config", vision_config=PIXTRAL,
             text_config={"model_type": "mistral", "head_dim": 8, **TEXT}, image_token_index=IMAGE),
        _sized_image,
    ),
    TinyFamily(
        "Voxtral", "voxtral",
        _vlm("VoxtralForConditionalGeneration", "VoxtralConfig", text_config={**LLAMA, "head_dim": 8},
             audio_token_id=AUDIO,
             audio_config=dict(num_mel_bins=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                               hidden_size=16, max_source_positions=20)),
        _voxtral_sound,
    ),
)  # fmt: skip
BY_NAME = {family.name: family for family in FAMILIES}
