"""Services that tasks ask about an answer: never by surprise, and never without an answer of theirs.

The code of many tasks asks a language model over the network where its rules cannot read an answer, and goes on as if
nothing were when the service does not answer: the answer then counts as wrong, or as the option that is spelled most
like nothing (MathVista scores a third that way). A score must not come out of that.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import isawaitable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from prunebench.errors import EvaluationError, first_line

if TYPE_CHECKING:
    from prunebench.suites import Task

__all__ = ["PATIENCE", "guarded"]

PATIENCE = 5
"""Calls in a row that may fail: as often as lmms-eval's own judge tries."""


class _NoVerdict(BaseException):
    """No `Exception`: the code of tasks forgives those."""


class _Calls:
    """Calls of one task, and how they ended."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.failed: dict[str, str] = {}  # what was asked and not yet answered → why
        self.in_a_row = 0
        self.refused: str | None = None

    def begin(self, service: str) -> None:
        if not self.task.judged:
            self.refused = (
                f"its code asks {service} about an answer that its rules cannot read, but the suite says "
                "`judge: none`: take another task, or name the judge"
            )
            raise _NoVerdict(self.refused)

    def end(self, service: str, asked: str, failure: str | None) -> None:
        if failure is None:
            self.failed.pop(asked, None)
            self.in_a_row = 0
            return
        self.failed[asked] = f"{service}: {failure}"
        self.in_a_row += 1
        if self.in_a_row >= PATIENCE:
            raise _NoVerdict(self.complaint())

    def complaint(self) -> str:
        if self.refused is not None:  # what runs in an event loop may have swallowed it
            return self.refused
        n = len(self.failed)
        return f"its judge gave no verdict on {n} answer{'s' * (n > 1)} ({next(reversed(self.failed.values()))})"


@contextmanager
def guarded(task: Task) -> Iterator[None]:
    """While a task is scored: what it asks of services by `requests` or the `openai` package is watched.

    Raises:
        EvaluationError: it asks, and the suite names no judge; or a question of its was never answered.
    """
    calls = _Calls(task)
    places = list(_places(calls))
    before = [getattr(owner, name) for owner, name, _ in places]
    try:
        for owner, name, watched in places:
            setattr(owner, name, watched)
        yield
        if calls.failed or calls.refused:
            raise _NoVerdict(calls.complaint())
    except _NoVerdict as error:
        raise EvaluationError(f"task {task.id!r}: {error}") from None
    finally:
        for (owner, name, _), original in zip(places, before, strict=True):
            setattr(owner, name, original)


def _places(calls: _Calls) -> Iterator[tuple[type, str, Callable[..., Any]]]:
    """Where requests pass through, and what stands there meanwhile."""
    if importlib.util.find_spec("requests"):
        from requests import Session

        yield Session, "request", _watched(calls, Session.request, _posted)
    if importlib.util.find_spec("openai"):
        from openai.resources.chat.completions import AsyncCompletions, Completions

        for client in (Completions, AsyncCompletions):  # those for Azure use them, too
            yield client, "create", _watched(calls, client.create, lambda _, **asked: ("OpenAI", repr(asked)))


def _posted(_: Any, method: str, url: Any, *args: Any, **asked: Any) -> tuple[str, str] | None:
    """Service and question of a request; None for one that only fetches data."""
    from huggingface_hub.constants import ENDPOINT

    if str(method).upper() != "POST" or str(url).startswith(ENDPOINT):
        return None
    return urlsplit(str(url)).netloc or str(url), repr((url, args, asked))


def _watched(
    calls: _Calls, call: Callable[..., Any], read: Callable[..., tuple[str, str] | None]
) -> Callable[..., Any]:
    """`call` with its end noted; `read` says whom it asks and what, or None."""

    @wraps(call)
    def watched(*args: Any, **kwargs: Any) -> Any:
        about = read(*args, **kwargs)
        if about is None:
            return call(*args, **kwargs)
        service, asked = about
        calls.begin(service)
        try:
            answer = call(*args, **kwargs)
        except Exception as error:
            calls.end(service, asked, first_line(error)[:120])
            raise
        return awaited(answer, service, asked) if isawaitable(answer) else ended(answer, service, asked)

    def ended(answer: Any, service: str, asked: str) -> Any:
        status = getattr(answer, "status_code", 200)
        calls.end(service, asked, None if status < 400 else f"HTTP status {status}")
        return answer

    async def awaited(answer: Awaitable[Any], service: str, asked: str) -> Any:
        try:
            found = await answer
        except Exception as error:
            calls.end(service, asked, first_line(error)[:120])
            raise
        return ended(found, service, asked)

    return watched
