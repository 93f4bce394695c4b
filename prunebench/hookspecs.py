"""The contract between PruneBench and its plugins: eight hooks, and nothing else.

A plugin is a module in the entry-point group ``prunebench`` (or one file given by ``--plugin``) that implements any of
these with ``@prunebench.hookimpl``. Each ``register`` call adds one thing under one name; a second thing under the same
name is refused and reported, never silently taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from prunebench.store import Record

__all__ = ["PROJECT", "hookimpl", "hookspec"]

PROJECT = "prunebench"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Register = Callable[..., None]


@hookspec
def prunebench_register_strategies(register: Register) -> None:
    """Call ``register(cls)`` for each subclass of :class:`prunebench.Strategy`; its ``name`` is what users type."""


@hookspec
def prunebench_register_models(register: Register) -> None:
    """Call ``register(cls)`` for each subclass of :class:`prunebench.ModelAdapter`."""


@hookspec
def prunebench_register_datasets(register: Register) -> None:
    """Call ``register(cls)`` for each subclass of :class:`prunebench.Dataset`: where samples come from."""


@hookspec
def prunebench_register_suites(register: Register) -> None:
    """Call ``register(path)`` for each suite file (YAML), or each folder of them."""


@hookspec
def prunebench_register_evaluators(register: Register) -> None:
    """Call ``register(cls)`` for each subclass of :class:`prunebench.Evaluator`."""


@hookspec
def prunebench_register_executors(register: Register) -> None:
    """Call ``register(cls)`` for each subclass of :class:`prunebench.Executor`."""


@hookspec
def prunebench_register_commands(cli: Any) -> None:
    """Add click commands to the ``prunebench`` group, e.g. ``cli.add_command(my_command)``."""


@hookspec
def prunebench_cell_finished(record: Record) -> None:
    """A cell has finished (also when it failed) and its record is on disk."""
