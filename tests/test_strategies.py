"""The contract matrix: every registered strategy on the testbed and on a random tiny model."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from prunebench_baselines.bi import BlockInfluence
from prunebench_baselines.controls import EvenSpacing, FirstN, LastN, LastNKeepFinal, MiddleN, Random
from prunebench_baselines.llm_drop import LLMDrop
from prunebench_models.testbed.adapter import Testbed
from prunebench_models.testbed.data import TestbedDataset
from prunebench_topology.strategy import Topology

from prunebench import Budget, Plan, PlanContext, pruned
from prunebench.calibration.collect import calibrate
from prunebench.errors import BudgetError, CalibrationError, PruneBenchError, UnknownName
from prunebench.plugins import get_plugins
from tests.tiny_plugin import TinyLlama, TinyText

CONTROLS = ("dense", "random", "first_n", "last_n", "last_n_keep_final", "middle_n", "even_spacing")
SIMILARITY = ("bi", "angular", "llm_streamline", "domain_aware", "interlace", "llm_drop", "fuse")
STRATEGIES = ("topo", *CONTROLS, *SIMILARITY)
SCORED = tuple(name for name in STRATEGIES if name not in ("dense", "even_spacing"))
MORE_THAN_DROPPING = {"mka", "replaceme", "short_lvlm"}
MODELS = {"testbed": (Testbed, TestbedDataset), "tiny-llama": (TinyLlama, TinyText)}


@pytest.fixture(scope="module", params=sorted(MODELS))
def case(request):
    """(loaded model, trace with everything the strategies read, inputs of a few questions)."""
    adapter, dataset = MODELS[request.param]
    loaded = adapter().load()
    needed = frozenset().union(*(get_plugins().get("strategies", name)().requires() for name in STRATEGIES))
    trace = calibrate(loaded, dataset().samples("calibration", 80), needed)
    with torch.inference_mode():
        inputs = loaded.encode(dataset().samples("test", 4))
    return loaded, trace, inputs


def context(case, sparsity, seed=0):
    loaded, trace, _ = case
    return PlanContext(model=loaded.info, budget=Budget(value=sparsity), trace=trace, seed=seed)


def test_the_matrix_names_every_strategy_that_reads_a_trace_alone():
    """Those that ask the model itself, and those that do more than drop, have matrices of their own."""
    found = {entry.value.name: entry.value for entry in get_plugins().registry("strategies").values()}
    ours = {
        name for name, cls in found.items() if cls.__module__.startswith(("prunebench_baselines", "prunebench_top"))
    }
    assert {name for name in ours if not found[name]().needs_model} - MORE_THAN_DROPPING == set(STRATEGIES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_contract(case, name):
    """Exact budget, finite scores for every layer, a plan that replays, runs, and leaves the model as it was."""
    loaded, _, inputs = case
    strategy = get_plugins().get("strategies", name)()
    before = {key: value.clone() for key, value in loaded.model.state_dict().items()}
    with torch.inference_mode():
        dense = loaded.adapter.forward(loaded, inputs)
    for sparsity in (0.0, 0.25) if name == "interlace" else (0.0, 0.25, 0.5):  # at most one layer of three goes
        asked = context(case, sparsity)
        plan = strategy.plan(asked)
        count = 0 if name == "dense" else asked.n_remove
        assert len(plan.removed_layers) == len(set(plan.removed_layers)) == count
        assert plan.budget.achieved.layers_removed == count
        assert plan.kind == "layers"
        assert plan.provenance.strategy == strategy.name
        assert plan.provenance.params == dataclasses.asdict(strategy)
        if plan.scores is not None:
            assert len(plan.scores.values) == loaded.info.n_layers
            assert np.isfinite(plan.scores.values).all()
        assert Plan.from_json(plan.to_json()) == plan
        assert strategy.plan(context(case, sparsity)).digest == plan.digest
        with pruned(loaded, plan), torch.inference_mode():
            logits = loaded.adapter.forward(loaded, inputs)
            assert torch.isfinite(logits).all()
            assert torch.equal(logits, dense) == (count == 0)
    after = loaded.model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("name", SCORED)
def test_protected_layers_of_the_architecture_stay(case, name):
    loaded, trace, _ = case
    info = loaded.info.model_copy(update={"protected": (0, 1, loaded.info.n_layers - 1)})
    share = 0.15 if name == "interlace" else 0.5
    asked = PlanContext(model=info, budget=Budget(value=share), trace=trace)
    assert not set(get_plugins().get("strategies", name)().plan(asked).removed_layers) & set(info.protected)


def test_controls_by_their_definition(case):
    n_layers = case[0].info.n_layers
    half = context(case, 0.5)
    assert FirstN().plan(half).removed_layers == tuple(range(n_layers // 2))
    assert LastN().plan(half).removed_layers == tuple(range(n_layers - n_layers // 2, n_layers))
    assert LastNKeepFinal().plan(half).removed_layers == tuple(range(n_layers - n_layers // 2 - 1, n_layers - 1))
    start = (n_layers - n_layers // 2 + 1) // 2  # of an odd number of layers that stay, one more before the gap
    assert MiddleN().plan(half).removed_layers == tuple(range(start, start + n_layers // 2))
    even = EvenSpacing().plan(half).removed_layers
    assert {b - a for a, b in itertools.pairwise(even)} == {2}
    draws = {Random().plan(context(case, 0.5, seed)).removed_layers for seed in range(5)}
    assert len(draws) > 1
    assert Random().plan(context(case, 0.5, 3)).digest == Random().plan(context(case, 0.5, 3)).digest


def test_random_is_uniform():
    """Each layer is drawn with probability n / L: within 5 standard deviations over many seeds."""
    loaded = TinyLlama().load()
    draws, counts = 3000, np.zeros(6)
    for seed in range(draws):
        chosen = Random().plan(PlanContext(model=loaded.info, budget=Budget(value=2, unit="layers"), seed=seed))
        counts[list(chosen.removed_layers)] += 1
    assert np.abs(counts / draws - 1 / 3).max() < 5 * np.sqrt((1 / 3) * (2 / 3) / draws)


def test_bi_equals_a_plain_computation(case):
    """Mean over all tokens of cos(h_l, h_{l+1}) in float64, from the definition."""
    from prunebench.calibration.collect import hidden_states

    loaded, _, _ = case
    dataset = MODELS[loaded.info.name][1]()
    samples = dataset.samples("calibration", 10, seed=7)
    trace = calibrate(loaded, samples, frozenset({"token_cosine"}), batch_size=4)
    total, tokens = np.zeros(loaded.info.n_layers), 0
    for sample in samples:
        with torch.inference_mode():
            states = hidden_states(loaded, loaded.encode([sample]))[:, 0].double().numpy()
        inner = (states[:-1] * states[1:]).sum(-1)
        total += (inner / np.linalg.norm(states[:-1], axis=-1) / np.linalg.norm(states[1:], axis=-1)).sum(1)
        tokens += states.shape[1]
    scores = BlockInfluence().score(PlanContext(model=loaded.info, budget=Budget(value=0.5), trace=trace))
    np.testing.assert_allclose(scores, total / tokens, atol=1e-5)


def test_bi_removes_an_identity_layer_first():
    loaded = TinyLlama().load()
    for name in ("o_proj", "down_proj"):
        for module_name, module in loaded.layers[3].named_modules():
            if module_name.endswith(name):
                module.weight.data.zero_()
    trace = calibrate(loaded, TinyText().samples("calibration", 20), frozenset({"token_cosine"}))
    asked = PlanContext(model=loaded.info, budget=Budget(value=1, unit="layers"), trace=trace)
    assert BlockInfluence().plan(asked).removed_layers == (3,)


@pytest.mark.parametrize("part", ["attention", "mlp"])
def test_llm_drop_removes_parts_of_layers(case, part):
    """The sub-layers that turn the residual stream least, computed from the model; the others stay."""
    loaded, _, inputs = case
    samples = MODELS[loaded.info.name][1]().samples("calibration", 12)
    strategy = LLMDrop(part=part)
    asked = context((loaded, calibrate(loaded, samples, strategy.requires()), inputs), 0.25)
    plan = strategy.plan(asked)
    found = np.array(plan.scores.values)
    order = sorted(range(len(found)), key=lambda layer: (-found[layer], -layer))
    assert plan.removed_sublayers == tuple((layer, part) for layer in sorted(order[: asked.n_remove]))
    assert plan.kind == strategy.kind == "sublayers" and LLMDrop().kind == "layers"
    assert plan.removed_layers == () and plan.budget.achieved.sublayers_removed == asked.n_remove
    assert (plan.budget.achieved.kv_bytes_per_token > 0) == (part == "attention")
    with torch.inference_mode():
        dense = loaded.adapter.forward(loaded, inputs)
        with pruned(loaded, plan):
            assert not torch.equal(loaded.adapter.forward(loaded, inputs), dense)
        assert torch.equal(loaded.adapter.forward(loaded, inputs), dense)


VARIANTS = [
    {"select": "contiguous"},
    {"select": "greedy"},
    {"select": "global_threshold"},
    {"points": "mean"},
    {"points": "aggregator"},
    {"alpha": 0.5},
    {"alpha": 2.0},
    {"k": 5},
    {"metric": "cosine"},
    {"mode": "births"},
    {"epi": False},
    {"zigzag": False},
    {"p": "0"},
    {"p": "both"},
    {"sigma": 0.0},
    {"bootstrap": 3},
]


@pytest.mark.parametrize("params", VARIANTS, ids=str)
def test_topology_options(case, params):
    """Every option gives a full plan that keeps the first and the last layer."""
    loaded, trace, _ = case
    strategy = Topology(**params)
    if not trace.has(strategy.requires()):
        samples = MODELS[loaded.info.name][1]().samples("calibration", 80)
        trace = calibrate(loaded, samples, strategy.requires())
    asked = PlanContext(model=loaded.info, budget=Budget(value=0.5), trace=trace)
    plan = strategy.plan(asked)
    assert len(plan.removed_layers) == loaded.info.n_layers // 2
    assert not {0, loaded.info.n_layers - 1} & set(plan.removed_layers)
    if params.get("select") == "contiguous":
        assert plan.removed_layers == tuple(range(plan.removed_layers[0], plan.removed_layers[-1] + 1))


def test_topology_scores_are_the_engine_s_on_layer_outputs(case):
    """The strategy hands the engine one point per sample and layer, layer first, and takes its scores as they are."""
    from prunebench_topology.scoring import topology_scores

    loaded, trace, _ = case
    expected = topology_scores(np.swapaxes(trace["points.last"], 0, 1), k=7, alpha=2.0).scores
    plan = Topology(k=7, alpha=2.0).plan(context(case, 0.5))
    np.testing.assert_allclose(plan.scores.values, expected)
    inside = sorted(range(1, loaded.info.n_layers - 1), key=lambda layer: (-expected[layer], -layer))
    assert set(plan.removed_layers) == set(inside[: loaded.info.n_layers // 2])


def test_topology_engine_dionysus_gives_the_same_plan(case):
    pytest.importorskip("dionysus")
    ours = Topology(k=10).plan(context(case, 0.5))
    theirs = Topology(k=10, engine="dionysus").plan(context(case, 0.5))
    assert ours.digest == theirs.digest
    np.testing.assert_allclose(ours.scores.values, theirs.scores.values)


def test_topology_epsilon_reproduces_the_plan(case):
    """The paper's rule with an epsilon from the stated interval removes the same layers."""
    loaded = case[0]
    plan = Topology(k=7).plan(context(case, 0.5))
    interval = plan.provenance.notes["epsilon"]
    if interval is None:
        pytest.skip("tied scores: no threshold gives this plan")
    values = np.array(plan.scores.values)
    free = np.arange(1, loaded.info.n_layers - 1)
    for epsilon in (interval[0], (interval[0] + interval[1]) / 2):
        assert set(free[values[free] > epsilon * values.max()]) == set(plan.removed_layers)


