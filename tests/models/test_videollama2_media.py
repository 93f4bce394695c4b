"""Sound, frames and prompts of VideoLLaMA2: second implementations, closed forms, and files made on the spot."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image
from prunebench_models.videollama2 import fbank as sound
from prunebench_models.videollama2.frames import MAX_FRAMES, every_second, middle_of_segments, padded
from prunebench_models.videollama2.prompt import SYSTEM, chat_text, tokenize
from prunebench_models.videollama2.tower_settings import image_settings, tower_settings
from scipy import signal
from transformers import PreTrainedTokenizerFast

from prunebench import Sample
from prunebench.errors import ModelError
from prunebench.media import VideoFile
from tests.data.videollama2.weights import FOLDER
from tests.media_files import write_video

RATE, LENGTH = 16_000, 480_000
OLDER_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
)


def tone(seconds, rate, hertz=440.0):
    return 0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def kaldi_fbank(wave):
    """Kaldi's filterbanks from their definition, in double precision and without a fast transform."""
    mel = lambda hertz: 1127.0 * np.log(1.0 + hertz / 700.0)  # noqa: E731
    bins = np.arange(256) * RATE / 512
    edges = np.linspace(mel(20.0), mel(8000.0), 130)
    rising = (mel(bins)[:, None] - edges[None, :-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[None, 2:] - mel(bins)[:, None]) / (edges[2:] - edges[1:-1])
    triangles = np.clip(np.minimum(rising, falling), 0.0, None)
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    waves = np.exp(-2j * np.pi * np.outer(np.arange(400), np.arange(256)) / 512)
    rows = []
    for start in range(0, len(wave) - 399, 160):
        frame = wave[start : start + 400] * 32768.0
        frame = frame - frame.mean()
        frame = frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])
        power = np.abs((frame * window) @ waves) ** 2
        rows.append(np.log(np.maximum(power @ triangles, np.finfo(np.float32).eps)))
    return np.array(rows)


def test_filterbanks_equal_their_definition():
    rng = np.random.default_rng(0)
    wave = tone(0.2, RATE) + 0.05 * rng.standard_normal(3200)
    found = sound.fbank(wave)
    assert found.shape == (18, 128) and found.dtype == np.float32
    np.testing.assert_allclose(found, kaldi_fbank(wave), atol=1e-4)


def test_thirty_seconds_make_2998_frames_and_silence_is_the_floor():
    found = sound.fbank(np.zeros(LENGTH))
    assert found.shape == (2998, 128)
    np.testing.assert_allclose(found, math.log(np.finfo(np.float32).eps), rtol=1e-6)


def test_a_sound_is_padded_then_resampled_in_the_frequency_domain():
    wave = tone(1.3, 8000).astype(np.float32)
    found = sound.sound_of(Sample("s", "?", audio=wave, sampling_rate=8000))
    expected = signal.resample(np.pad(wave.astype(np.float64), (0, 30 * 8000 - len(wave))), LENGTH)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_of_a_long_sound_the_first_half_minute_of_channel_0_is_heard():
    rng = np.random.default_rng(1)
    stereo = (0.1 * rng.standard_normal((31 * RATE, 2))).astype(np.float32)
    found = sound.sound_of(Sample("s", "?", audio=stereo, sampling_rate=RATE))
    assert np.array_equal(found, stereo[:LENGTH, 0])


def test_clips_are_spread_from_the_first_to_the_last_possible():
    wave = np.arange(9 * RATE, dtype=np.float32)  # clips start at 0, 1, ..., 7 seconds
    found = sound.spread_clips(wave)
    assert found.shape == (16 * RATE,)
    assert [int(clip[0]) for clip in found.reshape(8, -1)] == [second * RATE for second in range(8)]
    assert np.array_equal(found[: 2 * RATE], wave[: 2 * RATE])
    assert found[-1] == wave[-1]


def test_a_sound_shorter_than_a_clip_is_taken_eight_times():
    wave = np.arange(100, dtype=np.float32)
    assert np.array_equal(sound.spread_clips(wave), np.tile(wave, 8))


def test_the_sound_track_of_a_video(tmp_path):
    """Both channels' mean in 16 bits, in eight clips, then silence."""
    wave = tone(9.0, RATE)
    stereo = np.stack([wave, np.zeros_like(wave)], 1).astype(np.float32)
    path = write_video(tmp_path / "clip.mkv", 10, sound=stereo, sound_codec="pcm_s16le")
    found = sound.track_of(VideoFile(path))
    assert found.shape == (LENGTH,)
    assert not found[16 * RATE :].any()
    expected = sound.spread_clips(wave / 2)
    np.testing.assert_allclose(found[: 16 * RATE], expected, atol=2 / 32768)
    assert np.array_equal(np.rint(found * 32768), found * 32768)


