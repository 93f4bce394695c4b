"""Numbers, layer ids and tables as GitHub markdown. What is missing is a dash, never a zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from prunebench.errors import StoreError

__all__ = [
    "MISSING",
    "code",
    "figure",
    "layer_ranges",
    "one_line",
    "percent",
    "probability",
    "read_back",
    "size",
    "spread",
    "table",
    "words",
]

MISSING = "—"


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A markdown table; the first `left` columns are flush left, the others right.

    Columns are not padded, so that one changed number is one changed line in a diff.
    """
    rule = _line([":--" if i < left else "--:" for i in range(len(headers))])
    return "\n".join([_line(headers), rule, *(_line(row) for row in rows)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def code(text: str) -> str:
    """Text in a code span, whatever it holds."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def one_line(text: str, limit: int = 160) -> str:
    """Text on one line that cannot open a tag or a link, cut after `limit` characters."""
    flat = " ".join(text.split())
    flat = flat if len(flat) <= limit else flat[: limit - 1] + "…"
    return flat.replace("<", "&lt;")


def words(items: Sequence[str]) -> str:
    """``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else MISSING


def percent(share: float | None, digits: int = 1, sign: bool = False) -> str:
    """A share in [0, 1] as a number of percent, without the sign: ``0.874`` → ``87.4``."""
    if share is None:
        return MISSING
    value = round(100 * share, digits) + 0.0  # the sum turns -0.0 into 0.0
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def probability(p: float | None) -> str:
    """A p-value: ``0.42``, ``0.031``, ``<0.001``."""
    if p is None:
        return MISSING
    return "<0.001" if p < 0.0005 else f"{p:.3f}" if p < 0.0995 else f"{p:.2f}"


def figure(value: float) -> str:
    """A number of any size in about three digits: ``17.2``, ``4,948``, ``5.1e7``, ``3.4e-6``."""
    magnitude = abs(value)
    if magnitude >= 99_999.5 or 0 < magnitude < 0.001:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    if magnitude >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if magnitude >= 9.995 else f"{value:.2f}" if magnitude >= 1 else f"{value:.3g}"


def spread(
    values: Sequence[float],
    scale: float = 1.0,
    digits: int = 1,
    *,
    form: Callable[[float], str] | None = None,
    logs: bool = False,
) -> str:
    """One value, or mean and range of several that differ: ``51.0 (40.1 to 63.0)``.

    Args:
        values: none gives a dash.
        scale: factor to show them with.
        digits: after the point.
        form: how to write a number instead.
        logs: take the geometric mean; all values are above zero.
    """
    if not values:
        return MISSING
    mean = math.exp(sum(map(math.log, values)) / len(values)) if logs else sum(values) / len(values)
    form = form or (lambda value: f"{round(value, digits) + 0.0:.{digits}f}")
    middle, low, high = (form(value * scale) for value in (mean, min(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def layer_ranges(layers: Iterable[int]) -> str:
    """Ascending layer ids with runs of three and more drawn together: ``2–5, 9, 11–13``."""
    runs: list[list[int]] = []
    for layer in sorted(set(layers)):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    parts = [f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return ", ".join(parts) if parts else "none"


def size(count: float | None) -> str:
    """Bytes in binary units: ``1536`` → ``1.5 KiB``."""
    if count is None:
        return MISSING
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"


def read_back(path: str | Path) -> str:
    """The text of a table that was written before, line ends and all.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        return Path(path).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"cannot read {path}: {error}; write it with --out") from error
