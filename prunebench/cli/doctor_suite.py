"""`prunebench doctor --suite`: what each task of a suite lacks here, and what the suite will cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunebench.readiness import Outlook, Readiness

__all__ = ["as_data", "as_text", "look_at_suite"]


def look_at_suite(
    name: str,
    *,
    model: str | None,
    model_path: str | None,
    out: str,
    data: Sequence[str],
    tasks: Sequence[str],
    limit: int | None,
    models: int,
) -> Readiness:
    """What `examine_suite` finds for the options of the command.

    Raises:
        UsageError, EvaluationError: as there.
    """
    from prunebench.config import Spec
    from prunebench.plugins import get_plugins
    from prunebench.readiness import examine_suite
    from prunebench.suite_selection import parse_data

    values: dict[str, Any] = {"model": model or "", "model_path": model_path, "limit": limit, "out": out}
    spec = Spec.build({**values, "tasks": tuple(tasks), "data": parse_data(data)})
    return examine_suite(name, spec, get_plugins(), model=model, models=models)


def as_text(found: Readiness) -> str:
    """For people: a paragraph for each task, and the cost of all."""
    lines = []
    for outlook in found.tasks:
        task = outlook.task
        state = f"LEFT OUT, {outlook.left_out}" if outlook.left_out else "ready" if outlook.ready else "CANNOT RUN"
        lines.append(f"{task.id}: {state} ({task.evaluator}, {task.modality})")
        for need in outlook.needs:
            lines.append(f"  {need.status:8} {need.what}: {need.detail}")
            if need.do:
                lines.append(f"           → {need.do}")
        lines.append(f"  cost     {_cost(outlook)}")
    return "\n".join([*lines, "", *_total(found)]) + "\n"


def _cost(outlook: Outlook) -> str:
    asked = "number of questions not known" if outlook.questions is None else f"{outlook.questions:,} questions"
    if outlook.speed is None:
        return f"{asked}, no speed known yet"
    each = f"{outlook.speed.seconds:.3g} s each (measured: {outlook.speed.source})"
    return f"{asked}, {each}" + (f": {words(outlook.seconds)}" if outlook.seconds is not None else "")


def _total(found: Readiness) -> list[str]:
    plural = "s" if found.models > 1 else ""
    asked = f"{found.questions:,} questions × {found.models} model{plural} = {found.questions * found.models:,}"
    if unknown := [outlook.task.id for outlook in found.asked if outlook.questions is None]:
        asked += f", and those of {', '.join(unknown)}"
    lines = [f"suite {found.suite.name}: {len(found.asked)} task{'' if len(found.asked) == 1 else 's'}, {asked}"]
    if found.seconds is None:
        there = f" (those of {', '.join(found.elsewhere)} are)" if found.elsewhere else ""
        of = f" of {found.model}" if found.model else ""
        lines.append(
            f"time: no speed{of} known yet{there}: run it once with --limit 20 into the same --out ({found.out}), and "
            "ask again"
        )
    else:
        rest = f", without {', '.join(found.untimed)}" if found.untimed else ""
        one = f" ({words(found.seconds)} for each model)" if found.models > 1 else ""
        lines.append(f"time: about {words(found.seconds * found.models)}{one} for answers alone{rest}")
    lines += _detectable(found)
    if found.disk_gb is not None:
        lines.append(f"data: {found.disk_gb:g} GB, of the tasks that say so")
    if out := [outlook.task.id for outlook in found.tasks if outlook.left_out]:
        lines.append(f"left out of a run: {', '.join(out)}{'' if found.asked else ', so that nothing remains'}")
    if bad := [outlook.task.id for outlook in found.asked if not outlook.ready]:
        lines.append(f"cannot run here: {', '.join(bad)}")
    return lines


def _detectable(found: Readiness) -> list[str]:
    """How small a difference between two models the suite can show, of its largest and of its smallest task."""
    from prunebench.readiness import DISAGREEMENT

    known = sorted((o.detectable, o.task.id) for o in found.asked if o.detectable is not None)
    if not known:
        return []
    ends = [f"{100 * value:.1f} points in {task}" for value, task in dict.fromkeys([known[0], known[-1]])]
    return [
        f"can tell two models apart from {' to '.join(ends)} (at best: 80 % power, where they disagree on "
        f"{100 * DISAGREEMENT:.0f} % of the questions and no questions share an image)"
    ]


def as_data(found: Readiness) -> dict[str, Any]:
    """The same as JSON-able values; null where something is not known."""
    return {
        "suite": found.suite.name,
        "model": found.model,
        "models": found.models,
        "ready": found.ready,
        "questions": found.questions,
        "seconds": found.seconds,
        "untimed": list(found.untimed),
        "disk_gb": found.disk_gb,
        "tasks": [
            {
                "task": outlook.task.id,
                "evaluator": outlook.task.evaluator,
                "modality": outlook.task.modality,
                "ready": outlook.ready and not outlook.left_out,
                "left_out": outlook.left_out or None,
                "needs": [need._asdict() for need in outlook.needs],
                "questions": outlook.questions,
                "seconds": outlook.seconds,
                "seconds_per_question": outlook.speed.seconds if outlook.speed else None,
                "detectable": outlook.detectable,
                "measured": outlook.speed.source if outlook.speed else None,
            }
            for outlook in found.tasks
        ],
    }


def words(seconds: float) -> str:
    """A time for people: ``40 s``, ``12 min``, ``3.5 h``, ``2.1 days``."""
    for size, unit, digits in ((86400.0, "days", 1), (3600.0, "h", 1), (60.0, "min", 0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.2g} s"
