"""TAMP: Wanda with a budget for every linear module by its outputs' diversity, on the tokens that matter."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Le

from prunebench.errors import BadParameter, BudgetError, CalibrationError
from prunebench.layerwise import UNSTRUCTURED, LayerView, LayerwiseStrategy, Thinned, Thinner
from prunebench.layerwise.contract import Call, Need
from prunebench.strategy import PlanContext
from prunebench_baselines.amia import representative_tokens
from prunebench_baselines.diversity import DiversityScout, Module, diversity_terms
from prunebench_baselines.thinning import keep_others, lowest_of_rows, portion
from prunebench_baselines.wanda import wanda_scores

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TAMP", "weights_to_keep"]


@dataclass(frozen=True)
class TAMP(LayerwiseStrategy):
    """Zeroes weights as Wanda does, fewer in modules with more diverse outputs, by the tokens that stand for a sample.

    TAMP (Lee et al., arXiv 2504.09897, github.com/G-JWLee/TAMP).

    Diversity-aware sparsity. With c_g the mean cosine of two output tokens of group g (visual, audio, text) and c_gh
    that of a token of g and one of h, the score of a module is the mean over the calibration samples of the mean of
    1 − c_g and 1 − c_gh over the groups and pairs of groups that a sample has; for image and text this is a third of
    (1 − c_v) + (1 − c_l) + (1 − c_vl), for text alone 1 − c_l. Every module of n weights first keeps
    n (1 − min(1, s + `max_extra`)); the rest of the budget is shared in numbers of weights, not in shares of a module,
    in proportion to the scores, and what a full module cannot take goes to the others. Small modules therefore fill
    up first: with equal scores and s = 0.5, Llama-3-8B's k and v lose nothing, q and o 40 % and the MLP 54.3 %.

    Token selection (``amia``): the squared norms of a module's inputs are those of the tokens that
    `prunebench_baselines.amia.representative_tokens` picks for it from each sample, by the last token's attention and
    the module's outputs. Of every row the int(columns · s_module) weights with the smallest |W_ij| ‖x_j‖ become zero,
    and the next layer is shown what is left. What a row's whole number leaves over is not made up for: the number of
    zeros lies below the asked one by less than one per row; notes of the plan say by how many.

    ``variant=released_code`` differs: within a group only the positive cosines count; whole numbers of weights are
    rounded up, and what they come to beyond the budget is added once more instead of taken back (a wrong sign; as
    many weights as there are modules at most, twice); and all tokens are used, since ``--token_selection amia`` fails
    there as shipped: attention is only computed where the option's value contains "attention", which it may not. A
    sample without media has no score there (a mean of nothing); here it has that of its one group. Its N:M patterns
    fix every module's sparsity, so that nothing of the method's budgets is left: they are refused here. It takes its
    samples from one data set; ours are the run's. Equal tokens, for which its loop does not end, give one pick here.

    Args:
        max_extra: how far a module's sparsity may lie above the budget's.
        token_selection: ``amia`` as above, ``naive`` for all tokens as Wanda; ``auto`` is what the variant can do.
        variant: paper, or the released code.
    """

    name = "tamp"
    paper = "https://arxiv.org/abs/2504.09897"

    max_extra: Annotated[float, Ge(0), Le(1)] = 0.1
    token_selection: Literal["auto", "amia", "naive"] = "auto"
    variant: Literal["paper", "released_code"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern != UNSTRUCTURED:
            raise BadParameter(
                f"tamp: pattern={self.pattern} fixes the sparsity that tamp is there to choose: leave pattern out, or "
                f"use wanda -P pattern={self.pattern}"
            )
        if self.variant == "released_code" and self.token_selection == "amia":
            raise BadParameter(
                "tamp: the released code cannot run token_selection=amia (it never computes the attention): leave it "
                "out, or use variant=paper"
            )

    @property
    def selects_tokens(self) -> bool:
        return self.token_selection == "amia" or (self.token_selection == "auto" and self.variant == "paper")

    def scout(self, context: PlanContext) -> DiversityScout:
        return DiversityScout(self.variant, self.samples)

    def thinner(self, context: PlanContext, scout: Thinner | None) -> Thinner:
        assert isinstance(scout, DiversityScout)
        context.notes["diversity"] = _by_name(scout.scores)

        def warn(line: str) -> None:
            context.warnings.append(f"tamp: {line}")

        modules, sizes = list(scout.shapes), [math.prod(shape) for shape in scout.shapes.values()]
        kept = weights_to_keep(
            _complete(scout, warn), sizes, context.share, max_extra=self.max_extra, variant=self.variant
        )
        sparsities = {module: 1 - min(k, n) / n for module, k, n in zip(modules, kept, sizes, strict=True)}
        zeros = {module: portion(scout.shapes[module][1], sparsities[module]) for module in modules}
        made = sum(count * scout.shapes[module][0] for module, count in zeros.items())
        context.notes["zeros_below_budget"] = round(context.share * sum(sizes)) - made
        context.notes["sparsity"] = _by_name(sparsities)
        return (_PickingThinner if self.selects_tokens else _TAMPThinner)(zeros, context.notes)


@dataclass
class _TAMPThinner(Thinner):
    """Wanda's masks with a number of zeros per row for every module."""

    zeros: Mapping[Module, int]
    notes: dict[str, Any]
    needs: frozenset[Need] = frozenset({"squares"})

    def thin(self, layer: LayerView) -> Mapping[str, Thinned]:
        count = {name: self.zeros[layer.number, name] for name in layer.linears}
        return keep_others({name: lowest_of_rows(scores, count[name]) for name, scores in wanda_scores(layer)})


