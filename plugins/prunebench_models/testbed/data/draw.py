"""From symbols to pixels: a 4×4 grid of 16-pixel cells, one per vision patch."""

from __future__ import annotations

from functools import cache

import numpy as np

__all__ = ["BAR_FULL", "BAR_HALF", "BLANK", "CELL", "DIGIT", "GLYPHS", "GRID", "IMAGE_SIZE", "SHAPE", "render_cells"]

GRID = 4
CELL = 16
IMAGE_SIZE = GRID * CELL

# glyph ids, the classes that the vision tower is pretrained on
BLANK = 0
SHAPE = 1  # SHAPE + index in words.SHAPES
DIGIT = 6  # DIGIT + value
BAR_HALF = 16
BAR_FULL = 17
GLYPHS = 18

_COLORS = np.array(
    [(225, 45, 45), (45, 190, 60), (60, 90, 240), (230, 215, 50), (180, 60, 200), (245, 245, 245)], dtype=np.float32
)

# rows of a 5×7 dot matrix, one integer of five bits each
_DIGIT_ROWS = (
    (14, 17, 19, 21, 25, 17, 14),
    (4, 12, 4, 4, 4, 4, 14),
    (14, 17, 1, 2, 4, 8, 31),
    (31, 2, 4, 2, 1, 17, 14),
    (2, 6, 10, 18, 31, 2, 2),
    (31, 16, 30, 1, 1, 17, 14),
    (6, 8, 16, 30, 17, 17, 14),
    (31, 1, 2, 4, 8, 8, 8),
    (14, 17, 17, 14, 17, 17, 14),
    (14, 17, 17, 15, 1, 2, 12),
)


def _shape_masks() -> list[np.ndarray]:
    y, x = np.mgrid[0:CELL, 0:CELL] - (CELL - 1) / 2
    radius = np.hypot(x, y)
    return [
        radius < 6,
        (np.abs(x) < 5) & (np.abs(y) < 5),
        (y < 5) & (y > -6) & (np.abs(x) < (y + 6) * 0.55),
        ((np.abs(x) < 2) & (np.abs(y) < 6)) | ((np.abs(y) < 2) & (np.abs(x) < 6)),
        (radius < 6.2) & (radius > 3.6),
    ]


@cache
def _glyph_bank() -> np.ndarray:
    """Masks (glyph, shift, CELL, CELL) in {0, 1}; shift 0 is centred, 1 to 8 are the one-pixel neighbours."""
    masks = np.zeros((GLYPHS, CELL, CELL), dtype=np.float32)
    for index, mask in enumerate(_shape_masks()):
        masks[SHAPE + index] = mask
    for value, rows in enumerate(_DIGIT_ROWS):
        dots = np.array([[(row >> (4 - column)) & 1 for column in range(5)] for row in rows], dtype=np.float32)
        masks[DIGIT + value, 1:15, 3:13] = np.kron(dots, np.ones((2, 2), dtype=np.float32))
    masks[BAR_HALF, CELL // 2 :, 2:14] = 1
    masks[BAR_FULL, :, 2:14] = 1
    shifts = sorted(((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)), key=lambda s: abs(s[0]) + abs(s[1]))
    return np.stack([np.roll(masks, shift, axis=(1, 2)) for shift in shifts], axis=1)


def render_cells(glyph: np.ndarray, color: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw images with jitter, uneven light and pixel noise.

    Args:
        glyph: (n, 16) glyph ids, cell by cell from the top left.
        color: (n, 16) indices into ``words.COLORS``; ignored where the cell is blank.
        rng: source of jitter and noise.

    Returns:
        uint8 images (n, 64, 64, 3).
    """
    n = len(glyph)
    shift = rng.integers(0, 9, glyph.shape)
    shift[glyph >= BAR_HALF] = 0  # a bar must meet the cell below it
    light = rng.uniform(0.75, 1.0, (*glyph.shape, 1)).astype(np.float32)
    paint = _COLORS[color] * light
    mask = _glyph_bank()[glyph, shift][..., None]
    ground = rng.integers(5, 50, (n, 1, 1, 1, 3)).astype(np.float32)
    cells = ground + mask * (paint[:, :, None, None, :] - ground)
    image = cells.reshape(n, GRID, GRID, CELL, CELL, 3).swapaxes(2, 3).reshape(n, IMAGE_SIZE, IMAGE_SIZE, 3)
    image = image + rng.integers(-14, 15, image.shape, dtype=np.int8)
    return np.clip(image, 0, 255).astype(np.uint8)
