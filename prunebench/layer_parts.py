"""The two parts of a decoder layer: what mixes tokens (``attention``) and what works on each by itself (``mlp``).

Families name and wire them differently: norms before a part, after it, or both; parts one after the other or side by
side; results alone or in a tuple. So a layer's own forward pass is run once, on a few numbers and with stand-ins for
its children, and the stand-ins see what goes where. A part can be left out where that shows that the residual stream
then passes by unchanged; a layer that is built otherwise has no parts as far as pruning goes.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prunebench.errors import PlanError
from prunebench.ops import PARTS, Part

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["LayerPart", "gives_tuple", "has_cache_index", "layer_parts", "need_part", "part_names"]

MLP_NAMES = ("mlp", "feed_forward", "feedforward", "block_sparse_moe", "moe", "ffn")
"""What families call the part that works on each token by itself."""


@dataclass(frozen=True)
class LayerPart:
    """One part of a layer.

    Attributes:
        child: name of the module in the layer.
        returns: 1 where it returns the states alone, n where it returns a tuple of n that begins with them.
        norms: names of the layer's modules that serve this part alone: on the way in, or on the way out.
    """

    child: str
    returns: int
    norms: tuple[str, ...] = ()

    @property
    def modules(self) -> tuple[str, ...]:
        """All that goes when the part goes."""
        return (self.child, *self.norms)


def has_cache_index(module: nn.Module) -> bool:
    """Whether it, or anything in it, knows a place in the key-value cache."""
    return any(isinstance(getattr(part, "layer_idx", None), int) for part in module.modules())


def layer_parts(layer: nn.Module) -> dict[Part, LayerPart]:
    """Both parts of a layer, or nothing where they cannot be told apart, or one of them is gone already.

    On meta tensors the wiring is looked at, but not whether the residual stream passes by unchanged.
    """
    trial = _tried(layer)
    if trial is None or not trial.passes:
        return {}
    return {part: trial.found(name) for part, name in zip(PARTS, trial.returns, strict=True)}


def gives_tuple(layer: nn.Module) -> bool:
    """Whether a layer returns its states in a tuple; False where its parts are not known."""
    trial = _tried(layer)
    return trial is not None and trial.in_tuple


def _tried(layer: nn.Module) -> _Trial | None:
    """A run that came to an end, with results of its parts as the layer takes them."""
    names = part_names(layer)
    for returns in itertools.product((2, 3, 1), (2, 1)) if names is not None else ():
        trial = _Trial(layer, dict(zip(names, returns, strict=True)))
        try:
            trial.run()
        except Exception:  # whatever a foreign forward pass makes of another result than it expects
            continue
        return trial
    return None


def need_part(layer: nn.Module, number: int, part: Part) -> LayerPart:
    """One part of a layer.

    Args:
        layer: the module.
        number: its original id, for the message.
        part: which.

    Raises:
        PlanError: the layer is built otherwise.
    """
    found = layer_parts(layer)
    if part not in found:
        raise PlanError(
            f"layer {number} ({type(layer).__name__}) has no {part} that can be left out alone: its residual stream "
            "does not pass by it unchanged, or its parts cannot be told apart; drop the whole layer"
        )
    return found[part]


def part_names(layer: nn.Module) -> tuple[str, str] | None:
    """Names of the children that are attention and MLP; None where there is not exactly one of each."""
    children = dict(layer.named_children())
    mlps = [name for name in MLP_NAMES if name in children]
    mixers = [name for name, child in children.items() if name not in mlps and has_cache_index(child)]
    return (mixers[0], mlps[0]) if len(mixers) == len(mlps) == 1 else None


@dataclass
class _Seen:
    """What a stand-in was given and gave; tensors are told apart by being the same object."""

    given: Any = None
    gave: Any = None
    calls: int = 0


@dataclass
class _Trial:
    """One run of a layer's forward pass with stand-ins; parts give zeros, norms give something else entirely.

    Attributes:
        layer: the layer; it is not touched.
        returns: children that are attention and MLP → what they return, as in `LayerPart`.
        seen: what each child was given and gave.
        passes: whether the states came out as they went in.
        in_tuple: whether they came out in a tuple.
    """

    layer: nn.Module
    returns: dict[str, int]
    seen: dict[str, _Seen] = field(default_factory=dict)
    passes: bool = False
    in_tuple: bool = False

    def run(self) -> None:
        """Any exception says that results are not taken in the way that `returns` says."""
        import torch

        layer, kind = self.layer, type(self.layer)
        clone = kind.__new__(kind)
        clone.__dict__.update(layer.__dict__)
        clone.__dict__["_modules"] = {name: self._stand_in(name, child) for name, child in layer.named_children()}
        states = self._states()
        with torch.no_grad():
            out = kind.forward(clone, states, **_required(kind.forward))
        self.in_tuple = isinstance(out, tuple)
        out = out[0] if self.in_tuple else out
        once = all(self.seen.setdefault(name, _Seen()).calls == 1 for name in self.returns)
        fits = isinstance(out, torch.Tensor) and out.shape == states.shape
        self.passes = once and fits and (out.is_meta or torch.equal(out, states))

    def found(self, name: str) -> LayerPart:
        """A part with the norms whose result it alone reads, and those that read its result."""
        mine = self.seen[name]
        others = [seen for other, seen in self.seen.items() if other != name]
        norms = []
        for other, seen in self.seen.items():
            if other in self.returns or seen.calls != 1:
                continue
            before = seen.gave is mine.given and sum(each.given is seen.gave for each in others) == 0
            if before or seen.given is mine.gave:
                norms.append(other)
        return LayerPart(name, self.returns[name], tuple(norms))

    def _states(self) -> Tensor:
        """Five rows, so that a tensor taken for a tuple of fewer is noticed."""
        import torch

        like = next((p for p in self.layer.parameters() if p.is_floating_point()), torch.zeros(1))
        vectors = (p.shape[0] for name, p in self.layer.named_parameters() if p.dim() == 1 and "norm" in name.lower())
        shape = (5, 3, next(vectors, 8))
        values = torch.arange(1, 1 + 15 * shape[2], dtype=torch.float32).reshape(shape).sin()
        return values.to(device=like.device, dtype=like.dtype)

    def _stand_in(self, name: str, child: nn.Module) -> Any:
        if name in self.returns:
            return _StandIn(child, lambda states: self._part(name, states))
        if "norm" in type(child).__name__.lower():
            return _StandIn(child, lambda states: self._norm(name, states))
        return _StandIn(child, lambda states: states)  # dropout and the like

    def _part(self, name: str, states: Tensor) -> Any:
        zeros, count = states.new_zeros(states.shape), self.returns[name]
        self._note(name, states, zeros)
        return zeros if count == 1 else (zeros, *[None] * (count - 1))

    def _norm(self, name: str, states: Tensor) -> Tensor:
        behind = any(states is self.seen[part].gave for part in self.returns if part in self.seen)
        result = states.clone() if behind else states * 2 + 1
        self._note(name, states, result)
        return result

    def _note(self, name: str, given: Tensor, gave: Tensor) -> None:
        seen = self.seen.setdefault(name, _Seen())
        seen.given, seen.gave, seen.calls = given, gave, seen.calls + 1


class _StandIn:
    """Called instead of a module; everything else is asked of the module."""

    def __init__(self, child: nn.Module, answer: Callable[[Any], Any]) -> None:
        self._child, self._answer = child, answer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        import torch

        values = (*args, kwargs.get("hidden_states"), *kwargs.values())
        return self._answer(next(value for value in values if isinstance(value, torch.Tensor)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._child, name)


def _required(forward: Any) -> dict[str, None]:
    """None for every argument behind the states that has no default."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = list(inspect.signature(forward).parameters.values())[2:]
    return {p.name: None for p in parameters if p.default is inspect.Parameter.empty and p.kind not in kinds}
