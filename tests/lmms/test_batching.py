"""Batches give the answers of questions asked one by one, or they are not made."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("lmms_eval")

from prunebench_models.hf.adapter import TransformersModel

import prunebench
from prunebench import LoadOptions, Plan, surgery
from prunebench.testing.tiny import TinyGemma, TinyLlama
from tests.lmms.local_tasks import Function, Tasks, answers, tasks
from tests.models.family_processors import save_checkpoint

__all__ = ["tasks"]

CODE = """
import numpy as np
from PIL import Image

def doc_to_messages(doc):
    content = [{{"type": "text", "text": doc["question"]}}]
    if doc["shade"] is not None:
        pixels = np.random.default_rng(doc["shade"]).integers(0, 256, ({size}, {size}, 3), dtype=np.uint8)
        content.insert(0, {{"type": "image", "url": Image.fromarray(pixels)}})
    return [{{"role": "user", "content": content}}]

def process_results(doc, results):
    return {{"acc": float(results[0].strip() == doc["answer"])}}
"""


def rows(count: int) -> list[dict]:
    """Questions of different lengths, two of three with an image."""
    lengths = [1 + (7 * i) % 11 for i in range(count)]
    words = [" ".join(f"w{4 + (i * 13 + j * 5) % 40}" for j in range(n)) for i, n in enumerate(lengths)]
    return [{"question": question, "answer": "A", "shade": i if i % 3 else None} for i, question in enumerate(words)]


def added(tasks: Tasks, size: int = 8):
    return tasks.add(
        "batched", rows=rows(13), code=CODE.format(size=size), doc_to_messages=Function("doc_to_messages"),
        doc_to_text="question", generation_kwargs={"max_new_tokens": 6},
    )  # fmt: skip


@pytest.mark.parametrize("model", [TinyLlama, TinyGemma])
@pytest.mark.parametrize("layers", [(), (1, 2)])
def test_tiny_models(tasks: Tasks, model, layers):
    task, loaded = added(tasks), model().load()
    with surgery.pruned(loaded, Plan.drop(loaded.info, layers)):
        one = answers(tasks.run(loaded, task, batch_size=1), "batched")
        for size in (4, 5, 32):
            assert answers(tasks.run(loaded, task, batch_size=size), "batched") == one
    assert len(set(one)) > 3


@pytest.mark.parametrize("layers", [(), (1,)])
def test_tiny_llava(tasks: Tasks, tmp_path: Path, layers):
    folder = save_checkpoint("Llava", tmp_path / "llava")
    loaded = TransformersModel().load(LoadOptions(name="hf", reference=str(folder)))
    task = added(tasks, size=20)
    with surgery.pruned(loaded, Plan.drop(loaded.info, layers)):
        one = answers(tasks.run(loaded, task, batch_size=1), "batched")
        assert answers(tasks.run(loaded, task, batch_size=5), "batched") == one
    assert len(set(one)) > 3


TESTBED = """
from functools import cache
from PIL import Image
from prunebench_models.testbed.data import TestbedDataset

@cache
def samples(domain):
    return TestbedDataset().samples("test", 8, domain=domain)

def doc_to_messages(doc):
    sample = samples(doc["domain"])[doc["place"]]
    content = [{"type": "image", "url": Image.fromarray(image)} for image in sample.images]
    if sample.video is not None:
        content.append({"type": "video", "url": [Image.fromarray(frame) for frame in sample.video]})
    if sample.audio is not None:
        content.append({"type": "audio", "url": {"array": sample.audio, "sampling_rate": sample.sampling_rate}})
    return [{"role": "user", "content": [*content, {"type": "text", "text": sample.instruction}]}]

def process_results(doc, results):
    return {"acc": float(results[0].strip() == doc["answer"])}
"""


def test_the_testbed_with_images_videos_and_sounds(tasks: Tasks):
    from prunebench_models.testbed.data import TestbedDataset

    questions = [
        {"question": sample.instruction, "answer": sample.answer, "domain": domain, "place": place}
        for domain in TestbedDataset.domains
        for place, sample in enumerate(TestbedDataset().samples("test", 8, domain=domain))
    ]
    task = tasks.add(
        "testbed", rows=questions, code=TESTBED, doc_to_messages=Function("doc_to_messages"), doc_to_text="question"
    )
    loaded = prunebench.load("testbed")
    one = tasks.run(loaded, task, batch_size=1)
    for size in (3, 32):
        assert answers(tasks.run(loaded, task, batch_size=size), "testbed") == answers(one, "testbed")
    assert one.results["testbed"]["acc,none"] > 0.5


def test_an_adapter_that_refuses_batches_gets_none(tasks: Tasks):
    loaded, sizes = TinyLlama().load(), []
    loaded.adapter.batching = False
    encode = loaded.adapter.encode

    def counted(model, samples):
        sizes.append(len(samples))
        return encode(model, samples)

    loaded.adapter.encode = counted
    tasks.run(loaded, added(tasks), batch_size=8)
    assert sizes == [1] * 13
