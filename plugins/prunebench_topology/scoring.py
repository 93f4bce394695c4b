"""From one point per sample and layer to one score per layer: the whole method as a pure function."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunebench_topology import consistency as cons
from prunebench_topology.engines import ENGINES, barcodes
from prunebench_topology.image import WEIGHTS, activity, effective_persistence_image, smooth_histogram
from prunebench_topology.neighbors import METRICS, Distances, as_layers, distances

DIMENSIONS = (0, 1, "both")


@dataclass(frozen=True)
class TopologyResult:
    """What ``topology_scores`` found; L layers, array positions are layers.

    Attributes:
        scores: float64 (L,), in [0, 1]; the higher, the sooner a layer is removed.
        consistency: float64 (L, L), S(l, l') behind the scores (for p="both" the Betti-weighted mean).
        betti: int64 (2, L), Betti numbers 0 and 1 of each layer's complex.
        barcodes: ``[bars0, bars1]`` on the zigzag grid; None without the zigzag.
        epi: float64 (2, L, L), effective persistence image per dimension; None without the zigzag.
        activity: float64 (L,), activity profile of the dimension scored (the sum for p="both"); None without the
            zigzag.
        fallback: None, or one sentence saying why the scores are those of ``adjacent_similarity``: warn about it.
        bootstrap_scores: float64 (B, L), scores of B subsets of the samples (never the fallback's); None if B = 0.
        seconds: wall seconds per stage.
        parameters: the arguments used.
    """

    scores: np.ndarray
    consistency: np.ndarray
    betti: np.ndarray
    barcodes: list[np.ndarray] | None = None
    epi: np.ndarray | None = None
    activity: np.ndarray | None = None
    fallback: str | None = None
    bootstrap_scores: np.ndarray | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def n_layers(self) -> int:
        """Number of layers L."""
        return len(self.scores)

    @property
    def bootstrap_mean(self) -> np.ndarray | None:
        """Mean score per layer over the subsets, (L,)."""
        return None if self.bootstrap_scores is None else self.bootstrap_scores.mean(axis=0)

    @property
    def bootstrap_std(self) -> np.ndarray | None:
        """Standard deviation per layer over the subsets (n - 1), (L,); NaN for a single subset."""
        if self.bootstrap_scores is None:
            return None
        if len(self.bootstrap_scores) < 2:
            return np.full(self.n_layers, np.nan)
        return self.bootstrap_scores.std(axis=0, ddof=1)


def topology_scores(
    points: Any,
    *,
    k: int = 15,
    metric: str = "euclidean",
    alpha: float = 1.0,
    p: int | str = 1,
    mode: str = "consistency",
    zigzag: bool = True,
    epi: bool = True,
    sigma: float = 1.0,
    weight: str = "linear",
    engine: str = "numba",
    bootstrap: int = 0,
    bootstrap_fraction: float = 0.5,
    seed: int = 0,
) -> TopologyResult:
    """Score layers by how long topological features present at a layer persist across the others (arXiv 2604.16502).

    Union k-NN graph per layer -> clique complexes -> zigzag barcode -> effective persistence image -> consistency
    S(l, l') (arXiv 2410.11042, eq. 7) -> Sbar(l) (eq. 8).  A layer whose features are found everywhere is redundant.

    Args:
        points: (L, N, d), one point per sample per decoder layer: the layer's OUTPUT in the residual stream, before
            any final norm; the same samples in the same order in every layer.  numpy array or torch tensor.
        k: neighbours; the paper's best is 15.
        metric: ``"euclidean"`` or ``"cosine"``.
        alpha: exponent of the layer distance in eq. 8; the paper uses 1.
        p: homology dimension scored: 1 (default: at k >= 10, H_0 is one bar and says nothing), 0, or ``"both"``,
            weighted by Betti numbers.  The paper's way to join dimensions is not known to us.
        mode: ``"consistency"`` (all features present at l) or ``"births"`` (those generated at l, towards deeper
            layers only): two readings of the paper's wording.
        zigzag: False compares the layers' ordinary persistence diagrams instead (see ``ordinary``): the ablation.  It
            needs gudhi; ``mode="births"`` then only restricts eq. 8 to deeper layers.
        epi: score from the persistence image; False scores from the bars themselves: the ablation.
        sigma: width of the image's Gaussian, in layers (in neighbour ranks without the zigzag); 0 = exact histogram.
        weight: weight of a feature by its persistence: ``"linear"``, ``"none"``, ``"sqrt"``, ``"log"``.
        engine: ``"numba"`` or ``"dionysus"``; the barcodes are the same.
        bootstrap: number of subsets of the samples to score as well, to tell noise from signal.
        bootstrap_fraction: share of the samples in each subset, drawn without replacement (a sample drawn twice
            would be its own nearest neighbour).  For a mean, the spread over random halves estimates the standard
            error at the full size; for a score as nonlinear as this one it is a guide.
        seed: of the subsets.

    Returns:
        A ``TopologyResult``.  If the bars make all scores zero or equal, the scores are the adjacent layers' graph
        Jaccard index and ``fallback`` says why.

    Raises:
        ValueError: wrong shape, fewer than k + 1 samples, NaN or Inf, a parameter out of range.
        ImportError: an engine or gudhi asked for and not installed.
    """
    parameters = {name: value for name, value in locals().items() if name != "points"}
    points = as_layers(points)
    check_parameters(parameters, n_samples=points.shape[1])
    seconds: dict[str, float] = {}
    n_layers, n_samples = points.shape[0], points.shape[1]
    with timed(seconds, "distances"):
        clouds = [distances(points[layer], metric, layer) for layer in range(n_layers)]
    describe = describe_zigzag if zigzag else describe_ordinary
    result, exact, graphs = describe(clouds, None, parameters, seconds)
    scores = cons.mean_consistency(result["consistency"], alpha, mode)
    # The image of equal layers is not constant (its Gaussians are cut at the first and last layer), but it ranks
    # nothing: what the bars do not tell apart, the image must not.
    fallback = cons.uninformative(cons.mean_consistency(exact, alpha, mode)) or cons.uninformative(scores)
    if fallback is not None:
        fallback += "; layers are scored by how alike their own and the previous layer's neighbour graphs are instead"
        scores = cons.adjacent_similarity(graphs)
    subset_scores = None
    if bootstrap:
        rng = np.random.default_rng(seed)
        size = subset_size(n_samples, bootstrap_fraction)
        subset_scores = np.empty((bootstrap, n_layers))
        with timed(seconds, "bootstrap"):
            for row in subset_scores:
                subset = np.sort(rng.choice(n_samples, size=size, replace=False))
                described, _, _ = describe(clouds, subset, parameters, {})
                row[:] = cons.mean_consistency(described["consistency"], alpha, mode)
    return TopologyResult(
        scores=scores,
        fallback=fallback,
        bootstrap_scores=subset_scores,
        seconds=seconds,
        parameters=parameters,
        **result,
    )


def describe_zigzag(
    clouds: list[Distances], samples: np.ndarray | None, parameters: dict[str, Any], seconds: dict[str, float]
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """By the zigzag, from all or some samples: result fields, the consistency without smoothing, the graphs."""
    n_layers = len(clouds)
    with timed(seconds, "graphs"):
        graphs = np.stack([cloud.graph(parameters["k"], samples) for cloud in clouds])
    with timed(seconds, "zigzag"):
        bars = barcodes(graphs, parameters["engine"])
    with timed(seconds, "consistency"):
        images = np.stack(
            [effective_persistence_image(b, n_layers, parameters["sigma"], parameters["weight"]) for b in bars]
        )
        betti = np.stack([cons.betti_curve(b, n_layers) for b in bars])
        matrices = [cons.pairwise_consistency(b, n_layers, parameters["mode"]) for b in bars]
        matrix = exact = choose_dimension(matrices, list(betti), parameters["p"])
        if parameters["epi"]:
            matrices = [cons.consistency_from_epi(image, parameters["mode"]) for image in images]
            matrix = choose_dimension(matrices, list(betti), parameters["p"])
    p = parameters["p"]
    profile = activity(images.sum(axis=0) if p == "both" else images[p])
    result = {"consistency": matrix, "betti": betti, "barcodes": bars, "epi": images, "activity": profile}
    return result, exact, graphs


def describe_ordinary(
    clouds: list[Distances], samples: np.ndarray | None, parameters: dict[str, Any], seconds: dict[str, float]
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """By ordinary persistence, from all or some samples: as ``describe_zigzag``."""
    from prunebench_topology import ordinary

    ordinary.require_gudhi()
    k = parameters["k"]
    with timed(seconds, "graphs"):
        filtrations = [ordinary.neighbour_filtration(cloud, k, samples) for cloud in clouds]
    with timed(seconds, "persistence"):
        diagrams = [ordinary.ordinary_diagrams(filtration, k) for filtration in filtrations]
    with timed(seconds, "consistency"):
        by_dimension = [[layer[dimension] for layer in diagrams] for dimension in range(2)]
        # The last complex of a layer's filtration is the one the zigzag would use: its classes are those that die last.
        betti = np.array([[np.count_nonzero(d[:, 1] == k + 1) for d in column] for column in by_dimension])
        sizes = [np.array([len(d) for d in column]) for column in by_dimension]
        matrices = [ordinary.ordinary_consistency(column, k, 0.0, "none") for column in by_dimension]
        matrix = exact = choose_dimension(matrices, sizes, parameters["p"])
        if parameters["epi"]:
            smoothing = (parameters["sigma"], parameters["weight"])
            matrices = [ordinary.ordinary_consistency(column, k, *smoothing) for column in by_dimension]
            matrix = choose_dimension(matrices, sizes, parameters["p"])
    return {"consistency": matrix, "betti": betti}, exact, np.stack([values > 0 for values in filtrations])


def choose_dimension(matrices: list[np.ndarray], sizes: list[np.ndarray], p: int | str) -> np.ndarray:
    """The consistency matrix of dimension p, or the mean weighted by the number of features."""
    return cons.combine_dimensions(matrices, sizes) if p == "both" else matrices[p]


def subset_size(n_samples: int, fraction: float) -> int:
    """Samples in one bootstrap subset."""
    return min(n_samples, int(np.ceil(fraction * n_samples)))


def check_parameters(parameters: dict[str, Any], n_samples: int) -> None:
    """One-line ValueErrors that list what is allowed."""
    allowed = {"metric": METRICS, "p": DIMENSIONS, "mode": cons.MODES, "engine": ENGINES}
    for name, values in allowed.items():
        value = parameters[name]
        if isinstance(value, bool) or value not in values:
            raise ValueError(f"unknown {name} {value!r}; allowed: {', '.join(map(str, values))}")
    if not callable(parameters["weight"]) and parameters["weight"] not in WEIGHTS:
        raise ValueError(f"unknown weight {parameters['weight']!r}; allowed: {', '.join(WEIGHTS)}")
    for name, least in (("k", 1), ("bootstrap", 0)):
        value = parameters[name]
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
    if not np.isfinite(parameters["alpha"]):
        raise ValueError(f"alpha must be a finite number, got {parameters['alpha']!r}")
    smooth_histogram(np.zeros((1, 1)), parameters["sigma"], parameters["weight"])
    k, fraction = parameters["k"], parameters["bootstrap_fraction"]
    if n_samples < k + 1:
        raise ValueError(f"k = {k} needs at least {k + 1} samples, got {n_samples}: lower k or give more samples")
    if not 0 < fraction <= 1:
        raise ValueError(f"bootstrap_fraction must be in (0, 1], got {fraction!r}")
    if parameters["bootstrap"] and subset_size(n_samples, fraction) < k + 1:
        raise ValueError(f"bootstrap subsets of {fraction:g} x {n_samples} samples are smaller than k + 1 = {k + 1}")


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the wall time of the block to ``seconds[stage]``."""
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
