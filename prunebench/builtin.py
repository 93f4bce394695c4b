"""What the core itself registers: its suites, its evaluator and its executor, through the door that all plugins use."""

from __future__ import annotations

from prunebench.hookspecs import hookimpl


@hookimpl
def prunebench_register_suites(register):
    from prunebench.suites import builtin_suites_dir

    register(builtin_suites_dir())


@hookimpl
def prunebench_register_evaluators(register):
    from prunebench.evaluate_local import LocalEvaluator

    register(LocalEvaluator)


@hookimpl
def prunebench_register_executors(register):
    from prunebench.executor import InProcess

    register(InProcess)
