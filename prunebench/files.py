"""Your own questions: one JSON object per line, with images, videos and sound as files beside it.

``files:MANIFEST.jsonl`` names such a dataset, for calibration and in a suite. A line::

    {"instruction": "What color is the door?", "answer": "red", "options": ["red", "blue"], "image": "door.jpg"}

Keys: ``instruction`` (required), ``id``, ``answer``, ``options``, ``image`` or ``images``, ``video``, ``audio`` (paths
relative to the manifest), ``domain``, ``kind`` and ``split``.

Either every line says its ``split`` (train, calibration or test) or none does. Where none does, the splits come from a
hash of the line's media (of its instruction where it has none): of ten parts four calibrate, five test and one trains.
Lines about the same media fall into the same split, on every machine and whatever else is in the file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prunebench import jsonio
from prunebench.calibration.samples import Sample, input_fingerprint
from prunebench.dataset import SPLITS, Dataset
from prunebench.errors import BadParameter, MediaError, UnknownName
from prunebench.media.files import AudioFile, ImageFile, VideoFile, readable
from prunebench.plan import first_problem

__all__ = ["FilesDataset"]

_PARTS = ("calibration",) * 4 + ("test",) * 5 + ("train",)


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    instruction: str = Field(min_length=1)
    id: str | None = None
    answer: str | None = None
    options: list[str] = []
    image: str | None = None
    images: list[str] = []
    video: str | None = None
    audio: str | None = None
    domain: str = ""
    kind: str = ""
    split: Literal["train", "calibration", "test"] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> _Line:
        if self.image is not None and self.images:
            raise ValueError("give `image` or `images`, not both")
        if self.options and self.answer is not None and self.answer not in self.options:
            raise ValueError(f"the answer {self.answer!r} is not one of the options")
        return self


class FilesDataset(Dataset):
    """Your own questions with their media: ``files:MANIFEST.jsonl``, one JSON object per line.

    The module's text says what a line holds. Media are read when a model asks for them. The revision is a hash of all
    questions and of the content of all their files: renaming or moving them changes nothing, another picture under an
    old name does.
    """

    name = "files"

    def __init__(self, manifest: Path) -> None:
        self.manifest = Path(manifest)
        self._lines = _read(self.manifest)
        self.domains = tuple(dict.fromkeys(sample.domain for _, sample in self._lines))
        parts = [
            [split, sample.id, sample.answer, sample.domain, sample.kind, input_fingerprint(sample)]
            for split, sample in self._lines
        ]
        self.revision = jsonio.digest(parts)[:16]

    @property
    def label(self) -> str:
        return f"{self.name}:{self.manifest.name}@{self.revision}"

    @classmethod
    def open(cls, reference: str | None) -> FilesDataset:
        if not reference:
            raise BadParameter(f"dataset {cls.name!r} needs a manifest: {cls.name}:path/to/questions.jsonl")
        return cls(Path(reference))

    def samples(self, split: str, n: int, *, seed: int = 0, domain: str | None = None) -> list[Sample]:
        """The first `n` questions of a split, fewer where it has no more; domains take turns.

        Seed 0 keeps the order of the file, every other seed shuffles it in a way of its own.

        Raises:
            ValueError: an unknown split or domain, or nothing there.
        """
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; choose from {', '.join(SPLITS)}")
        if domain is not None and domain not in self.domains:
            raise ValueError(f"unknown domain {domain!r}; choose from {', '.join(map(repr, self.domains))}")
        found = [sample for own, sample in self._lines if own == split and domain in (None, sample.domain)]
        if not found:
            where = f"{self.manifest.name} has no line for {split!r}" + (f" in domain {domain!r}" if domain else "")
            raise ValueError(f'{where}: add some, or say "split" on every line')
        if seed:
            found.sort(key=lambda sample: hashlib.sha256(f"{seed}\x1f{sample.id}".encode()).digest())
        queues = [[s for s in found if s.domain == name] for name in self.domains]
        turns = [queue[i] for i in range(max(map(len, queues))) for queue in queues if i < len(queue)]
        return turns[:n]


def _read(manifest: Path) -> list[tuple[str, Sample]]:
    """(split, sample) in the order of the file."""
    try:
        text = readable(manifest).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadParameter(f"cannot read the manifest {manifest}: {error}") from error
    except MediaError as error:
        raise BadParameter(f"manifest: {error}") from error
    found: list[tuple[str, Sample]] = []
    seen: dict[str, int] = {}
    first: tuple[int, bool] | None = None  # whether the first line says its split
    for number, raw in enumerate(text.splitlines(), start=1):
        if not raw.strip():
            continue
        where = f"{manifest} line {number}"
        line = _parse(raw, where)
        sample = _sample(line, manifest.parent, where)
        if (before := seen.setdefault(sample.id, number)) != number:
            raise BadParameter(f"{where}: the same question (id {sample.id!r}) stands on line {before}")
        first = first or (number, line.split is not None)
        if first[1] != (line.split is not None):
            raise BadParameter(f'{where}: either every line says its "split" or none does; line {first[0]} differs')
        found.append((line.split or _split_of(sample), sample))
    if first is None:
        raise BadParameter(f"manifest {manifest} has no line in it")
    return found


def _parse(raw: str, where: str) -> _Line:
    try:
        values = json.loads(raw)
    except ValueError as error:
        raise BadParameter(f"{where} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise BadParameter(f'{where} must be an object: {{"instruction": "...", "image": "..."}}')
    for key in values:
        if key not in _Line.model_fields:
            raise BadParameter(f"{where}: {UnknownName('key', str(key), _Line.model_fields)}")
    try:
        return _Line.model_validate(values)
    except ValidationError as error:
        raise BadParameter(f"{where}: {first_problem(error)}") from error


def _sample(line: _Line, folder: Path, where: str) -> Sample:
    media: dict[str, Any] = {}
    try:
        if images := ([line.image] if line.image is not None else line.images):
            media["images"] = tuple(ImageFile(readable(folder / name)) for name in images)
        if line.video is not None:
            media["video"] = VideoFile(readable(folder / line.video))
        if line.audio is not None:
            media["audio"] = AudioFile(readable(folder / line.audio))
        sample = Sample(
            id=line.id or "",
            instruction=line.instruction,
            answer=line.answer,
            domain=line.domain,
            kind=line.kind,
            options=tuple(line.options),
            **media,
        )
        return sample if sample.id else replace(sample, id=f"{line.domain or 'files'}/{input_fingerprint(sample)[:12]}")
    except MediaError as error:
        raise BadParameter(f"{where}: {error}") from error


def _split_of(sample: Sample) -> str:
    """By content, so that questions about the same picture stay together."""
    media = [file.digest for file in (*sample.images, sample.video, sample.audio) if file is not None]
    key = "\x1f".join(media) or sample.instruction
    return _PARTS[int(hashlib.sha256(key.encode()).hexdigest(), 16) % len(_PARTS)]
