"""Registers the model adapters and their datasets."""

from __future__ import annotations

from prunebench.hookspecs import hookimpl


@hookimpl
def prunebench_register_models(register):
    from prunebench_models.hf.adapter import FAMILY_ADAPTERS, TransformersModel
    from prunebench_models.smollm2.adapter import SmolLM2
    from prunebench_models.smollm2.vl.adapter import SmolLM2VLAdapter
    from prunebench_models.testbed.adapter import Testbed
    from prunebench_models.videollama2.adapter import VideoLlama2

    register(SmolLM2)
    register(SmolLM2VLAdapter)
    register(TransformersModel)
    for adapter in FAMILY_ADAPTERS:
        register(adapter)
    register(Testbed)
    register(VideoLlama2)


@hookimpl
def prunebench_register_datasets(register):
    from prunebench_models.procedural import ProceduralDataset
    from prunebench_models.smollm2.text import TextDataset
    from prunebench_models.smollm2.vl.adapter import ImageQuestions
    from prunebench_models.testbed.data.dataset import TestbedDataset

    register(ProceduralDataset)
    register(TestbedDataset)
    register(TextDataset)
    register(ImageQuestions)
