"""The real code of image benchmarks (prompts, parsing, aggregation) on documents made here, without a network."""

from __future__ import annotations

import pytest

from prunebench.errors import EvaluationError
from tests.lmms.synthetic.case import Case, Document, shipped, write
from tests.lmms.synthetic.checks import (
    ask,
    garbage_scores_what_is_drawn,
    mixed_answers_count_one_by_one,
    right_answers_get_full_marks,
    wrong_answers_get_nothing,
)
from tests.lmms.synthetic.fixtures import no_network, skip_unless_installed  # noqa: F401
from tests.lmms.synthetic.image_tasks import IMAGE
from tests.lmms.synthetic.reading_tasks import READING
from tests.lmms.synthetic.table import CASES, ELSEWHERE, PAPER

pytest.importorskip("lmms_eval")


@pytest.fixture(scope="module", params=[*IMAGE, *READING], ids=lambda case: case.task)
def written(request, tmp_path_factory):
    skip_unless_installed(request.param.task)
    return write(request.param, tmp_path_factory.mktemp(request.param.task))


def test_right_answers(written):
    right_answers_get_full_marks(written)


def test_wrong_answers(written):
    wrong_answers_get_nothing(written)


def test_mixed_answers(written):
    mixed_answers_count_one_by_one(written)


def test_garbage(written):
    if written.case.garbage is None:
        pytest.skip("a judge reads it: test_judges.py")
    garbage_scores_what_is_drawn(written)


def test_a_task_that_fetches_its_pictures_itself(tmp_path, no_network):  # noqa: F811
    """GQA's code asks the Hub for them whatever data it is given: without a network there is no score."""

    def documents(_):
        return [Document({"imageId": str(i), "question": f"#{i} What?", "answer": "boat"}, "", "") for i in range(3)]

    written = write(Case("gqa", "exact_match", documents, "testdev"), tmp_path)
    with pytest.raises(EvaluationError, match="gqa"):
        ask(written, ["boat"] * 3)
    no_network.clear()


def test_every_task_that_ships_is_known():
    """What a suite asks is asked here too, with the suite's own entry, or stands among the exceptions."""
    assert set(shipped()) - set(CASES) == set(ELSEWHERE)
    assert set(PAPER) <= set(shipped()) and len(CASES) >= 20
    for name, entry in shipped().items():
        if name in CASES:
            case = CASES[name]
            assert (entry.metric, entry.filter, entry.scale) == (case.metric, case.filter, case.scale), name
