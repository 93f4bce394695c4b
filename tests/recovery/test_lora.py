"""Adapters: what they train, how they are merged, that they can be resumed, and what they leave alone."""

from __future__ import annotations

import builtins
import dataclasses

import numpy as np
import pytest
import torch

from prunebench import Plan, pruned
from prunebench.bits import pack
from prunebench.errors import CalibrationError, MissingExtra, RecoveryError
from prunebench.ops import Fold, Mask, SetWeights, Slice
from prunebench.recovery import dense_recoveries, parse_recovery, recover, recovery_class, training
from prunebench.testing.tiny import TinyLlama, TinyMedia, TinyText
from tests.recovery.test_training import Stop, loss_on, same, state_of, stopping
from tests.recovery.test_words import cells

FAST = {"accumulate": 1, "epochs": 2, "learning_rate": 2e-2, "batch_size": 8}
SEVEN = 7
"""q, k, v, o, gate, up, down."""


@pytest.fixture
def loaded():
    return TinyLlama().load()


@pytest.fixture(scope="module")
def samples():
    return TinyText().samples("calibration", 32)


def modules_of(loaded):
    return [(name, id(module), module.training) for name, module in loaded.model.named_modules()]


def sliced(loaded, layers=(1, 2)):
    """One of two head groups and a third of the channels go."""
    tensors, ops = {}, []
    for layer in layers:
        keep = {"heads": np.array([layer % 2 == 0, layer % 2 == 1]), "channels": np.arange(48) % 3 != layer % 3}
        tensors |= {f"s.{layer}.{word}": pack(bits) for word, bits in keep.items()}
        params = 2 * 16 * 32 + 2 * 8 * 32 + 16 * 3 * 32
        ops.append(Slice(layer=layer, tensors=f"s.{layer}", heads=(1, 2), channels=(32, 48), params_removed=params))
    return Plan.of(loaded.info, ops, tensors, kind="width")


def masked(loaded, layers=(1, 4)):
    """Half of the weights of two matrices in each layer, the smaller ones."""
    tensors, ops = {}, []
    for layer in layers:
        zeros = 0
        for name in ("self_attn.v_proj.weight", "mlp.down_proj.weight"):
            weight = loaded.layers[layer].get_parameter(name).detach()
            keep = weight.abs() > weight.abs().median()
            tensors[f"m.{layer}.{name}"], zeros = pack(keep), zeros + int((~keep).sum())
        ops.append(Mask(layer=layer, tensors=f"m.{layer}", zeros=zeros))
    return Plan.of(loaded.info, ops, tensors, kind="weights")


def lora(tokens=None, **changes):
    return parse_recovery("lora", tokens, {**FAST, **changes})


# -- words -----------------------------------------------------------------------------------------------------------


def test_released_settings_and_the_dense_row():
    found = parse_recovery("lora", 4000)
    assert (found.rank, found.lora_alpha, found.dropout, found.learning_rate) == (8, 16.0, 0.05, 1e-4)
    assert (found.batch_size, found.accumulate, found.epochs, found.targets) == (4, 16, 2, "all")
    assert found.trained and found.tokens == 4000 and found.label == "lora"
    tune = parse_recovery("tune", 4000)
    assert dense_recoveries([None, found]) == (found,)
    assert dense_recoveries([tune, found, parse_recovery("layer", 4000)]) == (tune, found)
    assert recovery_class(found) == recovery_class(tune) == "trained on 4,000 tokens"
    assert parse_recovery("lora", None, {"targets": "v_proj, q_proj"}).targets == "q_proj,v_proj"
    labels = [cell.label.replace(" at sparsity", "") for cell in cells(recover=("none", "lora"), recover_tokens=900)]
    assert labels == ["dense 0", "dense 0, recovery lora", "last_n 0.5", "last_n 0.5, recovery lora"]


def test_the_rate_rises_and_falls_along_lines(loaded):
    groups = {"1": {"w": torch.nn.Parameter(torch.zeros(1))}}
    loop = training._Loop(groups, parse_recovery("lora", 1000), [0, 1], None, 2, None, lambda *_: None)
    assert [loop.rate(share) for share in (0.03, 0.06, 0.53, 1.0)] == pytest.approx([5e-5, 1e-4, 5e-5, 0.0])


# -- what comes out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dense", "layers", "width"])
def test_the_plan_gives_the_loss_that_training_ended_with(loaded, samples, kind):
    """Dense, layers removed, and narrower layers: merged weights do what the adapters did, and lower the loss."""
    plans = {"dense": Plan.of(loaded.info, []), "layers": Plan.drop(loaded.info, [2, 3]), "width": sliced(loaded)}
    before = state_of(loaded), modules_of(loaded)
    plan = plans[kind]
    after = recover(plan, loaded, samples, lora())
    assert same(before[0], state_of(loaded)) and before[1] == modules_of(loaded)
    notes = after.provenance.notes["recovery"]
    held = [samples[row] for row in training.split_samples(32, 0.1, 0)[1]]
    assert loss_on(loaded, held, plan) == pytest.approx(notes["held_out_before"]["answer_loss"], rel=1e-5)
    assert loss_on(loaded, held, after) == pytest.approx(notes["held_out_after"]["answer_loss"], rel=1e-4)
    assert notes["held_out_after"]["answer_loss"] < 0.9 * notes["held_out_before"]["answer_loss"]
    assert notes["adapted_layers"] == list(plan.kept_layers) and after.kind == plan.kind
    assert notes["adapted_modules"] == SEVEN * len(plan.kept_layers)
    assert [op for op in after.ops if not isinstance(op, SetWeights)] == list(plan.ops)
    assert {op.layer for op in after.ops if isinstance(op, SetWeights)} == set(plan.kept_layers)


