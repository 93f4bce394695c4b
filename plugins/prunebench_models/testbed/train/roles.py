"""What every decoder layer is planted to be: the ground truth that pruning methods are scored against."""

from __future__ import annotations

__all__ = [
    "CORE",
    "CRITICAL",
    "DECOY",
    "DECOY_DISTANCE",
    "LAYERS",
    "REDUNDANT",
    "RELIED_ON",
    "REMOVABLE",
    "SILENT",
    "TARGET_UPDATE",
    "planted_roles",
]

LAYERS = 16

# layer: share of its updates, ‖output − input‖ / ‖input‖, that training steers it to
REDUNDANT: dict[int, float] = {8: 0.02, 3: 0.03, 11: 0.045, 4: 0.06, 9: 0.12, 1: 0.24, 13: 0.28, 6: 0.32}
SILENT_UPDATE: dict[int, float] = {7: 0.08, 10: 0.11}
# silent-critical layer: the domains that rely on it; on the others it is dropped now and then
SILENT: dict[int, tuple[str, ...]] = {7: ("video", "audio"), 10: ("math",)}
DECOY = (5, 12)
DECOY_DISTANCE = 0.2  # 1 − cos(input, output) that decoys are pushed beyond: larger than a redundant layer's by far
CRITICAL = (0, 2, 14, 15)
# layers that answers are made to rest on, with the domains: without such a layer only some answers are to be right
RELIED_ON: dict[int, tuple[str, ...]] = {**SILENT}

CORE = tuple(sorted((*CRITICAL, *SILENT)))
REMOVABLE = tuple(sorted((*REDUNDANT, *DECOY)))
TARGET_UPDATE = {**REDUNDANT, **SILENT_UPDATE}


def planted_roles() -> dict[str, list[int]]:
    """Layers (0-based) by role, as written to ``config.json``."""
    return {
        "critical": list(CRITICAL),
        "silent_critical": sorted(SILENT),
        "redundant": sorted(REDUNDANT),
        "decoy": list(DECOY),
    }
