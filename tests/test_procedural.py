"""Procedural questions for any model, and the metric that reads an option out of free words."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image
from prunebench_models.procedural import IMAGE_SIZE, ProceduralDataset
from prunebench_models.testbed.data import TestbedDataset

from prunebench import Sample
from prunebench.dataset import SPLITS, open_dataset
from prunebench.errors import BadParameter
from prunebench.metrics import METRICS, is_outside, named_options
from prunebench.plugins import get_plugins
from prunebench.suites import load_suite
from tests.commands import TINY, invoke, records_of

COLORS = ("red", "green", "blue")
CORNERS = ("left", "right", "top left", "top right")
DIGITS = tuple(str(n) for n in range(12))
NAMED = [
    ("Red", COLORS, ("red",)),
    ("The ring is **red**.", COLORS, ("red",)),
    ("red\nbecause blue is another color", COLORS, ("red",)),
    ("\n\n red", COLORS, ("red",)),
    ("red or blue", COLORS, ("red", "blue")),
    ("blue, I mean blue", COLORS, ("blue",)),
    ("reddish", COLORS, ()),
    ("infrared", COLORS, ()),
    ("", COLORS, ()),
    ("\n", COLORS, ()),
    ("Top-left.", CORNERS, ("top left",)),
    ("top left, left", CORNERS, ("left", "top left")),
    ("the right", CORNERS, ("right",)),
    ("top", CORNERS, ()),
    ("11", DIGITS, ("11",)),
    ("There are 3.", DIGITS, ("3",)),
    ("Three", DIGITS, ("3",)),
    ("3.5", DIGITS, ()),
    ("-3", DIGITS, ()),
    ("3rd", DIGITS, ()),
    ("(3)", DIGITS, ("3",)),
    ("do", ("do", "re"), ("do",)),
]


@pytest.mark.parametrize(("answer", "options", "expected"), NAMED)
def test_named_options(answer, options, expected):
    assert named_options(answer, options) == expected


def test_option_match_wants_exactly_the_expected_option():
    score = METRICS["option_match"]
    sample = Sample("s", "?", answer="red", options=COLORS)
    assert [score(answer, sample) for answer in ("It is Red.", "red, not blue", "blue", "", "ruby")] == [1, 0, 0, 0, 0]
    outside = [
        is_outside("option_match", answer, sample) for answer in ("It is red.", "red, not blue", "blue", "", "x")
    ]
    assert outside == [False, True, False, False, True]
    assert is_outside("exact_match", "It is red.", sample) and not is_outside("exact_match", "Red.", sample)


def test_option_match_on_open_questions_is_refused():
    from prunebench.errors import EvaluationError
    from prunebench.evaluate_local import LocalEvaluator
    from prunebench.suites import Task

    evaluator = LocalEvaluator()
    evaluator._questions = lambda task: [Sample("open/1", "?", answer="red")]
    with pytest.raises(EvaluationError, match="'option_match' needs options, 'open/1' has none"):
        evaluator.evaluate(None, Task(id="t", metric="option_match"))


# -- questions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", ["general", "math", "video", "audio"])
def test_questions_are_those_of_the_testbed(domain):
    plain = TestbedDataset().samples("test", 30, domain=domain)
    asked = ProceduralDataset().samples("test", 30, domain=domain)
    for before, after in zip(plain, asked, strict=True):
        assert after.id == f"procedural/{before.id}"
        assert before.answer.replace(" ", "") == after.answer.replace(" ", "")
        assert after.answer in after.options and len(after.options) == len(before.options)
        match = re.fullmatch(r"(The .+\.) (.+)\? Answer with one (?:word|of): (.+) or (.+)\.", after.instruction)
        assert match, after.instruction
        assert (*match[3].split(", "), match[4]) == after.options
        assert match[2].lower() == before.instruction or before.kind == "when"
        assert METRICS["option_match"](f"I think it is {after.answer}.", after) == 1
    if domain in ("general", "math"):
        image, small = asked[0].images[0], plain[0].images[0]
        assert image.shape == (IMAGE_SIZE, IMAGE_SIZE, 3) and image.dtype == np.uint8
        nearest = Image.fromarray(small).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.NEAREST)
        clear = np.arange(IMAGE_SIZE) % 21 != 10  # the others lie on the edge between two pixels
        assert np.array_equal(np.asarray(nearest)[clear][:, clear], image[clear][:, clear])
    elif domain == "video":
        assert asked[0].video.shape == (4, IMAGE_SIZE, IMAGE_SIZE, 3)
    else:
        assert np.array_equal(asked[0].audio, plain[0].audio) and asked[0].sampling_rate == 16000


@pytest.mark.parametrize(
    ("reference", "domains"),
    [
        ("image", ("general", "math")),
        ("image-video", ("general", "math", "video")),
        ("audio", ("audio",)),
        ("all", ("general", "math", "video", "audio")),
    ],
)
def test_selections_take_turns_and_splits_are_disjoint(reference, domains):
    dataset = open_dataset(get_plugins(), f"procedural:{reference}")
    assert dataset.domains == domains and dataset.label == f"procedural:{reference}"
    ids, media = set(), set()
    for split in SPLITS:
        samples = dataset.samples(split, 9)
        assert [s.domain for s in samples] == [domains[i % len(domains)] for i in range(9)]
        assert [s.id for s in dataset.samples(split, 4)] == [s.id for s in samples[:4]]
        ids |= {s.id for s in samples}
        media |= {(s.images[0] if s.images else s.audio if s.video is None else s.video).tobytes() for s in samples}
    assert len(ids) == len(media) == 27


def test_unknown_selections_splits_and_domains():
    with pytest.raises(BadParameter, match="no part 'imag'; use procedural:image, "):
        open_dataset(get_plugins(), "procedural:imag")
    assert open_dataset(get_plugins(), "procedural").label == "procedural:all"
    with pytest.raises(ValueError, match="unknown domain 'audio'; choose from general, math"):
        ProceduralDataset("image").samples("test", 1, domain="audio")
    with pytest.raises(ValueError, match="unknown split"):
        ProceduralDataset().samples("dev", 1)


def test_suites_say_what_they_are():
    registry = get_plugins().registry("suites")
    for name in ("image", "image-video", "audio", "all"):
        suite = load_suite(registry[f"procedural-{name}"].value)
        assert [task.domain for task in suite.tasks] == list(ProceduralDataset(name).domains)
        assert {(t.n, t.max_new_tokens, t.metric, t.dataset) for t in suite.tasks} == {
            (200, 8, "option_match", f"procedural:{name}")
        }
        assert "not a benchmark from the literature" in " ".join(suite.description.split())


def test_a_run(tmp_path):
    """The shipped model does not know these words; that it answers, is scored and calibrated is what counts."""
    data = ("--suite", "procedural-all", "--calibration", "procedural:all", "-s", "cosine", "--layers", 2)
    assert invoke("run", *TINY, *data, "--out", tmp_path).exit_code == 0
    for record in records_of(tmp_path).values():
        assert [task.task for task in record.tasks] == ["general", "math", "video", "audio"]
        assert all(task.metric == "option_match" and task.n == 2 for task in record.tasks)
        assert all(task.chance is not None and task.majority is not None for task in record.tasks)
