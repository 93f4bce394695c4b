"""The command line. Each group of commands has a file of its own; help loads neither torch nor transformers."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import click

__all__ = ["cli", "main"]


class _Root(click.Group):
    """Adds the plugins' commands, and turns every error of ours into one line and exit code 2."""

    _extended = False

    def _extend(self) -> None:
        if self._extended:
            return
        self._extended = True
        from prunebench.plugins import get_plugins

        known = dict(self.commands)
        for info, _ in get_plugins().each("prunebench_register_commands", cli=self):
            for name in [name for name, command in known.items() if self.commands.get(name) is not command]:
                info.errors.append(f"commands: the name {name!r} is already taken; left out")
            self.commands.update(known)
            known = dict(self.commands)
        self.commands.update(known)

    def list_commands(self, context: click.Context) -> list[str]:
        self._extend()
        return super().list_commands(context)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        command = super().get_command(context, name)
        if command is None:
            self._extend()
            command = super().get_command(context, name)
        return command

    def resolve_command(self, context: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(context, args)
        except click.UsageError:
            from prunebench.errors import UnknownName

            raise click.UsageError(str(UnknownName("command", args[0], self.list_commands(context))), context) from None

    def invoke(self, context: click.Context) -> Any:
        from prunebench.cli.catalogue import warn_of_plugin_errors
        from prunebench.errors import PruneBenchError, UnknownName

        debug = context.params.get("debug", False)
        try:
            return super().invoke(context)
        except PruneBenchError as error:
            if debug:
                raise
            click.echo(f"error: {' '.join(str(error).split())}", err=True)
            if isinstance(error, UnknownName):  # it may be unknown because its plugin is broken
                warn_of_plugin_errors()
            context.exit(2)
        except KeyboardInterrupt:
            click.echo("interrupted: run the same command again to go on; finished cells are kept", err=True)
            context.exit(130)
        except (click.exceptions.Exit, click.ClickException, click.Abort, BrokenPipeError):
            raise
        except Exception as error:  # a bug of ours or of a plugin: still one line, and how to see more
            if debug:
                raise
            place = traceback.extract_tb(error.__traceback__)[-1]
            text = " ".join(str(error).split())
            click.echo(
                f"error: {type(error).__name__}: {text} (at {place.name}, line {place.lineno}); "
                "this is unexpected: `prunebench --debug ...` shows where",
                err=True,
            )
            context.exit(2)


def _load_plugin_files(context: click.Context, _parameter: click.Parameter, files: tuple[str, ...]) -> tuple[str, ...]:
    if files and not context.resilient_parsing:
        from prunebench.plugins import get_plugins

        plugins = get_plugins(files)
        for info in plugins.infos.values():
            if info.errors and info.origin in {str(Path(file)) for file in files}:
                click.echo(f"warning: plugin {info.name!r}: {info.errors[0]}", err=True)
    return files


@click.group(cls=_Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--plugin",
    multiple=True,
    metavar="FILE.py",
    callback=_load_plugin_files,
    expose_value=False,
    is_eager=True,
    help="Load one unpackaged plugin file; may be repeated.",
)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.version_option(package_name="prunebench")
def cli(debug: bool) -> None:
    """Which layers can a large vision-language model lose, by which method, and what does that cost?

    \b
    prunebench run --strategy topo --model testbed --sparsity 0.5 --controls
    """


def _add_commands() -> None:
    from prunebench.cli.catalogue import list_command, plugins_command
    from prunebench.cli.check import check_command
    from prunebench.cli.doctor import doctor
    from prunebench.cli.export import export_command
    from prunebench.cli.leaderboard import leaderboard
    from prunebench.cli.planning import plan_command
    from prunebench.cli.running import run_command

    commands = (run_command, plan_command, list_command, plugins_command, leaderboard)
    for command in (*commands, export_command, check_command, doctor):
        cli.add_command(command)


_add_commands()


def main() -> None:
    """Entry point of the ``prunebench`` command."""
    # Wide characters (bars, Greek) must not crash a terminal with a narrow encoding.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    cli(prog_name="prunebench")
