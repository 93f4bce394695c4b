"""Exact zigzag barcodes of a sequence of flag complexes, one graph per layer.

The zigzag (Gardinazzi et al., arXiv 2410.11042, section 3; used by TopoVLM, arXiv 2604.16502) is

    K_0  >=  K_0 & K_1  <=  K_1  >=  K_1 & K_2  <=  ...  <=  K_{L-1}

with K_l the clique complex of layer l's graph; the intersection of two clique complexes is the clique complex of the
common edges.
Positions: layer l sits at 2l, the intersection of layers l and l+1 at 2l+1.

Every complex is analysed on its own (edge collapse, then cohomology: see ``homology``).  A layer gives cocycles, an
intersection gives cycles, and evaluating one on the other gives the matrices of the induced maps; the resulting
zigzag of small vector spaces over F_2 is then decomposed (see ``modules``).  FastZigzag (Dey & Hou, arXiv 2204.11080)
would instead reduce one coned complex holding all layers: its cost depends on how alike the layers are, while this
cost does not, and one complex at a time is in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np


def check_adjacency(adjacency: np.ndarray) -> np.ndarray:
    """Return ``adjacency`` as a bool ``(L, N, N)`` array; a wrong shape or dtype is a ValueError of one line."""
    array = np.asarray(adjacency)
    if array.ndim != 3 or array.shape[1] != array.shape[2]:
        raise ValueError(f"adjacency must have shape (layers, N, N), got {array.shape}")
    if array.dtype != np.bool_:
        raise ValueError(f"adjacency must be a bool array, got dtype {array.dtype}; use adjacency.astype(bool)")
    if array.shape[0] == 0:
        raise ValueError("adjacency has no layers; give at least one graph")
    return array


def check_graphs(graphs: np.ndarray) -> None:
    """Raise ValueError unless every graph of a packed stack is symmetric and without self-loops."""
    from prunebench_topology.complexes import first_fault

    kind, layer, i, j = first_fault(graphs)
    if kind == 1:
        raise ValueError(f"adjacency of layer {layer} has a self-loop at vertex {i}; clear the diagonal")
    if kind == 2:
        raise ValueError(f"adjacency of layer {layer} is not symmetric: only [{i}, {j}] is set; use a | a.T")


@dataclass
class FlagHomology:
    """H_0 and H_1 of the clique complex of one bit-packed graph; cycles and cocycles are computed on demand."""

    graph: np.ndarray
    component: np.ndarray = field(init=False)
    n_components: int = field(init=False)

    def __post_init__(self) -> None:
        from prunebench_topology import complexes, homology

        n = self.graph.shape[0]
        core = self.graph.copy()
        self._removed = complexes.collapse_edges(core)
        self._low, self._high = complexes.edge_list(core)
        self._in_tree, self.component, self.n_components = homology.spanning_forest(n, self._low, self._high)
        index = homology.edge_index(n, self._low, self._high)
        self._essential, self._pointers, self._support = homology.essential_edges(
            core, self._low, self._high, self._in_tree, index
        )

    @property
    def n_cycles(self) -> int:
        """The first Betti number."""
        return len(self._essential)

    @cached_property
    def cycles(self) -> tuple[np.ndarray, ...]:
        """A basis of H_1 as edges closed through a forest: (order, parent, low, high)."""
        from prunebench_topology import homology

        order, parent = homology.rooted_forest(self.graph.shape[0], self._low, self._high, self._in_tree)
        return order, parent, self._low[self._essential], self._high[self._essential]

    @cached_property
    def cocycles(self) -> tuple[np.ndarray, np.ndarray]:
        """A basis of H^1 as bits per edge, and the (N, N) table of edge numbers."""
        from prunebench_topology import complexes, homology

        low, high = complexes.edge_list(self.graph)
        index = homology.edge_index(self.graph.shape[0], low, high)
        bits = homology.cocycle_bits(
            index, len(low), self._low, self._high, self._pointers, self._support, self._removed
        )
        return bits, index

    def map_components(self, larger: FlagHomology) -> np.ndarray:
        """H_0 of the inclusion into a larger complex on the same vertices: one row of bits per own component."""
        images = np.zeros((self.n_components, max(1, (larger.n_components + 63) // 64)), dtype=np.uint64)
        member = np.zeros(self.n_components, dtype=np.int64)
        member[self.component] = np.arange(len(self.component))
        target = larger.component[member]
        images[np.arange(self.n_components), target >> 6] = np.uint64(1) << (target & 63).astype(np.uint64)
        return images

    def map_cycles(self, larger: FlagHomology) -> np.ndarray:
        """H_1 of the inclusion into a larger complex: one row per own cycle, bits dual to its cocycles."""
        from prunebench_topology.homology import evaluate

        return evaluate(*larger.cocycles, *self.cycles)


class ZigzagModule:
    """Streaming interval decomposition of V_0 <- W_0 -> V_1 <- W_1 -> ... from the matrices of the maps."""

    def __init__(self, dimension: int) -> None:
        self.bars = np.empty((256, 2), dtype=np.int64)
        self.n_bars = 0
        self.position = 0
        self.basis = np.zeros((dimension, max(1, (dimension + 63) // 64)), dtype=np.uint64)
        self.pivots = np.arange(dimension)
        self.births = np.zeros(dimension, dtype=np.int64)
        self.basis[self.pivots, self.pivots >> 6] = np.uint64(1) << (self.pivots & 63).astype(np.uint64)

    def advance(self, left: np.ndarray, right: np.ndarray, dimension: int) -> None:
        """Go from V_l over W_l to V_{l+1}, given its dimension and the images of W_l's basis in V_l and V_{l+1}."""
        from prunebench_topology.modules import cross_backward, cross_forward

        room = self.n_bars + len(self.births) + len(left)
        if room > len(self.bars):
            self.bars = np.concatenate([self.bars, np.empty((room, 2), dtype=np.int64)])
        combinations, births, self.n_bars = cross_backward(
            self.basis, self.pivots, self.births, left, self.position + 1, self.bars, self.n_bars
        )
        self.position += 2
        self.basis, self.pivots, self.births, self.n_bars = cross_forward(
            combinations, births, right, dimension, self.position, self.bars, self.n_bars
        )

    def barcode(self) -> np.ndarray:
        """All intervals ``[b, d)``, those still alive ended after the last position, sorted by (b, d)."""
        alive = np.stack([self.births, np.full(len(self.births), self.position + 1)], axis=1)
        bars = np.concatenate([self.bars[: self.n_bars], alive])
        return bars[np.lexsort((bars[:, 1], bars[:, 0]))]


