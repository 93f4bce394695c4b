"""Documents of text benchmarks."""

from __future__ import annotations

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


def _mmlu(_: Path) -> list[Document]:
    documents = []
    for i in range(6):
        right, wrong = letters(i)
        fields = {"question": f"#{i} Which of these floats?", "choices": list(OPTIONS), "answer": LETTERS.index(right)}
        documents.append(Document(fields, right, wrong))
    return documents


TEXT = (
    Case("gsm8k", "exact_match", _gsm8k, filter="strict-match", extra={"train": gsm8k_examples}, modality="text"),
)
