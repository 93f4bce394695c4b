"""Videos by our own means: what the families' video processors compute, without torchvision.

Frames are spread evenly. Three kinds: one feature map per frame (``frames``), one image per frame (``images``), and
patches of consecutive frames (``patches``), which are the image processor's patches of each frame put together: an
image counts there as a video whose frames are all the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunebench.calibration.samples import Sample
from prunebench_models.hf.families import Family
from prunebench_models.hf.processors import settings_of

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Clip", "read_clip", "video_inputs"]


@dataclass(frozen=True)
class Clip:
    """Chosen frames, uint8 (frames, height, width, 3), and how many of them make a second."""

    frames: np.ndarray
    rate: float


def read_clip(sample: Sample, count: int) -> Clip:
    """At most `count` frames of the sample's video, evenly spaced."""
    from prunebench.media import evenly, frames_of

    rate = 1.0

    def choose(n_frames: int, fps: float) -> list[int]:
        nonlocal rate
        chosen = list(evenly(count)(n_frames, fps))
        rate = fps * len(chosen) / n_frames
        return chosen

    return Clip(frames_of(sample, choose), rate)


def video_inputs(processor: Any, family: Family, clip: Clip) -> tuple[str, dict[str, Any]]:
    """What stands in the prompt for the video, and the model's inputs for it."""
    settings = settings_of(_folder(processor), "video_processor")
    if family.videos == "patches":
        return _patches(processor, clip, settings)
    if family.videos == "images":
        return _images(processor, clip)
    return _frames(processor, family, clip, settings)


def _folder(processor: Any) -> Path:
    return Path(processor.tokenizer.name_or_path)


def _frames(processor: Any, family: Family, clip: Clip, settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    from transformers import CLIPImageProcessorPil

    known = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor",
             "do_normalize", "image_mean", "image_std", "do_convert_rgb")  # fmt: skip
    chosen = {name: settings[name] for name in known if settings.get(name) is not None}
    chosen.setdefault("do_center_crop", "crop_size" in chosen)
    pixels = CLIPImageProcessorPil(**chosen)(list(clip.frames), return_tensors="pt")["pixel_values"]
    height, width = pixels.shape[-2:]
    if family.alias == "llava-onevision":
        side = math.ceil(math.isqrt(processor.num_image_tokens) / 2)
        count = len(pixels) * side * side + 1  # and one for the end of the video
    else:
        count = (height // processor.patch_size) * (width // processor.patch_size)
        pooled = family.alias == "llava-next-video"
        count = len(pixels) * (count // 4 if pooled else count + processor.num_additional_image_tokens)
    return processor.video_token * count, {"pixel_values_videos": pixels[None]}


def _images(processor: Any, clip: Clip) -> tuple[str, dict[str, Any]]:
    output = processor.image_processor(list(clip.frames), crop_to_patches=False, return_tensors="pt")
    one = (
        f"{processor.start_image_token}{processor.image_token * processor.image_seq_length}{processor.end_image_token}"
    )
    text = "\n".join(f"Frame{number}: {one}" for number in range(1, len(clip.frames) + 1))
    return text, {"pixel_values": output["pixel_values"]}


def _patches(processor: Any, clip: Clip, settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    import torch

    images = processor.image_processor
    per_group = images.temporal_patch_size
    frames = list(clip.frames)
    frames += [frames[-1]] * (-len(frames) % per_group)
    size = settings.get("size") or {
        "shortest_edge": settings.get("min_pixels") or images.size["shortest_edge"],
        "longest_edge": settings.get("max_pixels") or images.size["longest_edge"],
    }
    output = images(frames, size=size, return_tensors="pt")
    grid = output["image_grid_thw"][0]
    # (frames, patches, channels, equal copies in time, height, width) → one copy of each
    patches = output["pixel_values"].reshape(len(frames), int(grid[1:].prod()), 3, per_group, -1)[:, :, :, 0]
    groups = patches.unflatten(0, (-1, per_group)).permute(
        0, 2, 3, 1, 4
    )  # (groups, patches, channels, in time, pixels)
    count = len(groups) * int(grid[1:].prod()) // images.merge_size**2
    tokens: dict[str, Any] = {
        "pixel_values_videos": groups.reshape(-1, output["pixel_values"].shape[1]),
        "video_grid_thw": torch.tensor([[len(groups), int(grid[1]), int(grid[2])]]),
        **_clock(processor, per_group / clip.rate),
    }
    return processor.video_token * count, tokens


def _clock(processor: Any, seconds: float) -> dict[str, Any]:
    """Seconds per group of frames, and kinds of tokens, by the names that each family's model wants."""
    import torch

    def kinds(ids: Tensor) -> Tensor:
        return (ids == processor.video_token_id).long() * 2

    name = type(processor).__name__
    if name == "Qwen2_5OmniProcessor":
        return {"video_second_per_grid": torch.tensor([seconds])}
    if name == "Qwen2_5_VLProcessor":
        return {"second_per_grid_ts": torch.tensor([seconds]), "_kinds": kinds}
    return {"_kinds": kinds}
