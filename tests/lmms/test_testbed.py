"""PruneBench's own questions through lmms-eval: written without loss, and answered and scored as by `local`."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("lmms_eval")

import pyarrow.parquet as pq
from prunebench_lmms_eval.check import check
from prunebench_lmms_eval.evaluator import LmmsEvaluator
from prunebench_lmms_eval.messages import sample_of
from prunebench_lmms_eval.override import write_override
from prunebench_lmms_eval.questions_export import export_questions, export_suite, write_questions
from prunebench_models.testbed.data import TestbedDataset

from prunebench import Plan, Sample, load
from prunebench.errors import BadParameter, EvaluationError, StoreError, UnknownName
from prunebench.evaluate_local import LocalEvaluator
from prunebench.media import AudioFile, ImageFile, VideoFile
from prunebench.suites import Task, builtin_suites_dir, load_suite
from prunebench.surgery import pruned
from tests.commands import invoke

N = 24
DOMAINS = ("general", "math", "video", "audio")
PLANS = {"dense": (), "pruned": (2, 5, 8)}


@pytest.fixture(scope="module")
def testbed():
    return load("testbed")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No network, and nothing of the runs is left among the user's data sets."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    yield
    assert not list((tmp_path / "hf_home").rglob("*.arrow"))


def local_task(domain: str, n: int = N, /, **more) -> Task:
    return Task(**{"id": domain, "dataset": "testbed", "domain": domain, "n": n, **more})


def lmms_task(domain: str, n: int = N, /, **more) -> Task:
    [task] = [t for t in load_suite(builtin_suites_dir() / "testbed-lmms.yaml").tasks if t.id == domain]
    return task.model_copy(update={"n": n, **more})


@pytest.fixture(scope="module")
def questions_module():
    """The file that lmms-eval loads by its path, loaded in the same way."""
    import prunebench_lmms_eval

    path = Path(prunebench_lmms_eval.__file__).parent / "tasks" / "questions.py"
    spec = importlib.util.spec_from_file_location("questions", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_back(module, samples: list[Sample], folder: Path) -> list[Sample]:
    """Samples → parquet → documents → messages → samples."""
    path = folder / "back.parquet"
    write_questions(samples, path)
    docs = pq.read_table(path).to_pylist()
    return [sample_of(module.doc_to_messages(doc), doc["id"]) for doc in docs]


# -- both evaluators ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("domain", DOMAINS)
def test_both_evaluators_agree_question_by_question(testbed, domain: str, plan: str) -> None:
    with pruned(testbed, Plan.drop(testbed.info, PLANS[plan])):
        local = LocalEvaluator(batch_size=1).evaluate(testbed, local_task(domain))
        lmms = LmmsEvaluator(batch_size=1).evaluate(testbed, lmms_task(domain))
    assert (local.score < 0.95) == (plan == "pruned")  # the plan does damage: two rows of one model would agree, too
    assert lmms.answers == local.answers
    assert lmms.scores == local.scores and lmms.ids == local.ids and lmms.n == local.n == N
    assert lmms.score == pytest.approx(local.score, abs=1e-12)
    assert (lmms.empty, lmms.unparsable) == (local.empty, local.unparsable)
    assert (lmms.unparsable > 0) == (plan == "pruned")
    assert (lmms.chance, lmms.majority) == (local.chance, local.majority)
    assert lmms.kinds == local.kinds and len(lmms.kinds) > 1
    assert (lmms.ci_low, lmms.ci_high, lmms.ci_method) == (local.ci_low, local.ci_high, local.ci_method)
    assert not lmms.warnings and lmms.source["dataset"] == "testbed"


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("domain", DOMAINS)
def test_batches_change_no_answer(testbed, domain: str, plan: str) -> None:
    with pruned(testbed, Plan.drop(testbed.info, PLANS[plan])):
        one, eight = (LmmsEvaluator(batch_size=size).evaluate(testbed, lmms_task(domain, 13)) for size in (1, 8))
    assert one.answers == eight.answers and one.scores == eight.scores


def test_suite_asks_what_the_local_suite_asks() -> None:
    local = load_suite(builtin_suites_dir() / "testbed.yaml")
    lmms = load_suite(builtin_suites_dir() / "testbed-lmms.yaml")
    same = ("id", "dataset", "domain", "split", "seed", "n", "metric", "modality", "max_new_tokens", "why")
    assert [[getattr(t, name) for name in same] for t in lmms.tasks] == [
        [getattr(t, name) for name in same] for t in local.tasks
    ]
    assert {t.evaluator for t in lmms.tasks} == {"lmms"}


def test_any_dataset_any_metric(testbed) -> None:
    """The testbed reads the words of another dataset badly, but both evaluators see the same."""
    more = {"dataset": "procedural:image", "metric": "option_match", "split": "calibration", "seed": 3}
    local_one = local_task("general", 8, max_new_tokens=6, **more)
    lmms_one = local_one.model_copy(update={"evaluator": "lmms", "task": "prunebench_questions"})
    local = LocalEvaluator(batch_size=1).evaluate(testbed, local_one)
    lmms = LmmsEvaluator(batch_size=1).evaluate(testbed, lmms_one)
    assert len(set(local.answers)) > 1
    assert lmms.answers == local.answers and lmms.scores == local.scores


# -- what a suite may say ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"dataset": None}, EvaluationError, "say `dataset:`"),
        ({"task": "testbed"}, EvaluationError, "task: prunebench_questions"),
        ({"task": "pope", "metric": "pope_accuracy"}, EvaluationError, "task: prunebench_questions"),
        ({"data": {"test": "x.parquet"}}, EvaluationError, "drop one of them"),
        ({"dataset": "testbe"}, UnknownName, "did you mean 'testbed'"),
        ({"dataset": "testbed:x"}, BadParameter, "takes nothing after a colon"),
        ({"domain": "generel"}, UnknownName, "did you mean 'general'"),
        ({"metric": "option_matc"}, UnknownName, "option_match"),
    ],
)
def test_refused_before_anything_is_loaded(change: dict, error: type, says: str) -> None:
    check(lmms_task("general"))
    with pytest.raises(error, match=says):
        check(lmms_task("general", **change))


def test_limit_of_tokens_is_that_of_the_suite(tmp_path: Path) -> None:
    import yaml

    name = write_override(lmms_task("general", max_new_tokens=7), tmp_path)
    assert yaml.safe_load((tmp_path / f"{name}.yaml").read_text())["generation_kwargs"]["max_new_tokens"] == 7
    name = write_override(lmms_task("general", generation={"max_new_tokens": 9}), tmp_path)
    assert yaml.safe_load((tmp_path / f"{name}.yaml").read_text())["generation_kwargs"]["max_new_tokens"] == 9


def test_questions_are_drawn_once_per_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: Counter = Counter()
    samples = TestbedDataset.samples

    def counted(self, split, n, **more):
        drawn[split] += 1
        return samples(self, split, n, **more)

    monkeypatch.setattr(TestbedDataset, "samples", counted)
    first = export_questions("testbed", "test", 3, 41, "math", tmp_path / "a").read_bytes()
    assert export_questions("testbed", "test", 3, 41, "math", tmp_path / "b").read_bytes() == first
    assert export_questions("testbed", "test", 3, 42, "math", tmp_path / "c").read_bytes() != first
    assert drawn == {"test": 2}


# -- the parquet file --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", DOMAINS)
def test_media_come_back_without_loss(questions_module, domain: str, tmp_path: Path) -> None:
    before = TestbedDataset().samples("test", 5, domain=domain)
    for old, new in zip(before, read_back(questions_module, before, tmp_path), strict=True):
        assert new.instruction == old.instruction
        assert len(new.images) == len(old.images)
        for mine, other in zip(new.images, old.images, strict=True):
            np.testing.assert_array_equal(np.asarray(mine), other)
        assert (new.video is None) == (old.video is None) and (new.audio is None) == (old.audio is None)
        if old.video is not None:
            np.testing.assert_array_equal(new.video, old.video)
        if old.audio is not None:
            np.testing.assert_array_equal(new.audio, old.audio)
            assert new.audio.dtype == np.float32 and new.sampling_rate == old.sampling_rate


def test_files_and_places_come_back(questions_module, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (5, 7, 3), np.uint8) for _ in range(2)]
    Image.fromarray(pictures[0]).save(tmp_path / "a.png")
    for name in ("v.mp4", "s.wav"):
        (tmp_path / name).write_bytes(b"never read here")
    interleaved = Sample(
        "x/0",
        "Which of and is older?",
        "first",
        images=(ImageFile(tmp_path / "a.png"), pictures[1]),
        layout=("Which of ", 0, " and ", 1, " is older?"),
    )
    filed = Sample("x/1", "Say it.", "no", video=VideoFile(tmp_path / "v.mp4"), audio=AudioFile(tmp_path / "s.wav"))
    first, second = read_back(questions_module, [interleaved, filed], tmp_path)
    assert first.layout == interleaved.layout
    for mine, other in zip(first.images, pictures, strict=True):
        np.testing.assert_array_equal(np.asarray(mine), other)
    assert isinstance(second.video, VideoFile) and second.video.path == tmp_path / "v.mp4"
    assert isinstance(second.audio, AudioFile) and second.audio.path == tmp_path / "s.wav"
    assert second.instruction == "Say it."


def test_a_sample_without_an_answer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = TestbedDataset.samples
    monkeypatch.setattr(
        TestbedDataset, "samples", lambda self, *a, **k: [replace(s, answer=None) for s in samples(self, *a, **k)]
    )
    with pytest.raises(EvaluationError, match="has no expected answer"):
        export_questions("testbed", "test", 2, 77, "math", tmp_path)
    with pytest.raises(EvaluationError, match="unknown split"):
        export_questions("testbed", "tset", 2, 77, "math", tmp_path)


# -- for plain lmms-eval -----------------------------------------------------------------------------------------------


def oracle(simple: bool, answers: dict[str, str], seen: Counter):
    """A model of lmms-eval's own making that knows the answers and notes the kinds of media it was given."""
    from lmms_eval.api.model import lmms

    class Oracle(lmms):
        is_simple = simple

        def generate_until(self, requests):
            return [self.one(*request.args) for request in requests]

        def one(self, context, second, third, doc_id, task, split):
            doc = self.task_dict[task][split][doc_id]
            if simple:
                seen.update(type(visual).__name__ for visual in third(doc))
                return answers[context, doc["id"]]
            parts = second(doc)[0]["content"]
            seen.update(part["type"] for part in parts)
            assert parts[-1]["type"] == "text"
            return answers[parts[-1]["text"], doc["id"]]

        def loglikelihood(self, requests):
            raise NotImplementedError

        def generate_until_multi_round(self, requests):
            raise NotImplementedError

    return Oracle()


