"""Documents of audio benchmarks. Sounds stand in their tables as paths, which no audio decoder is needed for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tests.lmms.synthetic.case import LETTERS, Case, Document, share
from tests.lmms.synthetic.image_tasks import letters
from tests.lmms.synthetic.media import sound

__all__ = ["AUDIO"]

HEARD = ("rain", "a dog", "a car", "applause")
VOICES = ("Laughter", "Sniff", "Throat clearing", "Cough", "Sigh", "Sneeze")


def _clotho(media: Path) -> list[Document]:
    """Yes, no and words; small letters and full stops do not matter."""
    documents = []
    for i, answer in enumerate(("yes", "no", "rain", "dog", "yes", "two")):
        fields = {
            "audio": str(sound(media / f"s{i}.wav", i)), "question": f"#{i} What is heard?", "answer": answer,
            "file_name": f"s{i}.wav",
        }  # fmt: skip
        documents.append(Document(fields, f"{answer.capitalize()}.", "no" if answer != "no" else "yes"))
    return documents


def _muchomusic(media: Path) -> list[Document]:
    documents = []
    for i in range(8):
        right, wrong = letters(i)
        fields = {
            "context": str(sound(media / f"s{i}.wav", i)), "instruction": f"#{i} Which instrument leads?",
            "choices": [f"({letter}) {name}" for letter, name in zip("ABCD", HEARD, strict=True)],
            "answer": f"({right}) {HEARD[i % 4]}",
        }  # fmt: skip
        documents.append(Document(fields, f"({right})", f"({wrong})", tuple(LETTERS[:4]), right))
    return documents


def _mmau(media: Path) -> list[Document]:
    documents = []
    for i in range(6):
        right, wrong = letters(i)
        fields = {
            "audio": str(sound(media / f"s{i}.wav", i)), "question": f"#{i} What is heard?", "id": str(i),
            "choices": json.dumps(HEARD), "answer": HEARD[i % 4], "task": ("sound", "music")[i % 2],
        }  # fmt: skip
        documents.append(Document(fields, right, wrong, tuple(LETTERS[:4]), right))
    return documents


def _vocalsound(media: Path) -> list[Document]:
    """The question is always the same: only the sound tells one from another."""
    documents = []
    for i, voice in enumerate(VOICES):
        fields = {
            "audio": str(sound(media / f"s{i}.wav", i)), "answer": voice, "age_group": 1 + i % 3,
            "spk_id": ("f1", "m2")[i % 2],
        }  # fmt: skip
        documents.append(Document(fields, f"This is {voice.lower()}.", VOICES[i - 1]))
    return documents


def _librispeech(media: Path) -> list[Document]:
    """Four words each: every word that is missing or another one is an error."""
    documents = []
    for i, word in enumerate(("north", "wind", "stone", "river")):
        fields = {
            "audio": str(sound(media / f"s{i}.wav", i)), "gt": f"{word.upper()} AND SUMMER RAIN", "task": "asr_en",
            "source": "librispeech_test_clean",
        }  # fmt: skip
        documents.append(Document(fields, f"{word} and summer rain", f"{word} and winter rain"))
    return documents


def word_errors(right: Sequence[float]) -> float:
    """One of four words is another one where an answer is wrong."""
    return 100 * share([0.25 * (1 - one) for one in right])


def _mmsu(media: Path) -> list[Document]:
    documents = []
    for i in range(6):
        right, wrong = letters(i)
        fields = {
            "audio": str(sound(media / f"s{i}.wav", i)), "question": f"#{i} What is the mood?", "answer": right,
            **{f"choice_{letter}": heard for letter, heard in zip("abcd", HEARD, strict=True)},
            "category": "Perception", "sub_category": "Paralinguistics", "task_name": "mood",
        }  # fmt: skip
        documents.append(Document(fields, right, wrong, tuple(LETTERS[:4]), right))
    return documents


AUDIO = (
    Case("clotho_aqa_test", "exact_match", _clotho, "clotho_aqa_test_filtered", modality="audio"),
    Case("muchomusic", "accuracy", _muchomusic, modality="audio"),
    Case("mmau_test_mini", "accuracy", _mmau, "test_mini", scale=100, modality="audio"),
    Case("mmsu", "accuracy", _mmsu, scale=100, modality="audio"),
    Case("vocalsound_test", "accuracy", _vocalsound, modality="audio"),
    Case(
        "librispeech_test_clean", "wer", _librispeech, "librispeech_test_clean", scale=100, modality="audio",
        score=word_errors, full=0, higher_is_better=False, paired=False, garbage=None,
    ),
)  # fmt: skip
