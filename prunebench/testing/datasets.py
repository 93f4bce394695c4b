"""What a dataset has to keep to: the same samples everywhere, in splits that do not meet."""

from __future__ import annotations

from dataclasses import fields
from functools import cached_property
from typing import Any

import numpy as np

from prunebench.calibration.samples import Sample, fingerprint
from prunebench.dataset import SPLITS, Dataset
from prunebench.errors import BadParameter, PruneBenchError, first_line, typed_line
from prunebench.testing.report import Checklist, Failed, Skipped

__all__ = ["ON_DATASET", "DatasetCase"]

ON_DATASET = Checklist()
_N = 12


class DatasetCase:
    """A dataset class, or an opened instance."""

    def __init__(self, dataset: type[Dataset] | Dataset) -> None:
        self.cls = dataset if isinstance(dataset, type) else type(dataset)
        self._given = None if isinstance(dataset, type) else dataset

    @cached_property
    def dataset(self) -> Dataset:
        if self._given is not None:
            return self._given
        try:
            return self.cls.open(None)
        except BadParameter as error:
            raise Skipped(f"it does not open by its name alone: {first_line(error)}") from error

    @cached_property
    def splits(self) -> dict[str, list[Sample]]:
        """The first samples of every split that the dataset has."""
        found, last = {}, None
        for split in SPLITS:
            try:
                found[split] = self.take(split)
            except (ValueError, PruneBenchError) as error:  # not every dataset has all three
                last = error
        if not found:
            raise Failed(f"no split can be read ({', '.join(SPLITS)}): {typed_line(last) if last else ''}")
        return found

    def take(self, split: str, n: int = _N, **options: Any) -> list[Sample]:
        samples = self.dataset.samples(split, n, **options)
        if not isinstance(samples, list) or not all(isinstance(sample, Sample) for sample in samples):
            raise Failed(f"samples({split!r}, {n}) is no list of Sample")
        return samples


@ON_DATASET
def docstring(case: DatasetCase) -> None:
    """The docstring says what the samples are and where they come from."""
    if not (vars(case.cls).get("__doc__") or "").strip():
        raise Failed(f"{case.cls.__name__} has no docstring: say what the samples are and where they come from")


@ON_DATASET
def declaration(case: DatasetCase) -> None:
    """Name, domains and revision are declared."""
    if missing := sorted(getattr(case.cls, "__abstractmethods__", ())):
        raise Failed(f"{case.cls.__name__} does not implement {', '.join(missing)}")
    for name in (getattr(case.cls, "name", None), *case.cls.aliases):
        if not isinstance(name, str) or not name or ":" in name:
            raise Failed(f"{name!r} is no name that can be typed: use text without a colon")
    if not isinstance(case.dataset.revision, str) or not case.dataset.revision:
        raise Failed("revision is empty: give a text that changes with the samples")


@ON_DATASET
def samples(case: DatasetCase) -> None:
    """As many samples as asked for, with an instruction each, and media of the stated types."""
    for split, found in case.splits.items():
        if not found or len(found) > _N:
            raise Failed(f"samples({split!r}, {_N}) gave {len(found)}")
        for sample in found:
            if not sample.instruction.strip():
                raise Failed(f"sample {sample.id!r} has no instruction")
            if problem := _media_problem(sample):
                raise Failed(f"sample {sample.id!r}: {problem}")
            if sample.options and sample.answer not in (None, *sample.options):
                raise Failed(f"sample {sample.id!r}: the answer {sample.answer!r} is none of its options")


def _media_problem(sample: Sample) -> str | None:
    for image in sample.images:
        if isinstance(image, np.ndarray) and (image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3):
            return f"an image is {image.dtype} {image.shape}: give uint8 (height, width, 3)"
    video, audio = sample.video, sample.audio
    if isinstance(video, np.ndarray) and (video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3):
        return f"the video is {video.dtype} {video.shape}: give uint8 (frames, height, width, 3)"
    if isinstance(audio, np.ndarray):
        if audio.dtype != np.float32 or audio.ndim != 1:
            return f"the audio is {audio.dtype} {audio.shape}: give float32 (samples,)"
        if not sample.sampling_rate:
            return "audio without a sampling_rate"
        if len(audio) and not np.abs(audio).max() <= 1.0:
            return "the audio leaves [-1, 1]"
    return None


@ON_DATASET
def ids(case: DatasetCase) -> None:
    """Ids are unique within a split."""
    for split, found in case.splits.items():
        names = [sample.id for sample in found]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise Failed(f"the id {twice!r} stands twice in {split}")


@ON_DATASET
def determinism(case: DatasetCase) -> None:
    """A dataset opened anew gives the same samples."""
    for split, found in case.splits.items():
        again = (case.dataset if case._given is not None else case.cls.open(None)).samples(split, _N)
        if fingerprint(again) != fingerprint(found):
            raise Failed(f"{split}: another {_named_difference(found, again)} the second time: seed every draw")


def _named_difference(first: list[Sample], second: list[Sample]) -> str:
    for mine, theirs in zip(first, second, strict=False):
        if fingerprint([mine]) != fingerprint([theirs]):
            for field in fields(Sample):
                if repr(getattr(mine, field.name)) != repr(getattr(theirs, field.name)):
                    return f"{field.name} of sample {mine.id!r}"
            return f"sample {mine.id!r}"
    return "number of samples"


@ON_DATASET
def prefix(case: DatasetCase) -> None:
    """Sample i does not depend on how many are asked for."""
    for split, found in case.splits.items():
        fewer = case.take(split, max(1, len(found) // 2))
        if fingerprint(fewer) != fingerprint(found[: len(fewer)]):
            raise Failed(f"{split}: the first {len(fewer)} samples differ when {len(found)} are asked for")


@ON_DATASET
def disjoint_splits(case: DatasetCase) -> None:
    """No question is in two splits."""
    if len(case.splits) < 2:
        raise Skipped("the dataset has one split")
    seen: dict[tuple[str, ...], str] = {}
    for split, found in case.splits.items():
        for sample in found:
            key = (sample.instruction, fingerprint([_anonymous(sample)]))
            if seen.setdefault(key, split) != split:
                raise Failed(f"sample {sample.id!r} of {split} is in {seen[key]} too")


def _anonymous(sample: Sample) -> Sample:
    from dataclasses import replace

    return replace(sample, id="", domain="")


@ON_DATASET
def domains(case: DatasetCase) -> None:
    """Each declared domain can be asked for alone; without one, all are mixed evenly."""
    names = case.dataset.domains
    if not names:
        raise Skipped("the dataset declares no domains")
    for split, found in case.splits.items():
        for name in names:
            alone = case.take(split, 3, domain=name)
            if wrong := [sample for sample in alone if sample.domain != name]:
                raise Failed(f"domain={name!r} gave a sample of {wrong[0].domain!r}")
        counts = [sum(sample.domain == name for sample in found) for name in names]
        if len(found) >= len(names) and max(counts) - min(counts) > 1:
            raise Failed(f"{split}: {dict(zip(names, counts, strict=True))} in the first {len(found)}: take turns")


@ON_DATASET
def unknown_split(case: DatasetCase) -> None:
    """A split that does not exist is refused."""
    try:
        case.dataset.samples("no-such-split", 1)
    except (ValueError, PruneBenchError):
        return
    raise Failed("samples('no-such-split', 1) gave samples: raise BadParameter")
