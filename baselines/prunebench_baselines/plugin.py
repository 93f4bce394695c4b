"""Registers the methods of this package; each lives in a file of its own."""

from __future__ import annotations

from prunebench.hookspecs import hookimpl


@hookimpl
def prunebench_register_strategies(register):
    from prunebench_baselines.controls import Dense, EvenSpacing, FirstN, LastN, Random
    from prunebench_baselines.cosine import Cosine

    for strategy in (Dense, Random, FirstN, LastN, EvenSpacing, Cosine):
        register(strategy)
