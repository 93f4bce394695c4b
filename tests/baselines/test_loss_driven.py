"""The loss-driven methods: the order of the naive loop from fewer passes, and the algebra of merging."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from prunebench_baselines.blockpruner import BlockPruner
from prunebench_baselines.finercut import FinerCut
from prunebench_baselines.laco import LaCo, Slot, collapse
from prunebench_baselines.laco import _Search as Search
from prunebench_baselines.mka import MKA, diffusion_map, npib
from prunebench_baselines.oracle_loo import LeaveOneOut
from prunebench_baselines.shortened_magnitude import ShortenedMagnitude
from prunebench_baselines.shortened_ppl import ShortenedPPL
from prunebench_baselines.shortened_taylor import ShortenedTaylor
from prunebench_baselines.sleb import SLEB

from prunebench import Budget, Plan, PlanContext, pruned
from prunebench.calibration.collect import calibrate
from prunebench.errors import BadParameter, BudgetError, CalibrationError, PlanError
from prunebench.ops import DropLayer, DropSublayer, Merge
from prunebench.probing import Probe, Remembered
from prunebench.probing.measures import mean_by_row, nll
from prunebench.testing.tiny import TinyLlama, TinyText

SAMPLES = TinyText().samples("calibration", 4)
LOSS_DRIVEN = (ShortenedPPL, SLEB, LeaveOneOut, ShortenedTaylor, ShortenedMagnitude, BlockPruner, FinerCut, LaCo, MKA)


class Deep(TinyLlama):
    """32 layers of width 16."""

    name = "deep-llama"

    def build(self):
        from transformers import LlamaConfig, LlamaForCausalLM

        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=32, num_attention_heads=2,
                num_key_value_heads=2, max_position_embeddings=128,
            )
        )  # fmt: skip


@pytest.fixture(scope="module")
def llama():
    return TinyLlama().load()


@pytest.fixture(scope="module")
def deep():
    return Deep().load()


def context(loaded, count, samples=SAMPLES, trace=None):
    budget = Budget(value=count, unit="layers")
    return PlanContext(model=loaded.info, budget=budget, trace=trace, probe=Probe(loaded, samples))


def naive_loss(loaded, ops, samples=SAMPLES):
    """Mean over all answer tokens of a really pruned model's loss, the whole of it run."""
    probe = Probe(loaded, samples)
    with torch.inference_mode(), pruned(loaded, Plan.of(loaded.info, ops)):
        found = []
        for batch in probe.batches():
            logits = loaded.adapter.forward(loaded, batch.inputs, logits_to_keep=batch.keep)
            found.append(mean_by_row(*nll(logits, batch.targets), len(batch.rows)).numpy())
    return float(np.concatenate(found).mean())  # answers of equally many tokens: samples and tokens weigh alike


def test_sleb_finds_the_naive_order_in_half_the_passes(deep):
    asked = context(deep, 7)
    plan = SLEB(samples=4).plan(asked)
    removed, passes = [], 0
    for _ in range(7):
        candidates = [layer for layer in range(1, 31) if layer not in removed]
        losses = [naive_loss(deep, [DropLayer(layer=x) for x in (*removed, layer)]) for layer in candidates]
        passes += len(candidates)
        removed.append(min(zip(losses, (-layer for layer in candidates), strict=True))[1] * -1)
    assert asked.notes["removal_order"] == removed
    assert plan.removed_layers == tuple(sorted(removed))
    assert passes == 189
    assert asked.probe.passes <= 90
    assert plan.provenance.notes["probe"] == {"samples": 4, "full_passes": round(asked.probe.passes, 3)}


def test_sleb_goes_on_from_the_answers_of_a_smaller_budget(llama):
    remembered = Remembered()
    for count in (1, 4):
        alone, shared = context(llama, count), context(llama, count)
        shared.probe = Probe(llama, SAMPLES, remembered=remembered)
        plans = [SLEB(samples=4).plan(asked) for asked in (alone, shared)]
        assert shared.notes["removal_order"] == alone.notes["removal_order"]
        assert plans[0].scores == plans[1].scores
        assert alone.probe.passes <= shared.probe.passes <= alone.probe.passes + 1  # the states in front, once more
    again = context(llama, 4)
    again.probe = Probe(llama, SAMPLES, remembered=remembered)
    SLEB(samples=4).plan(again)
    assert again.probe.passes == shared.probe.passes and again.probe.counts.recalled_seconds > 0


