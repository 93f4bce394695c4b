"""Fixtures that all tests of real tasks share."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import pytest

from tests.lmms.synthetic.case import shipped

__all__ = ["no_network", "skip_unless_installed"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Whoever wants to speak to another machine fails, and so does the test; gives the list of who wanted to."""
    wanted: list[str] = []

    def refuse(*args: object, **kwargs: object) -> None:
        wanted.append(str(args[1:] if isinstance(args[0], socket.socket) else args))
        raise OSError("no network in tests")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OPENAI_API_KEY", "none")  # MathVista's code makes its client on import
    if importlib.util.find_spec("nltk"):
        import nltk

        monkeypatch.setattr(nltk, "download", lambda *args, **kwargs: False)  # NextQA's code asks for corpora on import
    yield wanted
    assert not wanted, f"asked for the network: {wanted}"


def skip_unless_installed(task: str) -> None:
    """Skip a test whose task needs packages, by its entry in the suites that ship, that are not here."""
    entry = shipped().get(task)
    for package in entry.needs if entry else ():
        try:
            version(package)
        except PackageNotFoundError:
            pytest.skip(f"{task} needs {package}")