def test_a_sound_track_at_another_rate(tmp_path):
    stereo = tone(3.0, 48_000)[:, None].repeat(2, 1).astype(np.float32)
    path = write_video(tmp_path / "clip.mkv", 10, sound=stereo, sound_rate=48_000, sound_codec="pcm_s16le")
    found = sound.track_of(VideoFile(path))
    expected = sound.spread_clips(tone(3.0, RATE))
    np.testing.assert_allclose(found[200 : len(expected) - 200], expected[200:-200], atol=0.02)


def test_without_a_sound_track_there_is_silence(tmp_path):
    silent = VideoFile(write_video(tmp_path / "silent.mkv", 5))
    assert not sound.track_of(silent).any()
    broken = tmp_path / "broken.mkv"
    broken.write_bytes(b"no video at all" * 100)
    assert not sound.track_of(VideoFile(broken)).any()


@pytest.mark.parametrize("count", [1, 4, 8, 16, 32])
def test_chosen_frames_lie_in_the_middle_of_equal_parts(count):
    for n_frames in (1, 2, 9, 32, 250, 1801):
        chosen = middle_of_segments(n_frames, count)
        part = (n_frames - 1) / count
        assert len(chosen) == count
        assert all(abs(index - part * (i + 0.5)) <= 0.5 + 1e-6 for i, index in enumerate(chosen))


def test_one_frame_a_second_even_of_the_shortest_and_the_longest_video():
    assert every_second(100, 25.0) == [12, 37, 62, 87]
    assert every_second(3, 25.0) == [2]
    assert every_second(4, 0.5) == [0, 1, 2, 3]
    assert every_second(10_000, 10.0) == [5 + 10 * i for i in range(MAX_FRAMES)]


def test_missing_frames_are_black_and_there_are_never_more_than_32():
    white = [Image.new("RGB", (6, 4), "white")] * 3
    found = padded(white, 5)
    assert [np.asarray(frame).mean() for frame in found] == [255, 255, 255, 0, 0]
    assert {frame.size for frame in found} == {(6, 4)}
    assert len(padded(white * 20, None)) == MAX_FRAMES


@pytest.fixture(scope="module")
def mistral():
    return PreTrainedTokenizerFast.from_pretrained(FOLDER / "mistral_clip")


def test_a_template_that_knows_no_system_role_gets_the_text_in_the_users_turn(mistral):
    newer = chat_text(mistral, "Why?", "video", system=True)
    older = PreTrainedTokenizerFast.from_pretrained(FOLDER / "mistral_clip")
    older.chat_template = OLDER_TEMPLATE
    found = chat_text(older, "Why?", "video", system=True)
    assert found == f"<s>[INST] {SYSTEM}\n\n<video>\nWhy? [/INST]"
    assert newer == f"<s> [INST] {SYSTEM}\n\n<video>\nWhy? [/INST]"


def test_a_template_that_always_fails_is_one_line(mistral):
    broken = PreTrainedTokenizerFast.from_pretrained(FOLDER / "mistral_clip")
    broken.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(ModelError, match="chat template cannot be used: never"):
        chat_text(broken, "Why?", "text", system=True)
    broken.chat_template = None
    with pytest.raises(ModelError, match="chat template cannot be used"):
        chat_text(broken, "Why?", "text", system=False)


@pytest.mark.parametrize(("kind", "place"), [("image", -200), ("video", -201), ("audio", -202)])
def test_only_our_own_tag_becomes_a_place(mistral, kind, place):
    """Words of the user that look like a tag stay words."""
    text = chat_text(mistral, f"What does <{kind}> mean?", kind, system=False)
    ids = tokenize(mistral, text, kind)
    assert (ids < 0).sum() == 1 and ids[ids < 0].item() == place
    before, after = text.split(f"<{kind}>", 1)
    at = ids.tolist().index(place)
    assert ids[:at].tolist() == mistral(before, add_special_tokens=False)["input_ids"]
    assert ids[at + 1 :].tolist() == mistral(after, add_special_tokens=False)["input_ids"]
    assert f"<{kind}>" in after


def test_tower_settings_beside_the_weights_win(tmp_path):
    folder = FOLDER / "mistral_clip"
    assert tower_settings("clip-vit-tiny-patch14-56", folder)["hidden_size"] == 32
    assert image_settings("clip-vit-tiny-patch14-56", folder)["crop_size"] == 56
    assert tower_settings("openai/clip-vit-large-patch14-336", folder)["hidden_size"] == 1024
    assert image_settings("google/siglip-so400m-patch14-384", None)["size"] == {"height": 384, "width": 384}
    with pytest.raises(ModelError, match="vision tower 'facebook/other'"):
        tower_settings("facebook/other", folder)
    (tmp_path / "tower").mkdir()
    (tmp_path / "tower" / "config.json").write_text('{"model_type": "siglip", "vision_config": {"hidden_size": 7}}')
    assert tower_settings("tower", tmp_path) == {"model_type": "siglip_vision_model", "hidden_size": 7}
    (tmp_path / "tower" / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not readable JSON"):
        tower_settings("tower", tmp_path)
