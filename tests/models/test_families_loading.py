"""Folders as the Hub has them, through processor, towers and command line; and what is refused."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch

import numpy as np
import pytest
import torch
from prunebench_models.hf.adapter import TransformersModel
from prunebench_models.hf.families import ALIASES, FAMILIES
from prunebench_models.hf.prompts import model_inputs, prompt_of
from safetensors.torch import load_file, save_file

from prunebench import LoadOptions, Plan, Sample, prune, pruned
from prunebench.errors import BadParameter, CalibrationError, ModelError
from prunebench.store import load_records
from tests.commands import error_line, invoke
from tests.models.family_configs import BY_NAME
from tests.models.family_configs import FAMILIES as TINY
from tests.models.family_processors import PARTS, save_checkpoint
from tests.truth import identity_in_place

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}USER: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% elif c['type'] == 'text' %} {{ c['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
OLDER = dict.fromkeys(("Idefics3", "SmolVLM"), "its Pillow image processor needs torchvision in transformers 5.17")


def load(folder, **options):
    return TransformersModel().load(LoadOptions(name="hf", reference=str(folder), **options))


def question(name, kinds, seed=0):
    rng = np.random.default_rng(seed)
    words = " ".join(f"w{i}" for i in rng.integers(4, 49, 4 + seed))
    return Sample(
        id=f"{name}/{'+'.join(kinds)}/{seed}",
        instruction=words,
        images=tuple(rng.integers(0, 256, (40, 48, 3)).astype(np.uint8) for kind in kinds if kind == "image"),
        video=rng.integers(0, 256, (5, 40, 48, 3)).astype(np.uint8) if "video" in kinds else None,
        audio=rng.uniform(-1, 1, 48000).astype(np.float32) if "audio" in kinds else None,
        sampling_rate=16000 if "audio" in kinds else None,
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Name of a family → its folder, written once."""
    root, made = tmp_path_factory.mktemp("checkpoints"), {}

    def folder(name, **more):
        key = (name, *sorted(more))
        if key not in made:
            made[key] = save_checkpoint(name, root / "-".join(key), **more)
        return made[key]

    return folder


@pytest.fixture(scope="module")
def models(folders):
    """Name of a family → the loaded model, loaded once."""
    made = {}

    def model(name):
        if name not in made:
            try:
                made[name] = load(folders(name))
            except ModelError as error:
                if name in OLDER and "torchvision" in str(error).lower():
                    pytest.skip(OLDER[name])
                if name == "SmolVLM" and "num2words" in str(error):
                    pytest.skip("its processor needs num2words")
                raise
        return made[name]

    return model


def media_of(loaded):
    return [kind for kind in loaded.info.modalities if kind != "text"]


@pytest.mark.parametrize("name", sorted(PARTS))
def test_samples_go_through_the_real_processor(name, models):
    loaded = models(name)
    adapter = loaded.adapter
    assert adapter.family.alias == BY_NAME[name].row and adapter.default_suite.startswith("procedural")
    for kind in media_of(loaded):
        sample = question(name, [kind])
        batch = model_inputs(loaded.processor, adapter.family, sample)
        with torch.inference_mode():
            inputs = loaded.encode([sample])
            own = loaded.model.generate(**batch, max_new_tokens=5, do_sample=False)[0, batch["input_ids"].shape[1] :]
            found = adapter.greedy(loaded, inputs, 5)[0]
            texts = loaded.generate(inputs, 5)
        assert found.tolist() == own.tolist()[: len(found)]
        assert inputs.groups["audio" if kind == "audio" else "visual"].any() and inputs.groups["text"].any()
        words = [i for i in found.tolist() if i > 3 and i not in PARTS[name]["tokens"].values()]
        assert texts == [" ".join(f"w{i}" for i in words)]
        assert inputs.sample_ids == (sample.id,)


