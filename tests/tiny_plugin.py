"""An unpackaged plugin with the conformance kit's random tiny models and datasets: what the contract tests run on."""

from __future__ import annotations

from prunebench import hookimpl
from prunebench.testing.tiny import TinyGemma, TinyLlama, TinyMedia, TinyText

__all__ = ["TinyGemma", "TinyLlama", "TinyMedia", "TinyText"]


@hookimpl
def prunebench_register_models(register):
    register(TinyLlama)
    register(TinyGemma)


@hookimpl
def prunebench_register_datasets(register):
    register(TinyText)
    register(TinyMedia)
