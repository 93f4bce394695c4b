"""How much goes: rounding, and what a number of layers comes to in every unit."""

from __future__ import annotations

import math

import pytest

from prunebench.budget import Budget, achieved
from prunebench.errors import BudgetError
from prunebench.model_info import LayerCost, ModelInfo

ROUNDED = [
    # share, layers, removed
    (0.0, 16, 0),
    (0.03, 16, 0),  # 0.48
    (0.1, 16, 2),  # 1.6
    (0.125, 16, 2),
    (0.5, 16, 8),
    (0.5, 7, 4),  # 3.5: halves up
    (0.5, 5, 3),  # 2.5: halves up, where Python's round() gives 2
    (0.25, 10, 3),  # 2.5
    (0.15, 10, 2),  # 1.5
    (0.45, 10, 5),  # 4.5
    (0.35, 20, 7),  # 6.999999999999999 in floating point
    (0.29, 100, 29),  # 28.999999999999996
    (0.575, 100, 58),  # 57.49999999999999, meant as 57.5: halves up
    (0.574, 100, 57),
    (0.9375, 16, 15),
    (0.5, 1, None),  # the only layer
    (0.97, 16, None),  # 15.52 rounds to all 16
    (0.999, 16, None),
]


@pytest.mark.parametrize(("share", "n_layers", "removed"), ROUNDED)
def test_rounding_against_a_table_by_hand(share, n_layers, removed):
    if removed is None:
        with pytest.raises(BudgetError, match="at least one has to stay"):
            Budget(value=share).layers_asked(n_layers)
    else:
        assert Budget(value=share).layers_asked(n_layers) == removed


def test_every_eighth_of_32_layers_is_exact():
    assert [Budget(value=i / 32).layers_asked(32) for i in range(32)] == list(range(32))


@pytest.mark.parametrize("value", [1.0, 1.5, -0.1, math.nan, math.inf, -math.inf])
def test_a_share_outside_the_range_is_refused(value):
    with pytest.raises(BudgetError, match=r"sparsity must lie in \[0, 1\)") as caught:
        Budget(value=value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [-1, 2.5, math.nan, math.inf])
def test_a_number_of_layers_that_is_none_is_refused(value):
    with pytest.raises(BudgetError, match="whole number") as caught:
        Budget(value=value, unit="layers")
    assert "\n" not in str(caught.value)


def test_a_number_of_layers_is_taken_as_it_is_and_leaves_one():
    assert Budget(value=15, unit="layers").layers_asked(16) == 15
    assert Budget(value=0, unit="layers").layers_asked(16) == 0
    for count in (16, 17):
        with pytest.raises(BudgetError, match=f"{count} of 16 decoder layers"):
            Budget(value=count, unit="layers").layers_asked(16)


def uneven_model() -> ModelInfo:
    """Three layers of different cost in a language model of 1,000 parameters; the whole model has 2,000."""
    layers = (
        LayerCost(params=100, bytes=400, prefill_flops=1000.0, kv_bytes_per_token=16),
        LayerCost(params=200, bytes=800, prefill_flops=3000.0, kv_bytes_per_token=32),
        LayerCost(params=300, bytes=600, prefill_flops=2000.0, kv_bytes_per_token=0),
    )
    return ModelInfo(
        name="uneven",
        adapter="toy",
        revision="0",
        n_layers=3,
        hidden_size=4,
        dtype="float32",
        layers=layers,
        lm_params=1000,
        model_params=2000,
        model_bytes=8000,
        lm_prefill_flops=8000.0,
        kv_bytes_per_token=48,
        reference_tokens=10,
    )


def test_every_unit_against_numbers_by_hand():
    got = achieved(uneven_model(), (2, 0))
    assert got.layers_removed == 2 and got.layers == pytest.approx(2 / 3)
    assert got.params_removed == 400
    assert got.lm_params == pytest.approx(0.4) and got.model_params == pytest.approx(0.2)
    assert got.bytes == pytest.approx(1000 / 8000)
    assert got.prefill_flops == pytest.approx(3000 / 8000)
    assert got.kv_bytes_per_token == pytest.approx(16 / 48)


def test_a_layer_counts_once_and_none_is_nothing():
    model = uneven_model()
    assert achieved(model, (1, 1)) == achieved(model, (1,))
    nothing = achieved(model, ()).model_dump()
    assert set(nothing.values()) == {0}


def test_a_share_of_nothing_is_nothing():
    model = uneven_model().model_copy(update={"kv_bytes_per_token": 0, "lm_prefill_flops": 0.0})
    got = achieved(model, (0,))
    assert got.kv_bytes_per_token == 0.0 and got.prefill_flops == 0.0 and got.layers == pytest.approx(1 / 3)
