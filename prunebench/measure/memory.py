"""Memory that has to be measured. What this machine cannot tell is None, never zero."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

__all__ = ["TorchPeak", "nvml_process_bytes", "peak_rss_bytes", "torch_peak"]


class TorchPeak:
    """Peak bytes of torch's CUDA allocator inside a `torch_peak` block; None on other devices."""

    allocated: int | None = None
    reserved: int | None = None


@contextmanager
def torch_peak(device: torch.device) -> Iterator[TorchPeak]:
    """Measure the allocator's peak over a block, starting from what is allocated when the block is entered."""
    import torch

    peak = TorchPeak()
    if device.type != "cuda":
        yield peak
        return
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    yield peak
    torch.cuda.synchronize(device)
    peak.allocated = torch.cuda.max_memory_allocated(device)
    peak.reserved = torch.cuda.max_memory_reserved(device)


def peak_rss_bytes() -> int | None:
    """Highest resident set size of this process so far."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux, bytes on macOS


def nvml_process_bytes(device: torch.device) -> int | None:
    """GPU memory that the driver books on this process (context and libraries included), or None.

    The device is found by its UUID: torch and NVML may number cards differently. In containers NVML may hide process
    ids; then this is None.
    """
    if device.type != "cuda":
        return None
    import torch

    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid == os.getpid():
                return process.usedGpuMemory
    except (pynvml.NVMLError, AttributeError):
        return None
    finally:
        pynvml.nvmlShutdown()
    return None
