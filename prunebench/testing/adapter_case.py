"""What the checks of an adapter share: the loaded model, encoded samples, and comparisons with stated tolerances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from prunebench.adapter import DecoderInputs, LoadedModel, LoadOptions, ModelAdapter
from prunebench.calibration.samples import Sample
from prunebench.dataset import Dataset
from prunebench.errors import PruneBenchError, UnknownName, first_line
from prunebench.testing.report import Failed, Skipped
from prunebench.testing.samples import of_each_modality, varied
from prunebench.testing.state import ModelState

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LARGE", "AdapterCase", "on_real_tokens"]

LARGE = 4 << 30
"""Bytes of weights above which nothing is loaded twice or written to disk."""

# Relative to the largest logit: what reordered sums may differ by, and what the same sums may.
_LOOSE = {"float32": 5e-4, "float64": 5e-4}
_TIGHT = {"float32": 1e-6, "float64": 1e-6}


class AdapterCase:
    """An adapter, how to load it, and what it encodes.

    Args:
        adapter: the class, or an instance (that loaded `loaded`).
        options: for `load`.
        loaded: a model that is there already; it is not loaded again then.
        dataset: where samples come from; by default the adapter's own calibration data where it is registered.
        load: False looks at the class alone: its weights may be large, or far away.
    """

    def __init__(
        self,
        adapter: type[ModelAdapter] | ModelAdapter,
        options: LoadOptions | None = None,
        loaded: LoadedModel | None = None,
        dataset: Dataset | None = None,
        load: bool = True,
    ) -> None:
        self.may_load = load
        self.cls = adapter if isinstance(adapter, type) else type(adapter)
        self.options = options or LoadOptions(name=getattr(self.cls, "name", ""))
        self._given, self._dataset = loaded, dataset
        self._instance = None if isinstance(adapter, type) else adapter
        self._error: Exception | SystemExit | None = None
        self.state: ModelState | None = None

    def load(self) -> LoadedModel:
        """The model; raises what `load` raises."""
        if self._given is None:
            if not self.may_load:
                raise Skipped("it serves models of many kinds: check it by its own name, with --model-path DIR")
            if self._error is None:
                try:
                    self._given = (self._instance or self.cls()).load(self.options)
                except (Exception, SystemExit) as error:
                    self._error = error
            if self._error is not None:
                raise self._error
        if self.state is None:
            self.state = ModelState.of(self._given)
        return self._given

    @property
    def loaded(self) -> LoadedModel:
        """The model, for every check but that of loading itself."""
        try:
            return self.load()
        except (Exception, SystemExit):
            raise Skipped("there is no loaded model to check") from None

    def need_loading(self) -> None:
        """Skip where a second loading is not possible or too much."""
        if self._instance is not None or not isinstance(self.loaded, LoadedModel):
            raise Skipped("the model was given loaded: how to load it is not known")
        if self.loaded.info.model_bytes > LARGE:
            raise Skipped(f"the model has more than {LARGE >> 30} GB: it is not loaded twice")

    # -- samples -----------------------------------------------------------------------------------------------------

    @cached_property
    def samples(self) -> dict[str, Sample]:
        """One of each declared modality."""
        return of_each_modality(tuple(self.loaded.adapter.modalities), self._dataset or self._default_dataset())

    def _default_dataset(self) -> Dataset | None:
        from prunebench.plugins import get_plugins
        from prunebench.testing.bench import find_dataset

        name = self.loaded.adapter.default_calibration
        try:
            return find_dataset(get_plugins(), name) if name else None
        except UnknownName:
            return None

    @cached_property
    def batch(self) -> list[Sample]:
        """Every modality, and rows of different lengths."""
        return varied(self.samples)

    @cached_property
    def inputs(self) -> list[DecoderInputs]:
        """The encoded samples: one batch, or batches of one where the adapter takes no larger ones."""
        try:
            if self.loaded.adapter.batching:
                return [self.encode(self.batch)]
            return [self.encode([sample]) for sample in self.batch]
        except PruneBenchError as error:
            raise Failed(f"encode() refuses a sample of a declared modality: {first_line(error)}") from error

    def encode(self, samples: Sequence[Sample]) -> DecoderInputs:
        import torch

        with torch.inference_mode():
            found = self.loaded.encode(samples)
        if not isinstance(found, DecoderInputs):
            raise Failed(f"encode() returned {type(found).__name__}: return DecoderInputs(embeds, mask, groups)")
        return found

    # -- running -----------------------------------------------------------------------------------------------------

    def logits(self, inputs: DecoderInputs, keep: int = 0) -> Tensor:
        import torch

        with torch.inference_mode():
            return self.loaded.adapter.forward(self.loaded, inputs, logits_to_keep=keep)

    def same(self, what: str, found: Tensor, expected: Tensor, *, tight: bool = False) -> None:
        """Fail unless two tensors agree, within the tolerance of the model's number format."""
        if found.shape != expected.shape:
            raise Failed(f"{what}: shape {tuple(found.shape)} against {tuple(expected.shape)}")
        table, half = (_TIGHT, 4e-3) if tight else (_LOOSE, 5e-2)
        limit = table.get(self.loaded.info.dtype, half) * max(1.0, float(expected.abs().max()))
        far = float((found.float() - expected.float()).abs().max())
        if not far <= limit:  # also where one of them is not a number
            raise Failed(f"{what}: the logits differ by {far:.2g} (at most {limit:.2g} is rounding)")

    def cache_agrees(self, steps: int = 3) -> None:
        """Fail unless decoding with a cache gives the logits of full forward passes."""
        import torch

        adapter, loaded = self.loaded.adapter, self.loaded
        window = getattr(adapter.text_config(loaded.model), "sliding_window", None)
        for inputs in self.inputs:
            grown = inputs
            with torch.inference_mode():
                step, state = adapter.prefill(loaded, inputs)
                for number in range(steps):
                    where = "prefill" if number == 0 else f"decoding step {number}"
                    full = self.logits(grown, keep=1)[:, -1]
                    self.same(f"{where} with a cache against forward() without", step, full)
                    token = full.argmax(-1)
                    step, state = adapter.decode_step(loaded, token, state)
                    grown = _grown(grown, loaded.model.get_input_embeddings()(token[:, None]), window)


