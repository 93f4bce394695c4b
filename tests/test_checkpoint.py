"""Loading without the layers that a plan removes: equal to pruning afterwards, and those layers are never read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil

import pytest
import torch
from prunebench_models.testbed import weights_dir
from prunebench_models.testbed.adapter import Testbed
from prunebench_models.testbed.data import TestbedDataset
from safetensors.torch import load_file, save_file

import prunebench
from prunebench import LoadedModel, LoadOptions, Plan, prune
from prunebench.checkpoint import Checkpoint, dense_info, input_device, load_pretrained, reading
from prunebench.checkpoint.layers import decoder_keys
from prunebench.checkpoint.reading import FORMATS, lazy_tensors
from prunebench.errors import BadParameter, ModelError, PlanError, UsageError
from prunebench.measure import cost
from prunebench.measure.cost import checkpoint_revision, describe
from prunebench.plugins import get_plugins
from tests.tiny_families import FAMILIES, IDS, Plain, llama, llava, logits, save

DROP = (1, 3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Family → (class, folder with shards), written once."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name.replace(" ", "-"))
            made[name] = (save(FAMILIES[name], folder), folder)
        return made[name]

    return get


@pytest.fixture()
def folder(folders, tmp_path):
    """A copy of the sharded Llama, to be damaged."""
    copy = tmp_path / "model"
    shutil.copytree(folders("llama")[1], copy)
    return copy


@pytest.fixture()
def read(monkeypatch):
    """Files that were opened and keys that were read by the lazy reader."""
    found = []
    real_open, real_read = reading._File.__init__, reading.LazyTensor.read

    def opened(self, path, handle):
        found.append(path.name)
        real_open(self, path, handle)

    def taken(self):
        found.append(self.key)
        return real_read(self)

    monkeypatch.setattr(reading._File, "__init__", opened)
    monkeypatch.setattr(reading.LazyTensor, "read", taken)
    return found


def dense(model_class, folder, dtype="float32"):
    model = model_class.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    info = describe(model, Plain(), name="tiny", revision="r", dtype=dtype)
    return LoadedModel(model, Plain(), info, torch.device("cpu"))


def plan_for(model_class, config, drop=DROP, dtype="float32"):
    info = dense_info(model_class, config, Plain(), name="tiny", revision="r", dtype=dtype)
    return Plan.drop(info, drop)


@pytest.mark.parametrize(
    ("family", "dtype"), [(name, "float32") for name in FAMILIES] + [("llama", "bfloat16"), ("gemma3", "float16")]
)
def test_loading_with_a_plan_equals_pruning_afterwards(folders, read, family, dtype):
    """Logits, configuration and generation settings, bit for bit; of the decoder only kept layers are read."""
    model_class, folder = folders(family)
    loaded = dense(model_class, folder, dtype)
    config = model_class.config_class.from_pretrained(folder)
    before = config.to_dict()
    assert dense_info(model_class, config, Plain(), name="tiny", revision="r", dtype=dtype) == loaded.info
    plan = Plan.drop(loaded.info, DROP)
    complete = logits(loaded.model)
    read.clear()
    model = load_pretrained(model_class, folder, config, LoadOptions(dtype=dtype, plan=plan))
    keys = list(read)
    prune(loaded, plan)
    assert torch.equal(logits(model), logits(loaded.model))
    assert not torch.equal(logits(model), complete)
    assert model.config.to_dict() == loaded.model.config.to_dict()
    assert model.generation_config.to_dict() == loaded.model.generation_config.to_dict()
    assert model.config.prunebench["kept_layers"] == [0, 2, 4, 5]
    assert config.to_dict() == before and not model.training
    checkpoint = Checkpoint.open(folder)
    gone = {key for key in checkpoint.tensors if key not in keys}
    assert checkpoint.tensors.keys() - gone == checkpoint.tensors.keys() & set(keys)
    assert gone and all(re.search(r"layers\.[13]\.", key) for key in gone)
    # Towers have layers of these numbers too, and theirs are read.
    parameters = sum(p.numel() for p in loaded.model.parameters())
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_shards_without_a_kept_tensor_stay_closed(folders, read):
    model_class, folder = folders("llama")
    checkpoint = Checkpoint.open(folder)
    config = model_class.config_class.from_pretrained(folder)
    load_pretrained(model_class, folder, config, LoadOptions(), kept=(0,))
    needed = {entry.file.name for key, entry in checkpoint.tensors.items() if not re.search(r"layers\.[1-5]\.", key)}
    assert {name for name in read if name.endswith(".safetensors")} == needed
    assert needed < {entry.file.name for entry in checkpoint.tensors.values()}


def test_tensors_are_read_as_safetensors_reads_them(tmp_path):
    """Every number format, an empty tensor and a scalar, with and without positioned reads."""
    tensors = {
        name: torch.arange(6).to(getattr(torch, name)).reshape(2, 3)
        for name in FORMATS.values()
        if name not in ("uint16", "uint32", "uint64")
    }
    tensors |= {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    with lazy_tensors(checkpoint, {key: f"new {key}" for key in tensors}) as state:
        for key, expected in load_file(tmp_path / "model.safetensors").items():
            lazy = state[f"new {key}"]
            assert lazy.get_shape() == list(expected.shape)
            assert lazy[...].dtype == expected.dtype
            assert torch.equal(lazy[...].view(torch.uint8), expected.view(torch.uint8)) if expected.dim() else True
            assert torch.equal(lazy[...].double(), expected.double())


def test_reading_without_positioned_reads(folders, monkeypatch):
    """Systems without them, and reads that return less than was asked for."""
    model_class, folder = folders("llama")
    config = model_class.config_class.from_pretrained(folder)
    first = load_pretrained(model_class, folder, config, LoadOptions(), kept=(0, 3))
    monkeypatch.delattr("os.preadv")
    monkeypatch.delattr("os.posix_fadvise")
    second = load_pretrained(model_class, folder, config, LoadOptions(), kept=(0, 3))
    monkeypatch.undo()
    real = os.preadv
    monkeypatch.setattr("os.preadv", lambda fd, parts, at: real(fd, [parts[0][:100]], at))
    third = load_pretrained(model_class, folder, config, LoadOptions(), kept=(0, 3))
    assert torch.equal(logits(first), logits(second)) and torch.equal(logits(first), logits(third))
    monkeypatch.setattr("os.preadv", lambda fd, parts, at: 0)
    with pytest.raises(ModelError, match="ends early: it was changed while it was read"):
        load_pretrained(model_class, folder, config, LoadOptions(), kept=(0, 3))


def test_without_a_plan_nothing_is_left_out(folders):
    for family in ("llama tied", "llava"):
        model_class, folder = folders(family)
        config = model_class.config_class.from_pretrained(folder)
        loaded = dense(model_class, folder)
        for options in (LoadOptions(), LoadOptions(plan=Plan.drop(loaded.info))):
            model = load_pretrained(model_class, folder, config, options)
            assert torch.equal(logits(model), logits(loaded.model))
            assert model.config.to_dict() == loaded.model.config.to_dict()


def test_old_and_new_key_names(tmp_path):
    """LLaVA's keys as the hub has them and as its modules are called: one filter fits both."""
    model_class = save(llava, tmp_path / "old", "1GB")
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    tensors = load_file(tmp_path / "old" / "model.safetensors")
    assert any(key.startswith("language_model.model.layers.0.") for key in tensors)
    names = (("language_model.model.", "model.language_model."), ("language_model.lm_head", "lm_head"))
    names += (("vision_tower.vision_model.", "model.vision_tower."), ("multi_modal", "model.multi_modal"))
    for old, new in names:
        tensors = {new + key.removeprefix(old) if key.startswith(old) else key: t for key, t in tensors.items()}
    save_file(tensors, tmp_path / "new" / "model.safetensors", {"format": "pt"})
    found = []
    for name in ("old", "new"):
        config = model_class.config_class.from_pretrained(tmp_path / name)
        found.append(logits(load_pretrained(model_class, tmp_path / name, config, LoadOptions(), kept=(0, 2, 5))))
    assert torch.equal(*found)


