"""Wanda: the masks of a brute-force sort in float64, and what follows where inputs are simple."""

from __future__ import annotations

import pytest
import torch
from prunebench_baselines.magnitude import MagnitudeThinner
from prunebench_baselines.wanda import Wanda, WandaThinner, lowest_by_alpha, wanda_scores

from prunebench.errors import BadParameter, BudgetError, CalibrationError, PlanError
from prunebench.layerwise import LinearView
from tests.layer_views import correlated, make_view


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


def brute_force(weight, inputs, tokens, choose):
    """(out, in) True where weights stay: |W_ij| times the root of the weighted mean of x_j², row by row in float64."""
    keep = torch.ones(weight.shape, dtype=torch.bool)
    for i, row in enumerate(weight.double().tolist()):
        scores = []
        for j, w in enumerate(row):
            energy = sum(float(a) * float(x) ** 2 for a, x in zip(tokens, inputs[:, j], strict=True))
            scores.append(abs(w) * (energy / float(tokens.sum())) ** 0.5)
        for j in choose(scores):
            keep[i, j] = False
    return keep


def lowest_share(share):
    return lambda scores: sorted(range(len(scores)), key=scores.__getitem__)[: int(len(scores) * share)]


def lowest_of(stay, of):
    def choose(scores):
        starts = range(0, len(scores), of)
        return [j for at in starts for j in sorted(range(at, at + of), key=scores.__getitem__)[: of - stay]]

    return choose


CASES = [(None, 0.5), (None, 0.3), (None, 0.9), ((2, 4), 0.5), ((4, 8), 0.5), ((1, 4), 0.75)]


@pytest.mark.parametrize(("groups", "share"), CASES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_are_those_of_a_sort_of_every_row(groups, share, weighted, dtype):
    weights = {"a": torch.randn(7, 40).to(dtype), "b": torch.randn(12, 40).to(dtype)}
    inputs, tokens = correlated(30, 40), torch.rand(30) if weighted else torch.ones(30)
    layer = make_view(weights, inputs, tokens=tokens)
    found = WandaThinner({0: share}, groups=groups).thin(layer)
    choose = lowest_of(*groups) if groups else lowest_share(share)
    for name, weight in weights.items():
        assert torch.equal(found[name].keep, brute_force(weight, inputs, tokens, choose))
        assert found[name].weight is None
        zeros = weight.shape[1] // groups[1] * (groups[1] - groups[0]) if groups else int(40 * share)
        assert (~found[name].keep).sum(1).tolist() == [zeros] * len(weight)


@pytest.mark.parametrize("groups", [None, (2, 4)])
def test_inputs_that_are_orthogonal_and_alike_leave_magnitude_by_row(groups):
    inputs = torch.linalg.qr(torch.randn(64, 48)).Q * 3  # XᵀX = 9 I
    layer = make_view({"a": torch.randn(9, 48)}, inputs)
    shares = {0: 0.5}
    wanda = WandaThinner(shares, groups=groups).thin(layer)["a"].keep
    size = MagnitudeThinner(shares, "module" if groups else "row", groups).thin(layer)["a"].keep
    assert torch.equal(wanda, size)
    other = WandaThinner(shares, groups=groups).thin(make_view({"a": layer.linears["a"].weight}, correlated(64, 48)))
    assert not torch.equal(other["a"].keep, size)  # the test could fail


def test_the_scale_of_the_inputs_and_the_number_of_tokens_do_not_matter():
    weights, inputs = {"a": torch.randn(5, 32)}, correlated(20, 32)
    once = WandaThinner({0: 0.4}).thin(make_view(weights, inputs))
    again = WandaThinner({0: 0.4}).thin(make_view(weights, torch.cat([inputs, inputs]) * 7))
    assert torch.equal(once["a"].keep, again["a"].keep)


def test_an_input_that_is_never_there_goes_first_and_of_equal_scores_the_earlier():
    inputs = torch.ones(4, 8)
    inputs[:, [2, 6]] = 0
    layer = make_view({"a": torch.ones(3, 8)}, inputs)
    for share, gone in ((0.25, {2, 6}), (0.5, {0, 1, 2, 6})):
        keep = WandaThinner({0: share}).thin(layer)["a"].keep
        assert all({j for j in range(8) if not row[j]} == gone for row in keep)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_the_released_variant_gives_rows_one_share_of_their_score_sums(share):
    weights = {"a": torch.randn(60, 80) * torch.exp(torch.randn(60, 80))}
    layer = make_view(weights, correlated(100, 80))
    keep = WandaThinner({0: share}, by_alpha=True).thin(layer)["a"].keep
    assert abs(float((~keep).float().mean()) - share) <= 1e-3
    counts = (~keep).sum(1)
    assert counts.min() < counts.max()  # rows differ
    scores = dict(wanda_scores(layer))["a"].double()
    gone = torch.where(keep, 0.0, scores).sum(1) / scores.sum(1)
    least = torch.where(keep, scores, torch.inf).min(1).values / scores.sum(1)  # the next that would have gone
    assert gone.max() < (gone + least).min()  # one α fits all rows
    assert (torch.where(keep, 0.0, scores).max(1).values <= torch.where(keep, scores, torch.inf).min(1).values).all()


def test_a_share_that_no_alpha_gives_is_said():
    with pytest.raises(BudgetError, match=r"^layer 1 a: .* at most 0.8 .* row_threshold=share$"):
        lowest_by_alpha(torch.ones(10, 100), 0.95, "layer 1 a")
    dead = torch.ones(10, 100)
    dead[:, :50] = 0  # all or none of these go
    with pytest.raises(BudgetError, match="nearer"):
        lowest_by_alpha(dead, 0.2, "layer 1 a")
    assert not lowest_by_alpha(dead, 0.0, "layer 1 a").any()


def test_a_module_without_a_token_is_compared_by_size():
    layer = make_view({"a": torch.randn(4, 8), "b": torch.randn(4, 8)}, correlated(9, 8))
    layer.linears["b"] = LinearView("b", layer.linears["b"].weight, torch.zeros(8, dtype=torch.float64), None, 0.0)
    found, by_size = WandaThinner({0: 0.5}).thin(layer), MagnitudeThinner({0: 0.5}, "row").thin(layer)
    assert torch.equal(found["b"].keep, by_size["b"].keep) and not torch.equal(found["a"].keep, by_size["a"].keep)


def test_what_cannot_be_done_is_said_in_a_line():
    with pytest.raises(PlanError, match=r"^layer 3 a has 10 input columns, which 4 does not divide: choose"):
        WandaThinner({3: 0.5}, groups=(2, 4)).thin(make_view({"a": torch.ones(4, 10)}, torch.ones(2, 10), layer=3))
    with pytest.raises(CalibrationError, match=r"^layer 0 a: .* not finite"):
        WandaThinner({0: 0.5}).thin(make_view({"a": torch.ones(2, 2)}, torch.tensor([[1.0, float("inf")]])))
    with pytest.raises(BadParameter, match="drop -P row_threshold"):
        Wanda(pattern="2:4", row_threshold="alpha")


def test_nothing_asked_leaves_all_and_the_weights_are_not_written_to():
    layer = make_view({"a": torch.randn(4, 8)}, torch.ones(3, 8))
    before = layer.linears["a"].weight.clone()
    assert WandaThinner({0: 0.0}).thin(layer) == {}
    assert WandaThinner({0: 0.0}, by_alpha=True).thin(layer) == {}
    WandaThinner({0: 0.5}).thin(layer)
    assert torch.equal(layer.linears["a"].weight, before)
