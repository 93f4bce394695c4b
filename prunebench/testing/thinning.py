"""What plans that make weights zero have to keep to, beside what all plans do."""

from __future__ import annotations

from prunebench.budget import Budget
from prunebench.kinds import is_pattern, is_thinned
from prunebench.layerwise.linears import linear_modules
from prunebench.plan import Plan
from prunebench.surgery import pruned
from prunebench.testing.plans import StrategyCase
from prunebench.testing.report import Checklist, Failed

__all__ = ["ON_THINNED", "thins"]

ON_THINNED = Checklist()


def thins(case: StrategyCase) -> bool:
    """Whether the strategy declares that it makes weights zero; one that cannot be made declares nothing."""
    try:
        return is_thinned(case.strategy.plan_kind)
    except Exception:  # the checks of the class say what is wrong
        return False


@ON_THINNED
def zeros(case: StrategyCase) -> None:
    """Thinning makes as many weights of linear modules zero as were asked for, more at more, and changes no other."""
    kind = case.strategy.plan_kind
    asked = [case.usual.value] if is_pattern(kind) else [0.25, 0.5, 0.75]
    before = 0
    for share in asked:
        plan = case.plan(Budget(value=share))
        if plan.removed_layers or plan.removed_sublayers:
            raise Failed(f"layers {list(plan.removed_layers)} or parts of layers go: a plan of kind {kind} keeps all")
        count = plan.budget.achieved.params_zeroed if plan.budget is not None else 0
        _check_zeros(case, plan, share, count)
        if count <= before:
            raise Failed(f"at sparsity {share} {count} weights become zero, and {before} at a smaller one")
        before = count


def _check_zeros(case: StrategyCase, plan: Plan, share: float, count: int) -> None:
    """The number that a plan states is met in the model, and comes to what was asked for."""
    layers = case.bench.loaded.layers
    linear = [{f"{name}.weight": module.weight for name, module in linear_modules(layer).items()} for layer in layers]
    total = sum(weight.numel() for found in linear for weight in found.values())
    # Whole numbers of weights in each row may lie off by one each.
    slack = 0.01 * total + sum(len(weight) for found in linear for weight in found.values())
    if abs(count - share * total) > slack:
        raise Failed(f"sparsity {share} of {total} weights is {share * total:.0f}, the plan makes {count} zero")
    old = [dict(layer.named_parameters()) for layer in layers]
    already = sum(int((weight == 0).sum()) for found in linear for weight in found.values())
    with pruned(case.bench.loaded, plan):
        new = [dict(layer.named_parameters()) for layer in case.bench.loaded.layers]
        found = sum(int((mine[name] == 0).sum()) for mine, names in zip(new, linear, strict=True) for name in names)
    if not count <= found <= count + already:
        raise Failed(f"the plan says that {count} weights become zero, in the model there are {found}")
    for number, (mine, theirs, names) in enumerate(zip(old, new, linear, strict=True)):
        for name in mine:
            if name not in names and theirs.get(name) is not mine[name]:
                raise Failed(f"{name} of layer {number} changes, which is no weight of a linear module")
