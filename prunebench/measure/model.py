"""Latency and memory of a pruned model beside the dense one, as they go into a record."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prunebench.adapter import LoadedModel
from prunebench.calibration.samples import Sample
from prunebench.config import LatencySpec
from prunebench.measure.cost import weight_bytes
from prunebench.measure.latency import measure_latency
from prunebench.measure.memory import nvml_process_bytes, peak_rss_bytes
from prunebench.plan import Plan
from prunebench.store import Latency, Memory
from prunebench.surgery import pruned

__all__ = ["measure_model"]


def measure_model(
    loaded: LoadedModel,
    plan: Plan,
    samples: Sequence[Sample],
    spec: LatencySpec,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Latency | None, Memory]:
    """Measure `plan` on `loaded`.

    Args:
        loaded: the dense model; it is dense again afterwards.
        plan: what to remove.
        samples: questions to time.
        spec: how to time; no latency where it is not enabled.
        progress: called with (rounds done, rounds in all).
    """
    latency, peaks = measure_latency(loaded, plan, samples, spec, progress) if spec.enabled else (None, {})
    with pruned(loaded, plan):
        weights = weight_bytes(loaded.model)
    return latency, Memory(
        weights=weights,
        dense_weights=loaded.info.model_bytes,
        kv_bytes_per_token=sum(loaded.info.layers[layer].kv_bytes_per_token for layer in plan.attention_layers),
        torch_peak_allocated=getattr(peaks.get("pruned"), "allocated", None),
        dense_torch_peak_allocated=getattr(peaks.get("dense"), "allocated", None),
        torch_peak_reserved=getattr(peaks.get("pruned"), "reserved", None),
        dense_torch_peak_reserved=getattr(peaks.get("dense"), "reserved", None),
        nvml_process=nvml_process_bytes(loaded.device),
        peak_rss=peak_rss_bytes(),
    )
