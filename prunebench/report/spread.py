"""Between-method spread per budget, the claim of three regimes, and one strategy's standing, as markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence

from prunebench.comparison import Group
from prunebench.crossed import Structure
from prunebench.report.markdown import MISSING, code, percent, table, words
from prunebench.report.tables import name
from prunebench.spread import Regimes, Resamples, Spread, comparable, regimes, spreads
from prunebench.standing import Standing, standings

__all__ = ["spread_data", "spread_parts", "standing_data", "standing_parts"]

ABOUT = (
    "Standard deviation and range, over the strategies that read calibration samples (each as it comes, else its first "
    "variant), of the score that ranks, in points. *Noise*: the standard deviation that the finite number of questions "
    "alone would give methods that are all alike, by resampling the same questions for all of them. *Without noise*: "
    "sqrt(sd² − noise²), with its 95 % interval over questions, for these methods as they are. *Error of one score*: "
    "its standard error by the number of questions (binomial where answers are right or wrong). *Told apart*: share of "
    "the pairs of methods whose paired 95 % interval excludes 0, not adjusted for their number. *SD of all rows*: over "
    "all that have a rank, also variants and rules that look at nothing."
)

CLAIM = (
    "A claim of the literature (arXiv 2603.20275): rankings matter at low budgets, methods converge at moderate ones, "
    "and at high ones structure decides. It gives no boundaries; here the budgets tested are cut into thirds. What "
    "follows holds for this model, this suite and these methods."
)

PARTS = ("low", "moderate", "high")


def spread_parts(group: Group, resamples: Resamples) -> list[str]:
    """The section on spread; empty where no budget has two methods."""
    found = spreads(group, resamples)
    if not found:
        return []
    parts = ["### How far methods lie apart", ABOUT, _spread_table(found)]
    if any(one.structure is not None for one in found):
        parts += [
            "*Score and rule*: where scores were crossed with selection rules, the share of the sum of squares over "
            "the largest complete grid that each explains [95 % over questions]; the rest is their interaction, and "
            "noise.",
            _structure_table(found),
        ]
    parts += ["**Are there three regimes?** " + CLAIM, _regime_words(regimes(comparable(group, found, resamples)))]
    return parts


def spread_data(group: Group, resamples: Resamples) -> list[dict[str, object]]:
    """The same as JSON-able values: shares as fractions."""
    return [
        {
            "layers_removed": one.section.layers,
            "methods": [row.label for row in one.rows],
            "sd": one.sd,
            "range": one.range,
            "noise": one.noise,
            "sd_without_noise": one.corrected,
            "interval": list(one.interval) if one.interval else None,
            "told_apart": one.told_apart,
            "error_of_one_score": one.error,
            "sd_of_all_rows": one.all_sd,
            "bands": [{"label": b.label, "draws": b.n, "sd": b.sd, "low": b.low, "high": b.high} for b in one.bands],
            "structure": None
            if one.structure is None
            else {
                "scores": [_score_name(score) for score in one.structure.scores],
                "rules": list(one.structure.rules),
                "score": one.structure.score,
                "rule": one.structure.rule,
                "rest": one.structure.rest,
            },
        }
        for one in spreads(group, resamples)
    ]


def standing_parts(group: Group, strategy: str, resamples: Resamples) -> list[str]:
    """Where one strategy stands, in a table and in words; empty where it has no rank."""
    found = standings(group, strategy, resamples)
    if not found:
        return []
    headers = [
        "Budget",
        "Row",
        "Rank [95 %]",
        "Score",
        "Best row",
        "Difference to it [95 % CI]",
        "Best row without calibration",
    ]
    body = []
    for one in found:
        span = f" [{one.interval[0]}, {one.interval[1]}]" if one.interval else ""
        blind = MISSING if one.blind is None else f"{name(one.blind)} ({percent(_value(group, one))})"
        gap = MISSING
        if one.gap is not None:
            gap = f"{percent(one.gap.mean, sign=True)} [{_bounds(one.gap.low, one.gap.high)}]"
        best = "itself" if one.first else name(one.best)
        rank = f"{one.rank} of {one.of}{span}"
        body.append([one.section.heading(False), name(one.row), rank, percent(one.value), best, gap, blind])
    return [f"### Where {code(strategy)} stands", table(headers, body, left=2), _standing_words(strategy, found)]


def standing_data(group: Group, strategy: str, resamples: Resamples) -> list[dict[str, object]]:
    """The same as JSON-able values."""
    return [
        {
            "layers_removed": one.section.layers,
            "label": one.row.label,
            "rank": one.rank,
            "of": one.of,
            "rank_interval": list(one.interval) if one.interval else None,
            "best": one.best.label,
            "tied_with_best": one.tied,
            "above_every_draw": one.above_draws,
        }
        for one in standings(group, strategy, resamples)
    ]


def _spread_table(found: Sequence[Spread]) -> str:
    bands = list(dict.fromkeys(band.label for one in found for band in one.bands))
    headers = [
        "Budget",
        "Methods",
        "SD",
        "Range",
        "Noise",
        "Without noise [95 %]",
        "Error of one score",
        "Told apart %",
    ]
    headers += ["SD of all rows", *(f"{code(label)}: SD (range)" for label in bands)]
    body = []
    for one in found:
        cells = [one.section.heading(False), str(len(one.rows)), percent(one.sd), percent(one.range)]
        clean = MISSING
        if one.interval is not None:
            clean = f"{percent(one.corrected)} [{_bounds(*one.interval)}]"
        cells += [percent(one.noise), clean, percent(one.error), percent(one.told_apart, 0), percent(one.all_sd)]
        for label in bands:
            band = next((band for band in one.bands if band.label == label), None)
            cells.append(MISSING if band is None else f"{percent(band.sd)} ({percent(band.high - band.low)})")
        body.append(cells)
    return table(headers, body)


def _structure_table(found: Sequence[Spread]) -> str:
    headers = ["Budget", "Grid", "Score %", "Rule %", "Rest %", "Noise %"]
    body = []
    for one in found:
        grid = one.structure
        if grid is None:
            continue
        cells = [one.section.heading(False), f"{len(grid.scores)} scores × {', '.join(grid.rules)}"]
        cells += [_share(grid.score, grid.score_interval), _share(grid.rule, grid.rule_interval)]
        body.append([*cells, percent(grid.rest, 0), percent(grid.noise, 0)])
    names = words([code(_score_name(score)) for score in _all_scores(found)])
    return f"{table(headers, body, left=2)}\n\nScores in the grids: {names}."


def _regime_words(seen: Regimes | None) -> str:
    if seen is None:
        return "Not tested: it takes at least three budgets with two methods each, and a score for every question."
    tested = [one for part in seen.parts for one in part]
    counts = sorted({len(one.rows) for one in tested})
    same = len({tuple(sorted(row.label for row in one.rows)) for one in tested}) == 1
    who = f"the {counts[0]} methods with a score at every budget" if same else "methods that differ between budgets"
    where = [f"{part} ({words([str(one.section.layers) for one in group])} layers)"
             for part, group in zip(PARTS, seen.parts, strict=True)]  # fmt: skip
    figures = [f"{percent(sd)} points at {place} budgets" for sd, place in zip(seen.sds, where, strict=True)]
    lines = [f"Without noise the scores of {who} have a standard deviation of {words(figures)}."]
    ranks = "Rankings **do matter**" if seen.low[0] > 0 else "Whether rankings matter is **not told**"
    span = f"[{_bounds(*seen.low)}] points without noise"
    lines.append(f"{ranks} at low budgets: {span}, {percent(seen.told_apart, 0)} % of the pairs are told apart.")
    fall, low, high = seen.fall
    gap = f"low minus moderate {percent(fall, sign=True)} points [{_bounds(low, high)}]"
    verdict = (
        f"Methods **do converge** from low to moderate budgets ({gap})."
        if low > 0
        else f"Methods **do not converge** from low to moderate budgets, they move apart ({gap})."
        if high < 0
        else f"Whether methods converge from low to moderate budgets is **not told** ({gap})."
    )
    rise, low, high = seen.rise
    gap = f"high minus moderate {percent(rise, sign=True)} points [{_bounds(low, high)}]"
    fell = seen.fall[1] > 0
    verb = f"grows{' again' if fell else ''}" if low > 0 else f"shrinks{' further' if fell else ''}"
    verb = "is **not told** to change" if low <= 0 <= high else verb
    lines += [verdict, f"From moderate to high budgets the spread {verb} ({gap})."]
    return " ".join([*lines, *_structure_words(seen)])


def _structure_words(seen: Regimes) -> list[str]:
    shares, lead = seen.structure[2], seen.lead[2]
    grids = {(one.structure.scores, one.structure.rules) for part in seen.parts for one in part if one.structure}
    if shares is None:
        return ["Whether structure decides at high budgets is **not tested**: no scores were crossed with rules there."]
    rule, score = shares
    span = f", difference {percent(lead[0], 0, sign=True)} points [{_bounds(lead[1], lead[2], 0)}]" if lead else ""
    text = f"the rule explains {percent(rule, 0)} % of the grid and the score {percent(score, 0)} %{span}"
    if lead is None or lead[1] <= 0 <= lead[2]:
        lines = [f"Whether structure decides at high budgets is **not told**: {text}."]
    elif lead[1] > 0:
        lines = [f"Structure **does decide** at high budgets: {text}."]
    else:
        lines = [f"Structure does **not** decide at high budgets, the score does: {text}."]
    if (first := seen.structure[0]) is not None:
        lines.append(f"At low budgets: rule {percent(first[0], 0)} %, score {percent(first[1], 0)} %.")
    if len(grids) == 1:
        scores, rules = next(iter(grids))
        lines.append(f"The grid is the same at all budgets: {len(scores)} scores × {', '.join(rules)}.")
    else:
        lines.append("The grids differ between budgets.")
    return lines


def _standing_words(strategy: str, found: Sequence[Standing]) -> str:
    label, total = code(strategy), len(found)
    first = [one for one in found if one.first]
    tied = [one for one in found if one.tied and not one.first]
    behind = [one for one in found if not one.tied]
    lines = [f"{label} is first at {len(first)} of {total} budgets{_at(first)}."]
    if tied:
        lines.append(f"Not first, but not told apart from the first, at {len(tied)}{_at(tied)}.")
    if behind:
        winners = dict.fromkeys(name(one.best) for one in behind)
        lines.append(f"**Behind the first at {len(behind)}**{_at(behind)}; ahead there: {words(list(winners))}.")
    banded = [one for one in found if one.above_draws is not None]
    if banded:
        above = [one for one in banded if one.above_draws]
        rest = [one for one in banded if not one.above_draws]
        lines.append(f"Above every random draw at {len(above)} of {len(banded)} budgets.")
        if rest:
            lines.append(f"**Not above every random draw**{_at(rest)}.")
    compared = [one for one in found if one.blind_gap is not None]
    lost = [one for one in compared if one.blind_gap is not None and one.blind_gap.high < 0]
    won = [one for one in compared if one.blind_gap is not None and one.blind_gap.low > 0]
    if compared:
        lines.append(
            f"Against the best row that reads no calibration samples: better at {len(won)}, worse at {len(lost)}, "
            f"not told apart at {len(compared) - len(won) - len(lost)}."
        )
    variants = [(one, one.variant) for one in found if one.variant is not None]
    if variants:
        texts = [f"{name(row)} (rank {row.rank}, {one.section.layers} layers)" for one, row in variants]
        lines.append(f"Its variants that rank higher: {words(texts)}.")
    return " ".join(lines)


def _at(found: Sequence[Standing]) -> str:
    return f" ({words([str(one.section.layers) for one in found])} layers)" if found else ""


def _value(group: Group, one: Standing) -> float | None:
    values = one.blind.values(group.ranking) if one.blind is not None else ()
    return values[0] if values else None


def _bounds(low: float, high: float, digits: int = 1) -> str:
    return f"{percent(low, digits)}, {percent(high, digits)}"


def _share(share: float, interval: tuple[float, float] | None) -> str:
    return f"{percent(share, 0)}{f' [{_bounds(*interval, 0)}]' if interval else ''}"


def _all_scores(found: Sequence[Spread]) -> list[str]:
    grids: list[Structure] = [one.structure for one in found if one.structure is not None]
    return sorted({score for grid in grids for score in grid.scores})


def _score_name(key: str) -> str:
    strategy, params = json.loads(key)
    parts = [f"{name}={value}" for name, value in sorted(params.items())]
    return f"{strategy} ({', '.join(parts)})" if parts else strategy
