"""Documents of text benchmarks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.lmms.synthetic.case import LETTERS, Case, Document
from tests.lmms.synthetic.image_tasks import OPTIONS, letters

__all__ = ["TEXT"]


def _gsm8k(_: Path) -> list[Document]:
    documents = []
    for i in range(6):
        fields = {"question": f"#{i} How many apples are left?", "answer": f"There are {i} and 10.\n#### {10 + i}"}
        documents.append(Document(fields, f"So it is {10 + i}.\n#### {10 + i}", f"#### {11 + i}"))
    return documents


def gsm8k_examples() -> list[dict[str, Any]]:
    return [{"question": f"How many are {i} and 1?", "answer": f"One more.\n#### {i + 1}"} for i in range(8)]


def mmlu_examples() -> list[dict[str, Any]]:
    return [{"question": f"Which is {i}?", "choices": list("0123"), "answer": i} for i in range(4)]


def _generative(_: Path) -> list[Document]:
    documents = []
    for i in range(6):
        right, wrong = letters(i)
        fields = {"question": f"#{i} Which of these floats?", "choices": list(OPTIONS), "answer": LETTERS.index(right)}
        documents.append(Document(fields, right, wrong))
    return documents


def _likelihood(_: Path) -> list[Document]:
    """The same, compared by likelihood."""
    return [replace(document, option=i % 4) for i, document in enumerate(_generative(_))]


def _arc(_: Path) -> list[Document]:
    """Compared by likelihood: an answer is the option itself."""
    documents = []
    for i in range(6):
        right, wrong = letters(i)
        fields = {
            "id": str(i), "question": f"#{i} Which of these floats?", "answerKey": right,
            "choices": {"text": list(OPTIONS), "label": list(LETTERS[:4])},
        }  # fmt: skip
        said = (OPTIONS[LETTERS.index(letter)] for letter in (right, wrong))
        documents.append(Document(fields, *said, option=LETTERS.index(right)))
    return documents


def _ifeval(_: Path) -> list[Document]:
    """Instructions that a rule can check."""
    documents = []
    for i in range(4):
        fields = {
            "key": i, "prompt": f"#{i} Name a river. Do not use any commas.", "kwargs": [{}],
            "instruction_id_list": ["punctuation:no_comma"],
        }  # fmt: skip
        documents.append(Document(fields, "The Rhine", "The Rhine, of course"))
    return documents


TEXT = (
    Case(
        "gsm8k", "exact_match", _gsm8k, filter="flexible-extract", modality="text", extra={"train": gsm8k_examples},
        garbage="no number",
    ),
    Case("mmlu_anatomy_generative", "exact_match", _generative, modality="text", extra={"dev": mmlu_examples}),
    Case("mmlu_anatomy", "acc", _likelihood, modality="text", extra={"dev": mmlu_examples}, garbage=None),
    Case("arc_easy", "acc", _arc, modality="text", garbage=None),
    Case("arc_challenge", "acc", _arc, modality="text", garbage=None),
    Case("ifeval", "prompt_level_strict_acc", _ifeval, "train", modality="text", garbage=", ,"),
)  # fmt: skip
