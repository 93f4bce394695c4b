"""Plans of several methods that thin weights layer by layer, made in as few walks through the decoder as fit.

What a plan costs is what it would have cost alone: layers run and tokens are charged to each plan in full, and so is
the time of what plans shared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunebench.errors import BudgetError, PlanError
from prunebench.kinds import n_of_m
from prunebench.layerwise.contract import Thinner
from prunebench.layerwise.strategy import LayerwiseStrategy
from prunebench.plan import Plan
from prunebench.plan_context import PlanContext

if TYPE_CHECKING:
    from prunebench.layerwise.held import Material
    from prunebench.layerwise.walker import Walker
    from prunebench.probing import Probe

__all__ = ["plan_together"]

Progress = Callable[[int, int], None]


@dataclass(eq=False)
class _Asked:
    """One plan on its way."""

    strategy: LayerwiseStrategy
    context: PlanContext
    probe: Any = None
    scout: Thinner | None = None  # as it was made: what it is known by
    scouted: Walker | None = None
    walker: Walker | None = None
    seconds: float = 0.0  # of what it does beside walking
    found: Plan | BaseException | None = None

    @property
    def walkers(self) -> list[Walker]:
        """Its own, and that of its scout."""
        return [walker for walker in (self.walker, self.scouted) if walker is not None]


def plan_together(
    pairs: Sequence[tuple[LayerwiseStrategy, PlanContext]], progress: Progress | None = None
) -> list[Plan | BaseException]:
    """For each strategy in its context the plan, or the exception that there is instead.

    Args:
        pairs: the contexts' probes may be of different samples; those of the same samples share walks.
        progress: told how many layers are finished, and of how many.
    """
    asked = [_Asked(strategy, context) for strategy, context in pairs]
    for each in asked:
        each.found = _own(each, _begin)
    groups: list[list[_Asked]] = []
    for each in asked:
        if each.found is None:
            same = next((group for group in groups if group[0].probe.same_as(each.probe)), None)
            groups.append([each]) if same is None else same.append(each)
    steps = _Steps(progress)
    for group in groups:
        _plan_group(group, steps)
    return [each.found for each in asked]  # type: ignore[misc]


def _begin(each: _Asked) -> Plan | None:
    """Refuse what cannot be met, answer what needs no look at the model; None where there is work to do."""
    strategy, context = each.strategy, each.context
    share, pattern = context.share, n_of_m(strategy.pattern)
    if share == 0:
        return strategy.build_plan(context)
    if pattern is not None and abs(share - (1 - pattern[0] / pattern[1])) > 1e-6:
        raise BudgetError(
            f"{strategy.name}: the pattern {strategy.pattern} zeroes exactly {1 - pattern[0] / pattern[1]:g} of the "
            f"weights, {context.budget} asks for another share: say --sparsity {1 - pattern[0] / pattern[1]:g}, or "
            "choose -P pattern=unstructured"
        )
    each.probe = context.need_probe().take(strategy.samples)
    return None


def _plan_group(group: list[_Asked], steps: _Steps) -> None:
    """Plans on the same samples: scouts first, then all thinners."""
    from prunebench.layerwise.held import Material, Room
    from prunebench.layerwise.linears import check_in_memory, not_linear
    from prunebench.layerwise.sweep import sweep

    probe: Probe = group[0].probe
    made: list[Material] = []

    def material() -> Material:
        if not made:
            import torch

            started = time.perf_counter()
            with torch.inference_mode():
                made.append(Material(probe.batches(), probe.loaded.device, Room(probe.memory)))
            made[0].seconds = time.perf_counter() - started
        return made[0]

    def walk(walkers: list[Walker]) -> None:
        reading = [walker for walker in walkers if walker.reads_inputs]
        try:
            found = material() if reading else None
        except (Exception, SystemExit) as error:  # of the samples: who needs none goes on
            for walker in reading:
                walker.error = error
            walkers, found = [walker for walker in walkers if walker not in reading], None
        try:
            sweep(probe, found, walkers, steps.step)
        except (Exception, SystemExit) as error:  # between layers: nobody's own doing
            for walker in walkers:
                walker.error = walker.error or error

    failed = _caught(check_in_memory, probe.loaded.layers)
    for each in group:
        each.found = failed
    if failed is not None:
        return
    scouts = _scouts(group)
    if scouts:
        steps.expect(probe.n_layers)
        walk(scouts)
    _remember(group)
    for each in group:
        each.found = each.found or _own(each, _make_thinner)
    ready = [each for each in group if each.walker is not None]
    parts = _that_fit([each.walker for each in ready if each.walker is not None], probe, material)
    steps.expect(probe.n_layers * len(parts))
    for part in parts:
        walk(part)
    others = not_linear(probe.loaded.layers) if ready else ""
    for each in ready:
        each.found = _own(each, _finish, others)
        if isinstance(each.found, Plan):
            each.found = _with_cost(each, each.found, made[0].seconds if made else 0.0)


def _scouts(group: list[_Asked]) -> list[Walker]:
    """Scouts that have to walk; of equal ones a single one, and none that has walked before in this run."""
    from prunebench.layerwise.walker import Walker

    new: list[tuple[Thinner, Walker]] = []
    for each in group:
        each.found = _own(each, _make_scout)
        if each.scout is None:
            continue
        known = [*each.probe.remembered.scouts, *new]
        each.scouted = next((walker for made, walker in known if made == each.scout), None)
        if each.scouted is None:
            # The one that walks is another one, so that this stays what it is known by.
            walking = _caught(each.strategy.scout, each.context)
            if not isinstance(walking, Thinner):
                each.found = walking or PlanError(f"{each.strategy.name}: scout() gives a scout only sometimes")
                continue
            each.scouted = Walker(walking, scouts=True)
            new.append((each.scout, each.scouted))
    return [walker for _, walker in new]


def _make_scout(each: _Asked) -> None:
    each.scout = each.strategy.scout(each.context)


def _remember(group: list[_Asked]) -> None:
    """Keep scouts that came through, for later plans of this run."""
    for each in group:
        walker = each.scouted
        if walker is None:
            continue
        if walker.error is not None:
            each.found = each.found or walker.error
        elif not any(walker is known for _, known in each.probe.remembered.scouts):
            each.probe.remembered.scouts.append((each.scout, walker))


def _make_thinner(each: _Asked) -> None:
    from prunebench.layerwise.walker import Walker

    scout = each.scouted.thinner if each.scouted is not None else None
    each.walker = Walker(each.strategy.thinner(each.context, scout), each.strategy.pattern)


def _that_fit(walkers: list[Walker], probe: Probe, material: Callable[[], Material]) -> list[list[Walker]]:
    """Walkers in groups whose hidden states fit into the probe's memory, at least one each.

    Those that go on from dense states share one stream, so all of them walk with the first group.
    """
    from prunebench.layerwise.linears import linear_modules

    streams = [walker for walker in walkers if walker.reads_inputs and walker.leaves]
    rest = [walker for walker in walkers if walker not in streams]
    size = len(streams)
    if len(streams) > 1:
        made = _caught(material)
        if isinstance(made, BaseException):
            return [walkers]  # the walk says it to each of them
        widths = [
            {(name.rpartition(".")[0], m.in_features) for name, m in linear_modules(layer).items()}
            for layer in probe.loaded.layers
        ]
        hessian = any("hessian" in walker.thinner.needs for walker in walkers)
        largest = max(sum(4 * width**2 for _, width in layer) for layer in widths) if hessian else 0
        dense = made.state_bytes if any(walker.reads_inputs for walker in rest) else 0
        left = probe.memory - made.nbytes - dense - largest
        size = max(1, left // max(1, made.state_bytes))
    parts = [streams[start : start + size] for start in range(0, len(streams), max(1, size))] or [[]]
    parts[0] = [*rest, *parts[0]]
    return [part for part in parts if part]


def _finish(each: _Asked, others: str) -> Plan:
    """The plan as far as its walker came."""
    walker, context, strategy = each.walker, each.context, each.strategy
    assert walker is not None
    for part in each.walkers:
        each.probe.counts.layer_forwards += part.layer_forwards
        each.probe.counts.token_layers += part.token_layers
    if walker.error is not None:
        raise walker.error
    if others:
        context.warnings.append(f"{strategy.name}: not thinned, as it is no linear module: {others}")
    if unseen := walker.unseen:
        more = f" and {len(unseen) - 3} more" if len(unseen) > 3 else ""
        context.warnings.append(f"{strategy.name}: no calibration token went through {', '.join(unseen[:3])}{more}")
    context.notes["layer_sparsity"] = [None if share != share else round(share, 6) for share in walker.shares]
    if any(part.reads_inputs for part in each.walkers):
        context.notes["calibration_samples"] = n_samples = each.probe.n_samples
        if n_samples < strategy.samples:
            context.warnings.append(
                f"{strategy.name}: {n_samples} calibration samples, samples={strategy.samples} asked for"
            )
    return strategy.build_plan(context, ops=walker.ops, tensors=walker.tensors)


def _with_cost(each: _Asked, plan: Plan, encoding: float) -> Plan:
    """The plan with its own time and all of what it shared, and the bytes that it held."""
    seconds = each.seconds + sum(part.seconds for part in each.walkers)
    seconds += encoding if any(part.reads_inputs for part in each.walkers) else 0.0
    cost = {"search_seconds": seconds, "peak_memory": max(part.peak for part in each.walkers)}
    return plan.model_copy(update={"cost": plan.cost.model_copy(update=cost)})


class _Steps:
    """Progress over several walks, in layers; how many there will be is known better and better."""

    def __init__(self, tell: Progress | None) -> None:
        self._tell, self._done, self._whole = tell, 0, 0

    def expect(self, layers: int) -> None:
        self._whole += layers

    def step(self) -> None:
        self._done += 1
        if self._tell is not None:
            self._tell(self._done, self._whole)


def _own(each: _Asked, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function makes of a plan on its way, or what it raises; on that plan's time."""
    started = time.perf_counter()
    found = _caught(function, each, *arguments)
    each.seconds += time.perf_counter() - started
    return found


def _caught(function: Callable[..., Any], *arguments: Any) -> Any:
    """What it returns, or what it raises."""
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:
        return error