@pytest.mark.parametrize("name", sorted(PARTS))
def test_mixed_batches_equal_single_samples(name, models):
    loaded = models(name)
    if not loaded.adapter.batching:
        pytest.skip("one sample at a time")
    kinds = [[kind] for kind in media_of(loaded)] + ([["image", "image"]] if "image" in loaded.info.modalities else [])
    kinds += [] if name == "PaliGemma" else [[]]  # its processor wants an image
    samples = [question(name, kind, seed) for seed, kind in enumerate(kinds)]
    with torch.inference_mode():
        together = loaded.adapter.forward(loaded, loaded.encode(samples), logits_to_keep=1)
        for row, sample in enumerate(samples):
            alone = loaded.adapter.forward(loaded, loaded.encode([sample]), logits_to_keep=1)[0]
            torch.testing.assert_close(together[row], alone, atol=3e-5, rtol=1e-4)


def test_the_chat_template_of_the_checkpoint_is_used(folders):
    loaded = load(folders("Llava", chat_template=TEMPLATE))
    sample = question("Llava", ["image"])
    assert (
        prompt_of(loaded.processor, loaded.adapter.family, sample)
        == f"<s>USER: <image> {sample.instruction} ASSISTANT:"
    )
    batch = model_inputs(loaded.processor, loaded.adapter.family, sample)
    from PIL import Image

    content = [
        {"type": "image", "image": Image.fromarray(sample.images[0])},
        {"type": "text", "text": sample.instruction},
    ]
    own = loaded.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip
    assert batch["input_ids"].tolist() == own["input_ids"].tolist()  # one beginning token, not two
    assert torch.equal(batch["pixel_values"], own["pixel_values"])


def test_plain_models_take_questions_and_running_text(folders):
    loaded = load(folders("Llama", chat_template="{% for m in messages %}w9 {{ m['content'] }} w9{% endfor %}"))
    ask, text = Sample(id="a", instruction="w5 w6"), Sample(id="b", instruction="w5 w6", kind="text")
    assert model_inputs(loaded.processor, loaded.adapter.family, ask)["input_ids"].tolist()[0][-4:] == [9, 5, 6, 9]
    assert model_inputs(loaded.processor, loaded.adapter.family, text)["input_ids"].tolist() == [[1, 5, 6]]
    assert (loaded.adapter.default_suite, loaded.adapter.default_calibration) == ("text-ppl", "text")
    with pytest.raises(CalibrationError, match="does not take: image"):
        loaded.encode([question("x", ["image"])])


@pytest.mark.parametrize("name", ["Gemma3", "PaliGemma"])
def test_inputs_made_under_one_attention_serve_another(name, folders, models):
    """Inputs are kept on disk over runs: the masks in them must not belong to one implementation."""
    sample, fast, eager = question(name, ["image"]), models(name), load(folders(name), attn_implementation="eager")
    with torch.inference_mode():
        expected = fast.adapter.forward(fast, fast.encode([sample]))
        for reader in (fast, eager):
            for writer in (fast, eager):
                found = reader.adapter.forward(reader, writer.encode([sample]))
                torch.testing.assert_close(found, expected, atol=3e-5, rtol=1e-4)


# -- videos without torchvision ----------------------------------------------------------------------------------------


def test_a_video_of_equal_frames_is_the_image(models):
    """An image counts as two equal frames in these families, so its patches are those of such a video."""
    loaded = models("Qwen2VL")
    image = question("v", ["image"]).images[0]
    as_image = model_inputs(loaded.processor, loaded.adapter.family, Sample(id="i", instruction="w5", images=(image,)))
    clip = Sample(id="v", instruction="w5", video=np.stack([image, image]))
    as_video = model_inputs(loaded.processor, loaded.adapter.family, clip)
    assert torch.equal(as_image["pixel_values"], as_video["pixel_values_videos"])
    assert as_image["image_grid_thw"].tolist() == as_video["video_grid_thw"].tolist()