def test_topology_falls_back_with_a_warning_where_there_is_no_loop(case):
    """With k = N - 1 every graph is complete: no H1 at all."""
    loaded, trace, _ = case
    asked = PlanContext(model=loaded.info, budget=Budget(value=0.5), trace=trace)
    plan = Topology(k=79).plan(asked)
    assert asked.warnings and asked.warnings[0].startswith("topo: ")
    assert len(plan.removed_layers) == loaded.info.n_layers // 2


def test_too_few_samples_for_k(case):
    with pytest.raises(CalibrationError, match="80 calibration samples are too few for k=80"):
        Topology(k=80).plan(context(case, 0.5))


def test_too_much_asked(case):
    loaded, trace, _ = case
    count = loaded.info.n_layers - 1
    asked = PlanContext(model=loaded.info, budget=Budget(value=count, unit="layers"), trace=trace)
    with pytest.raises(BudgetError, match=f"{count} layers asked for, but only {count - 1} of"):
        Topology().plan(asked)
    with pytest.raises(BudgetError, match="at least one has to stay"):
        BlockInfluence().plan(
            PlanContext(model=loaded.info, budget=Budget(value=count + 1, unit="layers"), trace=trace)
        )


def test_parameters_are_checked():
    with pytest.raises(UnknownName, match="did you mean 'independent'"):
        BlockInfluence.from_params({"select": "independant"})
    for params in ({"k": "0"}, {"k": "many"}, {"alpha": "x"}, {"metric": "manhattan"}, {"sigma": "-1"}):
        with pytest.raises(PruneBenchError, match=f"topo: {next(iter(params))}="):
            Topology.from_params(params)
