"""Our model object for lmms-eval: what it is asked, what it answers, what it refuses."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lmms_eval")

from prunebench_lmms_eval import compat
from prunebench_lmms_eval.fingerprint import model_fingerprint
from prunebench_lmms_eval.likelihood import continuation_loss
from prunebench_lmms_eval.model import MAX_NEW_TOKENS, cut_at

from prunebench import surgery
from prunebench.adapter import LoadOptions
from prunebench.calibration.samples import Sample
from prunebench.encoded import EncoderCache
from prunebench.errors import EvaluationError, MissingExtra
from prunebench.plan import Plan
from prunebench.testing.tiny import TinyGemma, TinyLlama
from tests.lmms.local_tasks import CODE, QUESTIONS, Function, Tasks, answering, answers, scores, tasks

__all__ = ["tasks"]

CHOICES = ["w3", "w4 w9", "w5 w6 w7"]
PICKING = [{"question": f"w{i} w20", "answer": i % 3, "choices": CHOICES} for i in range(10)]


def picking(tasks: Tasks, name: str, **settings):
    settings = {
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "generation_kwargs": None,
        "process_results": None,
        **settings,
    }
    return tasks.add(name, rows=PICKING, **settings)


def loss_by_hand(loaded, question: str, continuation: str) -> tuple[float, bool]:
    """One forward pass over the whole text, token by token."""
    words = [1, *(int(word[1:]) for word in question.split())]
    more = [int(word[1:]) for word in continuation.split()]
    ids = torch.tensor([words + more])
    with torch.no_grad():
        logits = loaded.model(input_ids=ids).logits[0].double()
    total, greedy = 0.0, True
    for place, token in enumerate(more, len(words)):
        row = logits[place - 1]
        total -= float(row[token]) - math.log(float(row.exp().sum()))
        greedy &= int(row.argmax()) == token
    return total / len(more), greedy


@pytest.mark.parametrize("model", [TinyLlama, TinyGemma])
def test_the_loss_of_options_is_that_of_a_plain_forward_pass(model):
    loaded = model().load()
    for continuation in (*CHOICES, " w3 "):
        loss, greedy = continuation_loss(loaded, EncoderCache(), Sample("q", "w8 w20 w30"), continuation)
        expected = loss_by_hand(loaded, "w8 w20 w30", continuation)
        assert loss == pytest.approx(expected[0], abs=1e-5) and greedy is expected[1]
    best = loaded.generate(loaded.encode([Sample("q", "w8 w20 w30")]), 2)[0]
    assert continuation_loss(loaded, EncoderCache(), Sample("q", "w8 w20 w30"), best)[1] is True


def test_what_is_kept_of_a_question_holds_no_graph():
    """A tower's activations would stay with it, for every question of a task."""
    loaded, cache = TinyLlama().load(), EncoderCache()
    loaded.model.requires_grad_(True)
    continuation_loss(loaded, cache, Sample("q", "w8 w20"), "w3")
    inputs = cache.encode(loaded, [Sample("q", "w8 w20")])
    assert inputs.embeds.grad_fn is None and not inputs.embeds.requires_grad


