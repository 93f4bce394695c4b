"""The adapter on tiny official-format checkpoints of all four shapes: inputs, pruning, reloading, bad input."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from prunebench_models.videollama2.adapter import VideoLlama2
from prunebench_models.videollama2.repository import DEFAULT, VARIANTS, WANTED

from prunebench import LoadOptions, Plan, Sample, prune, pruned
from prunebench.errors import CalibrationError, ModelError, PlanError, PruneBenchError, UnknownName
from tests.data.videollama2.weights import write_checkpoint
from tests.truth import identity_in_place

LAYERS = 6
PATTERNS = [(2, 3), (0,), (0, 1), (1, 4), (5,), (0, 2, 3)]
SHAPES = {
    "7b": {"variant": "mistral_clip", "num_frames": 8},
    "7b-16f": {"variant": "mistral_clip", "num_frames": 16},
    "2.1-7b-16f": {"variant": "qwen2_av", "num_frames": 16, "audio": False},
    "2.1-7b-av": {"variant": "qwen2_av", "num_frames": 16},
}
TOKENS = {"7b": 5 * 9, "7b-16f": 9 * 9, "2.1-7b-16f": 8 * 4, "2.1-7b-av": 8 * 4}
"""Visual tokens from a 4×4 grid: (T/2 + 1)·3·3 with padding, T/2·2·2 without."""
AUDIO_TOKENS = 1496


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: write_checkpoint(folder=root / name, layers=LAYERS, **shape) for name, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def models(folders):
    return {name: VideoLlama2().load(LoadOptions(path=str(folder))) for name, folder in folders.items()}


@pytest.fixture(params=list(SHAPES))
def loaded(models, request):
    return models[request.param]


def samples(loaded):
    """One of each kind that the model takes, with words of different lengths."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 60, 3), np.uint8)
    video = rng.integers(0, 256, (5, 30, 50, 3), np.uint8)
    sound = {"audio": (0.1 * rng.standard_normal(8000)).astype(np.float32), "sampling_rate": 8000}
    found = [
        Sample("text", "Is it?"),
        Sample("image", "What is in the picture?", images=(image,)),
        Sample("video", "What moves?", video=video),
    ]
    if "audio" in loaded.info.modalities:
        found += [
            Sample("audio", "Which tone?", **sound),
            Sample("both", "Does it fit?", video=video, **sound),
            Sample("image and sound", "Does it fit?", images=(image,), **sound),
        ]
    return found


def short(loaded):
    """Without sound: six patterns on 1,500 more tokens would show nothing else."""
    return [sample for sample in samples(loaded) if sample.audio is None]


def encode(loaded, batch):
    with torch.inference_mode():
        return loaded.encode(batch)


def logits(loaded, inputs):
    with torch.inference_mode():
        return loaded.adapter.forward(loaded, inputs)


def test_groups_count_the_tokens_of_each_kind(models):
    for name, loaded in models.items():
        for sample in samples(loaded):
            inputs = encode(loaded, [sample])
            visual, audio, text = (int(inputs.groups[group].sum()) for group in ("visual", "audio", "text"))
            assert visual == (TOKENS[name] if sample.images or sample.video is not None else 0), (name, sample.id)
            assert audio == (AUDIO_TOKENS if sample.audio is not None else 0), (name, sample.id)
            assert visual + audio + text == inputs.embeds.shape[1] == inputs.n_tokens


def test_video_stands_before_its_sound_in_one_place(models):
    loaded = models["2.1-7b-av"]
    inputs = encode(loaded, [sample for sample in samples(loaded) if sample.id == "both"])
    visual, audio = inputs.groups["visual"][0], inputs.groups["audio"][0]
    first, last = visual.nonzero()[0].item(), audio.nonzero()[-1].item()
    assert last - first + 1 == TOKENS["2.1-7b-av"] + AUDIO_TOKENS
    assert visual[first : first + TOKENS["2.1-7b-av"]].all()


def test_a_batch_equals_batches_of_one(loaded):
    batch = samples(loaded)
    together = encode(loaded, batch)
    found = logits(loaded, together)
    for row, sample in enumerate(batch):
        alone = encode(loaded, [sample])
        start = together.embeds.shape[1] - alone.embeds.shape[1]
        assert not together.attention_mask[row, :start].any()
        assert torch.equal(together.embeds[row, start:], alone.embeds[0])
        torch.testing.assert_close(found[row, start:], logits(loaded, alone)[0], atol=1e-5, rtol=1e-4)


