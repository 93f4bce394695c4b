"""SparseGPT: the weights of plain optimal brain surgery, one column at a time in float64, and its loss."""

from __future__ import annotations

import pytest
import torch
from prunebench_baselines.magnitude import MagnitudeThinner
from prunebench_baselines.obs import inverse_factor
from prunebench_baselines.sparsegpt import SparseGPT, SparseGPTThinner
from prunebench_baselines.wanda import WandaThinner

from prunebench.errors import BadParameter, CalibrationError, PlanError
from tests.layer_views import correlated, make_view


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


def reference(weight, inputs, share, groups=None, block_size=128, damping=0.01):
    """Optimal brain surgery column by column: H⁻¹ of the columns that are left, by Gaussian elimination; no factor.

    After column j is decided, the inverse without it is H⁻¹ − H⁻¹_:j H⁻¹_j: / H⁻¹_jj.
    """
    w, x = weight.double().clone(), inputs.double()
    hessian = x.T @ x / len(x)
    dead = hessian.diagonal() == 0
    w[:, dead] = 0
    mean = hessian.diagonal()[~dead].mean()
    hessian = hessian + damping * mean * torch.diag((~dead).double()) + torch.diag(dead.double())
    inverse = torch.linalg.inv(hessian)
    columns = w.shape[1]
    # [H⁻¹]_jj at the time when column j is reached; it hangs on no weight.
    at_its_turn, left = torch.empty(columns, dtype=torch.float64), inverse.clone()
    for j in range(columns):
        at_its_turn[j] = left[j, j]
        left = left - torch.outer(left[:, j], left[j]) / left[j, j]
    gone = torch.zeros(w.shape, dtype=torch.bool)
    for j in range(columns):
        if groups is None and j % block_size == 0:
            stop = min(j + block_size, columns)
            scores = [(float(w[r, c] ** 2 / at_its_turn[c]), r, c) for r in range(w.shape[0]) for c in range(j, stop)]
            for _, r, c in sorted(scores)[: int(len(scores) * share)]:
                gone[r, c] = True
        if groups is not None and j % groups[1] == 0:
            for r in range(w.shape[0]):
                order = sorted(range(j, j + groups[1]), key=lambda c, r=r: (float(w[r, c] ** 2 / at_its_turn[c]), c))
                gone[r, order[: groups[1] - groups[0]]] = True
        for r in range(w.shape[0]):
            if gone[r, j]:
                w[r] -= w[r, j] / inverse[j, j] * inverse[j]
                w[r, j] = 0
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return torch.where(gone, 0.0, w), ~gone


def loss(weight, changed, inputs):
    """tr(ΔW H ΔWᵀ) = ‖ΔW Xᵀ‖²."""
    return float((inputs.double() @ (changed.double() - weight.double()).T).square().sum())


SHAPES = [(12, 32, None, 0.5), (7, 150, None, 0.6), (20, 256, None, 0.3), (9, 64, (2, 4), 0.5), (6, 136, (4, 8), 0.5)]


@pytest.mark.parametrize(("rows", "columns", "groups", "share"), SHAPES)
@pytest.mark.parametrize("arithmetic", ["float32", "float64"])
def test_weights_are_those_of_one_column_at_a_time(rows, columns, groups, share, arithmetic):
    weight, inputs = torch.randn(rows, columns), correlated(3 * columns, columns)
    layer = make_view({"a": weight}, inputs)
    found = SparseGPTThinner({0: share}, groups=groups, arithmetic=arithmetic).thin(layer)["a"]
    expected, keep = reference(weight, inputs, share, groups)
    assert torch.equal(found.keep, keep)
    assert float((found.weight - expected).norm() / expected.norm()) < 1e-4
    assert found.weight.dtype == weight.dtype and not found.weight[~keep].any()


@pytest.mark.parametrize("block_size", [1, 8, 48, 64, 1000])
def test_the_size_of_a_block_is_within_what_weights_compete(block_size):
    weight, inputs = torch.randn(10, 48), correlated(200, 48)
    found = SparseGPTThinner({0: 0.5}, block_size=block_size).thin(make_view({"a": weight}, inputs))["a"]
    expected, keep = reference(weight, inputs, 0.5, block_size=block_size)
    assert torch.equal(found.keep, keep)
    torch.testing.assert_close(found.weight, expected.float(), rtol=1e-3, atol=1e-4)
    for start in range(0, 48, block_size):
        assert (~keep)[:, start : start + block_size].sum() == min(block_size, 48 - start) * 10 // 2


