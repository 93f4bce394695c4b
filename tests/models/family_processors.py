"""Checkpoint folders of tiny models with real tokenizers and image processors, in the files that Hub folders have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tests.models.family_configs import AUDIO, BOS, BY_NAME, END, EOS, IMAGE, PAD, START, VIDEO, VOCABULARY

IMAGE_SIZE = {"height": 16, "width": 16}
SQUARE = {"size": {"shortest_edge": 16}, "crop_size": IMAGE_SIZE, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
PATCHES = {
    "patch_size": 4, "merge_size": 2, "temporal_patch_size": 2, "size": {"shortest_edge": 64, "longest_edge": 384},
}  # fmt: skip
SOUND = {"feature_size": 8, "sampling_rate": 16000, "hop_length": 400, "chunk_length": 1, "n_fft": 400}
QWEN = {"<|image_pad|>": IMAGE, "<|video_pad|>": VIDEO, "<|vision_start|>": START, "<|vision_end|>": END}

# family of the table → (tokens, image processor, feature extractor, entries of processor_config.json, video settings)
PARTS: dict[str, dict[str, Any]] = {
    "Llava": dict(
        tokens={"<image>": IMAGE}, image=("CLIPImageProcessorPil", SQUARE),
        processor=("LlavaProcessor", {"patch_size": 8, "vision_feature_select_strategy": "default",
                                      "num_additional_image_tokens": 1}),
    ),
    "LlavaNext": dict(
        tokens={"<image>": IMAGE}, image=("LlavaNextImageProcessorPil", {**SQUARE, "image_grid_pinpoints": [[32, 32]]}),
        processor=("LlavaNextProcessor", {"patch_size": 8, "vision_feature_select_strategy": "default",
                                          "num_additional_image_tokens": 1}),
    ),
    "LlavaNextVideo": dict(
        tokens={"<image>": IMAGE, "<video>": VIDEO}, video=SQUARE,
        image=("LlavaNextImageProcessorPil", {**SQUARE, "image_grid_pinpoints": [[32, 32]]}),
        processor=("LlavaNextVideoProcessor", {"patch_size": 8, "vision_feature_select_strategy": "default",
                                               "num_additional_image_tokens": 1}),
    ),
    "LlavaOnevision": dict(
        tokens={"<image>": IMAGE, "<video>": VIDEO}, video={"size": IMAGE_SIZE, "image_mean": [0.5] * 3},
        image=("LlavaOnevisionImageProcessorPil", {"size": IMAGE_SIZE, "image_grid_pinpoints": [[32, 32]]}),
        processor=("LlavaOnevisionProcessor", {"num_image_tokens": 4, "vision_feature_select_strategy": "full"}),
    ),
    "VideoLlava": dict(
        tokens={"<image>": IMAGE, "<video>": VIDEO}, video=SQUARE, image=("VideoLlavaImageProcessor", SQUARE),
        processor=("VideoLlavaProcessor", {"patch_size": 8, "vision_feature_select_strategy": "default",
                                           "num_additional_image_tokens": 1}),
    ),
    "InternVL": dict(
        tokens={"<IMG_CONTEXT>": IMAGE, "<video>": VIDEO, "<img>": START, "</img>": END},
        named={"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
               "video_token": "<video>"},
        image=("GotOcr2ImageProcessorPil", {"size": {"height": 32, "width": 32}, "crop_to_patches": False,
                                            "max_patches": 2}),
        processor=("InternVLProcessor", {"image_seq_length": 4}),
    ),
    "Qwen2VL": dict(
        tokens=QWEN, image=("Qwen2VLImageProcessorPil", PATCHES), video=PATCHES, processor=("Qwen2VLProcessor", {}),
    ),
    "Qwen2.5VL": dict(
        tokens=QWEN, image=("Qwen2VLImageProcessorPil", PATCHES), video=PATCHES, processor=("Qwen2_5_VLProcessor", {}),
    ),
    "Qwen3VL": dict(
        tokens=QWEN, image=("Qwen2VLImageProcessorPil", PATCHES), video=PATCHES, processor=("Qwen3VLProcessor", {}),
    ),
    "Qwen2.5Omni": dict(
        tokens={"<|IMAGE|>": IMAGE, "<|VIDEO|>": VIDEO, "<|AUDIO|>": AUDIO, "<|vision_bos|>": START,
                "<|vision_eos|>": END, "<|audio_bos|>": 55, "<|audio_eos|>": 56},
        named={"image_token": "<|IMAGE|>", "video_token": "<|VIDEO|>", "audio_token": "<|AUDIO|>",
               "vision_bos_token": "<|vision_bos|>", "vision_eos_token": "<|vision_eos|>",
               "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>"},
        image=("Qwen2VLImageProcessorPil", PATCHES), video=PATCHES, sound=SOUND,
        processor=("Qwen2_5OmniProcessor", {}),
    ),
    "Qwen2Audio": dict(
        tokens={"<|AUDIO|>": AUDIO, "<|audio_bos|>": START, "<|audio_eos|>": END}, sound=SOUND,
        processor=("Qwen2AudioProcessor", {}),
    ),
    "Idefics3": dict(
        tokens={"<image>": IMAGE, "<fake_token_around_image>": START, "<end_of_utterance>": END, "<global-img>": 55},
        image=("Idefics3ImageProcessorPil", {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 32},
                                             "do_image_splitting": False}),
        processor=("Idefics3Processor", {"image_seq_len": 4}),
    ),
    "SmolVLM": dict(
        tokens={"<image>": IMAGE, "<fake_token_around_image>": START, "<end_of_utterance>": END, "<global-img>": 55},
        image=("SmolVLMImageProcessorPil", {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 32},
                                            "do_image_splitting": False}),
        processor=("SmolVLMProcessor", {"image_seq_len": 4}),
    ),
    "PaliGemma": dict(
        tokens={"<image>": IMAGE}, image=("SiglipImageProcessorPil", {"size": IMAGE_SIZE, "image_seq_length": 4}),
        processor=("PaliGemmaProcessor", {}),
    ),
    "Gemma3": dict(
        tokens={"<image_soft_token>": IMAGE, "<start_of_image>": START, "<end_of_image>": END},
        named={"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
        image=("Gemma3ImageProcessorPil", {"size": IMAGE_SIZE}),
        processor=("Gemma3Processor", {"image_seq_length": 4}),
    ),
    "Mllama": dict(
        tokens={"<|image|>": IMAGE, "<|python_tag|>": 55},
        image=("MllamaImageProcessorPil", {"size": IMAGE_SIZE, "max_image_tiles": 2}),
        processor=("MllamaProcessor", {}),
    ),
    "Mistral3": dict(
        tokens={"[IMG]": IMAGE, "[IMG_BREAK]": START, "[IMG_END]": END},
        image=("PixtralImageProcessorPil", {"size": {"longest_edge": 32}, "patch_size": {"height": 8, "width": 8}}),
        processor=("PixtralProcessor", {"patch_size": 8, "spatial_merge_size": 2}),
    ),
    "VideoLlama3": dict(
        tokens={"<image>": IMAGE, "<|video_pad|>": VIDEO}, named={"image_token": "<image>"},
        image=("VideoLlama3ImageProcessorPil", {"patch_size": 8, "merge_size": 2, "min_pixels": 256,
                                                "max_pixels": 1024}),
        processor=("VideoLlama3Processor", {}),
    ),
}  # fmt: skip


def tokenizer(tokens: dict[str, int] | None = None, named: dict[str, str] | None = None, **more: Any) -> Any:
    """Words w3 to w49 by white space; everything else is ``<unk>``, which is w3."""
    words = {f"w{i}": i for i in range(4, VOCABULARY)}
    vocabulary = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, "<unk>": 3}
    taken = set((tokens or {}).values())
    vocabulary |= {word: i for word, i in words.items() if i not in taken} | (tokens or {})
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.add_special_tokens(list(tokens or {}))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        extra_special_tokens=named or list(tokens or {}), **more,
    )  # fmt: skip


def save_checkpoint(name: str, folder: Path, *, chat_template: str | None = None) -> Path:
    """The tiny model of one family with everything that its processor needs."""
    model = BY_NAME[name].model()
    model.save_pretrained(folder)
    parts = PARTS.get(name)
    if parts is None:  # a plain language model
        tokenizer(chat_template=chat_template).save_pretrained(folder)
        return folder
    tokenizer(parts["tokens"], parts.get("named")).save_pretrained(folder)
    settings: dict[str, Any] = {}
    if "image" in parts:
        kind, values = parts["image"]
        settings |= _image_settings(kind, values)
    if "sound" in parts:
        settings |= tf.WhisperFeatureExtractor(**parts["sound"]).to_dict()
    kind, values = parts["processor"]
    _write(folder / "preprocessor_config.json", {**settings, "processor_class": kind})
    _write(folder / "processor_config.json", {**values, "processor_class": kind})
    if "video" in parts:
        _write(folder / "video_preprocessor_config.json", parts["video"])
    if chat_template:
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    return folder


def _image_settings(kind: str, values: dict[str, Any]) -> dict[str, Any]:
    """What the image processor would write; where it cannot be built, its settings and its name."""
    try:
        return getattr(tf, kind)(**values).to_dict()
    except ImportError:
        return {**values, "image_processor_type": kind.removesuffix("Pil")}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, default=lambda value: getattr(value, "tolist", lambda: str(value))()))
