"""The families that the generic adapter knows: one row each. A new family is one more row.

What a row does not say follows from the model itself: the decoder is ``get_decoder()``, the decoder's inputs are what
the model's own code hands to it, and pruning is the same for all.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunebench.errors import ModelError

__all__ = ["ALIASES", "FAMILIES", "REFUSED", "Family", "family_of", "is_known", "token_ids"]


@dataclass(frozen=True)
class Family:
    """One row.

    Attributes:
        alias: the name on the command line.
        model_types: values of ``model_type`` in config.json.
        class_name: in ``transformers``; None takes the causal class of the model type.
        checkpoint: on the Hub, for ``--model ALIAS`` alone; None where there is no natural one.
        modalities: what can be asked about.
        notes: what is special.
        ignored: patterns of weights that belong to other parts.
        videos: how a video goes in: ``frames`` (one feature per pixel, frame by frame), ``patches`` (pairs of frames
            cut into patches), ``images`` (every frame is an image), or None.
        frames: how many frames of a video are taken.
        step_extra: entries of ``DecoderInputs.extra`` that every generated token needs too.
        whole_template: prompt and features come out of the processor's chat template in one step.
        batching: False where inputs of several samples cannot be put into one batch.
        prompt: used where the processor has no chat template; ``{media}`` are the placeholders, ``{text}`` the words.
        placeholders: kind of medium → its placeholder in `prompt`.
    """

    alias: str
    model_types: tuple[str, ...]
    class_name: str | None
    checkpoint: str | None
    modalities: tuple[str, ...]
    notes: str = ""
    ignored: tuple[str, ...] = ()
    videos: str | None = None
    frames: int = 8
    step_extra: tuple[str, ...] = ()
    whole_template: bool = False
    batching: bool = True
    prompt: str = "{media}{text}\n"
    placeholders: Mapping[str, str] | None = None

    @property
    def is_plain(self) -> bool:
        """A causal language model without towers."""
        return self.class_name is None


IMAGE, VIDEO, AUDIO = ("text", "image"), ("text", "image", "video"), ("text", "audio")
LLAVA_PROMPT = "USER: {media}\n{text} ASSISTANT:"
QWEN_PLACES = {
    "image": "<|vision_start|><|image_pad|><|vision_end|>",
    "video": "<|vision_start|><|video_pad|><|vision_end|>",
}
QWEN_PROMPT = "<|im_start|>user\n{media}{text}<|im_end|>\n<|im_start|>assistant\n"
DEEPSTACK = (
    "visual features are added after the first layers: moved to the last kept layer before, exact up to rounding"
)

FAMILIES: tuple[Family, ...] = (
    Family(
        "llava-1.5", ("llava",), "LlavaForConditionalGeneration", "llava-hf/llava-1.5-7b-hf", IMAGE,
        "CLIP, SigLIP or Pixtral tower", prompt=LLAVA_PROMPT, placeholders={"image": "<image>"},
    ),
    Family(
        "llava-next", ("llava_next",), "LlavaNextForConditionalGeneration", "llava-hf/llama3-llava-next-8b-hf", IMAGE,
        "tiles of any resolution; Llama 3, Mistral or Vicuna below", prompt=LLAVA_PROMPT,
        placeholders={"image": "<image>"},
    ),
    Family(
        "llava-next-video", ("llava_next_video",), "LlavaNextVideoForConditionalGeneration",
        "llava-hf/LLaVA-NeXT-Video-7B-hf", VIDEO, videos="frames", prompt=LLAVA_PROMPT,
        placeholders={"image": "<image>", "video": "<video>"},
    ),
    Family(
        "llava-onevision", ("llava_onevision",), "LlavaOnevisionForConditionalGeneration",
        "llava-hf/llava-onevision-qwen2-7b-ov-hf", VIDEO, videos="frames", prompt=QWEN_PROMPT,
        placeholders={"image": "<image>\n", "video": "<video>\n"},
    ),
    Family(
        "video-llava", ("video_llava",), "VideoLlavaForConditionalGeneration", "LanguageBind/Video-LLaVA-7B-hf", VIDEO,
        videos="frames", prompt=LLAVA_PROMPT, placeholders={"image": "<image>", "video": "<video>"},
    ),
    Family(
        "qwen2-vl", ("qwen2_vl",), "Qwen2VLForConditionalGeneration", "Qwen/Qwen2-VL-7B-Instruct", VIDEO,
        "positions of three axes", videos="patches", prompt=QWEN_PROMPT, placeholders=QWEN_PLACES,
    ),
    Family(
        "qwen2.5-vl", ("qwen2_5_vl",), "Qwen2_5_VLForConditionalGeneration", "Qwen/Qwen2.5-VL-7B-Instruct", VIDEO,
        "positions of three axes", videos="patches", prompt=QWEN_PROMPT, placeholders=QWEN_PLACES,
    ),
    Family(
        "qwen3-vl", ("qwen3_vl",), "Qwen3VLForConditionalGeneration", "Qwen/Qwen3-VL-8B-Instruct", IMAGE,
        f"positions of three axes; {DEEPSTACK}; videos need time stamps in the prompt and are not fed",
        prompt=QWEN_PROMPT, placeholders=QWEN_PLACES,
    ),
    Family(
        "qwen2.5-omni", ("qwen2_5_omni", "qwen2_5_omni_thinker"), "Qwen2_5OmniThinkerForConditionalGeneration",
        "Qwen/Qwen2.5-Omni-7B", ("text", "image", "video", "audio"),
        "the thinker alone: it reads and answers, the talker that speaks is not loaded",
        ignored=(r"^talker\.", r"^token2wav\."), videos="patches", prompt=QWEN_PROMPT,
        placeholders={
            "image": "<|vision_bos|><|IMAGE|><|vision_eos|>", "video": "<|vision_bos|><|VIDEO|><|vision_eos|>",
            "audio": "<|audio_bos|><|AUDIO|><|audio_eos|>",
        },
    ),
    Family(
        "qwen2-audio", ("qwen2_audio",), "Qwen2AudioForConditionalGeneration", "Qwen/Qwen2-Audio-7B-Instruct", AUDIO,
        prompt=QWEN_PROMPT, placeholders={"audio": "<|audio_bos|><|AUDIO|><|audio_eos|>\n"},
    ),
    Family(
        "internvl", ("internvl",), "InternVLForConditionalGeneration", "OpenGVLab/InternVL3-8B-hf", VIDEO,
        "the -hf checkpoints; a video is one image per frame, as the model itself does it", videos="images",
        prompt=QWEN_PROMPT, placeholders={"image": "<IMG_CONTEXT>\n", "video": "<video>\n"},
    ),
    Family(
        "idefics3", ("idefics3",), "Idefics3ForConditionalGeneration", "HuggingFaceM4/Idefics3-8B-Llama3", IMAGE,
        "SmolVLM 1 checkpoints are of this type", prompt="User:{media}{text}<end_of_utterance>\nAssistant:",
        placeholders={"image": "<image>"},
    ),
    Family(
        "smolvlm", ("smolvlm",), "SmolVLMForConditionalGeneration", "HuggingFaceTB/SmolVLM2-2.2B-Instruct", IMAGE,
        "SmolVLM 2; its prompt of time stamps for videos is not made here",
        prompt="User:{media}{text}<end_of_utterance>\nAssistant:", placeholders={"image": "<image>"},
    ),
    Family(
        "paligemma", ("paligemma",), "PaliGemmaForConditionalGeneration", "google/paligemma2-3b-mix-448", IMAGE,
        "PaliGemma 1 and 2; the prompt sees itself in both directions", prompt="{media}{text}",
        placeholders={"image": "<image>"},
    ),
    Family(
        "gemma3", ("gemma3",), "Gemma3ForConditionalGeneration", "google/gemma-3-4b-it", IMAGE,
        "5 sliding layers to 1 full; an image's tokens see each other in both directions",
        prompt="<start_of_turn>user\n{media}{text}<end_of_turn>\n<start_of_turn>model\n",
        placeholders={"image": "<start_of_image>"},
    ),
    Family(
        "mllama", ("mllama",), "MllamaForConditionalGeneration", "meta-llama/Llama-3.2-11B-Vision-Instruct", IMAGE,
        "images come in by cross-attention layers, which are counted anew", batching=False,
        step_extra=("cross_attention_mask", "full_text_row_masked_out_mask"),
        prompt="{media}<|begin_of_text|>{text}", placeholders={"image": "<|image|>"},
    ),
    Family(
        "mistral3", ("mistral3",), "Mistral3ForConditionalGeneration", "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
        IMAGE, "Pixtral tower", prompt="[INST]{media}{text}[/INST]", placeholders={"image": "[IMG]"},
    ),
    Family(
        "videollama3", ("video_llama_3",), "VideoLlama3ForConditionalGeneration", "lkhl/VideoLLaMA3-7B-Image-HF", IMAGE,
        "the -HF checkpoints; videos are compressed by a processor that needs torchvision and are not fed",
        prompt=QWEN_PROMPT, placeholders={"image": "<image>\n"},
    ),
    Family(
        "voxtral", ("voxtral",), "VoxtralForConditionalGeneration", "mistralai/Voxtral-Mini-3B-2507", AUDIO,
        "its tokenizer needs mistral-common", whole_template=True, placeholders={"audio": "[AUDIO]"},
    ),
    Family(
        "causal-lm", (), None, None, ("text",), "any transformers model of the kind ...ForCausalLM", prompt="{text}\n",
    ),
)  # fmt: skip
ALIASES: dict[str, Family] = {family.alias: family for family in FAMILIES}
PLAIN = ALIASES["causal-lm"]
_BY_TYPE = {model_type: family for family in FAMILIES for model_type in family.model_types}

REFUSED = {
    "gemma3n": "it keeps embeddings of all layers in one tensor and shares keys between layers counted from the end",
    "gemma4": "it keeps embeddings of all layers in one tensor and shares keys between layers counted from the end",
}
"""Beginnings of model types that the generic procedure would get wrong, and why."""

OWN_ADAPTERS = {"videollama2": "videollama2", "prunebench_testbed": "testbed"}
"""Beginnings of model types that another adapter of ours takes, and its name."""


def family_of(model_type: str, causal_types: Mapping[str, str]) -> Family:
    """The row of a model type.

    Args:
        model_type: from config.json.
        causal_types: model type → class name of all plain causal models of this transformers.

    Raises:
        ModelError: none fits, or the type is refused.
    """
    if (reason := _refused(model_type)) is not None:
        raise ModelError(f"{model_type!r} models cannot be pruned by removing layers: {reason}")
    if model_type in _BY_TYPE:
        return _BY_TYPE[model_type]
    if causal_types.get(model_type, "").endswith("ForCausalLM"):
        return PLAIN
    if own := next((name for start, name in OWN_ADAPTERS.items() if model_type.startswith(start)), None):
        raise ModelError(f"models of type {model_type!r} have an adapter of their own: --model {own} --model-path DIR")
    near = difflib.get_close_matches(model_type.replace("_", "-"), [f.alias for f in FAMILIES], n=3, cutoff=0.5)
    rows = f"; nearest rows: {', '.join(near)}" if near else ""
    raise ModelError(
        f"no row for models of type {model_type!r}{rows}: a plain causal language model works without one, "
        "anything else needs an adapter plugin"
    )


def is_known(model_type: str, causal_types: Mapping[str, str]) -> bool:
    """Whether there is a row for it, or a reason to refuse it: then no code of the checkpoint's own is needed."""
    if model_type in _BY_TYPE or _refused(model_type) is not None:
        return True
    return causal_types.get(model_type, "").endswith("ForCausalLM")


def _refused(model_type: str) -> str | None:
    found = (why for start, why in REFUSED.items() if model_type == start or model_type.startswith(f"{start}_"))
    return next(found, None)


def token_ids(config: Any, kind: str) -> tuple[int, ...]:
    """Ids of the placeholder tokens of one kind of medium, by the names that configurations use for them."""
    names = (f"{kind}_token_id", f"{kind}_token_index")
    return tuple({value for name in names if isinstance(value := getattr(config, name, None), int)})
