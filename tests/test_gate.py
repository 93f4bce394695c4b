"""The dense gate: what passes, what is refused, what is only marked, and where a run stops."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from prunebench import leaderboard
from prunebench.cli import cli
from prunebench.gate import DenseGap, gate, refuse
from prunebench.published import Published, load_published
from prunebench.store import Store
from tests.commands import error_line, invoke, records_of
from tests.factories import make_dense, make_model, make_record
from tests.published_files import SMALL, llava_next, of_task, write_small

MODEL = make_model(name="org/small-1b")


def dense(look: float, half: float = 0.01, **changes: object):
    """A dense record of the small paper's model: printed 90.0 of 100 for `look`."""
    return make_dense({}, tasks=[of_task("look", "exact_match", look, half=half)], model=MODEL, **changes)


@pytest.fixture
def small(tmp_path) -> Published:
    return load_published(write_small(tmp_path / "figures"))


def changed(tmp_path: Path, *pairs: tuple[str, str]) -> Published:
    """The small paper with other words."""
    text = SMALL
    for old, new in pairs:
        assert text.count(old) >= 1
        text = text.replace(old, new, 1)
    folder = write_small(tmp_path / "changed")
    (folder / "small.yaml").write_text(text, encoding="utf-8")
    return load_published(folder)


def status(record, published: Published) -> str:
    (finding,) = gate(record, published)
    return finding.status


# -- the rule ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [0.0, 0.004, 0.03])
@pytest.mark.parametrize("sign", [-1, 1])
def test_tolerance_and_interval_add_up(small, half, sign):
    """Printed 90: 2 % of it is 1.8 points, more than 1 % of full marks; the interval reaches `half` further."""
    edge = 0.90 + sign * (0.018 + half)
    assert status(dense(edge, half), small) == "ok"
    assert status(dense(edge - sign * 1e-6, half), small) == "ok"
    assert status(dense(edge + sign * 1e-4, half), small) == "off"


def test_one_percent_of_full_marks_is_the_least(tmp_path):
    low = changed(tmp_path, ("values: [90.0, 400]", "values: [20.0, 400]"))  # 2 % would be 0.4 points
    assert status(dense(0.2099, 0.0), low) == "ok" and status(dense(0.2101, 0.0), low) == "off"


def test_a_column_may_state_its_tolerance_in_the_printed_unit(tmp_path):
    wide = changed(tmp_path, ("label: Look", "label: Look, tolerance: 5"))
    assert status(dense(0.8501, 0.0), wide) == "ok" and status(dense(0.8499, 0.0), wide) == "off"
    (finding,) = gate(dense(0.80, 0.0), wide)
    assert finding.references[0].tolerance == 5 and finding.references[0].excess == pytest.approx(5)


@pytest.mark.parametrize(("score", "scale"), [(0.5, 1.0), (50.0, 100.0), (400.0, 800.0)])
def test_scores_of_any_scale_are_compared_as_shares_of_full_marks(small, score, scale):
    result = of_task("mme", "mme_cognition_score", score, scale, half=0.0)
    (finding,) = gate(make_dense({}, tasks=[result], model=MODEL), small)
    assert finding.status == "ok"
    assert finding.references[0].measured == pytest.approx(400) and finding.references[0].tolerance == 8  # of 800


def test_by_the_evaluator_s_own_name_of_the_task(small):
    renamed = of_task("my_look", "exact_match", 0.5, source={"task": "look"})
    assert status(make_dense({}, tasks=[renamed], model=MODEL), small) == "off"
    for other in (of_task("my_look", "exact_match", 0.5), of_task("look", "accuracy", 0.5)):
        assert status(make_dense({}, tasks=[other], model=MODEL), small) == "unpublished"


def test_one_source_that_agrees_is_enough(tmp_path):
    folder = write_small(tmp_path / "two")
    other = SMALL.replace("[90.0, 400]", "[70.0, 400]").replace("A small paper", "Another paper")
    (folder / "other.yaml").write_text(other, encoding="utf-8")
    two = load_published(folder)
    for score, source in ((0.70, "Another paper"), (0.90, "A small paper")):
        (finding,) = gate(dense(score, 0.0), two)
        assert finding.status == "ok" and len(finding.references) == 2
        assert finding.references[0].source.startswith(source)  # the one that agrees comes first
    assert status(dense(0.80, 0.0), two) == "off"


@pytest.mark.parametrize(
    "pair",
    [
        ("method: dense, kind: dense,", "method: dense, kind: dense, recovery: fine-tuned,"),
        ("models: {Small-1B: [org/small-1b]}", "models: {Small-1B: [org/other]}"),
        ("metric: exact_match, scale: 100", "metric: exact_match, scale: 100, what: relative"),
        ("values: [90.0, 400]", "values: [null, 400]"),
    ],
)
def test_what_is_no_dense_score_of_these_weights_is_not_held_against_them(tmp_path, pair):
    other = changed(tmp_path, pair, ("relative: {to: dense},\n", ""))
    (finding,) = gate(dense(0.1), other)
    assert finding.status == "unpublished" and finding.words == "no published dense score is kept"


