"""Images, video and sound from files that these tests make: read right, or refused in one line."""

from __future__ import annotations

import builtins
import io
import os
import struct
import subprocess
import sys
import zlib

import av
import numpy as np
import pytest
import soundfile
from PIL import Image
from scipy import signal

from prunebench import Sample
from prunebench.calibration.samples import fingerprint, input_fingerprint
from prunebench.errors import MediaError, MissingExtra, PruneBenchError
from prunebench.media import (
    AudioFile,
    ImageFile,
    VideoFile,
    audio_track_of,
    evenly,
    frames_of,
    images_of,
    load_image,
    read_audio,
    resample,
    video_info,
    waveform_of,
)
from tests.media_files import mux_sound, tone, write_sound, write_video


def refused(call, *words: str) -> str:
    """The one line with which `call` is refused."""
    with pytest.raises(MediaError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line, line
    return line


def clip(path) -> Sample:
    return Sample("clip", "?", video=VideoFile(path))


def sound(path) -> Sample:
    return Sample("sound", "?", audio=AudioFile(path))


def decoded(path) -> np.ndarray:
    """All frames in order, by plain decoding from the beginning: the second way to the same frames."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


# -- images ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def test_arrays_and_files_are_the_same_image(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "a.png")
    sample = Sample("s", "?", images=(picture, ImageFile(tmp_path / "a.png")))
    first, second = images_of(sample)
    assert first.mode == second.mode == "RGB"
    assert np.array_equal(first, picture) and np.array_equal(second, picture)


def test_exif_orientation_is_applied(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter turn clockwise
    Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(load_image(ImageFile(tmp_path / "a.png")), np.rot90(picture, -1))


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode, picture):
    grey = np.tile(np.array([[0, 51, 255]], np.uint8), (4, 1))
    if mode == "I;16":
        image, expected = Image.fromarray(grey.astype(np.uint16) * 257), np.repeat(grey[..., None], 3, 2)
    elif mode in ("LA", "RGBA"):
        image = Image.fromarray(grey).convert(mode)
        image.putalpha(Image.fromarray(np.where(grey == 0, 0, 255).astype(np.uint8)))
        expected = np.repeat(np.where(grey == 0, 255, grey)[..., None], 3, 2)  # transparent black is shown white
    else:
        image = Image.fromarray(np.repeat(grey[..., None], 3, 2)).convert(mode)
        expected = np.asarray(image.convert("RGB"))
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    image.save(path)
    found = load_image(ImageFile(path))
    assert found.mode == "RGB"
    assert np.array_equal(found, expected)


def test_transparent_palette_and_animation(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 200, 10, 20])
    image.putdata([0, 1])
    image.save(tmp_path / "a.png", transparency=0)
    assert np.asarray(load_image(ImageFile(tmp_path / "a.png"))).tolist() == [[[255] * 3, [200, 10, 20]]]
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_image(ImageFile(tmp_path / "a.gif")).getpixel((0, 0)) == (255, 0, 0)


def test_broken_images(tmp_path, picture):
    good = io.BytesIO()
    Image.fromarray(np.tile(picture, (20, 20, 1))).save(good, "JPEG")
    png = io.BytesIO()
    Image.fromarray(picture).save(png, "PNG")
    cases = {
        "empty.png": (b"", "is empty"),
        "text.jpg": (b"this is not an image", "is not an image"),
        "cut.jpg": (good.getvalue()[: len(good.getvalue()) // 2], "cut short"),
        "cut.png": (png.getvalue()[:50], "cut short"),
        "head.png": (png.getvalue()[:20], "image"),
    }
    for name, (content, words) in cases.items():
        (tmp_path / name).write_bytes(content)
        refused(lambda name=name: load_image(ImageFile(tmp_path / name)), name, words)
    refused(lambda: load_image(ImageFile(tmp_path / "absent.png")), "absent.png", "No such file")
    refused(lambda: load_image(ImageFile(tmp_path)), "is a folder")
    Image.fromarray(np.full((2, 2), 1e9, np.float32)).save(tmp_path / "f.tif")
    refused(lambda: load_image(ImageFile(tmp_path / "f.tif")), "f.tif", "16 bits")


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_decompression_bomb_is_not_opened(tmp_path, side):
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(bytes(1000)))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + rows + chunk(b"IEND", b""))
    refused(lambda: load_image(ImageFile(tmp_path / "bomb.png")), "bomb.png", "pixels", "scale it down")


@pytest.mark.parametrize("array", [np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_arrays_that_are_no_image(array):
    refused(lambda: load_image(array), "uint8 (height, width, 3)")


# -- video -------------------------------------------------------------------------------------------------------------

KINDS = {
    "h264.mp4": {"b_frames": 2},
    "h264.mkv": {"b_frames": 2},
    "h264.ts": {"b_frames": 2},
    "raw.h264": {"b_frames": 2},
    "mpeg4.avi": {"codec": "mpeg4", "b_frames": 2},
    "h264.avi": {"b_frames": 2},
    "mpeg4.mov": {"codec": "mpeg4"},
    "one_key.mp4": {"gop": 1000},
    "all_keys.mp4": {"gop": 1},
    "vp8.webm": {"codec": "libvpx"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "mpeg2.mpg": {"codec": "mpeg2video", "b_frames": 2},
}


@pytest.mark.parametrize("name", KINDS)
def test_chosen_frames_are_those_of_plain_decoding(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (100, 12, 16, 3), np.uint8)  # no two frames alike
    path = write_video(tmp_path / name, frames=noise.repeat(4, 1).repeat(4, 2), **KINDS[name])
    everything = decoded(path)
    assert len(everything) == len(np.unique(everything, axis=0)) == 100
    wanted = [99, 0, 11, 12, 13, 13, 24, 98, 5, *range(30, 100, 7)]
    seen = []

    def choose(n, fps):
        seen.append((n, fps))
        return wanted

    found = frames_of(clip(path), choose)
    assert found.dtype == np.uint8
    assert np.array_equal(found, everything[wanted])
    assert seen == [(100, 25.0)]
    assert np.array_equal(frames_of(clip(path)), everything)


def test_arrays_go_the_same_way():
    frames = np.arange(5 * 2 * 2 * 3, dtype=np.uint8).reshape(5, 2, 2, 3)
    sample = Sample("s", "?", video=frames)
    assert frames_of(sample) is frames
    assert np.array_equal(frames_of(sample, lambda n, fps: [n - 1, 0]), frames[[4, 0]])
    assert np.array_equal(frames_of(sample, evenly(3)), frames[[0, 2, 4]])
    assert np.array_equal(frames_of(sample, evenly(8)), frames)
    refused(lambda: frames_of(sample, lambda n, fps: [5]), "'s'", "frame 5", "it has 5")
    refused(lambda: frames_of(sample, lambda n, fps: []), "no frame was chosen")
    refused(lambda: frames_of(Sample("s", "?")), "has no video")
    refused(lambda: frames_of(Sample("s", "?", video=frames[0])), "uint8 (frames, height, width, 3)")


def test_variable_frame_rate(tmp_path):
    times = [0, 1, 2, 3, 30, 31, 60, 90, 91, 100]  # in 1/25 second
    path = write_video(tmp_path / "a.mkv", 10, pts=times)
    rates = []
    found = frames_of(clip(path), lambda n, fps: rates.append((n, fps)) or [4, 7])
    assert rates[0][0] == 10
    assert rates[0][1] == pytest.approx(9 / 4.0, rel=0.02)
    assert np.array_equal(found, decoded(path)[[4, 7]])


def test_a_stream_that_does_not_state_its_length(tmp_path):
    """A live recording: no duration, no number of frames in its header."""
    path = tmp_path / "live.webm"
    with open(path, "wb") as sink:

        class Pipe:  # cannot go back to fill the header in
            write = staticmethod(sink.write)

        with av.open(Pipe(), "w", format="webm") as out:
            stream = out.add_stream("libvpx", rate=25)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
            for i in range(30):
                frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 7 * i, np.uint8), format="rgb24")
                out.mux(stream.encode(frame))
            out.mux(stream.encode())
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 0 and container.duration is None
    assert video_info(VideoFile(path)).frames == 30
    assert np.array_equal(frames_of(clip(path), lambda n, fps: [29, 17]), decoded(path)[[29, 17]])


@pytest.mark.parametrize("angle", [90, 180, -90])
def test_rotation_is_applied(tmp_path, angle):
    frames = np.zeros((3, 48, 64, 3), np.uint8)
    frames[:, :24, :32] = 255  # the top left quarter is white
    path = write_video(tmp_path / "a.mp4", frames=frames, rotation=angle)
    found = frames_of(clip(path), lambda n, fps: [1])
    assert found.shape == ((1, 48, 64, 3) if angle == 180 else (1, 64, 48, 3))
    expected = np.rot90(frames[1], angle // 90)  # the display matrix turns counter-clockwise
    assert np.abs(found[0].astype(int) - expected).mean() < 12
    info = video_info(VideoFile(path))
    assert (info.height, info.width) == found.shape[1:3]


def test_thirty_minutes_stay_in_bounded_memory(tmp_path):
    """45,000 frames of a still picture: as RGB they would be 10 GB."""
    path = tmp_path / "long.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 320, 240, "yuv420p", 250
        still = av.VideoFrame.from_ndarray(np.full((240, 320, 3), 90, np.uint8), format="rgb24")
        still = still.reformat(format="yuv420p")
        packets = None
        for i in range(250):
            still.pts = i
            packets = (packets or []) + list(stream.encode(still))
        packets += list(stream.encode())
        contents = [(bytes(packet), packet.is_keyframe) for packet in packets]
        for i in range(45_000):  # the same ten seconds over and over: no need to encode them again
            data, key = contents[i % len(contents)]
            packet = av.Packet(data)
            packet.pts = packet.dts = i
            packet.time_base, packet.stream, packet.is_keyframe = packets[0].time_base, stream, key
            out.mux(packet)
    code = f"""
import resource
from prunebench import Sample
from prunebench.media import VideoFile, evenly, frames_of
sample = Sample("s", "?", video=VideoFile({str(path)!r}))
frames_of(sample, lambda n, fps: [0])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = frames_of(sample, evenly(16))
print(found.shape, int(found.min()), int(found.max()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shape, rest = done.stdout.split(") ")
    assert shape + ")" == "(16, 240, 320, 3)"
    low, high, kib = (int(word) for word in rest.split())
    assert 80 <= low <= high <= 100
    assert kib < 100_000
    refused(lambda: frames_of(clip(path)), "45000 frames", "choose fewer")


def test_broken_videos(tmp_path):
    whole = write_video(tmp_path / "good.mp4", 40).read_bytes()
    webm = write_video(tmp_path / "good.mkv", 40).read_bytes()
    codec = b"V_MPEG4/ISO/AVC"
    assert codec in webm
    cases = {
        "empty.mp4": (b"", "is empty"),
        "text.mp4": (b"not a video at all" * 50, "damaged"),
        "cut.mp4": (whole[: len(whole) // 2], "damaged"),
        "codec.mkv": (webm.replace(codec, b"V_MPEG4/ISO/XXX"), "decode"),
    }
    for name, (content, words) in cases.items():
        (tmp_path / name).write_bytes(content)
        refused(lambda name=name: frames_of(clip(tmp_path / name), evenly(4)), name, words)
    refused(lambda: frames_of(clip(tmp_path / "absent.mp4")), "absent.mp4", "No such file")
    soundfile.write(tmp_path / "sound.wav", tone(8000), 8000)
    refused(lambda: frames_of(clip(tmp_path / "sound.wav")), "has no video in it", "audio")


@pytest.mark.parametrize("with_sound", [False, True])
def test_a_video_without_frames(tmp_path, with_sound):
    path = tmp_path / "none.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        track = out.add_stream("aac", rate=16000, layout="mono")
        out.start_encoding()
        if with_sound:
            mux_sound(out, track, tone(16000), 16000)
    refused(lambda: frames_of(clip(path)), "none.mkv", "no frame")
    if with_sound:  # the sound beside it can be read all the same
        assert len(waveform_of(sound(path), 16000)) > 15000


def test_a_recording_that_was_cut_off_gives_what_it_holds(tmp_path):
    whole = write_video(tmp_path / "good.mkv", 40, b_frames=0)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.6)])
    info = video_info(VideoFile(cut))
    assert 5 < info.frames < 40
    found = frames_of(clip(cut), lambda n, fps: [0, n // 2])
    assert np.array_equal(found, decoded(whole)[[0, info.frames // 2]])


# -- sound -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "m4a", "mka", "webm", "mp4"])
def test_every_kind_of_sound_file(tmp_path, suffix):
    wave, path = tone(48000, 1.0, channels=2), tmp_path / f"a.{suffix}"
    if suffix in ("wav", "flac", "ogg", "mp3"):
        soundfile.write(path, wave, 48000)
    elif suffix == "mp4":
        write_video(path, sound=wave, sound_rate=48000)
    else:
        write_sound(path, wave, 48000, "libopus" if suffix == "webm" else "aac")
    found = waveform_of(sound(path), 16000)
    assert found.dtype == np.float32 and found.ndim == 1
    assert abs(len(found) - 16000) <= 1200  # coders work in blocks
    inner = found[4000:12000]
    assert np.abs(np.fft.rfft(inner)).argmax() * 16000 / len(inner) == 440.0
    assert np.sqrt((inner**2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.03)


def test_channels_rates_and_windows(tmp_path):
    wave = tone(8000, 2.0, channels=2)
    soundfile.write(tmp_path / "a.wav", wave, 8000, subtype="FLOAT")
    sample = sound(tmp_path / "a.wav")
    assert np.array_equal(waveform_of(sample, 8000), wave[:, 0])
    np.testing.assert_allclose(waveform_of(sample, 8000, mono="mean"), wave.mean(1), atol=1e-7)
    exact = tone(16000, 2.0)[:, 0]
    for method, error in (("poly", 2e-3), ("fft", 2e-3)):
        doubled = waveform_of(sample, 16000, method=method)
        assert len(doubled) == 32000
        assert np.abs(doubled[2000:-2000] - exact[2000:-2000]).max() < error
    assert np.array_equal(waveform_of(sample, 8000, seconds=0.5), wave[:4000, 0])
    padded = waveform_of(sample, 8000, seconds=3.0, pad=True)
    assert len(padded) == 24000 and np.array_equal(padded[:16000], wave[:, 0]) and not padded[16000:].any()
    middle, rate = read_audio(sample.audio, start=0.25, seconds=0.5)
    assert rate == 8000 and np.array_equal(middle, wave[2000:6000, 0].astype(np.float64))


@pytest.mark.parametrize(("own", "rate"), [(44100, 16000), (8000, 16000), (22050, 24000), (11025, 8000)])
def test_resampling_has_the_length_that_is_promised(own, rate):
    wave = tone(own, 0.3)[:, 0].astype(np.float64)
    length = -(-len(wave) * rate // own)
    assert len(resample(wave, own, rate)) == len(resample(wave, own, rate, method="fft")) == length
    assert np.array_equal(resample(wave, own, rate, method="fft"), signal.resample(wave, length))
    assert resample(wave, own, own) is wave
    for wrong in (0, -8000, 2**31):
        refused(lambda wrong=wrong: resample(wave, wrong, rate), "sampling rate", str(wrong))


def test_windows_of_a_container_are_those_of_the_whole(tmp_path):
    path = write_sound(tmp_path / "a.mka", tone(16000, 2.0, channels=2), 16000, "flac")
    whole, rate = read_audio(AudioFile(path))
    part, _ = read_audio(AudioFile(path), start=0.5, seconds=0.75)
    assert rate == 16000 and len(whole) == 32000
    assert np.array_equal(part, whole[8000:20000])
    np.testing.assert_allclose(whole, tone(16000, 2.0)[:, 0], atol=1e-4)


@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_s32le", "pcm_u8", "pcm_f32le", "pcm_f64le"])
def test_both_readers_give_the_same_numbers(tmp_path, codec):
    """Every sample format, two channels, through FFmpeg and through libsndfile."""
    path = write_sound(tmp_path / "a.wav", tone(16000, 0.25, channels=2), 16000, codec)
    known, rate = soundfile.read(path, always_2d=True)
    found, own = read_audio(AudioFile(path.rename(tmp_path / "a.mka")), mono="mean")
    assert own == rate == 16000
    np.testing.assert_allclose(found, known.mean(1), rtol=0, atol=1e-12)
    first, _ = read_audio(AudioFile(tmp_path / "a.mka"))
    assert np.array_equal(first, known[:, 0])


def test_arrays_as_sound():
    wave = tone(8000)[:, 0]
    sample = Sample("s", "?", audio=wave, sampling_rate=8000)
    assert np.array_equal(waveform_of(sample, 8000), wave)
    assert len(waveform_of(sample, 16000)) == 16000
    refused(lambda: waveform_of(Sample("s", "?", audio=wave), 8000), "'s'", "sampling_rate")
    refused(lambda: waveform_of(Sample("s", "?"), 8000), "has no audio")
    refused(lambda: waveform_of(Sample("s", "?", audio=wave[:0], sampling_rate=8000), 8000), "float (samples,)")


def test_thirty_minutes_of_which_one_is_read(tmp_path):
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", 44100, 2, "PCM_16") as file:
        minute = tone(44100, 60.0, channels=2)
        for _ in range(30):
            file.write(minute)
    code = f"""
import resource
from prunebench import Sample
from prunebench.media import AudioFile, waveform_of
sample = Sample("s", "?", audio=AudioFile({str(path)!r}))
waveform_of(sample, 16000, seconds=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(waveform_of(sample, 16000, seconds=30)), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    length, kib = (int(word) for word in done.stdout.split())
    assert length == 30 * 16000
    assert kib < 100_000  # the whole file as float64 is 1.2 GB


def test_the_sound_of_a_video(tmp_path):
    with_sound = write_video(tmp_path / "a.mp4", sound=tone(48000, 1.6), sound_rate=48000)
    track = audio_track_of(VideoFile(with_sound), 16000)
    assert track is not None and len(track) == pytest.approx(1.6 * 16000, rel=0.05)
    inner = track[4000:12000]
    assert np.abs(np.fft.rfft(inner)).argmax() * 16000 / len(inner) == 440.0
    silent = write_video(tmp_path / "b.mp4")
    assert audio_track_of(VideoFile(silent), 16000) is None
    assert audio_track_of(np.zeros((2, 4, 4, 3), np.uint8), 16000) is None
    refused(lambda: waveform_of(sound(silent), 16000), "b.mp4", "no sound track", "video")


def test_broken_sound(tmp_path):
    soundfile.write(tmp_path / "good.flac", tone(16000, 3.0), 16000)
    flac = (tmp_path / "good.flac").read_bytes()
    cases = {
        "empty.wav": (b"", "is empty"),
        "text.wav": (b"no sound at all" * 50, "text.wav"),
        "text.m4a": (b"no sound at all" * 50, "damaged"),
        "head.flac": (flac[:30], "head.flac"),
    }
    for name, (content, words) in cases.items():
        (tmp_path / name).write_bytes(content)
        refused(lambda name=name: waveform_of(sound(tmp_path / name), 16000), name, words)
    mka = write_sound(tmp_path / "good.mka", tone(16000), 16000, "flac").read_bytes()
    assert b"A_FLAC" in mka
    (tmp_path / "codec.mka").write_bytes(mka.replace(b"A_FLAC", b"A_XLAC"))
    refused(lambda: waveform_of(sound(tmp_path / "codec.mka"), 16000), "codec.mka", "cannot decode")
    soundfile.write(tmp_path / "none.wav", np.zeros((0, 1), np.float32), 16000)
    refused(lambda: waveform_of(sound(tmp_path / "none.wav"), 16000), "0 samples")
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan, np.float32), 16000, subtype="FLOAT")
    refused(lambda: waveform_of(sound(tmp_path / "nan.wav"), 16000), "not finite")
    refused(lambda: waveform_of(sound(tmp_path / "absent.wav"), 16000), "No such file")


def test_a_name_that_lies(tmp_path):
    path = write_sound(tmp_path / "a.m4a", tone(16000), 16000, "aac")
    lying = path.rename(tmp_path / "a.wav")
    assert len(waveform_of(sound(lying), 16000)) == pytest.approx(16000, abs=2100)


# -- values ------------------------------------------------------------------------------------------------------------


def test_files_are_values_and_their_content_counts(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "a.png")
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / "b.png"
    moved.write_bytes((tmp_path / "a.png").read_bytes())
    first, second = (Sample("s", "?", images=(ImageFile(path),)) for path in (tmp_path / "a.png", moved))
    assert ImageFile(moved) == ImageFile(str(moved)) and len({ImageFile(moved), ImageFile(str(moved))}) == 1
    assert ImageFile(moved) != VideoFile(moved)
    assert fingerprint([first]) == fingerprint([second])
    assert input_fingerprint(first) == input_fingerprint(second)
    before = fingerprint([second])
    Image.fromarray(255 - picture).save(moved)
    os.utime(moved, ns=(1, 1))
    assert fingerprint([second]) != before
    refused(lambda: fingerprint([Sample("s", "?", images=(ImageFile(tmp_path / "absent.png"),))]), "absent.png")


def test_what_a_model_sees_is_all_that_its_input_fingerprint_covers():
    sample = Sample("a", "what", answer="red", options=("red", "blue"), video=np.zeros((1, 2, 2, 3), np.uint8))
    same = Sample("b", "what", answer="blue", options=("red", "blue"), video=sample.video, domain="x", kind="y")
    assert input_fingerprint(sample) == input_fingerprint(same)
    others = [
        Sample("a", "which", options=("red", "blue"), video=sample.video),
        Sample("a", "what", options=("red", "green"), video=sample.video),
        Sample("a", "what", options=("red", "blue"), video=sample.video + 1),
        Sample("a", "what", options=("red", "blue"), images=(sample.video,)),
    ]
    assert len({input_fingerprint(s) for s in [sample, *others]}) == 5


@pytest.mark.parametrize(("package", "read"), [("av", "frames"), ("soundfile", "waveform")])
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, package, read):
    soundfile.write(tmp_path / "a.wav", tone(8000), 8000)
    real = builtins.__import__

    def fake(name, *args, **kwargs):
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fake)
    with pytest.raises(MissingExtra, match=rf"needs '{package}': pip install 'prunebench\[media\]'"):
        frames_of(clip(tmp_path / "a.wav")) if read == "frames" else waveform_of(sound(tmp_path / "a.wav"), 8000)


def test_nothing_optional_is_imported_before_it_is_needed():
    imports = "import sys, prunebench.calibration.samples, prunebench.media"
    code = f"{imports}; print({{'av', 'soundfile', 'torch'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_shipped_model_takes_files(tmp_path):
    """The same question with its media as arrays and as files that lose nothing: the same answers."""
    from prunebench_models.testbed.adapter import as_arrays
    from prunebench_models.testbed.data import TestbedDataset

    for domain in ("general", "video", "audio"):
        sample = TestbedDataset().samples("test", 1, domain=domain)[0]
        assert as_arrays(sample) is sample
    general, video, audio = (TestbedDataset().samples("test", 1, domain=d)[0] for d in ("general", "video", "audio"))
    Image.fromarray(general.images[0]).save(tmp_path / "a.png")
    read = as_arrays(Sample("s", "?", images=(ImageFile(tmp_path / "a.png"),)))
    assert np.array_equal(read.images[0], general.images[0])
    soundfile.write(tmp_path / "a.wav", np.tile(audio.audio, 3), 16000, subtype="FLOAT")
    read = as_arrays(Sample("s", "?", audio=AudioFile(tmp_path / "a.wav")))
    assert np.array_equal(read.audio, audio.audio) and read.sampling_rate == 16000
    path = write_video(tmp_path / "a.mp4", frames=np.repeat(video.video, 10, 0), size=(64, 64))
    read = as_arrays(Sample("s", "?", video=VideoFile(path)))
    assert read.video.shape == (4, 64, 64, 3)
    assert np.abs(read.video.astype(int) - video.video).mean() < 25  # the coder loses some


def test_errors_are_of_the_tree():
    assert issubclass(MediaError, PruneBenchError)