def test_the_change_is_of_low_rank_and_peft_merges_the_same(loaded, samples):
    """Against peft's own merge on a copy of the model, trained by a second run of the same seed."""
    from peft import LoraConfig, inject_adapter_in_model

    from prunebench.recovery.lora import adapters, merged

    plan = recover(Plan.of(loaded.info, []), loaded, samples, lora(rank=2))
    for layer, module in ((0, "self_attn.q_proj"), (5, "mlp.down_proj")):
        old = loaded.layers[layer].get_submodule(module).weight.detach()
        change = plan.tensors[f"tuned.{layer}.{module}.weight"] - old
        values = torch.linalg.svdvals(change.double())
        assert values[1] > 1e-4 and values[2] < 1e-5
    layer = loaded.layers[1]
    with adapters(loaded.model, {"1": layer}, lora()) as found:
        module = found["1"]["mlp.up_proj"]
        with torch.no_grad():
            module.lora_B["default"].weight.normal_()
        a, b = module.lora_A["default"].weight.detach(), module.lora_B["default"].weight.detach()
        mine = merged(module, {"mlp.up_proj.A": a, "mlp.up_proj.B": b}, "mlp.up_proj")
    copy = TinyLlama().load().model.model.layers[1]
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["up_proj"])
    box = inject_adapter_in_model(config, torch.nn.ModuleDict({"layer": copy}))
    theirs = box["layer"].mlp.up_proj
    with torch.no_grad():
        theirs.lora_A["default"].weight.copy_(a)
        theirs.lora_B["default"].weight.copy_(b)
    theirs.merge()
    torch.testing.assert_close(mine, theirs.base_layer.weight.detach())


def test_only_adapters_are_trained_and_only_those_named(loaded, samples):
    after = recover(sliced(loaded), loaded, samples, lora(targets="q_proj,v_proj"))
    notes = after.provenance.notes["recovery"]
    assert notes["adapted_modules"] == 12
    # rank 8 times (in + out) of q (32 → 32 or 16) and v (32 → 16 or 8)
    assert notes["tuned_parameters"] == 8 * (4 * (64 + 48) + 2 * (48 + 40))
    assert {name.split(".", 2)[2] for name in after.tensors if name.startswith("tuned.")} == {
        "self_attn.q_proj.weight",
        "self_attn.v_proj.weight",
    }
    with pytest.raises(RecoveryError, match=r"layer 0 has no linear module that recover\.targets=query.*q_proj"):
        recover(sliced(loaded), loaded, samples, lora(targets="query"))


def test_what_was_set_or_folded_before_is_kept(loaded, samples):
    """The layer's other weights of the plan stay, also those without an adapter."""
    norm = torch.full((32,), 1.5)
    fold = Fold(layer=2, module="mlp.down_proj", side="out", tensor="m")
    tensors = {"w.1.input_layernorm.weight": norm, "m": 0.5 * torch.eye(32)}
    plan = Plan.of(loaded.info, [SetWeights(layer=1, tensors="w.1"), fold], tensors)
    after = recover(plan, loaded, samples, lora(1, learning_rate=1e-12, targets="q_proj"))
    inputs = loaded.encode(samples[:3])
    with torch.no_grad():
        with pruned(loaded, plan):
            expected = loaded.adapter.forward(loaded, inputs)
        with pruned(loaded, after):
            torch.testing.assert_close(loaded.adapter.forward(loaded, inputs), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["lora", "tune"])
def test_narrower_layers_reload(loaded, samples, name, tmp_path):
    """Slices and the trained weights of their sizes, from disk."""
    plan = recover(sliced(loaded), loaded, samples, parse_recovery(name, None, {**FAST, "learning_rate": 1e-3}))
    assert tuple(plan.tensors["tuned.1.self_attn.q_proj.weight"].shape) == (16, 32)
    assert tuple(plan.tensors["tuned.2.mlp.down_proj.weight"].shape) == (32, 32)
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again.digest == plan.digest and again.kind == "width"
    assert again.budget is None or again.budget == plan.budget
    inputs = loaded.encode(samples[:4])
    with torch.no_grad():
        with pruned(loaded, sliced(loaded)):
            before = loaded.adapter.forward(loaded, inputs)
        with pruned(loaded, plan):
            expected = loaded.adapter.forward(loaded, inputs)
        with pruned(loaded, again):
            assert torch.equal(loaded.adapter.forward(loaded, inputs), expected)
    assert not torch.allclose(before, expected, atol=1e-3)