def on_real_tokens(inputs: DecoderInputs, logits: Tensor) -> Tensor:
    """Logits on real tokens only, (tokens, vocabulary): what stands on padding means nothing."""
    return logits[inputs.attention_mask.bool()]


def _grown(inputs: DecoderInputs, embed: Tensor, window: int | None) -> DecoderInputs:
    """The inputs with one more text token in each row, further arguments of the decoder included."""
    import torch

    one = torch.ones_like(inputs.attention_mask[:, :1])
    length = inputs.attention_mask.shape[1]
    return replace(
        inputs,
        embeds=torch.cat([inputs.embeds, embed.to(inputs.embeds.dtype)], 1),
        attention_mask=torch.cat([inputs.attention_mask, one], 1),
        groups={k: torch.cat([v, torch.full_like(v[:, :1], k == "text")], 1) for k, v in inputs.groups.items()},
        extra={name: _grown_extra(name, value, length, window) for name, value in inputs.extra.items()},
    )


def _grown_extra(name: str, value: Any, length: int, window: int | None) -> Any:
    """What the next text token adds to an argument of the decoder.

    Positions go on by one on every axis, marks of media tokens are False, a mask over media repeats its last row, a
    mask over tokens gets a row that sees what the last one sees and itself; what has no token axis stays.
    """
    import torch

    if isinstance(value, dict):
        return {key: _grown_extra(key, item, length, window) for key, item in value.items()}
    if not isinstance(value, torch.Tensor):
        return value
    if name == "position_ids":
        return torch.cat([value, value[..., -1:] + 1], -1)
    if value.dim() == 4 and value.shape[-2] == length:
        if value.shape[-1] != length:
            return torch.cat([value, value[..., -1:, :]], -2)
        closed = False if value.dtype == torch.bool else torch.finfo(value.dtype).min
        wider = torch.cat([value, torch.full_like(value[..., :1], closed)], -1)
        row = torch.cat([value[..., -1:, :], value[..., -1:, -1:]], -1)  # the last token sees itself: so does this one
        if "sliding" in name and window is not None:
            row[..., : max(0, length + 1 - window)] = closed
        return torch.cat([wider, row], -2)
    if value.dtype == torch.bool and value.dim() == 2 and value.shape[1] == length:
        return torch.cat([value, torch.zeros_like(value[:, :1])], -1)
    return value
