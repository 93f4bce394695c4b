"""Operations other than dropping layers: loaded from a plan, written as a checkpoint, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import prunebench
from prunebench import LoadedModel, LoadOptions, Plan, prune
from prunebench.checkpoint import dense_info, load_pretrained, reading
from prunebench.errors import PlanError, UsageError
from prunebench.measure.cost import checkpoint_revision, describe
from prunebench.plugins import get_plugins
from prunebench.store import Store
from tests.commands import error_line, invoke
from tests.exports import reload_here
from tests.factories import make_record
from tests.tiny_families import FAMILIES, Plain, logits, save

PLUGIN = Path(__file__).parent / "folder_plugin.py"


@pytest.fixture(autouse=True)
def plugin(fresh_plugins):
    get_plugins((str(PLUGIN),))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    save(FAMILIES["llama"], folder)
    return folder


def info_of(folder):
    content = json.loads((folder / "config.json").read_text())
    model_class = getattr(transformers, content["architectures"][0])
    config = model_class.config_class.from_pretrained(folder)
    info = dense_info(
        model_class, config, Plain(), name="folder", revision=checkpoint_revision(folder), dtype="float32"
    )
    return model_class, config, info


def dense_of(folder):
    """The model by plain transformers, as the surgery takes it."""
    model_class, _, info = info_of(folder)
    model = model_class.from_pretrained(folder).eval()
    return LoadedModel(model, Plain(), info, torch.device("cpu"))


SUM = {"op": "merge", "into": 1, "sources": [1, 2], "coefficients": [0.5, 0.5]}


def representable(loaded):
    """Everything that an ordinary checkpoint can say, on a model of six layers."""
    new = {f"r.{name}": 1.5 * p.detach() for name, p in loaded.layers[3].named_parameters()}
    tensors = {**new, "m": torch.eye(32) * 0.9, "w.input_layernorm.weight": torch.full((32,), 2.0)}
    path = "mlp.down_proj"
    ops = [
        SUM,
        {"op": "replace_block", "start": 3, "stop": 5, "module": "decoder_layer", "tensors": "r"},
        {"op": "fold", "layer": 0, "module": path, "side": "out", "tensor": "m"},
        {"op": "set_weights", "layer": 5, "tensors": "w"},
    ]
    return Plan.of(loaded.info, ops, tensors)


def strange(loaded):
    """What no ordinary checkpoint can say."""
    ops = [
        SUM,
        {"op": "drop_sublayer", "layer": 0, "part": "attention"},
        {"op": "replace_block", "start": 3, "stop": 5, "module": "ffn", "tensors": "f"},
    ]
    tensors = {"f.up.weight": torch.randn(20, 32) / 6, "f.down.weight": torch.randn(32, 20) / 6}
    return Plan.of(loaded.info, ops, tensors)


@pytest.mark.parametrize("make", [representable, strange])
@pytest.mark.parametrize("family", ["llama", "gemma3 text", "llava"])
def test_loading_with_a_plan_equals_pruning_what_was_loaded(tmp_path, make, family):
    """Layers that are merged are read, those that go are not; the model in memory is the same."""
    save(FAMILIES[family], tmp_path / "base")
    loaded = dense_of(tmp_path / "base")
    plan = make(loaded)
    plan.save(tmp_path / "plan.json")
    prune(loaded, plan)
    again = prunebench.load("folder", path=str(tmp_path / "base"), plan=tmp_path / "plan.json")
    assert again.model.state_dict().keys() == loaded.model.state_dict().keys()
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    assert torch.equal(logits(again.model), logits(loaded.model))
    assert again.model.config.prunebench == loaded.model.config.prunebench
    text, other = again.adapter.text_config(again.model), loaded.adapter.text_config(loaded.model)
    assert text.num_hidden_layers == other.num_hidden_layers == 4
    assert getattr(text, "layer_types", None) == getattr(other, "layer_types", None)
    with pytest.raises(PlanError, match="load the dense model"):
        prune(again, plan)


def test_only_needed_layers_are_read(base, monkeypatch):
    loaded = dense_of(base)
    plan = Plan.of(loaded.info, [SUM, {"op": "drop_layer", "layer": 4}, {"op": "drop_layer", "layer": 5}])
    read, original = set(), reading.LazyTensor.read
    monkeypatch.setattr(reading.LazyTensor, "read", lambda self: (read.add(self.key), original(self))[1])
    model_class, config, _ = info_of(base)
    load_pretrained(model_class, base, config, LoadOptions(plan=plan))
    assert {key.split(".")[2] for key in read if ".layers." in key} == set("0123")


def test_an_operation_that_does_not_fit_the_checkpoint_is_one_line(base):
    loaded = dense_of(base)
    fold = {"op": "fold", "layer": 0, "module": "mlp.down_proj", "side": "out", "tensor": "m"}
    plan = Plan.of(loaded.info, [fold, {"op": "drop_layer", "layer": 4}], {"m": torch.eye(5)})
    with pytest.raises(PlanError, match=r"has shape \(5, 5\)") as caught:
        prunebench.load("folder", path=str(base), plan=plan)
    assert "\n" not in str(caught.value)


def test_an_export_reloads_by_plain_transformers(base, tmp_path):
    """In a fresh process: merged, replaced, folded and set weights are in the files, and the card says so."""
    loaded = dense_of(base)
    plan = representable(loaded)
    plan.save(tmp_path / "plan.json")
    prunebench.export(tmp_path / "plan.json", tmp_path / "new", model_path=base)
    model, found = type(loaded.model).from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    prune(loaded, plan)
    assert torch.equal(logits(model.eval()), logits(loaded.model))
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert "plan.safetensors" in names and "mergekit.yaml" not in names
    assert Plan.load(tmp_path / "new" / "plan.json") == plan
    assert model.config.prunebench["operations"] == ["fold", "merge", "replace_block", "set_weights"]
    weight = load_file(tmp_path / "new" / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]
    assert torch.equal(weight, loaded.layers[0].mlp.down_proj.weight)
    card = (tmp_path / "new" / "README.md").read_text()
    assert "Of the layers that stay, 0, 1, 3, 5 have other weights than the base model's" in card
    assert "nothing was trained" not in card and "1 = 0.5 · 1 + 0.5 · 2" in card
    assert "3, 4 by 3" in card and "layer 0, `mlp.down_proj`, side out" in card


def test_an_export_that_removes_nothing_says_so(base, tmp_path, monkeypatch):
    reload_here(monkeypatch)
    info, said = info_of(base)[2], []
    fold = {"op": "fold", "layer": 0, "module": "mlp.down_proj", "side": "out", "tensor": "m"}
    plan = Plan.of(info, [fold], {"m": torch.eye(32) * 0.5})
    report = prunebench.export(plan, tmp_path / "new", model_path=base, note=said.append)
    assert report.kept_layers == tuple(range(6)) and said[0] == "load folder"
    card = (tmp_path / "new" / "README.md").read_text()
    assert "with all of its 6 decoder layers. Of the layers that stay, 0 have other weights" in card
    weight = load_file(tmp_path / "new" / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]
    assert torch.equal(weight, 0.5 * dense_of(base).layers[0].mlp.down_proj.weight)


def test_an_export_of_a_record_takes_the_tensors_of_its_run(base, tmp_path, monkeypatch):
    reload_here(monkeypatch)
    loaded = dense_of(base)
    plan, store = representable(loaded), Store(tmp_path / "runs")
    record = make_record(model=loaded.info, layers=plan.removed_layers, right={"a": 50})
    store.write(record.model_copy(update={"plan": plan}))
    expected = prune(loaded, plan)
    for number, source in enumerate((store.path(record.id), tmp_path / "runs", record.id)):
        target = tmp_path / f"new-{number}"
        prunebench.export(source, target, model="folder", model_path=base, out=tmp_path / "runs")
        model = type(loaded.model).from_pretrained(target).eval()
        assert torch.equal(logits(model), logits(expected.model))
    store.tensors_path(plan.tensors_digest).unlink()
    result = invoke("--plugin", PLUGIN, "export", store.path(record.id), "--to", tmp_path / "x", "--model-path", base)
    assert result.exit_code != 0 and "the plan's tensors are missing" in error_line(result)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("ops", "words"),
    [
        ([{"op": "drop_sublayer", "layer": 2, "part": "mlp"}], "layer 2 without its mlp"),
        (
            [{"op": "replace_block", "start": 1, "stop": 3, "module": "linear", "tensors": "r"}],
            r"a module of another kind \(linear\) in the place of layer 1",
        ),
    ],
)
def test_what_no_checkpoint_can_say_is_refused_before_anything_is_read(base, tmp_path, ops, words):
    tensors = {"r.weight": torch.eye(32)} if "tensors" in ops[0] else None
    plan = Plan.of(info_of(base)[2], ops, tensors)
    with pytest.raises(UsageError, match=f"cannot be exported: {words} is nothing that plain") as caught:
        prunebench.export(plan, tmp_path / "new", model_path=base / "absent")
    assert "\n" not in str(caught.value) and "prunebench.load" in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_both_parts_of_a_layer_are_exported_as_the_layer(base, tmp_path, monkeypatch):
    reload_here(monkeypatch)
    info = info_of(base)[2]
    both = [{"op": "drop_sublayer", "layer": 2, "part": part} for part in ("attention", "mlp")]
    report = prunebench.export(Plan.of(info, both), tmp_path / "new", model_path=base)
    assert report.kept_layers == (0, 1, 3, 4, 5) and (tmp_path / "new" / "mergekit.yaml").exists()
    loaded = dense_of(base)
    prune(loaded, Plan.drop(info, (2,)))
    model = type(loaded.model).from_pretrained(tmp_path / "new").eval()
    assert torch.equal(logits(model), logits(loaded.model))
    assert describe(model, Plain(), name="x", revision="y", dtype="float32").n_layers == 5