def test_sleb_without_room_for_states_still_stays_near(deep):
    samples = SAMPLES[:1]
    roomy, tight = context(deep, 7, samples), context(deep, 7, samples)
    tight.probe = Probe(deep, samples, memory=0)
    assert SLEB(samples=1).plan(roomy).removed_layers == SLEB(samples=1).plan(tight).removed_layers
    # Σ over rounds of the states on the way and what is behind each candidate; the first asks about all 32 layers.
    rounds = [sum(range(m - 1)) + m - 2 for m in range(32, 25, -1)]
    assert tight.probe.passes <= (sum(rounds) + 31 + 1) / 32
    assert roomy.probe.passes < tight.probe.passes


def test_shortened_ppl_costs_half_a_pass_per_layer(deep):
    asked = context(deep, 5)
    plan = ShortenedPPL(samples=4).plan(asked)
    losses = [naive_loss(deep, [DropLayer(layer=layer)]) for layer in range(32)]
    np.testing.assert_allclose(plan.scores.values, -np.array(losses), atol=1e-5)
    assert plan.removed_layers == tuple(sorted(np.argsort(losses, kind="stable")[:5].tolist()))
    assert asked.probe.passes == (31 * 32 / 2 + 31) / 32  # all that is behind each, and once what is in front
    removed = ShortenedPPL(samples=4, variant="released_code").plan(context(deep, 26)).removed_layers
    assert removed == tuple(range(4, 30))  # never the first four and the last two


def test_blockpruner_finds_the_naive_order(llama):
    asked = context(llama, 2)
    plan = BlockPruner(samples=4).plan(asked)
    removed = []
    for _ in range(4):
        free = [(x, part) for x in range(6) for part in ("attention", "mlp") if (x, part) not in removed]
        ops = [[DropSublayer(layer=x, part=p) for x, p in (*removed, each)] for each in free]
        losses = [naive_loss(llama, each) for each in ops]
        removed.append(free[int(np.argmin(losses))])
    assert asked.notes["removal_order"] == [f"{layer}.{part}" for layer, part in removed]
    gone = {(layer, part) for layer in plan.removed_layers for part in ("attention", "mlp")}
    assert gone | set(plan.removed_sublayers) == set(removed)
    with pruned(llama, plan):
        assert len(llama.layers) == 6 - len(plan.removed_layers)


@pytest.mark.parametrize("metric", ["kl", "cosine", "norm"])
def test_finercut_removes_a_part_that_does_nothing_first(metric):
    loaded = TinyLlama().load()
    loaded.layers[3].mlp.down_proj.weight.data.zero_()
    loaded.layers[1].self_attn.o_proj.weight.data.zero_()
    asked = context(loaded, 1)
    FinerCut(samples=4, metric=metric).plan(asked)
    assert set(asked.notes["removal_order"]) == {"3.mlp", "1.attention"}


def test_one_attention_stays(llama):
    plan = BlockPruner(samples=1).plan(context(llama, 5))
    assert len(plan.attention_layers) >= 1


def test_taylor_and_magnitude_take_the_layers_with_the_least_weight():
    loaded = TinyLlama().load()
    for parameter in loaded.layers[3].parameters():
        parameter.data.mul_(1e-3)
    for method in (ShortenedTaylor(samples=4, protect_first=1, protect_last=1), ShortenedMagnitude()):
        assert method.plan(context(loaded, 1)).removed_layers == (3,)
    values = np.array(ShortenedTaylor(samples=4, protect_first=1, protect_last=1).score(context(loaded, 1)))
    np.testing.assert_allclose(values, -Probe(loaded, SAMPLES).gradients()["layer"], rtol=1e-6)
    with pytest.raises(BudgetError, match="may go"):
        ShortenedTaylor(samples=4).plan(context(loaded, 1))  # 4 + 2 of 6 layers are protected


def test_the_oracle_asks_other_samples(llama):
    asked = context(llama, 1)
    plan = LeaveOneOut(samples=2).plan(asked)
    last = Probe(llama, asked.probe.samples[2:])
    np.testing.assert_allclose(plan.scores.values, -last.mean(last.losses(list(range(6)))), rtol=1e-6)
    assert not plan.provenance.warnings
    assert "held out" in LeaveOneOut(samples=4).plan(context(llama, 1)).provenance.warnings[0]


