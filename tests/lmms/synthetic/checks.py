"""What must hold for every task, whatever it asks: checked through the evaluator, on models that answer by a script."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from typing import Any

import pytest

from prunebench.evaluator import TaskResult
from tests.lmms.synthetic.case import Case, Document, Written
from tests.lmms.synthetic.scripted import scripted

__all__ = ["ask", "garbage_scores_what_is_drawn", "mixed_answers_count_one_by_one", "right_answers_get_full_marks",
           "wrong_answers_get_nothing"]  # fmt: skip


def ask(written: Written, answers: Sequence[str], **changes: Any) -> TaskResult:
    """The task's result for a model that gives `answers`, one for each document."""
    from prunebench_lmms_eval.evaluator import LmmsEvaluator

    return LmmsEvaluator().evaluate(scripted(answers), written.task(**changes))


def right_answers_get_full_marks(written: Written) -> None:
    result = ask(written, [document.right for document in written.documents])
    assert result.score == pytest.approx(written.case.full_marks)
    consistent(written, result)
    assert result.empty == result.unparsable == 0
    said = [" | ".join(written.documents[i].shown for i in unit) for unit in written.questions]
    assert list(result.answers) == said


def wrong_answers_get_nothing(written: Written) -> None:
    """And count as answers: they can be read."""
    result = ask(written, [document.wrong for document in written.documents])
    assert result.score == pytest.approx(written.case.expected([0.0] * len(written.documents)))
    consistent(written, result)
    assert result.empty == result.unparsable == 0


def mixed_answers_count_one_by_one(written: Written) -> None:
    """Two of three are right: the score, and which questions got it."""
    right = [float(i % 3 != 1) for i in range(len(written.documents))]
    answers = [one.right if good else one.wrong for one, good in zip(written.documents, right, strict=True)]
    result = ask(written, answers)
    assert result.score == pytest.approx(written.case.expected(right), rel=1e-4)
    consistent(written, result)
    who_is_right(written, result, right)


def garbage_scores_what_is_drawn(written: Written) -> None:
    """Answers that nothing can be made of: nothing, or what the task draws in their place, and they are counted."""
    case = written.case
    result = ask(written, [case.garbage] * len(written.documents))
    hits = [drawn_right(case, i, document) for i, document in enumerate(written.documents)]
    assert result.score == pytest.approx(case.expected(hits))
    consistent(written, result)
    who_is_right(written, result, hits)
    unread = [i for unit in written.questions for i in unit]
    if any(drawn := [bool(document.draws) for document in written.documents]):
        unread = [i for i in unread if drawn[i]]
    elif "answers" not in written.task().options:  # any words are an answer
        unread = []
    assert (result.empty, result.unparsable) == (0, len(unread))


def drawn_right(case: Case, i: int, document: Document) -> float:
    """Whether the draw that belongs to this question hits the right option."""
    if not document.draws:
        return document.unread
    own = random.Random(zlib.crc32(f"prunebench_{case.task}/{i}".encode()))
    return float(own.choice(document.draws) == document.target)


def who_is_right(written: Written, result: TaskResult, right: Sequence[float]) -> None:
    """Question by question; one of both is there wherever the metric is a mean, see `consistent`."""
    if verdicts := result.verdicts or result.scores:
        assert [value > 0 for value in verdicts] == [all(right[i] for i in unit) for unit in written.questions]


def consistent(written: Written, result: TaskResult) -> None:
    """n, ids, scores and clusters speak of the same questions, and the mean of the scores is the score."""
    case = written.case
    n = len(written.questions)
    assert (result.task, result.metric, result.scale) == (case.task, case.metric, case.scale)
    assert result.n == n == len(result.ids) == len(set(result.ids)) == len(result.answers)
    if case.paired or (result.scores and not any(result.scores)):
        assert result.scores and sum(result.scores) / n == pytest.approx(result.score, rel=1e-4, abs=1e-9)
        assert result.ci_low <= result.score <= result.ci_high
    else:
        assert not result.scores and len(result.verdicts) in (0, n)
        assert any(case.metric in text for text in result.warnings)
    column = written.task().cluster
    if column:
        first = [str(written.documents[unit[0]].fields[column]) for unit in written.questions]
        pairs = set(zip(result.clusters, first, strict=True))
        assert len(pairs) == len(set(result.clusters)) == len(set(first))
    else:
        assert result.clusters == ()