def flag_zigzag_barcodes(adjacency: np.ndarray) -> list[np.ndarray]:
    """Zigzag barcodes in dimensions 0 and 1, over F_2, of a sequence of clique complexes on one vertex set.

    Args:
        adjacency: bool array ``(L, N, N)``, one symmetric graph without self-loops per layer; all N vertices are in
            every complex.

    Returns:
        ``[bars0, bars1]``: int64 arrays ``(n, 2)`` of half-open intervals ``[b, d)``, ``0 <= b < d <= 2L - 1``, on
        the grid where layer l is position 2l and the intersection of layers l and l+1 is 2l+1; sorted by (b, d), with
        multiplicity.

    Raises:
        ValueError: wrong shape or dtype, no layers, an asymmetric graph, a self-loop.

    Source: the zigzag of arXiv 2410.11042, section 3; interval decomposition by Carlsson & de Silva (2010).
    """
    from prunebench_topology.complexes import hubs_first, pack_graphs

    array = check_adjacency(adjacency)
    if array.shape[1] == 0:
        return [np.empty((0, 2), dtype=np.int64) for _ in range(2)]
    graphs = pack_graphs(array)
    check_graphs(graphs)
    graphs = hubs_first(graphs)
    layer = FlagHomology(graphs[0])
    components, cycles = ZigzagModule(layer.n_components), ZigzagModule(layer.n_cycles)
    for graph in graphs[1:]:
        common = layer.graph & graph
        # A layer contained in its neighbour is its own intersection: do not analyse the same graph twice.
        shared = layer if np.array_equal(common, layer.graph) else FlagHomology(common)
        following = shared if np.array_equal(common, graph) else FlagHomology(graph)
        components.advance(shared.map_components(layer), shared.map_components(following), following.n_components)
        cycles.advance(shared.map_cycles(layer), shared.map_cycles(following), following.n_cycles)
        layer = following
    return [components.barcode(), cycles.barcode()]
