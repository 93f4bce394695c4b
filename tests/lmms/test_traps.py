"""What went wrong, in silence or aloud, when lmms-eval was called with a model in memory: each trap by a tiny task."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("lmms_eval")

from prunebench_lmms_eval.host import Host
from prunebench_lmms_eval.model import seed_for

from prunebench import surgery
from prunebench.encoded import EncoderCache
from prunebench.errors import EvaluationError
from prunebench.plan import Plan
from prunebench.suites import Task
from prunebench.testing.state import ModelState
from prunebench.testing.tiny import TinyLlama
from tests.lmms.local_tasks import CODE, Function, Tasks, answering, answers, scores, tasks

__all__ = ["tasks"]

DRAWING = """
import random

def doc_to_text(doc, kwargs=None):
    return doc["question"]

def process_results(doc, results):
    said = results[0].strip()
    said = said if said in ("A", "B", "C", "D") else random.choice("ABCD")
    return {"acc": float(said == doc["answer"])}
"""
MANY = [{"question": f"w{3 + i} w9", "answer": "ABCD"[i % 4]} for i in range(24)]


def test_a_model_survives_two_evaluations(tasks: Tasks):
    """`lmms.clean` deletes every module of the model object after the first one."""
    task, loaded = tasks.add("twice"), TinyLlama().load()
    host = tasks.host()
    lm = tasks.lm(loaded, host)
    from prunebench_lmms_eval.call import run_task

    before = ModelState.of(loaded)
    lm.tower = tower = loaded.model  # what `clean` looks for
    first = run_task(lm, task, host.folder, host)
    again = tasks.host()
    second = run_task(lm, task, again.folder, host)
    assert answers(first, "twice") == answers(second, "twice")
    assert any(answers(first, "twice"))
    assert before.change(ModelState.of(loaded)) is None
    assert lm.tower is tower


def test_a_layer_that_fails_is_no_empty_answer(tasks: Tasks):
    """Shipped adapters log the exception and answer nothing: accuracy 0.0, exit code 0."""
    task, loaded = tasks.add("broken"), TinyLlama().load()

    def fail(*_args):
        raise RuntimeError("layer 2 is broken")

    handle = loaded.layers[2].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="layer 2 is broken"):
        tasks.run(loaded, task)
    handle.remove()
    assert len(tasks.run(loaded, task).samples["broken"]) == 6


def test_too_few_answers_are_refused(tasks: Tasks):
    task = tasks.add("few")
    loaded = answering(lambda _: "A")
    loaded.adapter.generate = lambda *args: []
    with pytest.raises(EvaluationError, match="0 answers for 1 questions"):
        tasks.run(loaded, task)


def test_two_plans_never_share_cached_answers(tasks: Tasks, tmp_path: Path):
    """lmms-eval's response cache is found by the model object's repr."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    tasks.add("cached")

    def run(loaded, cache: str | None) -> list[str]:
        host = tasks.host()
        manager = TaskManager("ERROR", include_path=[str(tasks.folder)], include_defaults=False, model_name="default")
        with host.away():
            found = simple_evaluate(
                model=tasks.lm(loaded, host), tasks=["cached"], task_manager=manager, bootstrap_iters=0,
                process_docs_parallel=1, use_cache=cache,
            )  # fmt: skip
        return [row["resps"][0][0] for row in found["samples"]["cached"]]

    loaded, cache = TinyLlama().load(), str(tmp_path / "cache")
    with surgery.pruned(loaded, Plan.drop(loaded.info, [1])):
        one = run(loaded, cache)
    with surgery.pruned(loaded, Plan.drop(loaded.info, [4])):
        other = run(loaded, cache)
        assert other == run(loaded, None)
    assert one != other
    with surgery.pruned(loaded, Plan.drop(loaded.info, [1])):
        assert run(loaded, cache) == one


def test_a_limit_is_of_each_task_alone(tasks: Tasks):
    """A fractional limit of the first task would be the number for all others."""
    tasks.add("small", rows=QUESTIONS_OF(4))
    tasks.add("large", rows=QUESTIONS_OF(10))
    group = tasks.group("both", ["large", "small"])
    found = tasks.run(answering(lambda _: "A"), group.model_copy(update={"limit": 5}))
    assert [len(found.samples[name]) for name in ("large", "small")] == [5, 4]
    with pytest.raises(ValueError, match="limit"):
        Task(id="x", limit=0.5)