@pytest.mark.parametrize(
    ("simple", "media"),
    [
        (False, {"image": 6, "video": 3, "audio": 3, "text": 12}),
        (True, {"Image": 18, "dict": 3}),  # four frames of each clip one by one
    ],
)
def test_plain_lmms_eval_runs_the_exported_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, simple: bool, media: dict
) -> None:
    from prunebench_lmms_eval.compat import need_lmms_eval

    need_lmms_eval()
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    said = invoke("export-tasks", "--suite", "testbed", "--out", str(tmp_path / "tasks"), "--limit", "3")
    assert said.exit_code == 0 and "--tasks testbed" in said.stdout
    rows = [s for d in DOMAINS for s in TestbedDataset().samples("test", 3, domain=d)]
    answers = {(s.instruction, s.id): s.answer for s in rows}
    answers[rows[0].instruction, rows[0].id] = "nothing"
    seen: Counter = Counter()
    result = simple_evaluate(
        model=oracle(simple, answers, seen),
        tasks=["testbed"],
        task_manager=TaskManager("ERROR", include_path=[str(tmp_path / "tasks")], include_defaults=False),
        batch_size=1,
        device="cpu",
        bootstrap_iters=0,
        log_samples=True,
        process_docs_parallel=1,
    )
    scores = {name: values["exact_match,none"] for name, values in result["results"].items() if "_" in name}
    assert scores == {
        "testbed_general": pytest.approx(2 / 3),
        "testbed_math": 1.0,
        "testbed_video": 1.0,
        "testbed_audio": 1.0,
    }
    assert result["groups"]["testbed"]["exact_match,none"] == pytest.approx(11 / 12)
    assert seen == media
    logged = [row["doc"] for rows in result["samples"].values() for row in rows]
    assert len(json.dumps(logged)) < 12 * 1000  # no pictures and sounds in lmms-eval's logs


def test_export_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "thesis.tex").write_text("all of it")
    suite = load_suite(builtin_suites_dir() / "testbed.yaml")
    with pytest.raises(StoreError, match="holds other things"):
        export_suite(suite, folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]
    with pytest.raises(EvaluationError, match="does not ask PruneBench's own questions"):
        export_suite(load_suite(builtin_suites_dir() / "ocr-doc.yaml"), tmp_path / "new")
    assert not (tmp_path / "new").exists()
