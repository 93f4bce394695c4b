"""The real code of every benchmark (prompts, parsing, aggregation) on documents made here, without a network."""

from __future__ import annotations

import pytest

from tests.lmms.synthetic.case import shipped, write
from tests.lmms.synthetic.checks import (
    garbage_scores_what_is_drawn,
    mixed_answers_count_one_by_one,
    right_answers_get_full_marks,
    wrong_answers_get_nothing,
)
from tests.lmms.synthetic.fixtures import no_network, skip_unless_installed  # noqa: F401
from tests.lmms.synthetic.table import CASES, ELSEWHERE, PAPER

pytest.importorskip("lmms_eval")


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
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
        pytest.skip(
            "nothing is unreadable here: a judge reads it (test_judges.py), every word counts, or options are compared"
        )
    garbage_scores_what_is_drawn(written)


def test_every_task_that_ships_is_known():
    """What a suite asks is asked here too, with the suite's own entry, or stands among the exceptions."""
    assert set(shipped()) - set(CASES) == set(ELSEWHERE)
    assert set(PAPER) <= set(shipped()) and len(CASES) >= 20
    for name, entry in shipped().items():
        if name in CASES:
            case = CASES[name]
            assert (entry.metric, entry.filter, entry.scale) == (case.metric, case.filter, case.scale), name
