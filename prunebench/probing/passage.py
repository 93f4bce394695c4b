"""Running part of a model through its own forward pass: layers in front are skipped, some are left out.

The decoder prepares masks, positions and rotary embeddings by itself and adds to the hidden states what it adds between
layers; only the layers' own forward passes are replaced for the length of one call, by functions that pass on the
hidden state, or put a kept one in its place. So every family comes out as it would with the layers really gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from prunebench.errors import CalibrationError
from prunebench.layer_parts import LayerPart, gives_tuple, need_part
from prunebench.probing.units import Left, whole

if TYPE_CHECKING:
    from torch import Tensor, nn

    from prunebench.adapter import DecoderInputs, LoadedModel

__all__ = ["Passage", "replaced"]


class _Reached(Exception):
    """The last boundary that is of interest was reached."""


class Passage:
    """Runs a model from a boundary on; boundary b is the input of layer b.

    Args:
        loaded: the model; its layers are looked up at every call.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self._shapes: dict[type, int] = {}  # what a kind of layer returns: 0 a tensor, n a tuple of n
        self._parts: dict[tuple[int, str], LayerPart] = {}

    def logits(
        self, inputs: DecoderInputs, keep: int, *, start: int = 0, state: Tensor | None = None, left: Left | None = None
    ) -> Tensor:
        """Logits (batch, keep, vocabulary) of the last `keep` columns.

        Args:
            inputs: the decoder's inputs.
            keep: columns.
            start: layers in front of this one do not run.
            state: (batch, tokens, hidden) what goes into layer `start`; None where `start` is 0.
            left: what is left out; nothing in front of `start`.
        """
        with replaced(self._changes(start, state, left or {}, {}, None)):
            return self.loaded.adapter.forward(self.loaded, inputs, logits_to_keep=keep)

    def states(
        self,
        inputs: DecoderInputs,
        boundaries: Sequence[int],
        *,
        start: int = 0,
        state: Tensor | None = None,
        left: Left | None = None,
    ) -> dict[int, Tensor]:
        """What goes into the layers `boundaries` (all behind `start`, before the end); the pass stops at the last."""
        found: dict[int, Tensor] = dict.fromkeys(boundaries)  # type: ignore[arg-type]
        with replaced(self._changes(start, state, left or {}, found, max(boundaries))), suppress(_Reached):
            self.loaded.adapter.forward(self.loaded, inputs, logits_to_keep=1)
        return found

    def through(self, inputs: DecoderInputs, layer: int, state: Tensor | None) -> Tensor | None:
        """Run one layer on `state` (None: the inputs' own, for layer 0); what goes into the next, None behind the last.

        Raises:
            CalibrationError: the decoder itself passes over one of the two layers on these inputs.
        """
        if layer + 1 >= len(self.loaded.layers):
            self.logits(inputs, 1, start=layer, state=state)
            return None
        found = self.states(inputs, [layer + 1], start=layer, state=state)[layer + 1]
        if found is None:
            raise CalibrationError(
                f"the decoder runs no layer {layer + 1} on these samples: calibrate on samples that all layers work on"
            )
        return found

    def cost(self, start: int, stop: int, left: Left) -> float:
        """Layers that run between two boundaries."""
        gone = sum(len(parts) / 2 for layer, parts in left.items() if start <= layer < stop)
        return max(0, stop - start) - gone

    def part(self, layer: int, part: Any) -> LayerPart:
        """A part of a layer of the dense model.

        Raises:
            PlanError: it cannot be told apart.
        """
        if (layer, part) not in self._parts:
            self._parts[layer, part] = need_part(self.loaded.layers[layer], layer, part)
        return self._parts[layer, part]

    def _changes(
        self, start: int, state: Tensor | None, left: Left, found: dict[int, Tensor], last: int | None
    ) -> list[tuple[nn.Module, Callable]]:
        """Which module gets which forward pass."""
        changes: list[tuple[nn.Module, Callable]] = []
        for number, layer in enumerate(self.loaded.layers):
            parts = left.get(number, frozenset())
            runs = number >= start and not whole(parts)
            given = state if number == start else None
            changes.append((layer, self._layer(number, layer, runs, given, found, last)))
            if runs and parts:
                changes += self._silenced(number, layer, parts)
        return changes

    def _layer(
        self,
        number: int,
        layer: nn.Module,
        runs: bool,
        given: Tensor | None,
        found: dict[int, Tensor],
        last: int | None,
    ) -> Callable:
        own = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            if given is not None:
                hidden = given
                args, kwargs = _with(hidden, args, kwargs)
            if number in found:
                found[number] = hidden
            if number == last:
                raise _Reached
            if not runs:
                return self._alike(hidden, layer)
            output = own(*args, **kwargs)
            self._shapes[type(layer)] = len(output) if isinstance(output, tuple) else 0
            return output

        return forward

    def _alike(self, hidden: Tensor, layer: nn.Module) -> Any:
        """The hidden state as layers of this kind return it; before any has run, as its code says."""
        shape = self._shapes.get(type(layer), next(iter(self._shapes.values()), None))
        shape = int(gives_tuple(layer)) if shape is None else shape
        return (hidden, *[None] * (shape - 1)) if shape else hidden

    def _silenced(self, number: int, layer: nn.Module, parts: Iterable[str]) -> Iterator[tuple[nn.Module, Callable]]:
        """The part gives zeros, and the norms that serve it alone do nothing: the residual stream passes by."""
        for name in parts:
            found = self.part(number, name)
            yield getattr(layer, found.child), _nothing(found.returns)
            for norm in found.norms:
                yield getattr(layer, norm), _first_tensor


@contextmanager
def replaced(changes: Iterable[tuple[nn.Module, Callable]]) -> Iterator[None]:
    """Other forward passes of modules for the length of a ``with`` block; as before afterwards, whatever happens."""
    missing, before = object(), []
    try:
        for module, forward in changes:
            before.append((module, vars(module).get("forward", missing)))
            module.forward = forward  # type: ignore[method-assign]
        yield
    finally:
        for module, own in reversed(before):
            if own is missing:
                vars(module).pop("forward", None)
            else:  # placed by accelerate, for one
                module.forward = own


def _with(hidden: Tensor, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})


def _nothing(returns: int) -> Callable:
    def forward(*args: Any, **kwargs: Any) -> Any:
        import torch

        zeros = torch.zeros_like(_first_tensor(*args, **kwargs))
        return zeros if returns == 1 else (zeros, *[None] * (returns - 1))

    return forward


def _first_tensor(*args: Any, **kwargs: Any) -> Tensor:
    return args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None))
