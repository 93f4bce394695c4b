"""Hooks on the decoder layers that hand their states to a `Batch` while the model runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from prunebench.adapter import LoadedModel
from prunebench.calibration.attention import Importance, watch_attention
from prunebench.calibration.batch import Batch, NotShown
from prunebench.errors import CalibrationError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["layer_boundaries", "mlp_of", "watch"]

_MLP_NAMES = ("mlp", "feed_forward", "block_sparse_moe", "ffn", "moe")
_NORMS_BEFORE_MLP = ("post_attention_layernorm", "ffn_norm", "ln_2", "norm_2", "post_attention_norm")


@contextmanager
def layer_boundaries(loaded: LoadedModel, see: Any) -> Iterator[None]:
    """Call ``see(boundary, hidden states)`` at each layer boundary: 0 is the input of layer 0, l + 1 layer l's output.

    Raises:
        CalibrationError: not every layer ran, each once.
    """
    seen: list[int] = []

    def before(_module: Any, args: tuple, kwargs: dict) -> None:
        see(0, args[0] if args else kwargs["hidden_states"])

    def after(layer: int) -> Any:
        def hook(_module: Any, _args: tuple, output: Any) -> None:
            seen.append(layer)
            see(layer + 1, output if not isinstance(output, tuple) else output[0])

        return hook

    handles = [loaded.layers[0].register_forward_pre_hook(before, with_kwargs=True)]
    handles += [layer.register_forward_hook(after(i)) for i, layer in enumerate(loaded.layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if seen != list(range(loaded.info.n_layers)):
        raise CalibrationError(
            f"{len(seen)} of {loaded.info.n_layers} decoder layers ran: "
            "calibration needs the dense model and all its layers"
        )


@contextmanager
def watch(loaded: LoadedModel, batch: Batch, watched: frozenset[str], mlp_tokens: Sequence[int]) -> Iterator[None]:
    """Fill `batch` with what is seen of the one forward pass inside the ``with`` block.

    Args:
        loaded: the dense model.
        batch: what goes through it.
        watched: beside the states: ``sublayers``, ``mlp``, ``attention``.
        mlp_tokens: numbers of tokens per sample that MLP outputs are kept of.

    Raises:
        NotShown: the architecture does not show one of `watched`.
        CalibrationError: not every layer ran, each once.
    """
    inside = _Inside(loaded, batch, "sublayers" in watched, mlp_tokens) if watched & {"sublayers", "mlp"} else None

    def see(boundary: int, hidden: Tensor) -> None:
        batch.put(boundary, hidden)
        if inside is not None and boundary:
            inside.end(boundary - 1, hidden)

    importance = Importance(batch) if "attention" in watched else None
    with ExitStack() as stack:
        if inside is not None:
            stack.callback(inside.close)
        if importance is not None:
            stack.enter_context(watch_attention(loaded, importance))
        stack.enter_context(layer_boundaries(loaded, see))
        yield
    if inside is not None:
        inside.finish()
    if importance is not None:
        batch.importance = importance.finish()


class _Inside:
    """What happens inside each layer: the residual between attention and MLP, and what the MLP adds to it."""

    def __init__(self, loaded: LoadedModel, batch: Batch, cosines: bool, mlp_tokens: Sequence[int]) -> None:
        import torch

        self.batch, self.cosines = batch, cosines
        self.middle: Tensor | None = None
        self.output: Tensor | None = None
        self._room: Tensor | None = None  # memory that every layer uses anew
        self._packed: Tensor | None = None
        self._products: Tensor | None = None
        self._norms: list[Tensor] = []
        self.flat = {m: batch.index[torch.from_numpy(batch.chosen(m)).clamp(min=0).to(batch.device)].flatten()
                     for m in mlp_tokens}  # fmt: skip
        if cosines:
            batch.sublayer = torch.empty(batch.n_layers, 2, batch.n_tokens, device=batch.device)
            self._norms = list(torch.empty(batch.n_layers, batch.n_tokens, device=batch.device))
        self.handles = []
        try:
            for number, layer in enumerate(loaded.layers):
                hook = partial(self._middle, number)
                self.handles.append(_after_attention(layer).register_forward_pre_hook(hook, with_kwargs=True))
                if mlp_tokens:
                    self.handles.append(mlp_of(layer).register_forward_hook(self._mlp))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()

    def _middle(self, layer: int, _module: Any, args: tuple, kwargs: dict) -> None:
        self.middle = args[0] if args else next(iter(kwargs.values()))
        if self.cosines:  # here and not at the layer's end: it has just been computed, and is in the processor's cache
            self._pack(layer, self.middle)

    def _mlp(self, _module: Any, _args: tuple, output: Any) -> None:
        self.output = output[0] if isinstance(output, tuple) else output

    def end(self, layer: int, hidden: Tensor) -> None:
        """Layer `layer` has run and gave `hidden` (B, T, d)."""
        if self.middle is None:
            raise NotShown(
                "sublayers",
                f"layer {layer}: the residual stream between attention and MLP was not seen: "
                "this architecture is not known; use a method that does not look inside layers",
            )
        middle = self.middle.reshape(hidden.shape)
        if self.cosines:
            self._products_of(layer)
        for m, flat in self.flat.items():
            self._keep(layer, m, flat.to(hidden.device), middle, hidden)
        self.middle = self.output = None

    def finish(self) -> None:
        """Every layer has run: from inner products to cosines, for all layers at once."""
        import torch

        batch = self.batch
        if batch.sublayer is None:
            return
        around = torch.stack([batch.norms[:-1], batch.norms[1:]], 1)  # (L, 2, P): before attention, after the MLP
        lengths = around.mul_(torch.stack(self._norms).unsqueeze(1)).clamp_(min=torch.finfo(torch.float32).tiny)
        batch.sublayer.div_(lengths).clamp_(-1.0, 1.0)

    def _pack(self, layer: int, middle: Tensor) -> None:
        """Keep the residual between attention and MLP, (P, d), and its norms."""
        import torch

        batch = self.batch
        if self._packed is None:
            tokens, width = batch.packed_shape
            self._room = torch.empty(tokens, width, device=batch.device)
            self._packed = self._room[: batch.n_tokens]  # without aggregation tokens
            self._products = torch.empty(2, batch.n_tokens, width, device=batch.device)
            if middle.dtype == torch.float32:  # of half precision the difference has to be taken in more digits
                batch.updates = torch.empty(batch.n_layers, batch.n_tokens, device=batch.device)
        batch.pack(middle.reshape(batch.size, -1, middle.shape[-1]), self._room)
        torch.linalg.vector_norm(self._packed, dim=-1, out=self._norms[layer])

    def _products_of(self, layer: int) -> None:
        """Its inner products with what went into the layer and with what came out of it."""
        import torch

        batch = self.batch
        around = batch.states[layer : layer + 2]
        products = torch.mul(around, self._packed, out=self._products)
        torch.sum(products, -1, out=batch.sublayer[layer])
        if batch.updates is not None:  # both states are in the cache now: later they would be read once more
            update = torch.sub(around[1], around[0], out=self._products[0])
            torch.linalg.vector_norm(update, dim=-1, out=batch.updates[layer])

    def _keep(self, layer: int, m: int, flat: Tensor, middle: Tensor, hidden: Tensor) -> None:
        import torch

        width = hidden.shape[-1]
        before, after, added = (
            value.reshape(-1, width).index_select(0, flat) for value in (middle, hidden, self.output)
        )
        tolerance = 1e-4 if hidden.dtype == torch.float32 else 2e-2
        away = (before.float() + added.float() - after.float()).abs().amax()
        if away > tolerance * after.float().abs().amax():
            raise NotShown(
                "mlp",
                f"layer {layer}: the MLP's output does not enter the residual stream as it is (a norm or a factor "
                "follows): a closed-form fold does not fit this architecture; turn compensation off",
            )
        batch = self.batch
        if m not in batch.mlp:
            shape = (batch.n_layers, batch.size, m, width)
            batch.mlp[m] = torch.empty(shape, dtype=added.dtype, device=batch.device)
        batch.mlp[m][layer].copy_(added.view(batch.size, m, width))


def mlp_of(layer: nn.Module) -> nn.Module:
    """The MLP or mixture of experts of a decoder layer.

    Raises:
        NotShown: none that is known.
    """
    for name in _MLP_NAMES:
        if hasattr(layer, name):
            return getattr(layer, name)
    raise NotShown("mlp", f"{type(layer).__name__} has no MLP that can be found: use a method that needs none")


def _after_attention(layer: nn.Module) -> nn.Module:
    """The module whose input is the residual stream after attention and before the MLP."""
    if hasattr(layer, "pre_feedforward_layernorm"):  # Gemma: a norm before and one after the MLP
        return layer.pre_feedforward_layernorm
    if hasattr(layer, "post_feedforward_layernorm"):  # OLMo 2: norms only after
        return mlp_of(layer)
    for name in _NORMS_BEFORE_MLP:
        if hasattr(layer, name):
            return getattr(layer, name)
    raise NotShown(
        "sublayers",
        f"{type(layer).__name__}: the residual stream between attention and MLP cannot be found: "
        "use a method that does not look inside layers",
    )
