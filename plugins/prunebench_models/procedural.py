"""Procedural perception questions for any vision-language model: the testbed's scenes, asked in plain sentences.

Nothing is downloaded and every answer is known by construction, so any adapter has a suite and calibration data from
the first day. They are synthetic questions about simple pictures, clips and tones: no benchmark from the literature.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from prunebench.calibration.samples import Sample
from prunebench.dataset import SPLITS, Dataset
from prunebench.errors import BadParameter
from prunebench_models.testbed.data import TestbedDataset

__all__ = ["IMAGE_SIZE", "ProceduralDataset"]

IMAGE_SIZE = 336
"""Pixels of a side; the testbed draws 64, which is less than one patch row of some towers."""

_SELECTIONS = {
    "image": ("general", "math"),
    "image-video": ("general", "math", "video"),
    "audio": ("audio",),
    "all": ("general", "math", "video", "audio"),
}

# What a model cannot know without having been trained on these scenes, by domain or by domain and kind.
_CONTEXT = {
    "general": "The image shows colored shapes on a dark ground.",
    "math/digit": "The image shows digits.",
    "math/bar": "The image shows colored bars; heights are whole numbers, 8 is as tall as the image.",
    "video": "The video shows colored shapes in four frames, numbered from 1 to 4.",
    "audio/pitch": "The sound has one to four tones. The six pitches do, re, mi, fa, sol and la lie a fourth apart, "
    "from do at 260 hertz upwards.",
    "audio/duration": "The sound has one to four tones. A short one lasts 1/16 second, a medium one 1/8, a long one "
    "1/4.",
    "audio/instrument": "The sound has one to four tones of synthetic instruments: a flute is a pure tone, a clarinet "
    "has odd harmonics, a violin all harmonics, a bell inharmonic partials.",
    "audio": "The sound has one to four tones, one after the other.",
}
_WORDS = {"topleft": "top left", "topright": "top right", "bottomleft": "bottom left", "bottomright": "bottom right"}


class ProceduralDataset(Dataset):
    """Questions for any vision-language model: ``procedural:image``, ``:image-video``, ``:audio`` or ``:all``.

    Images are of the domains general and math. Question i of a split, seed and domain is question i of the testbed's
    dataset, so the splits are disjoint in the same way. The words are full sentences that end with the options; images
    and frames are enlarged to 336 pixels by nearest neighbour. Score them by the metric ``option_match``.
    """

    name = "procedural"

    def __init__(self, selection: str = "all") -> None:
        self.selection = selection
        self.domains = _SELECTIONS[selection]
        self.revision = f"{TestbedDataset.revision}.1"

    @property
    def label(self) -> str:
        return f"{self.name}:{self.selection}"

    @classmethod
    def open(cls, reference: str | None) -> ProceduralDataset:
        if reference is not None and reference not in _SELECTIONS:
            known = ", ".join(f"{cls.name}:{selection}" for selection in _SELECTIONS)
            raise BadParameter(f"dataset {cls.name!r} has no part {reference!r}; use {known}")
        return cls(reference or "all")

    def samples(self, split: str, n: int, *, seed: int = 0, domain: str | None = None) -> list[Sample]:
        """The first `n` questions of a split.

        Raises:
            ValueError: an unknown split or domain.
        """
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; choose from {', '.join(SPLITS)}")
        if domain is not None and domain not in self.domains:
            raise ValueError(f"unknown domain {domain!r}; choose from {', '.join(self.domains)}")
        domains = self.domains if domain is None else (domain,)
        counts = [len(range(start, n, len(domains))) for start in range(len(domains))]
        source = TestbedDataset()
        by_domain = [
            source.samples(split, count, seed=seed, domain=name) for name, count in zip(domains, counts, strict=True)
        ]
        return [_asked(by_domain[i % len(domains)][i // len(domains)]) for i in range(n)]


def _asked(sample: Sample) -> Sample:
    options = tuple(_WORDS.get(option, option) for option in sample.options)
    question = sample.instruction[0].upper() + sample.instruction[1:]
    if (sample.domain, sample.kind) == ("video", "when"):
        subject = sample.instruction.removeprefix("when does ").removesuffix(" come")
        question = f"In which frame does {subject} first appear"
    listed = f"{', '.join(options[:-1])} or {options[-1]}"
    ending = "Answer with one of" if any(" " in option for option in options) else "Answer with one word"
    return replace(
        sample,
        id=f"procedural/{sample.id}",
        instruction=f"{_context(sample)} {question}? {ending}: {listed}.",
        answer=_WORDS.get(sample.answer or "", sample.answer),
        options=options,
        images=tuple(_enlarged(image) for image in sample.images),
        video=None if sample.video is None else _enlarged(sample.video),
    )


def _context(sample: Sample) -> str:
    keys = (f"{sample.domain}/{sample.kind}", f"{sample.domain}/{sample.kind.split('_')[0]}", sample.domain)
    return next(_CONTEXT[key] for key in keys if key in _CONTEXT)


def _enlarged(pixels: np.ndarray) -> np.ndarray:
    """(..., H, W, 3) to (..., IMAGE_SIZE, IMAGE_SIZE, 3) by nearest neighbour."""
    middles = 2 * np.arange(IMAGE_SIZE) + 1  # of the new pixels, in half pixels
    rows, columns = (middles * size // (2 * IMAGE_SIZE) for size in pixels.shape[-3:-1])
    return pixels[..., rows[:, None], columns[None, :], :]