def test_media_change_the_answer(loaded):
    """Logits differ between media under the same words, so nothing is left out on the way."""
    for sample in samples(loaded)[1:]:
        other = replace(
            sample,
            images=tuple(255 - image for image in sample.images),
            video=None if sample.video is None else sample.video[::-1].copy(),
            audio=None if sample.audio is None else np.sin(np.arange(8000) / 5).astype(np.float32),
        )
        first, second = (logits(loaded, encode(loaded, [s]))[0, -1] for s in (sample, other))
        assert (first - second).abs().max() > 1e-3, sample.id


def test_pruned_equals_identity_in_place(loaded):
    inputs = encode(loaded, short(loaded))
    for drop in PATTERNS:
        with identity_in_place(loaded, drop):
            expected = logits(loaded, inputs)
        with pruned(loaded, Plan.drop(loaded.info, drop)):
            assert len(loaded.layers) == LAYERS - len(drop)
            assert torch.equal(logits(loaded, inputs), expected), drop


def test_cache_on_equals_cache_off(loaded):
    inputs = encode(loaded, short(loaded))
    adapter = loaded.adapter
    for drop in PATTERNS:
        with pruned(loaded, Plan.drop(loaded.info, drop)), torch.inference_mode():
            step, state = adapter.prefill(loaded, inputs)
            embeds, mask = inputs.embeds, inputs.attention_mask
            for _ in range(4):
                full = adapter.forward(loaded, type(inputs)(embeds, mask, inputs.groups), logits_to_keep=1)[:, -1]
                torch.testing.assert_close(step, full, atol=2e-5, rtol=1e-4)
                token = full.argmax(-1)
                step, state = adapter.decode_step(loaded, token, state)
                embeds = torch.cat([embeds, loaded.model.get_input_embeddings()(token[:, None])], 1)
                mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)


@pytest.mark.parametrize("name", list(SHAPES))
def test_pruned_saved_and_loaded_again_it_is_the_same_model(folders, models, tmp_path, name):
    """By our own class from a folder of its own: no tower folder beside it, all keys, equal logits, for all patterns;
    and read with the plan, without the layers that go."""
    dense = models[name]
    batch = samples(dense)
    for number, drop in enumerate(PATTERNS):
        plan = Plan.drop(dense.info, drop)
        inputs = encode(dense, batch if number == 0 else batch[:1])
        with pruned(dense, plan):
            expected = logits(dense, inputs)
        filtered = VideoLlama2().load(LoadOptions(path=str(folders[name]), plan=plan))
        assert len(filtered.layers) == LAYERS - len(drop)
        assert filtered.info == dense.info
        assert torch.equal(logits(filtered, inputs), expected), drop
        saved = tmp_path / str(number)
        fresh = prune(replace(dense, model=copy.deepcopy(dense.model)), plan)
        fresh.model.save_pretrained(saved)
        fresh.processor.save_pretrained(saved)
        again = VideoLlama2().load(LoadOptions(path=str(saved)))
        assert again.model.config.prunebench["removed_layers"] == list(drop)
        assert torch.equal(logits(again, encode(again, batch if number == 0 else batch[:1])), expected), drop


def test_what_is_known_after_loading(models):
    for name, loaded in models.items():
        audio = name == "2.1-7b-av"
        assert loaded.info.modalities == ("text", "image", "video") + (("audio",) if audio else ())
        assert loaded.adapter.default_suite == ("procedural-all" if audio else "procedural-image-video")
        assert loaded.adapter.default_calibration == ("procedural:all" if audio else "procedural:image-video")
        assert loaded.info.n_layers == LAYERS and loaded.info.name == name
        model = loaded.model
        language = sum(p.numel() for key, p in model.named_parameters() if ".layers." in key and "tower" not in key)
        around = (
            model.lm_head.weight.numel() + model.model.embed_tokens.weight.numel() + model.model.norm.weight.numel()
        )
        assert loaded.info.lm_params == language + around < loaded.info.model_params


