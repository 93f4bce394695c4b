"""Exports: what a fresh process loads is the model that was pruned in memory, and what fails leaves nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
import yaml
from prunebench_models.testbed import weights_dir
from prunebench_models.testbed.adapter import Testbed
from prunebench_models.testbed.data import TestbedDataset
from safetensors.torch import load_file, save_file

import prunebench
from prunebench import LoadedModel, Plan, prune
from prunebench.checkpoint import dense_info
from prunebench.errors import ModelError, PlanError, StoreError, UsageError
from prunebench.exporting import folder as folders_of
from prunebench.exporting import pipeline, verify, writing
from prunebench.exporting.card import Card, kept_runs, mergekit_recipe, model_card
from prunebench.exporting.folder import whole_folder
from prunebench.exporting.source import Source, find_source
from prunebench.measure.cost import checkpoint_revision, describe
from prunebench.plugins import get_plugins
from prunebench.store import Store
from tests.commands import TINY, error_line, invoke, records_of
from tests.exports import reload_here
from tests.factories import CALIBRATION, make_dense, make_model, make_record
from tests.tiny_families import FAMILIES, Plain, logits, save

PLUGIN = Path(__file__).parent / "folder_plugin.py"
DROP = (1, 3)


@pytest.fixture(autouse=True)
def plugin(fresh_plugins):
    get_plugins((str(PLUGIN),))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The tied Llama with a generation configuration that the library reads, but refuses to write."""
    folder = tmp_path_factory.mktemp("llama")
    save(FAMILIES["llama tied"], folder, "1GB")
    odd = {"do_sample": False, "temperature": 0.3, "eos_token_id": 2, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(odd))
    (folder / "tokenizer.json").write_text('{"a": 1}')
    (folder / "LICENSE").write_text("terms")
    (folder / "README.md").write_text("of the base model")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    return folder


def plan_of(folder, name="folder", drop=DROP):
    content = json.loads((folder / "config.json").read_text())
    model_class = getattr(transformers, content["architectures"][0])
    config = model_class.config_class.from_pretrained(folder)
    info = dense_info(model_class, config, Plain(), name=name, revision=checkpoint_revision(folder), dtype="float32")
    return model_class, Plan.drop(info, drop)


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def quick(monkeypatch):
    """Leave out the fresh process, where a test is about something else."""
    monkeypatch.setattr(pipeline, "verify", lambda folder, expected: None)


@pytest.fixture()
def same_process(monkeypatch):
    reload_here(monkeypatch)


# -- what is written ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llava", "mllama", "gemma3 text", "idefics3", "qwen2 moe"])
def test_a_family_reloads_by_plain_transformers(tmp_path, family, request):
    """Keys that the library renames, lists of layer indices, lists per layer; no PruneBench in sight."""
    if family != "llava":
        request.getfixturevalue("same_process")
    save(FAMILIES[family], tmp_path / "base")
    model_class, plan = plan_of(tmp_path / "base")
    report = prunebench.export(plan, tmp_path / "new", model_path=tmp_path / "base")
    assert report.model_class == f"transformers:{model_class.__name__}"
    model, found = model_class.from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    dense = model_class.from_pretrained(tmp_path / "base").eval()
    info = describe(dense, Plain(), name="folder", revision=plan.target.revision, dtype="float32")
    prune(LoadedModel(dense, Plain(), info, torch.device("cpu")), plan)
    assert torch.equal(logits(model.eval()), logits(dense))
    assert model.config.get_text_config().num_hidden_layers == 4
    assert model.config.prunebench["kept_layers"] == [0, 2, 4, 5]


