"""Suites are data: what is in the file counts, how it is worded does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunebench.errors import EvaluationError, UsageError
from prunebench.suites import builtin_suites_dir, load_suite, suite_files

GOOD = """
name: looks
title: Looks
tasks:
  - {id: colour, dataset: shapes, n: 10, why: "the colour of one shape"}
  - {id: count, dataset: shapes, domain: many, n: 20}
"""


def write(tmp_path: Path, text: str, name: str = "suite.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_suite_is_read(tmp_path):
    suite = load_suite(write(tmp_path, GOOD))
    assert suite.name == "looks" and [task.id for task in suite.tasks] == ["colour", "count"]
    first, second = suite.tasks
    assert (first.n, first.evaluator, first.metric, first.split, first.modality) == (
        10,
        "local",
        "exact_match",
        "test",
        "image",
    )
    assert second.domain == "many" and first.domain is None and first.chance is None


def test_without_a_name_it_is_called_like_its_file(tmp_path):
    assert load_suite(write(tmp_path, GOOD.replace("name: looks", ""), "sight.yaml")).name == "sight"


WRONG = {
    "unknown field of a task": (GOOD.replace("n: 20", "nn: 20"), "tasks.1.nn"),
    "unknown field": (GOOD + "\nsurprise: 1", "surprise"),
    "task id twice": (GOOD.replace("id: count", "id: colour"), "task id 'colour' stands twice"),
    "no tasks": ("name: looks\ntasks: []", "tasks"),
    "tasks missing": ("name: looks", "tasks"),
    "no questions": (GOOD.replace("n: 10", "n: 0"), "tasks.0.n"),
    "not YAML": ("tasks: [", "is not YAML"),
    "a list": ("- a", "must hold `name:` and `tasks:`"),
    "empty": ("", "must hold `name:` and `tasks:`"),
}


@pytest.mark.parametrize(("text", "words"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_suite_is_one_line_with_its_file(tmp_path, text, words):
    path = write(tmp_path, text)
    with pytest.raises(EvaluationError) as caught:
        load_suite(path)
    assert str(path) in str(caught.value) and words in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(EvaluationError, match="cannot read suite"):
        load_suite(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(EvaluationError, match="cannot read suite"):
        load_suite(tmp_path / "binary.yaml")


def test_the_digest_does_not_depend_on_wording(tmp_path):
    digest = load_suite(write(tmp_path, GOOD)).digest()
    for other in (
        GOOD.replace("the colour of one shape", "something else"),
        GOOD.replace("title: Looks", "description: other words"),
        GOOD.replace("{id: colour, dataset: shapes, n: 10,", "{n: 10, dataset: shapes, id: colour,"),
    ):
        assert other != GOOD and load_suite(write(tmp_path, other)).digest() == digest


def test_the_digest_depends_on_all_that_changes_questions_or_scores(tmp_path):
    suite = load_suite(write(tmp_path, GOOD))
    others = [
        GOOD.replace("n: 10", "n: 11"),
        GOOD.replace("domain: many", "domain: few"),
        GOOD.replace("n: 20", "n: 20, seed: 1"),
        GOOD.replace("n: 20", "n: 20, metric: other"),
        GOOD.replace("n: 20", "n: 20, max_new_tokens: 9"),
        GOOD.replace("n: 20", "n: 20, split: train"),
        GOOD.replace("n: 20", "n: 20, chance: 0.5"),
        GOOD.replace("n: 20", "n: 20, options: {a: 1}"),
        GOOD.replace("id: count", "id: counts"),
    ]
    digests = {load_suite(write(tmp_path, text)).digest() for text in others}
    revised = {suite.digest({"shapes": "1"}), suite.digest({"shapes": "2"})}
    assert len(digests | revised | {suite.digest()}) == len(others) + 3


def test_folders_stand_for_their_files(tmp_path):
    with pytest.raises(UsageError, match="no suite"):
        suite_files(tmp_path)
    with pytest.raises(UsageError, match="no such suite"):
        suite_files(tmp_path / "absent")
    a, b = write(tmp_path, GOOD, "b.yaml"), write(tmp_path, GOOD, "a.yml")
    write(tmp_path, "", "notes.txt")
    assert suite_files(tmp_path) == [b, a] and suite_files(a) == [a]


def test_every_suite_that_ships_is_valid_and_says_why():
    suites = [load_suite(path) for path in suite_files(builtin_suites_dir())]
    assert suites and len({suite.name for suite in suites}) == len(suites)
    assert all(suite.title and task.why for suite in suites for task in suite.tasks)
