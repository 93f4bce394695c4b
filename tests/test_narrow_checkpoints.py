"""Narrowed and masked models, loaded by a plan, saved and loaded again: by config.json alone, or by PruneBench."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaForCausalLM

import prunebench
from prunebench import Plan, prune, pruned
from prunebench.checkpoint import narrowing
from prunebench.errors import ModelError, UsageError
from prunebench.plugins import get_plugins
from tests.commands import invoke
from tests.exports import reload_here
from tests.test_operations_export import dense_of
from tests.thinning import masks, slices
from tests.tiny_families import FAMILIES, logits, save

PLUGIN = Path(__file__).parent / "folder_plugin.py"
ALIKE = {"heads": 2, "channels": 20}


@pytest.fixture(autouse=True)
def plugin(fresh_plugins):
    get_plugins((str(PLUGIN),))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    names = {"llama": "llama", "llava": "llava", "qwen2-vl": "qwen2-vl", "gemma3": "gemma3 text", "moe": "qwen2 moe"}
    for name, family in names.items():
        save(FAMILIES[family], root / name)
    return {name: root / name for name in names}


def plan_of(loaded, layers=range(6), counts=ALIKE, more=()):
    ops, tensors, _ = slices(loaded, layers, counts)
    return Plan.of(loaded.info, [*ops, *more], tensors, kind="width")


def thinned(loaded):
    """Slices of some layers, masks of others and of one of them, and a layer that goes."""
    ops, tensors, _ = slices(loaded, (0, 3), ALIKE)
    more, others, _ = masks(loaded, (1, 4))
    return Plan.of(loaded.info, [*ops, *more, {"op": "drop_layer", "layer": 2}], {**tensors, **others})


def same(model, other):
    mine, theirs = model.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("name", ["llama", "llava", "qwen2-vl", "gemma3"])
def test_loading_with_a_plan_equals_pruning_what_was_loaded(folders, tmp_path, name):
    loaded = dense_of(folders[name])
    plan = thinned(loaded)
    plan.save(tmp_path / "plan.json")
    prune(loaded, plan)
    again = prunebench.load("folder", path=str(folders[name]), plan=tmp_path / "plan.json")
    assert same(again.model, loaded.model) and torch.equal(logits(again.model), logits(loaded.model))
    said = again.model.config.prunebench
    assert said == loaded.model.config.prunebench and said["operations"] == ["mask", "slice"]
    assert said["widths"] == {str(place): ALIKE for place in (0, 2)}  # of the checkpoint, without layer 2


def test_loading_by_a_plan_never_holds_old_and_new_weights_of_all_layers(folders, monkeypatch):
    """When the last layer is masked, nothing holds any more what stood in the first; `pruned` has to."""
    from prunebench import surgery_slices

    loaded = dense_of(folders["llama"])
    ops, tensors, _ = masks(loaded, (0, 1, 4))
    plan = Plan.of(loaded.info, ops, tensors, kind="weights")
    real, old, alive = surgery_slices.masked, [], {}

    def noted(op, layer, bits):
        if op.layer == 0:
            old.append(weakref.ref(layer.mlp.down_proj.weight))
        alive[op.layer] = old[-1]() is not None
        return real(op, layer, bits)

    monkeypatch.setattr(surgery_slices, "masked", noted)
    again = prunebench.load("folder", path=str(folders["llama"]), plan=plan)
    assert alive == {0: True, 1: False, 4: False}
    with pruned(loaded, plan):
        assert alive == {0: True, 1: True, 4: True} and same(again.model, loaded.model)
    assert old[-1]() is loaded.layers[0].mlp.down_proj.weight


@pytest.mark.parametrize("name", ["llama", "llava", "gemma3"])
def test_layers_narrowed_alike_are_said_by_the_configuration(folders, tmp_path, name, monkeypatch):
    reload_here(monkeypatch)
    loaded = dense_of(folders[name])
    plan = plan_of(loaded, more=[])
    prunebench.export(plan, tmp_path / "new", model_path=folders[name])
    model, found = type(loaded.model).from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    text = model.config.get_text_config()
    assert (text.num_key_value_heads, text.num_attention_heads, text.head_dim) == (2, 2, 8)
    assert text.intermediate_size == 20 and "widths" not in model.config.prunebench
    prune(loaded, plan)
    assert same(model, loaded.model) and torch.equal(logits(model.eval()), logits(loaded.model))
    card = (tmp_path / "new" / "README.md").read_text()
    assert "from_pretrained(FOLDER)" in card and "prunebench.load" not in card
    assert f"{loaded.info.model_params - sum(p.numel() for p in model.parameters()):,} parameters of layers 0–5" in card


CASES = {
    "some layers": ("llama", range(1, 4), ALIKE),
    "of a family with towers": ("llava", range(1, 4), ALIKE),
    "two norms within the heads": ("gemma3", range(1, 4), ALIKE),
    "heads of a size that follows from their number": ("qwen2-vl", range(6), ALIKE),
    "heads that the hidden size is no multiple of": ("llama", range(6), {"heads": 3}),
    "attention beside experts": ("moe", range(2, 5), {"heads": 1}),
}


@pytest.mark.parametrize(("name", "layers", "counts"), CASES.values(), ids=CASES.keys())
def test_other_widths_are_read_back_by_prunebench(folders, tmp_path, name, layers, counts, monkeypatch):
    reload_here(monkeypatch)
    loaded, lines = dense_of(folders[name]), []
    plan = plan_of(loaded, layers, counts)
    prunebench.export(plan, tmp_path / "new", model_path=folders[name], note=lines.append)
    assert any("only PruneBench loads this export" in line for line in lines)
    prune(loaded, plan)
    again = prunebench.load("folder", path=str(tmp_path / "new"))
    assert type(again.model) is type(loaded.model) and again.model.config.prunebench["widths"]
    assert same(again.model, loaded.model) and torch.equal(logits(again.model), logits(loaded.model))
    assert again.info.model_params == sum(p.numel() for p in loaded.model.parameters())
    dense = loaded.info
    assert again.info.kv_bytes_per_token == prunebench.budget.kv_bytes_per_token(dense, plan.ops)
    card = (tmp_path / "new" / "README.md").read_text()
    assert "prunebench.load('folder', path=FOLDER)" in card and "of different widths" in card
    # The class with narrow layers does the same for whoever wants no more than the model.
    built = narrowing.folder_class(type(loaded.model), tmp_path / "new").from_pretrained(tmp_path / "new").eval()
    assert same(built, loaded.model)


def test_a_fresh_process_loads_other_widths(folders, tmp_path):
    loaded = dense_of(folders["llama"])
    plan = plan_of(loaded, (2, 4), {"heads": 1})
    plan.save(tmp_path / "plan.json")
    result = invoke(
        "--plugin", PLUGIN, "export", tmp_path / "plan.json", "--to", tmp_path / "new", "--model-path", folders["llama"]
    )
    assert result.exit_code == 0, result.output
    with safe_open(tmp_path / "new" / "model.safetensors", "pt") as file:
        shapes = [file.get_slice(f"model.layers.{i}.self_attn.k_proj.weight").get_shape() for i in range(6)]
    assert shapes == [[32, 32], [32, 32], [8, 32], [32, 32], [8, 32], [32, 32]]
    assert Plan.load(tmp_path / "new" / "plan.json") == plan


def test_zeros_are_in_the_files_of_a_masked_model(folders, tmp_path, monkeypatch):
    reload_here(monkeypatch)
    loaded = dense_of(folders["llama"])
    ops, tensors, keeps = masks(loaded, (1, 2))
    values = torch.randn(32, 48, generator=torch.Generator().manual_seed(0))
    ops.append({"op": "set_weights", "layer": 1, "tensors": "w"})
    plan = Plan.of(loaded.info, ops, {**tensors, "w.mlp.down_proj.weight": values}, kind="weights")
    prunebench.export(plan, tmp_path / "new", model_path=folders["llama"])
    model = LlamaForCausalLM.from_pretrained(tmp_path / "new").eval()
    down = model.model.layers[1].mlp.down_proj.weight
    assert torch.equal(down, values * keeps["m1.mlp.down_proj.weight"])
    prune(loaded, plan)
    assert same(model, loaded.model)
    assert model.config.prunebench["operations"] == ["mask", "set_weights"]
    zeros = sum(op["zeros"] for op in ops[:2])
    card = (tmp_path / "new" / "README.md").read_text()
    assert "weights set to zero (unstructured)" in card and f"{zeros:,} in layers 1, 2" in card


@pytest.fixture
def narrow(folders, tmp_path):
    """A checkpoint whose layers 1, 2 and 4 are narrow."""
    loaded = dense_of(folders["llama"])
    prune(loaded, plan_of(loaded, (1, 2, 4)))
    loaded.model.save_pretrained(tmp_path / "narrow", max_shard_size="60KB")
    return tmp_path / "narrow"


def test_a_narrow_checkpoint_is_pruned_again(narrow, tmp_path):
    """Layers are counted anew, and what was narrow stays so, however it is loaded."""
    loaded = prunebench.load("folder", path=str(narrow))
    ops, tensors, _ = slices(loaded, (0, 4), {"channels": 9})
    plan = Plan.of(loaded.info, [*ops, {"op": "drop_layer", "layer": 1}], tensors)
    prune(loaded, plan)
    again = prunebench.load("folder", path=str(narrow), plan=plan)
    assert same(again.model, loaded.model) and again.model.config.prunebench == loaded.model.config.prunebench
    said = again.model.config.prunebench
    assert said["widths"] == {"0": {"channels": 9}, "1": ALIKE, "3": {"heads": 2, "channels": 9}}
    assert said["kept_layers"] == [0, 2, 3, 4, 5] and said["operations"] == ["slice"]
    loaded.model.save_pretrained(tmp_path / "third")
    third = prunebench.load("folder", path=str(tmp_path / "third"))
    assert same(third.model, loaded.model) and torch.equal(logits(third.model), logits(loaded.model))


def test_the_narrow_layers_that_go_are_forgotten(narrow):
    loaded = prunebench.load("folder", path=str(narrow))
    again = prunebench.load("folder", path=str(narrow), plan=Plan.drop(loaded.info, (1, 2, 4)))
    assert "widths" not in again.model.config.prunebench
    assert {layer.mlp.up_proj.out_features for layer in again.model.model.layers} == {48}


DAMAGED = {
    "no numbers": ({"1": {"heads": "x"}}, "prunebench.widths in config.json is damaged"),
    "a list": ([1, 2], "prunebench.widths in config.json is damaged"),
    "no such layer": ({"9": {"heads": 1}}, "says how wide layer 9 is, the model has 6"),
    "too many": ({"1": {"heads": 5}}, "says 5 heads in layer 1, there are 4"),
    "none": ({"1": {"channels": 0}}, "says 0 channels in layer 1, there are 48"),
    "no such word": ({"1": {"experts": 2}}, "the experts of layer 1 that config.json counts"),
    "not those of the files": ({"1": {"heads": 1}}, "in the weights and"),
}


@pytest.mark.parametrize(("widths", "words"), DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_widths_are_one_line(narrow, tmp_path, widths, words):
    shutil.copytree(narrow, tmp_path / "bad")
    content = json.loads((narrow / "config.json").read_text())
    content["prunebench"]["widths"] = widths
    (tmp_path / "bad" / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=words) as caught:
        prunebench.load("folder", path=str(tmp_path / "bad"))
    assert "\n" not in str(caught.value)


def test_what_could_not_be_built_again_is_not_exported(folders, tmp_path, monkeypatch):
    def damaged(*_):
        raise ModelError("no such thing")

    loaded = dense_of(folders["llama"])
    plan = plan_of(loaded, (1,))
    monkeypatch.setattr(narrowing, "_narrow", damaged)
    with pytest.raises(
        UsageError, match=r"LlamaForCausalLM with layers of different widths cannot be exported"
    ) as caught:
        prunebench.export(plan, tmp_path / "new", model_path=folders["llama"])
    assert "prunebench.load(MODEL, plan=FILE)" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_the_testbed_narrow_in_some_layers(tmp_path):
    loaded = prunebench.load("testbed")
    plan = plan_of(loaded, range(4, 8), {"heads": 2, "channels": 100})
    prune(loaded, plan)
    loaded.model.save_pretrained(tmp_path)
    loaded.processor.save_pretrained(tmp_path)
    again = prunebench.load("testbed", path=str(tmp_path))
    assert same(again.model, loaded.model) and again.model.config.prunebench == loaded.model.config.prunebench
