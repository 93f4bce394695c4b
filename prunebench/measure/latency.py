"""Latency by phase: encoder, prefill, per-token decode, end to end. Dense and pruned in turn, in one process.

Interleaving (dense, pruned, dense, pruned, ...) puts drift of the machine into both alike, so their ratio stands where
the absolute numbers move. Token counts are fixed: a pruned model that stops early or never must not look fast or slow.
CUDA events on a GPU, a monotonic clock on a CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING

import numpy as np

from prunebench.measure.memory import torch_peak
from prunebench.store import Latency, Phase
from prunebench.surgery import pruned

if TYPE_CHECKING:
    import torch

    from prunebench.adapter import DecoderInputs, LoadedModel
    from prunebench.calibration.samples import Sample
    from prunebench.config import LatencySpec
    from prunebench.measure.memory import TorchPeak
    from prunebench.plan import Plan

__all__ = ["measure_latency"]

PHASES = ("encoder", "prefill", "decode", "end_to_end")


class _Clock:
    """Marks on a CUDA stream, or on a monotonic clock; milliseconds between marks are read after one final sync."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self.cuda = device.type == "cuda"
        self.device = device
        self._torch = torch

    def mark(self) -> object:
        if not self.cuda:
            return time.perf_counter()
        event = self._torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def sync(self) -> None:
        if self.cuda:
            self._torch.cuda.synchronize(self.device)

    def milliseconds(self, start: object, end: object) -> float:
        return start.elapsed_time(end) if self.cuda else (end - start) * 1000.0  # type: ignore[attr-defined,operator]


def measure_latency(
    loaded: LoadedModel,
    plan: Plan,
    samples: Sequence[Sample],
    spec: LatencySpec,
    progress: Callable[[int, int], None] | None = None,
    around: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> tuple[Latency, dict[str, TorchPeak]]:
    """Time one fixed batch through the dense and the pruned model.

    Args:
        loaded: the dense model.
        plan: what to remove; the empty plan times dense against itself.
        samples: at least `spec.batch_size` samples; the first ones form the batch.
        spec: warm-up, rounds, batch size and new tokens.
        progress: called with (rounds done, rounds in all).
        around: entered around each run of the pruned model, after the plan is applied; not timed itself.

    Returns:
        The timings, and torch's memory peaks of one prefill + decode for ``dense`` and ``pruned``.
    """
    import torch

    batch = [samples[i % len(samples)] for i in range(spec.batch_size)]
    clock = _Clock(loaded.device)
    times: dict[str, dict[str, list[float]]] = {w: {p: [] for p in PHASES} for w in ("dense", "pruned")}
    peaks: dict[str, TorchPeak] = {}
    prompt_tokens = 0
    with torch.inference_mode():
        for round_ in range(spec.warmup + spec.rounds):
            # Which goes first alternates too, so that neither always runs on the other's warm caches.
            for which in ("dense", "pruned") if round_ % 2 == 0 else ("pruned", "dense"):
                with ExitStack() as stack:
                    if which == "pruned":
                        stack.enter_context(pruned(loaded, plan))
                        stack.enter_context(around())
                    last = round_ == spec.warmup + spec.rounds - 1
                    with torch_peak(loaded.device) if last else nullcontext() as peak:
                        found, prompt_tokens = _once(loaded, batch, spec.new_tokens, clock)
                    if last:
                        peaks[which] = peak
                if round_ >= spec.warmup:
                    for phase, value in found.items():
                        times[which][phase].append(value)
            if progress:
                progress(round_ + 1, spec.warmup + spec.rounds)
    return Latency(
        device=_device_name(loaded.device),
        clock="cuda events" if clock.cuda else "monotonic clock",
        batch_size=spec.batch_size,
        prompt_tokens=prompt_tokens,
        new_tokens=spec.new_tokens,
        **{phase: _phase(times["pruned"][phase], times["dense"][phase]) for phase in PHASES},
    ), peaks


def _once(loaded: LoadedModel, batch: Sequence[Sample], new_tokens: int, clock: _Clock) -> tuple[dict[str, float], int]:
    clock.sync()
    start = clock.mark()
    inputs: DecoderInputs = loaded.encode(batch)
    encoded = clock.mark()
    logits, state = loaded.adapter.prefill(loaded, inputs)
    token = logits.argmax(-1)
    prefilled = clock.mark()
    for _ in range(new_tokens - 1):
        logits, state = loaded.adapter.decode_step(loaded, token, state)
        token = logits.argmax(-1)
    end = clock.mark()
    clock.sync()
    return {
        "encoder": clock.milliseconds(start, encoded),
        "prefill": clock.milliseconds(encoded, prefilled),
        "decode": clock.milliseconds(prefilled, end) / (new_tokens - 1),
        "end_to_end": clock.milliseconds(start, end),
    }, inputs.embeds.shape[1]


def _phase(own: list[float], dense: list[float]) -> Phase:
    def spread(values: list[float]) -> tuple[float, float, float]:
        low, middle, high = np.percentile(values, (10, 50, 90))
        return round(float(middle), 4), round(float(low), 4), round(float(high), 4)

    median, p10, p90 = spread(own)
    dense_median, dense_p10, dense_p90 = spread(dense)
    return Phase(
        median=median, p10=p10, p90=p90, dense_median=dense_median, dense_p10=dense_p10, dense_p90=dense_p90, n=len(own)
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    from prunebench.environment import cpu_name

    return cpu_name()
