"""`prunebench run --strategy topo --model videollama2 --sparsity 0.6` on every shape, with every kind of question."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from prunebench_models.videollama2.adapter import VideoLlama2

from prunebench import LoadOptions, Sample, pruned
from tests.commands import invoke, records_of, write_plugin
from tests.data.videollama2.weights import write_checkpoint
from tests.media_files import tone, write_video
from tests.models.test_videollama2_adapter import LAYERS, SHAPES

KINDS = {
    "text": {},
    "image": {"image": "a.png"},
    "video": {"video": "c.mp4"},
    "audio": {"audio": "d.wav"},
    "both": {"video": "c.mp4", "audio": "d.wav"},
}
SUITES = """
from pathlib import Path

@hookimpl
def prunebench_register_suites(register):
    register(Path(__file__).parent / "suites")
"""


def run(folder: Path, out: Path, *more: object, plugin: Path | None = None) -> dict:
    result = invoke(
        *(("--plugin", plugin) if plugin else ()),
        "run", "--strategy", "topo", "--model", "videollama2", "--model-path", folder, "--sparsity", "0.6",
        "--limit", 1, "--n-calibration", 20, "--no-latency", "--batch-size", 4, "--out", out, *more,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    records = {record.cell.strategy: record for record in records_of(out).values()}
    assert set(records) == {"dense", "topo"}
    assert all(record.status == "ok" and record.error is None for record in records.values())
    assert len(records["topo"].plan.removed_layers) == math.floor(0.6 * LAYERS + 0.5)
    return records


@pytest.mark.parametrize("name", list(SHAPES))
def test_the_command_runs_on_every_shape(tmp_path, name):
    """The model's own suite and calibration data: images and video, and sound where it hears."""
    folder = write_checkpoint(folder=tmp_path / name, layers=LAYERS, **SHAPES[name])
    records = run(folder, tmp_path / "runs")
    tasks = {task.task for task in records["topo"].tasks}
    assert tasks == {"general", "math", "video"} | ({"audio"} if name == "2.1-7b-av" else set())
    assert records["topo"].model.name == name
    assert records["topo"].memory.weights < records["dense"].memory.weights


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> tuple[Path, Path]:
    """Files as users have them, one question of each kind, and a suite that asks them."""
    root = tmp_path_factory.mktemp("questions")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)).save(root / "a.png")
    write_video(root / "c.mp4", 20, sound=tone(16000, 0.8))
    soundfile.write(root / "d.wav", tone(8000, 0.5, 700.0), 8000)
    lines = [
        {"instruction": f"What is it, {kind}?", "answer": "yes", "options": ["yes", "no"], "split": "test",
         "domain": kind, "kind": kind, **media}
        for kind, media in KINDS.items()
    ]  # fmt: skip
    lines += [{"instruction": f"Line {i} of {i * i}.", "split": "calibration", "domain": "text"} for i in range(20)]
    manifest = root / "m.jsonl"
    manifest.write_text("\n".join(json.dumps(line) for line in lines))
    (root / "suites").mkdir()
    tasks = "\n".join(
        f"  - {{id: {kind}, dataset: 'files:{manifest}', domain: {kind}, n: 1, metric: option_match, "
        f"modality: {'video' if kind == 'both' else kind}}}"
        for kind in KINDS
    )
    (root / "suites" / "every-kind.yaml").write_text(f"title: Every kind\ntasks:\n{tasks}\n")
    return manifest, write_plugin(root, SUITES, "every_kind")


def test_text_image_video_sound_and_both_from_files(tmp_path, questions):
    """Through run, export and reload; the exported folder stands for itself."""
    manifest, plugin = questions
    folder = write_checkpoint(folder=tmp_path / "av", layers=LAYERS, **SHAPES["2.1-7b-av"])
    records = run(
        folder, tmp_path / "runs", "--suite", "every-kind", "--calibration", f"files:{manifest}", "-P", "k=5",
        plugin=plugin,
    )  # fmt: skip
    assert {task.task for task in records["topo"].tasks} == set(KINDS)

    exported = tmp_path / "exported"
    result = invoke("export", records["topo"].id, "--out", tmp_path / "runs", "--model-path", folder, "--to", exported)
    assert result.exit_code == 0, result.output
    dense = VideoLlama2().load(LoadOptions(path=str(folder)))
    plan = records["topo"].plan
    shutil.rmtree(folder)
    again = VideoLlama2().load(LoadOptions(path=str(exported)))
    assert len(again.layers) == LAYERS - len(plan.removed_layers)
    sample = Sample("s", "What?", video=np.full((3, 20, 30, 3), 90, np.uint8))
    with torch.inference_mode(), pruned(dense, plan):
        expected = dense.adapter.forward(dense, dense.encode([sample]))
        assert torch.equal(again.adapter.forward(again, again.encode([sample])), expected)


def test_a_video_file_comes_with_its_sound(tmp_path, questions):
    """To a model that hears; a sound named beside the video counts instead, unless it is the video itself."""
    from prunebench.media import AudioFile, VideoFile

    folder = questions[0].parent
    hearing = VideoLlama2().load(LoadOptions(path=str(write_checkpoint(folder=tmp_path / "av", **SHAPES["2.1-7b-av"]))))
    video, other = VideoFile(folder / "c.mp4"), AudioFile(folder / "d.wav")
    prepare = hearing.processor.prepare
    alone, same, beside = (
        prepare(Sample("s", "?", video=video, audio=audio)).fbank
        for audio in (None, AudioFile(folder / "c.mp4"), other)
    )
    assert alone.shape == (1, 2998, 128)
    assert torch.equal(alone, same)
    assert torch.equal(beside, prepare(Sample("s", "?", audio=other)).fbank)
    assert not torch.equal(alone, beside)
    assert prepare(Sample("s", "?", video=np.zeros((2, 8, 8, 3), np.uint8))).fbank is None
    silent = write_video(folder / "silent.mp4", 5)
    assert (prepare(Sample("s", "?", video=VideoFile(silent))).fbank < -15).all()
