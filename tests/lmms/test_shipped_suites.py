"""The suites that ship say what lmms-eval really has, and say it for every task."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest

pytest.importorskip("lmms_eval")

from prunebench_lmms_eval.check import check
from prunebench_lmms_eval.rules import read_rules
from prunebench_lmms_eval.tasks_index import eval_split, find, leaves, lmms_eval_folder, metric_keys, own_tasks_folder

from prunebench.errors import EvaluationError, UnknownName
from prunebench.suite_selection import without_judged
from prunebench.suites import Suite, Task, builtin_suites_dir, load_suite, suite_files

SHIPPED = (
    "topovlm-image",
    "topovlm-video-audio",
    "image-core",
    "ocr-doc",
    "math",
    "hallucination",
    "video-core",
    "audio-core",
    "text-only",
    "quick",
)
PAPER = {
    "topovlm-image": ["mme", "mmmu_val", "mathvista_testmini_format", "mmbench_en_dev_static"],
    "topovlm-video-audio": ["clotho_aqa_test", "muchomusic", "videomme", "nextqa_mc_test"],
}
JUDGE_WORDS = re.compile(
    r"openai|gpt[-_ ]?[34]|chatgpt|llm_judge|llm_as_judge|get_chat_response|AZURE_|_eval_model_name", re.IGNORECASE
)
NO_JUDGE_CALLED = {
    "mmbench_en_dev_static": "its aggregation is called with eval_method='static', which asks nobody",
    "mmmu_val": "its file also holds the code of the reasoning variants",
    "clotho_aqa_test": "its file also holds the code of clotho_asqa_test_v2",
    "ai2d": "`gpt4v` is the name of a prompt for another model",
    "ai2d_lite": "as ai2d",
    "muchomusic": "its settings name a model that its code never asks",
    "videomme": "`gpt4v` is the name of a prompt for another model",
    "ifeval": "a warning of its code names services",
    "mme": "`gpt4v` is the name of a prompt for another model",
}
"""Tasks whose folder speaks of a judge that this very task does not ask."""

SUITES = {path.stem: load_suite(path) for path in suite_files(builtin_suites_dir())}
TASKS = [
    pytest.param(task, id=f"{name}-{task.id}")
    for name, suite in SUITES.items()
    for task in suite.tasks
    if task.evaluator == "lmms"
]


def test_all_ten_are_there_under_their_own_names() -> None:
    assert set(SHIPPED) <= set(SUITES) and "testbed-lmms" in SUITES
    assert len({suite.name for suite in SUITES.values()}) == len(SUITES)
    assert len({suite.title for suite in SUITES.values()}) == len(SUITES)
    assert all(SUITES[name].description for name in SHIPPED)


@pytest.mark.parametrize("name", PAPER)
def test_paper_suites_hold_the_papers_tasks(name: str) -> None:
    assert [task.id for task in SUITES[name].tasks] == PAPER[name]


def test_no_two_suites_are_the_same_and_a_task_reads_the_same_in_all() -> None:
    assert len({suite.digest() for suite in SUITES.values()}) == len(SUITES)
    said: dict[str, list[tuple[str, dict]]] = defaultdict(list)
    for name in SHIPPED:
        for task in SUITES[name].tasks:
            said[task.id].append((name, task.model_dump()))
    for task, places in said.items():
        assert all(dump == places[0][1] for _, dump in places), f"{task} differs: {[name for name, _ in places]}"


@pytest.mark.parametrize("task", TASKS)
def test_lmms_eval_has_the_task_and_its_metric(task: Task) -> None:
    check(task)
    wrong = task.model_copy(update={"metric": "no_such_metric"})
    with pytest.raises(UnknownName):  # else the line above says nothing
        check(wrong)
    if "aggregate" not in task.options:
        assert f"{task.metric},{task.filter}" in metric_keys(find(task.source))


@pytest.mark.parametrize("task", TASKS)
def test_every_task_says_what_a_reader_needs(task: Task) -> None:
    assert len(task.why.split()) >= 6
    assert task.modality in {"image", "video", "audio", "text"}
    assert task.weight == 1.0 and task.limit is None and not task.data
    if task.dataset is not None:
        return  # of its own questions PruneBench reckons the level of guessing itself
    assert task.chance is not None
    assert 0 <= task.chance <= task.scale
    if task.higher_is_better:
        assert task.chance < 0.55 * task.scale
    else:
        assert task.chance > 0.5 * task.scale  # guessing is bad in the metric's own direction


@pytest.mark.parametrize("task", TASKS)
def test_scale_is_that_of_the_metric(task: Task) -> None:
    """lmms-eval's scale, read from the code that makes the number: percent, share, or a sum of points."""
    if task.dataset is not None:
        assert task.scale == 1
        return
    hundred = {
        "llm_as_judge_eval",
        "gpt_eval_score",
        "videomme_perception_score",
        "mvbench_accuracy",
        "mlvu_percetion_score",
        "wer",
    }
    wanted = 800 if task.metric == "mme_cognition_score" else 100 if task.metric in hundred else 1
    if task.id in ("mmau_test_mini", "mmsu"):  # both call it `accuracy` and mean percent
        wanted = 100
    assert task.scale == wanted


