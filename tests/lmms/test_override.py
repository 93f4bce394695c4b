"""Own data, own generation limits: what we write is what lmms-eval then loads."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("lmms_eval")

import datasets
import yaml
from prunebench_lmms_eval.check import check, revision
from prunebench_lmms_eval.data_files import split_files
from prunebench_lmms_eval.override import PREFIX, media_home, write_override
from prunebench_lmms_eval.tasks_index import Entry, find, leaves

from prunebench.errors import EvaluationError, UnknownName
from prunebench.suites import Task


def lmms(name: str, **settings) -> Task:
    return Task(**{"id": name, "evaluator": "lmms", "metric": "mme_cognition_score", **settings})


def mme_rows(n: int = 4) -> list[dict]:
    picture = {"bytes": _png(), "path": None}
    return [
        {
            "question_id": f"{i // 2}",
            "image": picture,
            "question": "Is it? Please answer yes or no.",
            "answer": "Yes" if i % 2 else "No",
            "category": "code_reasoning",
        }
        for i in range(n)
    ]


def _png() -> bytes:
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(out, "PNG")
    return out.getvalue()


def table(n: int = 4):
    return datasets.Dataset.from_list(mme_rows(n)).cast_column("image", datasets.Image())


def written(task: Task, folder: Path, name: str | None = None) -> dict:
    run = write_override(task, folder)
    return yaml.safe_load((folder / f"{name or run}.yaml").read_text())


def test_the_shipped_task_is_always_included(tmp_path):
    values = written(lmms("mme"), tmp_path)
    assert values == {"include": str(find("mme").path), "task": "prunebench_mme", "dataset_kwargs": {}}
    assert write_override(lmms("other", task="mme"), tmp_path / "b") == "prunebench_mme"


def test_generation_lies_over_the_tasks_own(tmp_path):
    values = written(lmms("mme", generation={"max_new_tokens": 3, "until": ["."]}), tmp_path)
    assert values["generation_kwargs"]["max_new_tokens"] == 3
    assert values["generation_kwargs"]["until"] == ["."]
    assert values["generation_kwargs"]["do_sample"] is False  # the task's
    art = written(lmms("blink_art_style", generation={"max_new_tokens": 3}), tmp_path / "b")
    assert "max_new_tokens" not in art["model_specific_generation_kwargs"]["neo_ov"]
    assert art["model_specific_generation_kwargs"]["neo_ov"]["patch_size"] == 16


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> dict[str, Path]:
    """The same four questions in every form that is taken."""
    root = tmp_path_factory.mktemp("forms")
    rows = table()
    paths = {}
    for form in ("file", "one", "split", "shards", "sub", "hub", "card", "cache"):
        (root / form).mkdir()
    paths["file"] = root / "file" / "anything.parquet"
    rows.to_parquet(str(paths["file"]))
    rows.to_parquet(str(root / "one" / "mme_questions.parquet"))
    rows.to_parquet(str(root / "split" / "test.parquet"))
    rows.select([0]).to_parquet(str(root / "split" / "train.parquet"))
    for shard in range(2):
        half = rows.select([2 * shard, 2 * shard + 1])
        half.to_parquet(str(root / "shards" / f"test-0000{shard}-of-00002.parquet"))
    (root / "sub" / "test").mkdir()
    rows.to_parquet(str(root / "sub" / "test" / "part.parquet"))
    (root / "hub" / "data").mkdir()
    rows.to_parquet(str(root / "hub" / "data" / "test-00000-of-00001-0123abcd.parquet"))
    (root / "hub" / "README.md").write_text("no card\n")
    rows.to_parquet(str(root / "card" / "odd.parquet"))
    rows.select([0]).to_parquet(str(root / "card" / "even.parquet"))
    (root / "card" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: test, path: od*.parquet}\n---\ntext\n"
    )
    snapshot = root / "cache" / "snapshots" / "abc" / "data"
    snapshot.mkdir(parents=True)
    rows.to_parquet(str(snapshot / "test-00000-of-00001.parquet"))
    rows.save_to_disk(str(root / "saved"))
    datasets.DatasetDict({"test": rows, "train": rows.select([0])}).save_to_disk(str(root / "saved_dict"))
    forms = ("one", "split", "shards", "sub", "hub", "card", "cache", "saved", "saved_dict")
    return paths | {form: root / form for form in forms}


@pytest.mark.parametrize(
    "form", ["file", "one", "split", "shards", "sub", "hub", "card", "cache", "saved", "saved_dict"]
)
def test_every_form_of_data_loads_as_the_same_questions(forms, form, tmp_path):
    values = written(lmms("mme", data={"test": str(forms[form])}), tmp_path)
    assert values["dataset_name"] is None and set(values["dataset_kwargs"]) == {"data_files"}
    files = values["dataset_kwargs"]["data_files"]["test"]
    files = [files] if isinstance(files, str) else files
    assert all(Path(file).is_absolute() for file in files)
    loaded = datasets.load_dataset(
        values["dataset_path"], data_files={"test": files}, cache_dir=str(tmp_path / "cache"), split="test"
    )
    assert [row["question_id"] for row in loaded] == ["0", "0", "1", "1"]
    assert loaded[0]["image"].size == (4, 4)


def test_lmms_eval_loads_the_shipped_task_on_own_data(forms, tmp_path, monkeypatch):
    from lmms_eval.api.task import ConfigurableMessagesTask
    from lmms_eval.tasks import TaskManager, get_task_dict

    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path / "cache"))
    name = write_override(lmms("mme", data={"test": str(forms["shards"])}, generation={"max_new_tokens": 2}), tmp_path)
    manager = TaskManager("ERROR", include_path=[str(tmp_path)], include_defaults=False, model_name="default")
    task = get_task_dict([name], manager, "chat")[name]
    assert isinstance(task, ConfigurableMessagesTask)
    assert len(task.test_docs()) == 4 and task.config.generation_kwargs["max_new_tokens"] == 2
    assert task.doc_to_messages(task.test_docs()[0])[0]["content"][0]["type"] == "image"


def test_a_group_runs_on_one_copy_of_the_hub_dataset(tmp_path, monkeypatch):
    """Each member of `blink` finds the folder of its own configuration; the group's own mean stays."""
    from lmms_eval.tasks import TaskManager, get_task_dict

    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path / "cache"))
    members = leaves(find("blink"))
    blank = {"bytes": _png(), "path": None}
    for member in members:
        folder = tmp_path / "hub" / member.config["dataset_name"]
        folder.mkdir(parents=True)
        row = {
            "idx": member.name,
            "question": "?",
            "choices": ["a", "b"],
            "answer": "(A)",
            "prompt": "?",
            "sub_task": "s",
        }
        row |= {f"image_{i}": blank for i in range(1, 5)}
        rows = datasets.Dataset.from_list([row])
        rows.to_parquet(str(folder / "val-00000-of-00001.parquet"))
    task = lmms("blink", metric="blink_acc", data={"val": str(tmp_path / "hub")})
    name = write_override(task, tmp_path / "tasks")
    manager = TaskManager("ERROR", include_path=[str(tmp_path / "tasks")], include_defaults=False, model_name="default")
    ((group, loaded),) = get_task_dict([name], manager, "chat").items()
    assert group.group_name == "prunebench_blink"
    assert group.config["aggregate_metric_list"][0]["metric"] == "blink_acc"
    assert {key: value.test_docs()[0]["idx"] for key, value in loaded.items()} == {
        PREFIX + member.name: member.name for member in members
    }