def test_blocks_change_a_pattern_by_rounding_alone():
    """Groups are chosen when their first column is reached, with everything in front of it made up for."""
    weight, layer_inputs = torch.randn(10, 48), correlated(200, 48)
    layer = make_view({"a": weight}, layer_inputs)
    first, *others = (
        SparseGPTThinner({0: 0.5}, groups=(2, 4), block_size=size, arithmetic="float64").thin(layer)["a"]
        for size in (128, 4, 16)
    )
    for other in others:
        assert torch.equal(first.keep, other.keep)
        torch.testing.assert_close(first.weight, other.weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("groups", "share"), [(None, 0.3), (None, 0.5), (None, 0.9), ((2, 4), 0.5), ((4, 8), 0.5)])
@pytest.mark.parametrize("shape", [(4, 16, 8), (16, 48, 24), (40, 160, 500), (96, 64, 2000)])
def test_the_output_is_nearer_than_with_magnitude_and_with_the_mask_alone(shape, groups, share):
    rows, columns, tokens = shape
    weight, inputs = torch.randn(rows, columns), correlated(tokens, columns, seed=tokens)
    layer, shares = make_view({"a": weight}, inputs), {0: share}
    ours = SparseGPTThinner(shares, groups=groups).thin(layer)["a"]
    size = MagnitudeThinner(shares, groups=groups).thin(layer)["a"].keep
    assert loss(weight, ours.weight, inputs) < loss(weight, weight * size, inputs)
    assert loss(weight, ours.weight, inputs) < loss(weight, weight * ours.keep, inputs)


@pytest.mark.parametrize(("groups", "share"), [(None, 0.2), (None, 0.5), (None, 0.7), ((2, 4), 0.5), ((4, 8), 0.5)])
@pytest.mark.parametrize("shape", [(16, 48, 100), (40, 160, 500), (96, 64, 2000)])
def test_the_output_is_nearer_than_with_wanda(shape, groups, share):
    """Not a law: it decides column by column, so with few tokens or nine weights of ten gone Wanda can be nearer."""
    rows, columns, tokens = shape
    weight, inputs = torch.randn(rows, columns), correlated(tokens, columns, seed=tokens)
    layer, shares = make_view({"a": weight}, inputs), {0: share}
    ours = SparseGPTThinner(shares, groups=groups).thin(layer)["a"].weight
    keep = WandaThinner(shares, groups=groups).thin(layer)["a"].keep
    assert loss(weight, ours, inputs) < loss(weight, weight * keep, inputs)


def test_the_factor_is_that_of_the_inverse():
    inputs = correlated(100, 40).double()
    hessian = inputs.T @ inputs / 100
    factor = inverse_factor(hessian, 0.01)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(40)
    torch.testing.assert_close(factor.T @ factor, torch.linalg.inv(damped))
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor, torch.linalg.cholesky(torch.linalg.inv(damped), upper=True))


def test_inputs_that_are_never_there_take_their_weights_with_them():
    weight, inputs = torch.randn(8, 24), correlated(100, 24)
    inputs[:, [0, 5, 23]] = 0
    found = SparseGPTThinner({0: 0.5}).thin(make_view({"a": weight}, inputs))["a"]
    expected, keep = reference(weight, inputs, 0.5)
    assert not found.keep[:, [0, 5, 23]].any() and torch.equal(found.keep, keep)
    torch.testing.assert_close(found.weight, expected.float(), rtol=1e-3, atol=1e-4)
    assert int((~found.keep).sum()) == 8 * 24 // 2
    few = SparseGPTThinner({0: 0.05}).thin(make_view({"a": weight}, inputs))["a"]  # not all of them count as gone
    assert int((~few.keep).sum()) == int(8 * 24 * 0.05) and not few.weight[:, [0, 5, 23]].any()


