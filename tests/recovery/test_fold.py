"""The closed form: the least-squares optimum over all tokens, as a second plain implementation finds it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from prunebench import Plan, pruned
from prunebench.errors import RecoveryError
from prunebench.recovery import parse_recovery, recover
from prunebench.recovery.fold import NormalEquations, last_linear
from tests.tiny_plugin import TinyGemma, TinyLlama, TinyText

REPLACEME = parse_recovery("replaceme")


@pytest.fixture
def loaded():
    return TinyLlama().load()


@pytest.fixture(scope="module")
def samples():
    return TinyText().samples("calibration", 37)


def parts(loaded, samples, layer, stop):
    """M, h_a and h_b over all real tokens, one sample at a time, by plain hooks."""
    found = {"m": [], "in": [], "out": []}

    def keep(name):
        return lambda _m, _a, output: found[name].append(output[0].detach().double().numpy())

    handles = [
        loaded.layers[layer].mlp.register_forward_hook(keep("m")),
        loaded.layers[layer].register_forward_hook(keep("in")),
        loaded.layers[stop - 1].register_forward_hook(keep("out")),
    ]
    with torch.no_grad():
        for sample in samples:
            loaded.adapter.forward(loaded, loaded.encode([sample]))
    for handle in handles:
        handle.remove()
    return tuple(np.concatenate(found[name]) for name in ("m", "in", "out"))


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_normal_equations_are_least_squares(alpha):
    rng = np.random.default_rng(0)
    m, h_in, h_out = (rng.normal(size=(500, 12)) for _ in range(3))
    sums = NormalEquations(12, torch.device("cpu"))
    for start in range(0, 500, 70):
        sums.add(*(torch.from_numpy(x[start : start + 70]) for x in (m, h_in, h_out)))
    y = h_out - (h_in - m)
    expected = np.linalg.lstsq(np.vstack([m, alpha**0.5 * np.eye(12)]), np.vstack([y, np.zeros((12, 12))]), rcond=None)[
        0
    ]
    found = sums.solve(alpha)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)
    assert sums.error(found) == pytest.approx(np.square(m @ expected - y).mean(), rel=1e-9)
    assert sums.error_dropped() == pytest.approx(np.square(h_out - h_in).mean(), rel=1e-9)


def test_fewer_tokens_than_dimensions_give_the_smallest_solution():
    rng = np.random.default_rng(1)
    m, y = rng.normal(size=(5, 9)), rng.normal(size=(5, 9))
    sums = NormalEquations(9, torch.device("cpu"))
    sums.add(torch.from_numpy(m), torch.from_numpy(m), torch.from_numpy(y))  # h_a = M: the target is h_b
    np.testing.assert_allclose(sums.solve().numpy(), np.linalg.lstsq(m, y, rcond=None)[0], atol=1e-10)


def test_every_run_gets_the_optimum_in_one_pass(loaded, samples):
    plan = Plan.drop(loaded.info, [1, 3, 4])
    found = recover(plan, loaded, samples, REPLACEME)
    assert found.removed_layers == (1, 3, 4) and sorted(found.tensors) == ["replaceme.0", "replaceme.2"]
    assert found.cost.recovery.forward_passes == len(samples) and found.cost.recovery.backward_passes == 0
    errors = found.provenance.notes["recovery"]["mean_square_error"]
    for a, b in ((1, 2), (3, 5)):
        m, h_in, h_out = parts(loaded, samples, a - 1, b)
        y = h_out - (h_in - m)
        expected = np.linalg.lstsq(m, y, rcond=None)[0]
        np.testing.assert_allclose(found.tensors[f"replaceme.{a - 1}"].numpy(), expected.T, rtol=2e-3, atol=2e-4)
        optimum, dropped = np.square(m @ expected - y).mean(), np.square(h_out - h_in).mean()
        assert errors[f"{a}-{b}"]["tokens"] == len(m) == found.cost.recovery.tokens
        assert errors[f"{a}-{b}"]["folded"] == pytest.approx(optimum, rel=1e-4)
        assert errors[f"{a}-{b}"]["dropped"] == pytest.approx(dropped, rel=1e-4)
        assert optimum < 0.7 * dropped


def test_the_folded_model_reaches_the_optimum_at_the_end_of_the_block(loaded, samples):
    """Measured on the pruned model itself, whose layers up to the run are untouched: the number in the notes."""
    plan = recover(Plan.drop(loaded.info, [2, 3]), loaded, samples, REPLACEME)
    _, h_in, h_out = parts(loaded, samples, 1, 4)
    with pruned(loaded, plan):
        _, given, _ = parts(loaded, samples, 1, 4)
    error = plan.provenance.notes["recovery"]["mean_square_error"]["2-4"]
    assert np.square(given - h_out).mean() == pytest.approx(error["folded"], rel=1e-4)
    assert np.square(h_in - h_out).mean() == pytest.approx(error["dropped"], rel=1e-4)


class OnlyMlp(nn.Module):
    """A layer whose output is its MLP's: r = 0, so any linear block behind it can be folded in exactly."""

    def __init__(self, mlp):
        super().__init__()
        self.mlp = mlp

    def forward(self, hidden_states, *_args, **_kwargs):
        return self.mlp(hidden_states)


