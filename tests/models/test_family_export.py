"""Exports of models with towers, loaded again by their own adapters: media in, the pruned model's logits out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from prunebench_models.hf.adapter import TransformersModel
from prunebench_models.videollama2.adapter import VideoLlama2
from safetensors import safe_open

import prunebench
from prunebench import LoadOptions, Plan, Sample, pruned
from tests.data.videollama2.weights import write_checkpoint
from tests.exports import reload_here
from tests.models.family_processors import save_checkpoint
from tests.models.test_videollama2_adapter import LAYERS, SHAPES

IMAGE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


@pytest.fixture(autouse=True)
def same_process(monkeypatch):
    reload_here(monkeypatch)


def same_answers(adapter_class, base, new, plan, sample):
    """The exported folder through its adapter against the dense model pruned in memory."""
    dense = adapter_class().load(LoadOptions(name=adapter_class.name, path=str(base)))
    other = adapter_class().load(LoadOptions(name=adapter_class.name, path=str(new)))
    assert other.info.n_layers == dense.info.n_layers - len(plan.removed_layers)
    with torch.inference_mode():
        found = other.adapter.forward(other, other.encode([sample]))
        with pruned(dense, plan):
            expected = dense.adapter.forward(dense, dense.encode([sample]))
    return torch.equal(found, expected)


@pytest.mark.parametrize("name", ["Qwen3VL", "Llava"])
def test_hub_families(tmp_path, name):
    """Visual features that are added by layer position come out right after the reload, and the card says how."""
    base, new = tmp_path / "base", tmp_path / "new"
    save_checkpoint(name, base)
    info = TransformersModel().load(LoadOptions(name="hf", path=str(base))).info
    plan = Plan.drop(info, (0, 2))
    report = prunebench.export(plan, new, model="hf", model_path=base)
    assert report.model_class.startswith("transformers:")
    assert same_answers(TransformersModel, base, new, plan, Sample(id="a", instruction="w3 w4", images=(IMAGE,)))
    assert ("ties inputs to layer positions" in (new / "README.md").read_text()) == (name == "Qwen3VL")
    for path in base.glob("*processor*.json"):
        assert (new / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["7b", "2.1-7b-av"])
def test_videollama2(tmp_path, name):
    """Official key names in, official key names out; loaded by our own class."""
    base = write_checkpoint(folder=tmp_path / name, layers=LAYERS, **SHAPES[name])
    new = tmp_path / "new"
    plan = Plan.drop(VideoLlama2().load(LoadOptions(path=str(base))).info, (0, 3))
    report = prunebench.export(plan, new, model="videollama2", model_path=base)
    assert report.model_class.startswith("prunebench_models.videollama2.modeling:")
    sample = Sample(id="a", instruction="What is it?", video=np.stack([IMAGE] * 4))
    assert same_answers(VideoLlama2, base, new, plan, sample)

    def beside_the_layers(folder):
        files = [safe_open(path, "pt") for path in folder.glob("*.safetensors")]
        return {key for file in files for key in file.keys() if not key.startswith("model.layers.")}  # noqa: SIM118

    # Of one tensor under several names, saving keeps the first.
    missing = beside_the_layers(base) - beside_the_layers(new)
    assert beside_the_layers(new) <= beside_the_layers(base)
    assert all("relative_attention_bias" in key for key in missing)
    assert json.loads((new / "config.json").read_text())["prunebench"]["removed_layers"] == [0, 3]
