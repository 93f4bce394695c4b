"""The testbed's questions: reproducible, disjoint over splits, and without favourite answers."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from prunebench_models.testbed.data import DOMAINS, TestbedDataset
from prunebench_models.testbed.data.words import VOCABULARY

from prunebench.calibration.samples import Sample, fingerprint

DATASET = TestbedDataset()


def content(sample: Sample) -> bytes:
    media = sample.images[0] if sample.images else sample.video if sample.video is not None else sample.audio
    return media.tobytes() + sample.instruction.encode()


def test_same_arguments_same_samples():
    assert fingerprint(DATASET.samples("test", 40)) == fingerprint(TestbedDataset().samples("test", 40))


@pytest.mark.parametrize("domain", [None, *DOMAINS])
def test_a_longer_list_begins_with_the_shorter(domain):
    short, long = (
        DATASET.samples("calibration", 13, seed=3, domain=domain),
        DATASET.samples("calibration", 29, seed=3, domain=domain),
    )
    assert fingerprint(short) == fingerprint(long[:13])


def test_no_domain_means_all_of_them_in_equal_parts():
    counts = Counter(sample.domain for sample in DATASET.samples("train", 40))
    assert counts == dict.fromkeys(DOMAINS, 10)


def test_seeds_give_other_samples():
    assert fingerprint(DATASET.samples("test", 8)) != fingerprint(DATASET.samples("test", 8, seed=1))


@pytest.mark.parametrize("domain", DOMAINS)
def test_splits_are_disjoint(domain):
    test = {content(sample) for sample in DATASET.samples("test", 500, domain=domain)}
    assert len(test) == 500
    for split in ("train", "calibration"):
        assert not test & {content(sample) for sample in DATASET.samples(split, 1000, domain=domain)}


@pytest.mark.parametrize("domain", DOMAINS)
def test_samples_are_well_formed(domain):
    for sample in DATASET.samples("test", 120, domain=domain):
        assert sample.answer in sample.options == DATASET.kinds(domain)[sample.kind]
        assert set(sample.instruction.split()) <= set(VOCABULARY)
        if domain == "audio":
            assert sample.audio.dtype == np.float32 and np.abs(sample.audio).max() <= 1
            assert sample.audio.shape == (sample.sampling_rate,)  # one second
        elif domain == "video":
            assert sample.video.shape == (4, 64, 64, 3) and sample.video.dtype == np.uint8
        else:
            assert sample.images[0].shape == (64, 64, 3) and sample.images[0].dtype == np.uint8


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_answer_is_a_favourite(domain):
    answers = defaultdict(Counter)
    for sample in DATASET.samples("test", 500, domain=domain):
        answers[sample.kind][sample.answer] += 1
    for kind, options in DATASET.kinds(domain).items():
        counts = answers[kind]
        assert set(counts) == set(options)
        assert max(counts.values()) - min(counts.values()) <= 1
    assert DATASET.chance(domain) <= DATASET.majority(domain) < 0.35


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown split"):
        DATASET.samples("validation", 1)
    with pytest.raises(ValueError, match="unknown domain"):
        DATASET.samples("test", 1, domain="smell")
