"""The contract of a model adapter: from samples to what the decoder sees, and on to logits and text.

The decoder's input embeddings are a value of their own (`DecoderInputs`): towers and projectors run once, and every
plan is evaluated on the same cached inputs.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from prunebench.calibration.samples import Sample
from prunebench.errors import ModelError
from prunebench.model_info import ModelInfo

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from prunebench.plan import Plan

__all__ = ["DecoderInputs", "LoadOptions", "LoadedModel", "ModelAdapter", "find_decoder"]


@dataclass(frozen=True)
class LoadOptions:
    """Which weights to load, and how.

    Attributes:
        name: the name that the adapter was asked for by; an alias may stand for a family or a size.
        reference: what followed the colon (``videollama2:7b``, ``hf:ORG/NAME``), or None.
        path: folder with the weights; None takes what the reference or the adapter's default says.
        device: ``auto``, ``cpu``, ``cuda:0``, ...; not used where `device_map` is given.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        device_map: accelerate's placement (``auto``, ``balanced``, ...), or None for one device.
        offload_folder: where layers that fit on no device go.
        attn_implementation: ``sdpa``, ``eager``, ``flash_attention_2``, ...; None takes the library's default.
        trust_remote_code: run Python that comes with the weights.
        revision: hub commit, branch or tag.
        plan: layers that this plan removes are never read; the model comes pruned.
    """

    name: str = ""
    reference: str | None = None
    path: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    device_map: str | None = None
    offload_folder: str | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    revision: str | None = None
    plan: Plan | None = None


@dataclass
class DecoderInputs:
    """A left-padded batch as the decoder sees it.

    Attributes:
        embeds: (batch, tokens, hidden) input embeddings with the media features in place.
        attention_mask: (batch, tokens) int64, 0 on padding.
        groups: token group name → (batch, tokens) bool. Groups are disjoint, never cover padding, and always hold
            ``text``; ``visual`` and ``audio`` where the model has such tokens.
        extra: further keyword arguments of the decoder (position ids of several axes, deep visual features, ...).
        sample_ids: one per row.
    """

    embeds: Tensor
    attention_mask: Tensor
    groups: dict[str, Tensor]
    extra: dict[str, Any] = field(default_factory=dict)
    sample_ids: tuple[str, ...] = ()

    @property
    def n_tokens(self) -> int:
        """Tokens without padding, over the whole batch."""
        return int(self.attention_mask.sum())

    def to(self, device: torch.device | str) -> DecoderInputs:
        def move(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: move(item) for key, item in value.items()}
            if isinstance(value, (list, tuple)):
                return type(value)(move(item) for item in value)
            return value.to(device) if hasattr(value, "to") else value

        return DecoderInputs(
            move(self.embeds),
            move(self.attention_mask),
            {name: move(mask) for name, mask in self.groups.items()},
            {name: move(value) for name, value in self.extra.items()},
            self.sample_ids,
        )


@dataclass
class LoadedModel:
    """A model in memory with the adapter that knows how to speak to it.

    Attributes:
        model: in evaluation mode.
        adapter: the instance that loaded it.
        info: of the dense model; it does not change while a plan is applied, nor where a plan was applied at loading.
        device: where inputs go.
        processor: tokenizer and media processors.
        path: the folder that it came from.
        plan: the plan that was applied at loading, or None.
    """

    model: nn.Module
    adapter: ModelAdapter
    info: ModelInfo
    device: torch.device
    processor: Any = None
    path: Path | None = None
    plan: Plan | None = None

    @property
    def decoder(self) -> nn.Module:
        """The module that holds ``.layers``."""
        return self.adapter.decoder(self.model)

    @property
    def layers(self) -> nn.ModuleList:
        return self.decoder.layers  # type: ignore[return-value]

    def encode(self, samples: Sequence[Sample]) -> DecoderInputs:
        """Run processor, towers and projectors on `samples`."""
        return self.adapter.encode(self, samples)

    def generate(self, inputs: DecoderInputs, max_new_tokens: int) -> list[str]:
        """Greedy continuation of each row, special tokens removed."""
        return self.adapter.generate(self, inputs, max_new_tokens)


class ModelAdapter(abc.ABC):
    """Base of all adapters. One instance serves one loaded model."""

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("text",)
    default_suite: str | None = None
    """Used where none is named; an adapter that knows only after loading sets it on itself in `load`."""
    default_calibration: str | None = None
    takes_reference: ClassVar[bool] = False
    """Whether ``name:reference`` means something to `load`."""
    batching: ClassVar[bool] = True
    """False where a batch of several samples does not give the answers of batches of one."""
    encode_version: str = "1"
    """Part of what kept encoder outputs are found by: settings of `encode` beside the sample, where it has any."""

    @abc.abstractmethod
    def load(self, options: LoadOptions = LoadOptions()) -> LoadedModel:
        """Load the model, ready for inference: dense, or without what ``options.plan`` removes.

        Raises:
            ModelError: the folder cannot be read or does not hold such a model.
            BadParameter: an option that makes no sense for this adapter or machine.
        """

    @abc.abstractmethod
    def encode(self, loaded: LoadedModel, samples: Sequence[Sample]) -> DecoderInputs:
        """Samples → the decoder's inputs."""

    @abc.abstractmethod
    def forward(self, loaded: LoadedModel, inputs: DecoderInputs, *, logits_to_keep: int = 0) -> Tensor:
        """Full forward pass without a cache: logits (batch, tokens or `logits_to_keep` last ones, vocabulary)."""

    @abc.abstractmethod
    def prefill(self, loaded: LoadedModel, inputs: DecoderInputs) -> tuple[Tensor, Any]:
        """Prompt pass with a cache: last logits (batch, vocabulary), and the state for `decode_step`."""

    @abc.abstractmethod
    def decode_step(self, loaded: LoadedModel, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One token per row, tokens (batch,): logits (batch, vocabulary), and the next state."""

    @abc.abstractmethod
    def generate(self, loaded: LoadedModel, inputs: DecoderInputs, max_new_tokens: int) -> list[str]:
        """Greedy answers as text."""

    def answer_ids(self, loaded: LoadedModel, sample: Sample) -> list[int]:
        """Token ids of the sample's expected answer as the model would write it behind the prompt, its end included.

        Raises:
            ModelError: no tokenizer.
        """
        from prunebench.probing.answers import tokens_of

        return tokens_of(loaded, sample.answer or "")

    def text_ids(self, loaded: LoadedModel, sample: Sample) -> list[int] | None:
        """Token ids of a sample that `encode` takes as running text, word for word; None for a question."""
        from prunebench.probing.answers import running_text

        return running_text(loaded, sample)

    def append_tokens(self, loaded: LoadedModel, inputs: DecoderInputs, ids: Tensor, mask: Tensor) -> DecoderInputs:
        """`inputs` with the tokens `ids` (batch, more) behind every prompt; `mask` is 0 behind a row's last one.

        Raises:
            CalibrationError: inputs of a kind that this adapter cannot make longer.
        """
        from prunebench.probing.answers import append_tokens

        return append_tokens(loaded, inputs, ids, mask)

    def decoder(self, model: nn.Module) -> nn.Module:
        """The module of `model` that holds the decoder layers in ``.layers``.

        Raises:
            ModelError: no such module.
        """
        return find_decoder(model)

    def text_config(self, model: nn.Module) -> Any:
        """The configuration object that the decoder reads."""
        return self.decoder(model).config

    def protected_layers(self, model: nn.Module) -> tuple[int, ...]:
        """Layers that this architecture cannot lose; none by default."""
        return ()

    def layers_removed(self, model: nn.Module, kept: Sequence[int]) -> Callable[[], None] | None:
        """Called once `model` has only the layers `kept` (ids before, ascending); what a family needs beyond that.

        `load` calls it too, where a plan was applied at loading or the checkpoint says that it was pruned before.

        Returns:
            What undoes it, or None where there is nothing to undo.
        """
        return None

    def reload_class(self, model: nn.Module) -> str:
        """``module:Class`` whose ``from_pretrained`` loads what ``model.save_pretrained`` writes.

        An export is checked with it, in a process that imports nothing else of ours. The default is the model's own
        class; name another one where that class is wrapped or made on the fly.

        Raises:
            ModelError: the class comes with the weights, so that no other process can import it.
        """
        import transformers

        kind = type(model)
        if getattr(transformers, kind.__name__, None) is kind:
            return f"transformers:{kind.__name__}"
        if kind.__module__.split(".")[0] == "transformers_modules":
            raise ModelError(f"{kind.__name__} is code that comes with the weights: such models cannot be exported")
        return f"{kind.__module__}:{kind.__qualname__}"


def find_decoder(model: nn.Module) -> nn.Module:
    """The module that holds the decoder layers in ``.layers``, by the names that transformers models agree on.

    Raises:
        ModelError: no such module.
    """
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if callable(get_decoder) else model
    if not hasattr(decoder, "layers"):
        decoder = getattr(decoder, "model", decoder)
    if not hasattr(decoder, "layers"):
        raise ModelError(f"{type(model).__name__} has no decoder layers that can be found (get_decoder().layers)")
    return decoder