def test_what_lies_in_the_folder(llama, tmp_path, same_process):
    """Weights once where they are tied, the base model's files word for word, and where it all came from."""
    _, plan = plan_of(llama)
    lines = []
    report = prunebench.export(
        plan, tmp_path / "new", model_path=llama, command="prunebench export plan.json", note=lines.append
    )
    assert entries(tmp_path) == ["new"]
    assert entries(tmp_path / "new") == [
        "LICENSE", "README.md", "config.json", "generation_config.json", "mergekit.yaml", "model.safetensors",
        "plan.json", "tokenizer.json",
    ]  # fmt: skip
    for name in ("LICENSE", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / "new" / name).read_bytes() == (llama / name).read_bytes()
    keys = load_file(tmp_path / "new" / "model.safetensors")
    assert "lm_head.weight" not in keys and {k.split(".")[2] for k in keys if ".layers." in k} == set("0123")
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["prunebench"] == {
        "kept_layers": [0, 2, 4, 5], "removed_layers": [1, 3], "plan_digest": plan.digest,
        "base_model": "folder", "base_revision": plan.target.revision,
    }  # fmt: skip
    assert Plan.load(tmp_path / "new" / "plan.json") == plan
    card = (tmp_path / "new" / "README.md").read_text()
    assert "`prunebench export plan.json`" in card and "Inherits the base model's license" in card
    assert "None was measured" in card and "constructed diagnostic" not in card
    assert report.kept_layers == (0, 2, 4, 5) and report.dtype == "float32" and report.pushed is None
    rotary = 2 * 4 * 4  # buffers that are not saved
    assert report.nbytes == sum(t.numel() * t.element_size() for t in keys.values()) + rotary
    assert any("fresh process" in line for line in lines)
    for path in (tmp_path / "new", *(tmp_path / "new").iterdir()):
        assert path.stat().st_mode & 0o044 == 0o044  # others may read it


def test_number_format_is_kept_unless_asked_for(tmp_path, monkeypatch):
    quick(monkeypatch)
    half = tmp_path / "half"
    save(FAMILIES["llama"], tmp_path / "single")
    transformers.LlamaForCausalLM.from_pretrained(tmp_path / "single", dtype=torch.bfloat16).save_pretrained(half)
    _, plan = plan_of(half)
    for dtype, expected in ((None, torch.bfloat16), ("float32", torch.float32), ("float16", torch.float16)):
        target = tmp_path / str(dtype)
        prunebench.export(plan, target, model_path=half, dtype=dtype)
        assert {tensor.dtype for tensor in load_file(target / "model.safetensors").values()} == {expected}
        assert json.loads((target / "config.json").read_text())["dtype"] == str(expected).removeprefix("torch.")


def test_large_checkpoints_are_sharded(llama, tmp_path, monkeypatch, same_process):
    monkeypatch.setattr(writing, "SHARD", "40KB")
    _, plan = plan_of(llama)
    prunebench.export(plan, tmp_path / "new", model_path=llama)  # the reload reads all of them
    assert len(list((tmp_path / "new").glob("model-*-of-*.safetensors"))) > 1
    assert (tmp_path / "new" / "model.safetensors.index.json").is_file()


