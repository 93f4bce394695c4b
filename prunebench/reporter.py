"""What a run says while it runs: to stderr, so that stdout holds results only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prunebench.kinds import removes_layers, share_words

if TYPE_CHECKING:
    from rich.console import Console

    from prunebench.evaluator import TaskResult
    from prunebench.store import Record

__all__ = ["Reporter"]


class Reporter:
    """Progress bars on a terminal; elsewhere one line per stage. `Reporter.silent()` says nothing."""

    def __init__(self, console: Console | None = None, *, debug: bool = False) -> None:
        from rich.console import Console

        # Under a pipe rich assumes 80 columns; long lines there are better left whole.
        self.console = console or Console(stderr=True, soft_wrap=True, highlight=False)
        self.debug = debug
        self._muted = False

    @classmethod
    def silent(cls) -> Reporter:
        from rich.console import Console

        reporter = cls(Console(stderr=True, quiet=True))
        reporter._muted = True
        return reporter

    def note(self, text: str) -> None:
        self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        self.console.print(f"warning: {text}", style="yellow", markup=False)

    def begin(self, label: str) -> None:
        self.console.print(f"▸ {label}", style="bold", markup=False)

    def cell(self, number: int, total: int, record: Record) -> None:
        """One line when a cell has finished."""
        if record.status == "ok":
            scores = ", ".join(f"{task.task} {_score(task)}" for task in record.tasks)
            text = f"  [{number}/{total}] {_reduced(record)}: {scores}"
        else:
            text = f"  [{number}/{total}] {record.status}: {record.error}"
        self.console.print(text, markup=False, style=None if record.status == "ok" else "red")

    @contextmanager
    def step(self, label: str) -> Iterator[None]:
        """A stage without a count."""
        if self.console.is_terminal and not self._muted:
            with self.console.status(label):
                yield
        else:
            self.note(f"{label} ...")
            yield

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Callable[..., None]]:
        """A stage that counts; yields ``advance(done, total, text)``, where `text` (a loss, say) may be left out."""
        if not self.console.is_terminal or self._muted:
            if not self._muted:
                self.note(f"{label} ({total}) ...")
            yield self._tenths(label)
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(label, total=total)
            yield lambda done, whole, text="": progress.update(
                task, completed=done, total=whole, description=f"{label} {text}".rstrip()
            )

    def _tenths(self, label: str) -> Callable[..., None]:
        """A line at every tenth of a stage that has something to say on its way."""
        said = 0

        def advance(done: int, whole: int, text: str = "") -> None:
            nonlocal said
            tenth = 10 * done // max(1, whole)
            if text and tenth > said and not self._muted:
                said = tenth
                self.note(f"{label}: {done} of {whole}, {text}")

        return advance


def _reduced(record: Record) -> str:
    """What went, in the words of its kind."""
    plan = record.plan
    if plan is not None and not removes_layers(plan.kind):
        return share_words(plan, record.model)
    removed = list(plan.removed_layers) if plan else []
    parts = [f"{part} of {layer}" for layer, part in plan.removed_sublayers] if plan else []
    return f"removed {', '.join([str(removed), *parts])}"


def _score(result: TaskResult) -> str:
    if result.higher_is_better and 0.0 <= result.score <= 1.0:
        return f"{100 * result.score:.1f}"
    return f"{result.metric} {result.score:.4g}"
