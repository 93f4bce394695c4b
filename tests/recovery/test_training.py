"""Training: what it improves, what it costs, how it stops and goes on, and that it leaves the model alone."""

from __future__ import annotations

import pytest
import torch
from prunebench_models.testbed.adapter import Testbed
from prunebench_models.testbed.data import TestbedDataset

from prunebench import Plan, pruned
from prunebench.errors import CalibrationError, RecoveryError
from prunebench.ops import DropLayer, Fold, SetWeights
from prunebench.plan import Provenance
from prunebench.probing.questions import questions
from prunebench.recovery import parse_recovery, recover, training
from prunebench.recovery.material import Material
from prunebench.recovery.stage import training_key
from prunebench.recovery.tune import answer_losses
from tests.tiny_plugin import TinyLlama, TinyText

FAST = {"accumulate": 1, "epochs": 3, "learning_rate": 1e-2, "batch_size": 8}


@pytest.fixture
def loaded():
    return TinyLlama().load()


@pytest.fixture(scope="module")
def samples():
    return TinyText().samples("calibration", 40)


def state_of(loaded):
    """Everything that training could leave behind."""
    model = loaded.model
    return (
        {name: (id(p), p.detach().clone(), p.requires_grad, p.grad) for name, p in model.named_parameters()},
        {name: value.clone() for name, value in model.named_buffers()},
        [id(layer) for layer in loaded.layers],
        {name: module.layer_idx for name, module in model.named_modules() if hasattr(module, "layer_idx")},
        model.training,
    )


def same(first, second):
    parameters = all(
        a[0] == b[0] and torch.equal(a[1], b[1]) and a[2:] == b[2:]
        for a, b in ((first[0][name], second[0][name]) for name in first[0])
    )
    buffers = all(torch.equal(first[1][name], second[1][name]) for name in first[1])
    return parameters and buffers and first[0].keys() == second[0].keys() and first[2:] == second[2:]


def loss_on(loaded, samples, plan):
    with pruned(loaded, plan), torch.no_grad():
        return float(answer_losses(Material(loaded, samples, loaded.encode), questions(loaded, samples))[0].mean())


def test_tuning_lowers_the_answer_loss_of_the_testbed():
    """Questions that were not trained on, asked of the pruned model from outside."""
    loaded, dataset = Testbed().load(), TestbedDataset()
    before = Plan.drop(loaded.info, [2, 7])
    params = {"accumulate": 1, "batch_size": 8, "learning_rate": 1e-3}
    after = recover(before, loaded, dataset.samples("calibration", 72), parse_recovery("tune", None, params))
    assert sorted(op.layer for op in after.ops if isinstance(op, SetWeights)) == [1, 3, 6, 8]
    fresh = dataset.samples("test", 48)
    assert loss_on(loaded, fresh, after) < 0.85 * loss_on(loaded, fresh, before)


def test_the_pruned_model_gives_the_loss_that_training_ended_with(loaded, samples):
    before = Plan.drop(loaded.info, [2, 3])
    after = recover(before, loaded, samples, parse_recovery("tune", None, FAST))
    notes = after.provenance.notes["recovery"]
    assert notes["tuned_layers"] == [1, 4] and notes["held_out_samples"] == 4
    held = [samples[row] for row in training.split_samples(40, 0.1, 0)[1]]
    assert loss_on(loaded, held, before) == pytest.approx(notes["held_out_before"]["answer_loss"], rel=1e-5)
    assert loss_on(loaded, held, after) == pytest.approx(notes["held_out_after"]["answer_loss"], rel=1e-5)
    assert notes["held_out_after"]["answer_loss"] < 0.8 * notes["held_out_before"]["answer_loss"]
    assert Plan.drop(loaded.info, [2, 3]).digest == before.digest != after.digest
    assert after.removed_layers == (2, 3)


def test_a_budget_of_tokens(loaded, samples):
    """Met by whole batches, over several epochs where needed; what ran is counted."""
    recovery = parse_recovery("tune", 700, {**FAST, "epochs": 1})
    plan = recover(Plan.drop(loaded.info, [2]), loaded, samples, recovery)
    cost = plan.cost.recovery
    longest = 8 * (1 + 13 + 2)
    assert 700 <= cost.tokens < 700 + longest and cost.seconds > 0
    assert cost.backward_passes > 36, "more than one epoch"
    assert cost.forward_passes == cost.backward_passes + 2 * 4, "and the held-out samples before and after"
    short = recover(Plan.drop(loaded.info, [2]), loaded, samples, parse_recovery("tune", 1, {**FAST, "held_out": 0.0}))
    assert short.provenance.notes["recovery"]["steps"] == 1 and short.cost.recovery.backward_passes == 8


