"""Domain-aware layer selection: which layers change their input least on one kind of question, or on all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Le

from prunebench.calibration.trace import Trace
from prunebench.errors import CalibrationError
from prunebench.strategy import PlanContext
from prunebench_baselines.similarity import BlockSimilarity, mid_ranks

__all__ = ["DomainAware"]


@dataclass(frozen=True)
class DomainAware(BlockSimilarity):
    """Removes the layers that change their input least in one domain D: r_l^D = mean over D of cos(h_l, h_{l+1}).

    Khaki, Safaei and Ginotra (arXiv 2603.20275), from its abstract: rankings from math questions (r^math), from all
    others (r^non-math), and mixed. How the paper mixes, and what its spacing-aware baselines are, could not be read;
    here: the weighted mean of both scores or of both ranks, and ``select=spaced``. No released code is known.

    Args:
        group: token group.
        average: mean over all tokens, or over the means of samples.
        ranking: layers ranked by the domain (``math``), by all other samples (``non_math``), or by both (``mixed``).
        domain: the domain that stands for math; empty: ``math``, or, with a warning, the first by name.
        mix: what ``mixed`` averages: scores, or ranks among the layers (with ranks, a block is worth its layers' mean).
        weight: share of the domain in ``mixed``.
    """

    name = "domain_aware"
    paper = "https://arxiv.org/abs/2603.20275"
    meaning = "mean token cosine of a layer's input and output in a domain"

    ranking: Literal["math", "non_math", "mixed"] = "math"
    domain: str = ""
    mix: Literal["score", "rank"] = "score"
    weight: Annotated[float, Ge(0), Le(1)] = 0.5

    def similarity(self, context: PlanContext) -> np.ndarray:
        inside, outside = self._both(context)
        return inside if outside is None else outside if inside is None else _mean(inside, outside, self.weight)

    def score(self, context: PlanContext) -> np.ndarray:
        if self.ranking != "mixed" or self.mix != "rank":
            return super().score(context)
        layers = [np.diagonal(cosines, offset=1) for cosines in self._both(context)]
        return _mean(*(mid_ranks(values, values) for values in layers), self.weight)

    def windows(self, context: PlanContext) -> np.ndarray | None:
        return None if self.ranking == "mixed" and self.mix == "rank" else super().windows(context)

    def _both(self, context: PlanContext) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Mean cosines (L+1, L+1) inside and outside of the domain; None for the one that is not asked for."""
        trace = context.need_trace()
        domain, others = self._split(context, trace)
        inside = outside = None
        if self.ranking != "non_math":
            inside = trace.mean_cosine(self.group, average=self.average, domain=domain)
        if self.ranking != "math":
            if not others:
                raise CalibrationError(
                    f"domain_aware: ranking={self.ranking} needs samples of another domain than {domain!r}, and the "
                    "calibration data has no other: calibrate on several domains, or use ranking=math"
                )
            rows = np.isin(np.array(trace.meta.domains), others)
            arrays = {name: trace[name][rows] for name in ("token_cosine", "token_count")}
            count = int(rows.sum())
            rest = Trace(trace.meta.model_copy(update={"n_samples": count}), arrays)
            outside = rest.mean_cosine(self.group, average=self.average)
        return inside, outside

    def _split(self, context: PlanContext, trace: Trace) -> tuple[str, list[str]]:
        """The domain, and all other ones."""
        known = sorted(set(trace.meta.domains))
        domain = self.domain or ("math" if "math" in known else known[0])
        if domain not in known:
            raise CalibrationError(
                f"domain_aware: no calibration sample of domain {domain!r}: the samples have "
                f"{', '.join(name or '(none)' for name in known)}; set -P domain, or calibrate on other data"
            )
        note = f"domain_aware: no calibration sample of domain 'math'; {domain or '(none)'!r} stands for it"
        if not self.domain and domain != "math" and note not in context.warnings:
            context.warnings.append(note)
        return domain, [name for name in known if name != domain]


def _mean(first: np.ndarray, second: np.ndarray, weight: float) -> np.ndarray:
    return weight * first + (1.0 - weight) * second