def test_a_pruned_row_that_is_printed_is_never_the_measure(tmp_path):
    only = changed(tmp_path, ("      {model: Small-1B, method: dense, kind: dense, values: [90.0, 400]},\n", ""),
                   ("relative: {to: dense},\n", ""))  # fmt: skip
    assert status(dense(0.1), only) == "unpublished"


# -- limited runs ------------------------------------------------------------------------------------------------------


def test_a_limit_that_asked_everything_is_no_limit_where_questions_share_a_score(small):
    source = {"limit": "900", "questions": "400", "asked": "400"}
    pairs = of_task("look", "exact_match", 0.9, n=200, source=source)
    (finding,) = gate(make_dense({}, tasks=[pairs], model=MODEL), small)
    assert finding.status == "ok" and finding.asked == 400


def test_a_limited_run_is_not_comparable(small):
    record = dense(0.1, cell={"limit": 20})
    (finding,) = gate(record, small)
    assert finding.status == "limited" and finding.words == "not comparable: the first 100 questions"
    refuse([finding])  # and never refused
    source = {"limit": "100", "questions": "900"}
    limited = make_dense({}, tasks=[of_task("look", "exact_match", 0.1, source=source)], model=MODEL)
    (finding,) = gate(limited, small)
    assert finding.words == "not comparable: 100 of 900 questions"
    text = leaderboard.build([limited, make_record("a", (1,), {"look": 5}, model=MODEL)], published=small)
    assert "| look | 10.0 | 9.0 to 11.0 | 90 | 1.8 | not comparable: 100 of 900 questions |" in text


def test_a_limit_that_left_nothing_out_is_none(small):
    source = {"limit": "900", "questions": "100"}
    whole = make_dense({}, tasks=[of_task("look", "exact_match", 0.1, source=source)], model=MODEL)
    assert status(whole, small) == "off"


# -- refusing ----------------------------------------------------------------------------------------------------------


def test_the_refusal_names_task_both_numbers_tolerance_and_source(small):
    findings = gate(dense(0.70, 0.02), small)
    with pytest.raises(DenseGap) as error:
        refuse(findings)
    text = str(error.value)
    assert "\n" not in text
    for word in ("look", "70.0", "68.0 to 72.0", "printed 90.0", "tolerance 1.8", "A small paper", "--allow-gap"):
        assert word in text
    assert findings[0].references[0].excess == pytest.approx(90 - 72 - 1.8)
    assert "dense org/small-1b does not" in text and "your own" not in text
    own = of_task("look", "exact_match", 0.5, source={"dataset": "own files"})
    with pytest.raises(DenseGap, match="questions from files of your own"):
        refuse(gate(make_dense({}, tasks=[own], model=MODEL), small))


def test_every_further_task_is_named():
    published = load_published()
    with pytest.raises(DenseGap, match="and 2 more: mmmu_val, mmbench_en_dev_static"):
        refuse(gate(llava_next(0.85)[0], published))
    refuse(gate(llava_next()[0], published))


def test_a_leaderboard_with_a_gap_is_refused_or_marked(tmp_path):
    store = Store(tmp_path / "runs")
    for record in llava_next(0.85):
        store.write(record)
    line = error_line(invoke("leaderboard", store.root, "--published"), code=1)
    assert "mme: measured 319.6 (311.6 to 327.6), printed 376.8, tolerance 8.0" in line and "--allow-gap" in line
    assert error_line(invoke("leaderboard", store.root, "--published", "--json"), code=1) == line
    file = tmp_path / "table.md"
    assert error_line(invoke("leaderboard", store.root, "--published", "--out", file), code=1) == line
    assert not file.exists()
    assert invoke("leaderboard", store.root, "--published", "--allow-gap", "--out", file).exit_code == 0
    text = file.read_text("utf-8")
    heading, mark = text.index("## llava-hf/"), text.index("**The dense model does not score what is printed of it**")
    assert heading < mark < text.index("- Model: ") and "| **off** |" in text
    assert "leaderboard --published --allow-gap`" in text
    assert invoke("leaderboard", store.root, "--check", file).exit_code == 0
    assert invoke("leaderboard", store.root).exit_code == 0  # without published figures nothing is refused
    (group,) = json.loads(invoke("leaderboard", store.root, "--published", "--allow-gap", "--json").stdout)
    assert {finding["status"] for finding in group["published"]["gate"]} == {"off"}


def test_each_group_has_its_own_gate():
    good, bad = llava_next(), llava_next(0.85, make_model(32, "org/unheard-of"))
    text = leaderboard.build([*good, *bad], published=load_published())  # nothing is printed of the second
    assert "agrees" in text and "**off**" not in text
    with pytest.raises(DenseGap):
        leaderboard.build(
            [*llava_next(0.85), *llava_next(1.0, make_model(32, "org/unheard-of"))], published=load_published()
        )