def test_which_layers_are_tuned(loaded, samples):
    def tuned(plan, **params):
        found = recover(plan, loaded, samples, parse_recovery("tune", 1, params))
        return found.provenance.notes["recovery"]["tuned_layers"]

    plan = Plan.drop(loaded.info, [0, 2, 3])
    assert tuned(plan) == [1, 4] and tuned(plan, layers="all") == [1, 4, 5] and tuned(plan, layers="5") == [5]
    assert tuned(Plan.drop(loaded.info, [])) == [0, 1, 2, 3, 4, 5], "the dense model is tuned as a whole"
    asked = Provenance(strategy="x", notes={"tune_layers": [5]})
    assert tuned(plan.model_copy(update={"provenance": asked})) == [5]
    assert tuned(plan.model_copy(update={"provenance": asked}), layers="all") == [1, 4, 5]
    with pytest.raises(RecoveryError, match="layer 2, which the plan removes"):
        tuned(plan, layers="1,2")
    with pytest.raises(RecoveryError, match=r"layer 9: the model has layers 0\.\.5"):
        tuned(plan, layers="9")


def test_tuning_takes_in_what_was_folded(loaded, samples):
    """A closed form first, then training from there: the final weights hold both."""
    folded = recover(Plan.drop(loaded.info, [2, 3]), loaded, samples, parse_recovery("replaceme"))
    both = recover(folded, loaded, samples, parse_recovery("tune", 1, {"learning_rate": 1e-12}))
    assert not [op for op in both.ops if isinstance(op, Fold)] and DropLayer(layer=2) in both.ops
    inputs = loaded.encode(samples[:3])
    with torch.no_grad():
        with pruned(loaded, folded):
            expected = loaded.adapter.forward(loaded, inputs)
        with pruned(loaded, both):
            torch.testing.assert_close(loaded.adapter.forward(loaded, inputs), expected, rtol=1e-5, atol=1e-6)


def test_tuning_a_module_that_stands_for_a_block(loaded, samples):
    replaced = recover(Plan.drop(loaded.info, [2, 3]), loaded, samples, parse_recovery("layer:ffn", None, FAST))
    both = recover(replaced, loaded, samples, parse_recovery("tune", None, {**FAST, "layers": "2"}))
    assert loss_on(loaded, samples[:8], both) < loss_on(loaded, samples[:8], replaced)


class Stop(Exception):
    pass


def stopping(at, error):
    """Progress that ends everything after `at` batches, as a Ctrl-C or a crash would."""
    calls = []

    def progress(done, whole, text):
        assert done <= whole and text.startswith("loss ")
        calls.append(done)
        if len(calls) == at:
            raise error

    return progress


@pytest.mark.parametrize("name", ["layer", "tune"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, Stop])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_interrupted_and_resumed_is_bit_for_bit_uninterrupted(loaded, samples, tmp_path, name, error, dtype):
    loaded.model.to(dtype)
    plan, recovery = Plan.drop(loaded.info, [2, 3]), parse_recovery(name, None, {**FAST, "accumulate": 2})
    whole = recover(plan, loaded, samples, recovery)
    before = state_of(loaded)
    for at in (4, 3):  # in the middle of a step, twice
        with pytest.raises(error):
            recover(plan, loaded, samples, recovery, stopping(at, error), folder=tmp_path)
        assert same(before, state_of(loaded))
    (path,) = tmp_path.iterdir()
    resumed = recover(plan, loaded, samples, recovery, folder=tmp_path)
    assert resumed.digest == whole.digest and resumed.tensors.digest == whole.tensors.digest
    notes = [plan.provenance.notes["recovery"] for plan in (whole, resumed)]
    assert notes[0] == notes[1] and notes[0]["steps"] > 2
    for part in ("tokens", "forward_passes", "backward_passes"):
        assert getattr(whole.cost.recovery, part) == getattr(resumed.cost.recovery, part)
    assert resumed.cost.recovery.seconds > 0 and same(before, state_of(loaded))
    # It is finished now: asked again, nothing is trained.
    again = recover(plan, loaded, samples, recovery, stopping(1, AssertionError("trained again")), folder=tmp_path)
    assert again.digest == whole.digest and again.cost.recovery == resumed.cost.recovery
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_process_loses_no_more_than_the_last_step(loaded, samples, tmp_path, monkeypatch):
    """Saved after each step; what a kill leaves half done is not in the file."""
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    plan, recovery = Plan.drop(loaded.info, [2, 3]), parse_recovery("tune", None, FAST)
    whole = recover(plan, loaded, samples, recovery)
    monkeypatch.setattr(training._Loop, "whole", property(lambda loop: False, lambda loop, value: None), raising=False)
    with pytest.raises(Stop):  # nothing can be saved on the way out
        recover(plan, loaded, samples, recovery, stopping(6, Stop), folder=tmp_path)
    monkeypatch.undo()
    counted = []
    resumed = recover(plan, loaded, samples, recovery, lambda *done: counted.append(done), folder=tmp_path)
    assert resumed.tensors.digest == whole.tensors.digest
    assert len(counted) == whole.provenance.notes["recovery"]["steps"] - 5


