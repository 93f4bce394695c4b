"""Short-LVLM, re-implemented from figures: scores from the important tokens, folds from the features' differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from prunebench_baselines.short_lvlm import ShortLVLM
from prunebench_models.testbed.adapter import Testbed
from prunebench_models.testbed.data import TestbedDataset

from prunebench.budget import Budget
from prunebench.calibration.collect import calibrate
from prunebench.errors import BadParameter, CalibrationError
from prunebench.ops import Fold
from prunebench.strategy import PlanContext
from prunebench.surgery import pruned
from tests.tiny_plugin import TinyLlama, TinyText


@pytest.fixture(scope="module")
def testbed():
    return Testbed().load()


@pytest.fixture(scope="module")
def trace(testbed):
    asked = ShortLVLM().requires() | ShortLVLM(p=1.0).requires() | {"token_cosine", "points.last"}
    return calibrate(testbed, TestbedDataset().samples("calibration", 24), asked)


def context_of(loaded, trace, layers):
    return PlanContext(loaded.info, Budget(value=layers, unit="layers"), trace)


def test_scores(testbed, trace):
    context = context_of(testbed, trace, 2)
    sums, counts = trace["important_cosine=0.5"].astype(float), trace["important_cosine=0.5.count"].astype(float)
    np.testing.assert_allclose(ShortLVLM().score(context), sums[:, 0].sum(0) / counts[:, 0].sum())
    np.testing.assert_allclose(ShortLVLM(tokens="text").score(context), sums[:, 2].sum(0) / counts[:, 2].sum())
    media = counts[:, 1] > 0
    expected = (sums[media, 1] / counts[media, 1, None]).mean(0)
    np.testing.assert_allclose(ShortLVLM(tokens="media", average="samples").score(context), expected)
    everything = np.diagonal(trace.mean_cosine("all"), offset=1)  # p = 1 is plain Block Influence
    np.testing.assert_allclose(ShortLVLM(p=1.0).score(context), everything, atol=1e-4)
    assert np.abs(ShortLVLM().score(context) - everything).max() > 1e-3


def test_one_fold_per_run_before_it(testbed, trace):
    strategy = ShortLVLM(select="spaced", min_gap=2, protect_first=1, k=3)
    context = context_of(testbed, trace, 4)
    plan = strategy.plan(context)
    folds = {op.layer: op for op in plan.ops if isinstance(op, Fold)}
    assert sorted(folds) == [layer - 1 for layer in plan.removed_layers]
    points = trace["points.mean"].astype(np.float64)
    for layer, op in folds.items():
        difference = points[:, layer + 1] - points[:, layer]
        directions = np.linalg.svd(difference)[2][:3]
        np.testing.assert_allclose(plan.tensors[op.tensor], np.eye(128) + directions.T @ directions, atol=1e-5)
    assert "re-implementation from figures" in plan.provenance.notes["source"]
    assert "re-implementation from figures" in ShortLVLM.summary() + plan.scores.meaning
    with pruned(testbed, plan):
        kept = {layer: testbed.layers[place] for place, layer in enumerate(plan.kept_layers)}
        new = {layer: kept[layer].mlp.down_proj.weight.clone() for layer in folds}
    for layer, op in folds.items():
        old = testbed.layers[layer].mlp.down_proj.weight
        torch.testing.assert_close(new[layer], plan.tensors.torch(op.tensor) @ old, atol=1e-5, rtol=1e-5)


def test_a_run_of_several_layers_and_one_at_the_start(testbed, trace):
    context = context_of(testbed, trace, 3)
    strategy = ShortLVLM(select="contiguous", pool="last", protect_last=13)
    plan = strategy.plan(context)
    assert plan.removed_layers == (0, 1, 2)
    assert not [op for op in plan.ops if isinstance(op, Fold)] and not plan.tensors
    assert any("layers [0, 3) have no layer before them" in line for line in plan.provenance.warnings)
    plan = ShortLVLM(select="contiguous", pool="last", protect_first=5, protect_last=8).plan(context)
    (fold,) = [op for op in plan.ops if isinstance(op, Fold)]
    assert plan.removed_layers == (5, 6, 7) and fold.layer == 4
    difference = trace["points.last"][:, 7].astype(np.float64) - trace["points.last"][:, 4]
    directions = np.linalg.svd(difference)[2][:8]
    np.testing.assert_allclose(plan.tensors[fold.tensor], np.eye(128) + directions.T @ directions, atol=1e-5)


def test_without_compensation_less_is_collected_and_nothing_is_folded(testbed, trace):
    bare = ShortLVLM(compensate=False)
    assert bare.requires() == {"important_cosine=0.5"}
    plan = bare.plan(context_of(testbed, trace, 4))
    assert plan.removed_layers == ShortLVLM().plan(context_of(testbed, trace, 4)).removed_layers
    assert not plan.tensors


def test_bad_input():
    with pytest.raises(BadParameter, match="p=0"):
        ShortLVLM.from_params({"p": "0"})
    loaded = TinyLlama().load()
    trace = calibrate(loaded, TinyText().samples("calibration", 4), ShortLVLM().requires())
    with pytest.raises(CalibrationError, match="k=8 directions cannot be had from 4 samples"):
        ShortLVLM(protect_first=1).plan(context_of(loaded, trace, 2))
    with pytest.raises(CalibrationError, match="no media token in the calibration samples"):
        ShortLVLM(tokens="media").plan(context_of(loaded, trace, 2))
