"""Documents of benchmarks about text in pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.lmms.synthetic.case import Case, Document
from tests.lmms.synthetic.media import picture

__all__ = ["READING"]

WORDS = ("Harbour Road", "Tuesday", "1984", "green tea", "platform nine", "seventeen")
KINDS = ("Regular Text Recognition", "Handwriting Recognition", "Doc-oriented VQA", "Key Information Extraction")


def _textvqa(_: Path) -> list[Document]:
    """Ten people answered, all alike."""
    documents = []
    for i, word in enumerate(WORDS):
        fields = {
            "question_id": i, "image_id": f"picture {i // 2}", "question": f"#{i} what is written there?",
            "image": picture(i), "answers": [word] * 10, "ocr_tokens": word.split(),
        }  # fmt: skip
        documents.append(Document(fields, word, "nothing"))
    return documents


def _chartqa(_: Path) -> list[Document]:
    """Right within 5 % where it is a number, letter by letter where it is a word."""
    documents = []
    for i, answer in enumerate(("40", "Norway", "12.5", "blue", "25%", "1984")):
        fields = {
            "type": ("human_test", "augmented_test")[i % 2], "question": f"#{i} What is the value?", "answer": answer,
            "image": picture(i),
        }  # fmt: skip
        documents.append(Document(fields, {"40": "41.9", "25%": "0.25"}.get(answer, answer), {"40": "42.1"}.get(answer, "99")))
    return documents


def _anls(_: Path) -> list[Document]:
    """Two answers count."""
    documents = []
    for i, word in enumerate(WORDS):
        fields = {
            "questionId": str(i), "question": f"#{i} What does the form say?", "answers": ["nobody knows", word],
            "image": picture(i), "docId": i // 2,
        }  # fmt: skip
        documents.append(Document(fields, word, "zzzzzzzzzzzzzzzzzzzz"))
    return documents


def _ocrbench(_: Path) -> list[Document]:
    documents = []
    for i, word in enumerate(WORDS):
        fields = {
            "dataset": "made", "question": f"#{i} What is written in the image?", "answer": [word],
            "question_type": KINDS[i % 4], "image": picture(i),
        }  # fmt: skip
        documents.append(Document(fields, f"It says: {word}.", "It says nothing."))
    return documents


def ocrbench_score(right: Sequence[float]) -> float:
    """The whole benchmark has 1000 questions, and that is what the number right is divided by, however few are asked."""
    return sum(right) / 1000


READING = (
    Case("textvqa_val", "exact_match", _textvqa, "validation", form="parquet"),
    Case("chartqa", "relaxed_overall", _chartqa, form="parquet"),
    Case("docvqa_val", "anls", _anls, "validation", form="parquet"),
    Case("infovqa_val", "anls", _anls, "validation", form="parquet"),
    Case("ocrbench", "ocrbench_accuracy", _ocrbench, score=ocrbench_score, full=len(WORDS) / 1000, form="parquet"),
)
