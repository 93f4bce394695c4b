"""How well a recovery went and what it took, in one line."""

from __future__ import annotations

from prunebench.plan import Plan

__all__ = ["outcome"]


def outcome(plan: Plan) -> str:
    """``tune: held-out answer loss 0.704 → 0.326; 9 steps, 2,312 tokens, 2.1 s``; empty where nothing was recovered."""
    notes = plan.provenance.notes.get("recovery") if plan.provenance is not None else None
    cost = plan.cost.recovery
    if not notes or cost is None:
        return ""
    if "mean_square_error" in notes:
        found = notes["mean_square_error"]
        words = [f"layers {run} {error['dropped']:.3g} → {error['folded']:.3g}" for run, error in found.items()]
        what = f"mean square error of {', '.join(words)}" if words else ""
    elif "replaced" in notes:
        after = notes["held_out_mse_after"]
        words = [
            f"layers {run} {after[f'{run} dropped']:.3g} → {after[run]:.3g}"
            for run in notes["replaced"]
            if run in after
        ]
        what = f"held-out mean square error of {', '.join(words)}" if words else ""
    else:
        before, after = (notes.get(f"held_out_{when}", {}).get("answer_loss") for when in ("before", "after"))
        what = f"held-out answer loss {before:.3g} → {after:.3g}" if before is not None and after is not None else ""
    steps = f"{notes['steps']} steps, " if "steps" in notes else ""
    spent = f"{steps}{cost.tokens:,} tokens, {cost.seconds:.1f} s"
    return f"{notes['method']}: {what}; {spent}" if what else f"{notes['method']}: {spent}"