def test_a_run_of_the_testbed_becomes_a_model_that_runs(tmp_path, request):
    """From a record's id to a folder that `run` takes, plans on, and exports again."""
    out = tmp_path / "runs"
    result = invoke("run", *TINY, "-s", "last_n", "--layers", 3, "--suite", "testbed-image", "--out", out)
    assert result.exit_code == 0, result.output
    record = records_of(out)["last_n at 3 layers"]
    new = tmp_path / "new"
    result = invoke("export", record.id[:10], "--out", out, "--to", new, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["kept_layers"] == list(range(13))
    card = (new / "README.md").read_text()
    assert "constructed diagnostic" in card and record.id in card and "testbed-image" in card
    for task in record.tasks:
        dense = next(t for t in records_of(out)["dense at sparsity 0"].tasks if t.task == task.task)
        for found in (task, dense):
            assert f"{100 * found.score:.1f} [{100 * found.ci_low:.1f}, {100 * found.ci_high:.1f}]" in card
    request.getfixturevalue("same_process")  # the first export paid for the other one
    again = tmp_path / "again"
    result = invoke("run", *TINY, "-s", "last_n", "--layers", 2, "--suite", "testbed-image", "--out", again,
                    "--model-path", new)  # fmt: skip
    assert result.exit_code == 0, result.output
    pruned = records_of(again)["last_n at 2 layers"]
    assert pruned.model.n_layers == 13 and pruned.plan.removed_layers == (11, 12)
    roles = Testbed().load().info.planted_roles
    assert pruned.model.planted_roles == {k: tuple(i for i in v if i < 13) for k, v in roles.items()}
    # Pruned twice: layers are still known by the ids of the model that was trained.
    twice = tmp_path / "twice"
    result = invoke("export", again / "records" / f"{pruned.id}.json", "--to", twice, "--model-path", new)
    assert result.exit_code == 0, result.output
    assert json.loads((twice / "config.json").read_text())["prunebench"]["removed_layers"] == [11, 12, 13, 14, 15]
    options = prunebench.LoadOptions(path=str(twice))
    last, first = Testbed().load(options), Testbed().load()
    prune(first, Plan.drop(first.info, range(11, 16)))
    samples = TestbedDataset().samples("test", 2)
    with torch.inference_mode():
        found, expected = (m.adapter.forward(m, m.encode(samples)) for m in (last, first))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert last.info.planted_roles == {k: tuple(i for i in v if i < 11) for k, v in roles.items()}


# -- what fails leaves nothing --------------------------------------------------------------------------------------


def change_weights(folder, tensors):
    key = next(key for key in tensors if "layers.2" in key)
    tensors[key] = tensors[key] + 1


def lose_a_key(folder, tensors):
    tensors.pop("model.layers.2.mlp.up_proj.weight")


def stale_config(folder, tensors):
    """The layer count of the dense model: two layers would be made up."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 6}))


def other_scale(folder, tensors):
    """All weights right, the answers not."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rms_norm_eps": 0.5}))