def test_a_damaged_checkpoint_is_said_and_made_anew(loaded, samples, tmp_path):
    plan, recovery = Plan.drop(loaded.info, [2, 3]), parse_recovery("tune", None, FAST)
    whole = recover(plan, loaded, samples, recovery, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    lines = []
    again = recover(plan, loaded, samples, recovery, folder=tmp_path, warn=lines.append)
    assert again.tensors.digest == whole.tensors.digest and len(lines) == 1 and "begins anew" in lines[0]


def test_other_plans_samples_and_settings_have_checkpoints_of_their_own(loaded, samples, tmp_path):
    tune = parse_recovery("tune", 1, FAST)
    for plan, rows, recovery in [
        (Plan.drop(loaded.info, [2]), samples, tune),
        (Plan.drop(loaded.info, [3]), samples, tune),
        (Plan.drop(loaded.info, [2]), samples[:-1], tune),
        (Plan.drop(loaded.info, [2]), samples, tune.model_copy(update={"seed": 1})),
    ]:
        recover(plan, loaded, rows, recovery, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    keys = {
        training_key(Plan.drop(loaded.info, [2, 3], provenance=Provenance(strategy="x", notes=notes)), loaded, [], tune)
        for notes in ({}, {"tune_layers": [1]}, {"replace_block": [1, 4, "ffn"]}, {"replace_block": [1, 4, "layer"]})
    }
    assert len(keys) == 4, "what a strategy asks of the recovery counts, what it notes besides does not"
    assert training_key(Plan.drop(loaded.info, [2, 3]), loaded, [], tune) in keys


def test_the_model_is_as_before_whatever_happens(loaded, samples):
    loaded.layers[1].mlp.down_proj.weight.requires_grad_(False)  # flags that differ come back as they were
    before = state_of(loaded)
    plan = Plan.drop(loaded.info, [2, 3])
    for name in ("replaceme", "layer", "layer:ffn", "tune"):
        recover(plan, loaded, samples, parse_recovery(name, None, FAST))
        assert same(before, state_of(loaded)), name
    with pytest.raises(RecoveryError, match="training diverged"):
        recover(plan, loaded, samples, parse_recovery("tune", None, {**FAST, "learning_rate": 1e30}))
    assert same(before, state_of(loaded))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in loaded.model.modules())


def test_inputs_that_were_made_in_inference_mode(loaded, samples):
    """Encoder outputs that the run kept come from inference mode, which autograd refuses."""
    with torch.inference_mode():
        kept = {sample.id: loaded.encode([sample]) for sample in samples}
    loaded.adapter.batching = False  # one by one: accumulation makes up the batch
    plan = Plan.drop(loaded.info, [2, 3])
    for name in ("layer", "tune"):
        found = recover(plan, loaded, samples, parse_recovery(name, None, FAST), encode=lambda batch: kept[batch[0].id])
        assert found.provenance.notes["recovery"]["steps"] == 3 * 36 // 8 + 1


def test_samples_without_answers_are_said(loaded, samples):
    import dataclasses

    silent = [dataclasses.replace(sample, answer=None) for sample in samples]
    with pytest.raises(CalibrationError, match="has no answer"):
        recover(Plan.drop(loaded.info, [2]), loaded, silent, parse_recovery("tune"))
    recover(Plan.drop(loaded.info, [2, 3]), loaded, silent, parse_recovery("layer", 1))  # which needs none