def test_laco_as_released_keeps_the_last_layer_of_a_window():
    """The running sum as subtrahend: θ + Σ_k (θ_{l+k} − running) leaves θ_{l+K}, whatever the weights."""
    theta = np.random.default_rng(0).normal(size=(4, 5))
    running = theta[0].copy()
    for k in range(1, 4):
        running = running + (theta[k] - running)
    np.testing.assert_allclose(running, theta[3], atol=1e-12)
    window = [Slot(layer, {layer: 1.0}) for layer in range(2, 6)]
    released, paper = collapse(window, "released_code"), collapse(window, "paper")
    assert (released.mix, released.norms, released.gone) == ({5: 1.0}, 2, {3, 4, 5})
    assert paper.mix == {2: -2.0, 3: 1.0, 4: 1.0, 5: 1.0}
    expected = theta[0] + sum(theta[k] - theta[0] for k in range(1, 4))
    np.testing.assert_allclose(sum(c * theta[k - 2] for k, c in paper.mix.items()), expected)
    names = {2: ("mlp.weight",), 5: ("mlp.weight", "gate")}  # those of the layer whose place it is
    merge = Merge(into=2, sources=(5,), coefficients=(1.0,), parameters=("mlp.weight",))
    assert released.operations(names) == [DropLayer(layer=3), DropLayer(layer=4), merge]
    again = collapse([Slot(1, {1: 1.0}), paper], "paper")  # a merged layer can be merged again
    assert (again.mix, again.layer, again.gone) == (dict(paper.mix), 1, {2, 3, 4, 5})


@pytest.mark.parametrize(
    ("alike", "budget", "asked", "left"),
    [
        # Nothing is alike: windows of 3 of 6 layers begin at 3, 2, 1 and 0.
        (lambda _slots: False, None, [(3, 4, 5), (2, 3, 4), (1, 2, 3), (0, 1, 2)], [0, 1, 2, 3, 4, 5]),
        # All is alike: the scan goes on below the end of what is left, and a window never reaches beyond it.
        (lambda _slots: True, None, [(3, 4, 5), (1, 2, 3), (0, 1)], [0]),
        # One layer is to go: the first window is of two.
        (lambda _slots: True, 1, [(3, 4)], [0, 1, 2, 3, 5]),
        # The top window is refused, the next one taken.
        (lambda slots: slots[-1].layer == 5, None, [(3, 4, 5), (2, 3, 4), (1, 2, 5), (0, 1, 2)], [0, 5]),
    ],
)
def test_laco_scans_from_the_top_down(llama, monkeypatch, alike, budget, asked, left):
    seen = []

    def noted(window, variant):
        seen.append(tuple(slot.layer for slot in window))
        return collapse(window, variant)

    monkeypatch.setattr("prunebench_baselines.laco.collapse", noted)
    search = Search(LaCo(window=3, samples=1), context(llama, 3))
    monkeypatch.setattr(search, "similarity", lambda slots: float(alike(slots)))
    assert [slot.layer for slot in search.scan(0.5, budget)] == left
    assert seen == asked


def test_laco_as_released_names_the_parameters_of_each_layer():
    loaded = TinyLlama().load()
    loaded.layers[3].mlp.register_parameter("extra", torch.nn.Parameter(torch.zeros(1)))
    others = Search(LaCo(samples=1, variant="released_code"), context(loaded, 1)).others
    assert set(others[3]) - set(others[0]) == {"mlp.extra"}
    assert {"self_attn.q_proj.weight", "mlp.up_proj.weight"} <= set(others[0])
    assert not any("norm" in name for names in others.values() for name in names)


def test_laco_takes_a_state_that_is_not_finite_for_unlike(llama, monkeypatch):
    search = Search(LaCo(window=3, samples=2), context(llama, 3))
    monkeypatch.setattr(search.probe, "similarity", lambda _plan: np.array([np.nan, 0.9]))
    assert search.similarity(search.dense) == pytest.approx((0.9 - 1.0) / 2)


@pytest.mark.parametrize("variant", ["paper", "released_code"])
def test_laco_meets_the_budget_and_says_its_threshold(llama, variant):
    asked = context(llama, 3)
    plan = LaCo(window=3, samples=4, variant=variant).plan(asked)
    assert len(plan.removed_layers) == 3
    threshold = plan.provenance.notes["threshold"]
    method = LaCo(window=3, samples=4, variant=variant)
    search = Search(method, context(llama, 3))
    assert len(search.scan(threshold, 3)) == 3  # of 6
    for steps in range(1, 1 + round((1.0 - threshold) / method.step)):  # no higher one meets the budget
        assert len(search.scan(threshold + steps * method.step, 3)) > 3
    before = {name: p.detach().clone() for name, p in llama.model.named_parameters()}
    with pruned(llama, plan):
        assert len(llama.layers) == 3
        for op in plan.ops:
            if isinstance(op, Merge) and variant == "released_code":
                position = plan.kept_layers.index(op.into)
                layer, source = llama.layers[position], f"model.layers.{op.sources[0]}."
                assert torch.equal(layer.mlp.up_proj.weight, before[f"{source}mlp.up_proj.weight"])
                own = f"model.layers.{op.into}.input_layernorm.weight"
                assert torch.equal(layer.input_layernorm.weight, before[own])
    assert all(torch.equal(p, before[name]) for name, p in llama.model.named_parameters())
    none = LaCo(window=3, samples=4, threshold=1.0).plan(context(llama, 3))
    assert none.is_empty and "removes 0 layers, 3 were asked for" in none.provenance.warnings[0]