def QUESTIONS_OF(n: int) -> list[dict[str, str]]:
    return [{"question": f"w{i}", "answer": "A"} for i in range(n)]


def test_draws_belong_to_questions(tasks: Tasks):
    """Scores of answers that nothing can be made of: the same whatever was drawn before, and counted."""
    task = tasks.add("drawn", rows=MANY, code=DRAWING)
    expected = [
        float(random.Random(seed_for("drawn", i)).choice("ABCD") == row["answer"]) for i, row in enumerate(MANY)
    ]
    every = tasks.run(answering(lambda _: "no idea"), task)
    assert scores(every, "drawn") == expected
    assert every.unparsable == {("drawn", i) for i in range(len(MANY))}
    # the even questions are answered well: the draws of the odd ones stay what they were
    half = tasks.run(answering(lambda name: "A" if int(name.split("/")[1]) % 2 == 0 else "?"), task)
    assert scores(half, "drawn")[1::2] == expected[1::2]
    assert half.unparsable == {("drawn", i) for i in range(1, len(MANY), 2)}
    first = tasks.run(answering(lambda _: "no idea"), task.model_copy(update={"limit": 7}))
    assert scores(first, "drawn") == expected[:7]


def test_draws_that_belong_to_no_question_are_said(tasks: Tasks):
    """Some tasks read answers only where they add them up."""
    code = CODE + "\nimport random\n\ndef aggregate(items):\n    return random.random()\n"
    metric = [{"metric": "acc", "aggregation": Function("aggregate"), "higher_is_better": True}]
    task = tasks.add("summed", code=code, metric_list=metric)
    first, second = (tasks.run(answering(lambda _: "A"), task) for _ in range(2))
    assert first.results["summed"]["acc,none"] == second.results["summed"]["acc,none"]
    assert any("acc draws among options" in text for text in first.warnings)
    assert tasks.run(answering(lambda _: "A"), tasks.add("plain")).warnings == ()


def test_a_run_leaves_the_random_state_alone(tasks: Tasks):
    task = tasks.add("drawn", rows=MANY, code=DRAWING)
    random.seed(7)
    tasks.run(answering(lambda _: "?"), task)
    assert random.random() == random.Random(7).random()


def test_the_profile_chooses_the_prompt(tasks: Tasks):
    by_model = {"default": {"pre_prompt": "w7 "}, "qwen_vl": {"pre_prompt": "w8 "}}
    task = tasks.add("prompted", lmms_eval_specific_kwargs=by_model)
    asked: list[str] = []

    def run(task: Task) -> list[str]:
        asked.clear()
        loaded = answering(lambda _: "A")
        encode = loaded.adapter.encode
        loaded.adapter.encode = lambda model, samples: (
            asked.extend(s.instruction for s in samples) or encode(model, samples)
        )
        tasks.run(loaded, task)
        return list(asked)

    assert run(task) == [f"w7 w{i} w5 w9" for i in range(6)]
    assert run(task.model_copy(update={"options": {"profile": "qwen_vl"}})) == [f"w8 w{i} w5 w9" for i in range(6)]
    assert run(task.model_copy(update={"options": {"profile": "other"}})) == [f"w7 w{i} w5 w9" for i in range(6)]


def test_a_task_that_asserts_is_one_line(tasks: Tasks):
    """mme's own aggregation wants both questions of each image."""
    code = CODE + "\ndef aggregate(items):\n    assert len(items) == 2\n    return 0.0\n"
    metric = [{"metric": "acc", "aggregation": Function("aggregate"), "higher_is_better": True}]
    task = tasks.add("paired", code=code, metric_list=metric)
    with pytest.raises(EvaluationError, match=r"'paired': AssertionError in .*code_paired.py, line \d+: assert len"):
        tasks.run(answering(lambda _: "A"), task.model_copy(update={"limit": 3}))
    assert tasks.run(answering(lambda _: "A"), task.model_copy(update={"limit": 2})).results["paired"]["acc,none"] == 0


