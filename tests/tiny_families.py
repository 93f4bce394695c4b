"""Random tiny models of several families on disk, with towers whose layers could be mistaken for the decoder's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from prunebench.adapter import LoadOptions, ModelAdapter

TEXT = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 3, "head_dim": 8}
IDS = torch.tensor([[7, 8, 9, 10, 11, 12, 13]])


def llama(**changes: Any) -> tuple[type, Any]:
    return hf.LlamaForCausalLM, hf.LlamaConfig(**TEXT, **changes)


def gemma3_text() -> tuple[type, Any]:
    return hf.Gemma3ForCausalLM, hf.Gemma3TextConfig(**TEXT, **SLIDING)


def qwen2_moe() -> tuple[type, Any]:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    return hf.Qwen2MoeForCausalLM, hf.Qwen2MoeConfig(**TEXT, **experts, shared_expert_intermediate_size=16)


def llava() -> tuple[type, Any]:
    tower = hf.CLIPVisionConfig(**VISION, projection_dim=16)
    config = hf.LlavaConfig(text_config=hf.LlamaConfig(**TEXT), vision_config=tower, image_token_index=5)
    return hf.LlavaForConditionalGeneration, config


def qwen2_vl() -> tuple[type, Any]:
    text = {**TEXT, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    tower = {"depth": 6, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 8}
    ids = {"vision_start_token_id": 3, "image_token_id": 5, "video_token_id": 6}
    return hf.Qwen2VLForConditionalGeneration, hf.Qwen2VLConfig(text_config=text, vision_config=tower, **ids)


def gemma3() -> tuple[type, Any]:
    config = hf.Gemma3Config(text_config={**TEXT, **SLIDING}, vision_config=VISION, mm_tokens_per_image=4)
    return hf.Gemma3ForConditionalGeneration, config


def idefics3() -> tuple[type, Any]:
    ids = {"image_token_id": 5, "pad_token_id": 0}
    config = hf.Idefics3Config(text_config=hf.LlamaConfig(**TEXT), vision_config=VISION, scale_factor=1, **ids)
    return hf.Idefics3ForConditionalGeneration, config


def qwen2_audio() -> tuple[type, Any]:
    tower = {
        "model_type": "qwen2_audio_encoder", "d_model": 32, "encoder_layers": 6, "encoder_attention_heads": 4,
        "encoder_ffn_dim": 48, "num_mel_bins": 8, "max_source_positions": 16,
    }  # fmt: skip
    text = {**TEXT, "model_type": "qwen2"}
    config = hf.Qwen2AudioConfig(text_config=text, audio_config=tower, audio_token_index=5)
    return hf.Qwen2AudioForConditionalGeneration, config


def mllama() -> tuple[type, Any]:
    text = {**TEXT, "cross_attention_layers": [1, 4], "rope_scaling": {"rope_type": "default"}}
    tower = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_global_layers": 2,
        "attention_heads": 4, "image_size": 16, "patch_size": 8, "vision_output_dim": 64,
        "intermediate_layers_indices": [1], "supported_aspect_ratios": [[1, 1]],
    }  # fmt: skip
    config = hf.MllamaConfig(text_config=text, vision_config=tower, image_token_index=5)
    return hf.MllamaForConditionalGeneration, config


FAMILIES: dict[str, Callable[[], tuple[type, Any]]] = {
    "llama": llama,
    "llama tied": lambda: llama(tie_word_embeddings=True),
    "gemma3 text": gemma3_text,
    "qwen2 moe": qwen2_moe,
    "llava": llava,
    "qwen2-vl": qwen2_vl,
    "gemma3": gemma3,
    "idefics3": idefics3,
    "qwen2-audio": qwen2_audio,
    "mllama": mllama,
}


def save(build: Callable[[], tuple[type, Any]], folder: Path, shard: str = "60KB") -> type:
    """Random weights, seeded, of a family into `folder`; returns the model's class."""
    model_class, config = build()
    torch.manual_seed(0)
    model = model_class(copy.deepcopy(config)).eval()
    for parameter in model.parameters():  # large enough that every layer matters
        if parameter.dim() > 1:
            parameter.data.mul_(3.0)
    model.save_pretrained(folder, max_shard_size=shard)
    return model_class


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS).logits


class Plain(ModelAdapter):
    """Knows where the decoder of any of these models is, and nothing else."""

    name = "plain"

    def load(self, options: LoadOptions = LoadOptions()) -> Any:
        raise NotImplementedError

    encode = forward = prefill = decode_step = generate = load  # type: ignore[assignment]