def test_generation_stops_and_says_words(loaded):
    inputs = encode(loaded, short(loaded))
    with torch.inference_mode():
        texts = loaded.generate(inputs, 5)
    assert len(texts) == 3 and all(isinstance(text, str) for text in texts)
    alone = [loaded.generate(encode(loaded, [sample]), 5)[0] for sample in short(loaded)]
    assert texts == alone


def test_loading_options_are_honoured(folders, models):
    path = str(folders["2.1-7b-av"])
    half = VideoLlama2().load(LoadOptions(path=path, dtype="bfloat16"))
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert half.info.dtype == "bfloat16"
    both = [sample for sample in samples(half) if sample.id == "both"]
    assert torch.isfinite(logits(half, encode(half, both))).all()
    eager = VideoLlama2().load(LoadOptions(path=path, attn_implementation="eager"))
    assert eager.model.config._attn_implementation == "eager"
    assert eager.model.model.vision_tower.config._attn_implementation == "eager"
    dense = models["2.1-7b-av"]
    mapped = VideoLlama2().load(LoadOptions(path=path, device_map="auto"))
    for found in (eager, mapped):
        expected = logits(dense, encode(dense, short(dense)))[:, -1]
        torch.testing.assert_close(logits(found, encode(found, short(found)))[:, -1], expected, atol=1e-5, rtol=1e-4)


def test_a_plan_for_other_weights_is_refused(folders, models):
    plan = Plan.drop(models["7b"].info, (1,))
    with pytest.raises(PlanError):
        VideoLlama2().load(LoadOptions(path=str(folders["7b-16f"]), plan=plan))


def test_media_that_do_not_fit_are_refused(models):
    image = np.zeros((8, 8, 3), np.uint8)
    video = np.zeros((2, 8, 8, 3), np.uint8)
    plain = models["7b"]
    for sample in (Sample("two", "?", images=(image, image)), Sample("mixed", "?", images=(image,), video=video)):
        with pytest.raises(CalibrationError, match="one image or one video"):
            encode(plain, [sample])
    with pytest.raises(CalibrationError, match=r"'s'.*no audio tower: use videollama2:2\.1-7b-av"):
        encode(plain, [Sample("s", "?", audio=np.zeros(100, np.float32), sampling_rate=16000)])


# -- where weights come from -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("word", "near"), [("7b-16", "7b-16f"), ("2.1-7b", "2.1-7b-av"), ("2.1-7B-AF", "2.1-7b-av")])
def test_an_unknown_variant_names_the_nearest(word, near):
    with pytest.raises(UnknownName, match=f"did you mean '{near}'"):
        VideoLlama2().load(LoadOptions(reference=word))


@pytest.mark.parametrize("reference", [None, *VARIANTS, "7B-16F", "someone/VideoLLaMA2-tuned"])
def test_variants_are_fetched_without_pickled_files(folders, monkeypatch, reference):
    asked = {}

    def fetch(repository, **arguments):
        asked.update(arguments, repository=repository)
        key = (reference or DEFAULT).lower()
        return str(folders[key if key in folders else "7b"])

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    loaded = VideoLlama2().load(LoadOptions(reference=reference, revision="abc"))
    expected = VARIANTS.get((reference or DEFAULT).lower())
    assert asked["repository"] == (expected.repository if expected else reference)
    assert asked["revision"] == "abc" and asked["allow_patterns"] == list(WANTED)
    assert not any(pattern.endswith((".bin", ".pt", "*")) for pattern in WANTED)
    assert ("audio" in loaded.info.modalities) == bool(expected and expected.audio)


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch):
    def fetch(*_args, **_kwargs):
        raise OSError("no route to host\nmore")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    with pytest.raises(ModelError, match=r"VideoLLaMA2-7B-16F from the hub .*no route.* --model-path") as caught:
        VideoLlama2().load(LoadOptions(reference="7b-16f"))
    assert "\n" not in str(caught.value)


def test_a_folder_in_the_hubs_cache_is_known_by_repository_and_commit(folders, tmp_path):
    commit = "0123456789abcdef" * 2 + "01234567"
    folder = tmp_path / "models--DAMO-NLP-SG--VideoLLaMA2-7B" / "snapshots" / commit
    shutil.copytree(folders["7b"], folder)
    info = VideoLlama2().load(LoadOptions(path=str(folder))).info
    assert (info.name, info.revision) == ("DAMO-NLP-SG/VideoLLaMA2-7B", commit)


