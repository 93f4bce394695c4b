"""One encoder for all families: what the model's own code hands to its decoder.

The model runs on the processor's output as its `generate` runs it; a hook in front of the decoder takes the arguments
and stops there. So towers, projectors, splicing, positions and masks are the library's, whatever the family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prunebench.adapter import DecoderInputs
from prunebench.errors import ModelError
from prunebench_models.hf.families import token_ids
from prunebench_models.transformers_adapter import position_ids

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = ["collate", "decoder_inputs", "is_square", "mask_for"]


class _Reached(Exception):
    """The decoder was called."""

    def __init__(self, args: tuple, kwargs: dict[str, Any]) -> None:
        super().__init__("the decoder was reached")
        self.args_given, self.kwargs = args, kwargs


def decoder_inputs(model: nn.Module, decoder: nn.Module, batch: Mapping[str, Any], sample_id: str) -> DecoderInputs:
    """The decoder's inputs for one sample.

    Args:
        model: dense or pruned: nothing in front of the decoder depends on its layers.
        decoder: the module with ``layers``.
        batch: the processor's output for one sample without padding, on the model's device.
        sample_id: of the sample.
    """
    arguments = _arguments(model, decoder, batch)
    embeds, ids = arguments.get("inputs_embeds"), batch["input_ids"]
    if embeds is None:
        embeds = decoder.get_input_embeddings()(arguments["input_ids"])
    mask = batch.get("attention_mask")
    mask = mask.long() if mask is not None else ids.new_ones(ids.shape)
    extra = {
        name: value
        for name, value in arguments.items()
        if name not in {"input_ids", "inputs_embeds", "attention_mask", "past_key_values", "cache_position"}
        and _holds_tensors(value)
    }
    if is_square(seen := arguments.get("attention_mask")):
        extra["attention_mask"] = _who_sees_whom(seen)
    positions = extra.get("position_ids")
    if positions is not None and positions.dim() == 2 and (positions == position_ids(mask)).all():
        del extra["position_ids"]
    return DecoderInputs(embeds, mask, _groups(model.config, ids, mask), extra, (sample_id,))


def _arguments(model: Any, decoder: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    def stop(_module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        raise _Reached(args, kwargs)

    # In front of any other hook: those re-map arguments for a pruned decoder, and are applied when it really runs.
    handle = decoder.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
    try:
        model.generate(**batch, max_new_tokens=1, do_sample=False, use_cache=False)
    except _Reached as reached:
        if reached.args_given:
            raise ModelError(
                f"{type(model).__name__} calls its decoder with positional arguments, which the generic adapter does "
                "not know: it needs an adapter plugin"
            ) from None
        return reached.kwargs
    finally:
        handle.remove()
    raise ModelError(f"{type(model).__name__} never calls its decoder: it needs an adapter plugin")


def _holds_tensors(value: Any) -> bool:
    import torch

    if isinstance(value, (list, tuple)):
        return bool(value) and all(_holds_tensors(item) for item in value)
    return isinstance(value, torch.Tensor)


def is_square(mask: Any) -> bool:
    """Whether a mask says which token sees which, (batch, 1, tokens, tokens), for all layers or by their kind."""
    import torch

    masks = mask.values() if isinstance(mask, dict) else [mask]
    return any(isinstance(value, torch.Tensor) and value.dim() == 4 for value in masks)


def _who_sees_whom(mask: Any) -> Any:
    """The mask in bool, True where a token is seen, whichever attention it was made for; None stays None."""
    import torch

    if isinstance(mask, dict):
        return {kind: _who_sees_whom(value) for kind, value in mask.items()}
    if mask is None or mask.dtype == torch.bool:
        return mask
    return mask > torch.finfo(mask.dtype).min / 2


def mask_for(mask: Any, attention: str | None, dtype: torch.dtype) -> Any:
    """A mask from `decoder_inputs` as an attention implementation wants it: ``eager`` adds it to the scores."""
    import torch

    if isinstance(mask, dict):
        return {kind: mask_for(value, attention, dtype) for kind, value in mask.items()}
    if mask is None or attention != "eager" or mask.dim() != 4:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def _groups(config: Any, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    import torch

    def among(kinds: Sequence[str]) -> Tensor:
        wanted = [token for kind in kinds for token in token_ids(config, kind)]
        return torch.isin(ids, torch.tensor(wanted, dtype=ids.dtype, device=ids.device)) & mask.bool()

    visual, audio = among(("image", "video")), among(("audio",))
    return {"visual": visual, "audio": audio, "text": mask.bool() & ~visual & ~audio}


def collate(parts: Sequence[DecoderInputs]) -> DecoderInputs:
    """Several samples as one left-padded batch.

    Raises:
        ModelError: an entry of ``extra`` that cannot be padded (its family has to say ``batching=False``).
    """
    import torch

    if len(parts) == 1:
        return parts[0]
    width = max(part.embeds.shape[1] for part in parts)
    groups = parts[0].groups
    return DecoderInputs(
        torch.cat([_left(part.embeds, width, 1) for part in parts]),
        torch.cat([_left(part.attention_mask, width, 1) for part in parts]),
        {name: torch.cat([_left(part.groups[name], width, 1) for part in parts]) for name in groups},
        _collate_extra(parts, width),
        tuple(name for part in parts for name in part.sample_ids),
    )


def _collate_extra(parts: Sequence[DecoderInputs], width: int) -> dict[str, Any]:
    import torch

    names = {name for part in parts for name in part.extra}
    extra: dict[str, Any] = {}
    for name in sorted(names):
        if name == "position_ids":
            extra[name] = _positions(parts, width)
        elif name == "attention_mask":
            given = [part.extra.get(name) for part in parts]
            kinds = {kind for mask in given if isinstance(mask, dict) for kind in mask}
            if not kinds:
                extra[name] = _square(given, parts, width)
            else:
                extra[name] = {
                    kind: _square([mask.get(kind) if mask else None for mask in given], parts, width)
                    for kind in sorted(kinds)
                }
        elif name == "visual_pos_masks":
            rows = [part.extra.get(name) for part in parts]
            rows = [row if row is not None else part.groups["visual"] for row, part in zip(rows, parts, strict=True)]
            extra[name] = torch.cat([_left(row, width, 1) for row in rows])
        elif name == "deepstack_visual_embeds":  # one row per visual token, over all samples
            found = [part.extra[name] for part in parts if name in part.extra]
            extra[name] = [torch.cat(level) for level in zip(*found, strict=True)]
        else:
            raise ModelError(f"inputs with {name!r} cannot be put into one batch: encode one sample at a time")
    return extra


def _left(value: Tensor, width: int, axis: int) -> Tensor:
    """Zeros in front of `axis` until it is `width` long."""
    import torch

    shape = list(value.shape)
    shape[axis] = width - shape[axis]
    return torch.cat([value.new_zeros(shape), value], axis)


def _positions(parts: Sequence[DecoderInputs], width: int) -> Tensor:
    """(axes, batch, tokens) or (batch, tokens); where a sample says nothing, its tokens are counted."""
    import torch

    axes = {part.extra["position_ids"].shape[:-2] for part in parts if "position_ids" in part.extra}
    if len(axes) > 1:
        raise ModelError("positions of different axes cannot be put into one batch: encode one sample at a time")
    shape = next(iter(axes))
    found = []
    for part in parts:
        positions = part.extra.get("position_ids")
        if positions is None:
            positions = position_ids(part.attention_mask).expand(*shape, -1, -1)
        found.append(_left(positions, width, -1))
    return torch.cat(found, -2)


def _square(given: Sequence[Tensor | None], parts: Sequence[DecoderInputs], width: int) -> Tensor:
    """Masks (1, 1, tokens, tokens) as one (batch, 1, width, width); None stands for the plain causal one."""
    import torch

    rows = []
    for mask, part in zip(given, parts, strict=True):
        tokens, device = part.embeds.shape[1], part.embeds.device
        row = torch.zeros(1, 1, width, width, dtype=torch.bool, device=device)
        if mask is None:
            mask = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
        row[..., width - tokens :, width - tokens :] = mask
        padding = torch.arange(width - tokens, device=device)
        row[..., padding, padding] = True  # padding sees itself: a row that sees nothing would be undefined
        rows.append(row)
    return torch.cat(rows)
