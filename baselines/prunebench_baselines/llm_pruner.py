"""LLM-Pruner: narrower layers, without the heads and MLP channels whose coupled weights matter least to the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from prunebench.bits import pack
from prunebench.errors import BadParameter, BudgetError
from prunebench.ops import Slice
from prunebench.strategy import PlanContext, Strategy
from prunebench_baselines.loss_driven import asked_of, check_samples, note_work
from prunebench_baselines.width_counts import Room, counts_for_params, counts_for_ratio

if TYPE_CHECKING:
    from prunebench.plan import Plan
    from prunebench.probing.groups import Couplings

__all__ = ["LLMPruner"]


@dataclass(frozen=True)
class LLMPruner(Strategy):
    """Takes out of each layer the head groups and MLP channels whose coupled weights matter least.

    LLM-Pruner (Ma et al., NeurIPS 2023, arXiv 2305.11627). A group is a key-value head with its query heads (rows of q,
    k and v, columns of o) or an MLP channel (rows of gate and up, a column of down); it is worth the sum over all its
    weights of ``taylor_first`` |w g|, ``taylor_second`` |w a w|, ``taylor_mix`` |w g − ½ w a w| (g the gradient of the
    answers' mean loss, a the mean over samples of its square), ``taylor_vectorize`` |Σ w g| per row, ``l2`` w² or
    ``l1`` |w|; ``random`` is the control. Within each layer the lowest go, and matrices become smaller.

    The default is first order, which the paper's method and the commands in its README use; the published script
    defaults to l2 where no importance is named. Head groups go whole, so layers of few key-value heads lose half of
    their attention or nothing; MLP channels take up the rest.

    Args:
        importance: what a weight counts.
        samples: calibration samples, the first ones with domains taking turns; not read by l2, l1 and random.
        protect_first, protect_last: how many layers at either end keep their widths (4 and 2 of 32 as in the README).
        ratio_of: ``decoder``: the budget is the share of the parameters of all decoder layers, so layers that are
            narrowed lose more than that. ``range``: it is the published ``pruning_ratio``, of the heads and of the
            channels of these layers (0.25 of 26 of LLaMA-7B's layers leaves 80.5 % of the model).
        channels_multiple: the number of channels that stay is a multiple of it; odd sizes can be slower than the dense
            model (the published code's issue 33).
        variant: ``paper``. Under ``released_code`` a query head counts for key-value head h mod n, and not for the one
            that it reads, as the published code adds up grouped-query attention (which heads leave together is right
            there too); the two differ in models with grouped queries alone. Its channel-wise mode with Taylor, which
            ends in NotImplementedError, and its mode that cuts the hidden size are not offered.
    """

    name = "llm_pruner"
    kind = "width"
    paper = "https://arxiv.org/abs/2305.11627"
    needs_model = True

    importance: Literal["taylor_first", "taylor_second", "taylor_mix", "taylor_vectorize", "l2", "l1", "random"] = (
        "taylor_first"
    )
    samples: int = 10
    protect_first: int = 4
    protect_last: int = 2
    ratio_of: Literal["decoder", "range"] = "decoder"
    channels_multiple: int = 1
    variant: Literal["paper", "released_code"] = "paper"

    def __post_init__(self) -> None:
        check_samples(self.name, self.samples)
        if self.protect_first < 0 or self.protect_last < 0:
            raise BadParameter(f"{self.name}: protect_first and protect_last must not be negative")
        if self.channels_multiple < 1:
            raise BadParameter(f"{self.name}: channels_multiple must be at least 1, got {self.channels_multiple}")
        # Frozen for everyone else: one draw of a control says little, a run makes several.
        object.__setattr__(self, "stochastic", self.importance == "random")

    @property
    def weights_only(self) -> bool:  # type: ignore[override]
        """Whether no sample is read."""
        return not self.importance.startswith("taylor")

    def plan(self, context: PlanContext) -> Plan:
        n_layers, share = context.model.n_layers, context.share
        layers = range(self.protect_first, n_layers - self.protect_last)
        if share == 0.0:
            return self.build_plan(context)
        if not layers:
            raise BudgetError(
                f"{self.name}: protect_first={self.protect_first} and protect_last={self.protect_last} leave none of "
                f"{n_layers} layers to narrow: lower them with -P {self.name}.protect_first=…"
            )
        groups = context.need_probe().couplings(layers)
        gone = self._counts(context, groups, share)
        values = self._importance(context, groups)
        ops, tensors, widths = [], {}, {}
        for layer, counts in gone.items():
            kept: dict[str, tuple[int, int] | None] = {"heads": None, "channels": None}
            params = 0
            for width, count in zip(kept, counts, strict=True):
                if count:
                    coupling = groups[layer][width]  # type: ignore[index]
                    tensors[f"slice.{layer}.{width}"] = pack(_stay(values[layer][width], count))
                    kept[width] = (coupling.groups - count, coupling.groups)
                    params += count * coupling.params_per_group
            if params:
                ops.append(Slice(layer=layer, tensors=f"slice.{layer}", params_removed=params, **kept))
                widths[str(layer)] = {width: list(pair) for width, pair in kept.items() if pair is not None}
        context.notes["widths"] = widths
        protected = sorted(set(range(n_layers)) - set(layers))
        return self.build_plan(context, ops=ops, tensors=tensors, protected=protected, selection="lowest of each layer")

    def _counts(self, context: PlanContext, groups: Couplings, share: float) -> dict[int, tuple[int, int]]:
        """Head groups and channels that go, by layer.

        Raises:
            BudgetError: these layers do not hold as much.
        """
        rooms = {
            layer: Room(
                heads=kinds["heads"].groups,
                head_params=kinds["heads"].params_per_group,
                head_rows=min(member.width for member in kinds["heads"].members),
                channels=kinds["channels"].groups,
                channel_params=kinds["channels"].params_per_group,
                multiple=self.channels_multiple,
            )
            for layer, kinds in groups.items()
        }
        if self.ratio_of == "range":
            return {layer: counts_for_ratio(room, share) for layer, room in rooms.items()}
        whole = sum(layer.params for layer in context.model.layers)
        most = sum(room.most for room in rooms.values())
        if share * whole > most:
            raise BudgetError(
                f"{self.name}: {share:.4g} of the decoder layers' parameters were asked for, and heads and channels of "
                f"layers {min(groups)}..{max(groups)} hold {int(1e4 * most / whole) / 1e4:.4g} of them: ask for less, "
                f"or lower protect_first ({self.protect_first}) or protect_last ({self.protect_last})"
                + (f" or channels_multiple ({self.channels_multiple})" if self.channels_multiple > 1 else "")
            )
        return counts_for_params(rooms, share * whole)

    def _importance(self, context: PlanContext, groups: Couplings) -> Mapping[int, Mapping[str, Any]]:
        """Layer → ``heads`` and ``channels`` → one number for each."""
        if self.importance == "random":
            rng = np.random.default_rng(context.seed)
            return {
                layer: {width: rng.random(coupling.groups) for width, coupling in kinds.items()}
                for layer, kinds in groups.items()
            }
        released = self.variant == "released_code"
        if self.weights_only:
            return context.need_probe().group_importance(self.importance, list(groups), interleaved=released)
        probe = asked_of(context, self.name, self.samples)
        if context.model.dtype == "bfloat16":
            context.warnings.append(f"{self.name}: gradients in bfloat16 have 3 digits; --dtype float32 is safer")
        found = probe.group_importance(self.importance, list(groups), interleaved=released)
        note_work(context, self.samples)
        if blind := [layer for layer, kinds in found.items() if not any(np.any(each) for each in kinds.values())]:
            context.warnings.append(
                f"{self.name}: no gradient reached layers {blind}, so which of their groups go is arbitrary: calibrate "
                "on samples that pass them (cross-attention layers run with media alone), or protect them"
            )
        return found


def _stay(values: np.ndarray, count: int) -> np.ndarray:
    """(groups,) bool: all but the `count` lowest; of equal ones the first goes."""
    stay = np.ones(len(values), dtype=bool)
    stay[np.argsort(values, kind="stable")[:count]] = False
    return stay