def test_base_checkpoints_are_refused(tmp_path):
    with pytest.raises(ModelError, match="-Base checkpoint"):
        VideoLlama2().load(LoadOptions(reference="DAMO-NLP-SG/VideoLLaMA2-7B-Base"))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "mm_projector.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="-Base checkpoint"):
        VideoLlama2().load(LoadOptions(path=str(tmp_path)))


def test_duplicate_pickled_files_are_not_touched(folders, tmp_path):
    folder = tmp_path / "av"
    shutil.copytree(folders["2.1-7b-av"], folder)
    for name in ("audio_tower.bin", "mm_projector_a.bin"):
        (folder / name).write_bytes(b"this is no pickle")
    assert "audio" in VideoLlama2().load(LoadOptions(path=str(folder))).info.modalities


def test_the_variant_beside_a_path_has_to_fit(folders):
    path = str(folders["2.1-7b-av"])
    assert VideoLlama2().load(LoadOptions(path=path, reference="2.1-7b-av")).info.n_layers == LAYERS
    for reference in ("7b", "2.1-7b-16f"):
        with pytest.raises(ModelError, match=f"not the variant '{reference}'"):
            VideoLlama2().load(LoadOptions(path=path, reference=reference))


# -- bad checkpoints ---------------------------------------------------------------------------------------------------


def change_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def drop_shard(folder):
    (folder / "model-00002-of-00002.safetensors").unlink()


def cut_shard(folder):
    path = folder / "model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def break_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{")


BAD = {
    "missing shard": (drop_shard, "model-00002-of-00002"),
    "truncated shard": (cut_shard, "cut short"),
    "layer count": (lambda folder: change_config(folder, num_hidden_layers=7), "7 decoder layers"),
    "width": (lambda folder: change_config(folder, intermediate_size=100), "shape"),
    "tower width": (lambda folder: change_config(folder, mm_hidden_size=31), "mm_hidden_size is 31"),
    "tower name": (lambda folder: change_config(folder, mm_vision_tower="someone/tower"), "someone/tower"),
    "no tower": (lambda folder: change_config(folder, mm_vision_tower=None), "names no vision tower"),
    "connector": (lambda folder: change_config(folder, mm_projector_type="stp_connector"), "stp_connector"),
    "select layer": (lambda folder: change_config(folder, mm_vision_select_layer=-9), "-9"),
    "select feature": (lambda folder: change_config(folder, mm_vision_select_feature="cls_patch"), "cls_patch"),
    "audio where none is": (lambda folder: change_config(folder, mm_audio_tower="x"), "audio_tower"),
    "mixtral": (lambda folder: change_config(folder, model_type="videollama2_mixtral"), "Mixtral"),
    "another model": (lambda folder: change_config(folder, model_type="llama"), "'llama' is not VideoLLaMA2"),
    "value of a wrong type": (lambda folder: change_config(folder, hidden_size="wide"), "does not fit VideoLLaMA2"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
    "tokenizer": (break_tokenizer, "tokenizer"),
}


@pytest.mark.parametrize("what", list(BAD))
def test_a_bad_checkpoint_is_one_line(folders, tmp_path, what):
    damage, message = BAD[what]
    folder = tmp_path / "model"
    shutil.copytree(folders["7b"], folder)
    damage(folder)
    with pytest.raises(PruneBenchError) as caught:
        VideoLlama2().load(LoadOptions(path=str(folder)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["model.norm.weight", "model.mm_projector.s1.b1.se.fc1.bias", "lm_head.weight"])
def test_a_missing_key_is_one_line(tmp_path, key):
    folder = write_checkpoint("mistral_clip", tmp_path, leave_out=[key])
    with pytest.raises(ModelError, match=f"no weights for {key}"):
        VideoLlama2().load(LoadOptions(path=str(folder)))


def test_a_key_too_many_is_one_line(tmp_path):
    """The audio tower is there, the configuration does not speak of it."""
    folder = write_checkpoint("qwen2_av", tmp_path, mm_audio_tower=None)
    with pytest.raises(ModelError, match="audio_tower"):
        VideoLlama2().load(LoadOptions(path=str(folder)))
