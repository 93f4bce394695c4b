"""The port against what the original code computed: embeddings, logits, hidden states, answers, prompts, key names."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from prunebench_models.videollama2.configuration import CONFIGS
from prunebench_models.videollama2.frames import every_second, middle_of_segments
from prunebench_models.videollama2.modeling import MODELS
from safetensors import safe_open

from tests.data.videollama2.weights import FOLDER, SHARED_BIAS, shapes, write_checkpoint
from tests.models.videollama2_port import Port

TOLERANCE = 1e-4
VARIANTS = ("mistral_clip", "qwen2_av")
CASES = [
    *(("mistral_clip", case) for case in ("video", "image", "text")),
    *(("qwen2_av", case) for case in ("video", "text", "audio", "av")),
]


@pytest.fixture(scope="module")
def recorded():
    return {name: dict(np.load(FOLDER / name / "expected.npz")) for name in VARIANTS}


@pytest.fixture(scope="module")
def ports(tmp_path_factory):
    root = tmp_path_factory.mktemp("videollama2")
    return {name: Port(str(write_checkpoint(name, root / name))) for name in VARIANTS}


def media(expected, case):
    tensor = {key: torch.from_numpy(value) for key, value in expected.items() if value.dtype == np.float32}
    return {
        "text": lambda: None,
        "video": lambda: (tensor["video_pixels"], "video"),
        "image": lambda: (tensor["image_pixels"], "image"),
        "audio": lambda: (tensor["fbank"], "audio"),
        "av": lambda: ({"video": tensor["video_pixels"], "audio": tensor["fbank"]}, "video"),
    }[case]()


@pytest.mark.parametrize(("variant", "case"), CASES)
def test_the_model_equals_the_original(ports, recorded, variant, case):
    port, expected = ports[variant], recorded[variant]
    ids, mm = torch.from_numpy(expected[f"{case}_input_ids"]), media(expected, case)

    def close(found, key):
        torch.testing.assert_close(found.float(), torch.from_numpy(expected[key]), atol=TOLERANCE, rtol=0)

    with torch.inference_mode():
        close(port.inputs_embeds(ids, mm), f"{case}_inputs_embeds")
        logits = port.logits(ids, mm)
        close(logits[:, -expected[f"{case}_logits_tail"].shape[1] :], f"{case}_logits_tail")
        row_mean = torch.from_numpy(expected[f"{case}_logits_row_mean"])
        torch.testing.assert_close(logits.double().mean(-1), row_mean, atol=TOLERANCE, rtol=0)
        tail = expected[f"{case}_hidden_states_tail"].shape[1]
        close(torch.stack([s[0, -tail:] for s in port.hidden_states(ids, mm)]), f"{case}_hidden_states_tail")
        generated = expected[f"{case}_generated"][0].tolist()
        assert port.generate(ids, mm, len(generated)) == generated


@pytest.mark.parametrize(("variant", "case"), CASES)
def test_prompts_equal_the_original(ports, recorded, variant, case):
    instruct = str(recorded[variant]["instruct"])
    _, ids = ports[variant].prompt(instruct, {"av": "video"}.get(case, case))
    assert ids.tolist() == recorded[variant][f"{case}_input_ids"].tolist()


@pytest.mark.parametrize("variant", VARIANTS)
def test_towers_and_projectors_equal_the_original(ports, recorded, variant):
    model, expected = ports[variant].loaded.model, recorded[variant]

    def check(found, key):
        torch.testing.assert_close(found, torch.from_numpy(expected[key]), atol=TOLERANCE, rtol=0)

    with torch.inference_mode():
        video, image = torch.from_numpy(expected["video_pixels"]), torch.from_numpy(expected["image_pixels"])
        check(model.model.vision_tower(video), "video_tower_features")
        check(model.encode_frames(video)[None], "video_projected")
        check(model.model.vision_tower(image).expand(4, -1, -1), "image_tower_features")
        check(model.encode_image(image)[None], "image_projected")
        if "fbank" in expected:
            sound, longer = torch.from_numpy(expected["fbank"]), torch.from_numpy(expected["fbank_long"])
            check(model.model.audio_tower(sound), "audio_tower_features")
            check(model.encode_audio(sound)[None], "audio_projected")
            check(model.model.audio_tower(longer), "audio_tower_features_long")


@pytest.mark.parametrize("variant", VARIANTS)
def test_pixels_equal_the_original(ports, recorded, variant):
    """Bit for bit, from the same frames."""
    from PIL import Image

    processor, expected = ports[variant].loaded.processor, recorded[variant]
    frames = processor.pixels([Image.fromarray(frame) for frame in expected["video_u8"]])
    assert np.array_equal(frames.numpy(), expected["video_pixels"])
    assert np.array_equal(processor.pixels([Image.fromarray(expected["image_u8"])]).numpy(), expected["image_pixels"])


@pytest.mark.parametrize(("n_frames", "count"), [(100, 8), (100, 16), (7, 8), (1, 4), (250, 4)])
def test_chosen_frames_equal_the_original(recorded, n_frames, count):
    expected = recorded["mistral_clip"][f"frame_ids_{n_frames}_{count}"].tolist()
    assert middle_of_segments(n_frames, count) == expected


def test_frames_by_the_second_equal_the_original(recorded):
    assert every_second(100, 25.0) == recorded["mistral_clip"]["frame_ids_fps_100_25"].tolist()


@pytest.mark.parametrize("variant", VARIANTS)
def test_image_features_do_not_change_after_hidden_states_were_asked_for(ports, recorded, variant):
    """transformers' own capture counts a tower below a language model twice: nothing here may rely on it."""
    model, expected = ports[variant].loaded.model, recorded[variant]
    pixels = torch.from_numpy(expected["video_pixels"])
    with torch.inference_mode():
        before = model.encode_frames(pixels)
        model(input_ids=torch.tensor([[1, 7, 9]]), output_hidden_states=True)
        assert torch.equal(model.encode_frames(pixels), before)


@pytest.mark.parametrize("variant", VARIANTS)
def test_official_names_load_and_save(tmp_path, variant):
    """No key missing, none unexpected; written back under the same names, the shared bias table once."""
    folder = write_checkpoint(variant, tmp_path / "official")
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    config = CONFIGS[kind].from_pretrained(folder)
    model, report = MODELS[kind].from_pretrained(folder, config=config, dtype=torch.float32, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    official = set(shapes(variant))
    assert set(model.state_dict()) == official
    model.save_pretrained(tmp_path / "saved")
    with safe_open(tmp_path / "saved" / "model.safetensors", "pt") as file:
        saved = set(file.keys())
    copies = {key for key in official if key.endswith(SHARED_BIAS) and ".layers.0." not in key}
    assert saved == official - copies
    assert bool(copies) == (variant == "qwen2_av")
    again, report = MODELS[kind].from_pretrained(tmp_path / "saved", dtype=torch.float32, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in model.state_dict().items())


def test_one_copy_of_the_shared_bias_is_enough(tmp_path, ports, recorded):
    """A checkpoint may hold the table once or under every name."""
    copies = [key for key in shapes("qwen2_av") if key.endswith(SHARED_BIAS) and ".layers.0." not in key]
    assert len(copies) == 2
    port = Port(str(write_checkpoint("qwen2_av", tmp_path, leave_out=copies)))
    sound = torch.from_numpy(recorded["qwen2_av"]["fbank"])
    with torch.inference_mode():
        assert torch.equal(port.loaded.model.encode_audio(sound), ports["qwen2_av"].loaded.model.encode_audio(sound))
