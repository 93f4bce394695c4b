"""Held-out accuracy during training, on calibration questions: the test split is looked at only at the end."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch

from prunebench.calibration.samples import Sample

from ..data import TestbedDataset
from ..modeling import TestbedForConditionalGeneration
from ..processing import TestbedProcessor
from .batches import Batch, batch_from_scenes
from .decoder import answer_loss, run_decoder

__all__ = ["HeldOut", "batch_from_samples"]


class HeldOut:
    """A fixed set of held-out questions, packed one per sequence."""

    def __init__(self, processor: TestbedProcessor, questions: int) -> None:
        dataset = TestbedDataset()
        self.samples = {d: dataset.samples("calibration", questions, seed=1, domain=d) for d in dataset.domains}
        self.batches = {domain: batch_from_samples(samples, processor) for domain, samples in self.samples.items()}

    @torch.no_grad()
    def accuracy(
        self,
        model: TestbedForConditionalGeneration,
        dropped: Collection[int] = (),
        layer_ids: tuple[int, ...] | None = None,
    ) -> dict[str, float]:
        """Share of right answers by domain, without the ``dropped`` layers."""
        found = {}
        for domain, batch in self.batches.items():
            result = run_decoder(model, batch, dropped, layer_ids, measure=False)
            found[domain] = round(answer_loss(model, batch, result.hidden)[1].float().mean().item(), 4)
        return found

    @torch.no_grad()
    def kinds(
        self, model: TestbedForConditionalGeneration, layer_ids: tuple[int, ...] | None = None
    ) -> dict[str, float]:
        """Share of right answers by question kind."""
        hits: dict[str, list[float]] = {}
        for domain, batch in self.batches.items():
            result = run_decoder(model, batch, (), layer_ids, measure=False)
            right = answer_loss(model, batch, result.hidden)[1].tolist()
            for sample, hit in zip(self.samples[domain], right, strict=True):
                hits.setdefault(f"{domain}/{sample.kind}", []).append(float(hit))
        return {kind: round(float(np.mean(values)), 3) for kind, values in hits.items()}

    @torch.no_grad()
    def updates(
        self, model: TestbedForConditionalGeneration, layer_ids: tuple[int, ...] | None = None
    ) -> tuple[dict[int, float], dict[int, float]]:
        """Mean relative update and mean 1 − cos(input, output) per layer, over the domains."""
        runs = [run_decoder(model, batch, (), layer_ids) for batch in self.batches.values()]
        update = {k: float(np.mean([run.update[k].mean().item() for run in runs])) for k in runs[0].update}
        distance = {k: float(np.mean([run.distance[k].mean().item() for run in runs])) for k in runs[0].distance}
        return update, distance


def batch_from_samples(samples: list[Sample], processor: TestbedProcessor) -> Batch:
    """Samples of one domain as a training batch with one question per sequence."""
    media = [s.images[0] if s.images else s.video if s.video is not None else s.audio for s in samples]
    asked = [[(sample.instruction, sample.answer)] for sample in samples]
    return batch_from_scenes(samples[0].domain, np.stack(media), asked, processor)
