"""Documents of benchmarks about text, numbers and drawings in pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.lmms.synthetic.case import Case, Document
from tests.lmms.synthetic.image_tasks import letters
from tests.lmms.synthetic.media import picture

__all__ = ["READING"]

WORDS = ("Harbour Road", "Tuesday", "1984", "green tea", "platform nine", "seventeen")
KINDS = ("Regular Text Recognition", "Handwriting Recognition", "Doc-oriented VQA", "Key Information Extraction")


def _vqa(_: Path) -> list[Document]:
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
        right, wrong = {"40": ("41.9", "42.1"), "25%": ("0.25", "25")}.get(answer, (answer, "99"))
        documents.append(Document(fields, right, wrong))
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
    """The whole benchmark has 1000 questions: its code divides by that, however few are asked."""
    return sum(right) / 1000


def _vqav2(_: Path) -> list[Document]:
    """Ten people answered, two of them something else: with three alike an answer is right."""
    documents = []
    for i, word in enumerate(WORDS):
        answers = [{"answer": word if k < 8 else "no idea", "answer_id": k} for k in range(10)]
        fields = {"question_id": i, "question": f"#{i} What is it?", "image": picture(i), "answers": answers}
        documents.append(Document(fields, word, "something else"))
    return documents


def _countbench(_: Path) -> list[Document]:
    documents = []
    for i in range(6):
        fields = {"image": picture(i), "question": f"#{i} How many boats are there?", "number": 2 + i, "text": ""}
        documents.append(Document(fields, str(2 + i), str(3 + i)))
    return documents


def _geometry(_: Path) -> list[Document]:
    documents = []
    for i in range(6):
        right, wrong = letters(i)
        fields = {
            "images": [picture(i)], "problem": f"#{i} Find x.", "choices": ["15.5", "20.0", "31.0", "47.5"],
            "ground_truth": right,
        }  # fmt: skip
        documents.append(Document(fields, f"Answer: {right}", f"Answer: {wrong}"))
    return documents


def _kangaroo(_: Path) -> list[Document]:
    documents = []
    for i in range(6):
        right, wrong = letters(i, 5)
        fields = {"image": picture(i), "question": f"#{i} Which piece is missing?", "ground_truth": right}
        documents.append(Document(fields, right, wrong))
    return documents


READING = (
    Case("textvqa_val", "exact_match", _vqa, "validation", form="parquet"),
    Case("textvqa_val_lite", "exact_match", _vqa, "lite", form="parquet"),
    Case("vizwiz_vqa_val", "exact_match", _vqa, "val", form="parquet"),
    Case("vizwiz_vqa_val_lite", "exact_match", _vqa, "lite", form="parquet"),
    Case("vqav2_val_lite", "exact_match", _vqav2, "lite", form="parquet"),
    Case("chartqa", "relaxed_overall", _chartqa, form="parquet"),
    Case("chartqa_lite", "relaxed_overall", _chartqa, "lite", form="parquet"),
    Case("docvqa_val", "anls", _anls, "validation", form="parquet"),
    Case("docvqa_val_lite", "anls", _anls, "lite", form="parquet"),
    Case("infovqa_val", "anls", _anls, "validation", form="parquet"),
    Case(
        "ocrbench", "ocrbench_accuracy", _ocrbench, form="parquet", score=ocrbench_score, full=len(WORDS) / 1000,
        paired=False,
    ),
    Case("countbenchqa", "acc", _countbench, form="parquet"),
    Case("geometry3k", "exact_match", _geometry, form="parquet"),
    Case("mathkangaroo", "mathkangaroo_accuracy", _kangaroo, "train", form="parquet"),
)  # fmt: skip
