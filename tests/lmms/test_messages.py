"""Chat messages of lmms-eval as samples: every kind of medium, the places of images, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prunebench_lmms_eval.messages import sample_of
from prunebench_models.hf.families import FAMILIES
from prunebench_models.hf.prompts import prompt_of

from prunebench.calibration.samples import Sample, fingerprint, input_fingerprint, joined
from prunebench.errors import CalibrationError, EvaluationError
from prunebench.media import AudioFile, ImageFile, VideoFile

rng = np.random.default_rng(0)
PIXELS = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
OTHER = rng.integers(0, 256, (5, 3, 3), dtype=np.uint8)
WAVE = rng.uniform(-1, 1, 80).astype(np.float32)


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image(pixels: Any = PIXELS) -> dict[str, Any]:
    return {"type": "image", "url": Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels}


def asked(*parts: Any) -> Sample:
    return sample_of([{"role": "user", "content": list(parts)}], "task/7")


def test_words_alone_are_a_question_and_no_running_text():
    sample = asked(text("what is it"))
    assert (sample.id, sample.instruction, sample.images, sample.layout) == ("task/7", "what is it", (), ())
    assert sample.kind != "text"
    assert sample_of([{"role": "user", "content": "plain words"}], "t/0").instruction == "plain words"


def test_images_in_front_of_the_words_need_no_layout():
    sample = asked(image(), image(OTHER), text("compare"))
    assert sample.layout == () and sample.instruction == "compare"
    assert np.array_equal(sample.images[0], PIXELS) and np.array_equal(sample.images[1], OTHER)
    assert sample.images[0].dtype == np.uint8


def test_images_among_the_words_keep_their_places():
    sample = asked(text("first"), image(), text("then "), image(OTHER), text("which?"))
    assert sample.layout == ("first", 0, "then ", 1, "which?")
    assert sample.instruction == "first then which?"
    assert np.array_equal(sample.images[1], OTHER)


def test_marks_in_the_words_are_places():
    sample = asked(image(), image(OTHER), text("A. <image>\nB. <image>\nwhich?"))
    assert sample.layout == ("A. ", 0, "\nB. ", 1, "\nwhich?")
    assert asked(image(), text("<image>\nwhat?")).instruction == "what?"
    assert asked(image(), text("<image>\nwhat?")).layout == ()
    # another number of marks than of images is left to the model
    assert asked(image(), text("<image> <image>")).instruction == "<image> <image>"


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_pictures_of_any_mode_become_rgb(mode: str):
    picture = Image.fromarray(PIXELS).convert("L" if mode == "I;16" else mode)
    picture = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257) if mode == "I;16" else picture
    (found,) = asked(image(picture)).images
    assert found.shape == (4, 6, 3) and found.dtype == np.uint8
    expected = np.asarray((Image.fromarray(PIXELS).convert("L") if mode == "I;16" else picture).convert("RGB"))
    assert np.array_equal(found, expected)


def test_undecoded_images_and_paths(tmp_path: Path):
    Image.fromarray(PIXELS).save(buffer := io.BytesIO(), "png")
    (found,) = asked({"type": "image", "url": {"bytes": buffer.getvalue(), "path": "x.png"}}).images
    assert np.array_equal(found, PIXELS)
    assert asked({"type": "image", "url": str(tmp_path / "a.png")}).images == (ImageFile(tmp_path / "a.png"),)


def test_a_relative_path_is_relative_to_where_the_task_stands(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert asked({"type": "video", "url": "clip.mp4"}).video == VideoFile(tmp_path / "clip.mp4")


def test_videos(tmp_path: Path):
    path = tmp_path / "clip.mp4"
    assert asked({"type": "video", "url": str(path)}, text("what happens")).video == VideoFile(path)
    frames = [Image.fromarray(PIXELS), Image.fromarray(PIXELS[::-1])]
    video = asked({"type": "video", "url": frames}).video
    assert np.array_equal(video, np.stack([PIXELS, PIXELS[::-1]]))
    assert np.array_equal(asked({"type": "video", "url": np.stack([PIXELS] * 3)}).video, np.stack([PIXELS] * 3))
    decoder = SimpleNamespace(_hf_encoded={"path": str(path), "bytes": None})
    assert asked({"type": "video", "url": decoder}).video == VideoFile(path)


def test_a_folder_of_pictures_is_a_video(tmp_path: Path):
    """mvbench has some; more than 64 are spread evenly, counted by number and not by name."""
    folder = tmp_path / "clip"
    folder.mkdir()
    for i in range(100):
        Image.fromarray(np.full((4, 6, 3), i, np.uint8)).save(folder / f"frame{i}.png")
    (folder / "notes.txt").write_text("x")
    video = asked({"type": "video", "url": str(folder)}).video
    assert video[:, 0, 0, 0].tolist() == [round(value) for value in np.linspace(0, 99, 64)]
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match=r"its video cannot be read: .*empty is a folder without pictures"):
        asked({"type": "video", "url": str(empty)})


def test_a_sound_that_is_called_a_video_is_a_sound(tmp_path: Path):
    for kind in ("video", "audio"):
        sample = asked({"type": kind, "url": {"array": WAVE, "sampling_rate": 8000}}, text("who"))
        assert np.array_equal(sample.audio, WAVE) and sample.sampling_rate == 8000
        assert sample.video is None and sample.audio.dtype == np.float32
    path = tmp_path / "a.wav"
    assert asked({"type": "audio", "url": str(path)}).audio == AudioFile(path)
    assert asked({"type": "audio", "url": {"path": str(path)}}).audio == AudioFile(path)


def test_several_channels_and_whole_numbers_become_one_waveform():
    stereo = np.stack([WAVE, -WAVE / 2])
    expected = (WAVE - WAVE / 2) / 2
    for array in (stereo, stereo.T):
        found = asked({"type": "audio", "url": {"array": array, "sampling_rate": 8000}}).audio
        np.testing.assert_allclose(found, expected, atol=1e-7)
    pcm = asked({"type": "audio", "url": {"array": np.array([-32768, 16384], np.int16), "sampling_rate": 8}}).audio
    assert pcm.tolist() == [-1.0, 0.5]
    decoder = SimpleNamespace(get_all_samples=lambda: SimpleNamespace(data=stereo, sample_rate=8000))
    np.testing.assert_allclose(asked({"type": "audio", "url": decoder}).audio, expected, atol=1e-7)


def test_sound_bytes():
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(buffer := io.BytesIO(), WAVE, 8000, format="wav", subtype="FLOAT")
    sample = asked({"type": "audio", "url": {"bytes": buffer.getvalue(), "path": "a.wav"}})
    assert np.array_equal(sample.audio, WAVE) and sample.sampling_rate == 8000


TURN = {"role": "user", "content": [text("x")]}
CLIP = {"type": "video", "url": "a.mp4"}
SOUND = {"type": "audio", "url": {"array": WAVE, "sampling_rate": 8000}}


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([{"role": "system", "content": [text("x")]}, TURN], r"other turns \(system \+ user\)"),
        ([TURN, {"role": "assistant", "content": [text("x")]}, TURN], r"\(user \+ assistant \+ user\)"),
        ([], r"other turns \(none\)"),
        (None, r"other turns \(none\)"),
        ([{"role": "user", "content": [CLIP, CLIP]}], "two videos"),
        ([{"role": "user", "content": [SOUND, SOUND]}], "two sounds"),
        ([{"role": "user", "content": [{"type": "depth", "url": "x"}]}], "a part of the type 'depth'"),
        ([{"role": "user", "content": [{"type": "image", "url": "https://x.org/a.png"}]}], "media that lie elsewhere"),
        ([{"role": "user", "content": [{"type": "video", "url": {"path": "a.mp4", "video_start": 3}}]}], "a part of a"),
        ([{"role": "user", "content": [{"type": "image", "url": 3}]}], "its image cannot be read: nothing known"),
        ([{"role": "user", "content": [{"type": "video", "url": []}]}], "its video cannot be read: nothing known"),
        ([{"role": "user", "content": [{"type": "audio", "url": 3}]}], "its audio cannot be read: nothing known"),
        (
            [{"role": "user", "content": [{"type": "audio", "url": {"array": [0.5]}}]}],
            "its audio cannot be read: KeyError: 'sampling_rate'",
        ),
    ],
)
def test_what_no_sample_can_hold_is_refused_in_one_line(messages, what: str):
    with pytest.raises(EvaluationError, match=what) as caught:
        sample_of(messages, "task/7")
    assert "'task/7'" in str(caught.value) and "\n" not in str(caught.value)


# -- layouts in prompts and fingerprints -----------------------------------------------------------------------------

LAYOUT = ("first", 0, "then ", 1, "which?")
MIXED = Sample("a", "first then which?", images=(PIXELS, OTHER), layout=LAYOUT)
LLAVA = next(family for family in FAMILIES if family.alias == "llava-1.5")


class Template:
    """A processor that keeps the conversation which its template would write."""

    chat_template = "there is one"

    def apply_chat_template(self, messages, **_settings) -> str:
        (message,) = messages
        return "|".join(part.get("text", f"<{part['type']}>") for part in message["content"])


def test_a_layout_goes_through_the_chat_template():
    assert prompt_of(Template(), LLAVA, MIXED) == "first|<image>|then |<image>|which?"
    plain = Sample("a", "which?", images=(PIXELS, OTHER))
    assert prompt_of(Template(), LLAVA, plain) == "<image>|<image>|which?"


def test_a_layout_without_a_chat_template():
    assert prompt_of(None, LLAVA, MIXED) == LLAVA.prompt.format(media="", text="first <image> then <image> which?")


@pytest.mark.parametrize("layout", [("a", 0), (1, 0, "a"), (0, 1, 1, "a"), ("a",)])
def test_a_layout_has_every_image_once(layout):
    with pytest.raises(CalibrationError, match="each of its images once"):
        prompt_of(Template(), LLAVA, Sample("a", "a", images=(PIXELS, OTHER), layout=layout))


def test_a_layout_counts_in_both_fingerprints():
    others = [LAYOUT, ("first", 0, "then ", "which?", 1), (0, "first", 1, "then which?"), ()]
    samples = [Sample("a", MIXED.instruction, images=MIXED.images, layout=layout) for layout in others]
    assert len({input_fingerprint(sample) for sample in samples}) == len(samples)
    assert len({fingerprint([sample]) for sample in samples}) == len(samples)


def test_samples_without_a_layout_keep_their_fingerprints():
    """Values from before there were layouts: kept encoder outputs and traces are found by them."""
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    sample = Sample("id/1", "what is it", "cat", "general", options=("cat", "dog"), images=(image,))
    assert fingerprint([sample]) == "5ca2da0510cced11ca3c22d1811bb2cc4890bedb6f7d19e626526be3ef7d015f"
    assert input_fingerprint(sample) == "b084dc6856408a70183ed28b1f57735b3c540190767c0283a291edf40be7625f"


def test_joined():
    assert joined(["a", "b ", "c", "", "\nd"]) == "a b c\nd"