def test_layers_that_look_alike_are_told_apart_by_their_place(tmp_path):
    model_class = save(llama, tmp_path, "1GB")
    model = model_class.from_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    twins = {f"talker.{key}": value.clone() for key, value in tensors.items() if ".layers." in key}
    save_file({**tensors, **twins}, tmp_path / "model.safetensors", {"format": "pt"})
    keys = decoder_keys(Checkpoint.open(tmp_path), model, model.model)
    assert keys and all(key.startswith("model.layers.") for key in keys)
    others = {f"a.{key}": value for key, value in twins.items()} | {f"b.{key}": value for key, value in twins.items()}
    save_file({k: v.clone() for k, v in others.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="look alike"):
        decoder_keys(Checkpoint.open(tmp_path), model, model.model)


@pytest.mark.parametrize("given", [True, False])
def test_layers_on_the_disk(folders, tmp_path, monkeypatch, given):
    """accelerate places kept layers, under their new numbers; what it wrote goes with the model."""
    model_class, folder = folders("llama")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    config = model_class.config_class.from_pretrained(folder)
    place = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    place |= {f"model.layers.{layer}": "disk" if layer in (1, 3) else "cpu" for layer in range(4)}
    offload = tmp_path / "given" if given else None
    plan = plan_for(model_class, config)
    options = LoadOptions(plan=plan, device_map=place, offload_folder=str(offload) if given else None)
    model = load_pretrained(model_class, folder, config, options)
    assert model.model.layers[1].mlp.up_proj.weight.device.type == "meta"
    assert input_device(model) == torch.device("cpu")
    loaded = dense(model_class, folder)
    prune(loaded, plan)
    assert torch.equal(logits(model), logits(loaded.model))
    written = list(tmp_path.rglob("*.safetensors")) + list(tmp_path.rglob("*.dat"))
    assert written and all(re.search(r"layers\.[13]\.", path.name) for path in written)
    del model
    if not given:
        import gc

        gc.collect()
        assert not list(tmp_path.iterdir())


def test_automatic_placement_and_attention(folders):
    model_class, folder = folders("llama")
    config = model_class.config_class.from_pretrained(folder)
    plan = plan_for(model_class, config)
    plain = load_pretrained(model_class, folder, config, LoadOptions(plan=plan))
    placed = load_pretrained(model_class, folder, config, LoadOptions(plan=plan, device_map="auto"))
    assert torch.equal(logits(placed), logits(plain))
    eager = load_pretrained(model_class, folder, config, LoadOptions(plan=plan, attn_implementation="eager"))
    assert eager.config._attn_implementation == "eager" != plain.config._attn_implementation
    torch.testing.assert_close(logits(eager), logits(plain), atol=1e-4, rtol=1e-4)


def test_the_testbed_with_a_plan():
    """The adapter's own loading: information of the dense model, the plan, and the pruned model's answers."""
    whole = Testbed().load()
    plan = Plan.drop(whole.info, (2, 7, 11))
    loaded = Testbed().load(LoadOptions(plan=plan))
    assert (loaded.info, loaded.plan, len(loaded.layers)) == (whole.info, plan, whole.info.n_layers - 3)
    assert describe(whole.model, Testbed(), name="x", revision="r", dtype="float32").layers == loaded.info.layers
    prune(whole, plan)
    samples = TestbedDataset().samples("test", 3)
    with torch.inference_mode():
        found, expected = (m.adapter.forward(m, m.encode(samples)) for m in (loaded, whole))
    assert torch.equal(found, expected)
    other = plan.model_copy(update={"target": plan.target.model_copy(update={"revision": "0" * 64})})
    with pytest.raises(PlanError, match="plan anew"):
        Testbed().load(LoadOptions(plan=other))


def test_loading_by_name(tmp_path):
    """`prunebench.load`, also for an adapter that cannot leave layers out while it loads."""
    whole = prunebench.load("testbed")
    plan = Plan.drop(whole.info, (2, 7, 11))
    plan.save(tmp_path / "plan.json")
    samples = TestbedDataset().samples("test", 2)

    class Late(Testbed):
        name = "late"

        def load(self, options=LoadOptions()):
            return super().load(dataclasses.replace(options, plan=None))

    entry = dataclasses.replace(get_plugins().registry("models")["testbed"], value=Late)
    get_plugins().registry("models")["late"] = entry
    answers = []
    for name in ("testbed", "late"):
        info = whole.info.model_copy(update={"name": name})
        for given in (Plan.drop(info, (2, 7, 11)), tmp_path / "plan.json" if name == "testbed" else None):
            if given is not None:
                loaded = prunebench.load(name, plan=given, dtype="float32")
                assert len(loaded.layers) == 13 and loaded.plan.removed_layers == (2, 7, 11)
                with torch.inference_mode():
                    answers.append(loaded.adapter.forward(loaded, loaded.encode(samples)))
    assert len(answers) == 3 and all(torch.equal(answers[0], other) for other in answers)
    for name, options in (("testbed", {"dtyp": "float32"}), ("testbed:x", {}), ("nobody", {})):
        with pytest.raises(UsageError):
            prunebench.load(name, **options)
    with pytest.raises(PlanError, match="the plan was made for late"):
        prunebench.load("testbed", plan=Plan.drop(whole.info.model_copy(update={"name": "late"}), (1,)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_never_holds_what_is_removed(folders):
    """Peak of the card: the kept parameters and one tensor on its way, not the dense model."""
    model_class, folder = folders("llama")
    config = model_class.config_class.from_pretrained(folder)
    plan = plan_for(model_class, config, (0, 1, 2, 4))
    expected = logits(load_pretrained(model_class, folder, config, LoadOptions(plan=plan)))
    for options in (LoadOptions(plan=plan, device="cuda:0"), LoadOptions(plan=plan, device_map="auto")):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model = load_pretrained(model_class, folder, config, options)
        peak = torch.cuda.max_memory_allocated() - before
        assert {p.device.type for p in model.parameters()} == {"cuda"} == {input_device(model).type}
        assert peak <= 1.5 * cost.weight_bytes(model) + 2**20
        with torch.inference_mode():
            torch.testing.assert_close(model(IDS.cuda()).logits.cpu(), expected, atol=1e-3, rtol=1e-3)


# -- damage ---------------------------------------------------------------------------------------------------------


def set_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def edit(folder, key, change):
    """Change one tensor in its shard: `change` maps the shard's tensors to new ones."""
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    shard = folder / index["weight_map"][key]
    tensors = {name: tensor.clone() for name, tensor in load_file(shard).items()}
    change(tensors)
    save_file(tensors, shard, {"format": "pt"})
    index["weight_map"] = {k: v for k, v in index["weight_map"].items() if v != shard.name}
    index["weight_map"] |= dict.fromkeys(tensors, shard.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def drop_keys(shard, part):
    """Take keys out of a shard and of the index."""
    tensors = {key: value.clone() for key, value in load_file(shard).items() if part not in key}
    save_file(tensors, shard, {"format": "pt"})
    path = shard.parent / "model.safetensors.index.json"
    index = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    set_json(path, weight_map={key: name for key, name in index.items() if part not in key})


def shards(folder):
    return sorted(folder.glob("model-*.safetensors"))


def only_pickled(folder):
    for path in [*shards(folder), folder / "model.safetensors.index.json"]:
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")


def only_adapter(folder):
    only_pickled(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"x")


UP = "model.layers.4.mlp.up_proj.weight"
DAMAGE = {
    "a missing shard": (lambda f: shards(f)[1].unlink(), "lacks the shard model-00002-of"),
    "a truncated shard": (
        lambda f: shards(f)[1].write_bytes(shards(f)[1].read_bytes()[:-9]),
        "model-00002-of-00004.safetensors is cut short",
    ),
    "a shard without a header": (lambda f: shards(f)[0].write_bytes(b"12"), "not a whole safetensors file"),
    "a shard of noise": (lambda f: shards(f)[0].write_bytes(b"\x20" + b"\xff" * 99), "not a whole safetensors file"),
    "a shard with more behind": (
        lambda f: shards(f)[0].write_bytes(shards(f)[0].read_bytes() + b"more"),
        "is longer than its header says",
    ),
    "an index that lies": (
        lambda f: set_json(f / "model.safetensors.index.json", weight_map={"x": shards(f)[0].name}),
        "places 'x' in",
    ),
    "an index without a map": (lambda f: set_json(f / "model.safetensors.index.json", weight_map=[]), "no weight_map"),
    "an index that is not JSON": (
        lambda f: (f / "model.safetensors.index.json").write_text("{"),
        "not readable JSON",
    ),
    "an index that leads elsewhere": (
        lambda f: set_json(f / "model.safetensors.index.json", weight_map={"x": "../x.safetensors"}),
        "outside its folder",
    ),
    "only pickled weights": (only_pickled, "only pickled weights (pytorch_model.bin)"),
    "only an adapter": (only_adapter, "adapter has to be merged"),
    "a missing key": (lambda f: edit(f, UP, lambda t: t.pop(UP)), f"no weights for {UP}"),
    "a wrong key": (lambda f: edit(f, UP, lambda t: t.update(x=t.pop(UP))), "but holds x, which fits nothing"),
    "an unexpected key": (lambda f: edit(f, UP, lambda t: t.update(extra=t[UP].clone())), "holds extra, which"),
    "another shape": (
        lambda f: edit(f, UP, lambda t: t.update({UP: torch.zeros(3, 5)})),
        f"{UP} has shape (3, 5) in the weights and (48, 32) by config.json",
    ),
    "fewer layers in the weights": (lambda f: None, "says 8 decoder layers, the weights hold 6"),
    "more layers in the weights": (lambda f: None, "says 4 decoder layers, the weights hold 6"),
    "a layer without weights": (
        lambda f: [drop_keys(shard, ".layers.2.") for shard in shards(f)],
        "no weights of decoder layer 2",
    ),
    "a shape that cannot be": (lambda f: None, "does not describe a LlamaForCausalLM that can be built"),
}
CONFIG = {
    "fewer layers in the weights": {"num_hidden_layers": 8},
    "more layers in the weights": {"num_hidden_layers": 4},
    "a shape that cannot be": {"hidden_act": "no such activation"},
}


@pytest.mark.parametrize("kept", [None, (0, 2, 4)], ids=["all", "kept"])
@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_line(folder, name, kept):
    damage, words = DAMAGE[name]
    damage(folder)
    model_class, config = llama()
    for key, value in CONFIG.get(name, {}).items():
        setattr(config, key, value)
    with pytest.raises(ModelError) as error:
        load_pretrained(model_class, folder, config, LoadOptions(), kept=kept)
    line = str(error.value)
    assert (words.replace("layers.4", "layers.2") if kept else words) in line  # kept layers are counted anew
    assert "\n" not in line and len(line) < 400


def test_absent_places(tmp_path):
    model_class, config = llama()
    for path, words in ((tmp_path / "absent", "no such model folder"), (tmp_path, "holds no weights")):
        with pytest.raises(ModelError, match=words):
            load_pretrained(model_class, path, config, LoadOptions())


def test_wrong_layers_plans_and_options(folders):
    model_class, folder = folders("llama")
    config = model_class.config_class.from_pretrained(folder)
    for kept in ((), (2, 1), (0, 0), (0, 6), (-1, 2)):
        with pytest.raises(PlanError, match="layers to keep must be ascending"):
            load_pretrained(model_class, folder, config, LoadOptions(), kept=kept)
    info = dense_info(model_class, config, Plain(), name="tiny", revision="r", dtype="float32")
    with pytest.raises(PlanError, match="the plan needs layer 2, which is not among the layers to keep"):
        load_pretrained(model_class, folder, config, LoadOptions(plan=Plan.drop(info, (1,))), kept=(0, 3, 4, 5))
    deeper = Plan.drop(info.model_copy(update={"n_layers": 9}), (1,))
    with pytest.raises(PlanError, match="for 9 decoder layers, the model has 6"):
        load_pretrained(model_class, folder, config, LoadOptions(plan=deeper))
    for options in (LoadOptions(dtype="int8"), LoadOptions(device="nowhere"), LoadOptions(offload_folder="x")):
        with pytest.raises(BadParameter):
            load_pretrained(model_class, folder, config, options)


def test_unexpected_keys_may_be_let_through(folder):
    edit(folder, UP, lambda tensors: tensors.update({"training.only": torch.zeros(2)}))
    model_class, config = llama()
    for kept in (None, (0, 4)):
        model = load_pretrained(model_class, folder, config, LoadOptions(), kept=kept, ignore_unexpected=[r"^training"])
        assert len(model.model.layers) == len(kept or range(6))


# -- revision -------------------------------------------------------------------------------------------------------


def test_a_small_folder_is_known_by_every_byte(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    (tmp_path / "config.json").write_text("{}")
    expected = hashlib.sha256(b"config.json\0{}" + b"model.safetensors\0one").hexdigest()
    assert checkpoint_revision(tmp_path) == expected


def test_a_large_folder_is_known_by_a_sample(folder, tmp_path, monkeypatch):
    """Stable on copies; another value in the middle of a tensor, name, shape or configuration is another revision."""
    monkeypatch.setattr(cost, "SAMPLED_ABOVE", 0)
    monkeypatch.setattr(cost, "SAMPLE_BYTES", 64)
    first = checkpoint_revision(folder)
    shutil.copytree(folder, tmp_path / "copy")
    assert checkpoint_revision(tmp_path / "copy") == first
    seen = {first}
    for change in (
        lambda t: t[UP].mul_(1.01),
        lambda t: t.update(renamed=t.pop(UP)),
        lambda t: t.update({UP: t[UP].reshape(32, 48).clone()}),
    ):
        shutil.rmtree(tmp_path / "copy")
        shutil.copytree(folder, tmp_path / "copy")
        edit(tmp_path / "copy", UP, change)
        seen.add(checkpoint_revision(tmp_path / "copy"))
    set_json(folder / "config.json", rope_theta=1.0)
    seen.add(checkpoint_revision(folder))
    assert len(seen) == 5
    with pytest.raises(ModelError, match="cut short"):
        shards(folder)[0].write_bytes(shards(folder)[0].read_bytes()[:-1])
        checkpoint_revision(folder)


def test_little_of_a_large_folder_is_read(tmp_path, monkeypatch):
    """A revision costs a block per tensor, whatever the tensors weigh."""
    save_file({f"t{i}": torch.zeros(250_000) for i in range(4)}, tmp_path / "model.safetensors")
    total = 0
    real = open

    def counting(path, *arguments, **options):
        handle = real(path, *arguments, **options)
        if str(path).endswith(".safetensors"):
            plain = handle.read

            def read(size=-1):
                nonlocal total
                block = plain(size)
                total += len(block)
                return block

            class Handle:
                seek, fileno = handle.seek, handle.fileno

                def __enter__(self):
                    return self

                def __exit__(self, *error):
                    handle.close()

            Handle.read = staticmethod(read)
            return Handle()
        return handle

    monkeypatch.setattr(cost, "SAMPLED_ABOVE", 0)
    monkeypatch.setattr("builtins.open", counting)
    checkpoint_revision(tmp_path)
    assert 4 * cost.SAMPLE_BYTES <= total < 5 * cost.SAMPLE_BYTES + 2000


def test_the_testbed_keeps_its_revision():
    """Records name it: it is still the hash of every byte."""
    digest = hashlib.sha256()
    for path in sorted(p for p in weights_dir().iterdir() if p.suffix in {".safetensors", ".json"}):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    assert checkpoint_revision(weights_dir()) == digest.hexdigest()
