"""The real code of text benchmarks, words and likelihoods, without a network."""

from __future__ import annotations

import pytest

from tests.lmms.synthetic.case import write
from tests.lmms.synthetic.checks import (
    garbage_scores_what_is_drawn,
    mixed_answers_count_one_by_one,
    right_answers_get_full_marks,
    wrong_answers_get_nothing,
)
from tests.lmms.synthetic.fixtures import no_network, skip_unless_installed  # noqa: F401
from tests.lmms.synthetic.text_tasks import TEXT

pytest.importorskip("lmms_eval")


@pytest.fixture(scope="module", params=TEXT, ids=lambda case: case.task)
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
        pytest.skip("options are compared by likelihood: nothing can be unreadable")
    garbage_scores_what_is_drawn(written)
