"""The real code of image benchmarks (prompts, parsing, aggregation) on documents made here, without a network."""

from __future__ import annotations

import pytest

pytest.importorskip("lmms_eval")
pytest.register_assert_rewrite("tests.lmms.synthetic.checks")

from tests.lmms.synthetic.case import write
from tests.lmms.synthetic.checks import (
    garbage_scores_what_is_drawn,
    mixed_answers_count_one_by_one,
    right_answers_get_full_marks,
    wrong_answers_get_nothing,
)
from tests.lmms.synthetic.fixtures import no_network  # noqa: F401
from tests.lmms.synthetic.image_tasks import IMAGE
from tests.lmms.synthetic.reading_tasks import READING


@pytest.fixture(scope="module", params=[*IMAGE, *READING], ids=lambda case: case.task)
def written(request, tmp_path_factory):
    return write(request.param, tmp_path_factory.mktemp(request.param.task))


def test_right_answers(written):
    right_answers_get_full_marks(written)


def test_wrong_answers(written):
    wrong_answers_get_nothing(written)


def test_mixed_answers(written):
    mixed_answers_count_one_by_one(written)


def test_garbage(written):
    if written.case.garbage is None:
        pytest.skip("a judge reads it: see below")
    garbage_scores_what_is_drawn(written)
