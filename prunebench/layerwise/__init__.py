"""Thinning weights layer by layer: the contract of a method, the one sweep that serves them all, and their base."""

from __future__ import annotations

from prunebench.layerwise.contract import Call, LayerView, LinearView, Thinned, Thinner
from prunebench.layerwise.strategy import UNSTRUCTURED, LayerwiseStrategy

__all__ = ["UNSTRUCTURED", "Call", "LayerView", "LayerwiseStrategy", "LinearView", "Thinned", "Thinner"]
