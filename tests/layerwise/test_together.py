"""Plans made together: budgets, scouts, groups that fit into memory, what each is charged, and plans that wait."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch import nn

from prunebench import Budget, Plan, pruned
from prunebench.config import Cell
from prunebench.errors import BadParameter, BudgetError, CalibrationError, PlanError
from prunebench.grid import Job
from prunebench.kinds import n_of_m, share_words
from prunebench.layerwise import LayerwiseStrategy, Thinned, Thinner
from prunebench.layerwise import together as module
from prunebench.layerwise.held import nbytes
from prunebench.layerwise.together import plan_together
from prunebench.layerwise.waiting import Waiting
from prunebench.ops import Mask
from prunebench.plan_parts import PlanCost
from prunebench.probing import Remembered
from prunebench.strategy import PlanContext
from prunebench.testing.tiny import TinyLlama, TinyMedia
from tests.layerwise.walks import RowWise, Smallest, context_for, layers_that_run

SAMPLES = TinyMedia().samples("calibration", 6)


@pytest.fixture(scope="module")
def llama():
    return TinyLlama().load()


@dataclass
class Scout(Thinner):
    """Looks at the largest input of every layer."""

    depth: int = 1
    needs: frozenset = frozenset({"squares"})
    sequential = False
    found: dict = field(default_factory=dict)

    def thin(self, layer):
        self.found[layer.number] = max(float(view.squares.max()) for view in layer.linears.values())
        return {}


@dataclass(frozen=True)
class Scouted(Smallest):
    """score = |W| √squares, more of the layers with small inputs"""

    name = "scouted"
    depth: int = 1
    seen: list = field(default_factory=list, compare=False, repr=False)

    def scout(self, context):
        return Scout(self.depth)

    def thinner(self, context, scout):
        self.seen.append(scout)
        assert sorted(scout.found) == list(range(6))
        return super().thinner(context, scout)


@dataclass(frozen=True)
class Blind(LayerwiseStrategy):
    """score = |W|"""

    name = "blind"
    weights_only = True
    fails: bool = False

    def thinner(self, context, scout):
        if self.fails:
            raise ValueError("not today")
        return RowWise(context.share, sequential=False, needs=())


@dataclass(frozen=True)
class Pairs(Smallest):
    """score = column"""

    name = "pairs"
    pattern: str = "2:4"

    def thinner(self, context, scout):
        class EverySecond(RowWise):
            def keep(self, view):
                keep = torch.zeros_like(view.weight, dtype=torch.bool)
                keep[:, ::2] = True
                return keep

        return EverySecond(0.5)


def planned(*pairs):
    found = plan_together(pairs)
    for plan in found:
        if isinstance(plan, BaseException):
            raise plan
    return found


# -- budgets -----------------------------------------------------------------------------------------------------------


def test_a_plan_says_what_it_is(llama):
    context = context_for(llama, SAMPLES)
    (plan,) = planned((Smallest(), context))
    weights = 6 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48)
    assert plan.kind == "weights" and plan.removed_layers == () and plan.scores is None
    assert plan.budget.achieved.params_zeroed == weights // 2 and plan.budget.layers_asked == 0
    assert plan.provenance.notes == {"layer_sparsity": [0.5] * 6, "calibration_samples": 6}
    assert plan.cost.search_seconds > 0 and plan.cost.peak_memory > 0
    assert all(isinstance(op, Mask) and op.pattern == "unstructured" for op in plan.ops)
    assert Plan.from_json(plan.to_json()).cost == plan.cost
    alone = Smallest().plan(context_for(llama, SAMPLES))
    assert alone.digest == plan.digest
    with pruned(llama, plan):
        zeros = [(m.weight == 0).sum().item() / m.weight.numel() for m in llama.layers.modules() if _linear(m)]
    assert zeros == [0.5] * 42
    assert not any((m.weight == 0).any() for m in llama.layers.modules() if _linear(m))


def test_fewer_samples_than_asked_for_are_said(llama):
    def warned(strategy):
        context = context_for(llama, SAMPLES)
        planned((strategy, context))
        return context.warnings

    assert warned(Smallest(samples=7)) == ["smallest: 6 calibration samples, samples=7 asked for"]
    assert warned(Smallest(samples=6)) == warned(Smallest(samples=2)) == []
    assert warned(Blind()) == []  # it reads none


def _linear(module):
    return isinstance(module, nn.Linear)


def test_nothing_asked_is_an_empty_plan_of_the_declared_kind(llama):
    with layers_that_run(llama) as ran:
        plans = planned(*((kind(), context_for(llama, SAMPLES, 0.0)) for kind in (Smallest, Pairs, Scouted)))
    assert not ran and all(plan.is_empty and plan.cost.peak_memory is None for plan in plans)
    assert [plan.kind for plan in plans] == ["weights", "2:4", "weights"]
    assert {share_words(plan, llama.info) for plan in plans} == {"0 parameters zeroed = 0.0 % of the language model's"}


def test_a_pattern_has_one_budget(llama):
    (plan,) = planned((Pairs(), context_for(llama, SAMPLES, 0.5)))
    assert plan.kind == "2:4" and {op.pattern for op in plan.ops} == {"2:4"}
    for budget in (0.25, 0.6, Budget(value=2, unit="layers")):
        (error,) = plan_together([(Pairs(), context_for(llama, SAMPLES, budget))])
        assert isinstance(error, BudgetError) and "\n" not in str(error)
        assert "2:4 zeroes exactly 0.5 of the weights" in str(error) and "--sparsity 0.5" in str(error)
    (same,) = planned((Pairs(), context_for(llama, SAMPLES, Budget(value=3, unit="layers"))))
    assert same.digest == plan.digest
    assert "--sparsity 0.75" in str(plan_together([(Pairs(pattern="1:4"), context_for(llama, SAMPLES))])[0])
    for text in ("4:2", "2:2", "0:4", "2-4", ""):
        assert n_of_m(text) is None
        with pytest.raises(BadParameter, match="pattern is unstructured or N:M"):
            Pairs(pattern=text)
    assert (Pairs().plan_kind, Pairs(pattern="unstructured").plan_kind, Smallest.kind) == ("2:4", "weights", "weights")


def test_shares():
    info = TinyLlama().load().info
    assert PlanContext(info, Budget(value=0.3)).share == 0.3
    assert PlanContext(info, Budget(value=2, unit="layers")).share == 2 / 6
    with pytest.raises(BudgetError):
        _ = PlanContext(info, Budget(value=6, unit="layers")).share


def test_a_high_share_is_no_number_of_layers(llama):
    (plan,) = planned((Smallest(), context_for(llama, SAMPLES, 0.95)))  # of 6 layers that would be all
    assert plan.budget.achieved.params_zeroed > 40_000


def test_old_costs_read_as_they_did():
    old = (
        '{"forward_passes":1,"backward_passes":0,"calibration_tokens":2,"calibration_seconds":0.5,"search_seconds":0.1}'
    )
    assert PlanCost.model_validate_json(old).model_dump_json() == old
    assert PlanCost(peak_memory=7).model_dump()["peak_memory"] == 7


# -- scouts ------------------------------------------------------------------------------------------------------------


def test_equal_scouts_walk_once_in_a_run_and_are_charged_to_all_that_ask(llama):
    remembered = Remembered()

    def context():
        return context_for(llama, SAMPLES, remembered=remembered, batch_size=6)

    strategies = [Scouted(), Scouted(sequential=False), Scouted(depth=2)]
    contexts = [context() for _ in strategies]
    with layers_that_run(llama) as ran:
        plans = planned(*zip(strategies, contexts, strict=True))
        assert len(ran) == 6 + 6 + 2 * (1 + 4 * 2 + 1), "both scouts in one walk; then dense; two leave at layer 0"
        ran.clear()
        later = context()
        (again,) = planned((Scouted(), later))
        assert len(ran) == 11
    first, second, other = (strategy.seen[0] for strategy in strategies)
    assert first is second and first is not other and first.found == other.found
    assert again.digest == plans[0].digest
    assert [c.probe.counts.layer_forwards for c in (*contexts, later)] == [17 * 6, 12 * 6, 17 * 6, 17 * 6]
    assert again.cost.search_seconds > 0


def test_a_scout_that_fails_or_thins_fails_those_that_asked(llama):
    @dataclass
    class Wrong(Scout):
        error: str = ""

        def thin(self, layer):
            if self.error:
                raise ValueError(self.error)
            return {"mlp.up_proj": Thinned(layer.linears["mlp.up_proj"].weight > 0)}

    @dataclass(frozen=True)
    class Asks(Scouted):
        """= nothing"""

        error: str = ""

        def scout(self, context):
            return Wrong(error=self.error)

    remembered = Remembered()

    def context():
        return context_for(llama, SAMPLES, remembered=remembered)

    found = plan_together([(s, context()) for s in (Asks(), Asks(error="no"), Smallest(), Asks(error="no"))])
    assert isinstance(found[0], PlanError) and "may only look" in str(found[0])
    assert isinstance(found[1], ValueError) and found[1] is found[3]
    assert isinstance(found[2], Plan)
    assert not remembered.part((128, False)).scouts


# -- groups ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("states", "walks"), [(1000, 1), (3, 2), (2, 3), (-10, 3)])
def test_as_many_walk_together_as_fit(llama, states, walks, monkeypatch):
    from prunebench.layerwise import sweep as room

    calls, real = [], room.sweep
    monkeypatch.setattr(room, "sweep", lambda *a, **k: calls.append(len(a[2])) or real(*a, **k))
    with torch.inference_mode():
        batches = list(context_for(llama, SAMPLES).probe.batches())
    memory = sum(nbytes(batch.inputs) + states * nbytes(batch.inputs.embeds) for batch in batches)
    strategies = [Smallest(), Smallest(), Smallest(sequential=False), Smallest(), Blind()]
    plans = planned(*((s, context_for(llama, SAMPLES, memory=max(0, memory))) for s in strategies))
    assert len(calls) == walks and sum(calls) == 5
    assert len({plans[i].digest for i in (0, 1, 3)}) == 1
    costs = [plan.cost.peak_memory for plan in plans]
    assert costs[0] == costs[1] == costs[3] and len({*costs}) == 2


def test_other_samples_are_another_walk_and_no_sample_is_needed_without_statistics(llama):
    few, all_of_them = Smallest(samples=2), Smallest()
    plans = planned(
        (few, context_for(llama, SAMPLES)),
        (all_of_them, context_for(llama, SAMPLES)),
        (Blind(), context_for(llama, [])),
    )
    assert [plan.provenance.notes.get("calibration_samples") for plan in plans] == [2, 6, None]
    assert plans[0].digest != plans[1].digest
    assert plans[2].cost.forward_passes == 0
    nothing, blind = plan_together([(Smallest(), context_for(llama, [])), (Blind(), context_for(llama, []))])
    assert isinstance(nothing, CalibrationError) and "no calibration samples" in str(nothing)
    assert blind.digest == plans[2].digest


def test_one_that_fails_leaves_the_others(llama):
    def context(budget=0.5):
        return context_for(llama, SAMPLES, budget)

    found = plan_together([(Blind(fails=True), context()), (Smallest(), context()), (Pairs(), context(0.25))])
    assert isinstance(found[0], ValueError) and isinstance(found[2], BudgetError)
    assert found[1].digest == Smallest().plan(context()).digest
    with pytest.raises(ValueError, match="not today"):
        Blind(fails=True).plan(context())


def test_progress_counts_layers_of_all_walks(llama):
    told = []
    plan_together(
        [(Scouted(), context_for(llama, SAMPLES)), (Blind(), context_for(llama, []))], lambda *n: told.append(n)
    )
    assert [done for done, _ in told] == list(range(1, 19)) and told[-1] == (18, 18)
    assert all(done <= whole for done, whole in told)


def test_what_cannot_be_thinned_is_said(llama):
    loaded = TinyLlama().load()
    loaded.layers[2].conv = nn.Conv1d(4, 4, 3)
    loaded.layers[3].mlp.spare = nn.Linear(32, 8)
    context = context_for(loaded, SAMPLES)
    (plan,) = planned((Smallest(), context))
    assert context.warnings == [
        "smallest: not thinned, as it is no linear module: conv (Conv1d) in layer 2",
        "smallest: no calibration token went through mlp.spare of layer 3",
        "smallest: 6 calibration samples, samples=128 asked for",
    ]
    assert list(plan.provenance.warnings) == context.warnings
    for layer in loaded.layers:
        for name, part in list(layer.named_modules()):
            if isinstance(part, nn.Linear):
                setattr(layer.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], nn.Identity())
    (error,) = plan_together([(Smallest(), context_for(loaded, SAMPLES))])
    assert isinstance(error, CalibrationError) and "only conv (Conv1d) in layer 2" in str(error)
    loaded.layers[1].to("meta")
    (error,) = plan_together([(Blind(), context_for(loaded, SAMPLES))])
    assert isinstance(error, CalibrationError) and "offloaded" in str(error)


# -- a run's plans -----------------------------------------------------------------------------------------------------


def job(strategy, sparsity=0.5, seed=0, **cell):
    values = {"model": "tiny", "model_revision": "1", "dtype": "float32", "strategy": strategy.name, "suite": "s"}
    values |= {"suite_digest": "d", "strategy_version": "1", "budget": Budget(value=sparsity), "seed": seed}
    return Job(Cell(**{**values, **cell}), strategy)


def test_waiting_plans_are_made_in_one_go_and_freed_when_they_are_taken(llama, monkeypatch):
    groups = []
    monkeypatch.setattr(
        module, "plan_together", lambda pairs, progress=None: groups.append(len(pairs)) or plan_together(pairs)
    )

    def context_of(each):
        return context_for(llama, SAMPLES, each.cell.budget)

    waiting = Waiting()
    jobs = [job(Smallest()), job(Smallest(), 0.25), job(Blind(fails=True)), job(Smallest(), limit=3), job(Blind())]
    from prunebench_baselines.bi import BlockInfluence

    waiting.expect([*jobs, job(BlockInfluence())])
    plan, context = waiting.take(jobs[0], context_of)
    assert groups == [4], "the fourth asks for the same plan as the first"
    assert waiting.has(jobs[3]) and waiting.has(jobs[2])
    with pytest.raises(ValueError, match="not today"):
        waiting.take(jobs[2], context_of)
    assert not waiting.has(jobs[2])
    context.warnings.append("mine alone")
    again, other = waiting.take(jobs[3], context_of)
    assert again is plan and other.warnings == context.warnings[:-1] and not waiting.has(jobs[0])
    assert waiting.take(jobs[4], context_of)[0].kind == "weights"
    assert waiting.take(jobs[1], context_of)[0].budget.asked.value == 0.25
    assert not (waiting._made or waiting._jobs or waiting._left) and groups == [4]
    waiting.take(job(Blind(), 0.75), context_of)  # nobody announced it
    assert groups == [4, 1] and not waiting._made


def test_a_context_that_cannot_be_made_fails_its_own_cell(llama):
    waiting, jobs = Waiting(), [job(Smallest()), job(Blind())]
    waiting.expect(jobs)

    def context_of(each):
        if each is jobs[0]:
            raise CalibrationError("no such statistic")
        return context_for(llama, SAMPLES)

    assert waiting.take(jobs[1], context_of)[0].kind == "weights"
    with pytest.raises(CalibrationError, match="no such statistic"):
        waiting.take(jobs[0], context_of)


def test_encoding_is_on_the_time_of_all_that_read_inputs(llama):
    def slow(samples):
        time.sleep(0.1)
        return llama.encode(samples)

    strategies = [Smallest(), Smallest(sequential=False), Blind()]
    plans = planned(*((s, context_for(llama, SAMPLES, encode=slow, batch_size=6)) for s in strategies))
    assert [plan.cost.search_seconds > 0.1 for plan in plans[:2]] == [True, True]
    assert plans[2].cost.search_seconds < min(plan.cost.search_seconds for plan in plans[:2])


def test_an_interrupt_leaves_all_plans_to_be_made(llama, monkeypatch):
    waiting, jobs = Waiting(), [job(Smallest()), job(Blind())]
    waiting.expect(jobs)

    def stop(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "plan_together", stop)
        with pytest.raises(KeyboardInterrupt):
            waiting.take(jobs[0], lambda each: context_for(llama, SAMPLES))
    plans = [waiting.take(each, lambda each: context_for(llama, SAMPLES))[0] for each in jobs]
    assert all(isinstance(plan, Plan) for plan in plans)


def test_layer_sparsity_is_what_each_layer_lost(llama):
    @dataclass(frozen=True)
    class Deeper(Smallest):
        """score = depth"""

        name = "deeper"

        def thinner(self, context, scout):
            class More(RowWise):
                def thin(self, layer):
                    self.share = layer.number / 8
                    return super().thin(layer)

            return More(0.0)

    (plan,) = planned((Deeper(), context_for(llama, SAMPLES)))
    assert plan.provenance.notes["layer_sparsity"] == [round(n / 8, 6) for n in range(6)]
    assert [op.layer for op in plan.ops] == [1, 2, 3, 4, 5], "a layer that stays as it is needs no operation"
    assert np.isclose(plan.budget.achieved.params_zeroed, sum(op.zeros for op in plan.ops))
    assert replace(Deeper(), samples=3) != Deeper()
