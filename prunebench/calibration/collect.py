"""The one streaming pass: samples go through the dense model once, hooks on the decoder layers keep what is asked for.

Hidden states come from our own forward hooks, never from `output_hidden_states`: its last entry is taken after the
final norm in transformers. Everything is accumulated in float32 whatever the model's dtype is. Only one batch of
hidden states is alive at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from prunebench.adapter import DecoderInputs, LoadedModel
from prunebench.calibration.samples import Sample, fingerprint
from prunebench.calibration.trace import Trace, TraceMeta, trace_key
from prunebench.errors import CalibrationError, UnknownName

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["GROUPS", "STATISTICS", "calibrate", "hidden_states"]

GROUPS = ("all", "visual", "audio", "text", "last")
"""Token groups: ``all`` without padding, ``visual``, ``audio``, ``text`` disjoint, ``last`` the prompt's last token."""


def calibrate(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    statistics: frozenset[str],
    *,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
    encode: Callable[[Sequence[Sample]], DecoderInputs] | None = None,
) -> Trace:
    """Collect `statistics` (names from `STATISTICS`) over `samples` in one pass.

    Args:
        loaded: the dense model.
        samples: what goes through it.
        statistics: what to collect.
        batch_size: samples per forward pass.
        progress: called with (samples done, samples in all).
        encode: gives a batch's decoder inputs; ``loaded.encode`` by default, a cache where there is one.

    Raises:
        CalibrationError: no samples, or hidden states that are not finite (names layer and sample).
        UnknownName: a statistic that does not exist.
    """
    import torch

    if not samples:
        raise CalibrationError("no calibration samples: give a dataset with at least one")
    for name in statistics:
        if name not in STATISTICS:
            raise UnknownName("calibration statistic", name, STATISTICS)
    started = time.perf_counter()
    wanted = sorted(statistics)
    parts: dict[str, list[np.ndarray]] = {}
    tokens = 0
    step = batch_size if loaded.adapter.batching else 1
    with torch.inference_mode():
        for start in range(0, len(samples), step):
            batch = list(samples[start : start + step])
            inputs = (encode or loaded.encode)(batch)
            tokens += inputs.n_tokens
            if "points.aggregator" in statistics:
                inputs = _append_aggregator(inputs)
            states = _finite(hidden_states(loaded, inputs), inputs, batch)
            masks = _group_masks(inputs)
            view = _Batch(states, masks, aggregated="points.aggregator" in statistics)
            found = {"token_count": torch.stack([mask.sum(1) for mask in masks.values()], 1).float()}
            for name in wanted:
                found.update(STATISTICS[name](view))
            for key, value in found.items():
                parts.setdefault(key, []).append(value.cpu().numpy())
            if progress:
                progress(min(start + step, len(samples)), len(samples))
    mark = fingerprint(samples)
    info = loaded.info
    meta = TraceMeta(
        key=trace_key(info.name, info.revision, info.dtype, mark),
        model=info.name,
        revision=info.revision,
        dtype=info.dtype,
        n_layers=info.n_layers,
        hidden_size=info.hidden_size,
        n_samples=len(samples),
        fingerprint=mark,
        groups=GROUPS,
        statistics=tuple(wanted),
        domains=tuple(sample.domain for sample in samples),
        sample_ids=tuple(sample.id for sample in samples),
        tokens=tokens,
        seconds=time.perf_counter() - started,
    )
    return Trace(meta, {key: np.concatenate(value) for key, value in parts.items()})


def hidden_states(loaded: LoadedModel, inputs: DecoderInputs) -> Tensor:
    """Raw residual stream of one batch, (L + 1, batch, tokens, hidden) in float32: [0] is layer 0's input."""
    import torch

    states: list[Tensor] = []
    with _capture(loaded, states):
        loaded.adapter.forward(loaded, inputs, logits_to_keep=1)
    if len(states) != loaded.info.n_layers + 1:
        raise CalibrationError(
            f"{len(states) - 1} of {loaded.info.n_layers} decoder layers ran: "
            "calibration needs the dense model and all its layers"
        )
    return torch.stack([state.float() for state in states])


