"""Damaged files: a model folder is refused, a trace or record is put aside and made anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from prunebench_models.testbed import weights_dir
from safetensors.torch import load_file, save_file

from prunebench.calibration.trace import Trace
from tests.commands import TINY, comparable, error_line, invoke, leftovers, records_of

LAYER_5 = "language_model.layers.5.mlp.down_proj.weight"


def run(out: Path, *arguments: object, strategy: str = "cosine"):
    return invoke("run", *TINY, "-s", strategy, "--layers", 2, "--suite", "testbed-image", "--out", out, *arguments)


# -- model folders -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped model that may be damaged."""
    return Path(shutil.copytree(weights_dir(), tmp_path / "model"))


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def cut(path: Path, end: int) -> None:
    path.write_bytes(path.read_bytes()[:end])


def set_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


DAMAGE = {
    "no config": (lambda f: (f / "config.json").unlink(), "there is no config.json"),
    "config not JSON": (lambda f: (f / "config.json").write_text("{not json"), "JSON"),
    "config empty": (lambda f: (f / "config.json").write_text(""), "JSON"),
    "config of another model": (lambda f: set_config(f, model_type="bert"), "holds a model of type 'bert', not the"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "holds list, not a JSON object"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no *.safetensors weights"),
    "weights cut off": (lambda f: cut(f / "model.safetensors", 5000), "not a whole safetensors file"),
    "weights cut off near the end": (lambda f: cut(f / "model.safetensors", -1), "is cut short"),
    "weights empty": (lambda f: cut(f / "model.safetensors", 0), "not a whole safetensors file"),
    "weights of noise": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 99), "not a whole safetensors file"),
    "a tensor missing": (lambda f: edit(f, lambda t: t.pop(LAYER_5)), LAYER_5.removeprefix("language_model.")),
    "a tensor too many": (lambda f: edit(f, lambda t: t.update(extra=torch.zeros(2))), "extra"),
    "a tensor of another shape": (lambda f: edit(f, lambda t: t.update({LAYER_5: torch.zeros(3, 3)})), "model"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "cannot load the testbed from"),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_model_folder_is_one_line(tmp_path, folder, damage, words):
    damage(folder)
    out = tmp_path / "out"
    line = error_line(run(out, "--model-path", folder))
    assert words in line and str(folder) in line and len(line) < 600
    assert not out.exists()


def test_a_model_folder_that_is_missing_or_empty(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for name in ("absent", "empty", "file"):
        line = error_line(run(tmp_path / "out", "--model-path", tmp_path / name))
        assert f"no testbed model in {tmp_path / name}" in line and "config.json" in line
    assert not (tmp_path / "out").exists()


def test_an_undamaged_copy_is_the_same_model(tmp_path, folder):
    out = tmp_path / "out"
    assert run(out, strategy="last_n").exit_code == 0
    again = run(out, "--model-path", folder, strategy="last_n")
    assert again.exit_code == 0 and "2 of 2 cells are finished already" in again.stderr


def test_weights_that_are_not_numbers_fail_where_hidden_states_are_read(tmp_path, folder):
    edit(folder, lambda tensors: tensors[LAYER_5].fill_(float("nan")))
    result = run(tmp_path / "out", "--model-path", folder)
    assert result.exit_code == 1
    record = records_of(tmp_path / "out")["bi at 2 layers"]
    assert record.status == "failed" and "hidden states are not finite (output of layer 5, sample" in record.error
    assert "\n" not in record.error and not leftovers(tmp_path / "out")
    assert not list((tmp_path / "out").glob("traces/*"))


def test_other_weights_are_other_cells(tmp_path, folder):
    edit(folder, lambda tensors: tensors[LAYER_5].mul_(1.01))
    out = tmp_path / "out"
    assert run(out, strategy="last_n").exit_code == 0
    other = run(out, "--model-path", folder, strategy="last_n")
    assert other.exit_code == 0 and "skipped" not in other.stderr
    assert len(list((out / "records").iterdir())) == 4


# -- traces ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    assert run(out).exit_code == 0
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run that may be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "out"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(bytes(content))


TRACE_DAMAGE = {
    "empty": lambda path: cut(path, 0),
    "cut off": lambda path: cut(path, 2000),
    "one byte short": lambda path: cut(path, -1),
    "one bit flipped": flip,
    "something else": lambda path: path.write_text("not a trace"),
}


@pytest.mark.parametrize("damage", TRACE_DAMAGE.values(), ids=TRACE_DAMAGE.keys())
def test_a_damaged_trace_is_put_aside_and_made_anew(out, damage):
    (path,) = (out / "traces").iterdir()
    sound, before = Trace.load(path), records_of(out)
    damage(path)
    damaged = path.read_bytes()
    result = run(out, "--force")
    assert result.exit_code == 0
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("warning: trace")]
    assert str(path) in line and "damaged" in line and "quarantine" in line and "made anew" in line
    assert (out / "quarantine" / path.name).read_bytes() == damaged
    healed = Trace.load(path)
    assert set(healed.arrays) == set(sound.arrays)
    assert all((healed[name] == sound[name]).all() for name in sound.arrays)
    after = records_of(out)
    assert {label: comparable(r) for label, r in after.items()} == {label: comparable(r) for label, r in before.items()}


def test_a_sound_trace_is_used_again_and_grows_when_more_is_read(out):
    (path,) = (out / "traces").iterdir()
    before = path.read_bytes()
    again = run(out, "--force")
    assert f"calibration: {path.name} reused (40 samples)" in again.stderr and path.read_bytes() == before
    more = run(out, strategy="topo")
    assert more.exit_code == 0 and "reused" not in more.stderr
    assert set(Trace.load(path).meta.statistics) == {"token_cosine", "points.last"}


# -- records -----------------------------------------------------------------------------------------------------------

RECORD_DAMAGE = {
    "empty": lambda path: cut(path, 0),
    "cut off": lambda path: cut(path, 1000),
    "something else": lambda path: path.write_text('{"a": 1}'),
    "changed by hand": lambda path: path.write_text(path.read_text().replace('"seed":0', '"seed":1', 1)),
}


@pytest.mark.parametrize("damage", RECORD_DAMAGE.values(), ids=RECORD_DAMAGE.keys())
def test_a_damaged_record_is_put_aside_and_its_cell_runs_again(out, damage):
    before = records_of(out)
    path = out / "records" / f"{before['bi at 2 layers'].id}.json"
    other = out / "records" / f"{before['dense at sparsity 0'].id}.json"
    sound = path.read_bytes()
    stamp = other.stat().st_mtime_ns
    damage(path)
    assert path.read_bytes() != sound
    damaged = path.read_bytes()
    assert str(path) in error_line(invoke("leaderboard", out))
    result = run(out)
    assert result.exit_code == 0 and "1 of 2 cells are finished already" in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("warning: record")]
    assert str(path) in line and "quarantine" in line
    assert (out / "quarantine" / path.name).read_bytes() == damaged and other.stat().st_mtime_ns == stamp
    after = records_of(out)
    assert {label: comparable(r) for label, r in after.items()} == {label: comparable(r) for label, r in before.items()}