def test_media_of_all_kinds(loaded):
    samples = TinyMedia().samples("calibration", 16)
    after = recover(sliced(loaded), loaded, samples, lora())
    assert loss_on(loaded, samples, after) < loss_on(loaded, samples, sliced(loaded))


# -- interruptions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, Stop])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_interrupted_and_resumed_is_bit_for_bit_uninterrupted(loaded, samples, tmp_path, error, dtype):
    """With dropout, whatever random numbers were drawn in between."""
    loaded.model.to(dtype)
    plan, recovery = sliced(loaded), lora(accumulate=2, dropout=0.3)
    whole = recover(plan, loaded, samples, recovery)
    before = state_of(loaded), modules_of(loaded)
    for at in (4, 3):
        torch.rand(at)
        with pytest.raises(error):
            recover(plan, loaded, samples, recovery, stopping(at, error), folder=tmp_path)
        assert same(before[0], state_of(loaded)) and before[1] == modules_of(loaded)
    dice = torch.random.get_rng_state()
    resumed = recover(plan, loaded, samples, recovery, folder=tmp_path)
    assert torch.equal(dice, torch.random.get_rng_state()), "the random numbers of the process are its own"
    assert resumed.digest == whole.digest and resumed.tensors.digest == whole.tensors.digest
    assert whole.provenance.notes["recovery"] == resumed.provenance.notes["recovery"]
    assert recover(plan, loaded, samples, lora(accumulate=2, dropout=0.0)).digest != whole.digest
    assert recover(plan, loaded, samples, lora(accumulate=2, dropout=0.3, seed=1)).digest != whole.digest
    again = recover(plan, loaded, samples, recovery, stopping(1, AssertionError("trained again")), folder=tmp_path)
    assert again.digest == whole.digest


def test_nothing_is_left_behind_when_adapters_cannot_be_put_in(loaded, samples, monkeypatch):
    import peft

    before, calls, real = (state_of(loaded), modules_of(loaded)), [], peft.inject_adapter_in_model

    def failing(config, box):
        calls.append(box)
        if len(calls) == 3:
            raise Stop
        return real(config, box)

    monkeypatch.setattr(peft, "inject_adapter_in_model", failing)
    with pytest.raises(Stop):
        recover(Plan.of(loaded.info, []), loaded, samples, lora())
    assert same(before[0], state_of(loaded)) and before[1] == modules_of(loaded)
    assert not any("peft" in name for module in loaded.model.modules() for name in vars(module))


# -- masks -----------------------------------------------------------------------------------------------------------


def test_adapters_on_masked_weights_are_refused(loaded, samples):
    with pytest.raises(RecoveryError, match=r"fill the zeros.*layer 1.*--recover tune") as caught:
        recover(masked(loaded), loaded, samples, lora())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("resumed", [False, True])
def test_tuning_keeps_zeros(loaded, samples, tmp_path, dtype, resumed):
    """Exactly zero in the trained values themselves, not by being masked again; the rest is trained."""
    loaded.model.to(dtype)
    plan = masked(loaded)
    recovery = parse_recovery("tune", None, {**FAST, "weight_decay": 0.1, "learning_rate": 5e-3})
    folder = tmp_path if resumed else None
    if resumed:
        with pytest.raises(Stop):
            recover(plan, loaded, samples, recovery, stopping(3, Stop), folder=folder)
    after = recover(plan, loaded, samples, recovery, folder=folder)
    assert [op for op in after.ops if isinstance(op, Mask)] == list(plan.ops) and after.kind == "weights"
    for layer in (1, 4):
        with pruned(loaded, plan):
            for name in ("self_attn.v_proj.weight", "mlp.down_proj.weight"):
                start = loaded.layers[layer].get_parameter(name).detach()
                value = after.tensors[f"tuned.{layer}.{name}"]
                zero = start == 0
                assert 0.4 < zero.float().mean() < 0.6 and (value[zero] == 0).all()
                assert (value[~zero] != start[~zero]).float().mean() > 0.9
    assert loss_on(loaded, samples, after) < loss_on(loaded, samples, plan)
    with pruned(loaded, after):
        weight = loaded.layers[1].mlp.down_proj.weight
        assert torch.equal(weight.detach(), after.tensors["tuned.1.mlp.down_proj.weight"])


# -- what does not fit -----------------------------------------------------------------------------------------------


def test_without_peft_the_command_is_said(loaded, samples, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "peft":
            raise ImportError("No module named 'peft'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"--recover lora needs 'peft': pip install 'prunebench\[lora\]'"):
        recover(Plan.of(loaded.info, []), loaded, samples, lora())


def test_bad_input_is_said_in_a_line(loaded, samples):
    silent = [dataclasses.replace(sample, answer=None) for sample in samples]
    with pytest.raises(CalibrationError, match="has no answer"):
        recover(sliced(loaded), loaded, silent, lora())
    with pytest.raises(RecoveryError, match="training diverged"):
        recover(sliced(loaded), loaded, samples, lora(learning_rate=1e30))
    loaded.model.half()
    with pytest.raises(RecoveryError, match="float16"):
        recover(Plan.of(loaded.info, []), loaded, samples, lora())
