"""After selection, before judgement: what a pruned model gets back by a closed form or by training.

A stage of its own: it takes a plan and returns one with further operations and tensors. No weight of the loaded model
changes here; only the surgery applies what comes out.
"""

from __future__ import annotations

from prunebench.recovery.spec import (
    NAMES,
    LayerReplacement,
    Lora,
    Recovery,
    ReplaceMe,
    Tune,
    dense_recoveries,
    parse_recovery,
    recovery_class,
)

__all__ = [
    "NAMES",
    "LayerReplacement",
    "Lora",
    "Recovery",
    "ReplaceMe",
    "Tune",
    "dense_recoveries",
    "parse_recovery",
    "recover",
    "recovery_class",
]


def __getattr__(name: str) -> object:
    if name == "recover":  # torch is not needed to say what a run asks for
        from prunebench.recovery.stage import recover

        return recover
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
