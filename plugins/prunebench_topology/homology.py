"""H_0 and H_1 of one flag complex over F_2: cycles, cocycles, their pairing (numba: import this module lazily).

The complex is first thinned by edge collapse.  What is left is reduced by cohomology (edges against triangles):
triangles are never listed, a column's entries are generated from the bit sets.  Order: edges colexicographic,
triangles ``a < b < c`` by ``(c, b, a)``.  The largest edge of a triangle is then ``bc``, so an edge whose first
common neighbour ``a`` is below both ends is paired with the triangle ``abc`` at once (an apparent pair) and costs no
reduction.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from prunebench_topology.complexes import ONE, ZERO, flip_bit, lowest_bit


@njit(cache=True)
def spanning_forest(n, low, high):
    """Kruskal in edge order: ``in_tree`` per edge and ``component`` per vertex (0, 1, ... by first vertex)."""
    root = np.arange(n)
    in_tree = np.zeros(low.shape[0], dtype=np.bool_)
    for e in range(low.shape[0]):
        i, j = low[e], high[e]
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        while root[j] != j:
            root[j] = root[root[j]]
            j = root[j]
        if i != j:
            in_tree[e] = True
            root[max(i, j)] = min(i, j)
    component = np.empty(n, dtype=np.int64)
    count = 0
    for i in range(n):  # a root is the smallest vertex of its component, so it is numbered before its members
        j = i
        while root[j] != j:
            j = root[j]
        if j == i:
            component[i] = count
            count += 1
        else:
            component[i] = component[j]
    return in_tree, component, count


@njit(cache=True)
def heap_push(heap, size, value):
    """Push onto a binary min-heap held in an array; returns the (possibly grown) array."""
    if size == heap.shape[0]:
        grown = np.empty(2 * size, dtype=np.int64)
        grown[:size] = heap
        heap = grown
    child = size
    while child > 0:
        parent = (child - 1) >> 1
        if heap[parent] <= value:
            break
        heap[child] = heap[parent]
        child = parent
    heap[child] = value
    return heap


@njit(cache=True)
def heap_pop(heap, size):
    """Remove the minimum of a heap of ``size`` entries in place and return it."""
    least = heap[0]
    value = heap[size - 1]
    size -= 1
    node = 0
    while True:
        child = 2 * node + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[node] = heap[child]
        node = child
    heap[node] = value
    return least


@njit(cache=True)
def add_coboundary(graph, u, v, heap, size):
    """Push the codes ``(c N + b) N + a`` of all triangles on the edge ``u < v``."""
    n, n_words = graph.shape
    for w in range(n_words):
        word = graph[u, w] & graph[v, w]
        while word != ZERO:
            x = (w << 6) + lowest_bit(word)
            word &= word - ONE
            if x < u:
                code = (v * n + u) * n + x
            elif x < v:
                code = (v * n + x) * n + u
            else:
                code = (x * n + v) * n + u
            heap = heap_push(heap, size, code)
            size += 1
    return heap, size


@njit(cache=True)
def essential_edges(graph, low, high, in_tree, index):
    """Edges carrying H^1, with a cocycle each, by persistent cohomology with clearing (in_tree edges are cleared).

    Returns ``(edges, pointers, support)``: the essential edges in decreasing order; cocycle ``i`` is one on the edges
    ``support[pointers[i]:pointers[i + 1]]``.
    """
    n, n_words = graph.shape
    n_edges = low.shape[0]
    first = np.full(n_edges, -1, dtype=np.int64)  # lowest common neighbour of an edge's ends
    for e in range(n_edges):
        for w in range(n_words):
            word = graph[low[e], w] & graph[high[e], w]
            if word != ZERO:
                first[e] = (w << 6) + lowest_bit(word)
                break
    # Reduced columns are found by their pivot triangle abc: a chain per edge bc, with a as the key.
    head = np.full(n_edges, -1, dtype=np.int64)
    following = np.empty(n_edges, dtype=np.int64)
    key = np.empty(n_edges, dtype=np.int64)
    start = np.zeros(n_edges + 1, dtype=np.int64)
    stored = np.empty(max(16, 4 * n_edges), dtype=np.int64)
    n_columns = 0
    essential = np.empty(n_edges, dtype=np.int64)
    pointers = np.zeros(n_edges + 1, dtype=np.int64)
    support = np.empty(max(16, n_edges), dtype=np.int64)
    n_essential = 0
    parity = np.zeros(n_edges, dtype=np.bool_)
    terms = np.empty(max(16, n_edges), dtype=np.int64)
    heap = np.empty(1024, dtype=np.int64)
    for e in range(n_edges - 1, -1, -1):
        if in_tree[e] or 0 <= first[e] < low[e]:
            continue
        size = 0
        n_terms = 1
        terms[0] = e
        heap, size = add_coboundary(graph, low[e], high[e], heap, size)
        facet = -1
        apex = -1
        while True:
            pivot = -1
            while size > 0:  # equal entries cancel in pairs
                pivot = heap_pop(heap, size)
                size -= 1
                if size > 0 and heap[0] == pivot:
                    heap_pop(heap, size)
                    size -= 1
                    pivot = -1
                else:
                    break
            if pivot < 0:
                facet = -1
                break
            apex = pivot % n
            facet = index[(pivot // n) % n, pivot // (n * n)]
            column = -1
            if first[facet] != apex:
                column = head[facet]
                while column >= 0 and key[column] != apex:
                    column = following[column]
                if column < 0:
                    break
            heap = heap_push(heap, size, pivot)
            size += 1
            begin = 0 if column < 0 else start[column]
            end = 1 if column < 0 else start[column + 1]
            if n_terms + end - begin > terms.shape[0]:
                grown = np.empty(2 * (n_terms + end - begin), dtype=np.int64)
                grown[:n_terms] = terms[:n_terms]
                terms = grown
            for q in range(begin, end):
                g = facet if column < 0 else stored[q]
                heap, size = add_coboundary(graph, low[g], high[g], heap, size)
                terms[n_terms] = g
                n_terms += 1
        for q in range(n_terms):
            parity[terms[q]] = not parity[terms[q]]
        if facet < 0:
            out, at = support, pointers[n_essential]
        else:
            out, at = stored, start[n_columns]
        if at + n_terms > out.shape[0]:
            grown = np.empty(2 * (at + n_terms), dtype=np.int64)
            grown[:at] = out[:at]
            out = grown
        for q in range(n_terms):
            g = terms[q]
            if parity[g]:
                parity[g] = False
                out[at] = g
                at += 1
        if facet < 0:
            support = out
            essential[n_essential] = e
            n_essential += 1
            pointers[n_essential] = at
        else:
            stored = out
            key[n_columns] = apex
            following[n_columns] = head[facet]
            head[facet] = n_columns
            n_columns += 1
            start[n_columns] = at
    return essential[:n_essential].copy(), pointers[: n_essential + 1].copy(), support[: pointers[n_essential]].copy()


@njit(cache=True)
def edge_index(n, low, high):
    """Symmetric ``(N, N)`` table of edge numbers, -1 where there is no edge."""
    index = np.full((n, n), -1, dtype=np.int32)
    for e in range(low.shape[0]):
        index[low[e], high[e]] = e
        index[high[e], low[e]] = e
    return index


@njit(cache=True)
def cocycle_bits(full_index, n_full, low, high, pointers, support, removed):
    """Cocycles of the thinned complex carried to every edge of the full one: ``(edges, W)`` bits, bit i = cocycle i.

    A removed edge uv dominated by w spans the triangle uvw with two edges that were still there, so z(uv) = z(uw) +
    z(wv).
    """
    n_words = max(1, (pointers.shape[0] - 1 + 63) >> 6)
    bits = np.zeros((n_full, n_words), dtype=np.uint64)
    for i in range(pointers.shape[0] - 1):
        for q in range(pointers[i], pointers[i + 1]):
            flip_bit(bits[full_index[low[support[q]], high[support[q]]]], i)
    for r in range(removed.shape[0] - 1, -1, -1):
        u, v, x = removed[r, 0], removed[r, 1], removed[r, 2]
        target, left, right = full_index[u, v], full_index[u, x], full_index[x, v]
        for w in range(n_words):
            bits[target, w] = bits[left, w] ^ bits[right, w]
    return bits


@njit(cache=True)
def rooted_forest(n, low, high, in_tree):
    """The forest of ``in_tree`` edges as ``(order, parent)``: parents before children, roots their own parent."""
    degree = np.zeros(n + 1, dtype=np.int64)
    for e in range(low.shape[0]):
        if in_tree[e]:
            degree[low[e] + 1] += 1
            degree[high[e] + 1] += 1
    offsets = np.cumsum(degree)
    fill = offsets[:-1].copy()
    neighbour = np.empty(offsets[n], dtype=np.int64)
    for e in range(low.shape[0]):
        if in_tree[e]:
            neighbour[fill[low[e]]] = high[e]
            fill[low[e]] += 1
            neighbour[fill[high[e]]] = low[e]
            fill[high[e]] += 1
    parent = np.full(n, -1, dtype=np.int64)
    order = np.empty(n, dtype=np.int64)
    done = 0
    for seed in range(n):
        if parent[seed] >= 0:
            continue
        parent[seed] = seed
        order[done] = seed
        look = done
        done += 1
        while look < done:
            i = order[look]
            look += 1
            for q in range(offsets[i], offsets[i + 1]):
                j = neighbour[q]
                if parent[j] < 0:
                    parent[j] = i
                    order[done] = j
                    done += 1
    return order, parent


@njit(cache=True)
def evaluate(bits, index, order, parent, cycle_low, cycle_high):
    """Every cocycle on every fundamental cycle: row f, bit i = <z_i, edge f closed through the forest>.

    The sum of a cocycle along the forest path from the root is a potential; a cycle's value is the edge's own plus
    the difference of its ends' potentials.
    """
    n_words = bits.shape[1]
    potential = np.zeros((order.shape[0], n_words), dtype=np.uint64)
    for i in order:
        if parent[i] != i:
            e = index[parent[i], i]
            for w in range(n_words):
                potential[i, w] = potential[parent[i], w] ^ bits[e, w]
    values = np.empty((cycle_low.shape[0], n_words), dtype=np.uint64)
    for f in range(cycle_low.shape[0]):
        u, v = cycle_low[f], cycle_high[f]
        e = index[u, v]
        for w in range(n_words):
            values[f, w] = potential[u, w] ^ potential[v, w] ^ bits[e, w]
    return values