def test_multiple_choice_takes_the_option_of_least_loss(tasks: Tasks):
    task, loaded = picking(tasks, "picking"), TinyLlama().load()
    told: list[tuple[int, int]] = []
    found = tasks.run(loaded, task, progress=lambda done, of: told.append((done, of)))
    expected = []
    for row in PICKING:
        losses = [loss_by_hand(loaded, row["question"], choice)[0] for choice in CHOICES]
        expected.append(float(int(np.argmin(losses)) == row["answer"]))
    assert scores(found, "picking") == expected
    assert 0 < sum(expected) < len(expected)
    assert found.results["picking"]["acc,none"] == sum(expected) / len(expected)
    assert told[-1] == (10, 10) and [done for done, _ in told] == [1 + i // 3 for i in range(30)]


def test_likelihoods_that_lmms_eval_cannot_score_are_refused(tasks: Tasks):
    metric = [{"metric": "acc_mutual_info", "aggregation": "mean", "higher_is_better": True}]
    with pytest.raises(EvaluationError, match="likelihoods without a question"):
        tasks.run(TinyLlama().load(), picking(tasks, "mutual", metric_list=metric))
    alone = picking(tasks, "alone", output_type="loglikelihood", doc_to_choice=None)
    with pytest.raises(EvaluationError, match="'alone' is of the kind 'loglikelihood': leave it out"):
        tasks.run(TinyLlama().load(), alone)


# -- generation ------------------------------------------------------------------------------------------------------


def limits_of(tasks: Tasks, task, **settings) -> list[int]:
    loaded, seen = answering(lambda _: "A"), []
    generate = loaded.adapter.generate

    def counted(model, inputs, limit):
        seen.append(limit)
        return generate(model, inputs, limit)

    loaded.adapter.generate = counted
    tasks.run(loaded, task, **settings)
    return seen


def test_the_number_of_new_tokens_is_the_task_s(tasks: Tasks):
    assert limits_of(tasks, tasks.add("said")) == [4] * 6
    assert limits_of(tasks, tasks.add("unsaid", generation_kwargs=None)) == [MAX_NEW_TOKENS] * 6


def test_questions_of_a_group_are_batched_by_their_limit(tasks: Tasks):
    tasks.add("short")
    tasks.add("long", generation_kwargs={"max_new_tokens": 9})
    assert sorted(limits_of(tasks, tasks.group("mixed", ["short", "long"]), batch_size=4)) == [4, 4, 9, 9]


def test_until_cuts_the_answer_at_what_the_task_says(tasks: Tasks):
    loaded = answering(lambda name: "\n\nA and\n\nB STOP C")

    def said(name: str, until) -> list[str]:
        settings = {} if until is None else {"until": until}
        return answers(tasks.run(loaded, tasks.add(name, generation_kwargs={"max_new_tokens": 4, **settings})), name)

    assert said("cut", ["C", "STOP"]) == ["\n\nA and\n\nB "] * 6
    assert said("one", "STOP") == ["\n\nA and\n\nB "] * 6
    assert said("own", ["STOP", "\n\n"]) == [""] * 6
    assert cut_at("a.b.c", ["", "c", "."]) == "a"


def test_an_empty_line_ends_no_answer_unless_somebody_says_so(tasks: Tasks):
    """lmms-eval gives every task without an `until` that one."""
    loaded = answering(lambda name: "\n\nA and\n\nB")
    for name, settings in (("unsaid", None), ("silent", {"max_new_tokens": 4})):
        assert answers(tasks.run(loaded, tasks.add(name, generation_kwargs=settings)), name) == ["\n\nA and\n\nB"] * 6


def test_sampling_is_said_not_to_happen(tasks: Tasks):
    asks = [{"do_sample": True, "temperature": 0.7}, {"temperature": 0.7}, {"do_sample": True}, {"num_beams": 4}]
    for name, asked in zip(("warm", "hot", "free", "beams"), asks, strict=True):
        task = tasks.add(name, generation_kwargs={"max_new_tokens": 2, **asked})
        assert tasks.run(TinyLlama().load(), task).warnings == (
            "the task asks for sampling or beams: decoded greedily all the same",
        )
    for name, asked in (("cold", {"temperature": 0}), ("forced", {"do_sample": False, "temperature": 0.7})):
        cold = tasks.add(name, generation_kwargs={"max_new_tokens": 2, "do_sample": False, **asked})
        assert tasks.run(TinyLlama().load(), cold).warnings == ()


def test_prompt_tokens_are_counted_without_padding(tasks: Tasks):
    rows = [{"question": " ".join(["w5"] * n), "answer": "A"} for n in (2, 7, 4)]
    found = tasks.run(TinyLlama().load(), tasks.add("counted", rows=rows), batch_size=3)
    assert [row["token_counts"] for row in found.samples["counted"]] == [[{"input_tokens": n + 1}] for n in (2, 7, 4)]


def test_repeated_questions_are_asked_once(tasks: Tasks):
    """Greedy answers are the same each time."""
    assert limits_of(tasks, tasks.add("again", repeats=3)) == [4] * 6


def test_the_answers_are_those_of_the_adapter(tasks: Tasks):
    loaded = TinyLlama().load()
    expected = [
        loaded.generate(loaded.encode([Sample(str(i), row["question"])]), 4)[0] for i, row in enumerate(QUESTIONS)
    ]
    assert answers(tasks.run(loaded, tasks.add("same")), "same") == expected
    with surgery.pruned(loaded, Plan.drop(loaded.info, [1, 2])):
        pruned = answers(tasks.run(loaded, tasks.add("pruned")), "pruned")
        direct = [
            loaded.generate(loaded.encode([Sample(str(i), r["question"])]), 4)[0] for i, r in enumerate(QUESTIONS)
        ]
    assert pruned == direct != expected


EXAMPLES = [{"question": f"w{40 + i}", "answer": f"w{50 + i}"} for i in range(10)]


def test_examples_in_the_prompt_belong_to_the_question(tasks: Tasks, tmp_path: Path):
    """The same ones for each of two makings, and for a batch of another size."""
    import json

    more = tmp_path / "examples.jsonl"
    more.write_text("".join(json.dumps(row) + "\n" for row in EXAMPLES))
    data = {"data_files": {"test": str(tasks.folder / "shots.jsonl"), "train": str(more)}}
    task = tasks.add("shots", num_fewshot=2, training_split="train", fewshot_split="train", dataset_kwargs=data)

    def prompts(**settings) -> dict[str, str]:
        loaded, asked = answering(lambda _: "A"), {}
        encode = loaded.adapter.encode

        def noted(model, samples):
            asked.update({sample.id: sample.instruction for sample in samples})
            return encode(model, samples)

        loaded.adapter.encode = noted
        found = tasks.run(loaded, task.model_copy(update=settings))
        for row in found.samples["shots"]:
            assert row["arguments"][0] == asked[f"shots/{row['doc_id']}"]
        return asked

    every, first = prompts(), prompts(limit=2)
    goes_on = answering(lambda _: "A\n\nw3 w4")  # with an example of its own
    assert answers(tasks.run(goes_on, task.model_copy(update={"limit": 2})), "shots") == ["A"] * 2
    assert first == {name: every[name] for name in ("shots/0", "shots/1")}
    assert all(words.count("\n\n") == 2 for words in every.values()) and len(set(every.values())) == 6


# -- media -----------------------------------------------------------------------------------------------------------

LOOKING = CODE + (
    "\ndef doc_to_visual(doc):\n    from PIL import Image\n"
    "    return [Image.new('RGB', (8, 8), (doc['shade'], 0, 0))]\n"
)
SHADES = [{"question": "w4", "answer": "A", "shade": 40 * i} for i in range(4)]


def test_images_reach_the_model(tasks: Tasks):
    task = tasks.add("looking", rows=SHADES, code=LOOKING, doc_to_visual=Function("doc_to_visual"))
    loaded = TinyLlama().load()
    images = [np.zeros((8, 8, 3), np.uint8) for _ in SHADES]
    for array, row in zip(images, SHADES, strict=True):
        array[..., 0] = row["shade"]
    samples = [Sample(str(i), "w4", images=(array,)) for i, array in enumerate(images)]
    expected = [loaded.generate(loaded.encode([sample]), 4)[0] for sample in samples]
    assert answers(tasks.run(loaded, task), "looking") == expected
    assert len(set(expected)) > 1


def test_pictures_are_read_once_and_not_kept(tasks: Tasks, tmp_path: Path, monkeypatch):
    """Ten thousand of them do not fit: neither samples nor logs hold any."""
    from datasets import Dataset, Features, Image, List, Value
    from PIL import Image as Pictures

    rows = [
        {"question": f"w{4 + i}", "answer": "A", "one": Pictures.new("RGB", (8, 8), (20 * i, 0, 0)),
         "many": [Pictures.new("RGB", (8, 8), (0, 20 * i, j)) for j in range(2)]}
        for i in range(12)
    ]  # fmt: skip
    features = Features(question=Value("string"), answer=Value("string"), one=Image(), many=List(Image()))
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "pictures.parquet")
    code = CODE + "\ndef doc_to_visual(doc):\n    return [doc['one'], *doc['many']]\n"
    data = {"data_files": {"test": str(tmp_path / "pictures.parquet")}}
    task = tasks.add(
        "kept", code=code, doc_to_visual=Function("doc_to_visual"), dataset_path="parquet", dataset_kwargs=data
    )
    read, decode = [], Image.decode_example
    monkeypatch.setattr(Image, "decode_example", lambda *args, **kw: read.append(1) or decode(*args, **kw))
    found = tasks.run(answering(lambda _: "A"), task)
    assert 3 * 12 <= len(read) < 5 * 12  # datasets reads the first of a list twice; scoring reads none
    assert [row["doc"] for row in found.samples["kept"]] == [
        {"question": row["question"], "answer": row["answer"]} for row in rows
    ]


