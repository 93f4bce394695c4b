"""Domain ``video``: objects that move or appear over four frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .draw import GRID, SHAPE, render_cells
from .words import COLORS, DIRECTIONS, NUMBERS, SHAPES, YES_NO

__all__ = ["FRAMES", "HELPERS", "KINDS", "VideoScene", "candidates", "render", "scene"]

FRAMES = 4
KINDS: dict[str, tuple[str, ...]] = {
    "motion": DIRECTIONS,
    "shape": SHAPES,
    "color": COLORS,
    "when": NUMBERS[1:5],
    "before": YES_NO,
    "last": COLORS,
}
HELPERS = ("frame_row", "frame_column", "cell_color")

_STEPS = ((-1, 0), (1, 0), (0, -1), (0, 1))  # rows and columns per step, in the order of DIRECTIONS
_SWEEP = (0, 1, 2, 3)
_PACES = ((0, 1, 2, 3), (0, 1, 2, 2), (0, 0, 1, 2), (0, 1, 1, 2), (0, 1, 1, 1), (0, 0, 1, 1), (0, 0, 0, 1))


@dataclass(frozen=True)
class VideoScene:
    """Objects of a clip.

    Attributes:
        shape, color: indices per object, all different.
        start: first frame (0-based) in which the object is seen.
        direction: index into DIRECTIONS, or -1 for an object that stays.
        cells: cell per object and frame, -1 while it is not there.
    """

    shape: list[int]
    color: list[int]
    start: list[int]
    direction: list[int]
    cells: list[list[int]]


def scene(rng: np.random.Generator, easy: bool = False) -> VideoScene:
    """One or two objects that move and two that appear; ``easy``: one mover that crosses the image."""
    movers = 1 if easy else int(rng.integers(1, 3))
    total = movers + 2
    while True:
        shapes, colors = rng.permutation(len(SHAPES))[:total], rng.permutation(len(COLORS))[:total]
        starts = [0] * movers + rng.permutation(FRAMES)[:2].tolist()
        directions = [*rng.integers(0, 4, movers).tolist(), -1, -1]
        cells = [
            _path(rng, direction, _SWEEP if easy else _PACES[rng.integers(len(_PACES))])
            for direction in directions[:movers]
        ]
        for start in starts[movers:]:
            cell = int(rng.integers(GRID * GRID))
            cells.append([-1] * start + [cell] * (FRAMES - start))
        if _collision_free(cells):
            return VideoScene(shapes.tolist(), colors.tolist(), starts, directions, cells)


def _path(rng: np.random.Generator, direction: int, pace: tuple[int, ...]) -> list[int]:
    row_step, column_step = _STEPS[direction]
    free = GRID - pace[-1]  # places where the path can begin along its own axis
    along = int(rng.integers(free)) + (pace[-1] if row_step + column_step < 0 else 0)
    across = int(rng.integers(GRID))
    row, column = (along, across) if row_step else (across, along)
    return [(row + row_step * k) * GRID + column + column_step * k for k in pace]


def _collision_free(cells: list[list[int]]) -> bool:
    for frame in range(FRAMES):
        here = [path[frame] for path in cells if path[frame] >= 0]
        if len(set(here)) < len(here):
            return False
    return True


def render(scenes: list[VideoScene], rng: np.random.Generator) -> np.ndarray:
    """uint8 clips (n, FRAMES, 64, 64, 3)."""
    glyph = np.zeros((len(scenes), FRAMES, GRID * GRID), dtype=np.int64)
    color = np.zeros_like(glyph)
    for index, item in enumerate(scenes):
        for shape, paint, path in zip(item.shape, item.color, item.cells, strict=True):
            for frame, cell in enumerate(path):
                if cell >= 0:
                    glyph[index, frame, cell] = shape + SHAPE
                    color[index, frame, cell] = paint
    images = render_cells(glyph.reshape(-1, GRID * GRID), color.reshape(-1, GRID * GRID), rng)
    return images.reshape(len(scenes), FRAMES, *images.shape[1:])


def candidates(item: VideoScene, kind: str, rng: np.random.Generator) -> list[tuple[str, str]]:
    """All (question, answer) of one kind, or a fair sample of them, that make sense in this clip."""
    names = [f"the {COLORS[c]} object" for c in item.color]
    n = len(names)
    if kind == "motion":
        return [
            (f"which way does {name} move", DIRECTIONS[d])
            for name, d in zip(names, item.direction, strict=True)
            if d >= 0
        ]
    if kind == "shape":
        return [(f"what shape is {name}", SHAPES[s]) for name, s in zip(names, item.shape, strict=True)]
    if kind == "color":
        return [(f"what color is the {SHAPES[s]}", COLORS[c]) for s, c in zip(item.shape, item.color, strict=True)]
    still = [i for i in range(n) if item.direction[i] < 0]
    if kind == "when":
        return [(f"when does {names[i]} come", NUMBERS[item.start[i] + 1]) for i in still]
    if kind == "before":
        return [
            (f"does {names[i]} come before {names[j]}", YES_NO[0] if item.start[i] < item.start[j] else YES_NO[1])
            for i in still
            for j in still
            if i != j
        ]
    if kind == "last":
        return [("which color comes last", COLORS[item.color[max(still, key=lambda i: item.start[i])]])]
    frame = int(rng.integers(FRAMES))
    seen = [i for i in range(n) if item.cells[i][frame] >= 0]
    if kind == "cell_color":
        place = item.cells[(i := int(rng.choice(seen)))][frame]
        where = f"row {place // GRID + 1} column {place % GRID + 1}"
        return [(f"color at {where} frame {frame + 1}", COLORS[item.color[i]])]
    axis = (lambda cell: cell // GRID) if kind == "frame_row" else (lambda cell: cell % GRID)
    return [
        (f"which {kind[6:]} is {names[i]} in frame {frame + 1}", NUMBERS[axis(item.cells[i][frame]) + 1]) for i in seen
    ]
