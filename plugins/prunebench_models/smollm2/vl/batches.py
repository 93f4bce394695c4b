"""Training batches: the testbed's scenes in SmolLM2's tokens, many questions per scene in one sequence."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunebench_models.smollm2.vl.prompt import TOKENS_PER_IMAGE, answer_ids, begin_id, instruction_ids
from prunebench_models.testbed.data.video import FRAMES
from prunebench_models.testbed.data.words import VOCABULARY
from prunebench_models.testbed.train.batches import IGNORE, Batch

__all__ = ["Packed", "pack", "pack_questions"]

ANSWER = VOCABULARY.index("<answer>")


@dataclass(frozen=True)
class Packed:
    """Packed questions of one domain: the beginning token, the media, then blocks of one question each.

    Attributes:
        ids: (B, T) token ids; the places of media tokens hold the beginning token.
        labels: (B, T) id of the token that follows, -100 where it is not asked for.
        question: (B, T) number of the question whose answer is asked for there.
        media: (N, 3, H, W), `images` of them for each row.
        images: images or frames per row.
        block: tokens of one question.
    """

    ids: Tensor
    labels: Tensor
    question: Tensor
    media: Tensor
    images: int
    block: int

    @property
    def prefix(self) -> int:
        """Tokens that all questions of a row share."""
        return 1 + self.images * TOKENS_PER_IMAGE

    @property
    def frames(self) -> Tensor | None:
        """(N,) place of each frame in its video, or None for still images."""
        return torch.arange(self.images).repeat(len(self.ids)) if self.images > 1 else None

    def position_ids(self) -> Tensor:
        """(T,); every question starts right after the media, as if it were alone."""
        block = torch.arange(self.prefix, self.prefix + self.block)
        return torch.cat([torch.arange(self.prefix), block.repeat((self.ids.shape[1] - self.prefix) // self.block)])

    def attention_mask(self) -> Tensor:
        """(T, T) bool, True where row may see column: causal, and never into another question."""
        length = self.ids.shape[1]
        owner = (torch.arange(length) - self.prefix).div(self.block, rounding_mode="floor").clamp(min=-1)
        same = (owner[None, :] == -1) | (owner[None, :] == owner[:, None])
        return same & torch.ones(length, length, dtype=torch.bool).tril()


def pack(batch: Batch, tokenizer: Any) -> Packed:
    """A batch of the testbed's training in the words of another tokenizer.

    Raises:
        ValueError: a batch of sounds; there is no ear here.
    """
    if batch.layout.media == "audio":
        raise ValueError("SmolLM2-VL has no audio tower")
    asked = []
    for ids, labels in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True):
        pairs, words = [], []
        for place in range(batch.layout.prefix, batch.layout.length):
            if ids[place] == ANSWER:
                pairs.append((" ".join(words), VOCABULARY[labels[place]]))
                words = []
            elif labels[place] == IGNORE and ids[place]:  # neither the answer nor padding
                words.append(VOCABULARY[ids[place]])
        asked.append(pairs)
    images = FRAMES if batch.layout.media == "video" else 1
    return pack_questions(asked, batch.media, images, tokenizer)


def pack_questions(asked: list[list[tuple[str, str]]], media: Tensor, images: int, tokenizer: Any) -> Packed:
    """Pack (question, answer) lists of equal length, one list per row; `media` holds `images` images for each."""
    ids_of, end_of = _cached(tokenizer)
    written = [[(ids_of(question), end_of(answer)) for question, answer in row] for row in asked]
    block = max(len(question) + len(answer) for row in written for question, answer in row)
    prefix = 1 + images * TOKENS_PER_IMAGE
    ids = np.full((len(asked), prefix + block * len(asked[0])), begin_id(tokenizer), dtype=np.int64)
    labels, number = np.full_like(ids, IGNORE), np.zeros_like(ids)
    for row, pairs in enumerate(written):
        for index, (question, answer) in enumerate(pairs):
            start = prefix + index * block
            first = start + len(question) - 1  # the place that has to foresee the answer's first token
            ids[row, start : start + len(question) + len(answer)] = [*question, *answer]
            labels[row, first : first + len(answer)] = answer
            number[row, start : start + block] = row * len(pairs) + index
    return Packed(*map(torch.from_numpy, (ids, labels, number)), media, images, block)


@cache
def _cached(tokenizer: Any) -> tuple[Any, Any]:
    """Tokenizing the same few thousand questions over and over would cost more than it should."""

    @cache
    def question(text: str) -> tuple[int, ...]:
        return tuple(instruction_ids(tokenizer, text))

    @cache
    def answer(text: str) -> tuple[int, ...]:
        return tuple(answer_ids(tokenizer, text))

    return question, answer
