"""Registers the topology-aware strategy."""

from __future__ import annotations

from prunebench.hookspecs import hookimpl


@hookimpl
def prunebench_register_strategies(register):
    from prunebench_topology.strategy import Topology

    register(Topology)
