"""Kept encoder outputs: made once per input, found by content, bit for bit the same, and never needed."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import time

import numpy as np
import pytest
import torch
from prunebench_models.testbed.adapter import Testbed

from prunebench import DecoderInputs, Sample
from prunebench.calibration.collect import calibrate
from prunebench.encoded import EncoderCache, parse_size
from prunebench.encoded_file import NotStorable, read_inputs, stored_bytes, write_inputs
from prunebench.errors import BadParameter, StoreError
from tests.commands import TINY, comparable, error_line, invoke, leftovers, records_of
from tests.tiny_plugin import TinyLlama, TinyText


@pytest.fixture
def counted():
    """A tiny model that counts the samples which its encoder sees."""

    class Counting(TinyLlama):
        seen = 0

        def encode(self, loaded, samples):
            type(self).seen += len(samples)
            return super().encode(loaded, samples)

    return Counting().load()


def files(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


def same(a, b) -> bool:
    """Equal in type, shape, dtype and every bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        return not a.numel() or torch.equal(
            a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8)
        )
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def equal(a: DecoderInputs, b: DecoderInputs) -> bool:
    return all(same(getattr(a, name), getattr(b, name)) for name in ("embeds", "attention_mask", "groups", "extra"))


def inputs_with(extra: dict) -> DecoderInputs:
    mask = torch.tensor([[0, 1, 1]])
    return DecoderInputs(torch.randn(1, 3, 4), mask, {"text": mask.bool(), "visual": ~mask.bool()}, extra, ("a",))


# -- one file ----------------------------------------------------------------------------------------------------------


def test_everything_comes_back_bit_for_bit(tmp_path):
    base = torch.randn(4, 6)
    odd = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])
    inputs = inputs_with(
        {
            "position_ids": torch.arange(9).reshape(3, 1, 3),
            "half": base.to(torch.bfloat16),
            "float16": base.half(),
            "double": base.double(),
            "odd": odd,
            "mask": base > 0,
            "scalar": torch.tensor(3),
            "none_in_it": torch.empty(0, 5),
            "view": base[:, ::2].T,
            "alias": [base, base, base[1:]],
            "expanded": base[:1].expand(3, 6),
            "deep": (
                [torch.ones(2), (torch.zeros(1), None)],
                {"flag": True, "n": 7, "x": 0.1, "far": math.inf, "s": "é"},
            ),
            "nothing": None,
            "no": False,
            "empty": ((), [], {}),
        }
    )
    inputs.embeds = inputs.embeds.to(torch.bfloat16)
    path = tmp_path / "a.safetensors"
    write_inputs(path, inputs)
    again = read_inputs(path)
    assert equal(inputs, again)
    assert type(again.extra["no"]) is bool and type(again.extra["deep"][1]["n"]) is int
    assert again.sample_ids == ()
    assert stored_bytes(again) == stored_bytes(inputs) < path.stat().st_size


@pytest.mark.parametrize("value", [np.int64(3), object(), {1: 2}, torch.Size([1]), {"a": np.zeros(2)}, {1, 2}])
def test_what_cannot_come_back_as_it_was_is_not_written(tmp_path, value):
    with pytest.raises(NotStorable):
        write_inputs(tmp_path / "a.safetensors", inputs_with({"odd": value}))
    assert not list(tmp_path.iterdir())


