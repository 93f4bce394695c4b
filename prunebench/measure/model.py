"""Latency and memory of a pruned model beside the dense one, as they go into a record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from prunebench.adapter import LoadedModel
from prunebench.budget import kv_bytes_per_token
from prunebench.calibration.samples import Sample
from prunebench.config import LatencySpec
from prunebench.errors import first_line
from prunebench.kinds import is_thinned, keeps_shapes
from prunebench.measure.cost import weight_bytes
from prunebench.measure.latency import measure_latency
from prunebench.measure.memory import TorchPeak, nvml_process_bytes, peak_rss_bytes
from prunebench.measure.sparse_kernels import semi_structured, why_not
from prunebench.measure.stored import stored_bytes
from prunebench.plan import Plan
from prunebench.store import Latency, Memory
from prunebench.surgery import pruned

__all__ = ["DENSE_KERNELS", "Measured", "measure_model"]

DENSE_KERNELS = "dense kernels: no shape changes"
"""Said of a plan that makes weights zero and nothing else: it takes the time that the dense model takes."""


class Measured(NamedTuple):
    """What goes into a record; `untimed` says why there is no latency where one was asked for."""

    latency: Latency | None
    memory: Memory
    untimed: str | None = None


def measure_model(
    loaded: LoadedModel,
    plan: Plan,
    samples: Sequence[Sample],
    spec: LatencySpec,
    progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """Measure `plan` on `loaded`.

    A plan that only makes weights zero is not timed unless a sparse kernel runs: the dense model's kernels would, and a
    difference of their times would be noise.

    Args:
        loaded: the dense model; it is dense again afterwards.
        plan: what to remove.
        samples: questions to time.
        spec: how to time; no latency where it is not enabled.
        progress: called with (rounds done, rounds in all).
    """
    latency, untimed, peaks = None, None, {}
    if spec.enabled and is_thinned(plan.kind) and keeps_shapes(plan):
        latency, untimed = _with_sparse_kernels(loaded, plan, samples, spec, progress)
    elif spec.enabled:
        latency, peaks = measure_latency(loaded, plan, samples, spec, progress)
    dense = stored_bytes(loaded.model, compress=False)
    with pruned(loaded, plan):
        weights, stored = weight_bytes(loaded.model), stored_bytes(loaded.model)
    memory = Memory(
        weights=weights,
        dense_weights=loaded.info.model_bytes,
        kv_bytes_per_token=kv_bytes_per_token(loaded.info, plan.ops),
        torch_peak_allocated=_peak(peaks, "pruned", "allocated"),
        dense_torch_peak_allocated=_peak(peaks, "dense", "allocated"),
        torch_peak_reserved=_peak(peaks, "pruned", "reserved"),
        dense_torch_peak_reserved=_peak(peaks, "dense", "reserved"),
        nvml_process=nvml_process_bytes(loaded.device),
        peak_rss=peak_rss_bytes(),
        stored=stored.plain,
        stored_compressed=stored.compressed,
        dense_stored=dense.plain,
    )
    return Measured(latency, memory, untimed)


def _with_sparse_kernels(
    loaded: LoadedModel,
    plan: Plan,
    samples: Sequence[Sample],
    spec: LatencySpec,
    progress: Callable[[int, int], None] | None,
) -> tuple[Latency | None, str | None]:
    """The time with sparse kernels, or why none runs.

    Memory peaks are left out: the dense weights stay in memory beside the sparse ones.
    """
    import torch

    if plan.kind == "weights":
        return None, DENSE_KERNELS
    if reason := why_not(loaded, plan.kind):
        return None, f"{DENSE_KERNELS}; {reason}"
    try:
        with pruned(loaded, plan), semi_structured(loaded.layers) as found:
            pass
        if not found.converted:
            return None, f"{DENSE_KERNELS}; {found.words}"
        latency, _ = measure_latency(
            loaded, plan, samples, spec, progress, around=lambda: semi_structured(loaded.layers)
        )
    except (RuntimeError, NotImplementedError) as error:  # a kernel that torch lacks shows when it is called
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return None, f"{DENSE_KERNELS}; the sparse ones failed: {first_line(error)}"
    return latency.model_copy(update={"kernels": found.words}), None


def _peak(peaks: dict[str, TorchPeak], which: str, what: str) -> int | None:
    return getattr(peaks.get(which), what, None)
