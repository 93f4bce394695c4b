"""Suites are data: what is in the file counts, how it is worded does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunebench.dataset import open_dataset
from prunebench.errors import BadParameter, EvaluationError, UnknownName, UsageError
from prunebench.plugins import get_plugins
from prunebench.store import load_records
from prunebench.suite_selection import limited, only_tasks, parse_data, with_data, without_judged
from prunebench.suites import JUDGES, Task, builtin_suites_dir, load_suite, suite_files

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
    "unknown field of a task": (GOOD.replace("n: 20", "nn: 20"), "tasks.1.nn: unknown key 'nn'; did you mean 'n'?"),
    "field of a task nearly right": (GOOD.replace("n: 20", "directon: lower"), "did you mean 'direction'?"),
    "unknown field": (GOOD + "\nsurprise: 1", "surprise: unknown key 'surprise' Known: description, name"),
    "unknown direction": (GOOD.replace("n: 20", "direction: up"), "direction is higher or lower, got 'up'"),
    "two directions": (GOOD.replace("n: 20", "direction: lower, higher_is_better: true"), "contradict each other"),
    "unknown judge": (GOOD.replace("n: 20", "judge: openal"), "unknown judge 'openal'; did you mean 'openai'?"),
    "weight of nothing": (GOOD.replace("n: 20", "weight: 0"), "tasks.1.weight"),
    "data that is not there": (
        GOOD.replace("n: 20", "data: {test: no.parquet}"),
        "task 'count': data for 'test' is not",
    ),
    "media that is no folder": (GOOD.replace("n: 20", "data: {media: suite.yaml}"), "'media' is a folder"),
    "task id twice": (GOOD.replace("id: count", "id: colour"), "task id 'colour' stands twice"),
    "no tasks": ("name: looks\ntasks: []", "a suite needs at least one task"),
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


def test_one_mistake_counts_once(tmp_path):
    with pytest.raises(EvaluationError) as caught:
        load_suite(write(tmp_path, "tasks:\n  - {id: a, limit: 0}\n"))
    assert "tasks.0.limit" in str(caught.value) and "more)" not in str(caught.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(EvaluationError, match="cannot read suite"):
        load_suite(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(EvaluationError, match="cannot read suite"):
        load_suite(tmp_path / "binary.yaml")


def test_the_digest_does_not_depend_on_wording(tmp_path):
    digest = load_suite(write(tmp_path, GOOD)).digest()
    for other in (
        GOOD.replace("n: 20", "n: 20, questions: 1234, disk_gb: 12.5, needs: [pandas]"),
        GOOD.replace("n: 20", "n: 20, direction: higher, weight: 1, judge: none"),
        GOOD.replace("n: 20", "n: 20, data: {test: .}"),
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
        GOOD.replace("n: 20", "n: 20, direction: lower"),
        GOOD.replace("n: 20", "n: 20, limit: 5"),
        GOOD.replace("n: 20", "n: 20, judge: openai"),
        GOOD.replace("n: 20", "n: 20, weight: 2"),
        GOOD.replace("n: 20", "n: 20, generation: {max_new_tokens: 3}"),
        GOOD.replace("n: 20", "n: 20, filter: strict"),
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


def test_the_digests_of_committed_records_are_those_of_today():
    """What came later to a task changes no suite that does not use it, so no record is orphaned."""
    plugins, root = get_plugins(), Path(__file__).parent.parent / "leaderboards"
    checked = set()
    for folder in sorted(path for path in root.iterdir() if (path / "records").is_dir() or path.is_dir()):
        for record in load_records([folder]):
            name, limit = record.cell.suite, record.cell.limit
            if (name, limit) in checked or name not in plugins.registry("suites"):
                continue
            suite = limited(load_suite(plugins.get("suites", name)), limit)
            revisions = {t.dataset: open_dataset(plugins, t.dataset).revision for t in suite.tasks if t.dataset}
            assert suite.digest(revisions) == record.cell.suite_digest, (name, limit)
            checked.add((name, limit))
    assert ("testbed", None) in checked


def test_direction_is_another_word_for_higher_is_better(tmp_path):
    first, second = load_suite(write(tmp_path, GOOD.replace("n: 20", "direction: lower"))).tasks
    assert first.higher_is_better and not second.higher_is_better
    plain = load_suite(write(tmp_path, GOOD.replace("n: 20", "higher_is_better: false"))).tasks[1]
    assert plain == second


def test_data_is_found_from_the_suite_file(tmp_path, monkeypatch):
    (tmp_path / "suites" / "videos").mkdir(parents=True)
    (tmp_path / "suites" / "own.jsonl").write_text("{}", encoding="utf-8")
    path = write(tmp_path / "suites", GOOD.replace("n: 20", "data: {test: own.jsonl, media: videos}"))
    monkeypatch.chdir(tmp_path)
    expected = {"test": str(tmp_path / "suites" / "own.jsonl"), "media": str(tmp_path / "suites" / "videos")}
    assert load_suite(path).tasks[1].data == load_suite(Path("suites") / path.name).tasks[1].data == expected


def test_data_from_the_command_line(tmp_path, monkeypatch):
    suite = load_suite(write(tmp_path, GOOD.replace("n: 20", "data: {validation: .}")))
    (tmp_path / "a=b.parquet").write_text("", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    given = parse_data(["colour=a=b.parquet", "count:train=suite.yaml", "count:media=."])
    assert given == {"colour": "a=b.parquet", "count:train": "suite.yaml", "count:media": "."}
    colour, count = with_data(suite, given).tasks
    assert colour.data == {"test": str(tmp_path / "a=b.parquet")}
    whole = {"validation": str(tmp_path), "train": str(tmp_path / "suite.yaml"), "media": str(tmp_path)}
    assert count.data == whole and with_data(suite, given).digest() == suite.digest()
    other = with_data(suite, {"colour": "."}, split_of=lambda task: f"split of {task.id}").tasks[0]
    assert other.data == {"split of colour": str(tmp_path)}
    with pytest.raises(UnknownName, match="unknown task of suite 'looks' 'colours'; did you mean 'colour'"):
        with_data(suite, {"colours": "."})
    with pytest.raises(BadParameter, match="task 'colour': data for 'test' is not there"):
        with_data(suite, {"colour": "absent.parquet"})
    for wrong in ("colour", "=x", "colour="):
        with pytest.raises(BadParameter, match="--data wants TASK=PATH"):
            parse_data([wrong])


def test_a_limit_holds_for_datasets_and_for_foreign_tasks(tmp_path):
    suite = load_suite(write(tmp_path, GOOD + "  - {id: far, evaluator: lmms, questions: 900, limit: 50}"))
    small, far = limited(suite, 15), limited(suite, 15).tasks[2]
    assert [task.n for task in small.tasks[:2]] == [10, 15] and all(task.limit is None for task in small.tasks[:2])
    assert far.limit == 15 and far.count == 15 and suite.tasks[2].count == 50
    assert limited(suite, 60).tasks[2].limit == 50 and limited(suite, None) == suite
    assert Task(id="a", questions=900).count == 900 and Task(id="a", questions=900, limit=7).count == 7


def test_some_tasks_of_a_suite(tmp_path):
    suite = load_suite(write(tmp_path, GOOD))
    assert only_tasks(suite, ()) == (suite, {})
    some, left_out = only_tasks(suite, ["count"])
    assert [task.id for task in some.tasks] == ["count"] and left_out == {"colour": "not asked for"}
    assert some.digest() != suite.digest()
    with pytest.raises(UnknownName, match="did you mean 'count'"):
        only_tasks(suite, ["counts"])


def test_tasks_with_a_judge_are_left_out_without_its_key(tmp_path):
    judged = load_suite(write(tmp_path, GOOD.replace("n: 20", "n: 20, judge: openai")))
    key = JUDGES["openai"]
    assert without_judged(judged, {key: "secret"}) == (judged, {})
    for environ in ({}, {key: ""}):
        rest, left_out = without_judged(judged, environ)
        assert [task.id for task in rest.tasks] == ["colour"] and left_out == {"count": "judge openai"}
        assert rest.digest() != judged.digest()
    only = only_tasks(judged, ["count"])[0]
    with pytest.raises(EvaluationError, match=f"every task that is asked for is scored by a judge, and {key} is not"):
        without_judged(only, {})
