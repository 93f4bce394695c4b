"""What a task of lmms-eval needs here: packages, questions, media, disk. Nothing is imported or downloaded."""

from __future__ import annotations

import shutil
import sys
from collections import namedtuple
from importlib.util import find_spec

import pytest

if find_spec("lmms_eval") is None:
    pytest.skip("lmms-eval is not installed", allow_module_level=True)

from prunebench_lmms_eval import needs as module
from prunebench_lmms_eval.evaluator import LmmsEvaluator
from prunebench_lmms_eval.needs import needs, task_imports
from prunebench_lmms_eval.switches import OFFLINE
from prunebench_lmms_eval.tasks_index import Entry, Function, find, leaves

from prunebench.suites import Task, builtin_suites_dir, load_suite

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty HF_HOME, and no word on being offline."""
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", *OFFLINE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf"


def said(task: Task) -> dict[str, tuple[str, str]]:
    return {need.what: (need.status, need.detail) for need in needs(task)}


def a_task(name: str = "mmmu_val", **changes) -> Task:
    return Task(**{"id": name, "evaluator": "lmms", "metric": "mmmu_acc", **changes})


def test_questions_that_are_not_there_are_downloaded_unless_that_is_forbidden(home, monkeypatch):
    status, detail = said(a_task())["data"]
    assert status == "warning" and f"lmms-lab-encoder/MMMU will be downloaded into {home}" in detail
    for name in OFFLINE:
        with monkeypatch.context() as patch:
            patch.setenv(name, "1")
            status, detail = said(a_task())["data"]
            assert status == "missing" and name in detail
            (need,) = [need for need in needs(a_task()) if need.what == "data"]
            assert need.do is not None and "--data mmmu_val=PATH" in need.do
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert said(a_task())["data"][0] == "warning"


def test_both_caches_are_looked_into(home, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (home / "hub" / "datasets--lmms-lab-encoder--MMMU" / "snapshots").mkdir(parents=True)
    assert said(a_task())["data"][0] == "missing"  # a download that was cut off at once
    (home / "hub" / "datasets--lmms-lab-encoder--MMMU" / "snapshots" / "abc" / "data").mkdir(parents=True)
    assert said(a_task())["data"][0] == "ok"
    shutil.rmtree(home / "hub")
    (home / "datasets" / "lmms-lab-encoder___mmmu").mkdir(parents=True)
    assert said(a_task())["data"] == ("ok", f"lmms-lab-encoder/MMMU in {home}")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(home / "other"))
    assert said(a_task())["data"][0] == "missing"


def test_own_data_stand_for_the_download(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = tmp_path / "own.parquet"
    assert said(a_task(data={"validation": str(file)}))["data"] == ("missing", f"not there: {file}")
    file.write_bytes(b"")
    assert said(a_task(data={"validation": str(file)}))["data"] == ("ok", f"own data, {file}")


def test_disk(home, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(0, 0, 20e9))
    assert said(a_task(disk_gb=19.0))["disk"][0] == "ok"
    status, detail = said(a_task(disk_gb=21.0))["disk"]
    assert status == "missing" and "20.0 GB free" in detail and "the data take 21 GB" in detail
    assert "disk" not in said(a_task())  # nobody knows how much they take
    (home / "hub" / "datasets--lmms-lab-encoder--MMMU" / "snapshots" / "abc" / "data").mkdir(parents=True)
    assert "disk" not in said(a_task(disk_gb=21.0))  # they are here already


def test_media(home, tmp_path, monkeypatch):
    video = a_task("nextqa_mc_test", metric="exact_match")
    folder = home / "nextqa"
    assert said(video)["media"] == ("warning", f"will be downloaded and unpacked into {folder}")
    with monkeypatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        assert said(video)["media"][0] == "missing"
    own = video.model_copy(update={"data": {"test": str(tmp_path)}})
    status, detail = said(own)["media"]
    assert status == "missing" and "with own data nothing is downloaded" in detail
    given = video.model_copy(update={"data": {"test": str(tmp_path), "media": str(tmp_path / "videos")}})
    (tmp_path / "videos").mkdir()
    assert said(given)["media"][0] == "missing"  # empty
    (tmp_path / "videos" / "a.mp4").write_bytes(b"")
    assert said(given)["media"] == ("ok", str(tmp_path / "videos"))
    (folder / "NExTVideo").mkdir(parents=True)
    assert said(video)["media"] == ("ok", str(folder))


def test_packages_that_the_suite_names():
    found = said(a_task(needs=("numpy", "no-such-package", "nor-this")))["packages"]
    assert found == ("missing", "no-such-package, nor-this not installed")
    assert said(a_task(needs=("numpy",)))["packages"][0] == "ok" and "packages" not in said(a_task())


CODE = """
import os, json
import numpy as np
import no_such_module.inside
from nor_this import thing
from . import sibling
import beside
try:
    import perhaps
except ImportError:
    perhaps = None


def later():
    import much_later
"""


def test_imports_of_a_tasks_code_are_read_not_run(tmp_path):
    (tmp_path / "utils.py").write_text(CODE + "\nraise SystemExit('this was run')\n", encoding="utf-8")
    (tmp_path / "beside.py").write_text("import never_looked_at", encoding="utf-8")
    config = {"doc_to_text": Function("utils.text"), "metric_list": [{"aggregation": Function("utils.mean")}]}
    entry = Entry("mine", tmp_path / "mine.yaml", config, "task")
    before = set(sys.modules)
    assert task_imports([entry]) == {"numpy", "no_such_module", "nor_this"}
    assert set(sys.modules) == before


def test_what_a_shipped_task_imports_is_missed_when_it_is_not_there(monkeypatch):
    imports = task_imports(leaves(find("nextqa_mc_test")))
    assert "pandas" in imports and not {"lmms_eval", "os", "torch"} & imports
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "pandas" else find_spec(name))
    assert said(a_task("nextqa_mc_test", metric="exact_match"))["imports"] == ("missing", "its code imports pandas")
    named = a_task("nextqa_mc_test", metric="exact_match", needs=("pandas",))
    assert "imports" not in said(named)  # `packages` says it


def test_versions_of_lmms_eval(monkeypatch):
    known = {"0.7.3": "ok", "0.7.12": "ok", "0.7.2": "warning", "0.8.0": "warning", None: "missing"}
    for version, status in known.items():
        monkeypatch.setattr(module, "package_version", lambda name, version=version: version)
        (need, *_) = needs(a_task())
        assert (need.what, need.status) == ("lmms-eval", status), version
        assert status != "missing" or "make lmms" in (need.do or "")


def test_a_task_that_does_not_exist_is_one_line():
    status, detail = said(a_task("mmu_val"))["task"]
    assert status == "missing" and "mmmu_val" in detail


def test_questions_of_our_own_need_no_download(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for task in load_suite(builtin_suites_dir() / "testbed-lmms.yaml").tasks:
        assert said(task)["data"] == ("ok", "dataset 'testbed', revision 1")


def test_own_data_without_a_split_are_those_that_the_task_asks():
    asked = {"mmmu_val": "validation", "nextqa_mc_test": "test", "mmbench_en_dev_static": "dev"}
    assert {name: LmmsEvaluator().data_split(a_task(name)) for name in asked} == asked
