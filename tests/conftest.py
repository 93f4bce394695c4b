"""Every test starts with the plugins and the environment that ship, whatever ran before it."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tiny tensors on many threads only wait

import pytest

from prunebench.cli import cli
from prunebench.plugins import reset_plugins


@pytest.fixture(autouse=True)
def fresh_plugins(monkeypatch: pytest.MonkeyPatch):
    """No plugin file, restriction or command of one test is seen by the next."""
    monkeypatch.delenv("PRUNEBENCH_PLUGINS", raising=False)
    commands = dict(cli.commands)
    reset_plugins()
    yield
    cli.commands.clear()
    cli.commands.update(commands)
    cli._extended = False
    reset_plugins()
