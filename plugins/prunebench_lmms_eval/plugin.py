"""Registers the evaluator ``lmms``."""

from __future__ import annotations

from prunebench.hookspecs import hookimpl


@hookimpl
def prunebench_register_evaluators(register):
    from prunebench_lmms_eval.evaluator import LmmsEvaluator

    register(LmmsEvaluator)
