"""Registers the evaluator ``lmms`` and the command that writes PruneBench's questions for plain lmms-eval."""

from __future__ import annotations

from prunebench.hookspecs import hookimpl


@hookimpl
def prunebench_register_evaluators(register):
    from prunebench_lmms_eval.evaluator import LmmsEvaluator

    register(LmmsEvaluator)


@hookimpl
def prunebench_register_commands(cli):
    from prunebench_lmms_eval.export_tasks import export_tasks_command

    cli.add_command(export_tasks_command)
