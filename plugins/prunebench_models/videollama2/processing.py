"""From a sample to token ids, pixels and filterbanks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from prunebench.calibration.samples import Sample
from prunebench.errors import CalibrationError, ModelError, first_line
from prunebench.media import VideoFile, frames_of, images_of

from .configuration import MultimodalFields
from .fbank import fbank, sound_of, track_of
from .frames import every_second, middle_of_segments, padded
from .prompt import chat_text, tokenize

__all__ = ["Prepared", "Processor"]


@dataclass
class Prepared:
    """One sample, ready for the towers.

    Attributes:
        input_ids: (tokens,), with at most one negative id where the media go.
        frames: normalised (T, 3, H, W), or None.
        still: whether the frames are one image, to be repeated.
        fbank: (1, frames, 128), or None.
    """

    input_ids: Tensor
    frames: Tensor | None = None
    still: bool = False
    fbank: Tensor | None = None


@dataclass
class Processor:
    """Tokenizer and media processors of one checkpoint.

    Attributes:
        tokenizer: as the checkpoint's files say.
        image_processor: the tower's; Pillow's implementation by name, so that every machine makes the same pixels.
        num_frames: per video, from its whole length; None takes one frame per second.
        system: whether prompts begin with the system text.
        audio: whether there is an audio tower.
    """

    tokenizer: Any
    image_processor: Any
    num_frames: int | None
    system: bool
    audio: bool

    @classmethod
    def from_pretrained(cls, folder: str | Path, config: MultimodalFields) -> Processor:
        """From a checkpoint folder and its configuration.

        Raises:
            ModelError: no vision tower, or tokenizer files that are missing or broken.
        """
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

        if not config.vision_config or not config.vision_preprocessing:
            raise ModelError(f"config.json names no vision tower (mm_vision_tower is {config.mm_vision_tower!r})")
        clip = config.vision_config.get("model_type") == "clip_vision_model"
        kind = CLIPImageProcessorPil if clip else SiglipImageProcessorPil
        return cls(
            tokenizer=_tokenizer(Path(folder)),
            image_processor=kind.from_dict(config.vision_preprocessing),
            num_frames=config.num_frames,
            system="qwen2" not in config.model_type,  # type: ignore[attr-defined]
            audio=config.has_audio,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer's files; all else stands in the model's configuration."""
        self.tokenizer.save_pretrained(folder)

    def prompt(self, instruction: str, kind: str) -> tuple[str, Tensor]:
        """The prompt's text with its tag, and its token ids (tokens,)."""
        text = chat_text(self.tokenizer, instruction, kind, system=self.system)
        return text, tokenize(self.tokenizer, text, kind)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Normalised pixels (N, 3, H, W). Images are resized as the tower asks, and not made square first."""
        return torch.from_numpy(np.asarray(self.image_processor(list(images), return_tensors="np")["pixel_values"]))

    def prepare(self, sample: Sample) -> Prepared:
        """Everything that the model needs of one sample.

        Raises:
            CalibrationError: media that this checkpoint or this model family does not take.
            MediaError: media that cannot be read.
        """
        if len(sample.images) > 1 or (sample.images and sample.video is not None):
            raise CalibrationError(f"sample {sample.id!r}: VideoLLaMA2 takes one image or one video per question")
        if sample.audio is not None and not self.audio:
            raise CalibrationError(
                f"sample {sample.id!r} has sound, and this checkpoint has no audio tower: use videollama2:2.1-7b-av"
            )
        frames = self._frames(sample)
        wave = self._wave(sample)
        kind = "text"
        if sample.video is not None or (frames is not None and wave is not None):
            kind = "video"
        elif frames is not None:
            kind = "image"
        elif wave is not None:
            kind = "audio"
        return Prepared(
            self.prompt(sample.instruction, kind)[1],
            frames,
            still=bool(sample.images),
            fbank=None if wave is None else torch.from_numpy(fbank(wave)).unsqueeze(0),
        )

    def batch_decode(self, tokens: Tensor, **kwargs: Any) -> list[str]:
        """Token ids (batch, tokens) → text."""
        return self.tokenizer.batch_decode(tokens, clean_up_tokenization_spaces=False, **kwargs)

    def _frames(self, sample: Sample) -> Tensor | None:
        if sample.images:
            return self.pixels(images_of(sample))
        if sample.video is None:
            return None
        count = self.num_frames

        def choose(n_frames: int, fps: float) -> list[int]:
            return every_second(n_frames, fps) if count is None else middle_of_segments(n_frames, count)

        chosen = frames_of(sample, choose)
        return self.pixels(padded([Image.fromarray(frame) for frame in chosen], count))

    def _wave(self, sample: Sample) -> np.ndarray | None:
        """The sample's own sound, or that of its video file."""
        if not self.audio:
            return None
        of_video = isinstance(sample.video, VideoFile)
        if sample.audio is None or (of_video and getattr(sample.audio, "path", None) == sample.video.path):
            return track_of(sample.video) if of_video else None
        return sound_of(sample)


def _tokenizer(folder: Path) -> Any:
    """As ``tokenizer.json`` says, whatever class the checkpoint names; else by the class that it names."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, padding_side="left", local_files_only=True)
        else:
            tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", local_files_only=True)
    except Exception as error:  # tokenizers raises types of its own
        raise ModelError(f"no tokenizer can be loaded from {folder}: {first_line(error)}; fetch it anew") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer
