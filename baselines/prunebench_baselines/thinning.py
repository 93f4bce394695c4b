"""Which weights go: the lowest scores of a row, of groups of neighbours, or of several matrices together.

Scores are float32, not negative; the counts are exact. Of equal scores those go that stand earlier: in a row the
columns from the left, in a matrix row after row, of several matrices the first one's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunebench.errors import CalibrationError, PlanError
from prunebench.layerwise import LayerView, Thinned

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Cut",
    "check_finite",
    "check_widths",
    "keep_others",
    "lowest_of_all",
    "lowest_of_groups",
    "lowest_of_rows",
    "portion",
    "size_of",
]

LOW_BITS = 16
"""Of a float32's 32 bits; scores are counted by the upper ones first, then by the lower ones of one bin."""


def portion(count: int, share: float) -> int:
    """How many of `count` weights a share of them is, rounded down.

    The small term keeps 0.29 · 100 = 28.999999999999996 from being taken for 28.
    """
    return min(count, math.floor(count * share + 1e-6))


def check_widths(layer: LayerView, groups: tuple[int, int] | None) -> None:
    """Refuse a layer with a module whose input width M of a pattern N:M does not divide.

    Raises:
        PlanError: naming the module.
    """
    for name, view in layer.linears.items() if groups else ():
        if (columns := view.weight.shape[1]) % groups[1]:
            raise PlanError(
                f"layer {layer.number} {name} has {columns} input columns, which {groups[1]} does not divide: "
                "choose -P pattern=N:M with an M that does, or -P pattern=unstructured"
            )


def check_finite(scores: Tensor, layer: LayerView, module: str) -> Tensor:
    """The scores.

    Raises:
        CalibrationError: one is not a finite number, naming the module.
    """
    import torch

    if not bool(torch.isfinite(scores).all()):
        raise CalibrationError(
            f"layer {layer.number} {module}: weights or what comes in are not finite numbers: "
            "try --dtype float32, or look at the weights"
        )
    return scores


def size_of(layer: LayerView, module: str) -> Tensor:
    """|W| of a module, (out, in) float32, in memory of its own.

    Raises:
        CalibrationError: a weight that is not finite.
    """
    return check_finite(layer.linears[module].weight.detach().float().abs(), layer, module)


def keep_others(gone: Mapping[str, Tensor]) -> dict[str, Thinned]:
    """What becomes of modules whose weights go where `gone` is True; modules of which none goes are left out."""
    return {name: Thinned(keep=~mask) for name, mask in gone.items() if bool(mask.any())}


def lowest_of_rows(scores: Tensor, count: int) -> Tensor:
    """(rows, columns) bool, True for the `count` lowest scores of every row."""
    import torch

    if count <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if count >= scores.shape[1]:
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(count, dim=1, keepdim=True).values
    below, equal = scores < threshold, scores == threshold
    left = count - below.sum(1, keepdim=True)
    return below | (equal & (equal.cumsum(1) <= left))


def lowest_of_groups(scores: Tensor, stay: int, of: int) -> Tensor:
    """(rows, columns) bool, True for all but the `stay` highest of every `of` neighbours in a row.

    Args:
        scores: (rows, columns), columns divided by `of`.
        stay: N of a pattern N:M.
        of: M of a pattern N:M.
    """
    import torch

    groups = scores.reshape(scores.shape[0], -1, of)
    place = torch.arange(of, device=scores.device)
    # How many of its group go before it; M passes over the scores are cheaper than sorting many tiny groups.
    before = torch.zeros(groups.shape, dtype=torch.int16, device=scores.device)
    for other in range(of):
        rival = groups[..., other : other + 1]
        before += (rival < groups) | ((rival == groups) & (other < place))
    return (before < of - stay).reshape(scores.shape)


def lowest_of_all(scores: Sequence[Tensor], count: int) -> list[Tensor]:
    """Bool tensors of the same shapes, True for the `count` lowest of all scores together."""
    found = Cut.at(scores, count)
    return [found.below(score, index) for index, score in enumerate(scores)]


@dataclass(frozen=True)
class Cut:
    """The one score up to which all go, of several tensors together; masks are made of it one tensor at a time.

    Attributes:
        bits: of that score, as a float32.
        equal: of each tensor, how many of the scores that are equal to it go.
    """

    bits: int
    equal: tuple[int, ...]

    @classmethod
    def at(cls, scores: Sequence[Tensor], count: int) -> Cut:
        """The cut below which `count` scores lie; signs are not looked at.

        Exact without sorting or joining the tensors: a float that is not negative is ordered as its bits are, so two
        rounds of counting, by the upper and by the lower half of the bits, find the score.
        """
        if count <= 0:
            return cls(0, (0,) * len(scores))
        if count >= sum(score.numel() for score in scores):
            return cls(1 << 31, (0,) * len(scores))

        def lower_half(score: Tensor) -> Tensor:
            bits = _bits(score)
            return bits[bits >> LOW_BITS == upper] & ((1 << LOW_BITS) - 1)

        upper, left = _bin((_bits(score) >> LOW_BITS for score in scores), count)
        lower, left = _bin((lower_half(score) for score in scores), left)
        bits, equal = (upper << LOW_BITS) | lower, []
        for score in scores:
            equal.append(min(left, int((_bits(score) == bits).sum())))
            left -= equal[-1]
        return cls(bits, tuple(equal))

    def below(self, score: Tensor, index: int) -> Tensor:
        """Bool of the tensor's shape, True for those of its scores that go; `index` is its place among them."""
        import torch

        if self.bits >= 1 << 31:
            return torch.ones_like(score, dtype=torch.bool)
        bits = _bits(score)
        gone = bits < self.bits
        if self.equal[index]:
            equal = (bits == self.bits).flatten()
            gone |= (equal & (equal.cumsum(0) <= self.equal[index])).reshape(gone.shape)
        return gone


def _bits(score: Tensor) -> Tensor:
    import torch

    return score.detach().float().abs().contiguous().view(torch.int32)


def _bin(numbers: Iterable[Tensor], count: int) -> tuple[int, int]:
    """The bin in which the `count`-th smallest number lies, and how many of that bin belong to the `count` smallest."""
    import torch

    total = torch.zeros(1 << LOW_BITS, dtype=torch.int64)
    for each in numbers:
        total += torch.bincount(each.flatten(), minlength=1 << LOW_BITS).cpu()
    reached = total.cumsum(0)
    place = int(torch.searchsorted(reached, count))
    return place, count - (int(reached[place - 1]) if place else 0)
