"""From samples to tensors: word-level tokenizer, image normalisation, log-mel features."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BatchFeature, PreTrainedTokenizerFast, WhisperFeatureExtractor

from prunebench.calibration.samples import Sample

from .data.audio import SAMPLING_RATE
from .data.draw import IMAGE_SIZE
from .data.words import VOCABULARY

__all__ = ["TestbedProcessor", "build_tokenizer", "normalize_images"]

PROCESSOR_FILE = "processor_config.json"
TOKENS_PER_IMAGE = 16
TOKENS_PER_AUDIO = 16


class TestbedProcessor:
    """Turns prompts and media into what the model reads; loads and saves beside the weights.

    A prompt is ``<bos>``, the media tags, the words of the question and ``<answer>``. One ``<image>`` tag stands for
    one image, ``<video>`` for one clip and ``<audio>`` for one waveform; each is expanded to its number of tokens.
    """

    __test__ = False

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast | None = None,
        feature_extractor: WhisperFeatureExtractor | None = None,
        tokens_per_image: int = TOKENS_PER_IMAGE,
        tokens_per_audio: int = TOKENS_PER_AUDIO,
        image_size: int = IMAGE_SIZE,
    ) -> None:
        self.tokenizer = tokenizer or build_tokenizer()
        self.feature_extractor = feature_extractor or build_feature_extractor()
        self.tokens_per_image = tokens_per_image
        self.tokens_per_audio = tokens_per_audio
        self.image_size = image_size

    def prompt(self, sample: Sample) -> str:
        """The prompt of a sample with its media tags, e.g. ``<bos> <image> what color is the ring <answer>``."""
        tags = ["<image>"] * len(sample.images)
        tags += ["<video>"] * (sample.video is not None) + ["<audio>"] * (sample.audio is not None)
        return " ".join(["<bos>", *tags, sample.instruction, "<answer>"])

    def from_samples(self, samples: Sequence[Sample]) -> BatchFeature:
        """A left-padded batch for ``model.generate(**batch)`` or ``model(**batch)``."""
        return self(
            text=[self.prompt(sample) for sample in samples],
            images=[image for sample in samples for image in sample.images],
            videos=[sample.video for sample in samples if sample.video is not None],
            audio=[sample.audio for sample in samples if sample.audio is not None],
            sampling_rate=next((sample.sampling_rate for sample in samples if sample.audio is not None), None),
        )

    def __call__(
        self,
        text: str | Sequence[str],
        images: Sequence[np.ndarray] = (),
        videos: Sequence[np.ndarray] = (),
        audio: Sequence[np.ndarray] = (),
        sampling_rate: int | None = None,
    ) -> BatchFeature:
        """Tensors for a batch of prompts; media are given in the order of their tags over the whole batch.

        Args:
            text: prompts with media tags.
            images: uint8 (H, W, 3) each; other sizes than the model's are resized.
            videos: uint8 (frames, H, W, 3) each.
            audio: float32 mono waveforms; what is longer than one second is cut.
            sampling_rate: of ``audio``, in hertz; must be the model's.

        Returns:
            ``input_ids`` and ``attention_mask`` (B, T), padded on the left, ``pixel_values`` (N, 3, H, W) if there
            are images or frames, ``audio_features`` (M, mel bins, frames) if there is audio.
        """
        text = [text] if isinstance(text, str) else list(text)
        images, videos, audio = iter(images), iter(videos), list(audio)
        frames: list[np.ndarray] = []
        prompts = []
        for line in text:
            words = []
            for word in line.split():
                if word == "<image>":
                    frames.append(next(images)[None])
                    words += [word] * self.tokens_per_image
                elif word == "<video>":
                    frames.append(next(videos))
                    words += [word] * self.tokens_per_image * len(frames[-1])
                else:
                    words += [word] * (self.tokens_per_audio if word == "<audio>" else 1)
            prompts.append(" ".join(words))
        batch = self.tokenizer(
            prompts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt"
        )
        data: dict[str, Any] = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        if frames:
            resized = [_resize(clip, self.image_size) for clip in frames]
            data["pixel_values"] = normalize_images(np.concatenate(resized))
        if audio:
            data["audio_features"] = self.encode_waveforms(audio, sampling_rate)
        return BatchFeature(data)

    def encode_waveforms(self, audio: Sequence[np.ndarray], sampling_rate: int | None) -> torch.Tensor:
        """Log-mel features (M, mel bins, frames), each padded or cut to one second."""
        features = self.feature_extractor(list(audio), sampling_rate=sampling_rate, return_tensors="np")
        return torch.from_numpy(np.asarray(features["input_features"], dtype=np.float32))

    def batch_decode(self, ids: torch.Tensor) -> list[str]:
        """Words of generated token ids (B, T), without special tokens."""
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write tokenizer, feature extractor and the processor's own numbers into a folder."""
        self.tokenizer.save_pretrained(folder)
        self.feature_extractor.save_pretrained(folder)
        numbers = {name: getattr(self, name) for name in ("tokens_per_image", "tokens_per_audio", "image_size")}
        text = json.dumps({"processor_class": "TestbedProcessor", **numbers}, indent=2)
        Path(folder, PROCESSOR_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> TestbedProcessor:
        """Load what ``save_pretrained`` wrote."""
        numbers = json.loads(Path(folder, PROCESSOR_FILE).read_text(encoding="utf-8"))
        numbers.pop("processor_class", None)
        return cls(
            tokenizer=PreTrainedTokenizerFast.from_pretrained(folder),
            feature_extractor=WhisperFeatureExtractor.from_pretrained(folder),
            **numbers,
        )


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The word-level tokenizer over the closed vocabulary; words are separated by white space."""
    model = models.WordLevel({word: index for index, word in enumerate(VOCABULARY)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<image>", "<video>", "<audio>", "<answer>"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def build_feature_extractor() -> WhisperFeatureExtractor:
    """Log-mel spectrograms of one second at 16 kHz: 64 bins × 64 frames."""
    return WhisperFeatureExtractor(
        feature_size=64, sampling_rate=SAMPLING_RATE, hop_length=250, chunk_length=1, n_fft=512
    )


def normalize_images(images: np.ndarray) -> torch.Tensor:
    """uint8 (N, H, W, 3) to float32 (N, 3, H, W) in [-1, 1]."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).to(torch.float32)
    return pixels.div_(127.5).sub_(1.0)


def _resize(clip: np.ndarray, size: int) -> np.ndarray:
    if clip.shape[1:3] == (size, size):
        return clip
    from PIL import Image

    return np.stack([np.asarray(Image.fromarray(frame).convert("RGB").resize((size, size))) for frame in clip])
