"""Magnitude, and the choice of the lowest scores that all of the methods share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from prunebench_baselines.magnitude import Magnitude, MagnitudeThinner, WholeModel
from prunebench_baselines.thinning import Cut, lowest_of_all, lowest_of_groups, lowest_of_rows, portion

from prunebench.errors import BadParameter, CalibrationError, PlanError
from tests.layer_views import make_view

SHAPES = [(1, 1), (5, 7), (16, 33), (48, 160)]


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


def scores_of(rows, columns, seed=0, kinds=None):
    """Random scores, or with few different values, so that many are equal."""
    made = torch.Generator().manual_seed(seed)
    if kinds:
        return torch.randint(0, kinds, (rows, columns), generator=made).float()
    return torch.randn(rows, columns, generator=made).abs()


def lowest(values, count):
    """True for the `count` lowest of a list, the earlier of equal ones; by sorting (value, place)."""
    order = sorted(range(len(values)), key=lambda place: (values[place], place))
    gone = set(order[:count])
    return [place in gone for place in range(len(values))]


def layer_of(*weights, number=0):
    return make_view(
        {f"m{i}": w for i, w in enumerate(weights)},
        {f"m{i}": torch.ones(1, w.shape[1]) for i, w in enumerate(weights)},
        layer=number,
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kinds", [None, 3, 1])
def test_rows_lose_their_lowest_scores_the_earlier_of_equal_ones(shape, kinds):
    scores = scores_of(*shape, kinds=kinds)
    for count in {0, 1, shape[1] // 2, shape[1] - 1, shape[1]}:
        gone = lowest_of_rows(scores, count)
        assert gone.tolist() == [lowest(row, count) for row in scores.tolist()]


@pytest.mark.parametrize(("stay", "of"), [(2, 4), (4, 8), (1, 2), (3, 5)])
@pytest.mark.parametrize("kinds", [None, 2])
def test_of_every_group_the_highest_stay(stay, of, kinds):
    scores = scores_of(6, 4 * of, kinds=kinds)
    gone = lowest_of_groups(scores, stay, of)
    groups = scores.reshape(-1, of).tolist()
    assert gone.reshape(-1, of).tolist() == [lowest(group, of - stay) for group in groups]


@pytest.mark.parametrize("kinds", [None, 4, 1])
def test_of_several_matrices_together_the_lowest_scores_go(kinds):
    scores = [scores_of(*shape, seed=i, kinds=kinds) for i, shape in enumerate(SHAPES)]
    joined = torch.cat([each.flatten() for each in scores]).tolist()
    for count in (0, 1, 17, len(joined) // 2, len(joined) - 1, len(joined), len(joined) + 5):
        gone = torch.cat([each.flatten() for each in lowest_of_all(scores, count)])
        assert gone.tolist() == lowest(joined, min(count, len(joined)))


def test_the_choice_holds_for_extreme_numbers():
    scores = torch.tensor([[0.0, -0.0, 1e-45, 3.4e38, 1.0, float("inf")]])
    assert lowest_of_all([scores], 3)[0].tolist() == [[True, True, True, False, False, False]]
    assert lowest_of_all([scores], 5)[0].tolist() == [[True, True, True, True, True, False]]
    assert lowest_of_all([scores.bfloat16()], 2)[0].sum() == 2
    assert Cut.at([-scores], 2) == Cut.at([scores], 2)  # signs are not looked at


def test_a_share_is_rounded_down_but_not_by_the_number_format():
    assert (portion(100, 0.29), portion(20, 0.35), portion(128, 0.3), portion(7, 0.999999)) == (29, 7, 38, 6)
    assert portion(10, 0.0) == 0 and portion(10, 1.0) == 10


@pytest.mark.parametrize("share", [0.2, 0.5, 0.61])
def test_each_scope_takes_the_smallest_weights_of_its_own(share):
    layers = [[torch.randn(6, 10), torch.randn(4, 6) * 3], [torch.randn(6, 10) * 0.1, torch.randn(4, 6)]]
    views = [layer_of(*weights, number=number) for number, weights in enumerate(layers)]
    whole = WholeModel()
    for view in views:
        assert whole.thin(view) == {}
    flat = [torch.cat([w.flatten() for w in weights]).abs() for weights in layers]
    for number, (weights, view) in enumerate(zip(layers, views, strict=True)):
        found = {
            scope: MagnitudeThinner({0: share, 1: share}, scope, whole=whole if scope == "model" else None,
                                    cut=whole.cut(share) if scope == "model" else None).thin(view)
            for scope in ("module", "row", "layer", "model")
        }  # fmt: skip
        for name, weight in zip(("m0", "m1"), weights, strict=True):
            sizes = weight.abs()
            expected = torch.tensor(lowest(sizes.flatten().tolist(), int(weight.numel() * share))).reshape(weight.shape)
            assert torch.equal(found["module"][name].keep, ~expected)
            rows = [lowest(row, int(weight.shape[1] * share)) for row in sizes.tolist()]
            assert torch.equal(found["row"][name].keep, ~torch.tensor(rows))
            limit = flat[number].sort().values[int(len(flat[number]) * share)]
            assert torch.equal(found["layer"][name].keep, sizes >= limit)
            every = torch.cat(flat)
            kept = found["model"][name].keep if name in found["model"] else torch.ones_like(weight, dtype=bool)
            assert torch.equal(kept, sizes >= every.sort().values[int(len(every) * share)])
            assert found["module"][name].weight is None


def test_patterns_leave_exactly_n_of_m():
    weight = torch.randn(8, 24)
    for stay, of in ((2, 4), (4, 8), (1, 4)):
        kept = MagnitudeThinner({0: 1 - stay / of}, groups=(stay, of)).thin(layer_of(weight))["m0"].keep
        assert (kept.reshape(-1, of).sum(1) == stay).all()
        left = torch.where(kept, weight.abs(), torch.inf).reshape(-1, of).min(1).values
        assert (torch.where(kept, 0, weight.abs()).reshape(-1, of).max(1).values <= left).all()


def test_nothing_asked_leaves_every_module_out():
    assert MagnitudeThinner({0: 0.0}).thin(layer_of(torch.randn(4, 4))) == {}


def test_what_cannot_be_done_is_said_in_a_line():
    with pytest.raises(PlanError, match=r"^layer 3 m0 has 10 input columns, which 4 does not divide: choose"):
        MagnitudeThinner({3: 0.5}, groups=(2, 4)).thin(layer_of(torch.randn(4, 10), number=3))
    with pytest.raises(CalibrationError, match=r"^layer 0 m0: .* not finite"):
        MagnitudeThinner({0: 0.5}).thin(layer_of(torch.tensor([[1.0, float("nan")]])))
    with pytest.raises(BadParameter, match="drop -P scope"):
        Magnitude(pattern="2:4", scope="row")
    with pytest.raises(BadParameter, match="pattern"):
        Magnitude(pattern="4:2")
    assert (Magnitude().plan_kind, Magnitude(pattern="2:4").plan_kind) == ("weights", "2:4")


def test_shares_may_differ_by_layer():
    weight = torch.randn(10, 10)
    zeros = [
        MagnitudeThinner({0: 0.25, 1: 0.7}).thin(layer_of(weight, number=n))["m0"].keep.logical_not().sum()
        for n in (0, 1)
    ]
    np.testing.assert_array_equal(zeros, [25, 70])