def test_patches_hold_consecutive_frames_in_order(models):
    """Frame 2k in the first half of a patch's time axis, 2k + 1 in the second; an odd last frame is doubled."""
    loaded = models("Qwen2VL")
    frames = np.stack([np.full((16, 16, 3), 40 * i, np.uint8) for i in range(3)])
    batch = model_inputs(loaded.processor, loaded.adapter.family, Sample(id="v", instruction="w5", video=frames))
    assert batch["video_grid_thw"][0, 0] == 2
    patches = batch["pixel_values_videos"].reshape(2, -1, 3, 2, 4, 4)
    mean, std = (torch.tensor(value) for value in (
        loaded.processor.image_processor.image_mean, loaded.processor.image_processor.image_std))  # fmt: skip
    for group, in_time, frame in ((0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 2)):
        expected = ((40 * frame / 255) - mean) / std
        found = patches[group, :, :, in_time].mean((0, 2, 3))
        torch.testing.assert_close(found, expected.to(found), atol=1e-4, rtol=1e-4)
    assert int((batch["mm_token_type_ids"] == 2).sum()) == patches.shape[0] * patches.shape[1] // 4


def test_images_and_a_video_in_one_sample_are_refused(models):
    with pytest.raises(CalibrationError, match="images and a video"):
        models("Qwen2VL").encode([question("v", ["image", "video"])])


# -- plans at loading, and checkpoints that were pruned ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["Llama", "Gemma3", "Mllama", "Qwen3VL", "Qwen3Moe", "Qwen2VL"])
def test_loading_with_a_plan_equals_pruning_afterwards(name, folders, models, tmp_path):
    loaded = models(name)
    kinds = ["image"] if "image" in loaded.info.modalities else []
    with torch.inference_mode():
        inputs = loaded.encode([question(name, kinds)])
        for drop in ((0, 1), (1, 4)):
            plan = Plan.drop(loaded.info, drop)
            with pruned(loaded, plan):
                expected = loaded.adapter.forward(loaded, inputs)
            early = load(folders(name), plan=plan)
            assert early.info == loaded.info and early.plan is plan
            assert torch.equal(early.adapter.forward(early, inputs), expected)
            assert torch.equal(early.adapter.forward(early, early.encode([question(name, kinds)])), expected)


@pytest.mark.parametrize("name", ["Qwen3VL", "Mllama", "Qwen2VL"])
def test_a_pruned_checkpoint_can_be_pruned_again(name, folders, tmp_path):
    """Ids are counted from the model that was never pruned, and visual features stay where they were."""
    dense = load(folders(name))
    sample = question(name, ["image"])
    with torch.inference_mode():
        inputs = dense.encode([sample])
        truth = _with_identities(dense, inputs, (0, 2, 4))
        first = load(folders(name))
        prune(first, Plan.drop(first.info, (0, 2)))
        shutil.copytree(folders(name), tmp_path / "once")
        first.model.save_pretrained(tmp_path / "once")
        second = load(tmp_path / "once")
        assert second.info.n_layers == 4
        prune(second, Plan.drop(second.info, (2,)))  # layer 4 of the dense model: 1, 3, [4], 5
        assert second.model.config.prunebench["kept_layers"] == [1, 3, 5]
        assert second.model.config.prunebench["removed_layers"] == [0, 2, 4]
        shutil.copytree(tmp_path / "once", tmp_path / "twice")
        second.model.save_pretrained(tmp_path / "twice")
        third = load(tmp_path / "twice")
        for model in (second, third):
            torch.testing.assert_close(model.adapter.forward(model, inputs), truth, atol=3e-5, rtol=1e-4)
            own = model.encode([sample])
            torch.testing.assert_close(model.adapter.forward(model, own), truth, atol=3e-5, rtol=1e-4)


def _with_identities(loaded, inputs, drop):
    with identity_in_place(loaded, drop):
        return loaded.adapter.forward(loaded, inputs)


