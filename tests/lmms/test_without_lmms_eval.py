"""A machine without lmms-eval: one line that says how to get it, before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import importlib.util, runpy, sys

found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name.split(".")[0] == "lmms_eval" else found(name, *more)
sys.modules["lmms_eval"] = None  # an import of it fails
sys.argv = ["prunebench", *sys.argv[1:]]
runpy.run_module("prunebench", run_name="__main__")
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("suite", ["quick", "testbed-lmms"])
def test_a_run_ends_in_one_line(suite, tmp_path: Path):
    out = tmp_path / "out"
    done = run(
        "run", "--suite", suite, "--strategy", "topo", "--sparsity", "0.5", "--model", "testbed", "--out", str(out)
    )
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: the evaluator 'lmms' needs 'lmms-eval': make lmms")
    assert not out.exists()


def test_what_does_not_need_it_runs():
    done = run("list", "suites")
    assert done.returncode == 0 and "topovlm-image" in done.stdout
