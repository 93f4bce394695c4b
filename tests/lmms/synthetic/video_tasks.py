"""Documents of video benchmarks: the clips lie where each task looks for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tests.lmms.synthetic.case import LETTERS, Case, Document, share
from tests.lmms.synthetic.image_tasks import OPTIONS, letters, listed
from tests.lmms.synthetic.media import clip

__all__ = ["VIDEO", "mvbench_group"]

ACTIONS = ("runs away", "sits down", "turns round", "falls over", "waves twice")
MLVU = ("anomaly_reco", "count", "ego", "needle", "order", "plotQA", "topic_reasoning")


def _videomme(media: Path) -> list[Document]:
    documents = []
    for i in range(5):
        right, wrong = letters(i)
        name = f"v{i}"
        clip(media / f"{name}.mp4", i)
        fields = {
            "videoID": name, "video_id": name, "question_id": f"{name}-1", "question": f"#{i} What happens?",
            "options": listed(ACTIONS[:4]).split("\n"), "answer": right, "duration": ("short", "long")[i % 2],
            "domain": "Knowledge", "sub_category": "Geography", "task_type": "Action Recognition",
        }  # fmt: skip
        documents.append(Document(fields, right, wrong))
    return documents


def _nextqa(media: Path) -> list[Document]:
    documents = []
    for i in range(5):
        right, wrong = letters(i, 5)
        clip(media / f"{100 + i}.mp4", i)
        fields = {
            "video": str(100 + i), "question": f"#{i} what does the man do", "answer": LETTERS.index(right),
            "qid": str(i), "type": "CW", **{f"a{k}": action for k, action in enumerate(ACTIONS)},
        }  # fmt: skip
        documents.append(Document(fields, f"{right}. {ACTIONS[i]}", wrong, tuple(LETTERS), right))
    return documents


def _mvbench(media: Path) -> list[Document]:
    documents = []
    for i in range(5):
        right, wrong = letters(i, 3)
        clip(media / f"v{i}.mp4", i)
        fields = {
            "video": f"v{i}.mp4", "question": f"#{i} How often does it happen?", "candidates": ["2", "3", "4"],
            "answer": ("2", "3", "4")[i % 3],
        }  # fmt: skip
        documents.append(Document(fields, f"({right})", f"({wrong})"))
    return documents


def _egoschema(media: Path) -> list[Document]:
    documents = []
    for i in range(5):
        right, wrong = letters(i, 5)
        clip(media / f"v{i}.mp4", i)
        fields = {
            "video_idx": f"v{i}", "question_idx": str(i), "question": f"#{i} What is the purpose?",
            "option": listed(ACTIONS).split("\n"), "answer": str(LETTERS.index(right)),
        }  # fmt: skip
        documents.append(Document(fields, right, wrong, tuple(LETTERS), right))
    return documents


def _perceptiontest(media: Path) -> list[Document]:
    documents = []
    for i in range(5):
        right, wrong = letters(i, 3)
        name = f"video_{i}"
        clip(media / f"{name}.mp4", i)
        fields = {
            "video_name": name, "question": f"#{i} What moves?", "question_id": str(i),
            "options": list(OPTIONS[:3]), "answer_id": str(LETTERS.index(right)), "area": "physics",
            "reasoning": "descriptive", "tag": ["motion"],
        }  # fmt: skip
        documents.append(Document(fields, right, wrong))
    return documents


def _longvideobench(media: Path) -> list[Document]:
    documents = []
    for i in range(5):
        right, wrong = letters(i)
        clip(media / f"v{i}.mp4", i)
        fields = {
            "id": f"q{i}", "video_path": f"v{i}.mp4", "question": f"#{i} What comes next?", "option4": "N/A",
            **{f"option{k}": action for k, action in enumerate(ACTIONS[:4])}, "correct_choice": LETTERS.index(right),
            "duration_group": (15, 600)[i % 2], "question_category": "S2E", "video_id": f"v{i}",
        }  # fmt: skip
        documents.append(Document(fields, right, wrong, tuple(LETTERS[:4]), right))
    return documents


def _tempcompass(media: Path) -> list[Document]:
    documents = []
    for i in range(5):
        right, wrong = letters(i)
        clip(media / f"v{i}.mp4", i)
        fields = {
            "video_id": f"v{i}", "question": f"#{i} What happens?\n{listed(ACTIONS[:4])}", "dim": "action",
            "answer": f"{right}. {ACTIONS[i % 4]}",
        }  # fmt: skip
        documents.append(Document(fields, f"{right}.", f"{wrong}."))
    return documents


def _mlvu(media: Path) -> list[Document]:
    """One question of each kind, and a second one of the first: the average is over kinds."""
    documents = []
    for i in range(len(MLVU) + 1):
        right, wrong = letters(i)
        clip(media / f"v{i}.mp4", i)
        fields = {
            "video_name": f"v{i}.mp4", "question": f"#{i} What is shown?\n{listed()}", "answer": right,
            "task_type": MLVU[i % len(MLVU)], "duration": 1.0,
        }  # fmt: skip
        documents.append(Document(fields, f"{right})", f"{wrong})"))
    return documents


def mlvu_score(right: Sequence[float]) -> float:
    return 100 * share([share([right[0], right[7]]), *right[1:7]])


VIDEO = (
    Case("videomme", "videomme_perception_score", _videomme, scale=100, modality="video", media="data"),
    Case("nextqa_mc_test", "exact_match", _nextqa, modality="video", media="NExTVideo"),
    Case(
        "mvbench_action_count", "mvbench_accuracy", _mvbench, "train", scale=100, modality="video",
        media="perception/videos", options={"score": "score"},
    ),
    Case("egoschema_subset", "score", _egoschema, modality="video", media="videos"),
    Case("perceptiontest_val_mc", "accuracy", _perceptiontest, "validation", modality="video", media="videos"),
    Case("longvideobench_val_v", "lvb_acc", _longvideobench, "validation", modality="video", media="videos"),
    Case(
        "tempcompass_multi_choice", "avg_accuracy", _tempcompass, scale=100, modality="video", media="videos",
        judge="openai", garbage=None, options={"score": "rating"},
    ),
    Case("mlvu_dev", "mlvu_percetion_score", _mlvu, scale=100, score=mlvu_score, modality="video", media=""),
)  # fmt: skip


def mvbench_group(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Two questions for each of MVBench's twenty tasks, on two clips: what `Task.data` says, and the two answers."""
    from lmms_eval.tasks.mvbench import utils  # where each task looks for its clips

    for name, place in utils.DATA_LIST.items():
        documents = _mvbench(folder / "media" / place)[:2]
        (folder / "questions" / name).mkdir(parents=True)
        lines = [json.dumps(document.fields) for document in documents]
        (folder / "questions" / name / "train.json").write_text("\n".join(lines), encoding="utf-8")
    data = {"train": str(folder / "questions"), "media": str(folder / "media")}
    return data, [document.right for document in documents]
