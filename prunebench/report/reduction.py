"""What goes in a row, told in the words of its kind: layers, parts, zeroed weights, or widths."""

from __future__ import annotations

from prunebench.budget import Achieved, achieved
from prunebench.comparison import Row, Section
from prunebench.kinds import WIDTH, is_thinned, params_zeroed, widths
from prunebench.report.markdown import MISSING, layer_ranges, spread
from prunebench.store import Record

__all__ = ["achieved_by", "reduced", "reduction_header", "sizes", "zeroed_share"]


def reduction_header(kind: str) -> str:
    """Of the column that `reduced` fills."""
    return "Weights zeroed %" if is_thinned(kind) else "Kept widths" if kind == WIDTH else "Removed layers"


def reduced(kind: str, row: Row) -> str:
    """Removed layers as ranges; the share of zeroed weights; or the least and most heads and channels that stay."""
    plans = [record.plan for record in row.shown if record.plan is not None]
    if not plans:
        return MISSING
    if is_thinned(kind):
        return spread([100 * share for record in row.shown if (share := zeroed_share(record)) is not None])
    if kind == WIDTH:
        found: dict[str, list[tuple[int, int]]] = {}
        for plan in plans:
            for word, pairs in widths(plan).items():
                found.setdefault(word, []).extend(pairs)
        parts = [_width(word, found[word]) for word in ("heads", "channels") if word in found]
        sliced, of = max(len(pairs) for pairs in widths(plans[0]).values()) if parts else 0, plans[0].target.n_layers
        parts += [f"in {sliced} of {of} layers"] if 0 < sliced < of else []
        return "; ".join(parts) or MISSING
    if len({plan.removed_layers for plan in plans}) > 1:
        return f"{spread([float(len(plan.removed_layers)) for plan in plans], digits=0)}: differ by seed"
    removed, budget = plans[0].removed_layers, plans[0].budget
    text = f"{len(removed)}: {layer_ranges(removed)}"
    for part, name in (("attention", "attention"), ("mlp", "MLP")):
        if layers := [layer for layer, each in plans[0].removed_sublayers if each == part]:
            text += f"; {name} of {len(layers)}: {layer_ranges(layers)}"
    return f"{text} (asked {budget.layers_asked})" if budget and budget.layers_asked != len(removed) else text


def zeroed_share(record: Record) -> float | None:
    """Zeroed weights over the weights of the decoder layers' linear maps, over all their parameters where not counted.

    None without a plan that says what it came to.
    """
    got = achieved_by(record)
    whole = record.model.linear_params or sum(cost.params for cost in record.model.layers)
    return params_zeroed(got) / whole if got is not None and whole else None


def sizes(section: Section) -> str:
    """For kinds whose plans at one budget differ in size: from how much to how much goes; empty for whole layers."""
    if section.kind == "layers":
        return ""
    records = [record for row in section.ranked for record in row.records]
    thinned = is_thinned(section.kind)
    shares = sorted(
        100 * (params_zeroed(got) / record.model.lm_params if thinned else got.lm_params)
        for record in records
        if (got := achieved_by(record))
    )
    if len(shares) < 2 or shares[-1] - shares[0] < 0.1:
        return ""
    return (
        f"**These plans are not of equal size**: {shares[0]:.1f} to {shares[-1]:.1f} % of the language model's "
        f"parameters {'become zero' if thinned else 'go'}. A rank here is one among unequal cuts."
    )


def achieved_by(record: Record) -> Achieved | None:
    """What the record's plan came to; None where it does not say and it does not follow from removed layers."""
    if record.plan is None:
        return None
    if record.plan.budget is not None:
        return record.plan.budget.achieved
    return achieved(record.model, record.plan.removed_layers) if record.kind == "layers" else None


def _width(word: str, pairs: list[tuple[int, int]]) -> str:
    """``heads 2–4 of 4``: key-value heads and MLP channels of the layers that were sliced."""
    kept, of = (sorted({pair[i] for pair in pairs}) for i in (0, 1))
    ends = [f"{found[0]}–{found[-1]}" if len(found) > 1 else str(found[0]) for found in (kept, of)]
    return f"{word} {ends[0]} of {ends[1]}"
