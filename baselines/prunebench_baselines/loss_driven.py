"""What the loss-driven family shares: the model's own loss with a layer left out, on the first few samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from prunebench.errors import BadParameter
from prunebench.strategy import PlanContext, ScoreStrategy

if TYPE_CHECKING:
    from prunebench.plan import Plan
    from prunebench.probing import Probe

__all__ = ["LossDriven", "asked_of", "check_samples", "note_work"]


@dataclass(frozen=True)
class LossDriven(ScoreStrategy):
    """Base of methods that leave layers out and look at the loss: score(l) = −mean NLL without layer l.

    The loss is that of the answers' tokens given prompt and media; of running text, of every token but the first.
    Minus the log of the perplexity ranks layers as the perplexity does and never overflows.
    """

    needs_model = True
    meaning = "minus the mean negative log-likelihood of the answers without the layer"
    held_out: ClassVar[bool] = False
    """Whether the last samples are taken instead of the first."""

    samples: int = 64
    average: Literal["tokens", "samples"] = "tokens"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_samples(self.name, self.samples)

    def score(self, context: PlanContext) -> np.ndarray:
        return -self.loss_without(context, range(context.model.n_layers), ())

    def rescore(self, context: PlanContext, removed: tuple[int, ...]) -> np.ndarray:
        """What is left of the model once `removed` are gone is asked again; NaN for what may not go."""
        stay = self.protected_layers(context) | set(removed)
        free = [layer for layer in range(context.model.n_layers) if layer not in stay]
        scores = np.full(context.model.n_layers, np.nan)
        scores[free] = -self.loss_without(context, free, removed)
        return scores

    def loss_without(self, context: PlanContext, layers: Sequence[int], removed: Sequence[int]) -> np.ndarray:
        """Mean loss without each of `layers` and without `removed`, (len(layers),)."""
        probe = asked_of(context, self.name, self.samples, held_out=self.held_out)
        return probe.mean(probe.losses(list(layers), removed), self.average)

    def plan(self, context: PlanContext) -> Plan:
        layers, table, protected = self.choose(context)
        note_work(context, self.samples, held_out=self.held_out)
        return self.build_plan(context, layers, scores=table, protected=protected, selection=self.select)


def check_samples(name: str, samples: int) -> None:
    """Refuse a number of samples that is none.

    Raises:
        BadParameter: fewer than one.
    """
    if samples < 1:
        raise BadParameter(f"{name}: samples must be at least 1, got {samples}")


def asked_of(context: PlanContext, name: str, samples: int, *, held_out: bool = False) -> Probe:
    """The probe of as many samples as a method wants; with a warning where there are fewer."""
    probe = context.need_probe().take(samples, held_out=held_out)
    line = f"{name}: {probe.n_samples} calibration samples, samples={samples} asked for"
    if probe.n_samples < samples and line not in context.warnings:
        context.warnings.append(line)
    return probe


def note_work(context: PlanContext, samples: int, *, held_out: bool = False) -> None:
    """Write into the plan how many samples were asked about, and how many full passes over them that took."""
    probe = context.need_probe().take(samples, held_out=held_out)
    context.notes["probe"] = {"samples": probe.n_samples, "full_passes": round(probe.passes, 3)}
