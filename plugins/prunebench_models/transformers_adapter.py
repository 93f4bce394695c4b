"""What every transformers model shares: forward, prefill, decode and generate on the decoder's inputs.

A family's adapter adds `load` and `encode`; everything after the embeddings is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from prunebench.adapter import DecoderInputs, LoadedModel, ModelAdapter
from prunebench.calibration.samples import Sample
from prunebench.devices import resolve_device, resolve_dtype
from prunebench.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DecodeState", "TransformersAdapter", "position_ids", "resolve_device", "resolve_dtype"]


@dataclass
class DecodeState:
    """Where greedy decoding stands.

    Attributes:
        cache: keys and values of all tokens so far.
        mask: (batch, tokens) attention mask of all tokens so far.
        position: (..., batch, 1) position of the next token; several axes where the model has them.
        extra: further keyword arguments of every step.
    """

    cache: Any
    mask: Tensor
    position: Tensor
    extra: dict[str, Any]


class TransformersAdapter(ModelAdapter):
    """Base for models whose ``forward`` takes ``inputs_embeds``, a cache and ``logits_to_keep``."""

    step_extra: ClassVar[tuple[str, ...]] = ()
    """Entries of ``DecoderInputs.extra`` that decode steps need too: their last row (axis -2) is passed on."""

    def run(self, loaded: LoadedModel, arguments: dict[str, Any], logits_to_keep: int) -> tuple[Tensor, Any]:
        """Decoder and head: logits (batch, tokens, vocabulary) and the cache."""
        output = loaded.model(**arguments, logits_to_keep=logits_to_keep)
        return output.logits, output.past_key_values

    def forward(self, loaded: LoadedModel, inputs: DecoderInputs, *, logits_to_keep: int = 0) -> Tensor:
        return self.run(loaded, {**_arguments(inputs), "use_cache": False}, logits_to_keep)[0]

    def prefill(self, loaded: LoadedModel, inputs: DecoderInputs) -> tuple[Tensor, Any]:
        arguments = _arguments(inputs)
        logits, cache = self.run(loaded, {**arguments, "use_cache": True}, 1)
        extra = {name: inputs.extra[name][..., -1:, :] for name in self.step_extra if name in inputs.extra}
        # The last column is a real token in every row: padding is on the left.
        return logits[:, -1], DecodeState(cache, inputs.attention_mask, arguments["position_ids"][..., -1:] + 1, extra)

    def decode_step(self, loaded: LoadedModel, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        mask = _with_one_more(state.mask)
        arguments = {
            "input_ids": tokens[:, None],
            "attention_mask": mask,
            "position_ids": state.position,
            "past_key_values": state.cache,
            "use_cache": True,
            **state.extra,
        }
        logits, cache = self.run(loaded, arguments, 1)
        return logits[:, -1], DecodeState(cache, mask, state.position + 1, state.extra)

    def greedy(self, loaded: LoadedModel, inputs: DecoderInputs, max_new_tokens: int) -> Tensor:
        """Most likely token after most likely token, (batch, new tokens); padding after a row's end.

        Stops at the end tokens of the generation configuration; its penalties and samplers are not used, so that
        pruned models are compared on what they compute.
        """
        import torch

        settings = loaded.model.generation_config
        ends = settings.eos_token_id if settings.eos_token_id is not None else []
        ends = torch.tensor([ends] if isinstance(ends, int) else list(ends), dtype=torch.long)
        padding = settings.pad_token_id if settings.pad_token_id is not None else (int(ends[0]) if len(ends) else 0)
        device = inputs.embeds.device
        ends, done = ends.to(device), torch.zeros(len(inputs.embeds), dtype=torch.bool, device=device)
        found: list[Tensor] = []
        logits, state = self.prefill(loaded, inputs)
        while True:
            tokens = logits.argmax(-1).to(device).masked_fill(done, padding)
            found.append(tokens)
            done = done | torch.isin(tokens, ends)
            if len(found) >= max_new_tokens or bool(done.all()):
                return torch.stack(found, 1)
            logits, state = self.decode_step(loaded, tokens, state)

    def generate(self, loaded: LoadedModel, inputs: DecoderInputs, max_new_tokens: int) -> list[str]:
        tokens = self.greedy(loaded, inputs, max_new_tokens)
        return [text.strip() for text in self.decode_text(loaded, tokens)]

    def decode_text(self, loaded: LoadedModel, tokens: Tensor) -> Sequence[str]:
        """Token ids (batch, tokens) → text without special tokens."""
        return loaded.processor.batch_decode(tokens, skip_special_tokens=True)

    def encode(self, loaded: LoadedModel, samples: Sequence[Sample]) -> DecoderInputs:
        raise ModelError(f"{self.name} has no encoder for samples")


def _arguments(inputs: DecoderInputs) -> dict[str, Any]:
    """Keyword arguments of the prompt pass; an ``attention_mask`` in ``extra`` (one that looks both ways) wins."""
    mask = inputs.attention_mask
    return {
        "inputs_embeds": inputs.embeds,
        "attention_mask": mask,
        "position_ids": None if "position_ids" in inputs.extra else position_ids(mask),
        **inputs.extra,
    }


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions (batch, tokens) that count real tokens only, so that left padding changes nothing."""
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)


def _with_one_more(mask: Tensor) -> Tensor:
    import torch

    return torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
