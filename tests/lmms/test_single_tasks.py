"""What single benchmarks do beside what all do: draws, groups, silence, packages, pictures fetched by their code."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import pytest
from prunebench_lmms_eval.evaluator import LmmsEvaluator

from prunebench.errors import EvaluationError, PruneBenchError
from tests.lmms.synthetic.case import Case, Document, Written, write
from tests.lmms.synthetic.checks import ask, garbage_scores_what_is_drawn
from tests.lmms.synthetic.fixtures import no_network  # noqa: F401
from tests.lmms.synthetic.media import sound
from tests.lmms.synthetic.scripted import scripted
from tests.lmms.synthetic.table import CASES
from tests.lmms.synthetic.video_tasks import mvbench_group

pytest.importorskip("lmms_eval")


def test_guessing_scores_chance(tmp_path):
    """Of 400 answers that cannot be read, a quarter hits by the draw in their place; the same ones every time."""
    case = CASES["muchomusic"]
    alike = {"context": str(sound(tmp_path / "one.wav", 0)), "instruction": "#0 Which instrument leads?"}

    def many(media):
        found = case.documents(media)
        return [replace(found[i % 8], fields={**found[i % 8].fields, **alike}) for i in range(400)]

    written = write(replace(case, documents=many), tmp_path)
    garbage_scores_what_is_drawn(written)
    first, second = (ask(written, ["###"] * 400) for _ in range(2))
    assert abs(first.score - 0.25) < 4 * (0.25 * 0.75 / 400) ** 0.5  # four standard deviations
    assert first.unparsable == 400 and first.scores == second.scores
    assert ask(written, ["###"] * 400, limit=7).scores == first.scores[:7]


def test_a_group_of_twenty(tmp_path):
    """One file of questions for each member in one folder, one folder of clips for all: the mean over members."""
    data, right = mvbench_group(tmp_path)
    task = Written(replace(CASES["mvbench_action_count"], task="mvbench"), [], data).task()
    assert task.options["aggregate"] == "mean"
    result = LmmsEvaluator().evaluate(scripted(right), task)
    assert result.score == 100 and result.n == 40 and len(set(result.ids)) == 40 == len(result.scores)
    result = LmmsEvaluator().evaluate(scripted([right[0], "(nothing)"]), task)
    assert result.score == pytest.approx(50) and sum(result.scores) / 40 == pytest.approx(50)
    assert sorted(result.scores) == [0.0] * 20 + [100.0] * 20


def test_silence_is_seen(tmp_path):
    """MVBench's code leaves empty answers out of its mean: one right answer and silence make 100, and a warning."""
    written = write(CASES["mvbench_action_count"], tmp_path)
    result = ask(written, [written.documents[0].right, *[""] * 4])
    assert (result.score, result.n, result.empty) == (100, 5, 4)
    assert result.scores == () and result.verdicts == (1, 0, 0, 0, 0)
    assert any("do not average" in text for text in result.warnings)


def test_a_package_that_is_not_there(tmp_path):
    """A task whose code cannot be imported is not asked, and the error names what is missing."""
    if find_spec("editdistance"):
        pytest.skip("editdistance is installed")
    with pytest.raises(PruneBenchError, match="editdistance"):
        ask(write(CASES["librispeech_test_clean"], tmp_path), ["north wind"] * 4)


def test_a_task_that_fetches_its_pictures_itself(tmp_path, no_network):  # noqa: F811
    """GQA's code asks the Hub for them whatever data it is given: without a network there is no score."""

    def documents(_):
        return [Document({"imageId": str(i), "question": f"#{i} What?", "answer": "boat"}, "", "") for i in range(3)]

    written = write(Case("gqa", "exact_match", documents, "testdev"), tmp_path)
    with pytest.raises(EvaluationError, match="gqa"):
        ask(written, ["boat"] * 3)
    no_network.clear()
