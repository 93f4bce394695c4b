"""Options about published figures that `run` and `leaderboard` share, and how the dense gate stops them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from prunebench.published import Published
    from prunebench.reporter import Reporter
    from prunebench.store import Record

__all__ = ["dense_check", "load", "published_options", "stopping_at_gap"]

_OPTIONS = [
    click.option(
        "--published",
        is_flag=False,
        flag_value="",
        default=None,
        metavar="[DIR]",
        help="Show published figures (those that ship, or the *.yaml of DIR), unranked; refuse a dense model that is "
        "off them.",
    ),
    click.option("--allow-gap", is_flag=True, help="With --published: mark a dense model that is off, go on."),
]


def published_options(command: Callable) -> Callable:
    """Add the two options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def load(folder: str | None, allow_gap: bool) -> Published | None:
    """The figures that the options ask for; None without ``--published``.

    Raises:
        UsageError: ``--allow-gap`` alone, or a folder that cannot be used.
    """
    from prunebench.errors import UsageError
    from prunebench.published import load_published

    if folder is None:
        if allow_gap:
            raise UsageError("--allow-gap goes with --published")
        return None
    return load_published(folder or None)


@contextmanager
def stopping_at_gap(context: click.Context, then: str = "") -> Iterator[None]:
    """End with 1 and one line where the dense gate refuses."""
    from prunebench.gate import DenseGap

    try:
        yield
    except DenseGap as error:
        if context.find_root().params.get("debug"):
            raise
        click.echo(f"error: {' '.join(str(error).split())}{then}", err=True)
        context.exit(1)


def dense_check(published: Published, allow_gap: bool, reporter: Reporter) -> Callable[[Record], Any]:
    """What `Session.after_dense` does with ``run --published``: tell every verdict, and stop where one is off."""
    from prunebench.gate import gate, refuse

    def check(record: Record) -> None:
        findings = gate(record, published)
        for finding in findings:
            if finding.status != "off":
                reporter.note(f"dense gate: {finding.task}: {finding.words}")
            elif allow_gap:
                reporter.warn(f"dense gate: {finding.line}: {finding.words}, allowed by --allow-gap")
        if not allow_gap:
            refuse(findings)

    return check
