"""The topology-aware strategy: which layers repeat the shape of the representation that their neighbours have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from annotated_types import Ge

from prunebench.errors import BadParameter, CalibrationError
from prunebench.plan import Plan, ScoreTable
from prunebench.strategy import PlanContext, ScoreStrategy

if TYPE_CHECKING:
    from prunebench_topology.scoring import TopologyResult

__all__ = ["Topology"]


@dataclass(frozen=True)
class Figures:
    """What ``prunebench plan --figures`` draws of this strategy."""

    result: TopologyResult

    def draw(self, removed: list[int], folder: Path) -> list[Path]:
        """Write the figures of the scored layers, with the removed ones marked."""
        from prunebench_topology.figures import draw

        return draw(self.result, removed, folder)


@dataclass(frozen=True)
class Topology(ScoreStrategy):
    """Removes the layers whose topological features persist most consistently over the other layers.

    One point per calibration sample and layer; the union k-NN graph's clique complex K_l of every layer; the zigzag
    K_0 ⊇ K_0∩K_1 ⊆ K_1 ⊇ …; its exact barcodes over F_2; effective intervals and the effective persistence image
    EPI_p; consistency S_p(l, l') = the share of layer l's features that layer l' has too; and
    S̄_p(l) = Σ |l−l'|^alpha S_p(l, l') / Σ |l−l'|^alpha. High S̄ means redundant.

    TopoVLM (arXiv 2604.16502), on the zigzag of Gardinazzi et al. (arXiv 2410.11042, eqs. 4-8). What the papers leave
    open is a parameter here, with our reading as its default.

    Args:
        k: neighbours in the k-NN graph.
        metric: distance between points.
        points: which hidden state stands for a sample: the prompt's last token, the mean over tokens, or an appended
            aggregation token (its embedding is our reading: the mean of the prompt's text embeddings).
        alpha: weight of distant layers.
        p: homology dimension: 1, 0, or both (mean weighted by Betti numbers).
        mode: ``consistency`` (eq. 7), or ``births``: only features born at the layer count.
        zigzag: False scores with ordinary persistence layer by layer (an ablation).
        epi: False scores from raw effective intervals instead of the image (an ablation).
        sigma: width of the image's Gaussian in layers; 0 is the exact histogram.
        weight: weight of a feature in the image by its lifetime.
        engine: ``numba`` (ours), or ``dionysus`` (optional package); both are exact and give the same plan.
        bootstrap: resamples of half of the samples for a spread of the scores; 0 leaves it out.
    """

    name = "topo"
    aliases = ("topology",)
    paper = "https://arxiv.org/abs/2604.16502"
    meaning = "topological consistency S̄ of the layer with all others"

    k: Annotated[int, Ge(1)] = 15
    metric: Literal["euclidean", "cosine"] = "euclidean"
    points: Literal["last", "mean", "aggregator"] = "last"
    alpha: float = 1.0
    p: Literal["1", "0", "both"] = "1"
    mode: Literal["consistency", "births"] = "consistency"
    zigzag: bool = True
    epi: bool = True
    sigma: Annotated[float, Ge(0)] = 1.0
    weight: Literal["linear", "none"] = "linear"
    engine: Literal["numba", "dionysus"] = "numba"
    bootstrap: Annotated[int, Ge(0)] = 0
    protect_first: Annotated[int, Ge(0)] = 1
    protect_last: Annotated[int, Ge(0)] = 1

    def requires(self) -> frozenset[str]:
        return frozenset({f"points.{self.points}"})

    def score(self, context: PlanContext) -> ScoreTable:
        result = self._scores(context, range(context.model.n_layers), self.bootstrap)
        if result.fallback:
            context.warnings.append(f"topo: {result.fallback}")
        context.notes["seconds"] = {stage: round(value, 4) for stage, value in result.seconds.items()}
        context.artefacts["topology"] = Figures(result)
        columns = {"betti_0": result.betti[0], "betti_1": result.betti[1]}
        if result.activity is not None:
            columns["activity"] = result.activity
        if result.bootstrap_std is not None:
            columns["bootstrap_std"] = result.bootstrap_std
        return ScoreTable(
            values=tuple(float(v) for v in result.scores),
            meaning=self.meaning,
            columns={name: tuple(float(v) for v in values) for name, values in columns.items()},
        )

    def rescore(self, context: PlanContext, removed: tuple[int, ...]) -> np.ndarray:
        """The same score on the layers that remain, moved together: their zigzag skips the layers that are gone.

        The points stay those of the dense model: what the remaining layers would make of other inputs is not asked.
        """
        kept = [layer for layer in range(context.model.n_layers) if layer not in set(removed)]
        result = self._scores(context, kept, 0)
        if result.fallback and not any(line.startswith("topo: ") for line in context.warnings):  # said once
            context.warnings.append(f"topo: with {len(kept)} layers left: {result.fallback}")
        values = np.full(context.model.n_layers, np.nan)
        values[kept] = result.scores
        return values

    def _scores(self, context: PlanContext, layers: Sequence[int], bootstrap: int) -> TopologyResult:
        """The engine's result on the outputs of these layers."""
        from prunebench_topology.scoring import topology_scores

        points = context.need_trace()[f"points.{self.points}"][:, list(layers)].transpose(1, 0, 2)  # (layers, N, d)
        if points.shape[1] <= self.k:
            raise CalibrationError(
                f"topo: {points.shape[1]} calibration samples are too few for k={self.k}: "
                f"give at least {self.k + 1}, or lower -P k"
            )
        try:
            return topology_scores(
                points,
                k=self.k,
                metric=self.metric,
                alpha=self.alpha,
                p={"1": 1, "0": 0}.get(self.p, "both"),
                mode=self.mode,
                zigzag=self.zigzag,
                epi=self.epi,
                sigma=self.sigma,
                weight=self.weight,
                engine=self.engine,
                bootstrap=bootstrap,
                seed=context.seed,
            )
        except (ValueError, ImportError) as error:  # ImportError: an optional engine, with the command that adds it
            raise BadParameter(f"topo: {error}") from error

    def plan(self, context: PlanContext) -> Plan:
        from prunebench_topology.consistency import epsilon_interval

        plan = super().plan(context)
        if plan.scores is None or plan.provenance is None or plan.is_empty:
            return plan
        protected = set(plan.provenance.protected)
        free = np.array([layer not in protected for layer in range(plan.target.n_layers)])
        interval = epsilon_interval(np.array(plan.scores.values), list(plan.removed_layers), free)
        if interval is not None:
            interval = [max(interval[0], 0.0), interval[1]]  # low is −∞ where every free layer goes
        # The paper's rule, remove {l : S̄(l) > ε max S̄}, gives this plan for any ε in the interval (None: for no ε).
        notes = {**plan.provenance.notes, "epsilon": interval}
        return plan.model_copy(update={"provenance": plan.provenance.model_copy(update={"notes": notes})})