def test_the_thinker_of_a_whole_omni_checkpoint(folders, tmp_path):
    """The talker's weights are left where they are, and the thinker's own part of config.json is used."""
    folder = tmp_path / "omni"
    shutil.copytree(folders("Qwen2.5Omni"), folder)
    weights = {f"thinker.{key.removeprefix('thinker.')}": value for key, value in
               load_file(folder / "model.safetensors").items()}  # fmt: skip
    save_file({**weights, "talker.model.norm.weight": torch.zeros(3)}, folder / "model.safetensors", {"format": "pt"})
    part = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_5_omni", "thinker_config": part}))
    loaded, alone = load(folder), load(folders("Qwen2.5Omni"))
    assert all(
        torch.equal(mine, theirs)
        for mine, theirs in zip(loaded.model.state_dict().values(), alone.model.state_dict().values(), strict=True)
    )


# -- what is refused ---------------------------------------------------------------------------------------------------


def altered(folders, tmp_path, **changes):
    folder = tmp_path / "altered"
    shutil.copytree(folders("Llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


REFUSED = {
    "gemma3n": ({"model_type": "gemma3n"}, "cannot be pruned by removing layers: it keeps embeddings"),
    "gemma3n-text": ({"model_type": "gemma3n_text"}, "cannot be pruned"),
    "gemma4": ({"model_type": "gemma4"}, "cannot be pruned"),
    "own": ({"model_type": "videollama2_qwen2"}, "adapter of their own: --model videollama2 --model-path"),
    "near": ({"model_type": "llava_nexd"}, "nearest rows: .*llava-next.*a plain causal language model works"),
    "far": ({"model_type": "zzz"}, "no row for models of type 'zzz': a plain"),
    "encoder-decoder": ({"model_type": "t5"}, "no row for models of type 't5'"),
    "remote": ({"model_type": "zzz", "auto_map": {"AutoModelForCausalLM": "m.C"}}, "--trust-remote-code"),
    "nothing": ({"model_type": None}, "names no model_type"),
    "negative": ({"num_hidden_layers": 9}, "9 decoder layers, the weights hold 6"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_one_line_says_why_a_folder_is_refused(case, folders, tmp_path):
    changes, message = REFUSED[case]
    with pytest.raises(ModelError, match=message) as caught:
        load(altered(folders, tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_code_that_a_known_family_brings_along_is_not_needed(folders, tmp_path):
    folder = altered(folders, tmp_path, auto_map={"AutoModelForCausalLM": "absent.Class"})
    assert load(folder).info.n_layers == 6


def test_code_of_its_own_runs_only_when_it_is_allowed(folders, tmp_path):
    folder = altered(folders, tmp_path, model_type="own_llama", auto_map={"AutoModelForCausalLM": "own.OwnLlama"})
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n\n\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own_llama'\n\n\n"
        "class OwnLlama(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    with pytest.raises(ModelError, match="--trust-remote-code"):
        load(folder)
    loaded = load(folder, trust_remote_code=True)
    assert type(loaded.model).__name__ == "OwnLlama" and loaded.adapter.family.alias == "causal-lm"


def test_names_and_folders(folders, tmp_path, monkeypatch):
    def fails(match, kind=ModelError, **options):
        with pytest.raises(kind, match=match) as caught:
            TransformersModel().load(LoadOptions(**options))
        assert "\n" not in str(caught.value)

    llama = str(folders("Llama"))
    fails("needs weights: hf:ORG/NAME", BadParameter, name="hf")
    fails("needs weights: causal-lm:ORG/NAME", BadParameter, name="causal-lm")
    fails("give one", BadParameter, name="hf", reference=llama, path=llama)
    fails("no such model folder", name="hf", reference=str(tmp_path / "absent"))
    fails("no such model folder", name="hf", path=str(tmp_path / "absent"))
    fails("form ORG/NAME", name="hf", reference="just-a-name")
    fails("is 'causal-lm', not 'llava-next'", name="llava-next", path=llama)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    fails("download the folder.*--model-path", name="hf", reference="nobody/absent-model")
    fails("download the folder.*--model-path", name="llava-next")
    assert TransformersModel().load(LoadOptions(name="causal-lm", path=llama)).info.name == folders("Llama").name


def test_a_hub_name_is_fetched_by_its_revision(folders, tmp_path, monkeypatch):
    """The snapshot's folder is named by the commit, which is the revision; pickled weights are never asked for."""
    commit = "c0ffee" * 6 + "1234"
    snapshot = tmp_path / "models--org--llama" / "snapshots" / commit
    shutil.copytree(folders("Llama"), snapshot)
    asked = {}

    def download(repository, *, revision, allow_patterns):
        asked.update(repository=repository, revision=revision, patterns=allow_patterns)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    loaded = load("org/llama", revision="v1")
    assert (loaded.info.name, loaded.info.revision, loaded.info.n_layers) == ("org/llama", commit, 6)
    assert (asked["repository"], asked["revision"]) == ("org/llama", "v1")
    matched = [name for name in ("pytorch_model.bin", "model.pt", "code.py", "optimizer.pth")
               if any(fnmatch(name, pattern) for pattern in asked["patterns"])]  # fmt: skip
    assert matched == []
    needed = (
        "model-00001-of-00002.safetensors model.safetensors.index.json tokenizer.model merges.txt chat_template.jinja"
    )
    assert all(any(fnmatch(name, pattern) for pattern in asked["patterns"]) for name in needed.split())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("GatedRepoError", "is gated: accept its licence"),
        ("RepositoryNotFoundError", "no repository 'org/llama' on the Hub"),
        ("RevisionNotFoundError", "has no revision 'v1'"),
        ("LocalEntryNotFoundError", "download the folder where there is a network"),
    ],
)
def test_one_line_says_what_the_hub_answered(error, message, monkeypatch):
    from huggingface_hub import errors

    kind = getattr(errors, error)

    def download(*_args, **_settings):
        raise kind.__new__(kind)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(ModelError, match=message) as caught:
        load("org/llama", revision="v1")
    assert "\n" not in str(caught.value)


def test_every_alias_has_a_row_a_checkpoint_and_a_tiny_model():
    wanted = """llava-1.5 llava-next llava-next-video llava-onevision video-llava qwen2-vl qwen2.5-vl qwen3-vl
        qwen2.5-omni qwen2-audio internvl idefics3 smolvlm paligemma gemma3 mllama mistral3 videollama3 voxtral
        causal-lm"""
    assert set(ALIASES) == set(wanted.split()) == {tiny.row for tiny in TINY}
    assert len({kind for row in FAMILIES for kind in row.model_types}) == sum(len(row.model_types) for row in FAMILIES)
    for row in FAMILIES:
        assert row.checkpoint is None or row.checkpoint.count("/") == 1
        assert all(kind in (row.placeholders or {}) for kind in row.modalities if kind != "text"), row.alias


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "suite"),
    [
        ("Llava", "procedural-image"),
        ("Qwen2VL", "procedural-image-video"),
        ("Qwen2Audio", "procedural-audio"),
    ],
)
def test_run_from_the_command_line(name, suite, folders, tmp_path):
    """By the suite and the calibration data that follow from what the model takes."""
    words = ["run", "--model", f"hf:{folders(name)}", "--limit", 3, "--strategy", "cosine", "--sparsity", 0.34]
    words += ["--n-calibration", 12, "--no-latency", "--out", tmp_path]
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    records = load_records([tmp_path])
    assert len(records) == 2 and all(record.status == "ok" for record in records)
    for record in records:
        assert record.model.name == folders(name).name and record.cell.suite == suite
        assert all(task.n == 3 for task in record.tasks)
    assert "2 of 2 cells are finished already" in invoke(*words).stderr


def test_plan_a_plain_model_by_its_row(folders, tmp_path):
    words = ["plan", "--model", "causal-lm", "--model-path", folders("Llama"), "--strategy", "even_spacing"]
    result = invoke(*words, "--sparsity", 0.5, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "removed" in result.output.lower()


def test_errors_on_the_command_line_are_one_line(folders, tmp_path):
    result = invoke("run", "--model", f"llava-next:{folders('Llama')}", "--strategy", "first_n", "--layers", 1,
                    "--out", tmp_path)  # fmt: skip
    assert "is 'causal-lm', not 'llava-next'" in error_line(result, result.exit_code) and result.exit_code != 0