def test_a_medium_that_the_model_does_not_take_is_one_line(tasks: Tasks):
    task = tasks.add("looking", rows=SHADES, code=LOOKING, doc_to_visual=Function("doc_to_visual"))
    loaded = TinyLlama().load()
    loaded.adapter.modalities = ("text", "audio")
    with pytest.raises(EvaluationError, match=r"'looking/0' has a medium that tiny-llama does not take: image \(it"):
        tasks.run(loaded, task)


def test_audio_columns_need_no_torchcodec(tasks: Tasks, tmp_path: Path):
    """datasets gives a decoder of torchcodec's there, or fails without it."""
    soundfile = pytest.importorskip("soundfile")
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Audio, Features, Value

    waves = [np.sin(np.arange(400) * (i + 1) / 20).astype(np.float32) / 2 for i in range(3)]
    rows = []
    for wave in waves:
        soundfile.write(buffer := io.BytesIO(), np.stack([wave, wave], 1), 8000, format="wav", subtype="FLOAT")
        rows.append({"bytes": buffer.getvalue(), "path": "a.wav"})
    features = Features({"question": Value("string"), "answer": Value("string"), "audio": Audio(sampling_rate=16000)})
    table = pa.table({"question": ["w4"] * 3, "answer": ["A"] * 3, "audio": rows}, schema=features.arrow_schema)
    pq.write_table(table, tmp_path / "sounds.parquet")
    data = {"data_files": {"test": str(tmp_path / "sounds.parquet")}}
    code = CODE + "\ndef doc_to_visual(doc):\n    return [doc['audio']]\n"
    task = tasks.add(
        "heard", code=code, doc_to_visual=Function("doc_to_visual"), dataset_path="parquet", dataset_kwargs=data
    )
    loaded, seen = answering(lambda _: "A"), []
    encode = loaded.adapter.encode
    loaded.adapter.encode = lambda model, samples: seen.extend(samples) or encode(model, samples)
    before = Audio.decode_example
    found = tasks.run(loaded, task)
    assert scores(found, "heard") == [1.0] * 3 and Audio.decode_example is before
    for sample, wave in zip(seen, waves, strict=True):
        assert sample.sampling_rate == 16000 and sample.audio.dtype == np.float32
        np.testing.assert_allclose(sample.audio[::2][20:-20], wave[20:-20], atol=2e-3)


