"""What every transformers model shares: forward, prefill, decode and generate on input embeddings.

A family's adapter adds `load` and `encode`; everything after the embeddings is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prunebench.adapter import DecoderInputs, LoadedModel, ModelAdapter
from prunebench.calibration.samples import Sample
from prunebench.errors import BadParameter, ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["TransformersAdapter", "position_ids", "quiet_loading", "resolve_device", "resolve_dtype"]


class TransformersAdapter(ModelAdapter):
    """Base for models whose ``forward`` takes ``inputs_embeds``, a cache and ``logits_to_keep``."""

    def forward(self, loaded: LoadedModel, inputs: DecoderInputs, *, logits_to_keep: int = 0) -> Tensor:
        return loaded.model(
            inputs_embeds=inputs.embeds,
            attention_mask=inputs.attention_mask,
            **self._positions(inputs),
            use_cache=False,
            logits_to_keep=logits_to_keep,
        ).logits

    def prefill(self, loaded: LoadedModel, inputs: DecoderInputs) -> tuple[Tensor, Any]:
        positions = self._positions(inputs)
        output = loaded.model(
            inputs_embeds=inputs.embeds,
            attention_mask=inputs.attention_mask,
            **positions,
            use_cache=True,
            logits_to_keep=1,
        )
        next_position = inputs.attention_mask.sum(1, keepdim=True)
        return output.logits[:, -1], (output.past_key_values, inputs.attention_mask, next_position)

    def decode_step(self, loaded: LoadedModel, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        cache, mask, position = state
        mask = _with_one_more(mask)
        output = loaded.model(
            input_ids=tokens[:, None],
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1], (output.past_key_values, mask, position + 1)

    def generate(self, loaded: LoadedModel, inputs: DecoderInputs, max_new_tokens: int) -> list[str]:
        tokens = loaded.model.generate(
            inputs_embeds=inputs.embeds,
            attention_mask=inputs.attention_mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        return [text.strip() for text in self.decode_text(loaded, tokens)]

    def decode_text(self, loaded: LoadedModel, tokens: Tensor) -> Sequence[str]:
        """Token ids (batch, tokens) → text without special tokens."""
        return loaded.processor.batch_decode(tokens, skip_special_tokens=True)

    def encode(self, loaded: LoadedModel, samples: Sequence[Sample]) -> DecoderInputs:
        raise ModelError(f"{self.name} has no encoder for samples")

    @staticmethod
    def _positions(inputs: DecoderInputs) -> dict[str, Any]:
        return inputs.extra or {"position_ids": position_ids(inputs.attention_mask)}


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions (batch, tokens) that count real tokens only, so that left padding changes nothing."""
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)


def _with_one_more(mask: Tensor) -> Tensor:
    import torch

    return torch.cat([mask, torch.ones_like(mask[:, :1])], 1)


def quiet_loading() -> None:
    """Keep transformers' own progress bars out of ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def resolve_device(name: str) -> torch.device:
    """``auto`` (a GPU where there is one), or any torch device.

    Raises:
        BadParameter: no such device here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BadParameter(f"no such device {name!r}: use auto, cpu, or cuda:0") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadParameter(
            f"device {name!r} asked for, but torch sees no GPU: use --device cpu, or see `prunebench doctor`"
        )
    return device


def resolve_dtype(name: str) -> torch.dtype:
    """``float32``, ``bfloat16`` or ``float16``.

    Raises:
        BadParameter: another name.
    """
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise BadParameter(f"unknown dtype {name!r}: use {', '.join(known)}")
    return known[name]