def test_a_group_without_a_score_gets_one_on_demand(tmp_path):
    task = lmms("mvbench", metric="mvbench_accuracy", options={"aggregate": "size"})
    values = written(task, tmp_path)
    assert values["include"] == str(find("mvbench").path) and len(values["task"]) == 20
    assert values["aggregate_metric_list"] == [
        {"metric": "mvbench_accuracy", "aggregation": "mean", "weight_by_size": True, "filter_list": ["none"]}
    ]
    check(task)


def test_data_of_single_members(forms, tmp_path):
    one = str(forms["file"])
    members = leaves(find("mathvista_testmini"))
    data = {f"{member.name}/testmini": one for member in members}
    task = lmms("mathvista_testmini", metric="llm_as_judge_eval", data=data, options={"aggregate": "mean"})
    written(task, tmp_path)
    lost = dict(list(data.items())[1:])
    with pytest.raises(EvaluationError, match="has no data of your own"):
        write_override(task.model_copy(update={"data": lost}), tmp_path)
    with pytest.raises(EvaluationError, match="names no task of 'mathvista_testmini'"):
        write_override(task.model_copy(update={"data": {"other/testmini": one}}), tmp_path)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"test": "{}/nowhere"}, "no such file or folder for split 'test'"),
        ({"validation": "{}/train.parquet"}, "has no split 'validation', but test"),
        ({"test": "{}/train_only"}, "holds no split 'test', but train, validation"),
        ({"test": "{}/empty"}, "it is empty"),
        ({"test": "{}/pictures"}, "it holds a.png"),
        ({"test": "{}/pictures/a.png"}, "data files end with .parquet"),
        ({"test": "{}/mixed"}, "mixes .csv, .json files"),
        ({"test": "{}/dict"}, "holds no split 'test', but train"),
        ({"test": "{}/torn"}, "is not whole"),
        ({"test": "{}/unread"}, "cannot read"),
    ],
)
def test_wrong_data_says_what_is_there(tmp_path, data, said):
    for name in ("train_only", "empty", "pictures", "mixed", "dict", "torn", "unread"):
        (tmp_path / name).mkdir()
    for file in ("train_only/train-00000-of-00001.parquet", "train_only/validation.parquet", "pictures/a.png"):
        (tmp_path / file).write_bytes(b"x")
    (tmp_path / "mixed" / "a.json").write_text("{}")
    (tmp_path / "mixed" / "b.csv").write_text("a\n")
    (tmp_path / "dict" / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    (tmp_path / "torn" / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-0.arrow"}]}))
    (tmp_path / "unread" / "state.json").write_text("{")
    task = lmms("mme", data={split: path.format(tmp_path) for split, path in data.items()})
    with pytest.raises(EvaluationError) as caught:
        check(task)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_subset_is_looked_for_in_its_own_folder(tmp_path):
    for subset in ("en", "cn"):
        (tmp_path / subset).mkdir()
        (tmp_path / subset / "dev-00000-of-00001.parquet").write_bytes(b"x")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: ko\n  data_files: [{split: dev, path: cn/dev-*}]\n---\n"
    )
    assert split_files("t", "dev", tmp_path, "cn") == ("parquet", [tmp_path / "cn/dev-00000-of-00001.parquet"])
    assert split_files("t", "dev", tmp_path, "ko") == ("parquet", [tmp_path / "cn/dev-00000-of-00001.parquet"])
    with pytest.raises(EvaluationError, match=r"it holds README\.md, cn, en"):
        split_files("t", "dev", tmp_path, "ru")


def test_media_stand_where_the_task_looks(tmp_path, monkeypatch):
    media, home = tmp_path / "clips", tmp_path / "real"
    (media / "data").mkdir(parents=True)
    (media / "data" / "a.mp4").write_bytes(b"film")
    (home / "hub").mkdir(parents=True)
    monkeypatch.setenv("HF_HOME", str(home))
    task = lmms("videomme", metric="videomme_perception_score", data={"media": str(media)})
    change = media_home(task, tmp_path / "home")
    assert change == {"HF_HOME": str(tmp_path / "home")}
    assert (Path(change["HF_HOME"]) / "videomme" / "data" / "a.mp4").read_bytes() == b"film"
    assert (Path(change["HF_HOME"]) / "hub").samefile(home / "hub")
    assert os.environ["HF_HOME"] == str(home)  # only told, not done
    assert media_home(task, tmp_path / "home") == change  # again
    kwargs = written(task, tmp_path / "tasks")["dataset_kwargs"]
    assert kwargs == {}  # nothing that downloads or unpacks, and no login
    assert media_home(lmms("mme"), tmp_path / "none") == {} and not (tmp_path / "none").exists()


def test_public_data_need_no_login(tmp_path, monkeypatch):
    """`token: true` raises without one; without it, a login that is there is used all the same."""
    assert find("mme").config["dataset_kwargs"] == {"token": True}
    assert written(lmms("mme"), tmp_path / "a")["dataset_kwargs"] == {}
    film = written(lmms("videomme", metric="videomme_perception_score"), tmp_path / "b")["dataset_kwargs"]
    assert film == {key: value for key, value in find("videomme").config["dataset_kwargs"].items() if key != "token"}
    assert film["video"] is True
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    assert "dataset_kwargs" not in written(lmms("mme"), tmp_path / "c")


def test_a_kind_of_task_that_cannot_be_asked_is_refused_before_anything_is_loaded(monkeypatch):
    from prunebench_lmms_eval import check as module

    entry = Entry("odd", None, {"output_type": "loglikelihood", "metric_list": [{"metric": "acc"}]}, "task")
    monkeypatch.setattr(module, "find", lambda name: entry)
    with pytest.raises(EvaluationError, match="'odd' is of the kind 'loglikelihood': only generate_until, multiple_ch"):
        check(lmms("odd", metric="acc"))


def test_losses_are_divided_by_lengths_once():
    """Of options that are equally likely token by token, `acc_norm` takes the one with the most letters."""
    with pytest.raises(EvaluationError, match="'acc_norm' of 'arc_easy' divides losses by lengths twice: take 'acc'"):
        check(lmms("arc_easy", metric="acc_norm"))
    check(lmms("arc_easy", metric="acc"))


def test_an_error_rate_is_no_score():
    wer = {"metric": "wer", "scale": 100}
    with pytest.raises(EvaluationError, match=r"of 'wer' less is better, lmms-eval says: add `direction: lower`"):
        check(lmms("librispeech_test_clean", **wer))
    check(lmms("librispeech_test_clean", higher_is_better=False, **wer))


def test_media_refused(tmp_path):
    with pytest.raises(EvaluationError, match="does not say where under HF_HOME"):
        media_home(lmms("mme", data={"media": str(tmp_path)}), tmp_path / "home")
    named = lmms("mme", data={"media": str(tmp_path)}, options={"media_dir": "pictures"})
    assert (Path(media_home(named, tmp_path / "home")["HF_HOME"]) / "pictures").samefile(tmp_path)
    with pytest.raises(EvaluationError, match="no such folder of media"):
        check(lmms("videomme", metric="videomme_perception_score", data={"media": str(tmp_path / "gone")}))


def test_revision_follows_content_not_place(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        (folder / "test.json").write_text('{"question": 1}')
    plain, one, two = lmms("mme"), *(lmms("mme", data={"test": str(folder)}) for folder in (first, second))
    assert revision(plain) == "lmms-eval 0.7.3" or revision(plain).startswith("lmms-eval 0.7.")
    assert revision(one) == revision(two) != revision(plain)
    (second / "test.json").write_text('{"question": 2}')
    assert revision(one) != revision(two)
    clip = tmp_path / "clips" / "data" / "a.mp4"
    clip.parent.mkdir(parents=True)
    clip.write_bytes(b"12")
    film = lmms("videomme", metric="videomme_perception_score", data={"media": str(tmp_path / "clips")})
    before = revision(film)
    clip.write_bytes(b"345")
    assert revision(film) != before


@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        ({"task": "mmme"}, UnknownName, "the nearest: mme,"),
        ({"metric": "mme_score"}, UnknownName, "mme_cognition_score, mme_perception_score"),
        ({"filter": "strict"}, UnknownName, "Known: none"),
        ({"generation": {"max_tokens": 3}}, UnknownName, "max_new_tokens"),
        ({"generation": {"max_new_tokens": True}}, EvaluationError, "must be int, not True"),
        ({"generation": {"max_new_tokens": 0}}, EvaluationError, "at least 1"),
        ({"options": {"profil": "x"}}, UnknownName, "profile"),
        ({"options": {"profile": "llava"}}, UnknownName, "qwen_vl"),
        ({"options": {"profile": 3}}, EvaluationError, "must be a name"),
        ({"options": {"score": {"equals": ["a", "b"]}}}, EvaluationError, "a key, `aggregate` or"),
        ({"options": {"score": {"equal": ["a"]}}}, EvaluationError, "a key, `aggregate` or"),
        ({"options": {"score": 3}}, EvaluationError, "a key, `aggregate` or"),
        ({"options": {"unit": {"key": "index", "modulo": 0}}}, EvaluationError, "modulo: N"),
        ({"options": {"unit": []}}, EvaluationError, "modulo: N"),
        ({"options": {"strata": {"key": "a", "of": "median"}}}, EvaluationError, "`{key: ..., of: sum}`"),
        ({"options": {"strata": [{"key": "a", "strip": "("}]}}, EvaluationError, "no regular expression"),
        ({"options": {"answers": "["}}, EvaluationError, "no regular expression"),
        ({"options": {"full": 0}}, EvaluationError, "above 0"),
        ({"options": {"none_is_zero": 1}}, EvaluationError, "true or false"),
        ({"options": {"aggregate": "mean"}}, EvaluationError, "is for groups"),
        ({"task": "mvbench", "metric": "mvbench_accuracy"}, EvaluationError, "no score of its own"),
        ({"task": "blink", "options": {"aggregate": "mean"}}, EvaluationError, "a score of its own"),
        ({"task": "mvbench", "options": {"aggregate": "median"}}, EvaluationError, "`mean` or `size`"),
        ({"task": "tau2_bench_telecom", "metric": "x"}, EvaluationError, "only generate_until"),
    ],
)
def test_check_refuses_before_anything_runs(settings, kind, said):
    with pytest.raises(kind) as caught:
        check(lmms("mme", **settings))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_check_takes_the_paper_tasks():
    metrics = {
        "mme": "mme_cognition_score",
        "mmmu_val": "mmmu_acc",
        "mathvista_testmini_format": "llm_as_judge_eval",
        "mmbench_en_dev_static": "gpt_eval_score",
        "clotho_aqa_test": "exact_match",
        "muchomusic": "accuracy",
        "videomme": "videomme_perception_score",
        "nextqa_mc_test": "exact_match",
    }
    for name, metric in metrics.items():
        check(lmms(name, metric=metric, generation={"max_new_tokens": 4}))
