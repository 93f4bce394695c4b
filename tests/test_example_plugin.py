"""The example of a third party's plugin: small, whole, installed by pip, listed, checked and run."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "prunebench-example"
SOURCE = EXAMPLE / "prunebench_example.py"


PLAN = "-s facility_location -m testbed --sparsity 0.5 --n-calibration 16 --json"
COMMANDS = {
    "plugins": "-m prunebench plugins --json",
    "check": "-m prunebench check prunebench-example",
    "plan": f"-m prunebench plan {PLAN}",
    "pytest": f"-m pytest -o addopts= -p no:cacheprovider {EXAMPLE / 'tests'}",
}


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> dict[str, str]:
    """What each command prints where the example is installed, offline, beside this PruneBench."""
    place, folder = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("work")
    words = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", str(place), str(EXAMPLE)]
    done = subprocess.run([sys.executable, "-m", "pip", "install", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (place / "prunebench_example.py").read_bytes() == SOURCE.read_bytes()
    environment = {**os.environ, "PYTHONPATH": str(place), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    started = {
        name: subprocess.Popen(
            [sys.executable, *shlex.split(command)],
            env=environment,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, command in COMMANDS.items()
    }
    found = {}
    for name, process in started.items():
        found[name], errors = process.communicate(timeout=300)
        assert process.returncode == 0, f"{name}: {found[name]}{errors}"
    return found


def test_it_is_small_and_whole():
    """At most 40 lines of Python, those that test it included; comments and docstrings count."""
    assert len(SOURCE.read_text(encoding="utf-8").splitlines()) <= 40
    python = [path.read_text(encoding="utf-8") for path in EXAMPLE.rglob("*.py")]
    assert sum(bool(line.strip()) for text in python for line in text.splitlines()) <= 40
    readme = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    assert len(re.findall(r"^(?:pip|prunebench) ", readme, re.M)) == 3


def test_it_is_listed_with_its_distribution_and_version(said):
    (example,) = [row for row in json.loads(said["plugins"]) if row["name"] == "example"]
    assert (example["distribution"], example["version"]) == ("prunebench-example", "0.1.0")
    assert example["provides"] == ["strategies:facility_location"] and example["status"] == "ok"


def test_it_passes_the_conformance_kit(said):
    assert "plugin example" in said["check"] and "strategy facility_location" in said["check"]
    assert said["check"].splitlines()[-1] == "31 passed, 0 failed, 0 skipped"


def test_it_plans_and_signs_the_plan(said):
    (plan,) = json.loads(said["plan"])
    assert len(plan["ops"]) == 8
    made_by = plan["provenance"]
    assert (made_by["strategy"], made_by["plugin"], made_by["version"]) == ("facility_location", "example", "0.1.0")


def test_its_own_tests_pass(said):
    assert re.search(r"\b30 passed in ", said["pytest"])


# -- the method --------------------------------------------------------------------------------------------------------


def method():
    spec = importlib.util.spec_from_file_location("example_method", SOURCE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module.FacilityLocation()


def test_greedy_is_within_its_bound_of_the_best_set():
    """For every number of kept layers: F(greedy) ≥ (1 − 1/e) F(best), best by trying all sets."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        states = rng.normal(size=(8, 3))  # the input of layer 0, and 7 outputs
        states /= np.linalg.norm(states, axis=1, keepdims=True)
        cosines = states @ states.T
        context = SimpleNamespace(need_trace=lambda c=cosines: SimpleNamespace(mean_cosine=lambda group: c))
        rank = method().score(context)
        assert sorted(rank) == list(range(7))
        likeness = (1 + cosines[1:, 1:]) / 2

        def value(kept, likeness=likeness):
            return likeness[:, list(kept)].max(1).sum()

        for size in range(1, 8):
            best = max(value(kept) for kept in combinations(range(7), size))
            assert best >= value(np.flatnonzero(rank < size)) >= (1 - 1 / np.e) * best


def test_of_two_equal_layers_one_goes_first():
    """Outputs a, a, b, c at right angles: the second a adds nothing and is picked last."""
    states = np.eye(4)[[3, 0, 0, 1, 2]]
    cosines = states @ states.T
    context = SimpleNamespace(need_trace=lambda: SimpleNamespace(mean_cosine=lambda group: cosines))
    assert method().score(context)[1] == 3
