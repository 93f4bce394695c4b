"""ReplaceMe on models: where a map can be exact the folded model is the dense one, and elsewhere the error shrinks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from prunebench_baselines.angular import Angular
from prunebench_baselines.replaceme import ReplaceMe
from prunebench_models.testbed.adapter import Testbed
from prunebench_models.testbed.data import TestbedDataset

from prunebench.budget import Budget
from prunebench.calibration.collect import calibrate
from prunebench.errors import BadParameter, CalibrationError
from prunebench.ops import DropLayer, Fold
from prunebench.strategy import PlanContext
from prunebench.surgery import pruned
from tests.tiny_plugin import TinyGemma, TinyLlama, TinyText


def plan_of(strategy, loaded, samples, layers, trace=None):
    trace = trace or calibrate(loaded, samples, strategy.requires())
    context = PlanContext(loaded.info, Budget(value=layers, unit="layers"), trace)
    return strategy.plan(context), context


@pytest.mark.parametrize("select", ["contiguous", "spaced"])
def test_with_fewer_tokens_than_dimensions_the_folded_model_is_the_dense_one(select):
    """14 tokens in 32 dimensions: any h_b is a linear map of M away, so all that comes after the block is as before."""
    loaded, samples = TinyLlama().load(), TinyText().samples("calibration", 1)
    strategy = ReplaceMe(tokens=64, select=select, protect_first=2)
    plan, context = plan_of(strategy, loaded, samples, 2)
    assert [op for op in plan.ops if isinstance(op, DropLayer)] and any(isinstance(op, Fold) for op in plan.ops)
    with torch.inference_mode():
        inputs = loaded.encode(samples)
        dense = loaded.adapter.forward(loaded, inputs)
        with pruned(loaded, plan):
            folded = loaded.adapter.forward(loaded, inputs)
        with pruned(
            loaded, plan_of(ReplaceMe(compensate=False, select=select, protect_first=2), loaded, samples, 2)[0]
        ):
            dropped = loaded.adapter.forward(loaded, inputs)
        again = loaded.adapter.forward(loaded, inputs)
    assert torch.equal(dense, again)
    assert len(context.notes["mean_square_error"]) == (1 if select == "contiguous" else 2)  # runs of layers
    torch.testing.assert_close(folded, dense, atol=2e-3, rtol=1e-3)
    assert (dropped - dense).abs().max() > 0.1
    assert any("cannot determine a map of 32 dimensions" in line for line in context.warnings)


@pytest.fixture(scope="module")
def testbed():
    return Testbed().load()


@pytest.fixture(scope="module")
def samples():
    return TestbedDataset().samples("calibration", 48)


@pytest.fixture(scope="module")
def trace(testbed, samples):
    return calibrate(testbed, samples, ReplaceMe().requires())


def test_the_fold_is_the_formula_on_the_trace(testbed, samples, trace):
    plan, context = plan_of(ReplaceMe(alpha=0.5), testbed, samples, 4, trace)
    a, b = plan.removed_layers[0], plan.removed_layers[-1] + 1
    assert plan.removed_layers == tuple(range(a, b)) and b - a == 4
    (fold,) = [op for op in plan.ops if isinstance(op, Fold)]
    assert (fold.layer, fold.module, fold.side) == (a - 1, "mlp.down_proj", "out")
    there = trace["token_states=16.positions"] >= 0
    m = trace["mlp_outputs=16"][:, :, a - 1][there].astype(np.float64)
    h_a, h_b = (trace["token_states=16"][:, :, i][there].astype(np.float64) for i in (a, b))
    formula = np.linalg.inv(m.T @ m + 0.5 * np.eye(m.shape[1])) @ m.T @ (h_b - (h_a - m))
    np.testing.assert_allclose(plan.tensors[fold.tensor], formula.T, atol=1e-4)
    error = context.notes["mean_square_error"][f"{a}-{b}"]
    assert error["folded"] < error["dropped"] and error["tokens"] == len(m)
    assert error["dropped"] == pytest.approx(((h_a - h_b) ** 2).mean())


def test_the_block_is_that_of_the_angular_distance(testbed, samples, trace):
    for layers in (1, 3, 6):
        ours, _ = plan_of(ReplaceMe(), testbed, samples, layers, trace)
        uidl, _ = plan_of(Angular(protect_first=1), testbed, samples, layers, trace)
        assert ours.removed_layers == uidl.removed_layers
        assert ours.scores.values == uidl.scores.values


def test_on_new_samples_the_folded_state_is_nearer(testbed, trace):
    """The state behind the removed block, on questions that the map was not fitted to."""
    plan, _ = plan_of(ReplaceMe(), testbed, [], 3, trace)
    bare, _ = plan_of(ReplaceMe(compensate=False), testbed, [], 3, trace)
    start, stop = plan.removed_layers[0], plan.removed_layers[-1] + 1
    assert bare.removed_layers == plan.removed_layers
    fresh = TestbedDataset().samples("calibration", 8, seed=77)

    def state(layer):
        found = []
        handle = testbed.layers[layer].register_forward_hook(lambda _m, _a, output: found.append(output))
        testbed.adapter.forward(testbed, inputs, logits_to_keep=1)
        handle.remove()
        return found[0][inputs.attention_mask.bool()]

    with torch.inference_mode():
        inputs = testbed.encode(fresh)
        goal = state(stop - 1)
        distances = []
        for candidate in (plan, bare):
            with pruned(testbed, candidate):
                distances.append(float((state(start - 1) - goal).square().mean()))
    assert distances[0] < 0.9 * distances[1]


def test_cosine_objective_and_every_count_of_layers(testbed, samples, trace):
    cosine, context = plan_of(ReplaceMe(objective="cosine", epochs=2), testbed, samples, 2, trace)
    least, _ = plan_of(ReplaceMe(), testbed, samples, 2, trace)
    assert cosine.removed_layers == least.removed_layers and cosine.digest != least.digest
    for layers in (0, 1, 15):
        plan, _ = plan_of(ReplaceMe(), testbed, samples, layers, trace)
        assert len(plan.removed_layers) == layers and 0 not in plan.removed_layers
    assert context.notes["mean_square_error"]


def test_bad_values_and_models_that_cannot():
    with pytest.raises(BadParameter, match="alpha"):
        ReplaceMe.from_params({"alpha": "-1"})
    loaded, samples = TinyGemma().load(), TinyText().samples("calibration", 4)
    with pytest.raises(CalibrationError, match="closed-form fold does not fit this architecture"):
        plan_of(ReplaceMe(), loaded, samples, 2)
    plan, _ = plan_of(ReplaceMe(compensate=False), loaded, samples, 2)
    assert len(plan.removed_layers) == 2
