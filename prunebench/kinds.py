"""Kinds of plans: what may be ranked with what. No torch here.

Plans of whole layers and of their parts say what they remove by layers. Two further kinds remove none: thinned plans
(``weights``, and N:M patterns such as ``2:4``) make weights zero and leave every shape, ``width`` makes matrices
smaller. Any other word counts as a kind that removes layers.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prunebench.budget import Achieved
    from prunebench.model_info import ModelInfo
    from prunebench.plan import Plan

__all__ = [
    "WEIGHTS",
    "WIDTH",
    "is_pattern",
    "is_thinned",
    "keeps_shapes",
    "n_of_m",
    "params_zeroed",
    "removes_layers",
    "share_words",
    "widths",
]

WEIGHTS = "weights"
WIDTH = "width"
_PATTERN = re.compile(r"([1-9]\d*):([1-9]\d*)")
_VALUES_ONLY = frozenset({"fold", "mask", "set_weights"})


def is_pattern(kind: str) -> bool:
    """``2:4``, ``4:8``: at most N weights of every M neighbours stay."""
    return _PATTERN.fullmatch(kind) is not None


def n_of_m(text: str) -> tuple[int, int] | None:
    """``"2:4"`` → (2, 4); None where the text is no such pattern, or not one by which a weight goes."""
    found = _PATTERN.fullmatch(text)
    return (int(found[1]), int(found[2])) if found and int(found[1]) < int(found[2]) else None


def is_thinned(kind: str) -> bool:
    """Whether plans of this kind make weights zero."""
    return kind == WEIGHTS or is_pattern(kind)


def removes_layers(kind: str) -> bool:
    """Whether plans of this kind are told by the layers, or parts of layers, that go."""
    return not is_thinned(kind) and kind != WIDTH


def keeps_shapes(plan: Plan) -> bool:
    """Whether only values change: every matrix has its old shape, and so the dense model's kernels run."""
    return all(op.op in _VALUES_ONLY for op in plan.ops)


def params_zeroed(got: Achieved | None) -> int:
    """How many parameters stay in place as zeros."""
    return got.params_zeroed if got is not None else 0


def widths(plan: Plan) -> dict[str, list[tuple[int, int]]]:
    """``heads`` (key-value heads) and ``channels`` (of MLPs) → (kept, of) for each layer where they were sliced."""
    found: dict[str, list[tuple[int, int]]] = {}
    for op in plan.ops:
        if op.op == "slice":
            for word, pair in op.widths().items():
                found.setdefault(word, []).append(pair)
    return found


def share_words(plan: Plan, model: ModelInfo | None = None) -> str:
    """What a plan that removes no layers comes to: ``49.8 % of the language model's parameters zeroed``."""
    if plan.budget is None:
        return "its size is not stated"
    got, parts = plan.budget.achieved, []
    if (zeroed := params_zeroed(got)) or is_thinned(plan.kind):
        of = f" = {100 * zeroed / model.lm_params:.1f} % of the language model's" if model is not None else ""
        parts.append(f"{zeroed:,} parameters zeroed{of}")
    if got.params_removed or not parts:
        parts.append(f"{100 * got.lm_params:.1f} % of the language model's parameters removed")
    for word, pairs in sorted(widths(plan).items()):
        kept, of_all = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
        parts.append(f"{word} {kept} of {of_all} in {len(pairs)} layers")
    return ", ".join(parts)
