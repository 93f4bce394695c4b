"""Figures of a topological scoring run (matplotlib, imported when drawing)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from prunebench_topology.image import effective_intervals
from prunebench_topology.scoring import TopologyResult

KEPT, REMOVED, SHADE = "#2f6f9f", "#c8402f", "#f3d6d1"


def draw(result: TopologyResult, removed_layers: Iterable[int], directory: str | Path) -> list[Path]:
    """Write the figures of a result as PNG files, removed layers marked in red.

    Args:
        result: of ``topology_scores``.
        removed_layers: indices of the layers the plan removes.
        directory: where to write; made if missing.

    Returns:
        The files written: consistency.png (scores and S(l, l')), betti.png, and with the zigzag epi.png (image and
        activity of the dimension scored) and barcode.png.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: a removed layer that does not exist.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"figures need matplotlib ({error}); install it with: pip install matplotlib") from None
    removed = sorted(set(removed_layers))
    if removed and not 0 <= removed[0] <= removed[-1] < result.n_layers:
        raise ValueError(f"removed layers {removed} are not all in 0..{result.n_layers - 1}")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    painters = {"consistency": paint_consistency, "betti": paint_betti}
    if result.barcodes is not None:
        painters |= {"epi": paint_epi, "barcode": paint_barcode}
    written = []
    for name, paint in painters.items():
        figure = Figure(figsize=(11, 4.6), dpi=120, layout="constrained")  # no pyplot: no global state, no display
        paint(figure, result, removed)
        written.append(directory / f"{name}.png")
        figure.savefig(written[-1])
    return written


def scored_dimension(result: TopologyResult) -> str:
    """How to name the dimension the scores are about."""
    p = result.parameters.get("p", 1)
    return "H0 and H1" if p == "both" else f"H{p}"


def shade_layers(axes, removed: list[int]) -> None:
    """A pale band behind every removed layer."""
    for layer in removed:
        axes.axvspan(layer - 0.5, layer + 0.5, color=SHADE, zorder=0, linewidth=0)


def layer_bars(axes, values: np.ndarray, removed: list[int], label: str) -> None:
    """One bar per layer, red where removed."""
    colours = [REMOVED if layer in removed else KEPT for layer in range(len(values))]
    axes.bar(np.arange(len(values)), values, color=colours)
    axes.set(xlabel="layer", ylabel=label, xlim=(-0.6, len(values) - 0.4))
    axes.xaxis.get_major_locator().set_params(integer=True)


def paint_consistency(figure, result: TopologyResult, removed: list[int]) -> None:
    """Scores per layer, and the matrix they are means of."""
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    layer_bars(left, result.scores, removed, "score (higher is removed first)")
    if result.bootstrap_scores is not None and len(result.bootstrap_scores) > 1:
        left.errorbar(
            np.arange(result.n_layers), result.bootstrap_mean, result.bootstrap_std,
            fmt="o", markersize=3, color="black", linewidth=0.8, label="random subsets: mean, std",
        )  # fmt: skip
        left.legend(frameon=False)
    left.set_title("fallback: adjacent graphs" if result.fallback else f"consistency of {scored_dimension(result)}")
    shown = right.imshow(result.consistency, origin="lower", vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    right.plot([-0.9] * len(removed), removed, ">", color=REMOVED, markersize=5, clip_on=False)
    right.set(xlabel="layer l'", ylabel="layer l", title="S(l, l'): share of l's features at l'")
    figure.colorbar(shown, ax=right)


def paint_betti(figure, result: TopologyResult, removed: list[int]) -> None:
    """Betti numbers per layer."""
    for dimension, axes in enumerate(figure.subplots(1, 2)):
        shade_layers(axes, removed)
        axes.plot(result.betti[dimension], "o-", markersize=4, color=KEPT)
        kind = ("connected components", "independent loops")[dimension]
        axes.set(xlabel="layer", ylabel=f"Betti number {dimension}", title=kind, xlim=(-0.6, result.n_layers - 0.4))
        axes.set_ylim(bottom=0)
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_major_locator().set_params(integer=True)


def paint_epi(figure, result: TopologyResult, removed: list[int]) -> None:
    """Effective persistence image and its sum over persistence."""
    p = result.parameters.get("p", 1)
    image = result.epi.sum(axis=0) if p == "both" else result.epi[p]
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    n_layers = result.n_layers
    extent = (-0.5, n_layers - 0.5, 0.5, n_layers + 0.5)
    shown = left.imshow(image.T, origin="lower", extent=extent, cmap="magma", aspect="auto", interpolation="nearest")
    left.plot(removed, [0.5] * len(removed), "^", color=REMOVED, markersize=6, clip_on=False)
    left.set(xlabel="birth layer", ylabel="persistence (layers)")
    left.set_title(f"effective persistence image, {scored_dimension(result)}")
    figure.colorbar(shown, ax=left)
    layer_bars(right, result.activity, removed, "activity (image summed over persistence)")
    right.set_title("removed layers in red")


def paint_barcode(figure, result: TopologyResult, removed: list[int]) -> None:
    """Effective intervals of both dimensions: a bar from its first layer to its last."""
    for dimension, axes in enumerate(figure.subplots(1, 2)):
        shade_layers(axes, removed)
        bars = effective_intervals(result.barcodes[dimension])
        bars = bars[np.lexsort((bars[:, 1], bars[:, 0]))]
        # Ends at half steps: a feature of a single layer is one layer wide.
        axes.hlines(
            np.arange(len(bars)), bars[:, 0] - 0.45, bars[:, 1] - 0.55,
            color=KEPT, linewidth=min(4.0, max(0.5, 250 / max(1, len(bars)))),
        )  # fmt: skip
        axes.set(xlabel="layer", ylabel="feature", title=f"H{dimension}: features alive at some layer ({len(bars)})")
        axes.set(xlim=(-0.6, result.n_layers - 0.4), ylim=(-1, max(1, len(bars))))
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_major_locator().set_params(integer=True)
