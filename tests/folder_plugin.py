"""An unpackaged plugin with an adapter for any transformers folder, without tokenizer or media."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
import transformers

from prunebench import LoadedModel, LoadOptions, hookimpl
from prunebench.checkpoint import dense_info, load_pretrained, read_json
from prunebench.measure.cost import checkpoint_revision
from tests.tiny_families import Plain


class Folder(Plain):
    """The class that config.json names, from the folder given."""

    name = "folder"

    def load(self, options=LoadOptions()):
        folder = Path(options.path)
        model_class = getattr(transformers, read_json(folder / "config.json")["architectures"][0])
        config = model_class.config_class.from_pretrained(folder)
        revision = checkpoint_revision(folder)
        info = dense_info(model_class, config, self, name=self.name, revision=revision, dtype=options.dtype)
        model = load_pretrained(model_class, folder, config, options)
        return LoadedModel(model, self, info, torch.device("cpu"), path=folder, plan=options.plan)


class _Stuck:
    """Writes half of what it should, says so, and goes no further."""

    def save_pretrained(self, folder):
        Path(folder, "tokenizer.json").write_text("{")
        Path(os.environ["STUCK"]).write_text(str(folder))
        time.sleep(600)


class StuckFolder(Folder):
    """An export of it never gets past the processor."""

    name = "stuck"

    def load(self, options=LoadOptions()):
        loaded = super().load(options)
        loaded.path, loaded.processor = None, _Stuck()
        return loaded


@hookimpl
def prunebench_register_models(register):
    register(Folder)
    register(StuckFolder)