FAULTS = {
    change_weights: "reloads with other weights: model.layers.2",
    lose_a_key: "missing keys: model.layers.2.mlp.up_proj.weight (1 in all)",
    stale_config: "missing keys: model.layers.4",
    other_scale: "other logits: they differ by up to",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_an_export_that_reloads_otherwise_fails(llama, tmp_path, monkeypatch, same_process, fault):
    real = writing._save_model

    def spoiled(model, folder, keep_generation):
        real(model, folder, keep_generation)
        path = folder / "model.safetensors"
        tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
        fault(folder, tensors)
        save_file(tensors, path, {"format": "pt"})

    monkeypatch.setattr(writing, "_save_model", spoiled)
    _, plan = plan_of(llama)
    with pytest.raises(ModelError) as error:
        prunebench.export(plan, tmp_path / "new", model_path=llama)
    assert FAULTS[fault] in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_class_that_no_other_process_can_import(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(Plain, "reload_class", lambda self, model: "a_module_that_is_not_there:Class")
    _, plan = plan_of(llama)
    with pytest.raises(ModelError, match="does not load in a fresh process: ModuleNotFoundError"):
        prunebench.export(plan, tmp_path / "new", model_path=llama)
    assert not list(tmp_path.iterdir())


def test_code_that_comes_with_the_weights_is_refused():
    adapter = Plain()
    foreign = type("Foreign", (torch.nn.Module,), {"__module__": "transformers_modules.org.model"})
    with pytest.raises(ModelError, match="cannot be exported"):
        adapter.reload_class(foreign())
    assert adapter.reload_class(Testbed().load().model) == (
        "prunebench_models.testbed.modeling:TestbedForConditionalGeneration"
    )


def test_killed_in_the_middle(llama, tmp_path, monkeypatch):
    """SIGKILL while files are written: no folder of that name; what is left is hidden, and the next export takes it."""
    _, plan = plan_of(llama, name="stuck")
    plan.save(tmp_path / "plan.json")
    signal_file, target = tmp_path / "signal", tmp_path / "place" / "new"
    command = [sys.executable, "-m", "prunebench", "--plugin", PLUGIN, "export", tmp_path / "plan.json"]
    process = subprocess.Popen(
        [str(word) for word in [*command, "--to", target, "--model-path", llama]],
        env={**os.environ, "STUCK": str(signal_file), "PYTHONPATH": str(PLUGIN.parent.parent)},
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 120
        while not signal_file.exists() or not signal_file.read_text():
            assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
            time.sleep(0.05)
        quick(monkeypatch)
        _, other = plan_of(llama)
        prunebench.export(other, tmp_path / "place" / "new", model_path=llama)
        assert Path(signal_file.read_text()).is_dir()  # the other process is alive: its folder is left alone
        shutil.rmtree(target)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not target.exists()
    leftover = Path(signal_file.read_text())
    assert entries(target.parent) == [leftover.name] and leftover.name.startswith(".new.export-")
    prunebench.export(other, target, model_path=llama)
    assert entries(target.parent) == ["new"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("I/O error: No space left on device (28)")]
)
def test_a_full_disk_is_one_line(llama, tmp_path, monkeypatch, error):
    def full(model, folder, keep_generation):
        (folder / "half").write_text("x")
        raise error

    monkeypatch.setattr(writing, "_save_model", full)
    _, plan = plan_of(llama)
    with pytest.raises(StoreError, match=r"cannot write .*new: the disk is full; nothing was left"):
        prunebench.export(plan, tmp_path / "new", model_path=llama)
    assert not list(tmp_path.iterdir())


def test_too_little_room_is_said_before_anything_is_written(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(folders_of.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    _, plan = plan_of(llama)
    with pytest.raises(StoreError, match=r"needs 0 MiB, the disk has 0 MiB left"):
        prunebench.export(plan, tmp_path / "deep" / "new", model_path=llama)
    assert not list(tmp_path.iterdir())


def test_places_that_are_taken(llama, tmp_path, monkeypatch):
    quick(monkeypatch)
    _, plan = plan_of(llama)
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    (tmp_path / "empty").mkdir()
    for name, words in (("file", "is not a folder"), ("full", "is not empty")):
        with pytest.raises(UsageError, match=words):
            prunebench.export(plan, tmp_path / name, model_path=llama)
    with pytest.raises(UsageError, match="is not a folder"):
        prunebench.export(plan, tmp_path / "file", model_path=llama, force=True)
    prunebench.export(plan, tmp_path / "empty", model_path=llama)
    prunebench.export(plan, tmp_path / "full", model_path=llama, force=True)
    assert "mine" not in entries(tmp_path / "full") and "config.json" in entries(tmp_path / "full")
    assert entries(tmp_path) == ["empty", "file", "full"]


def test_a_place_that_was_taken_meanwhile(tmp_path):
    with pytest.raises(UsageError, match="is not empty"), whole_folder(tmp_path / "new") as folder:
        (folder / "a").write_text("x")
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "b").write_text("y")
    assert entries(tmp_path) == ["new"] and entries(tmp_path / "new") == ["b"]


def test_what_a_killed_replacement_left_is_removed(tmp_path):
    """Killed between moving the old folder away and removing it: the next one does that, and nothing beside it."""
    for name in (".new.old-x", "new", ".newer.old-x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("x")
    with whole_folder(tmp_path / "new", force=True) as folder:
        (folder / "b").write_text("y")
    assert entries(tmp_path) == [".newer.old-x", "new"] and entries(tmp_path / "new") == ["b"]


def test_interrupting_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "new") as folder:
        (folder / "a").write_text("x")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


# -- sources --------------------------------------------------------------------------------------------------------


@pytest.fixture()
def runs(tmp_path):
    """A folder with dense, two plans, and a failure."""
    records = [
        make_dense({"a": 80}),
        make_record("alpha", (2, 3), {"a": 60}, calibration=CALIBRATION),
        make_record("beta", (1,), {"a": 70}),
        make_record("gamma", (1,), status="failed", error="no luck"),
    ]
    store = Store(tmp_path / "runs")
    for record in records:
        store.write(record)
    return tmp_path / "runs", {record.cell.strategy: record for record in records}


def test_sources(runs, tmp_path):
    out, records = runs
    alpha, path = records["alpha"], out / "records" / f"{records['alpha'].id}.json"
    for given in (alpha.id, alpha.id[:12], path, str(path)):
        found = find_source(given, out)
        assert (found.record, found.plan, found.dense) == (alpha, alpha.plan, records["dense"])
    assert find_source(alpha).dense is None and find_source(alpha.plan).record is None
    alpha.plan.save(tmp_path / "plan.json")
    assert find_source(tmp_path / "plan.json") == Source(alpha.plan)
    with pytest.raises(UsageError, match="holds 2 plans, choose one by its record id") as error:
        find_source(out)
    assert all(f"{records[name].id} {name} at" in str(error.value) for name in ("alpha", "beta"))
    (out / "records" / f"{records['beta'].id}.json").unlink()
    assert find_source(out).record == alpha


def test_sources_that_make_no_sense(runs, tmp_path, monkeypatch):
    out, records = runs
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")  # what lies beside the checkout is no part of the test
    (tmp_path / "noise.json").write_text("{")
    (tmp_path / "other.json").write_text('{"a": 1}')
    cases = {
        "nothing": (UsageError, r"no plan file, record, run folder or record id 'nothing' \(ids are looked for in"),
        "../x": (UsageError, "no plan file"),
        str(tmp_path / "empty"): (UsageError, "holds no finished record with a plan"),
        records["gamma"].id: (UsageError, "has no results: its status is failed"),
        records["dense"].id: (UsageError, "removes nothing"),
        str(tmp_path / "noise.json"): (StoreError, "cannot read"),
        str(tmp_path / "other.json"): (PlanError, "other.json"),
    }
    for given, (kind, words) in cases.items():
        with pytest.raises(kind, match=words):
            find_source(given, out)
    with pytest.raises(UsageError, match="removes nothing"):
        find_source(Plan.drop(make_model()))


def test_base_models_that_do_not_fit(llama, tmp_path):
    _, plan = plan_of(llama)
    target = plan.target.model_copy(update={"model": "nobody/knows"})
    with pytest.raises(UsageError, match="'nobody/knows', which no adapter is called: name the base model by --model"):
        prunebench.export(plan.model_copy(update={"target": target}), tmp_path / "new")
    target = plan.target.model_copy(update={"revision": "0" * 64})
    with pytest.raises(PlanError, match="plan anew; another base model is named by --model"):
        prunebench.export(plan.model_copy(update={"target": target}), tmp_path / "new", model_path=llama)
    with pytest.raises(UsageError, match="wants ORG/NAME"):
        prunebench.export(plan, tmp_path / "new", model_path=llama, push="name")
    assert not list(tmp_path.iterdir())


def test_command_line_errors_are_one_line(tmp_path):
    for arguments, words in (
        (("nothing", "--to", tmp_path / "new"), "no plan file"),
        (("nothing", "--to", tmp_path / "new", "--dtype", "int8"), "unknown dtype"),
        (("nothing", "--to", tmp_path / "new", "--device", "nowhere"), "no such device"),
    ):
        assert words in error_line(invoke("export", *arguments, "--out", tmp_path))
    assert not list(tmp_path.iterdir())


# -- card, recipe, hub ----------------------------------------------------------------------------------------------


def card_of(**changes):
    values = {
        "title": "new", "base": make_model(), "repository": "org/base", "dtype": "bfloat16", "params": 5, "nbytes": 10,
        "model_class": "transformers:LlamaForCausalLM", "command": "prunebench export x", "needs": "",
    }  # fmt: skip
    return Card(**{**values, **changes})


def test_runs_of_kept_layers():
    assert kept_runs([0, 1, 4, 6, 7, 8]) == [(0, 2), (4, 5), (6, 9)]
    assert kept_runs([3]) == [(3, 4)] and kept_runs([]) == []


def test_recipe_for_mergekit():
    """Half-open ranges of the base model; what is left out is what the plan removes."""
    recipe = yaml.safe_load(mergekit_recipe(Source(Plan.drop(make_model(), (0, 3, 4))), card_of()))
    assert recipe["merge_method"] == "passthrough" and recipe["dtype"] == "bfloat16"
    assert recipe["slices"] == [
        {"sources": [{"model": "org/base", "layer_range": [1, 3]}]},
        {"sources": [{"model": "org/base", "layer_range": [5, 8]}]},
    ]


def test_card_of_a_run():
    record = make_record("alpha", (2, 3), {"a": 60, "b": 70}, calibration=CALIBRATION, params={"k": 7})
    dense = make_dense({"a": 80})
    text = model_card(Source(record.plan, record, dense), card_of(needs="Load it otherwise."))
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == "org/base" and front["license"] == "other" and "prunebench" in front["tags"]
    for words in (
        "without 2 of its 8 decoder layers", "0123456789abcdef", '{"k":7,"unused":1}', "64 samples of `shapes-calib",
        "| a | exact_match | 100 | 80.0 [70.0, 90.0] | 60.0 [50.0, 70.0] | 25.0 |",
        "| b | exact_match | 100 | — | 70.0 [60.0, 80.0] | 25.0 |",
        "numbers may differ slightly", "**Load it otherwise.**", record.plan.digest, "torch 2.9.0",
    ):  # fmt: skip
        assert words in text, words
    assert "base_model" not in model_card(Source(record.plan), card_of(repository=None)).split("---")[1]


def test_what_plain_loading_does_not_restore_is_said(llama, tmp_path, monkeypatch):
    """A family that ties inputs to layer positions: the card and the command line say so."""
    quick(monkeypatch)
    undone = []
    monkeypatch.setattr(Plain, "layers_removed", lambda self, model, kept: lambda: undone.append(kept))
    _, plan = plan_of(llama)
    lines = []
    prunebench.export(plan, tmp_path / "new", model_path=llama, note=lines.append)
    assert undone == [(0, 2, 4, 5)]  # looked at, and taken back
    assert "ties inputs to layer positions" in lines[-1]
    assert "ties inputs to layer positions" in (tmp_path / "new" / "README.md").read_text()


def test_the_hub_is_touched_only_when_asked(llama, tmp_path, monkeypatch):
    quick(monkeypatch)
    calls = []

    class Hub:
        def create_repo(self, name, **options):
            calls.append(("create", name))

        def upload_folder(self, repo_id, folder_path, **options):
            calls.append(("upload", repo_id, entries(Path(folder_path))))

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    _, plan = plan_of(llama)
    prunebench.export(plan, tmp_path / "a", model_path=llama)
    assert calls == []
    report = prunebench.export(plan, tmp_path / "b", model_path=llama, push="org/name")
    assert report.pushed == "org/name"
    assert calls == [("create", "org/name"), ("upload", "org/name", entries(tmp_path / "b"))]

    def offline(self, name, **options):
        raise ConnectionError("no route\nmore")

    monkeypatch.setattr(Hub, "create_repo", offline)
    with pytest.raises(StoreError, match=r"is finished, but was not pushed to org/name: ConnectionError: no route;"):
        prunebench.export(plan, tmp_path / "c", model_path=llama, push="org/name")
    assert "config.json" in entries(tmp_path / "c")


def test_probe_is_fixed_and_holds_no_placeholder():
    model = Testbed().load().model
    ids = verify.probe_ids(model)
    assert torch.equal(ids, verify.probe_ids(model)) and ids.shape == (1, verify.PROBE_TOKENS)
    config = model.config
    special = {config.image_token_id, config.video_token_id, config.audio_token_id, 0, 1, 2}
    assert not special & set(ids.flatten().tolist())
    assert weights_dir().is_dir()
