"""What the core itself registers, through the door that all plugins use: suites, evaluators, a dataset, an executor."""

from __future__ import annotations

from prunebench.hookspecs import hookimpl


@hookimpl
def prunebench_register_suites(register):
    from prunebench.suites import builtin_suites_dir

    register(builtin_suites_dir())


@hookimpl
def prunebench_register_datasets(register):
    from prunebench.files import FilesDataset

    register(FilesDataset)


@hookimpl
def prunebench_register_evaluators(register):
    from prunebench.evaluate_local import LocalEvaluator
    from prunebench.evaluate_perplexity import PerplexityEvaluator

    register(LocalEvaluator)
    register(PerplexityEvaluator)


@hookimpl
def prunebench_register_executors(register):
    from prunebench.executor import InProcess

    register(InProcess)
