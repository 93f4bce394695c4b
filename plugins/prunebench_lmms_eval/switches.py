"""What the environment tells the Hub's libraries: switches, and where they keep things."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["hf_home", "is_on", "offline"]

OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


def is_on(name: str) -> bool:
    """Whether a variable is set to one of the words that these libraries take for yes."""
    return os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")


def offline() -> str | None:
    """The variable that forbids downloads, where one is set."""
    return next((name for name in OFFLINE if is_on(name)), None)


def hf_home() -> Path:
    """The folder for models, data sets and media."""
    return Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