@dataclass
class _PickingThinner(_TAMPThinner):
    """The same with norms of the tokens that represent a sample."""

    needs: frozenset[Need] = frozenset({"squares", "attention"})
    watches: bool = True
    picked: int = 0
    tokens: int = 0

    def count(self, call: Call) -> Tensor:
        import torch

        where = f"layer {call.layer} {call.module}"
        if call.attention is None:
            raise CalibrationError(f"{where}: no attention to pick tokens by: choose -P token_selection=naive")
        total, number = torch.stack(diversity_terms(call.outputs, call.groups)).tolist()
        if not math.isfinite(total):
            raise CalibrationError(f"{where}: outputs that are not finite: load the model with --dtype float32")
        chosen = representative_tokens(call.outputs, call.attention, total / max(number, 1.0))
        self.picked += int(chosen.sum())
        self.tokens += len(chosen)
        self.notes["tokens_picked"] = round(self.picked / self.tokens, 4)
        return chosen.float()


def weights_to_keep(
    scores: Sequence[float],
    sizes: Sequence[int],
    share: float,
    *,
    max_extra: float = 0.1,
    variant: Literal["paper", "released_code"] = "paper",
) -> list[int]:
    """How many of its weights each module keeps: keep_i = min(n_i, n_i (1 − min(1, s + e)) + λ score_i), Σ_i as asked.

    Fractions are rounded by largest remainder, so that the sum is exact; modules without a score share equally what
    those with one leave. The released code rounds up, and adds what is then too much to the largest.

    Args:
        scores: of each module, not negative.
        sizes: numbers of weights n_i.
        share: s, of all weights that go.
        max_extra: e.
        variant: of the rounding.

    Raises:
        BudgetError: a share outside [0, 1), or a negative `max_extra`, with which the sum cannot be had.
    """
    n, weight = np.asarray(sizes, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    floors, target = n * (1 - min(1.0, share + max_extra)), int(n.sum()) - round(share * sum(sizes))
    if not 0 <= share < 1 or max_extra < 0:
        raise BudgetError(
            f"tamp: no module may lose more than {share + max_extra:.0%} of its weights, and {share:.0%} of all are to "
            "go: give --sparsity in [0, 1) and -P max_extra of at least 0"
        )
    if variant == "released_code":
        return _rounded_up(weight, n, floors, int(n.sum() * (1 - share)))
    keep, free = floors.copy(), np.ones(len(n), dtype=bool)
    while (rest := target - keep[~free].sum() - floors[free].sum()) > 0 and free.any():
        portions = np.where(free, weight, 0.0) if weight[free].sum() > 0 else free.astype(float)
        keep = np.where(free, floors + rest * portions / portions.sum(), n)
        if not (full := free & (keep >= n)).any():
            break
        keep, free = np.where(full, n, keep), free & ~full
    whole = np.floor(keep)
    first = np.argsort(whole - keep, kind="stable")  # the largest remainder first
    whole[first[: target - int(whole.sum())]] += 1
    return [int(k) for k in whole]


def _rounded_up(scores: np.ndarray, n: np.ndarray, floors: np.ndarray, target: int) -> list[int]:
    """As released: parts rounded up in every round, and the excess put on top of the largest module."""
    keep, scores, least = np.ceil(floors), scores.copy(), np.floor(floors)
    while keep.sum() < target and scores.sum() > 0:
        keep += np.ceil(scores / scores.sum() * (target - keep.sum()))
        scores[keep >= n] = 0
        keep = np.minimum(keep, n)
        excess = max(0.0, keep.sum() - target)
        for module in np.argsort(-keep, kind="stable") if excess else ():
            change = min(excess, keep[module] - least[module])
            keep[module] += change
            excess -= change
    return [int(k) for k in keep]


def _complete(scout: DiversityScout, warn: Callable[[str], None]) -> list[float]:
    """A score for every module; those whose outputs no sample shows in numbers (experts) have the mean of the others.

    Raises:
        CalibrationError: no module has a score.
    """
    if not scout.scores:
        raise CalibrationError(
            "tamp: no calibration sample has two tokens, so that no diversity is known: use longer samples"
        )
    mean = float(np.mean(list(scout.scores.values())))
    for layer, name in [module for module in scout.shapes if module not in scout.scores]:
        warn(f"layer {layer} {name} was given no two calibration tokens: its diversity is taken to be the mean")
    return [scout.scores.get(module, mean) for module in scout.shapes]


def _by_name(values: Mapping[Module, float]) -> dict[str, float]:
    """Mean over the layers of every module."""
    names = list(dict.fromkeys(name for _, name in values))
    return {name: round(float(np.mean([v for (_, own), v in values.items() if own == name])), 6) for name in names}
