"""What single decoder layers are given and give back in one pass of the model's own forward.

A replacement has to be fed exactly what the layer that it stands in for was fed: masks, positions, rotary embeddings
and whatever else a family hands to its layers. So nothing of it is rebuilt here: hooks note it while the model runs,
and the pass is stopped behind the last layer that is of interest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from prunebench.adapter import DecoderInputs, LoadedModel

__all__ = ["Call", "Passage", "first", "run_to"]


@dataclass(frozen=True)
class Call:
    """How a layer was called.

    Attributes:
        hidden: (batch, tokens, hidden) its input.
        args: further positional arguments.
        kwargs: keyword arguments without the input.
    """

    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def on(self, layer: nn.Module, hidden: Tensor | None = None, **changes: Any) -> Tensor:
        """What `layer` makes of the same call, with another input or other keyword arguments where given."""
        return first(layer(self.hidden if hidden is None else hidden, *self.args, **{**self.kwargs, **changes}))


@dataclass
class Passage:
    """One pass: layer id → how it was called, and what it gave, before any final norm; and the watched modules."""

    calls: dict[int, Call] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)
    inner: dict[int, Tensor] = field(default_factory=dict)


class _Reached(Exception):
    """The last layer of interest has run."""


def run_to(
    loaded: LoadedModel,
    inputs: DecoderInputs,
    calls: Iterable[int],
    outputs: Iterable[int],
    inner: Mapping[int, nn.Module] | None = None,
) -> Passage:
    """Run the model on `inputs`, without gradients, as far as needed.

    Args:
        loaded: the dense model.
        inputs: one batch.
        calls: layers whose call is noted.
        outputs: layers whose output is noted.
        inner: layer id → a module in it whose output is noted.
    """
    import torch

    passage, handles = Passage(), []
    calls, outputs, inner = set(calls), set(outputs), dict(inner or {})
    last = max([*calls, *outputs, *inner])

    def before(layer: int) -> Any:
        def note(_module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
            rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            hidden = args[0] if args else kwargs["hidden_states"]
            passage.calls[layer] = Call(hidden.detach(), tuple(args[1:]), rest)

        return note

    def after(layer: int) -> Any:
        def note(_module: Any, _args: tuple, output: Any) -> None:
            if layer in outputs:
                passage.outputs[layer] = first(output).detach()
            if layer == last:
                raise _Reached

        return note

    def inside(layer: int) -> Any:
        def note(_module: Any, _args: tuple, output: Any) -> None:
            passage.inner[layer] = first(output).detach()

        return note

    handles += [loaded.layers[layer].register_forward_pre_hook(before(layer), with_kwargs=True) for layer in calls]
    handles += [loaded.layers[layer].register_forward_hook(after(layer)) for layer in outputs | {last}]
    handles += [module.register_forward_hook(inside(layer)) for layer, module in inner.items()]
    try:
        with torch.no_grad():
            loaded.adapter.forward(loaded, inputs, logits_to_keep=1)
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return passage


def first(output: Any) -> Tensor:
    """The hidden states among what a layer gives back."""
    return output[0] if isinstance(output, tuple) else output
