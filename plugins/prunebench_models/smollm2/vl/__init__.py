"""SmolLM2-VL: the testbed's vision tower and a new projector in front of SmolLM2-135M-Instruct, with LoRA.

Only what was trained (projector, frame embedding, low-rank updates) and the small tower ship with the package, in
``vl_weights/``; they are merged with SmolLM2's own weights into a cached folder on first use. Training:
``python -m prunebench_models.smollm2.vl.train`` (``make smollm2-vl``).

A prompt is the beginning token, 16 tokens per image or video frame, then the instruction between two line breaks. The
answer follows, up to the end-of-turn token. Like the testbed it answers short questions about drawn scenes: a real
pretrained decoder with real layers under a toy's eyes.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["ADAPTER_FILE", "SETTINGS_FILE", "weights_dir"]

ADAPTER_FILE = "adapter.safetensors"
SETTINGS_FILE = "vl_settings.json"
"""Not ``adapter_config.json``: where peft is installed, transformers would read that as one of peft's."""


def weights_dir() -> Path:
    """Folder of the shipped adapter weights and their training log."""
    return Path(__file__).parent.parent / "vl_weights"
