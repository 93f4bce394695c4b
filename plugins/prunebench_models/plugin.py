"""Registers the model adapters and their datasets."""

from __future__ import annotations

from prunebench.hookspecs import hookimpl


@hookimpl
def prunebench_register_models(register):
    from prunebench_models.testbed.adapter import Testbed

    register(Testbed)


@hookimpl
def prunebench_register_datasets(register):
    from prunebench_models.testbed.data.dataset import TestbedDataset

    register(TestbedDataset)
