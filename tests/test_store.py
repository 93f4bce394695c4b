"""Records are whole or absent: full disks, killed writers, damaged files and files changed by hand."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from prunebench import jsonio
from prunebench.errors import StoreError
from prunebench.store import Store, load_records, read_record
from tests.factories import make_dense, make_latency, make_memory, make_record

RIGHT = {"look": 60, "count": 40}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "run")


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# -- reading and writing -----------------------------------------------------------------------------------------------


def test_a_folder_that_another_run_removes_meanwhile_is_made_again(tmp_path, monkeypatch):
    """The last task file of a cell goes with its folder, while another cell is about to write its first."""
    path, made = tmp_path / "tasks" / "one.json", tempfile.mkstemp

    def removed_once(*words, **options):
        if not calls:
            path.parent.rmdir()
        calls.append(1)
        return made(*words, **options)

    calls: list[int] = []
    monkeypatch.setattr(tempfile, "mkstemp", removed_once)
    jsonio.write_text(path, "whole")
    assert path.read_text(encoding="utf-8") == "whole" and len(calls) == 2

    def removed_always(*words, **options):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(tempfile, "mkstemp", removed_always)
    with pytest.raises(StoreError, match="cannot write"):
        jsonio.write_text(path, "other")


def test_a_record_comes_back_as_it_went(store):
    record = make_record(right=RIGHT, latency=make_latency(), memory=make_memory(), seconds={"plan": 0.1})
    path = store.write(record)
    assert path == store.root / "records" / f"{record.id}.json"
    assert read_record(path) == record
    assert files(store.root) == [path.name]


def test_missing_values_are_null_on_disk(store):
    raw = json.loads(store.write(make_record(right=RIGHT, memory=make_memory())).read_text(encoding="utf-8"))
    assert raw["memory"]["torch_peak_allocated"] is None and raw["latency"] is None and raw["error"] is None


def test_the_id_depends_on_the_cell_only():
    record = make_record(right=RIGHT)
    assert make_record(right={"look": 1}).id == record.id
    others = [
        make_record(cell={"seed": 1}),
        make_record(params={"k": 1}),
        make_record(cell={"model_revision": "other"}),
        make_record(layers=(1, 2, 3)),
        make_record("beta"),
    ]
    assert len({record.id, *(other.id for other in others)}) == 6
    assert len(record.id) == 16 and int(record.id, 16) >= 0


def test_records_load_from_folders_and_files_once_each_in_order(store, tmp_path):
    records = [make_dense(RIGHT), make_record("a", right=RIGHT), make_record("b", right=RIGHT)]
    paths = [store.write(record) for record in records]
    expected = sorted(record.id for record in records)
    assert [r.id for r in load_records([store.root])] == expected
    assert [r.id for r in load_records([store.root / "records", paths[0]])] == expected
    assert [r.id for r in load_records(paths[:1])] == [records[0].id]
    with pytest.raises(StoreError, match="no such run folder or record"):
        load_records([tmp_path / "absent"])


def test_what_a_killed_writer_left_is_not_taken_for_a_record(store):
    path = store.write(make_record(right=RIGHT))
    (path.parent / f".{path.name}.abc123.tmp").write_text("{", encoding="utf-8")
    assert len(load_records([store.root])) == 1


# -- damage ------------------------------------------------------------------------------------------------------------


DAMAGE = {
    "empty": b"",
    "not JSON": b"{]",
    "not text": b"\xff\xfe\x00",
    "another thing": b'{"a": 1}',
    "a list": b"[]",
}


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_record_is_one_line(store, content):
    path = store.write(make_record(right=RIGHT))
    path.write_bytes(content)
    with pytest.raises(StoreError) as caught:
        load_records([store.root])
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_record_cut_anywhere_is_refused(store):
    path = store.write(make_record(right=RIGHT))
    whole = path.read_bytes()
    for end in range(0, len(whole) - 2, 97):  # the last two bytes are the closing brace and the end of the line
        path.write_bytes(whole[:end])
        with pytest.raises(StoreError):
            read_record(path)


def test_a_record_changed_by_hand_is_refused(store):
    path = store.write(make_record("alpha", right=RIGHT))
    path.write_text(path.read_text(encoding="utf-8").replace('"seed":0', '"seed": 4', 1), encoding="utf-8")
    with pytest.raises(StoreError, match="changed by hand"):
        read_record(path)


def test_an_unknown_field_or_schema_is_refused(store):
    path = store.write(make_record(right=RIGHT))
    raw = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**raw, "surprise": 1}), encoding="utf-8")
    with pytest.raises(StoreError, match="surprise"):
        read_record(path)
    path.write_text(json.dumps({**raw, "schema_version": 99}), encoding="utf-8")
    with pytest.raises(StoreError, match="schema 99"):
        read_record(path)


# -- what runs again ---------------------------------------------------------------------------------------------------


def test_finished_cells_are_found(store):
    record = make_record(right=RIGHT)
    assert store.finished(record.cell) is None
    store.write(record)
    assert store.finished(record.cell) == record
    assert store.finished(make_record("beta").cell) is None


@pytest.mark.parametrize("status", ["failed", "oom", "interrupted"])
def test_failed_cells_run_again(store, status):
    record = make_record(status=status, error="no")
    path = store.write(record)
    assert store.finished(record.cell) is None
    assert path.exists()  # the failure stays on record until something better replaces it
    store.write(make_record(right=RIGHT))
    assert store.finished(record.cell).status == "ok"


def test_a_damaged_record_is_put_aside_and_runs_again(store):
    record = make_record(right=RIGHT)
    path = store.write(record)
    path.write_bytes(path.read_bytes()[:200])
    cut = path.read_bytes()
    assert store.finished(record.cell) is None
    assert not path.exists()
    assert (store.root / "quarantine" / path.name).read_bytes() == cut
    assert load_records([store.root]) == []


def test_a_record_under_the_name_of_another_cell_does_not_count(store):
    first, second = make_record("alpha", right=RIGHT), make_record("beta", right=RIGHT)
    store.write(first).rename(store.path(second.id))
    assert store.finished(second.cell) is None


# -- writing goes wrong ------------------------------------------------------------------------------------------------


def broken(code: int):
    def fail(*_arguments, **_options):
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("step", ["replace", "fsync", "chmod"])
@pytest.mark.parametrize("before", [False, True], ids=["new", "over an old one"])
def test_a_full_disk_leaves_nothing_behind(store, monkeypatch, step, before):
    record = make_record(right=RIGHT)
    old = make_record(right={"look": 1})
    if before:
        store.write(old)
    with monkeypatch.context() as patch, pytest.raises(StoreError, match="disk is full") as caught:
        patch.setattr(os, step, broken(errno.ENOSPC))
        store.write(record)
    assert "\n" not in str(caught.value) and "--out" in str(caught.value)
    assert files(store.root) == ([f"{record.id}.json"] if before else [])
    if before:
        assert read_record(store.path(old.id)) == old


def test_a_write_that_stops_in_the_middle_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    jsonio.write_text(path, "old")

    def half(target: Path) -> None:
        target.write_text("ne", encoding="utf-8")
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(StoreError, match="Input/output error"):
        jsonio.write_atomically(path, half)
    assert path.read_text(encoding="utf-8") == "old" and files(tmp_path) == ["file.txt"]


def test_an_interrupt_in_the_middle_leaves_nothing_behind(tmp_path):
    def stop(target: Path) -> None:
        target.write_text("ha", encoding="utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jsonio.write_atomically(tmp_path / "file.txt", stop)
    assert files(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_told_before_the_work(tmp_path):
    (tmp_path / "run").write_text("a file, not a folder", encoding="utf-8")
    with pytest.raises(StoreError, match="cannot write"):
        Store(tmp_path / "run").check_writable()


def test_checking_for_writability_leaves_nothing(store):
    store.check_writable()
    assert files(store.root) == []


WRITER = """
import itertools, sys
from pathlib import Path
from prunebench import jsonio
path = Path(sys.argv[1])
print("ready", flush=True)
for count in itertools.count():
    jsonio.write_text(path, str(count % 10) * 2_000_000)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_reader_never_sees_half_a_file_whenever_the_writer_is_killed(tmp_path):
    path = tmp_path / "file.txt"
    chance = random.Random(0)
    seen = 0
    for _ in range(6):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as writer:
            try:
                assert writer.stdout.readline() == b"ready\n"
                end = time.monotonic() + 0.05 + 0.1 * chance.random()
                while time.monotonic() < end:
                    seen += check_whole(path)
            finally:
                writer.send_signal(signal.SIGKILL)
        seen += check_whole(path)
    assert seen > 6


def check_whole(path: Path) -> int:
    """1 if the file is there and whole, 0 if it is not there; fails on half a file."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return 0
    assert len(text) == 2_000_000 and text == text[:1] * 2_000_000
    return 1
