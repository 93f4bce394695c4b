"""Asking the dense model what it would lose: losses, output changes and gradients with layers left out.

Towers run once, their outputs are cached by the run's encoder; each question runs only the layers behind the first one
that is left out, from states that were kept. No weight is changed.
"""

from __future__ import annotations

from prunebench.probing.counts import Counts
from prunebench.probing.questions import balanced
from prunebench.probing.remembered import Remembered
from prunebench.probing.units import Unit, join

__all__ = ["Counts", "Probe", "Remembered", "Unit", "balanced", "join"]


def __getattr__(name: str) -> object:
    if name == "Probe":  # torch is not needed to name what a probe leaves out
        from prunebench.probing.probe import Probe

        return Probe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