def not_positive(size, lowest):
    """A symmetric matrix with one eigenvalue of `lowest`, else ones."""
    base = torch.linalg.qr(torch.randn(size, size)).Q
    return base @ torch.diag(torch.tensor([lowest, *[1.0] * (size - 1)])) @ base.T


def test_a_hessian_that_is_not_positive_definite_gets_more_damping_and_it_is_said():
    warnings, weight = [], torch.randn(4, 16)
    layer = make_view({"self_attn.q_proj": weight, "b": torch.randn(4, 16)}, torch.randn(40, 16), layer=5)
    layer.linears["self_attn.q_proj"].hessian = not_positive(16, -0.05) * layer.linears["self_attn.q_proj"].total
    found = SparseGPTThinner({5: 0.5}, warn=warnings.append).thin(layer)
    assert torch.isfinite(found["self_attn.q_proj"].weight).all() and set(found) == {"self_attn.q_proj", "b"}
    (line,) = warnings
    assert line == ("layer 5 self_attn.q_proj: the Hessian is not positive definite with damping 0.01: 0.1 was used")
    layer.linears["b"].hessian = not_positive(16, -3.0) * layer.linears["b"].total
    with pytest.raises(CalibrationError, match=r"^layer 5 b: .* even with damping 1: try a larger -P damping"):
        SparseGPTThinner({5: 0.5}, warn=warnings.append).thin(layer)
    SparseGPTThinner({5: 0.5}, damping=10.0).thin(layer)  # as the line says


def test_modules_of_one_input_share_one_factorisation(monkeypatch):
    from prunebench_baselines import sparsegpt

    calls = []
    monkeypatch.setattr(sparsegpt, "inverse_factor", lambda *given: calls.append(1) or inverse_factor(*given))
    x, y = torch.randn(40, 16), torch.randn(40, 16)
    names = {"q": x, "k": x, "v": x, "o": y}
    layer = make_view({name: torch.randn(4, 16) for name in names}, names)
    kept = {name: view.hessian.clone() for name, view in layer.linears.items()}
    together = SparseGPTThinner({0: 0.5}).thin(layer)
    assert len(calls) == 2
    for name, x in names.items():
        alone = SparseGPTThinner({0: 0.5}).thin(make_view({name: layer.linears[name].weight}, x))
        assert torch.equal(alone[name].weight, together[name].weight)
        assert torch.equal(layer.linears[name].hessian, kept[name])  # other plans read it too


def test_a_module_without_a_token_is_compared_by_size():
    weight = torch.randn(4, 16)
    layer = make_view({"a": weight}, torch.zeros(0, 16))
    found = SparseGPTThinner({0: 0.5}).thin(layer)["a"]
    assert torch.equal(found.keep, MagnitudeThinner({0: 0.5}).thin(layer)["a"].keep)
    assert torch.equal(found.weight, weight * found.keep)


def test_what_cannot_be_done_is_said_in_a_line():
    with pytest.raises(PlanError, match=r"^layer 3 a has 10 input columns, which 4 does not divide: choose"):
        SparseGPTThinner({3: 0.5}, groups=(2, 4)).thin(make_view({"a": torch.ones(4, 10)}, torch.ones(2, 10), layer=3))
    with pytest.raises(CalibrationError, match=r"^layer 0 a: .* not finite"):
        SparseGPTThinner({0: 0.5}).thin(make_view({"a": torch.ones(2, 2)}, torch.tensor([[1.0, float("nan")]])))
    with pytest.raises(BadParameter, match="cut through groups"):
        SparseGPT(pattern="2:4", block_size=10)
    with pytest.raises(BadParameter, match="damping"):
        SparseGPT(damping=0.0)
    assert SparseGPTThinner({0: 0.0}).thin(make_view({"a": torch.randn(4, 8)}, torch.randn(9, 8))) == {}


def test_the_same_again():
    layer = make_view({"a": torch.randn(30, 140)}, correlated(300, 140))
    one, two = (SparseGPTThinner({0: 0.5}).thin(layer)["a"] for _ in range(2))
    assert torch.equal(one.weight, two.weight) and torch.equal(one.keep, two.keep)
