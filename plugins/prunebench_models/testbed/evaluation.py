"""Accuracy of a testbed model the way a user gets it: processor, greedy generation, first word of the answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from prunebench.calibration.samples import Sample

from .data import TestbedDataset
from .modeling import TestbedForConditionalGeneration
from .processing import TestbedProcessor

__all__ = ["evaluate", "generate_answers"]


@torch.no_grad()
def generate_answers(
    model: TestbedForConditionalGeneration,
    processor: TestbedProcessor,
    samples: Sequence[Sample],
    batch_size: int = 50,
    max_new_tokens: int = 2,
) -> list[str]:
    """Greedy answers in words, one per sample."""
    answers: list[str] = []
    for start in range(0, len(samples), batch_size):
        batch = processor.from_samples(samples[start : start + batch_size]).to(model.device)
        ids = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
        answers += processor.batch_decode(ids[:, batch["input_ids"].shape[1] :])
    return answers


def evaluate(
    model: TestbedForConditionalGeneration,
    processor: TestbedProcessor,
    domain: str,
    n: int = 500,
    split: str = "test",
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy in [0, 1] on ``n`` questions of a domain, in all and by question kind."""
    samples = TestbedDataset().samples(split, n, seed=seed, domain=domain)
    answers = generate_answers(model, processor, samples)
    hits = defaultdict(list)
    for sample, answer in zip(samples, answers, strict=True):
        hits[sample.kind].append(answer == sample.answer)
    right = sum(sum(values) for values in hits.values())
    return {"accuracy": right / n, "kinds": {kind: sum(values) / len(values) for kind, values in hits.items()}}
