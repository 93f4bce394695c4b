"""A model by its name, dense or without what a plan removes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from prunebench import surgery
from prunebench.adapter import LoadedModel, LoadOptions
from prunebench.errors import BadParameter, UnknownName
from prunebench.plan import Plan
from prunebench.plugins import get_plugins

__all__ = ["load"]


def load(model: str, *, plan: Plan | str | Path | None = None, **options: Any) -> LoadedModel:
    """Load ``NAME`` or ``NAME:REFERENCE`` by its adapter.

    Layers that `plan` removes are never read, so that memory and reading grow with the layers that stay. From an
    adapter that cannot leave layers out while it loads they are removed afterwards. What the plan does to layers that
    stay is done too.

    Args:
        model: as ``--model`` takes it.
        plan: or the file that holds it.
        options: further fields of `LoadOptions`: ``path``, ``device``, ``dtype``, ``device_map``, ...

    Raises:
        UnknownName, BadParameter: no such model or option.
        ModelError: the weights cannot be read.
        PlanError: the plan is for another model, does not fit it, or its tensors are not at hand.
        StoreError: the plan's file or its tensors cannot be read.
    """
    known = {field.name for field in dataclasses.fields(LoadOptions)} - {"name", "reference", "plan"}
    for name in options:
        if name not in known:
            raise UnknownName("option of load", name, known)
    word, colon, reference = model.partition(":")
    adapter_class = get_plugins().get("models", word)
    if colon and not adapter_class.takes_reference:
        raise BadParameter(f"model {word!r} takes nothing after a colon, got {reference!r}")
    if isinstance(plan, (str, Path)):
        plan = Plan.load(plan)
    if plan is not None:
        plan.need_tensors()  # before gigabytes are read in vain
    loaded = adapter_class().load(LoadOptions(name=word, reference=reference if colon else None, plan=plan, **options))
    if plan is None:
        return loaded
    if loaded.plan is None:
        surgery.prune(loaded, plan)
        loaded.plan = plan
    else:
        plan.check_target(loaded.info)
    return loaded