def test_every_kind_of_damage_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    write_inputs(path, inputs_with({"n": 3}))
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[-3] ^= 4
    for bad in (
        bytes(flipped),
        good[: len(good) // 2],
        b"",
        b"garbage" * 99,
        good.replace(b'schema\\": 1', b'schema\\": 9'),
    ):
        assert bad != good
        path.write_bytes(bad)
        with pytest.raises(StoreError, match=r"a\.safetensors is damaged") as caught:
            read_inputs(path)
        assert "\n" not in str(caught.value)


# -- the cache ---------------------------------------------------------------------------------------------------------


def test_a_batch_is_encoded_once_in_memory_and_on_disk(counted, tmp_path):
    samples = TinyText().samples("test", 6)
    cache = EncoderCache(tmp_path, share=math.inf)
    first = cache.encode(counted, samples)
    assert equal(first, counted.encode(samples)) and first.sample_ids == tuple(s.id for s in samples)
    type(counted.adapter).seen = 0
    for _ in range(3):
        assert equal(cache.encode(counted, samples), first)
    later = EncoderCache(tmp_path)
    assert equal(later.encode(counted, samples), first)
    renamed = [dataclasses.replace(s, id=f"new/{s.id}", answer="w9") for s in samples]
    found = later.encode(counted, renamed)
    assert equal(found, first) and found.sample_ids[0].startswith("new/")
    assert counted.adapter.seen == 0
    assert len(files(tmp_path)) == 1 and not leftovers(tmp_path)


def test_without_any_bound_nothing_is_kept(counted, tmp_path):
    samples = TinyText().samples("test", 3)
    cache = EncoderCache(tmp_path / "no", disk_bytes=0, memory_bytes=0)
    cache.encode(counted, samples), cache.encode(counted, samples)
    assert counted.adapter.seen == 6 and not (tmp_path / "no").exists()


def test_memory_is_bounded(counted, tmp_path):
    batches = [TinyText().samples("test", 4, seed=seed) for seed in range(5)]
    size = stored_bytes(counted.encode(batches[0]))
    memory_only = EncoderCache(None, memory_bytes=3 * size)
    for _ in range(2):
        for batch in batches:
            memory_only.encode(counted, batch)
    assert 0 < memory_only._held <= 3 * size
    type(counted.adapter).seen = 0
    with_disk = EncoderCache(tmp_path, memory_bytes=3 * size, share=math.inf)
    for _ in range(2):
        for batch in batches:
            with_disk.encode(counted, batch)
    assert counted.adapter.seen == 20  # what does not fit into memory is read


def test_calibration_does_not_fill_the_memory(counted, tmp_path):
    samples = TinyText().samples("calibration", 8)
    cache = EncoderCache(tmp_path, share=math.inf)
    once = calibrate(counted, samples, frozenset({"norms"}), batch_size=4)
    type(counted.adapter).seen = 0
    for _ in range(2):
        trace = calibrate(
            counted,
            samples,
            frozenset({"norms"}),
            batch_size=4,
            encode=lambda batch: cache.encode(counted, batch, keep=False),
        )
        assert all(np.array_equal(trace[name], once[name]) for name in once.arrays)
    assert counted.adapter.seen == 8 and not cache._memory and len(files(tmp_path)) == 2


def test_the_key_covers_all_that_matters_and_nothing_else(counted):
    samples = TinyText().samples("test", 2)
    cache = EncoderCache(None)
    key = cache.key(counted, samples)
    assert key == EncoderCache(None).key(
        counted, [dataclasses.replace(s, id="x", answer=None, kind="k") for s in samples]
    )

    def other(**changes):
        return EncoderCache(None).key(dataclasses.replace(counted, **changes), samples)

    info = counted.info
    versioned = type(counted.adapter)()
    versioned.encode_version = "frames=16"
    keys = [
        key,
        cache.key(counted, samples[::-1]),
        cache.key(counted, samples[:1]),
        cache.key(counted, [samples[0], dataclasses.replace(samples[1], instruction="w5 w6")]),
        cache.key(counted, [samples[0], dataclasses.replace(samples[1], images=(np.zeros((2, 2, 3), np.uint8),))]),
        other(info=info.model_copy(update={"revision": "another"})),
        other(info=info.model_copy(update={"dtype": "bfloat16"})),
        other(adapter=versioned),
        other(adapter=TinyLlama()),
    ]
    before = counted.model.config._attn_implementation
    counted.model.config._attn_implementation = "eager" if before != "eager" else "sdpa"
    keys.append(EncoderCache(None).key(counted, samples))
    counted.model.config._attn_implementation = before
    assert len(set(keys)) == len(keys)
    assert EncoderCache(None).key(counted, samples) == key


def test_a_damaged_file_is_made_anew_with_a_warning(counted, tmp_path):
    samples = TinyText().samples("test", 4)
    first = EncoderCache(tmp_path, share=math.inf).encode(counted, samples)
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-7])
    said = []
    cache = EncoderCache(tmp_path, share=math.inf, warn=said.append)
    assert equal(cache.encode(counted, samples), first)
    assert len(said) == 1 and "damaged" in said[0] and "made anew" in said[0] and "\n" not in said[0]
    assert equal(read_inputs(path), first)


