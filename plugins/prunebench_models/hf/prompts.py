"""From a sample to the model's own inputs: the chat prompt of the checkpoint, and its processor's output."""

from __future__ import annotations

import base64
import io
from typing import Any

from prunebench.calibration.samples import Sample, joined
from prunebench.errors import CalibrationError
from prunebench_models.hf.families import Family
from prunebench_models.hf.videos import Clip, read_clip, video_inputs

__all__ = ["model_inputs", "prompt_of"]

FOREIGN = ("num_audio_tokens", "num_patches", "num_crops", "video_metadata", "labels")
"""Entries that some processors add for themselves."""


def model_inputs(processor: Any, family: Family, sample: Sample) -> dict[str, Any]:
    """Keyword arguments of the model for one sample, batch size 1, without padding.

    Raises:
        CalibrationError: a medium that the family does not take, or a sample without anything in it.
    """
    kinds = _media(sample)
    if wrong := [kind for kind in kinds if kind not in family.modalities]:
        raise CalibrationError(f"sample {sample.id!r} has a medium that {family.alias} does not take: {wrong[0]}")
    if family.is_plain:
        return _plain(processor, family, sample)
    return _with_media(processor, family, sample, kinds)


def prompt_of(processor: Any, family: Family, sample: Sample) -> str:
    """The prompt with one placeholder per medium: media first, then the words, but images where the layout has them.

    The checkpoint's chat template is used where there is one, `Family.prompt` otherwise.

    Raises:
        CalibrationError: a layout that does not have every image once, in order.
    """
    kinds = _media(sample)
    if sample.layout:
        _check_layout(sample)
        kinds = kinds[len(sample.images) :]
    parts: tuple[str | int, ...] = sample.layout or (sample.instruction,)
    if getattr(processor, "chat_template", None):
        content = [{"type": kind} for kind in kinds]
        content += [{"type": "text", "text": place} if isinstance(place, str) else {"type": "image"} for place in parts]
        return processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
    places = family.placeholders or {}
    words = joined(place if isinstance(place, str) else places["image"] for place in parts)
    return family.prompt.format(media="".join(places[kind] for kind in kinds), text=words)


def _check_layout(sample: Sample) -> None:
    if [place for place in sample.layout if isinstance(place, int)] != list(range(len(sample.images))):
        raise CalibrationError(f"sample {sample.id!r}: its layout must have each of its images once, in their order")


def _media(sample: Sample) -> list[str]:
    kinds = ["image"] * len(sample.images)
    kinds += ["video"] if sample.video is not None else []
    return kinds + (["audio"] if sample.audio is not None else [])


def _plain(tokenizer: Any, family: Family, sample: Sample) -> dict[str, Any]:
    """Running text (kind ``text``) as it is, a question by the chat template or on a line of its own."""
    import torch

    if sample.kind == "text":
        ids = tokenizer(sample.instruction)["input_ids"]
    elif tokenizer.chat_template:
        message = [{"role": "user", "content": sample.instruction}]
        ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
    else:
        ids = tokenizer(family.prompt.format(text=sample.instruction))["input_ids"]
    if not ids:
        raise CalibrationError(f"sample {sample.id!r} has no text")
    return {"input_ids": torch.tensor([list(ids)])}


def _with_media(processor: Any, family: Family, sample: Sample, kinds: list[str]) -> dict[str, Any]:
    from prunebench.media import images_of, waveform_of

    if family.whole_template:
        return _by_template(processor, sample)
    prompt = prompt_of(processor, family, sample)
    tokenizer = processor.tokenizer
    media: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    if "image" in kinds:
        media["images"] = [images_of(sample)]  # one list per sample: some processors count by it
    if "video" in kinds:
        if "image" in kinds:
            raise CalibrationError(f"sample {sample.id!r} has images and a video: {family.alias} takes one kind")
        clip: Clip = read_clip(sample, family.frames)
        span, extra = video_inputs(processor, family, clip)
        prompt = _replaced(prompt, processor, family, span)
    if "audio" in kinds:
        rate = processor.feature_extractor.sampling_rate
        media |= {"audio": [waveform_of(sample, rate, mono="mean")], "sampling_rate": rate}
    # A template that writes the beginning token itself must not get a second one.
    begins = bool(tokenizer.bos_token) and prompt.startswith(tokenizer.bos_token)
    settings = {"return_tensors": "pt", "add_special_tokens": not begins}
    batch = (
        dict(processor(text=[prompt], **media, **settings))
        if media or not extra
        else dict(tokenizer([prompt], **settings))
    )
    batch |= extra
    if (kinds_of := extra.pop("_kinds", None)) is not None:
        batch.pop("_kinds")
        batch["mm_token_type_ids"] = kinds_of(batch["input_ids"])
    return {key: value for key, value in batch.items() if key not in FOREIGN}


def _by_template(processor: Any, sample: Sample) -> dict[str, Any]:
    """For processors that build prompt and features in one step from a conversation with sound files in it."""
    from scipy.io import wavfile

    from prunebench.media import waveform_of

    content: list[dict[str, str]] = [{"type": "text", "text": sample.instruction}]
    if sample.audio is not None:
        rate = processor.feature_extractor.sampling_rate
        wavfile.write(file := io.BytesIO(), rate, waveform_of(sample, rate, mono="mean"))
        content.insert(0, {"type": "audio", "base64": base64.b64encode(file.getvalue()).decode()})
    message = {"role": "user", "content": content}
    return dict(processor.apply_chat_template([message], tokenize=True, return_dict=True))


def _replaced(prompt: str, processor: Any, family: Family, span: str) -> str:
    token = getattr(processor, "video_token", None) or "<video>"
    if prompt.count(token) != 1:
        raise CalibrationError(f"the prompt of {family.alias} has {prompt.count(token)} places for one video")
    return prompt.replace(token, span)
