"""Expected answers as tokens behind a prompt: how adapters do it unless they say otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prunebench.errors import CalibrationError, ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from prunebench.adapter import DecoderInputs, LoadedModel
    from prunebench.calibration.samples import Sample

__all__ = ["append_tokens", "end_token", "longer", "next_positions", "running_text", "tokenizer_of", "tokens_of"]


def tokens_of(loaded: LoadedModel, answer: str) -> list[int]:
    """An answer without any beginning token, and the token that ends a turn."""
    ids = tokenizer_of(loaded)(answer, add_special_tokens=False)["input_ids"]
    end = end_token(loaded)
    return [*map(int, ids), *([] if end is None else [end])]


def tokenizer_of(loaded: LoadedModel) -> Any:
    """What turns text into tokens.

    Raises:
        ModelError: the processor has none.
    """
    tokenizer = getattr(loaded.processor, "tokenizer", loaded.processor)
    if not callable(tokenizer):
        raise ModelError(
            f"model {loaded.info.name!r} has no tokenizer that turns answers into tokens: "
            "its adapter has to define answer_ids"
        )
    return tokenizer


def end_token(loaded: LoadedModel) -> int | None:
    """The tokenizer's own end where generation stops at it, else the first token that generation stops at."""
    settings = getattr(loaded.model, "generation_config", None)
    ends = getattr(settings, "eos_token_id", None)
    ends = [] if ends is None else [ends] if isinstance(ends, int) else [int(end) for end in ends]
    own = getattr(tokenizer_of(loaded), "eos_token_id", None)
    if own is not None and (own in ends or not ends):
        return int(own)
    return ends[0] if ends else None


def append_tokens(loaded: LoadedModel, inputs: DecoderInputs, ids: Tensor, mask: Tensor) -> DecoderInputs:
    """The same prompts with `ids` (batch, more) behind them; `mask` is 0 behind a row's last one.

    Raises:
        CalibrationError: inputs that say more than embeddings, mask and positions.
    """
    if unknown := sorted(set(inputs.extra) - {"position_ids"}):
        raise CalibrationError(
            f"an answer cannot be put behind inputs with {unknown[0]!r}: the adapter {loaded.adapter.name!r} has to "
            "define append_tokens"
        )
    return longer(loaded, inputs, ids, mask, next_positions(inputs, ids.shape[1]))


def longer(loaded: LoadedModel, inputs: DecoderInputs, ids: Tensor, mask: Tensor, extra: dict) -> DecoderInputs:
    """Embeddings, mask and token groups of the longer prompts, with `extra` in place of those that change."""
    import torch

    words = loaded.model.get_input_embeddings()(ids).to(inputs.embeds)
    more = mask.to(inputs.attention_mask)
    groups = {
        name: torch.cat([group, more.bool() if name == "text" else torch.zeros_like(more).bool()], 1)
        for name, group in inputs.groups.items()
    }
    return replace(
        inputs,
        embeds=torch.cat([inputs.embeds, words], 1),
        attention_mask=torch.cat([inputs.attention_mask, more], 1),
        groups=groups,
        extra={**inputs.extra, **extra},
    )


def next_positions(inputs: DecoderInputs, more: int) -> dict[str, Tensor]:
    """``position_ids`` that count on from the last token, on every axis, where the inputs bring any."""
    import torch

    if "position_ids" not in inputs.extra:
        return {}
    positions = inputs.extra["position_ids"]
    counted = torch.arange(1, more + 1, device=positions.device)
    return {"position_ids": torch.cat([positions, positions[..., -1:] + counted], -1)}


def running_text(loaded: LoadedModel, sample: Sample) -> list[int] | None:
    """Token ids of a sample that is text to be read on and no question; None for a question."""
    if sample.kind != "text" or sample.answer is not None or sample.images:
        return None
    if sample.video is not None or sample.audio is not None:
        return None
    return [int(token) for token in tokenizer_of(loaded)(sample.instruction)["input_ids"]]
