"""Models that answer by a script, on the whole way of real ones: they look at words and media to know the question."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from prunebench.adapter import DecoderInputs, LoadedModel
from prunebench.calibration.samples import Sample
from prunebench.media import evenly, frames_of, images_of, waveform_of
from prunebench.testing.tiny import VOCABULARY, TinyLlama
from tests.lmms.synthetic.media import number_of_image, number_of_sound, number_of_video

__all__ = ["numbers_of", "scripted"]

RATE = 16000


def numbers_of(sample: Sample) -> dict[str, list[int]]:
    """Which document each part of a question says that it belongs to: ``words``, ``images``, ``video``, ``audio``."""
    said: dict[str, list[int]] = {}
    if marks := re.findall(r"(?<!#)#(\d+)", sample.instruction):
        said["words"] = [int(marks[-1])]  # examples come before the question
    if sample.images:
        pictures = images_of(sample)
        assert [picture.width for picture in pictures] == [24 + 8 * i for i in range(len(pictures))], "out of order"
        said["images"] = [number_of_image(np.asarray(picture)) for picture in pictures]
    if sample.video is not None:
        said["video"] = [number_of_video(frames_of(sample, evenly(4)))]
    if sample.audio is not None:
        said["audio"] = [number_of_sound(waveform_of(sample, RATE), RATE)]
    return said


class Scripted(TinyLlama):
    """Answers by the number of the document that the question says it is."""

    name = "scripted"

    def __init__(self, answers: Mapping[int, str] | Sequence[str] = ()) -> None:
        self.answers = answers
        self.seen: list[Sample] = []

    def encode(self, loaded: LoadedModel, samples: Sequence[Sample]) -> DecoderInputs:
        """The number of each question's document is all that its inputs hold."""
        import torch

        numbers = []
        for sample in samples:
            said = numbers_of(sample)
            found = {number for part in said.values() for number in part}
            assert len(found) == 1, f"{sample.id}: words and media of different documents: {said}"
            numbers += found
        self.seen += samples
        embeds = torch.tensor(numbers, dtype=torch.float32).reshape(-1, 1, 1).expand(-1, 1, 32)
        mask = torch.ones(len(samples), 1, dtype=torch.long)
        return DecoderInputs(embeds, mask, {"text": mask.bool()}, sample_ids=tuple(sample.id for sample in samples))

    def append_tokens(self, loaded: LoadedModel, inputs: DecoderInputs, ids: Any, mask: Any) -> DecoderInputs:
        import torch

        return replace(
            inputs,
            embeds=torch.cat([inputs.embeds, ids[..., None].expand(-1, -1, 32).to(inputs.embeds)], 1),
            attention_mask=torch.cat([inputs.attention_mask, mask], 1),
        )

    def forward(self, loaded: LoadedModel, inputs: DecoderInputs, *, logits_to_keep: int = 0) -> Any:
        """Sure of every token of the answer."""
        import torch

        logits = torch.zeros(*inputs.embeds.shape[:2], VOCABULARY)
        for row, number in enumerate(inputs.embeds[:, 0, 0]):
            answer = Sample("answer", "", answer=self.answers[int(number)])
            for place, token in enumerate(self.answer_ids(loaded, answer)[: logits.shape[1]]):
                logits[row, place, token] = 10
        return logits[:, -logits_to_keep:]

    def generate(self, loaded: LoadedModel, inputs: DecoderInputs, max_new_tokens: int) -> list[str]:
        return [self.answers[int(row[0, 0])] for row in inputs.embeds]


def scripted(answers: Mapping[int, str] | Sequence[str]) -> Any:
    """A loaded model that gives `answers[i]` to document i."""
    return Scripted(answers).load()