@pytest.mark.parametrize("task", TASKS)
def test_direction_agrees_with_lmms_eval(task: Task) -> None:
    for leaf in leaves(find(task.source)):
        listed = {one["metric"]: one.get("higher_is_better", True) for one in leaf.config["metric_list"]}
        assert listed[task.metric] is task.higher_is_better


@pytest.mark.parametrize("task", TASKS)
def test_judged_tasks_are_marked(task: Task) -> None:
    """A task whose code can ask a GPT model is marked, or it is written down here why this one never does."""
    [path] = {leaf.path.parent for leaf in leaves(find(task.source))}
    files = [file for file in path.iterdir() if file.suffix in (".py", ".yaml") or file.name.startswith("_default")]
    mentioned = [file.name for file in files if JUDGE_WORDS.search(file.read_text(encoding="utf-8"))]
    own = find(task.source)
    config = str([leaf.config for leaf in leaves(own)])
    suspected = bool([name for name in mentioned if name.endswith(".py")]) or bool(JUDGE_WORDS.search(config))
    if task.judge == "none":
        assert suspected == (task.id in NO_JUDGE_CALLED), mentioned
    else:
        assert task.judge == "openai" and suspected


def test_judged_tasks_are_left_out_without_a_key() -> None:
    judged = {name: [task.id for task in SUITES[name].tasks if task.judge != "none"] for name in SHIPPED}
    judged = {name: tasks for name, tasks in judged.items() if tasks}
    assert judged == {
        "topovlm-image": ["mathvista_testmini_format"],
        "math": ["mathvista_testmini_format"],
    }
    for name in SHIPPED:
        left, out = without_judged(SUITES[name], {})
        assert list(out) == judged.get(name, []) and len(left.tasks) >= 2
        assert without_judged(SUITES[name], {"OPENAI_API_KEY": "x"})[1] == {}


@pytest.mark.parametrize("task", TASKS)
def test_questions_are_answered_by_generation_or_likelihood_alone(task: Task) -> None:
    """None wants tools, several rounds, or a place where code is run; none draws its answers."""
    for leaf in leaves(find(task.source)):
        assert leaf.config.get("output_type", "generate_until") in ("generate_until", "multiple_choice")
        generation = leaf.config.get("generation_kwargs") or {}
        assert not generation.get("do_sample") and (generation.get("num_beams") or 1) == 1
        assert int(leaf.config.get("repeats") or 1) == 1
        assert eval_split(leaf.config) is not None
        code = "".join(file.read_text(encoding="utf-8") for file in leaf.path.parent.glob("*.py"))
        assert not re.search(r"subprocess|docker|exec\(|os\.system|breakpoint\(", code)


@pytest.mark.parametrize("task", TASKS)
def test_long_answers_have_a_limit(task: Task) -> None:
    """A pruned model that never stops must not cost days."""
    for leaf in leaves(find(task.source)):
        if leaf.config.get("output_type") != "multiple_choice":
            asked = {**(leaf.config.get("generation_kwargs") or {}), **task.generation}
            assert asked.get("max_new_tokens", 0) in range(1, 1281), f"{leaf.name}: {asked}"


def test_pope_stands_in_one_suite_and_says_that_it_is_no_benchmark_of_pruning() -> None:
    places = [(name, task) for name, suite in SUITES.items() for task in suite.tasks if task.source.startswith("pope")]
    [(name, task)] = places
    assert name == "hallucination"
    assert "NOT a benchmark of pruning" in task.why and "DocVQA" in task.why


def test_the_text_suite_shows_no_picture_and_others_are_what_they_say() -> None:
    modalities = {name: {task.modality for task in SUITES[name].tasks} for name in SHIPPED}
    assert modalities["text-only"] == {"text"}
    assert modalities["video-core"] == {"video"} and modalities["audio-core"] == {"audio"}
    assert all(modalities[name] == {"image"} for name in ("image-core", "ocr-doc", "hallucination", "quick"))
    for name in ("text-only", "math"):
        for task in SUITES[name].tasks:
            if task.modality == "text":
                assert find(task.source).config.get("doc_to_visual") is None


def test_quick_is_small() -> None:
    quick = SUITES["quick"]
    assert sum(task.count for task in quick.tasks) <= 3000
    assert all(task.source.endswith("_lite") for task in quick.tasks)


@pytest.mark.parametrize("task", TASKS)
def test_rules_of_scoring_can_be_read(task: Task) -> None:
    rules = read_rules(task)
    if rules.answers is not None:
        assert not rules.answers.search("###")
        assert any(rules.answers.search(answer) for answer in ("A", "yes"))


@pytest.mark.parametrize("name", SHIPPED)
def test_nothing_is_asked_twice_in_one_suite(name: str) -> None:
    suite: Suite = SUITES[name]
    assert len({(task.source, task.metric, task.filter) for task in suite.tasks}) == len(suite.tasks)


def test_own_tasks_stand_apart_from_those_of_lmms_eval() -> None:
    for file in own_tasks_folder().glob("*.yaml"):
        assert find(file.stem).path == file  # no shipped name is hidden, and none hides ours
    assert lmms_eval_folder() not in own_tasks_folder().parents
    with pytest.raises(EvaluationError, match="say `dataset:`"):
        check(Task(id="testbed_general", evaluator="lmms"))
