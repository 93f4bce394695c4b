"""The one streaming pass: samples go through the dense model once, hooks on the decoder layers keep what is asked for.

Hidden states come from our own forward hooks, never from `output_hidden_states`: its last entry is taken after the
final norm in transformers. Sums are accumulated in float32 whatever the model's dtype is. Only one batch of hidden
states is alive at a time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from prunebench.adapter import DecoderInputs, LoadedModel
from prunebench.calibration.batch import GROUPS, Batch, NotShown, append_aggregator
from prunebench.calibration.capture import layer_boundaries, watch
from prunebench.calibration.samples import Sample, fingerprint
from prunebench.calibration.statistics import STATISTICS, Request, resolve
from prunebench.calibration.trace import Trace, TraceMeta, trace_key
from prunebench.errors import CalibrationError
from prunebench.model_info import ModelInfo

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["GROUPS", "MAX_TRACE_GIB", "STATISTICS", "calibrate", "hidden_states", "trace_bytes"]

MAX_TRACE_GIB = 8.0
"""Larger traces are refused before the model runs; the environment variable PRUNEBENCH_MAX_TRACE_GIB says otherwise."""


def calibrate(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    statistics: Iterable[str],
    *,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
    encode: Callable[[Sequence[Sample]], DecoderInputs] | None = None,
    mark: str | None = None,
) -> Trace:
    """Collect `statistics` (names from `STATISTICS`, with a value where one takes it) over `samples` in one pass.

    Args:
        loaded: the dense model.
        samples: what goes through it.
        statistics: what to collect.
        batch_size: samples per forward pass.
        progress: called with (samples done, samples in all).
        encode: gives a batch's decoder inputs; ``loaded.encode`` by default, a cache where there is one.
        mark: the samples' fingerprint, where it has been taken already.

    Raises:
        CalibrationError: no samples, a trace that would be too large, or hidden states that are not finite (names layer
            and sample). A statistic that this architecture cannot give is left out, and says why when it is read.
        UnknownName: a statistic that does not exist.
        BadParameter: a value that a statistic does not take.
    """
    import torch

    if not samples:
        raise CalibrationError("no calibration samples: give a dataset with at least one")
    requests = {request.canonical: request for request in map(resolve, statistics)}
    wanted = [requests[name] for name in sorted(requests)]
    _check_size(loaded.info, len(samples), wanted)
    unavailable: dict[str, str] = {}
    room: list[Tensor] = []
    started = time.perf_counter()
    arrays: dict[str, np.ndarray] = {}
    tokens = 0
    step = batch_size if loaded.adapter.batching else 1
    with torch.inference_mode():
        for start in range(0, len(samples), step):
            part = list(samples[start : start + step])
            inputs = (encode or loaded.encode)(part)
            tokens += inputs.n_tokens
            while True:
                try:
                    batch = _observe(loaded, inputs, part, wanted, room)
                    break
                except NotShown as error:  # the other statistics, and the methods that read them, go on without it
                    lost = [request for request in wanted if _needs(request, error.watch)]
                    unavailable |= {request.canonical: str(error) for request in lost}
                    wanted = [request for request in wanted if request not in lost]
                    for name in [n for n in arrays for request in lost if n.startswith(request.canonical)]:
                        arrays.pop(name, None)
            found = {"token_count": batch.token_counts()}
            for request in wanted:
                found.update(request.statistic.compute(batch, request.value))
            for name, value in found.items():
                _store(arrays, name, value.cpu().numpy(), start, len(samples))
            if progress:
                progress(min(start + step, len(samples)), len(samples))
    mark = mark or fingerprint(samples)
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
        statistics=tuple(request.canonical for request in wanted),
        unavailable=unavailable,
        domains=tuple(sample.domain for sample in samples),
        sample_ids=tuple(sample.id for sample in samples),
        tokens=tokens,
        seconds=time.perf_counter() - started,
    )
    return Trace(meta, arrays)


def hidden_states(loaded: LoadedModel, inputs: DecoderInputs) -> Tensor:
    """Raw residual stream of one batch, (L + 1, batch, tokens, hidden) in float32: [0] is layer 0's input."""
    import torch

    states: list[Tensor] = []
    with layer_boundaries(loaded, lambda _boundary, hidden: states.append(hidden.float())):
        loaded.adapter.forward(loaded, inputs, logits_to_keep=1)
    return torch.stack(states)


def _observe(
    loaded: LoadedModel, inputs: DecoderInputs, part: Sequence[Sample], wanted: Sequence[Request], room: list[Tensor]
) -> Batch:
    """One forward pass and all that `wanted` has to see of it."""
    watched = frozenset().union(*(request.statistic.watch for request in wanted))
    if "aggregator" in watched:
        inputs = append_aggregator(inputs)
    batch = Batch(inputs, part, loaded.info.n_layers, room)
    mlp_tokens = [int(request.value) for request in wanted if request.name == "mlp_outputs"]
    with watch(loaded, batch, watched, mlp_tokens):
        loaded.adapter.forward(loaded, inputs, logits_to_keep=1)
    batch.check_finite()
    return batch


def _needs(request: Request, watched: str) -> bool:
    """Whether a statistic is lost with something; what an MLP adds is checked against the stream inside its layer."""
    return bool(request.statistic.watch & ({watched, "mlp"} if watched == "sublayers" else {watched}))


def trace_bytes(info: ModelInfo, n_samples: int, statistics: Iterable[str]) -> dict[str, int]:
    """How large each of `statistics` will be in the trace, by its canonical name."""
    return {request.canonical: _bytes(info, n_samples, request) for request in map(resolve, statistics)}


def _bytes(info: ModelInfo, n_samples: int, request: Request) -> int:
    number = 4 if info.dtype == "float32" else 2
    return n_samples * request.statistic.size(info.n_layers, info.hidden_size, number, request.value)


def _check_size(info: ModelInfo, n_samples: int, wanted: Sequence[Request]) -> None:
    text = os.environ.get("PRUNEBENCH_MAX_TRACE_GIB", "")
    try:
        limit = float(text) if text else MAX_TRACE_GIB
    except ValueError:
        raise CalibrationError(f"PRUNEBENCH_MAX_TRACE_GIB={text!r} is not a number: give GiB, as in 16") from None
    sizes = {request.canonical: _bytes(info, n_samples, request) / 2**30 for request in wanted}
    if (total := sum(sizes.values())) > limit:
        largest = max(sizes, key=sizes.__getitem__)
        raise CalibrationError(
            f"the calibration trace would take {total:.1f} GiB, {sizes[largest]:.1f} of it {largest}: ask for fewer "
            f"tokens or samples (--n-calibration), or set PRUNEBENCH_MAX_TRACE_GIB (now {limit:g})"
        )


def _store(arrays: dict[str, np.ndarray], name: str, value: np.ndarray, start: int, n_samples: int) -> None:
    """Write a batch's rows into the array of all samples; one that is wider than those before widens it with zeros."""
    if name not in arrays:
        arrays[name] = np.zeros((n_samples, *value.shape[1:]), dtype=value.dtype)
    if value.ndim == 2 and value.shape[1] > arrays[name].shape[1]:
        arrays[name] = np.pad(arrays[name], ((0, 0), (0, value.shape[1] - arrays[name].shape[1])))
    if value.ndim == 2:
        arrays[name][start : start + len(value), : value.shape[1]] = value
    else:
        arrays[name][start : start + len(value)] = value
