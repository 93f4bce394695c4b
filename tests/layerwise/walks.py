"""Thinners that record what they are shown, and a second way to what they should have been shown."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from prunebench import Budget, Plan
from prunebench.adapter import DecoderInputs
from prunebench.layerwise import LayerwiseStrategy, Thinned, Thinner
from prunebench.layerwise.held import Material, Room
from prunebench.layerwise.sweep import sweep
from prunebench.layerwise.walker import Walker
from prunebench.probing import Probe
from prunebench.strategy import PlanContext

__all__ = [
    "Recorder",
    "RowWise",
    "Smallest",
    "alone",
    "context_for",
    "layers_that_run",
    "plan_below",
    "rows_by_hand",
    "sums_by_hand",
    "walked",
]


class Recorder(Thinner):
    """Keeps a copy of every view; thins nothing."""

    def __init__(self, needs: Sequence[str] = ("squares", "hessian"), average: str = "tokens") -> None:
        self.needs, self.average, self.sequential = frozenset(needs), average, False
        self.views: dict[tuple[int, str], Any] = {}

    def thin(self, layer):
        for name, view in layer.linears.items():
            copies = [None if t is None else t.clone() for t in (view.squares, view.hessian)]
            self.views[layer.number, name] = (*copies, view.total)
        return {}


class RowWise(Recorder):
    """Zeroes in each row the share of least |W| √squares; keeps what it was shown."""

    def __init__(self, share: float, sequential: bool = True, needs: Sequence[str] = ("squares",)) -> None:
        super().__init__(needs)
        self.share, self.sequential = share, sequential

    def thin(self, layer):
        super().thin(layer)
        return {name: Thinned(self.keep(view)) for name, view in layer.linears.items()}

    def keep(self, view):
        sizes = view.weight.abs().double() * (1.0 if view.squares is None else view.squares.sqrt())
        count = int(self.share * sizes.shape[1] + 1e-9)
        gone = sizes.argsort(dim=1, stable=True)[:, :count]
        return torch.ones_like(sizes, dtype=torch.bool).scatter_(1, gone, False)


@dataclass(frozen=True)
class Smallest(LayerwiseStrategy):
    """score = |W| √squares"""

    name = "smallest"
    sequential: bool = True
    made: list = field(default_factory=list, compare=False, repr=False)

    def params(self):
        return {"sequential": self.sequential, "pattern": self.pattern}

    def thinner(self, context, scout):
        self.made.append(RowWise(context.share, self.sequential))
        return self.made[-1]


def context_for(loaded, samples, budget=0.5, **probe: Any) -> PlanContext:
    budget = budget if isinstance(budget, Budget) else Budget(value=budget)
    return PlanContext(loaded.info, budget, probe=Probe(loaded, samples, **probe))


def walked(probe: Probe, *thinners: Thinner, batches=None) -> list[Walker]:
    """The walkers of these thinners after one sweep; what any of them raised is raised."""
    walkers = [Walker(thinner) for thinner in thinners]
    with torch.inference_mode():
        made = list(probe.batches()) if batches is None else batches
        material = Material(made, probe.loaded.device, Room(probe.memory))
    sweep(probe, material, walkers)
    for walker in walkers:
        if walker.error is not None:
            raise walker.error
    return walkers


def plan_below(loaded, walker: Walker, number: int) -> Plan:
    """What a walker did to the layers in front of one."""
    ops = [op for op in walker.ops if op.layer < number]
    names = [name for name in walker.tensors if any(name.startswith(f"{op.tensors}.") for op in ops)]
    return Plan.of(loaded.info, ops, {name: walker.tensors[name] for name in names})


def alone(inputs: DecoderInputs) -> list[DecoderInputs]:
    """Each row of a batch by itself, without its padding."""
    found = []
    for row, mask in enumerate(inputs.attention_mask.bool()):
        extra = {}
        if "position_ids" in inputs.extra:
            extra["position_ids"] = inputs.extra["position_ids"][..., row, :][..., mask].unsqueeze(-2)
        found.append(
            DecoderInputs(
                inputs.embeds[row, mask][None],
                torch.ones(1, int(mask.sum()), dtype=torch.long),
                {name: group[row, mask][None] for name, group in inputs.groups.items()},
                extra,
            )
        )
    return found


def rows_by_hand(loaded, each: Sequence[DecoderInputs]) -> list[dict[tuple[int, str], tuple[Any, Any]]]:
    """For each of these inputs: (layer, module) → (inputs (T, in), outputs (T, out)), from whole forward passes."""
    found = []
    for inputs in each:
        seen: dict[tuple[int, str], tuple[Any, Any]] = {}
        handles = []
        for number, layer in enumerate(loaded.layers):
            for name, module in layer.named_modules():
                if isinstance(module, nn.Linear):

                    def see(_module, args, output, key=(number, name), seen=seen):
                        seen[key] = (args[0].flatten(0, -2), output.flatten(0, -2))

                    handles.append(module.register_forward_hook(see))
        with torch.inference_mode():
            loaded.adapter.forward(loaded, inputs, logits_to_keep=1)
        for handle in handles:
            handle.remove()
        found.append(seen)
    return found


def sums_by_hand(samples, key, average="tokens"):
    """(Σ a x², Σ a x xᵀ, Σ a) in float64 over what `rows_by_hand` gave."""
    squares, hessian, total = 0.0, 0.0, 0.0
    for seen in samples:
        x = seen[key][0].double()
        a = 1.0 if average == "tokens" else 1.0 / len(x)
        squares, hessian, total = squares + a * (x**2).sum(0), hessian + a * x.T @ x, total + a * len(x)
    return squares, hessian, total


@contextmanager
def layers_that_run(loaded):
    """A list that grows by one for each attention that really runs."""
    ran: list[int] = []
    handles = [
        layer.self_attn.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, layer in enumerate(loaded.layers)
    ]
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()
