"""A small LVLM that ships with PruneBench, and whose redundant layers are known because they were planted.

Loading (nothing is downloaded)::

    from prunebench_models.testbed import TestbedForConditionalGeneration, TestbedProcessor, weights_dir

    model = TestbedForConditionalGeneration.from_pretrained(weights_dir(), dtype="float32").eval()
    processor = TestbedProcessor.from_pretrained(weights_dir())

The weights are stored in bfloat16; the reported accuracies are for the same weights loaded as float32.

Prompting: ``processor.from_samples(samples)`` makes a left-padded batch for ``model.generate(**batch)``. By hand, a
prompt is ``"<bos> <image> what color is the ring <answer>"``: media tags first (``<image>``, ``<video>``,
``<audio>``, one per item), then the words, then ``<answer>``. Answers are one word, followed by ``<eos>``.
``TestbedDataset().samples(split, n, domain=...)`` makes questions in the domains general, math, video and audio.

Layers: ``model.get_decoder().layers`` (16 of them) with ``model.config.get_text_config()`` as their configuration.
``model.embed(...)`` runs towers and splicing alone, ``model(inputs_embeds=...)`` the decoder alone.

Roles, in ``model.config.planted_roles`` (0-based layer numbers of the shipped model):

- ``critical``: never skipped in training; removing one does great harm in every domain.
- ``silent_critical``: change their input little, and are needed all the same: layer 7 for video and audio, layer 10
  for math. In the other domains they can go. (Where such a layer is missing, training asks for wrong answers.)
- ``redundant``: skipped at random in training, in subsets of every size; they change their input little.
- ``decoy``: skipped in the same way, but trained to change their input a lot.

``redundant`` and ``decoy`` layers are the ones that can go. Training: ``python -m prunebench_models.testbed.train``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration import TestbedConfig
    from .data import TestbedDataset
    from .evaluation import evaluate, generate_answers
    from .modeling import TestbedForConditionalGeneration
    from .processing import TestbedProcessor

__all__ = [
    "TestbedConfig",
    "TestbedDataset",
    "TestbedForConditionalGeneration",
    "TestbedProcessor",
    "evaluate",
    "generate_answers",
    "weights_dir",
]

_HOMES = {
    "TestbedConfig": "configuration",
    "TestbedDataset": "data",
    "TestbedForConditionalGeneration": "modeling",
    "TestbedProcessor": "processing",
    "evaluate": "evaluation",
    "generate_answers": "evaluation",
}


def weights_dir() -> Path:
    """Folder of the shipped weights, tokenizer and processor, inside the installed package."""
    return Path(__file__).parent / "weights"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
