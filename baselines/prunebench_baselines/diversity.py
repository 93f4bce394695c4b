"""Diversity of a linear module's output tokens within and between modalities, and the scout that measures it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from prunebench.errors import CalibrationError
from prunebench.layerwise.contract import Call, LayerView, Thinned, Thinner

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CHUNK", "MEDIA", "DiversityScout", "Module", "diversity_terms", "mean_cosines", "mean_positive_cosines"]

CHUNK = 1 << 22
"""Numbers of a working matrix that are held at once, beyond one row."""

MEDIA = ("visual", "audio")
"""Token groups that the released code tells apart; whatever else there is, it takes for text."""

Module = tuple[int, str]
"""Layer and path in the layer."""


def mean_cosines(outputs: Tensor, groups: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean pairwise cosine within every token group and between every two, and which of these have a pair at all.

    Without looking at pairs: with u the tokens scaled to length 1, s_g the sum and q_g the summed squared lengths of
    group g, the mean over the pairs of g is (‖s_g‖² − q_g) / (T_g (T_g − 1)), and that over the pairs of g and h is
    s_g · s_h / (T_g T_h): O(T d), sums in float64. A token of zeros is at right angles to every other.

    Args:
        outputs: (T, d) of any number format.
        groups: name → (T,) bool, disjoint.

    Returns:
        (G, G) float64, of use in the upper triangle with the diagonal, and (G, G) bool, True there where a pair is.
    """
    import torch

    members = torch.stack([mask.to(outputs.device) for mask in groups.values()]).double()
    sums = torch.zeros(len(members), outputs.shape[1], dtype=torch.float64, device=outputs.device)
    lengths = torch.zeros(len(members), dtype=torch.float64, device=outputs.device)
    step = max(1, CHUNK // outputs.shape[1])
    for start in range(0, len(outputs), step):
        part, chunk = members[:, start : start + step], _units(outputs[start : start + step].double())
        sums += part @ chunk
        lengths += part @ chunk.square().sum(1)
    counts = members.sum(1)
    pairs = torch.outer(counts, counts) - counts.diag()
    means = (sums @ sums.T - lengths.diag()) / pairs.clamp(min=1)
    return means, (pairs > 0).triu()


def mean_positive_cosines(outputs: Tensor, groups: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """As `mean_cosines`, but within a group only the positive cosines count; no positive one is a mean of 0.

    Which cosines are positive only the pairs can tell: O(T² d), a part of the rows of the T × T matrix at a time.
    """
    import torch

    means, present = mean_cosines(outputs, groups)
    for place, mask in enumerate(groups.values()):
        units = _units(outputs[mask.to(outputs.device)].float())
        total = torch.zeros((), dtype=torch.float64, device=outputs.device)
        count = torch.zeros((), dtype=torch.float64, device=outputs.device)
        step = max(1, CHUNK // max(1, len(units)))
        for start in range(0, len(units), step):
            upper = (units[start : start + step] @ units[start:].T).triu(1).clamp(min=0)
            total += upper.sum(dtype=torch.float64)
            count += upper.count_nonzero()
        means[place, place] = total / count.clamp(min=1)
    return means, present


def diversity_terms(outputs: Tensor, groups: Mapping[str, Tensor], variant: str = "paper") -> tuple[Tensor, Tensor]:
    """Sum and number of the terms 1 − (mean pairwise cosine), one for each group and each two groups that have a pair.

    Args:
        outputs: (T, d).
        groups: name → (T,) bool, disjoint.
        variant: ``paper`` takes plain means, ``released_code`` leaves negative cosines within a group out.

    Returns:
        Two float64 numbers on the device of `outputs`; nothing is waited for.
    """
    plain = variant == "paper"
    means, present = mean_cosines(outputs, groups) if plain else mean_positive_cosines(outputs, _media_and_rest(groups))
    # Rounding puts the mean of equal tokens a little above 1: no diversity is no diversity.
    return ((1 - means).clamp(min=0) * present).sum(), present.sum().double()


@dataclass
class DiversityScout(Thinner):
    """The diversity of every linear module's outputs in the dense model: mean over samples of the mean over terms.

    It knows nothing of a budget, so that plans for several budgets share one.

    Args:
        variant: of the mean cosine, see `diversity_terms`.
        samples: how many are looked at; scouts that look at other samples are not equal.

    Attributes:
        scores: layer and module → diversity in [0, 2]; without the modules to which no sample brought two tokens.
        shapes: layer and module → (out, in), of all modules.
    """

    variant: Literal["paper", "released_code"] = "paper"
    samples: int = 128
    scores: dict[Module, float] = field(default_factory=dict, compare=False)
    shapes: dict[Module, tuple[int, int]] = field(default_factory=dict, compare=False)
    _sums: dict[str, list[Tensor]] = field(default_factory=dict, compare=False, repr=False)

    sequential = False
    watches = True

    def count(self, call: Call) -> None:
        import torch

        total, number = diversity_terms(call.outputs, call.groups, self.variant)
        mean = torch.where(number > 0, total / number.clamp(min=1), 0.0)
        before = self._sums.get(call.module)
        seen = (number > 0).double()
        self._sums[call.module] = [mean, seen] if before is None else [before[0] + mean, before[1] + seen]

    def thin(self, layer: LayerView) -> Mapping[str, Thinned]:
        """Finishes the scores of a layer; nothing is thinned.

        Raises:
            CalibrationError: outputs of a module are not finite.
        """
        for name, view in layer.linears.items():
            self.shapes[layer.number, name] = tuple(view.weight.shape)
            total, seen = (float(value) for value in self._sums.get(name, (0.0, 0.0)))
            if not math.isfinite(total):
                raise CalibrationError(
                    f"layer {layer.number} {name}: outputs that are not finite: load the model with --dtype float32"
                )
            if seen:
                self.scores[layer.number, name] = total / seen
        self._sums.clear()
        return {}


def _units(rows: Tensor) -> Tensor:
    """Rows scaled to length 1; a row of zeros stays one."""
    lengths = rows.norm(dim=1, keepdim=True)
    return rows / lengths.masked_fill(lengths == 0, 1)


def _media_and_rest(groups: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Visual, audio, and one group of all other tokens."""
    kept = {name: mask for name, mask in groups.items() if name in MEDIA}
    for name, mask in groups.items():
        if name not in MEDIA:
            kept["rest"] = kept["rest"] | mask if "rest" in kept else mask
    return kept
