"""Documents of image benchmarks: general questions, science, hallucination."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.lmms.synthetic.case import LETTERS, Case, Document, share
from tests.lmms.synthetic.media import picture

__all__ = ["IMAGE"]

OPTIONS = ("a boat", "a lamp", "a horse", "a river")
MME = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning", "existence")
MMSTAR = ("coarse perception", "math")


def letters(i: int, n: int = 4) -> tuple[str, str]:
    """The right letter of document `i`, and a wrong one."""
    return LETTERS[i % n], LETTERS[(i + 1) % n]


def listed(options: Sequence[str] = OPTIONS) -> str:
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


def _mme(_: Path) -> list[Document]:
    """A pair of questions, one to be affirmed and one to be denied, for each kind."""
    documents = []
    for i in range(2 * len(MME)):
        said = ("Yes", "No")[i % 2]
        fields = {
            "question_id": f"{MME[i // 2]}/{i // 2}.png", "image": picture(i), "answer": said,
            "question": f"#{i} Is this a boat? Please answer yes or no.", "category": MME[i // 2],
        }  # fmt: skip
        documents.append(Document(fields, said, ("No", "Yes")[i % 2]))
    return documents


def mme_score(right: Sequence[float]) -> float:
    """Accuracy of the kind plus accuracy of its pairs, in per cent, over the four kinds of cognition."""
    pairs = [right[2 * kind : 2 * kind + 2] for kind in range(4)]
    return sum(100 * share(pair) + 100 * (sum(pair) == 2) for pair in pairs)


def _mmmu(_: Path) -> list[Document]:
    """Three questions with one picture, one with two among the words, one with a free answer."""
    documents = []
    for i, subject in enumerate(("Art", "Art", "Physics", "Music", "Physics")):
        right, wrong = letters(i)
        fields: dict[str, Any] = {
            "id": f"validation_{subject}_{i}", "question": f"#{i} What is in <image 1>?", "options": str(list(OPTIONS)),
            "question_type": "multiple-choice", "answer": right, "image_1": picture(i), "image_2": None,
        }  # fmt: skip
        if i == 3:
            fields |= {"question": f"#{i} What changes from <image 1> to <image 2> here?", "image_2": picture(i, 1)}
        if i == 4:
            fields |= {"question_type": "open", "options": "[]", "answer": "42"}
            documents.append(Document(fields, "42", "43"))
        else:
            documents.append(Document(fields, right, wrong, tuple(LETTERS[:4]), right))
    return documents


def _mathvista(_: Path) -> list[Document]:
    documents = []
    for i in range(6):
        choices = ["3 cm", "4 cm", "5 cm"] if i < 4 else None
        answer = choices[i % 3] if choices else str(10 + i)
        wrong = choices[(i + 1) % 3] if choices else "7"
        fields = {
            "pid": str(i), "question": f"#{i} How long is it?", "decoded_image": picture(i), "unit": "",
            "question_type": "multi_choice" if choices else "free_form", "choices": choices, "answer": answer,
            "answer_type": "text" if choices else "integer", "precision": 0.0, "query": f"Question {i}",
            "metadata": {"split": "testmini", "language": "english", "source": "made", "category": "general-vqa",
                         "task": "figure question answering", "context": "scientific figure",
                         "grade": "high school", "skills": ["scientific reasoning"]},
        }  # fmt: skip
        documents.append(Document(fields, answer, wrong))
    return documents


def _mmbench(_: Path) -> list[Document]:
    """Four questions, each asked again with its options turned round: one is right if it is right both times."""
    documents = []
    for i in range(8):
        turned = OPTIONS[i // 4 :] + OPTIONS[: i // 4]
        right, wrong = letters(i)
        fields = {
            "index": i % 4 + 1_000_000 * (i // 4), "question": f"#{i} What is it?", "hint": "nan",
            **dict(zip("ABCD", turned, strict=True)), "answer": right, "category": ("attribute", "ocr")[i % 2],
            "L2-category": "finegrained_perception", "source": "made", "split": "dev", "image": picture(i),
        }  # fmt: skip
        documents.append(Document(fields, right, wrong))
    return documents


def mmbench_score(right: Sequence[float]) -> float:
    return 100 * share([right[i] * right[i + 4] for i in range(4)])


def _mmstar(_: Path) -> list[Document]:
    """Five questions of one kind and two of the other: the average is over kinds."""
    documents = []
    for i in range(7):
        right, wrong = letters(i)
        fields = {
            "index": i, "question": f"#{i} What is it?\nOptions: {listed()}", "image": picture(i), "answer": right,
            "category": MMSTAR[i > 4], "l2_category": ("image emotion", "geometry")[i > 4],
        }  # fmt: skip
        documents.append(Document(fields, right, wrong))
    return documents


def mmstar_score(right: Sequence[float]) -> float:
    return (share(right[:5]) + share(right[5:])) / 2


def _scienceqa(_: Path) -> list[Document]:
    documents = []
    for i in range(6):
        right, wrong = letters(i, 3)
        fields = {
            "image": picture(i), "question": f"#{i} Which is alive?", "choices": list(OPTIONS[:3]),
            "answer": LETTERS.index(right), "hint": "Look well." if i % 2 else "",
        }  # fmt: skip
        documents.append(Document(fields, right, wrong))
    return documents


def _ai2d(_: Path) -> list[Document]:
    documents = []
    for i in range(6):
        right, wrong = letters(i)
        fields = {
            "question": f"#{i} What does the arrow show?", "options": list(OPTIONS), "image": picture(i),
            "answer": str(LETTERS.index(right)),
        }  # fmt: skip
        documents.append(Document(fields, f"{right}. {OPTIONS[i % 4]}", f"{wrong}. {OPTIONS[(i + 1) % 4]}"))
    return documents


def _realworldqa(_: Path) -> list[Document]:
    """Letters, and one number."""
    documents = []
    for i in range(6):
        right, wrong = ("3", "4") if i == 5 else letters(i)
        fields = {"image": picture(i), "question": f"#{i} How many?\n{listed()}", "answer": right}
        documents.append(Document(fields, right, wrong))
    return documents


def _seedbench(_: Path) -> list[Document]:
    """The last question has two pictures, as frames of a video."""
    documents = []
    for i in range(6):
        right, wrong = letters(i)
        fields = {
            "image": [picture(i, place) for place in range(2 if i == 5 else 1)], "question": f"#{i} What is it?",
            **{f"choice_{letter}": option for letter, option in zip("abcd", OPTIONS, strict=True)}, "answer": right,
            "data_type": "video" if i == 5 else "image", "question_id": str(i),
        }  # fmt: skip
        documents.append(Document(fields, right, wrong))
    return documents


def _cv_bench(_: Path) -> list[Document]:
    documents = []
    for i in range(6):
        right, wrong = letters(i)
        fields = {
            "idx": i, "type": "2D", "task": "Count", "image": picture(i), "question": f"#{i} How many?",
            "choices": list(OPTIONS), "answer": f"({right})", "source": "COCO",
            "prompt": f"#{i} How many? Select from the following choices.\n{listed()}",
        }  # fmt: skip
        documents.append(Document(fields, f"({right})", f"({wrong})"))
    return documents


def _mmvp(_: Path) -> list[Document]:
    documents = []
    for i in range(6):
        right, wrong = ("A", "B") if i % 2 == 0 else ("B", "A")
        fields = {
            "Index": i + 1, "Question": f"#{i} Is the boat open?", "Options": "(a) Open (b) Shut", "image": picture(i),
            "Correct Answer": f"({right.lower()})",
        }  # fmt: skip
        documents.append(Document(fields, right, wrong))
    return documents


def mmvp_score(right: Sequence[float]) -> float:
    return share([right[i] * right[i + 1] for i in range(0, len(right), 2)])


def _muirbench(_: Path) -> list[Document]:
    documents = []
    for i in range(6):
        right, wrong = letters(i)
        fields = {
            "idx": str(i), "task": "Counting", "image_relation": "Independent", "image_type": "Photo", "answer": right,
            "question": f"#{i} Which of <image><image><image> is it?", "options": list(OPTIONS),
            "image_list": [picture(i, place) for place in range(3)],
        }  # fmt: skip
        documents.append(Document(fields, right, wrong))
    return documents


def _pope(_: Path) -> list[Document]:
    documents = []
    for i in range(8):
        said = ("yes", "no")[i % 2]
        fields = {
            "id": str(i), "question_id": str(i), "question": f"#{i} Is there a boat?", "answer": said,
            "image_source": f"picture {i // 2}", "image": picture(i), "category": "random",
        }  # fmt: skip
        documents.append(Document(fields, said.capitalize(), ("No", "Yes")[i % 2]))
    return documents


def _hallusion(_: Path) -> list[Document]:
    documents = []
    for i in range(6):
        fields = {
            "category": "VD", "subcategory": "chart", "set_id": str(i // 2), "figure_id": str(i % 2),
            "question_id": "0",
            "question": f"#{i} Does the line rise?", "gt_answer": str(i % 2), "gt_answer_details": "It does or not.",
            "filename": f"chart_{i // 2}.png", "image": picture(i),
        }  # fmt: skip
        documents.append(Document(fields, ("No.", "Yes, it does.")[i % 2], ("Yes", "No")[i % 2]))
    return documents


def _biased(_: Path) -> list[Document]:
    """A picture that differs in one detail from what everybody knows."""
    documents = []
    for i in range(6):
        fields = {
            "image": picture(i), "prompt": f"#{i} How many legs? Answer with a number in curly brackets.",
            "ground_truth": str(5 + i), "expected_bias": str(4 + i), "topic": "Animals",
        }  # fmt: skip
        documents.append(Document(fields, f"{{{5 + i}}}", str(4 + i)))
    return documents


def _hallusion(_: Path) -> list[Document]:
    """Two questions about each picture; what holds no yes is taken for a no."""
    documents = []
    for i in range(6):
        fields = {
            "category": ("VD", "VS")[i % 2], "subcategory": "figure", "set_id": str(i // 2), "figure_id": str(i % 2),
            "question_id": "0", "visual_input": "1", "question": f"#{i} Is the left circle larger?",
            "gt_answer": ("1", "0")[i % 2], "gt_answer_details": "It is.", "image": picture(i),
            "filename": f"{i // 2}.png",
        }  # fmt: skip
        documents.append(Document(fields, ("Yes.", "No.")[i % 2], ("No.", "Yes.")[i % 2], unread=i % 2))
    return documents


IMAGE = (
    Case(
        "mme", "mme_cognition_score", _mme, form="parquet", scale=800, score=mme_score, asked=range(8),
        units=[(i, i + 1) for i in range(0, 8, 2)],
    ),
    Case("mmmu_val", "mmmu_acc", _mmmu, "validation", form="parquet"),
    Case(
        "mathvista_testmini_format", "llm_as_judge_eval", _mathvista, "testmini", form="parquet", scale=100,
        garbage=None,
    ),
    Case(
        "mmbench_en_dev_static", "gpt_eval_score", _mmbench, "dev", form="parquet", scale=100, score=mmbench_score,
        units=[(i, i + 4) for i in range(4)],
    ),
    Case("mmstar", "average", _mmstar, "val", form="parquet", score=mmstar_score),
    Case("scienceqa_img", "exact_match", _scienceqa, form="parquet"),
    Case("ai2d", "exact_match", _ai2d, form="parquet", filter="flexible-extract"),
    Case("ai2d_lite", "exact_match", _ai2d, "lite", form="parquet", filter="flexible-extract"),
    Case("realworldqa", "exact_match", _realworldqa, form="parquet"),
    Case("seedbench", "seed_all", _seedbench, form="parquet", options={"score": {"equal": ["pred", "answer"]}}),
    Case("cv_bench", "cv_bench_acc", _cv_bench, form="parquet"),
    Case(
        "mmvp", "mmvp_pair_accuracy", _mmvp, "train", form="parquet", score=mmvp_score,
        units=[(i, i + 1) for i in range(0, 6, 2)],
    ),
    Case(
        "muirbench", "muirbench_score_overall", _muirbench, form="parquet", filter="flexible-extract",
        options={"score": {"equal": ["pred", "answer"]}},
    ),
    Case("pope", "pope_accuracy", _pope, form="parquet"),
    Case("hallusion_bench_image_static", "aAcc", _hallusion, "image", form="parquet", garbage=None),  # it means no
    Case("hallusion_bench_image_static", "aAcc", _hallusion, "image", form="parquet"),
    Case("vlms_are_biased", "accuracy", _biased, "main", form="parquet"),
)  # fmt: skip