OWN_CLASS = LOOKING + (
    "\nfrom lmms_eval.api.task import ConfigurableTask\n\nclass Own(ConfigurableTask):\n"
    "    def __init__(self, config=None):\n        config.pop('class')\n        super().__init__(config=config)\n"
)


def test_tasks_with_a_class_of_their_own_are_asked_in_their_simple_form(tasks: Tasks):
    settings = {"rows": SHADES, "doc_to_visual": Function("doc_to_visual")}
    chat = tasks.add("chat", code=LOOKING, **settings)
    simple = tasks.add("simple", code=OWN_CLASS, **settings, **{"class": Function("Own")})
    loaded = TinyLlama().load()
    expected = answers(tasks.run(loaded, chat), "chat")
    assert answers(tasks.run(loaded, simple), "simple") == expected and len(set(expected)) > 1


# -- identity --------------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_of_the_content(tasks: Tasks):
    one, same = TinyLlama().load(), TinyLlama().load()
    dense = model_fingerprint(one)
    assert dense == model_fingerprint(same)
    lm = tasks.lm(one, tasks.host())
    assert repr(lm) == f"prunebench:{dense}" and "0x" not in repr(lm)
    seen = {dense}
    for layers in ([0], [1], [4], [1, 2], [0, 1]):
        with surgery.pruned(one, Plan.drop(one.info, layers)):
            seen.add(repr(lm).removeprefix("prunebench:"))
    assert len(seen) == 6
    assert model_fingerprint(one) == dense
    with torch.no_grad():
        next(iter(one.layers[3].parameters())).view(-1)[5] += 1e-3
    assert model_fingerprint(one) != dense


def test_a_model_that_was_pruned_at_loading_is_another(tasks: Tasks):
    dense = TinyLlama().load()
    plan = Plan.drop(dense.info, [2])
    assert model_fingerprint(TinyLlama().load(LoadOptions(plan=plan))) != model_fingerprint(dense)


# -- what stands around it -------------------------------------------------------------------------------------------


def test_without_lmms_eval_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(compat, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"the evaluator 'lmms' needs 'lmms-eval': make lmms") as caught:
        compat.need_lmms_eval()
    assert caught.value.extra == "lmms" and "\n" not in str(caught.value)


TORCHVISION = """
import torch
{first}
@torch.library.register_fake("torchvision::nms")
def fake(dets, scores, threshold):
    return dets
"""


def _with_torchvision(tmp_path: Path, first: str) -> subprocess.CompletedProcess[str]:
    """A torchvision whose compiled part is missing, as it is beside a CPU build of torch."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(TORCHVISION.format(first=first))
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from prunebench_lmms_eval.compat import repair_torchvision\n"
        "print(repair_torchvision(), repair_torchvision())\nimport torchvision; print(torchvision.fake(1, 2, 3))"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(torch.version.cuda is not None, reason="a torchvision for CUDA loads beside a torch for CUDA")
def test_a_torchvision_without_kernels_is_repaired(tmp_path: Path):
    done = _with_torchvision(tmp_path, "")
    assert done.stdout.split() == ["True", "False", "1"], done.stderr


@pytest.mark.skipif(torch.version.cuda is not None, reason="a torchvision for CUDA loads beside a torch for CUDA")
def test_a_torchvision_that_is_broken_otherwise_is_named(tmp_path: Path):
    done = _with_torchvision(tmp_path, "raise ImportError('no image library')")
    assert "EvaluationError: torchvision does not import beside this torch (no image library): pip" in done.stderr
