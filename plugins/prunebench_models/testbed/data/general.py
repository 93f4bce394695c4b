"""Domain ``general``: coloured shapes on a grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .draw import GRID, SHAPE, render_cells
from .words import COLORS, NUMBERS, QUADRANTS, SHAPES, YES_NO

__all__ = ["HELPERS", "KINDS", "GeneralScene", "candidates", "render", "scene"]

KINDS: dict[str, tuple[str, ...]] = {
    "color": COLORS,
    "shape": SHAPES,
    "position": QUADRANTS,
    "count": NUMBERS[:5],
    "exist": YES_NO,
    "relation": ("left", "right", "above", "below"),
}
HELPERS = ("cell_color", "cell_shape", "row", "column")


@dataclass(frozen=True)
class GeneralScene:
    """Objects of a scene: ``shape``, ``color`` and ``cell`` are lists of equal length."""

    shape: list[int]
    color: list[int]
    cell: list[int]


def scene(rng: np.random.Generator, easy: bool = False) -> GeneralScene:
    """Objects in different cells, all different; ``easy`` scenes hold two or three, others up to six."""
    n = int(rng.integers(2, 4) if easy else rng.integers(3, 7))
    pairs = rng.permutation(len(COLORS) * len(SHAPES))[:n]
    if not easy and rng.random() < 0.5:
        # crowd one colour or one shape, so that counts above two are not rare
        crowd = rng.permutation(len(SHAPES))[: int(rng.integers(2, 5))] * len(COLORS) + rng.integers(len(COLORS))
        if rng.random() < 0.5:
            crowd = rng.permutation(len(COLORS))[: int(rng.integers(2, 5))] + rng.integers(len(SHAPES)) * len(COLORS)
        pairs = np.array(list(dict.fromkeys([*crowd.tolist(), *pairs.tolist()]))[: max(n, len(crowd))])
    cells = rng.permutation(GRID * GRID)[: len(pairs)]
    return GeneralScene((pairs // len(COLORS)).tolist(), (pairs % len(COLORS)).tolist(), cells.tolist())


def render(scenes: list[GeneralScene], rng: np.random.Generator) -> np.ndarray:
    """uint8 images (n, 64, 64, 3)."""
    glyph = np.zeros((len(scenes), GRID * GRID), dtype=np.int64)
    color = np.zeros_like(glyph)
    for index, item in enumerate(scenes):
        glyph[index, item.cell] = np.array(item.shape) + SHAPE
        color[index, item.cell] = item.color
    return render_cells(glyph, color, rng)


def candidates(item: GeneralScene, kind: str, rng: np.random.Generator) -> list[tuple[str, str]]:
    """All (question, answer) of one kind, or a fair sample of them, that make sense in this scene."""
    shapes, colors, cells = item.shape, item.color, item.cell
    n = len(shapes)
    names = [f"{COLORS[c]} {SHAPES[s]}" for s, c in zip(shapes, colors, strict=True)]
    if kind == "color":
        return [
            (f"what color is the {SHAPES[s]}", COLORS[colors[i]]) for i, s in enumerate(shapes) if shapes.count(s) == 1
        ]
    if kind == "shape":
        return [
            (f"what shape is the {COLORS[c]} object", SHAPES[shapes[i]])
            for i, c in enumerate(colors)
            if colors.count(c) == 1
        ]
    if kind == "position":
        return [(f"where is the {names[i]}", _quadrant(cells[i])) for i in range(n)]
    if kind == "count":
        found = [(f"how many {COLORS[c]} objects are there", NUMBERS[colors.count(c)]) for c in range(len(COLORS))]
        found += [(f"how many {SHAPES[s]} objects are there", NUMBERS[shapes.count(s)]) for s in range(len(SHAPES))]
        return [pair for pair in found if pair[1] in KINDS["count"]]
    if kind == "exist":
        present = set(names)
        # absent pairs whose colour and shape both occur cannot be answered from a single attribute
        absent = {f"{COLORS[c]} {SHAPES[s]}" for s in shapes for c in colors} - present
        return [(f"is there a {name}", "yes") for name in names] + [
            (f"is there a {name}", "no") for name in sorted(absent)
        ]
    if kind == "relation":
        return [pair for _ in range(4) for pair in _relations(names, cells, *rng.permutation(n)[:2].tolist())]
    if kind in ("row", "column"):
        return [
            (
                f"which {kind} is the {names[i]} in",
                NUMBERS[1 + (cells[i] // GRID if kind == "row" else cells[i] % GRID)],
            )
            for i in range(n)
        ]
    cell = int(rng.choice(cells)) if rng.random() < 0.8 else int(rng.integers(GRID * GRID))
    what, values = (
        ("color", [COLORS[c] for c in colors]) if kind == "cell_color" else ("shape", [SHAPES[s] for s in shapes])
    )
    answer = values[cells.index(cell)] if cell in cells else "none"
    return [(f"what {what} is at row {cell // GRID + 1} column {cell % GRID + 1}", answer)]


def _quadrant(cell: int) -> str:
    return QUADRANTS[2 * (cell // GRID // 2) + cell % GRID // 2]


def _relations(names: list[str], cells: list[int], i: int, j: int) -> list[tuple[str, str]]:
    (row_i, column_i), (row_j, column_j) = divmod(cells[i], GRID), divmod(cells[j], GRID)
    found = []
    if column_i != column_j:
        answer = "left" if column_i < column_j else "right"
        found.append((f"is {names[i]} left or right of {names[j]}", answer))
    if row_i != row_j:
        found.append((f"is {names[i]} above or below {names[j]}", "above" if row_i < row_j else "below"))
    return found