def test_a_full_disk_is_said_once_and_stops_nothing(counted, tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    said = []
    cache = EncoderCache(tmp_path, memory_bytes=0, share=math.inf, warn=said.append)
    batches = [TinyText().samples("test", 2, seed=seed) for seed in range(3)]
    cache.encode(counted, batches[0])
    monkeypatch.setattr(os, "fsync", full)
    for batch in batches * 2:
        assert cache.encode(counted, batch).embeds.shape[0] == 2
    assert len(said) == 1 and "no longer kept on disk" in said[0] and "disk is full" in said[0]
    assert len(files(tmp_path)) == 1 and not leftovers(tmp_path)


def test_a_folder_that_cannot_be_made_stops_nothing(counted, tmp_path):
    (tmp_path / "file").write_text("kept")
    said = []
    cache = EncoderCache(tmp_path / "file" / "below", share=math.inf, warn=said.append)
    assert cache.encode(counted, TinyText().samples("test", 2)).embeds.shape[0] == 2
    assert len(said) == 1 and (tmp_path / "file").read_text() == "kept"


def test_what_a_file_cannot_hold_stays_in_memory(counted, tmp_path):
    plain = counted.encode
    counted.encode = lambda samples: dataclasses.replace(plain(samples), extra={"odd": {1, 2}})
    cache = EncoderCache(tmp_path, share=math.inf)
    samples = TinyText().samples("test", 2)
    for _ in range(2):
        assert cache.encode(counted, samples).extra == {"odd": {1, 2}}
    assert counted.adapter.seen == 2 and not files(tmp_path)


def test_files_are_bounded_and_the_longest_unused_go_first(counted, tmp_path):
    batches = [TinyText().samples("test", 24, seed=seed) for seed in range(8)]
    for number, batch in enumerate(batches[:4]):
        cache = EncoderCache(tmp_path, share=math.inf)
        cache.encode(counted, batch)
        os.utime(tmp_path / f"{cache.key(counted, batch)}.safetensors", (1000 + number, 1000 + number))
    names = {number: f"{cache.key(counted, batch)}.safetensors" for number, batch in enumerate(batches)}
    bound = sum((tmp_path / name).stat().st_size for name in files(tmp_path)) + 100
    cache = EncoderCache(tmp_path, disk_bytes=bound, share=math.inf)
    cache.encode(counted, batches[0])  # used again: no longer the oldest
    cache.encode(counted, batches[4])
    assert names[1] not in files(tmp_path) and {names[0], names[4]} <= set(files(tmp_path))
    for batch in batches[5:]:
        cache.encode(counted, batch)
    kept = files(tmp_path)
    assert {names[0], names[4]} <= set(kept)  # what this run used stays
    assert names[2] not in kept
    assert sum((tmp_path / name).stat().st_size for name in kept) <= bound


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, False), (0.2, True)])
def test_towers_that_are_faster_than_a_disk_are_not_slowed(counted, tmp_path, seconds, expected):
    plain = counted.encode

    def slow(samples):
        time.sleep(seconds)
        return plain(samples)

    counted.encode = slow
    cache = EncoderCache(tmp_path)
    cache.encode(counted, TinyText().samples("test", 1))
    assert bool(files(tmp_path)) == expected


def test_sizes():
    assert [parse_size(text) for text in ("0", 0, "500M", "4G", "1.5 GiB", "10kb", "7")] == [
        0,
        0,
        500 << 20,
        4 << 30,
        3 << 29,
        10 << 10,
        7,
    ]
    for bad in ("", "-1", "4X", "much", "G", "1e9"):
        with pytest.raises(BadParameter, match="such as 500M or 4G"):
            parse_size(bad)


# -- a run -------------------------------------------------------------------------------------------------------------


def test_a_sweep_encodes_each_input_once_and_a_later_run_none(tmp_path, monkeypatch):
    seen = []
    real = Testbed.encode
    monkeypatch.setattr(Testbed, "encode", lambda self, loaded, batch: seen.extend(batch) or real(self, loaded, batch))
    monkeypatch.setattr("prunebench.encoded.SHARE", math.inf)
    sweep = ("--strategy", "cosine", "--strategy", "last_n", "--layers", 2, "--layers", 5, "--encode-cache", "100M")
    assert invoke("run", *TINY, *sweep, "--out", tmp_path).exit_code == 0
    assert len(records_of(tmp_path)) == 5  # dense, and two strategies at two budgets
    assert len(seen) == len({id(sample) for sample in seen}) == 40 + 4 * 2  # calibration, four tasks of two questions
    seen.clear()
    assert invoke("run", *TINY, "--strategy", "first_n", "--layers", 3, "--out", tmp_path).exit_code == 0
    assert len(records_of(tmp_path)) == 6 and not seen
    monkeypatch.undo()
    without = (*sweep[:-1], 0)
    assert invoke("run", *TINY, *without, "--out", tmp_path / "without").exit_code == 0
    assert not (tmp_path / "without" / "encoded").exists()
    ours = records_of(tmp_path)
    for label, record in records_of(tmp_path / "without").items():
        assert comparable(record) == comparable(ours[label])


def test_a_wrong_size_is_one_line(tmp_path):
    line = error_line(invoke("run", *TINY, "-s", "last_n", "--layers", 2, "--encode-cache", "lots", "--out", tmp_path))
    assert "encode_cache: a size is a number with K, M, G or T behind it, such as 500M or 4G; got 'lots'" in line


def test_samples_that_are_gone_are_not_mistaken_for_new_ones(counted):
    """A fingerprint is remembered by the sample object: another object at the same address must not inherit it."""
    cache = EncoderCache(None)
    keys = set()
    for word in range(3, 40):
        sample = Sample("s", f"w{word}")
        keys.add(cache.key(counted, [sample]))
        del sample
    assert len(keys) == 37
