"""The check of an export without a process of its own, which takes seconds: one test of each kind pays them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from prunebench.exporting import reload_check, verify

__all__ = ["reload_here"]


def reload_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the program that a fresh process would run in this one."""

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess:
        assert command[:2] == [sys.executable, "-c"] and "def main(" in command[2]
        try:
            reload_check.main(*command[3:])
        except Exception as error:
            return subprocess.CompletedProcess(command, 1, "", f"Traceback\n{type(error).__name__}: {error}")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(verify.subprocess, "run", run)
