"""Domain ``math``: digits to calculate with, bars to measure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .draw import BAR_FULL, BAR_HALF, BLANK, DIGIT, GRID, render_cells
from .words import COLORS, NUMBERS, SIDES

__all__ = ["HELPERS", "KINDS", "MathScene", "candidates", "render", "scene"]

KINDS: dict[str, tuple[str, ...]] = {
    "digit_read": NUMBERS[:10],
    "digit_add": NUMBERS[:19],
    "digit_difference": NUMBERS[:10],
    "digit_compare": ("left", "right"),
    "digit_max": NUMBERS[:7],
    "digit_min": NUMBERS[:7],
    "digit_sum": NUMBERS[:19],
    "bar_read": NUMBERS[1:9],
    "bar_max": COLORS,
    "bar_min": COLORS,
    "bar_difference": NUMBERS[:8],
    "bar_add": NUMBERS[2:17],
}
HELPERS = ("digit_row", "bar_column", "bar_tallest", "bar_shortest")

BAR_LEVELS = 2 * GRID


@dataclass(frozen=True)
class MathScene:
    """Either ``digits`` with their ``cells``, or bar ``heights`` (half cells) with their ``colors``."""

    digits: tuple[int, ...] = ()
    cells: tuple[int, ...] = ()
    heights: tuple[int, ...] = ()
    colors: tuple[int, ...] = ()


def scene(rng: np.random.Generator, easy: bool = False, kind: str | None = None) -> MathScene:
    """Two digits, three digits or four bars (two of them in ``easy`` scenes); ``kind`` asks for one that suits it."""
    if kind is not None and kind.startswith("bar"):
        return _bars(rng, easy)
    if kind in ("digit_max", "digit_min", "digit_sum"):
        return _three_digits(rng)
    if kind in ("digit_add", "digit_difference", "digit_compare"):
        return _two_digits(rng)
    draw = rng.random()
    if kind is None and draw < 0.4:
        return _bars(rng, easy)
    return _two_digits(rng) if easy or draw < 0.75 else _three_digits(rng)


def _two_digits(rng: np.random.Generator) -> MathScene:
    if rng.random() < 0.5:  # an even spread over sums, else over differences
        total = int(rng.integers(0, 19))
        left = int(rng.integers(max(0, total - 9), min(9, total) + 1))
        right = total - left
    else:
        gap = int(rng.integers(0, 10))
        left = int(rng.integers(0, 10 - gap))
        right = left + gap
        if rng.random() < 0.5:
            left, right = right, left
    rows = rng.integers(0, GRID, 2)
    return MathScene(digits=(left, right), cells=(int(rows[0]) * GRID, int(rows[1]) * GRID + GRID - 1))


def _three_digits(rng: np.random.Generator) -> MathScene:
    digits = tuple(int(d) for d in rng.integers(0, 7, 3))
    wanted = int(rng.integers(0, 19))
    for _ in range(6):  # lean towards an even spread over sums
        if abs(sum(digits) - wanted) <= 1:
            break
        digits = tuple(int(d) for d in rng.integers(0, 7, 3))
    rows = rng.integers(0, GRID, 3)
    columns = (0, int(rng.integers(1, 3)), GRID - 1)
    return MathScene(digits=digits, cells=tuple(int(r) * GRID + c for r, c in zip(rows, columns, strict=True)))


def _bars(rng: np.random.Generator, easy: bool) -> MathScene:
    heights = rng.integers(1, BAR_LEVELS + 1, GRID)
    colors = rng.permutation(len(COLORS))[:GRID]
    if easy:
        heights[rng.permutation(GRID)[:2]] = 0
    return MathScene(heights=tuple(heights.tolist()), colors=tuple(colors.tolist()))


def render(scenes: list[MathScene], rng: np.random.Generator) -> np.ndarray:
    """uint8 images (n, 64, 64, 3)."""
    glyph = np.full((len(scenes), GRID * GRID), BLANK, dtype=np.int64)
    color = rng.integers(0, len(COLORS), glyph.shape)
    for index, item in enumerate(scenes):
        if item.digits:
            glyph[index, list(item.cells)] = np.array(item.digits) + DIGIT
            continue
        fill = np.clip(np.array(item.heights)[None, :] - 2 * np.arange(GRID - 1, -1, -1)[:, None], 0, 2)
        glyph[index] = np.array((BLANK, BAR_HALF, BAR_FULL))[fill].reshape(-1)
        color[index] = np.tile(item.colors, GRID)
    return render_cells(glyph, color, rng)


def candidates(item: MathScene, kind: str, rng: np.random.Generator) -> list[tuple[str, str]]:
    """All (question, answer) of one kind, or a fair sample of them, that make sense in this scene."""
    if kind.startswith("digit") == bool(item.digits):
        found = _digit_candidates(item, kind) if item.digits else _bar_candidates(item, kind, rng)
        return [(question, str(answer)) for question, answer in found]
    return []


def _digit_candidates(item: MathScene, kind: str) -> list[tuple[str, int | str]]:
    digits = item.digits
    sides = SIDES if len(digits) == 3 else (SIDES[0], SIDES[2])
    if kind == "digit_read":
        return [(f"what is the {side} digit", digit) for side, digit in zip(sides, digits, strict=True)]
    if kind == "digit_row":
        rows = (cell // GRID + 1 for cell in item.cells)
        return [(f"which row is the {side} digit in", row) for side, row in zip(sides, rows, strict=True)]
    if len(digits) == 2:
        if kind == "digit_add":
            return [("what is the left digit plus the right digit", sum(digits))]
        if kind == "digit_difference":
            return [("what is the difference of the digits", abs(digits[0] - digits[1]))]
        if kind == "digit_compare" and digits[0] != digits[1]:
            return [("which digit is larger", "left" if digits[0] > digits[1] else "right")]
        return []
    if kind == "digit_max":
        return [("what is the largest digit", max(digits))]
    if kind == "digit_min":
        return [("what is the smallest digit", min(digits))]
    return [("what is the sum of the digits", sum(digits))] if kind == "digit_sum" else []


def _bar_candidates(item: MathScene, kind: str, rng: np.random.Generator) -> list[tuple[str, int | str]]:
    bars = [(height, COLORS[color]) for height, color in zip(item.heights, item.colors, strict=True) if height > 0]
    heights = [height for height, _ in bars]
    if kind == "bar_read":
        return [(f"how tall is the {color} bar", height) for height, color in bars]
    if kind in ("bar_max", "bar_min", "bar_tallest", "bar_shortest"):
        extreme = max(heights) if kind in ("bar_max", "bar_tallest") else min(heights)
        word = "tallest" if kind in ("bar_max", "bar_tallest") else "shortest"
        if kind in ("bar_tallest", "bar_shortest"):
            return [(f"how tall is the {word} bar", extreme)]
        return [
            (f"which bar is {word}", color)
            for height, color in bars
            if height == extreme and heights.count(extreme) == 1
        ]
    if kind == "bar_column":
        return [
            (f"which column is the {COLORS[color]} bar in", column + 1)
            for column, (height, color) in enumerate(zip(item.heights, item.colors, strict=True))
            if height > 0
        ]
    found: list[tuple[str, int | str]] = []
    for i, (height_i, color_i) in enumerate(bars):
        for j, (height_j, color_j) in enumerate(bars):
            if i == j:
                continue
            if kind == "bar_add":
                found.append((f"what is the {color_i} bar plus the {color_j} bar", height_i + height_j))
            elif height_i >= height_j:
                found.append((f"what is the {color_i} bar minus the {color_j} bar", height_i - height_j))
    return found
