"""OWL: densities in closed form, their mean exact, and clipping that meets the total."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from prunebench_baselines.allocation import clip_densities, spread_densities
from prunebench_baselines.magnitude import MagnitudeThinner
from prunebench_baselines.owl import OWL, Outliers
from prunebench_baselines.sparsegpt import SparseGPTThinner
from prunebench_baselines.wanda import WandaThinner

from prunebench import Budget, PlanContext
from prunebench.errors import BadParameter, BudgetError
from tests.factories import make_model
from tests.layer_views import correlated, make_view


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


def scouted(layers, factor=5.0):
    """A scout after its walk through layers of (weights by name, inputs)."""
    scout = Outliers(factor)
    for number, (weights, inputs) in enumerate(layers):
        assert scout.thin(make_view(weights, inputs, layer=number)) == {}
    return scout


def thinner(method, ratios, sizes, share):
    scout = Outliers()
    scout.ratios, scout.sizes = dict(enumerate(ratios)), dict(enumerate(sizes))
    context = PlanContext(model=make_model(len(ratios)), budget=Budget(value=share))
    return method.thinner(context, scout), context


def test_densities_are_those_of_the_formula():
    found = spread_densities([0.01, 0.02, 0.04, 0.05], [1, 1, 1, 1], 0.7, 0.08)
    np.testing.assert_allclose(found, 0.3 + np.array([0, 0.04, 0.12, 0.16]) - 0.08)
    np.testing.assert_allclose(np.ptp(found), 0.16)
    np.testing.assert_allclose(found.mean(), 0.3, atol=1e-15)
    weighted = spread_densities([0.0, 1.0], [300, 100], 0.5, 0.1)  # scaled 0 and 0.2, mean 0.05
    np.testing.assert_allclose(weighted, [0.45, 0.65])
    np.testing.assert_allclose(np.average(weighted, weights=[300, 100]), 0.5)


def test_equal_shares_of_outliers_are_uniform():
    np.testing.assert_array_equal(spread_densities([0.02] * 5, [1, 2, 3, 4, 5], 0.6, 0.08), [0.4] * 5)
    found, _ = thinner(OWL(), [0.0] * 4, [10] * 4, 0.5)
    assert found.shares == dict.fromkeys(range(4), 0.5)


def test_no_spread_is_uniform_whatever_the_outliers():
    np.testing.assert_allclose(spread_densities([0.1, 0.9, 0.4], [1, 5, 2], 0.5, 0.0), [0.5] * 3)


def test_what_lies_outside_is_clipped_and_the_total_met():
    sizes = np.array([100.0, 300, 50, 200])
    asked = spread_densities([0.0, 1.0, 0.5, 0.1], sizes, 0.95, 0.3)
    assert asked.min() < 0
    found = clip_densities(asked, sizes, 0.95)
    assert found.min() == 0 and found.max() <= 1
    np.testing.assert_allclose(found @ sizes, 0.05 * sizes.sum(), rtol=1e-12)
    inside = (found > 0) & (found < 1)
    assert np.ptp((found - asked)[inside]) < 1e-12  # one shift for all that are not at an end
    full = clip_densities([0.2, 0.8, 1.4], [1, 1, 1], 0.2)  # what one cannot hold goes to the others
    np.testing.assert_allclose(full, [0.4, 1.0, 1.0], atol=1e-9)
    for share in (0.0, 0.999):
        np.testing.assert_allclose(clip_densities(asked, sizes, share) @ sizes, (1 - share) * sizes.sum(), atol=1e-9)
    with pytest.raises(BudgetError, match="cannot go"):
        clip_densities([0.5], [10], 1.5)


def test_clipping_is_recorded():
    _, quiet = thinner(OWL(), [0.01, 0.02, 0.05], [10] * 3, 0.5)
    assert quiet.warnings == [] and quiet.notes["layer_densities"] == {"0": 0.433333, "1": 0.473333, "2": 0.593333}
    found, loud = thinner(OWL(), [0.01, 0.02, 0.05], [10] * 3, 0.97)
    assert len(loud.warnings) == 1 and "owl: densities outside [0, 1] were clipped in 1 of 3 layers" in loud.warnings[0]
    assert sum(found.shares.values()) / 3 == pytest.approx(0.97)
    everything, none = thinner(OWL(), [0.01, 0.02, 0.05], [10] * 3, 0.0)
    assert max(everything.shares.values()) < 1e-9 and none.warnings == []


def test_outliers_are_counted_over_all_modules_of_a_layer_together():
    layers = [
        ({"a": torch.randn(6, 20), "b": 10 * torch.randn(3, 20)}, correlated(50, 20, seed=number))
        for number in range(3)
    ]
    scout = scouted(layers, factor=3.0)
    for number, (weights, inputs) in enumerate(layers):
        length = inputs.double().square().mean(0).sqrt()
        scores = torch.cat([(w.double().abs() * length).flatten() for w in weights.values()])
        expected = float((scores > 3.0 * scores.mean()).double().mean())
        assert scout.ratios[number] == expected > 0
        assert scout.sizes[number] == 180
    assert Outliers(3.0) == scout != Outliers(4.0)  # one walk for all budgets
    assert Outliers(3.0, average="samples") != scout


@pytest.mark.parametrize(
    ("prune", "kind"), [("wanda", WandaThinner), ("sparsegpt", SparseGPTThinner), ("magnitude", MagnitudeThinner)]
)
def test_layers_lose_what_their_density_says_by_the_method_that_is_named(prune, kind):
    method = OWL(prune=prune, sequential=False, average="samples")
    found, context = thinner(method, [0.0, 0.02, 0.06], [400] * 3, 0.5)
    assert type(found) is kind and found.sequential is False
    assert found.average == ("samples" if prune == "wanda" else "tokens")
    inputs, weight = correlated(60, 40), torch.randn(10, 40)
    for number, scaled in enumerate([0.0, 0.16 / 3, 0.16]):
        share = found.shares[number]
        assert share == pytest.approx(0.5 - scaled + 0.16 * 4 / 9)
        assert context.notes["layer_densities"][str(number)] == pytest.approx(1 - share, abs=1e-6)
        layer = make_view({"a": weight}, inputs, layer=number)
        assert torch.equal(found.thin(layer)["a"].keep, kind({number: share}).thin(layer)["a"].keep)
    assert found.shares[0] > found.shares[1] > found.shares[2]


def test_one_pattern_has_one_density():
    with pytest.raises(BadParameter, match="drop -P pattern, or use wanda"):
        OWL(pattern="2:4")
    with pytest.raises(BadParameter):
        OWL(spread=-0.1)
