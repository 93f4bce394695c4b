"""The dataset ``files:MANIFEST.jsonl``: what is read, what is refused with its line, and who lands in which split."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from prunebench.calibration.samples import fingerprint
from prunebench.dataset import SPLITS, open_dataset
from prunebench.errors import BadParameter
from prunebench.files import FilesDataset
from prunebench.media import AudioFile, ImageFile, VideoFile, frames_of, images_of, waveform_of
from prunebench.plugins import get_plugins
from tests.commands import error_line, invoke, records_of, write_plugin
from tests.media_files import tone, write_video


def manifest(folder: Path, *lines: dict | str, name: str = "m.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def picture(path: Path, value: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)
    return path.name


def test_every_kind_of_line(tmp_path):
    picture(tmp_path / "a.png", 10), picture(tmp_path / "b.png", 20)
    write_video(tmp_path / "c.mp4", 12)
    soundfile.write(tmp_path / "d.wav", tone(8000, 0.5), 8000)
    path = manifest(
        tmp_path,
        {"instruction": "one", "image": "a.png", "answer": "red", "options": ["red", "blue"], "split": "test"},
        "",
        {"instruction": "two", "images": ["a.png", "b.png"], "split": "test", "domain": "pairs", "kind": "count"},
        {"instruction": "clip", "video": "c.mp4", "audio": "d.wav", "split": "test", "id": "mine"},
        {"instruction": "no media", "split": "calibration"},
    )
    dataset = open_dataset(get_plugins(), f"files:{path}")
    one, two, clip = dataset.samples("test", 10)
    assert (one.answer, one.options, one.images) == ("red", ("red", "blue"), (ImageFile(tmp_path / "a.png"),))
    assert [np.asarray(image)[0, 0, 0] for image in images_of(two)] == [10, 20]
    assert (two.domain, two.kind) == ("pairs", "count")
    assert clip.id == "mine" and clip.video == VideoFile(tmp_path / "c.mp4")
    assert clip.audio == AudioFile(tmp_path / "d.wav")
    assert len(frames_of(clip)) == 12 and len(waveform_of(clip, 16000)) == 8000
    assert [sample.instruction for sample in dataset.samples("calibration", 10)] == ["no media"]
    with pytest.raises(ValueError, match="no line for 'train'"):
        dataset.samples("train", 1)


WRONG = {
    "unknown key": ({"instruction": "a", "imgae": "a.png"}, "unknown key 'imgae'; did you mean 'image'?"),
    "no instruction": ({"answer": "a"}, "instruction: Field required"),
    "empty instruction": ({"instruction": ""}, "instruction"),
    "a number as answer": ({"instruction": "a", "answer": 3}, "answer: Input should be a valid string"),
    "missing file": ({"instruction": "a", "image": "gone.png"}, "gone.png: No such file"),
    "empty file": ({"instruction": "a", "video": "empty.mp4"}, "empty.mp4 is empty"),
    "both": ({"instruction": "a", "image": "a.png", "images": ["a.png"]}, "`image` or `images`, not both"),
    "answer outside": ({"instruction": "a", "answer": "c", "options": ["a", "b"]}, "'c' is not one of the options"),
    "unknown split": ({"instruction": "a", "split": "dev"}, "split"),
    "not JSON": ("{'instruction': 'a'}", "is not JSON"),
    "no object": ('["a"]', "must be an object"),
    "some with a split": ({"instruction": "a", "split": "test"}, 'either every line says its "split" or none does'),
    "twice": ({"instruction": "first"}, "stands on line 1"),
}


@pytest.mark.parametrize(("line", "words"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_line_is_named(tmp_path, line, words):
    picture(tmp_path / "a.png", 1)
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(BadParameter) as caught:
        FilesDataset(manifest(tmp_path, {"instruction": "first"}, "", line))
    assert str(caught.value).startswith(f"{tmp_path / 'm.jsonl'} line 3") and words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_manifest_that_is_none(tmp_path):
    for path, words in (
        (tmp_path / "absent.jsonl", "No such file"),
        (manifest(tmp_path, "", "", name="blank.jsonl"), "has no line"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(BadParameter, match=words):
            FilesDataset(path)
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xfe\xe9")
    with pytest.raises(BadParameter, match=r"cannot read the manifest .*latin\.jsonl"):
        FilesDataset(tmp_path / "latin.jsonl")
    for name in ("files", "files:"):
        with pytest.raises(BadParameter, match="needs a manifest"):
            open_dataset(get_plugins(), name)


@pytest.fixture
def many(tmp_path):
    """60 pictures with two questions each, in two domains."""
    lines = []
    for i in range(60):
        name = picture(tmp_path / "many" / f"{i}.png", i)
        for question in ("what is this", "what colour is it"):
            lines.append({"instruction": question, "image": name, "answer": "x", "domain": "odd" if i % 3 else "even"})
    return manifest(tmp_path / "many", *lines)


def test_splits_are_disjoint_by_picture_and_do_not_move(many, tmp_path):
    dataset = FilesDataset(many)
    pictures = {split: {sample.images[0].digest for sample in dataset.samples(split, 1000)} for split in SPLITS}
    assert sum(len(found) for found in pictures.values()) == 60
    assert all(len(dataset.samples(split, 1000)) == 2 * len(pictures[split]) for split in SPLITS)
    assert 14 <= len(pictures["calibration"]) <= 34 and 20 <= len(pictures["test"]) <= 40
    lines = many.read_text().splitlines()
    fewer = FilesDataset(manifest(many.parent, *lines[40:], name="fewer.jsonl"))
    for split in SPLITS:
        assert {sample.images[0].digest for sample in fewer.samples(split, 1000)} <= pictures[split]


def test_order_seeds_and_domains(many):
    dataset = FilesDataset(many)
    first = dataset.samples("test", 1000)
    assert [s.id for s in dataset.samples("test", 7)] == [s.id for s in first[:7]]
    assert [s.domain for s in first[:6]] == ["even", "odd"] * 3  # domains take turns
    other = dataset.samples("test", 1000, seed=1)
    assert [s.id for s in other] != [s.id for s in first] and {s.id for s in other} == {s.id for s in first}
    even = dataset.samples("test", 1000, domain="even")
    assert even and {s.domain for s in even} == {"even"} and dataset.domains == ("even", "odd")
    with pytest.raises(ValueError, match="unknown domain 'none'; choose from 'even', 'odd'"):
        dataset.samples("test", 1, domain="none")
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        dataset.samples("dev", 1)


def test_revision_follows_content_and_not_place(many, tmp_path):
    dataset = FilesDataset(many)
    moved = shutil.copytree(many.parent, tmp_path / "moved")
    again = FilesDataset(moved / "m.jsonl")
    assert again.label == dataset.label == f"files:m.jsonl@{dataset.revision}"
    assert fingerprint(again.samples("test", 9)) == fingerprint(dataset.samples("test", 9))
    picture(moved / "7.png", 200)
    assert FilesDataset(moved / "m.jsonl").revision != dataset.revision
    reworded = manifest(many.parent, many.read_text().replace("what is this", "what is that"), name="other.jsonl")
    assert FilesDataset(reworded).revision != dataset.revision


def test_a_run_on_files(tmp_path):
    """Calibration and suite from one manifest, through the shipped model."""
    from prunebench_models.testbed.data import TestbedDataset

    lines = []
    for i, sample in enumerate(TestbedDataset().samples("test", 24, domain="general")):
        Image.fromarray(sample.images[0]).save(tmp_path / f"{i}.png")
        answers = {"answer": sample.answer, "options": list(sample.options), "kind": sample.kind}
        split = "calibration" if i < 12 else "test"
        lines.append({"instruction": sample.instruction, "image": f"{i}.png", "split": split, **answers})
    path = manifest(tmp_path, *lines)
    (tmp_path / "mine.yaml").write_text(f'tasks: [{{id: mine, dataset: "files:{path}", n: 12}}]', encoding="utf-8")
    plugin = write_plugin(
        tmp_path, f"@hookimpl\ndef prunebench_register_suites(register):\n    register({str(tmp_path / 'mine.yaml')!r})"
    )
    arguments = ("run", "-m", "testbed", "--no-latency", "-s", "cosine", "--layers", 2, "--n-calibration", 12)
    files = ("--suite", "mine", "--calibration", f"files:{path}", "--out", tmp_path / "out")
    assert invoke("--plugin", plugin, *arguments, *files).exit_code == 0
    dense = records_of(tmp_path / "out")["dense at sparsity 0"]
    assert dense.tasks[0].n == 12 and dense.tasks[0].score >= 0.75  # the model knows these pictures
    calibrated = records_of(tmp_path / "out")["bi at 2 layers"].cell.calibration
    assert calibrated.dataset == FilesDataset(path).label
    line = error_line(
        invoke("plan", "-m", "testbed", "-s", "cosine", "--layers", 2, "--calibration", "files:gone.jsonl")
    )
    assert "gone.jsonl" in line
