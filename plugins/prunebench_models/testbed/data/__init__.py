"""Procedural questions of the testbed (numpy only): ``TestbedDataset().samples("calibration", 64)``."""

from .dataset import DOMAINS, SPLITS, TestbedDataset

__all__ = ["DOMAINS", "SPLITS", "TestbedDataset"]