@contextmanager
def _capture(loaded: LoadedModel, states: list[Tensor]):
    def before(_module: Any, args: tuple, kwargs: dict) -> None:
        states.append(args[0] if args else kwargs["hidden_states"])

    def after(_module: Any, _args: tuple, output: Any) -> None:
        states.append(output if not isinstance(output, tuple) else output[0])

    handles = [loaded.layers[0].register_forward_pre_hook(before, with_kwargs=True)]
    handles += [layer.register_forward_hook(after) for layer in loaded.layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _group_masks(inputs: DecoderInputs) -> dict[str, Tensor]:
    import torch

    real = inputs.attention_mask.bool()
    empty = torch.zeros_like(real)
    masks = {"all": real}
    masks.update({name: inputs.groups.get(name, empty).bool() & real for name in ("visual", "audio", "text")})
    if "aggregator" in inputs.groups:  # an added position: no part of the prompt
        masks["all"] = real & ~inputs.groups["aggregator"]
    last = empty.clone()
    rows, columns = torch.arange(len(real)), masks["all"].shape[1] - 1 - masks["all"].flip(1).float().argmax(1).cpu()
    last[rows, columns] = True
    masks["last"] = last & masks["all"]
    return {name: masks[name] for name in GROUPS}


def _append_aggregator(inputs: DecoderInputs) -> DecoderInputs:
    """One more position at the end that attends to the whole prompt; its embedding is the mean of the text embeddings.

    Attention is causal, so no other position sees it and every other statistic stays what it was. Our reading of an
    untrained aggregation token: its embedding is not specified by the paper.
    """
    import torch

    text = inputs.groups["text"].bool() & inputs.attention_mask.bool()
    weights = text.to(inputs.embeds.dtype).unsqueeze(-1)
    mean = (inputs.embeds * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp(min=1)
    if inputs.extra:
        raise CalibrationError(
            "points=aggregator does not fit a model with position ids of its own: use points=last or mean"
        )
    one = torch.ones_like(inputs.attention_mask[:, :1])
    groups = {name: torch.cat([mask, torch.zeros_like(mask[:, :1])], 1) for name, mask in inputs.groups.items()}
    groups["aggregator"] = torch.cat([torch.zeros_like(text), torch.ones_like(text[:, :1])], 1)
    return DecoderInputs(
        torch.cat([inputs.embeds, mean.to(inputs.embeds.dtype)], 1),
        torch.cat([inputs.attention_mask, one], 1),
        groups,
        sample_ids=inputs.sample_ids,
    )


def _finite(states: Tensor, inputs: DecoderInputs, batch: Sequence[Sample]) -> Tensor:
    """The states, or an error that names layer and sample; padding may hold anything and is set to zero if it does."""
    import torch

    finite = torch.isfinite(states).all(-1)
    if finite.all():
        return states
    bad = ~finite & inputs.attention_mask.bool()
    if bad.any():
        layer, row, _ = (int(i) for i in bad.nonzero()[0])
        where = f"output of layer {layer - 1}" if layer else "input of layer 0"
        raise CalibrationError(
            f"hidden states are not finite ({where}, sample {batch[row].id!r}): "
            "try --dtype float32, or look at the weights"
        )
    return states.nan_to_num(0.0, 0.0, 0.0)


class _Batch:
    """One batch of hidden states with the group masks; what every statistic is computed from."""

    def __init__(self, states: Tensor, masks: dict[str, Tensor], *, aggregated: bool) -> None:
        import torch

        self.states = states  # (L+1, B, T, d)
        self.masks = masks
        self.aggregated = aggregated
        self.weights = torch.stack(list(masks.values()), 1).float()  # (B, G, T)

    def last(self) -> Tensor:
        """(L+1, B, d): the state at each prompt's last token."""
        import torch

        columns = self.masks["last"].float().argmax(1)
        return self.states[:, torch.arange(len(columns), device=columns.device), columns]

    def mean(self, group: str) -> Tensor:
        """(L+1, B, d): mean over a group's tokens; zero where a sample has none."""
        weights = self.masks[group].float()
        count = weights.sum(1).clamp(min=1)
        return (self.states * weights[None, :, :, None]).sum(2) / count[None, :, None]


def _token_cosine(batch: _Batch) -> dict[str, Tensor]:
    """S1: per sample and group, the sum over tokens of the (L+1, L+1) matrix of cosines.

    Unit vectors U (T, L+1, d) give U Uᵀ per token at once: about 0.05 % of a forward pass's FLOPs on a 7B model.
    """
    import torch

    norms = batch.states.norm(dim=-1, keepdim=True)
    units = torch.where(norms > 0, batch.states / norms.clamp(min=torch.finfo(torch.float32).tiny), 0.0)
    units = units.permute(1, 2, 0, 3)  # (B, T, L+1, d)
    cosines = (units @ units.transpose(-1, -2)).clamp_(-1.0, 1.0)  # (B, T, L+1, L+1)
    rows, tokens, n = cosines.shape[0], cosines.shape[1], cosines.shape[2]
    sums = batch.weights @ cosines.reshape(rows, tokens, n * n)
    return {"token_cosine": sums.reshape(rows, -1, n, n)}


def _norms(batch: _Batch) -> dict[str, Tensor]:
    """S2: sums of state norms and of update norms per sample and group."""
    import torch

    state = batch.states.norm(dim=-1)  # (L+1, B, T)
    update = (batch.states[1:] - batch.states[:-1]).norm(dim=-1)
    return {
        "state_norm": torch.einsum("lbt,bgt->bgl", state, batch.weights),
        "update_norm": torch.einsum("lbt,bgt->bgl", update, batch.weights),
    }


def _pooled(batch: _Batch) -> dict[str, Tensor]:
    """S4: mean visual, mean text and last state of every layer boundary."""
    import torch

    pooled = torch.stack([batch.mean("visual"), batch.mean("text"), batch.last()])  # (3, L+1, B, d)
    return {"pooled": pooled.permute(2, 0, 1, 3)}


def _points_last(batch: _Batch) -> dict[str, Tensor]:
    return {"points.last": batch.last()[1:].permute(1, 0, 2)}


def _points_mean(batch: _Batch) -> dict[str, Tensor]:
    return {"points.mean": batch.mean("all")[1:].permute(1, 0, 2)}


def _points_aggregator(batch: _Batch) -> dict[str, Tensor]:
    return {"points.aggregator": batch.states[1:, :, -1].permute(1, 0, 2)}


STATISTICS: dict[str, Callable[[_Batch], dict[str, Tensor]]] = {
    "token_cosine": _token_cosine,
    "norms": _norms,
    "pooled": _pooled,
    "points.last": _points_last,
    "points.mean": _points_mean,
    "points.aggregator": _points_aggregator,
}
"""What can be collected. A further statistic is one more function of a batch."""