class LinearBlock(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, hidden_states, *_args, **_kwargs):
        return hidden_states @ self.weight


def test_a_linear_block_comes_back_exactly(loaded, samples):
    generator = torch.Generator().manual_seed(0)
    loaded.layers[1] = OnlyMlp(loaded.layers[1].mlp)
    for layer in (2, 3):
        loaded.layers[layer] = LinearBlock(torch.randn(32, 32, generator=generator) / 32**0.5)
    inputs = loaded.encode(samples[:5])
    real = inputs.attention_mask.bool()
    with torch.no_grad():
        dense = loaded.adapter.forward(loaded, inputs)[real]
        plain = Plan.drop(loaded.info, [2, 3])
        with pruned(loaded, plain):
            dropped = loaded.adapter.forward(loaded, inputs)[real]
        with pruned(loaded, recover(plain, loaded, samples, REPLACEME)):
            folded = loaded.adapter.forward(loaded, inputs)[real]
    assert (dropped - dense).abs().max() > 0.5
    torch.testing.assert_close(folded, dense, rtol=1e-3, atol=1e-3)


def test_a_scaled_residual_is_seen_and_folded_alike(loaded, samples):
    """r + 0.5 M instead of r + M (some families scale what they add): T is that of what really is added."""
    layer = loaded.layers[1]

    class Halved(nn.Module):
        def __init__(self, mlp):
            super().__init__()
            self.inner = mlp

        def forward(self, hidden_states):
            return 0.5 * self.inner(hidden_states)

    whole = layer.mlp
    layer.mlp = Halved(whole)
    halved = recover(Plan.drop(loaded.info, [2, 3]), loaded, samples, REPLACEME)
    layer.mlp = whole
    whole.down_proj.weight.data.mul_(0.5)
    plain = recover(Plan.drop(loaded.info, [2, 3]), loaded, samples, REPLACEME)
    assert [op.module for op in halved.ops[2:] + plain.ops[2:]] == ["mlp.inner.down_proj", "mlp.down_proj"]
    torch.testing.assert_close(halved.tensors["replaceme.1"], plain.tensors["replaceme.1"], rtol=1e-3, atol=1e-4)


def test_what_cannot_be_folded_is_said(loaded, samples):
    with pytest.raises(RecoveryError, match="no layer stands in front"):
        recover(Plan.drop(loaded.info, [0, 1]), loaded, samples, REPLACEME)
    some = recover(Plan.drop(loaded.info, [0, 3]), loaded, samples, REPLACEME)
    assert [line for line in some.provenance.warnings if "[0, 1) stay uncompensated" in line]
    assert list(some.tensors) == ["replaceme.2"]
    with pytest.raises(RecoveryError, match="already changes layer 1"):
        recover(recover(Plan.drop(loaded.info, [2, 3]), loaded, samples, REPLACEME), loaded, samples, REPLACEME)
    gemma = TinyGemma().load()
    with pytest.raises(RecoveryError, match="changes what its MLP gives"):
        recover(Plan.drop(gemma.info, [2, 3]), gemma, samples, REPLACEME)
    two = nn.ModuleDict({name: nn.ModuleDict({"down_proj": nn.Linear(8, 32)}) for name in ("first", "second")})
    assert last_linear(two, 32) is None and last_linear(two["first"], 32) is not None
    assert last_linear(two["first"], 31) is None
    loaded.layers[2].mlp.down_proj.weight = nn.Parameter(torch.zeros(32, 48, device="meta"))
    with pytest.raises(RecoveryError, match="offloaded"):
        recover(Plan.drop(loaded.info, [3]), loaded, samples, REPLACEME)


def test_an_empty_plan_stays_as_it_is(loaded, samples):
    plan = Plan.drop(loaded.info, [])
    found = recover(plan, loaded, samples, REPLACEME)
    assert found.is_empty and found.cost.recovery.forward_passes == 0
    assert found.provenance.warnings == ("recovery replaceme: nothing is removed: there is nothing to make up for",)


def test_the_model_is_untouched(loaded, samples):
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    recover(Plan.drop(loaded.info, [2, 3]), loaded, samples, REPLACEME)
    after = loaded.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in loaded.model.modules())
