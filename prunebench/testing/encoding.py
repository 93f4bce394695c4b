"""What an adapter has to keep to on the dense model: encoding, batching, logits, cache."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from prunebench.calibration.samples import Sample
from prunebench.errors import PruneBenchError, typed_line
from prunebench.testing.adapter_case import AdapterCase, on_real_tokens
from prunebench.testing.report import Checklist, Failed, Skipped
from prunebench.testing.samples import MEDIA_GROUP, altered

__all__ = ["ON_DENSE"]

ON_DENSE = Checklist()


@ON_DENSE
def encode(case: AdapterCase) -> None:
    """encode() gives finite embeddings, mask, groups and ids whose shapes fit."""
    import torch

    for inputs, samples in _batches(case):
        rows, length = inputs.embeds.shape[:2]
        if inputs.embeds.dim() != 3 or rows != len(samples):
            raise Failed(f"embeds have shape {tuple(inputs.embeds.shape)} for {len(samples)} samples")
        if tuple(inputs.attention_mask.shape) != (rows, length):
            raise Failed(f"attention_mask has shape {tuple(inputs.attention_mask.shape)}, embeds have {(rows, length)}")
        if not set(inputs.attention_mask.unique().tolist()) <= {0, 1}:
            raise Failed("attention_mask holds more than 0 and 1: give 1 for tokens, 0 for padding")
        if not torch.isfinite(inputs.embeds[inputs.attention_mask.bool()]).all():
            raise Failed("an embedding is not finite: look at the towers and the projector, or load in float32")
        if inputs.sample_ids != tuple(sample.id for sample in samples):
            raise Failed(f"sample_ids are {inputs.sample_ids}: give one per row, tuple(s.id for s in samples)")


@ON_DENSE
def groups(case: AdapterCase) -> None:
    """Token groups are disjoint, lie off the padding, and hold text in every row."""
    import torch

    for inputs, _ in _batches(case):
        if "text" not in inputs.groups:
            raise Failed(f"groups are {sorted(inputs.groups)}: 'text' has to be among them")
        seen = torch.zeros_like(inputs.attention_mask, dtype=torch.bool)
        for name, mask in inputs.groups.items():
            if mask.dtype != torch.bool or mask.shape != inputs.attention_mask.shape:
                raise Failed(f"group {name!r} is {mask.dtype} {tuple(mask.shape)}: give bool (batch, tokens)")
            if (mask & ~inputs.attention_mask.bool()).any():
                raise Failed(f"group {name!r} covers padding: combine it with attention_mask.bool()")
            if (mask & seen).any():
                raise Failed(f"group {name!r} shares tokens with another group: each token belongs to one")
            seen |= mask
        if not inputs.groups["text"].any(1).all():
            raise Failed("a row has no text token: the instruction's tokens belong to the group 'text'")


@ON_DENSE
def left_padding(case: AdapterCase) -> None:
    """Shorter rows are padded on the left, and what stands on padding changes nothing."""
    import torch

    padded = False
    for inputs, _ in _batches(case):
        mask = inputs.attention_mask.bool()
        if (mask[:, :-1] & ~mask[:, 1:]).any() or not mask[:, -1].all():
            raise Failed("a row is not padded on the left: 0s of attention_mask have to come first")
        if not mask.all():
            padded = True
            noise = torch.where(mask[..., None], inputs.embeds, torch.randn_like(inputs.embeds))
            expected = case.logits(inputs, keep=1)
            case.same("noise on the padding", case.logits(replace(inputs, embeds=noise), keep=1), expected)
    if not padded:
        raise Skipped("no row needed padding")


@ON_DENSE
def modalities(case: AdapterCase) -> None:
    """A sample of each declared modality encodes; other media change its tokens, and no text token."""
    for name, sample in case.samples.items():
        try:
            inputs = case.encode([sample])
        except (PruneBenchError, ValueError, TypeError) as error:
            raise Failed(f"{name} is declared, but its sample does not encode: {typed_line(error)}") from error
        other = altered(sample)
        if name == "text" or other is None:
            continue
        changed = case.encode([other])
        if changed.embeds.shape != inputs.embeds.shape:
            continue  # another number of tokens is a difference
        tokens = (changed.embeds != inputs.embeds).any(-1)
        if not tokens.any() and not _differ(inputs.extra, changed.extra):
            raise Failed(f"{name} is declared, but another {name} gives the same decoder inputs")
        if (tokens & inputs.groups["text"]).any():
            raise Failed(f"the group 'text' holds {name} tokens: put them into {MEDIA_GROUP[name]!r}")


def _differ(first: dict[str, Any], second: dict[str, Any]) -> bool:
    import torch

    def tensors(value: Any) -> list[torch.Tensor]:
        if isinstance(value, torch.Tensor):
            return [value]
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
        return [tensor for part in parts for tensor in tensors(part)]

    mine, theirs = tensors(first), tensors(second)
    return len(mine) != len(theirs) or any(not torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@ON_DENSE
def layers(case: AdapterCase) -> None:
    """Every decoder layer that decoder() names runs once in a forward pass, in order."""
    ran: list[int] = []
    handles = [
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, layer in enumerate(case.loaded.layers)
    ]
    try:
        case.logits(case.inputs[0], keep=1)
    finally:
        for handle in handles:
            handle.remove()
    if ran != list(range(len(case.loaded.layers))):
        raise Failed(f"the layers that ran are {ran} of {len(case.loaded.layers)}: decoder() names another module")


@ON_DENSE
def logits_to_keep(case: AdapterCase) -> None:
    """forward() gives logits for every token, and with logits_to_keep=1 the last of them."""
    for inputs in case.inputs:
        full = case.logits(inputs)
        if tuple(full.shape[:2]) != tuple(inputs.attention_mask.shape):
            raise Failed(f"forward() gave logits {tuple(full.shape)} for inputs {tuple(inputs.embeds.shape)}")
        case.same("logits_to_keep=1 against the last of all", case.logits(inputs, keep=1), full[:, -1:])


@ON_DENSE
def batch(case: AdapterCase) -> None:
    """A batch gives what batches of one give."""
    if not case.loaded.adapter.batching:
        raise Skipped("the adapter declares batching = False")
    together = case.logits(case.inputs[0], keep=1)
    for row, sample in enumerate(case.batch):
        alone = case.logits(case.encode([sample]), keep=1)
        case.same(f"sample {sample.id!r} in a batch and alone", together[row : row + 1], alone)


@ON_DENSE
def cache(case: AdapterCase) -> None:
    """Prefill and decoding steps with a cache give the logits of forward() without one."""
    case.cache_agrees()


@ON_DENSE
def generate(case: AdapterCase) -> None:
    """generate() gives one text for each row, the same ones again."""
    import torch

    for inputs in case.inputs:
        with torch.inference_mode():
            first, second = (case.loaded.generate(inputs, 3) for _ in range(2))
        if len(first) != len(inputs.attention_mask) or not all(isinstance(text, str) for text in first):
            raise Failed(f"generate() gave {first!r} for {len(inputs.attention_mask)} rows: give a text for each")
        if first != second:
            raise Failed(f"generate() gave {first} and then {second}: decode greedily (do_sample=False)")


@ON_DENSE
def determinism(case: AdapterCase) -> None:
    """The same samples give the same inputs and the same logits."""
    import torch

    for inputs, samples in _batches(case):
        again = case.encode(samples)
        if not torch.equal(again.embeds, inputs.embeds):
            raise Failed("encode() gives other embeddings for the same samples: take randomness out, call .eval()")
        first, second = (on_real_tokens(inputs, case.logits(each)) for each in (inputs, again))
        case.same("the same inputs twice", second, first, tight=True)


def _batches(case: AdapterCase) -> list[tuple[Any, list[Sample]]]:
    if case.loaded.adapter.batching:
        return [(case.inputs[0], case.batch)]
    return [(inputs, [sample]) for inputs, sample in zip(case.inputs, case.batch, strict=True)]