def test_without_a_dense_row_the_gate_says_so(small):
    text = leaderboard.build([make_record("a", (1,), {"look": 50}, model=MODEL)], published=small)
    assert "**Dense gate**: there is no complete dense row to hold against printed ones." in text


def test_a_derived_score_says_so_and_refuses_nothing():
    result = of_task("nextqa_mc_test", "exact_match", 0.733)
    model = make_model(28, "DAMO-NLP-SG/VideoLLaMA2.1-7B-AV")
    (finding,) = gate(make_dense({}, tasks=[result], model=model), load_published())
    assert finding.status == "ok" and "derived" in finding.words
    text = leaderboard.build([make_dense({}, tasks=[result], model=model)], published=load_published())
    assert "73.3 (derived)" in text
    off = make_dense({}, tasks=[of_task("nextqa_mc_test", "exact_match", 0.5)], model=model)
    (finding,) = gate(off, load_published())
    assert finding.status == "doubtful" and re.search(r"^off by \d.* from a derived score", finding.words)
    refuse([finding])
    text = leaderboard.build([off], published=load_published())
    assert finding.words in text and "does not score what is printed" not in text


def test_intervals_that_lie_aside_of_their_score_are_widened_to_it(small):
    record = dense(0.89, 0.0)
    (finding,) = gate(record, small)
    reference = finding.references[0]
    assert reference.excess == 0 and math.isclose(reference.low, reference.high)


# -- running -----------------------------------------------------------------------------------------------------------

FIGURES = """
title: What is printed of the testbed
id: arXiv:0000.00001
url: https://example.org
kind: paper
models: {Testbed: [testbed]}
tables:
  - name: T1
    columns: [{id: look, label: Look, tasks: [look], metric: exact_match, scale: 100}]
    rows: [{model: Testbed, method: dense, kind: dense, values: [VALUE]}]
"""
SUITE = """
title: Eight questions
tasks:
  - {id: look, dataset: testbed, domain: general, n: 8, modality: image}
"""
PLUGIN = """
from pathlib import Path
from prunebench import hookimpl

@hookimpl
def prunebench_register_suites(register):
    register(Path(__file__).parent / "suites")
"""


@pytest.fixture
def run(tmp_path):
    """`prunebench run` on eight questions, with a printed dense score and options."""
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "eight.yaml").write_text(SUITE, encoding="utf-8")
    (tmp_path / "plug.py").write_text(PLUGIN, encoding="utf-8")

    def invoked(printed: float, *options: object):
        folder = tmp_path / "figures"
        folder.mkdir(exist_ok=True)
        (folder / "testbed.yaml").write_text(FIGURES.replace("VALUE", str(printed)), encoding="utf-8")
        words = ("--plugin", tmp_path / "plug.py", "run", "--model", "testbed", "--suite", "eight", "--no-latency")
        words += ("-s", "last_n", "--layers", 2, "--out", tmp_path / "runs", "--published", folder, *options)
        return invoke(*words), tmp_path / "runs"

    return invoked


def test_a_run_stops_after_a_dense_cell_that_is_off(run):
    result, out = run(1.0)  # the dense testbed answers nearly all of its questions
    line = error_line(result, code=1)
    assert "look: measured" in line and "printed 1.0" in line and "--allow-gap" in line and "records kept" in line
    assert list(records_of(out)) == ["dense at sparsity 0"] and not (out / "leaderboard.md").exists()
    again, _ = run(1.0)  # the finished record is held against it too, before anything runs
    assert error_line(again, code=1) == line and len(records_of(out)) == 1
    allowed, _ = run(1.0, "--allow-gap")
    assert allowed.exit_code == 0 and len(records_of(out)) == 2
    assert "dense gate: look: measured" in allowed.stderr and "--allow-gap" in allowed.stderr
    table = (out / "leaderboard.md").read_text("utf-8")
    assert "**The dense model does not score what is printed of it**" in table and "| published | dense |" in table
    assert invoke("leaderboard", out, "--check", out / "leaderboard.md").exit_code == 0


def test_a_run_whose_dense_cell_agrees_goes_on(run):
    result, out = run(100.0)
    assert result.exit_code == 0, result.output
    assert "dense gate: look: agrees" in result.stderr and len(records_of(out)) == 2


def test_a_limited_run_goes_on_and_says_that_it_is_not_comparable(run):
    result, out = run(1.0, "--limit", 2)
    assert result.exit_code == 0 and len(records_of(out)) == 2
    assert "dense gate: look: not comparable: the first 2 questions" in result.stderr


def test_figures_that_cannot_be_read_stop_before_anything_is_loaded(run, tmp_path):
    missing = invoke("run", "-m", "testbed", "-s", "last_n", "--layers", 2, "--published", tmp_path / "nowhere")
    assert "no published figures" in error_line(missing)
    alone = invoke("run", "-m", "testbed", "-s", "last_n", "--layers", 2, "--allow-gap")
    assert "--allow-gap goes with --published" in error_line(alone)
    assert "published" in {parameter.name for parameter in cli.commands["run"].params}
