"""The optimisation loop that both decoder phases share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..data.dataset import DOMAINS
from ..modeling import TestbedForConditionalGeneration
from ..processing import TestbedProcessor
from . import roles
from .batches import make_batch, wrong_answers
from .decoder import answer_loss, run_decoder, sample_count, sample_dropped, update_penalty
from .team import Team

__all__ = ["Phase", "make_optimizer", "train_steps"]

# domains by process: about the same number of tokens each
SHARES = (("general", "math"), ("video", "audio"))
STREAMS = tuple(DOMAINS)
REPORTED = ("loss", "train", "penalty")


@dataclass(frozen=True)
class Phase:
    """Settings of one decoder phase.

    Attributes:
        name: ``"core"`` or ``"grown"``.
        stream: number of its random stream.
        steps: optimisation steps; each sees a batch of every domain.
        contexts: scenes per domain and step.
        questions: questions packed per scene.
        learning_rate, warmup: peak of the cosine schedule, and steps until it is reached.
        easy, helpers: shares of easy scenes and helper questions at the start; both fade out.
        emphasis: question kinds that take extra turns.
        fade: fraction of the steps after which easy scenes are gone.
        penalty: weight of the update penalty.
        failures: scenes per process and step that are seen without a layer that answers are to rest on.
        failure_accuracy: share of right answers that is to be left without such a layer.
    """

    name: str
    stream: int
    steps: int
    contexts: dict[str, int]
    questions: int = 8
    learning_rate: float = 1e-3
    warmup: int = 100
    easy: float = 0.0
    helpers: float = 0.0
    emphasis: tuple[str, ...] = ()
    fade: float = 0.5
    penalty: float = 0.01
    failures: int = 0
    failure_accuracy: float = 0.6

    @property
    def grown(self) -> bool:
        """Whether the removable layers are there."""
        return self.name == "grown"

    @property
    def layer_ids(self) -> tuple[int, ...]:
        """Planted ids of the decoder's layers in this phase."""
        return tuple(range(roles.LAYERS)) if self.grown else roles.CORE


def make_optimizer(model: TestbedForConditionalGeneration, phase: Phase) -> torch.optim.Optimizer:
    """AdamW with weight decay on the decoder's matrices only."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in trained if p.dim() == 2 and "layers" in name]
    rest = [p for name, p in trained if not (p.dim() == 2 and "layers" in name)]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=phase.learning_rate, betas=(0.9, 0.98), eps=1e-8)


def train_steps(
    model: TestbedForConditionalGeneration,
    processor: TestbedProcessor,
    phase: Phase,
    optimizer: torch.optim.Optimizer,
    start: int,
    seed: int,
    workers: int,
    after_step: Callable[[int, dict[str, float]], None],
) -> None:
    """Run steps ``start`` … ``phase.steps`` − 1; step ``i`` sees the same data however often the run was resumed.

    ``after_step`` is called with the number of steps done and running means of loss and accuracy by domain.
    """
    model.train()
    team = Team(model, StepShare(processor, phase, seed, workers), workers, (len(STREAMS) + workers, len(REPORTED)))
    means: dict[str, float] = {}
    for step in range(start, phase.steps):
        for group in optimizer.param_groups:
            group["lr"] = phase.learning_rate * _schedule(step, phase)
        started = time.monotonic()
        optimizer.zero_grad()
        stats = team.gradients_of(step)
        nn.utils.clip_grad_norm_(team.trained, 1.0)
        optimizer.step()
        _track(means, "seconds_per_step", time.monotonic() - started)
        for row, domain in enumerate(STREAMS):
            for name, value in zip(REPORTED, stats[row].tolist(), strict=True):
                _track(means, f"{name}/{domain}", value)
        for layer, hits, _ in stats[len(STREAMS) :].tolist() if phase.failures else ():
            _track(means, f"without/{int(layer)}", hits)
        means["further_cpu_seconds"] = team.further_cpu_seconds
        after_step(step + 1, means)
    team.stop()


class StepShare:
    """One process's part of a step: its domains, and some scenes without a layer that answers are to rest on."""

    def __init__(self, processor: TestbedProcessor, phase: Phase, seed: int, workers: int) -> None:
        self.processor, self.phase, self.seed, self.workers = processor, phase, seed, workers

    def __call__(self, model: TestbedForConditionalGeneration, step: int, worker: int, stats: Tensor) -> None:
        """Accumulate gradients and report by domain."""
        phase = self.phase
        left = max(0.0, 1 - step / (phase.fade * phase.steps))
        helpers = phase.helpers * (0.25 + 0.75 * left)
        # every process skips equally many layers, so that none waits for the other
        count = sample_count(self._rng(step, len(STREAMS))) if phase.grown else 0
        for share in SHARES[worker :: self.workers]:
            for domain in share:
                rng = self._rng(step, STREAMS.index(domain))
                contexts = phase.contexts[domain]
                batch = make_batch(
                    domain, contexts, phase.questions, rng, self.processor, phase.easy * left, helpers, phase.emphasis
                )
                result = run_decoder(model, batch, sample_dropped(domain, rng, count), phase.layer_ids)
                loss, hits = answer_loss(model, batch, result.hidden)
                penalty = update_penalty(result)
                (self._weight(contexts) * (loss + phase.penalty * penalty)).backward()
                stats[STREAMS.index(domain)] = torch.stack([loss, hits.float().mean(), penalty]).detach()
        if phase.failures:
            self._fail_without_a_layer(model, self._rng(step, 100 + worker), count, stats[len(STREAMS) + worker])

    def _fail_without_a_layer(self, model, rng: np.random.Generator, count: int, stats: Tensor) -> None:
        """Make a core layer needed, but not all-important: where it is skipped, answers are to be right only so often.

        While they are right more often, training asks for another question's answer; else for the right one.
        """
        layer = int(rng.choice(list(roles.RELIED_ON)))
        domain = str(rng.choice(roles.RELIED_ON[layer]))
        batch = make_batch(domain, self.phase.failures, self.phase.questions, rng, self.processor)
        dropped = sample_dropped(domain, rng, count) | {layer}
        hidden = run_decoder(model, batch, dropped, self.phase.layer_ids, measure=False).hidden
        loss, right = answer_loss(model, batch, hidden)
        hits = right.float().mean()
        if hits > self.phase.failure_accuracy:
            loss = answer_loss(model, wrong_answers(batch, rng), hidden)[0]
        (self._weight(self.phase.failures) * loss).backward()
        stats[0], stats[1] = layer, hits

    def _weight(self, contexts: int) -> float:
        return contexts / sum(self.phase.contexts.values())

    def _rng(self, step: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([0, self.phase.stream, self.seed, step, stream])


def _schedule(step: int, phase: Phase) -> float:
    if step < phase.warmup:
        return (step + 1) / phase.warmup
    done = (step - phase.warmup) / max(1, phase.steps - phase.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def _track(means: dict[str, float], key: str, value: float) -> None:
    means[key] = 0.95 * means[key] + 0.05 * value if key in means else value
