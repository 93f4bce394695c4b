"""Training batches: many questions per scene, packed into one sequence under a block mask."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..data.audio import SAMPLING_RATE
from ..data.dataset import DOMAINS, ask
from ..data.video import FRAMES
from ..data.words import (
    COLORS,
    DIRECTIONS,
    DURATIONS,
    INSTRUMENTS,
    MELODIES,
    NUMBERS,
    PITCHES,
    QUADRANTS,
    SHAPES,
    VOCABULARY,
    YES_NO,
)
from ..processing import TOKENS_PER_AUDIO, TOKENS_PER_IMAGE, TestbedProcessor, normalize_images

__all__ = ["QUESTION_TOKENS", "Batch", "Layout", "batch_from_scenes", "make_batch", "wrong_answers"]

QUESTION_TOKENS = 11  # nine words, <answer> and the answer itself
TOKEN_ID = {word: index for index, word in enumerate(VOCABULARY)}
IGNORE = -100
_FAMILIES = (COLORS, SHAPES, NUMBERS, YES_NO, QUADRANTS, DIRECTIONS, PITCHES, MELODIES, DURATIONS, INSTRUMENTS)
MEDIA = {"general": "image", "math": "image", "video": "video", "audio": "audio"}


@dataclass(frozen=True)
class Layout:
    """Where everything lies in a packed sequence: ``<bos>``, the media, then blocks of one question each."""

    media: str
    questions: int

    @property
    def media_tokens(self) -> int:
        """Media tokens after ``<bos>``."""
        return {"image": TOKENS_PER_IMAGE, "video": TOKENS_PER_IMAGE * FRAMES, "audio": TOKENS_PER_AUDIO}[self.media]

    @property
    def prefix(self) -> int:
        """Tokens that all questions share."""
        return 1 + self.media_tokens

    @property
    def length(self) -> int:
        """Tokens of the packed sequence."""
        return self.prefix + self.questions * QUESTION_TOKENS

    def position_ids(self) -> Tensor:
        """(T,) positions; every question starts right after the media, as if it were alone."""
        block = torch.arange(self.prefix, self.prefix + QUESTION_TOKENS)
        return torch.cat([torch.arange(self.prefix), block.repeat(self.questions)])

    def attention_mask(self) -> Tensor:
        """(T, T) bool, True where row may see column: causal, and never into another question."""
        owner = torch.cat(
            [torch.full((self.prefix,), -1), torch.arange(self.questions).repeat_interleave(QUESTION_TOKENS)]
        )
        same = (owner[None, :] == -1) | (owner[None, :] == owner[:, None])
        return same & torch.ones(self.length, self.length, dtype=torch.bool).tril()


@dataclass(frozen=True)
class Batch:
    """Packed questions of one domain.

    Attributes:
        domain: their domain.
        layout: how a sequence is laid out.
        input_ids: (B, T) token ids with media placeholders.
        labels: (B, T) id of the token that follows, -100 where it is not asked for.
        media: pixel values (N, 3, H, W) or audio features (B, mel bins, frames).
    """

    domain: str
    layout: Layout
    input_ids: Tensor
    labels: Tensor
    media: Tensor


def make_batch(
    domain: str,
    contexts: int,
    questions: int,
    rng: np.random.Generator,
    processor: TestbedProcessor,
    easy: float = 0.0,
    helpers: float = 0.0,
    emphasis: tuple[str, ...] = (),
) -> Batch:
    """A batch of fresh scenes.

    Args:
        domain: one of the four.
        contexts: scenes, each a row of the batch.
        questions: questions per scene.
        rng: source of everything random.
        processor: for the log-mel features.
        easy: share of easy scenes.
        helpers: share of helper questions, which are never in the test.
        emphasis: kinds that take extra turns, in the domains that have them.
    """
    module = DOMAINS[domain]
    scenes = [module.scene(rng, easy=bool(flag)) for flag in rng.random(contexts) < easy]
    asked = []
    for scene in scenes:
        asked.append(_questions(module, scene, questions, rng, helpers, emphasis))
    return batch_from_scenes(domain, module.render(scenes, rng), asked, processor)


def batch_from_scenes(
    domain: str, media: np.ndarray, asked: list[list[tuple[str, str]]], processor: TestbedProcessor
) -> Batch:
    """Pack given (question, answer) lists, one list of equal length per rendered scene."""
    layout = Layout(MEDIA[domain], len(asked[0]))
    ids = np.zeros((len(asked), layout.length), dtype=np.int64)
    labels = np.full_like(ids, IGNORE)
    ids[:, 0] = TOKEN_ID["<bos>"]
    ids[:, 1 : layout.prefix] = TOKEN_ID[f"<{layout.media}>"]
    for row, pairs in enumerate(asked):
        for index, (question, answer) in enumerate(pairs):
            words = [TOKEN_ID[word] for word in question.split()]
            words += [TOKEN_ID["<answer>"], TOKEN_ID[answer]]
            start = layout.prefix + index * QUESTION_TOKENS
            end = start + len(words)
            ids[row, start:end] = words
            labels[row, end - 2] = words[-1]
            labels[row, end - 1] = TOKEN_ID["<eos>"]
    if layout.media == "audio":
        features = processor.encode_waveforms(list(media), SAMPLING_RATE)
    else:
        features = normalize_images(media.reshape(-1, *media.shape[-3:]))
    return Batch(domain, layout, torch.from_numpy(ids), torch.from_numpy(labels), features)


def wrong_answers(batch: Batch, rng: np.random.Generator) -> Batch:
    """The same questions with each other's answers: colours go to questions for colours, numbers to those for numbers.

    Where a question meets its own answer again it is left out.
    """
    labels = batch.labels.clone()
    for family in _FAMILIES:
        places = torch.isin(labels, torch.tensor([TOKEN_ID[word] for word in family]))
        values = labels[places]
        labels[places] = values[torch.from_numpy(rng.permutation(len(values)))]
    right = (labels == batch.labels) & (labels != TOKEN_ID["<eos>"])
    return replace(batch, labels=labels.masked_fill(right, IGNORE))


def _questions(
    module, scene, n: int, rng: np.random.Generator, helpers: float, emphasis: tuple[str, ...]
) -> list[tuple[str, str]]:
    """``n`` questions: the kinds take turns in random order, so that a scene meets all that make sense in it."""
    asked: list[tuple[str, str]] = []
    kinds: list[str] = []
    tries = 0
    while len(asked) < n:
        if not kinds:
            turns = [*module.KINDS, *(kind for kind in emphasis if kind in module.KINDS)]
            kinds = [turns[i] for i in rng.permutation(len(turns))]
        kind = module.HELPERS[rng.integers(len(module.HELPERS))] if rng.random() < helpers else kinds.pop()
        pair = ask(module, scene, kind, rng)
        tries += 1
        # a scene with two digits has fewer different questions than a pack holds: then repeat
        if pair is not None and (pair not in asked or tries > 4 * n):
            asked.append(pair)
    return asked