def test_npib_and_the_diffusion_map():
    codes = np.array([[0, 0, 1, 1, 2, 2, 3, 3]])
    assert npib(codes, codes, 4) == pytest.approx(1.0)
    assert npib(codes, 3 - codes, 4) == pytest.approx(1.0)
    assert npib(np.array([[0, 0, 1, 1]]), np.array([[0, 1, 0, 1]]), 2) == pytest.approx(0.0)
    half = npib(codes, codes // 2, 4)  # I = log 2, H = log 4 and log 2
    assert half == pytest.approx(np.log(2) / np.sqrt(np.log(4) * np.log(2)))
    points = np.random.default_rng(1).normal(size=(12, 5))
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    kernel = np.exp(-((distances / 8.0) ** 0.5))
    walk = kernel / kernel.sum(1, keepdims=True)
    found = diffusion_map(points, 2, 8.0)
    values = np.sort(np.linalg.eigvals(walk).real)[::-1]
    assert values[0] == pytest.approx(1.0)
    for dimension in (0, 1):
        moved = walk @ found[:, dimension]
        np.testing.assert_allclose(moved, values[dimension + 1] * found[:, dimension], atol=1e-7)


def test_mka_merges_neighbours_and_as_released_drops_the_last(llama):
    samples = TinyText().samples("calibration", 16)
    trace = calibrate(llama, samples, MKA().requires())
    plan = MKA().plan(context(llama, 2, trace=trace))
    assert len(plan.removed_layers) == 2
    shared = MKA().similarity(context(llama, 1, trace=trace))
    first = max(range(5), key=lambda layer: (shared[layer, layer + 1], layer))
    op = MKA().plan(context(llama, 1, trace=trace)).ops[0]
    assert (op.into, op.sources) == (first, (first, first + 1))
    assert op.coefficients[0] == pytest.approx(1.0 / (1.0 + np.exp(-shared[first, first + 1])))  # 0.62 for 0.5
    for op in plan.ops:
        assert isinstance(op, Merge) and sum(op.coefficients) == pytest.approx(1.0)
        assert list(op.sources) == list(range(op.into, op.into + len(op.sources)))
    assert MKA(variant="released_code").plan(context(llama, 2)).removed_layers == (4, 5)
    with pytest.raises(CalibrationError, match="too few"):
        MKA().plan(context(llama, 2, trace=calibrate(llama, samples[:4], MKA().requires())))


@pytest.mark.parametrize("method", [BlockPruner(samples=1), LaCo(samples=1), SLEB(samples=1), FinerCut(samples=1)])
def test_nothing_asked_nothing_removed(llama, method):
    assert method.plan(context(llama, 0)).is_empty


def test_bad_input_is_said_in_a_line(llama):
    with pytest.raises(BudgetError, match="may go"):
        SLEB(samples=1).plan(context(llama, 5))  # both ends stay
    for method in (ShortenedPPL, SLEB, BlockPruner, LaCo, ShortenedTaylor):
        with pytest.raises(BadParameter, match="samples must be at least 1"):
            method(samples=0)
    with pytest.raises(PlanError, match="no probe"):
        SLEB().plan(PlanContext(model=llama.info, budget=Budget(value=0.5)))
    protected = llama.info.model_copy(update={"protected": (0, 2, 3)})
    asked = context(llama, 4)
    asked.model = protected
    for method in (BlockPruner(samples=1), MKA(variant="released_code"), LaCo(samples=1)):
        with pytest.raises(BudgetError):
            method.plan(asked)
    for bad in ({"window": 1}, {"step": 0.0}, {"interval": 0}):
        with pytest.raises(BadParameter):
            LaCo(**bad)
    with pytest.raises(BadParameter):
        SLEB(early_barrier=-1)
