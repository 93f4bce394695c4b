"""The index of lmms-eval's tasks against lmms-eval's own, and what it says of single tasks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lmms_eval")

from prunebench_lmms_eval.tasks_index import (
    Entry,
    aggregated_metrics,
    eval_split,
    filter_names,
    find,
    index,
    leaves,
    lmms_eval_folder,
    metric_keys,
    nearest,
    own_tasks_folder,
    read_config,
)

from prunebench.errors import EvaluationError, UnknownName


def test_index_says_what_the_task_manager_says():
    from lmms_eval.tasks import TaskManager

    manager = TaskManager("ERROR")
    ours = index()
    own = {name for name, entry in ours.items() if entry.path and own_tasks_folder() in entry.path.parents}
    assert set(ours) - own == set(manager.all_tasks)
    for name, said in manager.task_index.items():
        kind = "task" if said["type"] == "python_task" else said["type"]
        assert ours[name].kind == kind, name
        if kind == "tag":
            assert list(ours[name].members) == said["task"]
        else:
            assert ours[name].path == Path(said["yaml_path"]), name


def test_nothing_of_lmms_eval_is_imported():
    code = (
        "import sys; from prunebench_lmms_eval.check import check; from prunebench.suites import Task; "
        "check(Task(id='mme', evaluator='lmms', metric='mme_cognition_score')); "
        "print([name for name in ('lmms_eval', 'torch', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_task_with_its_metrics_and_settings():
    mme = find("mme")
    assert (mme.kind, mme.path) == ("task", lmms_eval_folder() / "tasks/mme/mme.yaml")
    assert metric_keys(mme) == ["mme_perception_score,none", "mme_cognition_score,none"]
    assert mme.config["generation_kwargs"]["max_new_tokens"] == 16
    assert mme.config["process_results"] == "utils.mme_process_results"
    assert eval_split(mme.config) == "test"
    # settings of the files that it includes
    assert find("nextqa_mc_test").config["dataset_kwargs"]["cache_dir"] == "nextqa"
    assert find("mmmu_val").config["generation_kwargs"]["max_new_tokens"] == 128


def test_groups_and_tags():
    mvbench = find("mvbench")
    assert mvbench.kind == "group" and len(mvbench.members) == 20
    assert metric_keys(mvbench) == [] and aggregated_metrics(mvbench) == []
    blink = find("blink")
    assert blink.members == ("blink_groups",) and find("blink_groups").kind == "tag"
    assert {leaf.kind for leaf in leaves(blink)} == {"task"} and len(leaves(blink)) == 14
    assert metric_keys(blink) == ["blink_acc,none"]
    assert metric_keys(find("blink_groups")) == []
    inner = [leaf.name for leaf in leaves(find("jmmmu"))]  # two groups written inside its file, each of a tag
    tags = [find(f"jmmmu_culture_{kind}").members for kind in ("agnostic", "specific")]
    assert inner == [name for members in tags for name in members] and len(inner) > 20


def test_unknown_names_get_the_nearest_three_only():
    with pytest.raises(UnknownName) as caught:
        find("mmmu_va")
    assert "mmmu_val" in str(caught.value) and str(caught.value).count(",") <= 2
    assert caught.value.suggestion == "mmmu_val"
    assert nearest("mvbnch", ["mvbench", "mme", "pope"], n=1) == ["mvbench"]


def test_own_folder_includes_tags_filters(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "_lower").write_text("metric_list: [{metric: acc}]\ntest_split: a\nvalidation_split: v\n")
    (tmp_path / "_upper").write_text(
        "include: _lower\ntest_split: b\nfilter_list: [{name: x, filter: []}, {name: y}]\n"
    )
    (tmp_path / "inner" / "one.yaml").write_text("include: ../_upper\ntask: t_one\ntag: t_all\n")
    (tmp_path / "two.yaml").write_text(
        "include: [_lower, _upper]\ntask: t_two\ntag: [t_all, t_more]\ndoc_to_text: !function utils.text\n"
    )
    (tmp_path / "mme.yaml").write_text("task: mme\n")  # the shipped one stays
    (tmp_path / "group.yaml").write_text(
        "group: t_group\ntask: [t_one, {group: t_inner, task: [t_two, t_one]}]\n"
        "aggregate_metric_list: {metric: acc, weight_by_size: true}\n"
    )
    (tmp_path / "broken.yaml").write_text("task: [unclosed\n")
    (tmp_path / "none.yaml").write_text("- a list\n")
    one, two = find("t_one", tmp_path), find("t_two", tmp_path)
    assert eval_split(one.config) == "b" and eval_split({"validation_split": "v"}) == "v"
    assert metric_keys(one) == ["acc,x", "acc,y"] and filter_names({}) == ["none"]
    assert eval_split(two.config) == "a"  # the first of several includes lies on top
    assert two.config["doc_to_text"] == "utils.text"
    assert set(find("t_all", tmp_path).members) == {"t_one", "t_two"}
    assert find("t_more", tmp_path).members == ("t_two",)
    group = find("t_group", tmp_path)
    assert [leaf.name for leaf in leaves(group, tmp_path)] == ["t_one", "t_two"]
    assert metric_keys(group, tmp_path) == ["acc,x", "acc,y"]
    assert aggregated_metrics(group) == [{"metric": "acc", "weight_by_size": True, "aggregation": "mean"}]
    assert find("mme", tmp_path).path == lmms_eval_folder() / "tasks/mme/mme.yaml"
    with pytest.raises(EvaluationError, match="cannot read the task file"):
        read_config(tmp_path / "broken.yaml")


def test_default_metrics_where_a_task_names_none():
    entry = Entry("t", None, {"output_type": "multiple_choice"}, "task")
    assert metric_keys(entry) == ["acc,none", "acc_norm,none"]
    assert metric_keys(Entry("t", None, {}, "task")) == ["exact_match,none"]


def test_a_group_that_names_a_lost_task():
    with pytest.raises(UnknownName, match="mix_evals_audio2_text_freeform"):
        metric_keys(find("mix_evals_audio2text"))  # a slip in lmms-eval 0.7.3