def test_files_and_prints_of_a_task_stay_away(tasks: Tasks, tmp_path: Path, monkeypatch, capfd):
    code = CODE + (
        "\ndef aggregate(items):\n    import os\n    print('an accuracy table')\n    os.makedirs('submissions')\n"
        "    open('submissions/all.json', 'w').close()\n    return 0.25\n"
    )
    metric = [{"metric": "acc", "aggregation": Function("aggregate"), "higher_is_better": True}]
    task = tasks.add("printing", code=code, metric_list=metric)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    found = tasks.run(answering(lambda _: "A"), task)
    assert found.results["printing"]["acc,none"] == 0.25
    assert Path.cwd() == here and list(here.iterdir()) == []
    assert capfd.readouterr().out == ""
    with pytest.raises(RuntimeError):
        loaded = answering(lambda _: "A")
        loaded.adapter.generate = _fail
        tasks.run(loaded, task)
    assert Path.cwd() == here


def _fail(*_args):
    raise RuntimeError("no")


def test_relative_paths_of_the_host_stay_its_own(tasks: Tasks, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache = EncoderCache(Path("kept"), share=float("inf"))
    tasks.run(TinyLlama().load(), tasks.add("kept"), encoder=cache)
    assert len(list((tmp_path / "kept").glob("*.safetensors"))) == 6


def test_progress_reaches_the_host(tasks: Tasks, capsys):
    tasks.run(
        answering(lambda _: "A"), tasks.add("shown"), progress=lambda done, of: print(f"{done}/{of}"), batch_size=4
    )
    assert capsys.readouterr().out == "4/6\n6/6\n"


def test_importing_lmms_eval_changes_no_stream_and_no_log(tmp_path: Path):
    """It removes all handlers of loguru and adds one on stdout; in a process where nothing is imported yet."""
    script = """
import sys, loguru
from pathlib import Path
seen = []
loguru.logger.remove()
loguru.logger.add(lambda message: seen.append(message.record["message"]))
from prunebench_lmms_eval.host import Host
host = Host(Path(sys.argv[1]))
with host.away():
    import lmms_eval.models
    loguru.logger.info("of the host")
    print("hidden")
    exec(compile("from loguru import logger; logger.error('of lmms-eval')", "/x/lmms_eval/y.py", "exec"))
loguru.logger.warning("afterwards")
print(seen, host.complaints())
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['of the host', 'afterwards'] ('lmms-eval: of lmms-eval',)\n"
    assert "hidden" in (tmp_path / "lmms-eval.log").read_text()


FAILING = """
import sys
def doc_to_text(doc, kwargs=None):
    return doc["question"]
def process_results(doc, results):
    {what}
"""


def test_an_error_in_scoring_is_not_tried_five_times(tasks: Tasks):
    """tenacity tries again every two seconds and hides what it was."""
    task = tasks.add("failing", code=FAILING.format(what="raise KeyError('category')"))
    tasks.run(answering(lambda _: "A"), tasks.add("warm"))
    started = time.perf_counter()
    with pytest.raises(EvaluationError, match=r"^task 'failing': KeyError: 'category'$"):
        tasks.run(answering(lambda _: "A"), task)
    assert time.perf_counter() - started < 4


def test_a_judged_task_keeps_its_tries(tasks: Tasks, monkeypatch):
    """A service may answer the second time."""
    import tenacity.nap

    monkeypatch.setattr(tenacity.nap.time, "sleep", lambda seconds: None)
    code = "tries = []\n" + FAILING.format(
        what="tries.append(1)\n    if len(tries) < 3: raise OSError('busy')\n    return {'acc': 1.0}"
    )
    task = tasks.add("judged", code=code, rows=QUESTIONS_OF(1)).model_copy(update={"judge": "openai"})
    assert tasks.run(answering(lambda _: "A"), task).results["judged"]["acc,none"] == 1.0


def test_a_task_that_ends_the_process_is_an_error(tasks: Tasks):
    """videomme calls sys.exit where a video is missing."""
    code = FAILING.format(what="sys.exit('video path:x.mp4 does not exist, please check')")
    with pytest.raises(EvaluationError, match=r"'ending': its code ends the process: video path:x.mp4 does not exist"):
        tasks.run(answering(lambda _: "A"), tasks.add("ending", code=code))
    early = code.replace('return doc["question"]', 'sys.exit("no video")')
    with pytest.raises(EvaluationError, match="ends the process: no video"):
        tasks.run(answering(lambda _: "A"), tasks.add("early", code=early))


def test_questions_that_a_task_leaves_out_of_its_score_are_counted(tasks: Tasks):
    """Code that gives an unreadable answer no value at all makes the mean one over the others."""
    from prunebench_lmms_eval.scoring import score_samples

    task = tasks.add("choosy", code=FAILING.format(what="return {'acc': 1.0} if results[0] == 'A' else {}"))
    found = tasks.run(answering(lambda name: "A" if name.endswith(("0", "3")) else "?"), task)
    got = score_samples(task, found)
    assert (got.score, got.n) == (1.0, 2)
    assert got.warnings == ("the benchmark's code leaves 4 questions out of the score",)


def test_a_question_that_cannot_be_made_is_one_line(tasks: Tasks):
    code = CODE + "\ndef doc_to_visual(doc):\n    return [doc['picture']]\n"
    with pytest.raises(EvaluationError, match=r"^question 'blank/0' cannot be put: KeyError: 'picture'$"):
        tasks.run(answering(lambda _: "A"), tasks.add("blank", code=code, doc_to_visual=Function("doc_to_visual")))


def test_each_task_has_its_own_folder_of_data_sets(tasks: Tasks, tmp_path: Path, monkeypatch):
    """lmms-eval takes that of the first task for all."""
    for name in ("one", "two"):
        monkeypatch.setenv("HF_HOME", str(tmp_path / f"home-{name}"))
        tasks.run(answering(lambda _: "A"), tasks.add(name))
        assert any((tmp_path / f"home-{name}" / "datasets").rglob("*.arrow"))


def test_an_interrupt_passes(tasks: Tasks):
    code = FAILING.format(what="raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        tasks.run(answering(lambda _: "A"), tasks.add("stopped", code=code))


def test_missing_data_are_one_line_and_quick(tasks: Tasks, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    task = tasks.add("lost", dataset_kwargs={"data_files": {"test": "/no/such/file.jsonl"}})
    started = time.perf_counter()
    with pytest.raises(EvaluationError, match=r"'lost': FileNotFoundError: .*no/such/file") as caught:
        tasks.run(answering(lambda _: "A"), task)
    assert time.perf_counter() - started < 4
    assert "\n" not in str(caught.value)


def test_hf_home_is_there_for_tasks_and_gone_afterwards(tasks: Tasks, monkeypatch):
    """nextqa indexes the variable while its module is imported."""
    task = tasks.add("homeless", code="import os\nHOME = os.environ['HF_HOME']\n" + CODE)
    monkeypatch.delenv("HF_HOME")
    assert len(tasks.run(answering(lambda _: "A"), task).samples["homeless"]) == 6
    assert "HF_HOME" not in os.environ


def test_a_launcher_s_ranks_do_not_share_the_questions_out(tasks: Tasks, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert len(tasks.run(answering(lambda _: "A"), tasks.add("alone")).samples["alone"]) == 6
    assert os.environ["WORLD_SIZE"] == "2"


def test_several_filters_give_the_samples_of_the_one_asked_for(tasks: Tasks):
    def regex(name: str, pattern: str) -> dict:
        steps = [{"function": "regex", "regex_pattern": pattern}, {"function": "take_first"}]
        return {"name": name, "filter": steps}

    task = tasks.add("filtered", filter_list=[regex("first", r"(\w) and"), regex("second", r"and (\w)")])
    found = tasks.run(answering(lambda _: "A and B"), task.model_copy(update={"filter": "second"}))
    assert [row["filtered_resps"] for row in found.samples["filtered"]] == [["B"]] * 6
    assert scores(found, "filtered") == [0.0, 1.0] * 3
    assert found.results["filtered"]["acc,first"] == 0.5 and found.results["filtered"]["acc,second"] == 0.5


def test_several_rounds_are_refused(tasks: Tasks):
    task = tasks.add("rounds", output_type="generate_until_multi_round")
    with pytest.raises(EvaluationError, match="'rounds': PruneBench asks one question at a time"):
        tasks.run(answering(lambda _: "A"), task)


@pytest.mark.parametrize("before", [False, True])
def test_pillow_is_as_it_was_and_the_same_for_every_task(before, tmp_path, monkeypatch):
    """lmms-eval makes it take truncated files, on its first import only; one of its tasks lifts the limit of pixels."""
    from PIL import Image, ImageFile

    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", before)
    limit = Image.MAX_IMAGE_PIXELS
    for number in range(2):
        host = Host(tmp_path / str(number))
        with host.away():
            assert ImageFile.LOAD_TRUNCATED_IMAGES is True
            Image.MAX_IMAGE_PIXELS = 7
            with host.home():
                assert (before, limit) == (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
            assert (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS) == (True, 7)
        assert (before, limit) == (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
