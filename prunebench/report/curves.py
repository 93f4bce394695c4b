"""A still picture of accuracy against the number of removed layers, made with matplotlib."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunebench import jsonio
from prunebench.comparison import Group, Row, group_records
from prunebench.errors import MissingExtra, UsageError
from prunebench.kinds import removes_layers
from prunebench.report.facts import titles
from prunebench.spread import Spread, spreads
from prunebench.store import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["accuracy_curves"]

COLUMNS = 3
# Okabe and Ito's colours, told apart with any colour vision; markers and dashes carry on where colours end.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8C564B", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p")
DASHES = ("-", "--", "-.", ":")
GREY = "#6b6b6b"
CROWDED = 12
"""With more rows, so many are drawn in colours of their own and all others in one light grey."""
LIGHT = "#b9b9b9"
SPREAD = "\0spread"
"""Stands for the panel of spread among the names of tasks."""

Point = Callable[[Record], tuple[float, float | None, float | None] | None]
"""A record's score with the ends of its interval, all ready to draw; None where it is missing."""


def accuracy_curves(records: Iterable[Record], out_png: str | Path, highlight: str | None = None) -> Path:
    """Plot task scores against layers removed: the mean over tasks, one panel per task, and how far methods lie apart.

    One line per strategy with 95 % intervals, with many strategies only those that come closest to the best row in
    colours; a strategy with several seeds is a band from its lowest to its highest
    draw around their mean. Straight lines show the dense model, chance and the most common answer. Incomplete and
    failed records are left out, and so are kinds that remove no whole layers: zeroed weights and smaller widths have no
    place on an axis of layers, which the title then says. Records that may not be compared stand
    in rows of their own. The last panel is the spread between methods (`prunebench.spread`).

    Args:
        records: any.
        out_png: the file to write.
        highlight: a strategy whose line as it comes is drawn thick, and always in colour.

    Returns:
        The path written.

    Raises:
        MissingExtra: matplotlib is not installed.
        UsageError: there is nothing to plot.
        StoreError: the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "figures", "a plot") from error

    groups = [group for group in group_records(records) if any(_rows(group))]
    if not groups:
        raise UsageError("nothing to plot: no finished record that removes whole layers")
    apart = {group: found for group in groups if len(found := spreads(group)) > 1}
    shown = {group: [*_panels(group), *([SPREAD] if group in apart else [])] for group in groups}
    panels = [(group, task) for group in groups for task in shown[group]]
    most = max(len(tasks) for tasks in shown.values())
    columns = 2 if most in (2, 4) else min(COLUMNS, most)
    places: list[int] = []
    for group in groups:  # each group begins on a new line
        start = math.ceil((places[-1] + 1) / columns) * columns if places else 0
        places += range(start, start + len(shown[group]))
    lines = places[-1] // columns + 1
    # One style per strategy in all panels, so that one legend serves them.
    heading = dict(zip(groups, titles(groups), strict=True))
    labels = sorted({row.label for group in groups for _, row in _rows(group)})
    coloured = labels if len(labels) <= CROWDED else _closest(groups, highlight) or labels[:CROWDED]
    styles = {label: place for place, label in enumerate(coloured)}
    # Built without pyplot, so that no window system and no global state is touched.
    # One panel is wider; all are taller by the rows of the legend, which else would be cut off.
    across = 4 if columns > 1 else 3
    below = 0.2 * max(0, math.ceil(len(coloured) / across) - 2)
    size = (4.4 * columns if columns > 1 else 7.6, 3.5 * lines + 0.9 + below)
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    entries: dict[str, Any] = {}
    for place, (group, task) in zip(places, panels, strict=True):
        axes = figure.add_subplot(lines, columns, place + 1)
        if task == SPREAD:
            _spread_panel(axes, group, apart[group])
        else:
            _panel(axes, group, task, styles, highlight, others=len(labels) - len(coloured))
        if len(groups) > 1:
            axes.set_title(f"{heading[group]}\n{axes.get_title()}", fontsize=9)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=across, frameon=False, fontsize=9)
    figure.suptitle(_title(groups), fontsize=12)
    path = Path(out_png)
    # No date and no version in the file: the same records give the same picture.
    jsonio.write_atomically(path, lambda target: figure.savefig(target, format="png", metadata={"Software": None}))
    return path


def _closest(groups: Sequence[Group], highlight: str | None) -> list[str]:
    """The labels to draw in colour: `highlight` first, bands, and one row each of the strategies least behind the best.

    Behind is the mean over the row's budgets, of rows that have a score at more than half of the budgets. Of rows with
    equal scores throughout only one is taken, and none that was recovered: those are ranked apart.
    """
    behind: dict[str, list[float]] = {}
    strategies: dict[str, str] = {}
    bands: set[str] = set()
    for group in groups:
        for section in group.sections:
            if section.layers is None or section.recovery:
                continue
            bands |= {row.label for row in section.bands}
            for row in section.ranked:
                first = section.ranked[0].values(group.ranking)[0]
                behind.setdefault(row.label, []).append(first - row.values(group.ranking)[0])
                strategies[row.label] = row.strategy
    most = max(map(len, behind.values()), default=0)
    chosen = [highlight] if highlight in behind else []
    own: set[str] = set()
    for label in sorted(behind, key=lambda label: (sum(behind[label]) / len(behind[label]), label)):
        drawn = any(behind[label] == behind[other] for other in chosen)
        if len(chosen) < CROWDED and 2 * len(behind[label]) > most and strategies[label] not in own and not drawn:
            chosen.append(label)
            own.add(strategies[label])
    return [*chosen[:1], *sorted(chosen[1:]), *sorted(bands)]


def _rows(group: Group) -> list[tuple[int, Row]]:
    return [(s.layers, row) for s in group.sections if s.layers is not None for row in s.rows if row.records]


def _panels(group: Group) -> list[str | None]:
    """None stands for the mean over tasks, drawn where all tasks are shares and higher is better."""
    shares = all(group.display(task)[0] == 100 for task in group.tasks) and not group.lower_is_better
    return [*([None] if shares and len(group.tasks) > 1 else []), *group.tasks]


def _point(group: Group, task: str | None) -> Point:
    names = group.tasks if task is None else (task,)
    factor = 100.0 if task is None else group.display(task)[0]

    def point(record: Record) -> tuple[float, float | None, float | None] | None:
        if group.missing(record):
            return None
        results = [result for result in record.tasks if result.task in names]
        score = factor * sum(result.score for result in results) / len(results)
        if task is None or results[0].ci_method == "none":
            return score, None, None
        return score, factor * results[0].ci_low, factor * results[0].ci_high

    return point


def _panel(
    axes: Axes, group: Group, task: str | None, styles: Mapping[str, int], highlight: str | None, others: int = 0
) -> None:
    point = _point(group, task)
    rows = _rows(group)
    bands = sorted({row.label for _, row in rows if row.is_band})
    for label in sorted({row.label for _, row in rows}):
        own = [(layers, row) for layers, row in rows if row.label == label]
        if label in bands:
            colour = GREY if label == bands[0] else COLOURS[styles[label] % len(COLOURS)]
            _draw_band(axes, label, own, point, colour, logs=task in group.log_scale)
        else:
            width = 2.8 if label == highlight else 1.6 if not others else 1.3
            if label in styles:
                _draw_line(axes, label, own, point, styles[label], width)
            else:
                _draw_other(axes, f"{others} other rows, see the tables", own, point)
    _draw_levels(axes, group, task, point)
    results = [group.reference[name] for name in (group.tasks if task is None else (task,))]
    axes.set_title("mean over tasks" if task is None else task, fontsize=10)
    axes.set_xlabel(f"layers removed (of {group.model.n_layers})", fontsize=9)
    unit = " (%)" if task is None or group.display(task)[0] == 100 else ""
    metric = " / ".join(sorted({result.metric for result in results}))
    axes.set_ylabel(f"{metric}{unit}{'' if results[0].higher_is_better else ', lower is better'}", fontsize=9)
    if task in group.log_scale:
        axes.set_yscale("log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlim(0, max(layers for layers, _ in rows) + 0.4)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _spread_panel(axes: Axes, group: Group, found: Sequence[Spread]) -> None:
    """Standard deviation of the methods' scores at each budget, with its interval, the draws' and the noise."""
    xs = [one.section.layers or 0 for one in found]
    dark, red = "black", "#b03030"
    axes.plot(xs, [100 * one.sd for one in found], "-", color=dark, marker="o", markersize=4, label="methods' spread")
    for x, one in zip(xs, found, strict=True):
        if one.interval is not None:
            axes.plot([x, x], [100 * bound for bound in one.interval], color=dark, alpha=0.4, linewidth=3)
    for band in list(dict.fromkeys(band.label for one in found for band in one.bands))[:1]:
        own = [(x, b.sd) for x, one in zip(xs, found, strict=True) for b in one.bands if b.label == band]
        axes.plot(
            *zip(*[(x, 100 * sd) for x, sd in own], strict=True), "--", color=GREY, label=f"spread of {band} draws"
        )
    if all(one.error is not None for one in found):
        errors = [100 * (one.error or 0.0) for one in found]
        axes.plot(xs, errors, ":", color=red, label="error of one score (questions)")
    axes.set_title("how far methods lie apart", fontsize=10)
    axes.set_xlabel(f"layers removed (of {group.model.n_layers})", fontsize=9)
    axes.set_ylabel("standard deviation (points)", fontsize=9)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlim(0, max(xs) + 0.4)
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_line(axes: Axes, label: str, rows: Sequence[tuple[int, Row]], point: Point, place: int, width: float) -> None:
    points = [(layers, found) for layers, row in rows if (found := point(row.records[0]))]
    if not points:
        return
    colour = COLOURS[place % len(COLOURS)]
    xs, ys = [layers for layers, _ in points], [found[0] for _, found in points]
    dash = DASHES[place // len(COLOURS) % len(DASHES)]
    marker = MARKERS[place % len(MARKERS)]
    axes.plot(xs, ys, dash, marker=marker, color=colour, label=label, markersize=2 + 1.8 * width, linewidth=width)
    for layers, (_, low, high) in points:
        if low is not None and high is not None:
            axes.plot([layers, layers], [low, high], color=colour, alpha=0.35, linewidth=1.2)


def _draw_other(axes: Axes, label: str, rows: Sequence[tuple[int, Row]], point: Point) -> None:
    points = [(layers, found[0]) for layers, row in rows if (found := point(row.records[0]))]
    if points:
        axes.plot(*zip(*points, strict=True), color=LIGHT, label=label, linewidth=0.8, zorder=1)


def _draw_band(
    axes: Axes, label: str, rows: Sequence[tuple[int, Row]], point: Point, colour: str, *, logs: bool
) -> None:
    xs, draws = [], []
    for layers, row in rows:
        scores = [found[0] for record in row.records if (found := point(record))]
        if scores:
            xs.append(layers)
            draws.append(scores)
    if not xs:
        return
    counts = sorted({len(scores) for scores in draws})
    seeds = str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
    label = f"{label} ({seeds} seed{'' if counts == [1] else 's'}, range)"
    axes.fill_between(xs, [min(d) for d in draws], [max(d) for d in draws], color=colour, alpha=0.22, linewidth=0)
    axes.vlines(xs, [min(d) for d in draws], [max(d) for d in draws], color=colour, alpha=0.4, linewidth=4)
    middles = [math.exp(sum(map(math.log, d)) / len(d)) if logs else sum(d) / len(d) for d in draws]
    axes.plot(xs, middles, "--", color=colour, linewidth=1.4, label=label)


def _draw_levels(axes: Axes, group: Group, task: str | None, point: Point) -> None:
    names = group.tasks if task is None else (task,)
    factor = 100.0 if task is None else group.display(task)[0]
    dense = point(group.dense) if group.dense is not None else None
    if dense is not None:
        axes.axhline(dense[0], color="black", linewidth=1.1, label="dense")
    for key, label, style in (("chance", "chance", ":"), ("majority", "most common answer", (0, (5, 4)))):
        levels = [getattr(group.reference[name], key) for name in names]
        if all(level is not None for level in levels):
            axes.axhline(factor * sum(levels) / len(levels), color="#b03030", linewidth=1, linestyle=style, label=label)


def _title(groups: Sequence[Group]) -> str:
    if len(groups) > 1:
        return f"{len(groups)} groups of records that may not be compared with each other"
    group = groups[0]
    others = sorted({section.kind for section in group.sections if not removes_layers(section.kind)})
    apart = f"; not on this axis: {', '.join(others)}" if others else ""
    counts = sorted({result.n for result in group.reference.values()})
    each = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{group.model.name} on {group.records[0].cell.suite}, {each} questions per task{apart}"
