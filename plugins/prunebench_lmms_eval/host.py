"""What lmms-eval and its tasks do to the process around them, kept away from it: folder, streams, logs, draws, ..."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from prunebench_lmms_eval.switches import hf_home

__all__ = ["QUIET", "Host"]

QUIET = ("trace", "debug", "info", "success")
SAID = ("warning", "error", "critical", "exception")
NOTES = 50
ALONE = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
"""Set by launchers: lmms-eval would take its share of the questions only, and wait for others."""


class Host:
    """The process as it was before a task, so that our own code can go on in it.

    Args:
        folder: a scratch folder: tasks write ``submissions/`` where they stand, and leave them there.

    Attributes:
        notes: what lmms-eval logged as a warning or worse: (level, first line) → how often.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.notes: dict[tuple[str, str], int] = {}
        self._home = os.getcwd()
        self._streams = sys.stdout, sys.stderr
        self._pictures = _pictures()

    @contextmanager
    def away(self, environment: Mapping[str, str] | None = None) -> Iterator[None]:
        """In the scratch folder, alone, with stdout and stderr in a file there; everything is put back, come what may.

        Args:
            environment: variables that hold within.
        """
        import loguru  # before streams are exchanged: its own first handler keeps the one that it finds
        import torch

        work = self.folder / "work"
        work.mkdir(parents=True, exist_ok=True)
        self._home, self._streams = os.getcwd(), (sys.stdout, sys.stderr)
        before, draws = dict(os.environ), (random.getstate(), np.random.get_state())
        pictures, self._pictures = _pictures(), _pictures()
        with open(self.folder / "lmms-eval.log", "a", encoding="utf-8", errors="replace") as log:
            try:
                for name in ALONE:
                    os.environ.pop(name, None)
                # nextqa and others index os.environ, where libraries fall back on this same folder
                os.environ.setdefault("HF_HOME", str(hf_home()))
                os.environ.update(environment or {})
                os.chdir(work)
                # lmms-eval sets it on its first import only: so it is the same for every task
                _set_pictures((True, pictures[1]))
                streams = redirect_stdout(log), redirect_stderr(log)
                with streams[0], streams[1], self._logger(loguru.logger), torch.random.fork_rng(devices=[]):
                    yield
            finally:
                _set_pictures(pictures)
                random.setstate(draws[0])
                np.random.set_state(draws[1])
                os.chdir(self._home)
                for name in os.environ.keys() - before.keys():
                    del os.environ[name]
                os.environ.update(before)

    @contextmanager
    def home(self) -> Iterator[None]:
        """Back in the host's folder and on its streams for a while: relative paths of ours and progress bars."""
        away, pictures = os.getcwd(), _pictures()
        stdout, stderr = self._streams
        os.chdir(self._home)
        _set_pictures(self._pictures)
        try:
            with redirect_stdout(stdout), redirect_stderr(stderr):
                yield
        finally:
            os.chdir(away)
            _set_pictures(pictures)

    @contextmanager
    def _logger(self, logger: Any) -> Iterator[None]:
        """lmms-eval removes all of loguru's handlers on import and adds one on stdout: neither happens.

        What it logs is noted, not shown; what others log goes where it always went.
        """

        def passed(name: str) -> Any:
            def log(*args: Any, **kwargs: Any) -> None:
                # one frame up stands the call itself
                if _is_theirs(sys._getframe(1).f_code.co_filename):
                    if name in SAID and args:
                        self._note(name, str(args[0]))
                else:
                    getattr(type(logger), name)(logger.opt(depth=1), *args, **kwargs)

            return log

        mine = {name: passed(name) for name in (*QUIET, *SAID)}
        mine |= {"remove": lambda *args: None, "add": lambda *args, **kwargs: -1}
        before = {name: vars(logger)[name] for name in mine if name in vars(logger)}
        vars(logger).update(mine)
        try:
            yield
        finally:
            for name in mine:
                del vars(logger)[name]
            vars(logger).update(before)

    def complaints(self) -> tuple[str, ...]:
        """What lmms-eval logged as errors."""
        errors = [(line, count) for (level, line), count in self.notes.items() if level != "warning"]
        return tuple(f"lmms-eval: {line}" + (f" ({count} times)" if count > 1 else "") for line, count in errors)

    def _note(self, level: str, text: str) -> None:
        key = (level, (text.strip().splitlines() or [""])[0][:300])
        if key in self.notes or len(self.notes) < NOTES:
            self.notes[key] = self.notes.get(key, 0) + 1
        print(level, text)  # into the log


def _pictures() -> tuple[bool, int | None]:
    """Whether pillow takes truncated files, and how many pixels it allows: lmms-eval and its tasks change both."""
    return ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS


def _set_pictures(values: tuple[bool, int | None]) -> None:
    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = values


def _is_theirs(file: str) -> bool:
    return f"{os.sep}lmms_eval{os.sep}" in file
