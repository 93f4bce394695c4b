"""One module in the place of a run: what it learns, what it sees, and that it runs as it was trained."""

from __future__ import annotations

import math

import pytest
import torch

from prunebench import Plan, pruned
from prunebench.errors import RecoveryError
from prunebench.ops import DropLayer, Fold, ReplaceBlock
from prunebench.plan import Provenance
from prunebench.recovery import parse_recovery, recover
from prunebench.recovery.boundaries import run_to
from prunebench.recovery.replace import bidirectional, replaceable
from prunebench.recovery.training import _Loop, split_samples
from tests.tiny_plugin import TinyGemma, TinyLlama, TinyText

FAST = {"accumulate": 1, "epochs": 4, "learning_rate": 1e-2}


@pytest.fixture(params=[TinyLlama, TinyGemma])
def loaded(request):
    return request.param().load()


@pytest.fixture(scope="module")
def samples():
    return TinyText().samples("calibration", 40)


def block_output(loaded, samples, layer):
    """What `layer` gives for each sample alone, without padding."""
    found = []
    handle = loaded.layers[layer].register_forward_hook(lambda _m, _a, output: found.append(output))
    with torch.no_grad():
        for sample in samples:
            loaded.adapter.forward(loaded, loaded.encode([sample]))
    handle.remove()
    return torch.cat([(x[0] if isinstance(x, tuple) else x)[0] for x in found])


@pytest.mark.parametrize("name", ["layer", "layer:ffn", "layer:linear"])
def test_a_module_learns_and_runs_as_it_was_trained(loaded, samples, name):
    """Its error on held-out samples, measured on the pruned model: the number in the notes, and far below dropping."""
    recovery = parse_recovery(name, None, FAST)
    plan = recover(Plan.drop(loaded.info, [0, 2, 3]), loaded, samples, recovery)
    assert plan.ops == (
        DropLayer(layer=0),
        ReplaceBlock(start=2, stop=4, module=recovery.module, tensors="replacement.2"),
    )
    assert plan.removed_layers == (0, 3), "one layer comes back"
    notes = plan.provenance.notes["recovery"]
    assert notes["layers_back"] == 1 and notes["causal_in_training"] is True
    assert [line for line in plan.provenance.warnings if "layer 0 stands alone" in line]
    before, after = notes["held_out_mse_before"], notes["held_out_mse_after"]
    assert after["2-4"] < 0.7 * before["2-4"]
    # Gemma's random layers are far from what a network without residual and norm learns in so few steps.
    assert name == "layer:ffn" or after["2-4"] < 0.7 * before["2-4 dropped"]
    assert before["2-4 dropped"] == after["2-4 dropped"]
    if name == "layer:linear":
        assert before["2-4"] == pytest.approx(before["2-4 dropped"]), "it starts as the identity"
    held = [samples[row] for row in split_samples(len(samples), recovery.held_out, recovery.seed)[1]]
    assert len(held) == notes["held_out_samples"] == 4
    only = Plan.of(loaded.info, plan.ops[1:], plan.tensors)  # layer 0 back again: the module was fed by the dense model
    target = block_output(loaded, held, 3)
    with pruned(loaded, only):
        given = block_output(loaded, held, 2)
    assert float((given - target).square().mean()) == pytest.approx(after["2-4"], rel=1e-4)


def test_all_runs_are_trained_in_one_pass(samples):
    loaded = TinyLlama().load()
    both = recover(Plan.drop(loaded.info, [0, 1, 3, 4]), loaded, samples, parse_recovery("layer", None, FAST))
    assert [(op.start, op.stop) for op in both.ops] == [(0, 2), (3, 5)] and both.removed_layers == (1, 4)
    single = recover(Plan.drop(loaded.info, [3, 4]), loaded, samples, parse_recovery("layer", None, FAST))
    assert both.cost.recovery.forward_passes == single.cost.recovery.forward_passes
    for key in single.tensors:  # no run sees the other: each comes out as it would alone
        assert torch.equal(both.tensors[key], single.tensors[key])


def test_a_slot_that_a_strategy_kept_gets_the_module(samples):
    """Its note says where: the block is one layer longer than what was removed, and no layer comes back."""
    loaded = TinyLlama().load()
    plan = Plan.drop(loaded.info, [3, 4], provenance=Provenance(strategy="x", notes={"replace_block": [2, 5, "layer"]}))
    found = recover(plan, loaded, samples, parse_recovery("layer", None, FAST))
    (op,) = found.ops
    assert (op.start, op.stop, op.module) == (2, 5, "decoder_layer") and found.removed_layers == (3, 4)
    assert found.provenance.notes["recovery"]["layers_back"] == 0
    blocks, _ = replaceable(plan, parse_recovery("layer:linear"))
    assert [(block.start, block.stop, block.module) for block in blocks] == [(2, 5, "linear")], "the user's word counts"
    notes = {"replace_block": [2, 5, "ffn"]}
    ffn = plan.model_copy(update={"provenance": Provenance(strategy="x", notes=notes)})
    assert [block.module for block in replaceable(ffn, parse_recovery("layer"))[0]] == ["ffn"]
    wrong = Plan.drop(loaded.info, [3], provenance=Provenance(strategy="x", notes=notes))
    with pytest.raises(RecoveryError, match="does not fit: it removes"):
        recover(wrong, loaded, samples, parse_recovery("layer"))


def later_tokens_matter(loaded, inputs, layer, **changes):
    """Whether `layer`, called as it is in a pass over `inputs`, gives something else early on if the end is another."""
    other = inputs.embeds.clone()
    other[:, -1] += 1.0
    call = run_to(loaded, inputs, {layer}, set()).calls[layer]
    changed = call.hidden.clone()
    changed[:, -1] += 1.0
    with torch.no_grad():
        first, second = (call.on(loaded.layers[layer], hidden, **changes) for hidden in (call.hidden, changed))
    return not torch.equal(first[:, :-1], second[:, :-1])


def test_training_is_causal_and_the_released_code_is_not(loaded, samples):
    """What a student may see is what its call lets it see: the model's own mask, or none."""
    inputs = loaded.encode(samples[:1])
    with pruned(loaded, recover(Plan.drop(loaded.info, [2, 3]), loaded, samples, parse_recovery("layer", None, FAST))):
        assert not later_tokens_matter(loaded, inputs, 2)
        mask = bidirectional(inputs, loaded.decoder.config._attn_implementation, torch.float32)
        assert later_tokens_matter(loaded, inputs, 2, attention_mask=mask)
    released = parse_recovery("layer", None, {**FAST, "variant": "released_code"})
    found = recover(Plan.drop(loaded.info, [2, 3]), loaded, samples, released)
    assert found.provenance.notes["recovery"]["causal_in_training"] is False
    causal = recover(Plan.drop(loaded.info, [2, 3]), loaded, samples, parse_recovery("layer", None, FAST))
    assert found.tensors != causal.tensors
    with pruned(loaded, found):  # it runs causally all the same
        assert not later_tokens_matter(loaded, inputs, 2)


def test_the_mask_of_the_released_code_keeps_padding_out(samples):
    loaded = TinyLlama().load()
    inputs = loaded.encode(samples[:4])
    real = inputs.attention_mask.bool()
    assert not real.all()
    seen = bidirectional(inputs, "sdpa", torch.float32)
    for row in range(4):
        count = int(real[row].sum())
        assert seen[row, 0][real[row]][:, real[row]].all() and int(seen[row, 0][real[row]].sum()) == count**2
    added = bidirectional(inputs, "eager", torch.float32)
    assert torch.equal(added == 0, seen) and (added[~seen] < -1e30).all()
    with pytest.raises(RecoveryError, match="--attn-implementation sdpa"):
        bidirectional(inputs, "flash_attention_2", torch.float32)


def rates(**params):
    recovery = parse_recovery("layer", None, params)
    loop = _Loop({"g": {"p": torch.nn.Parameter(torch.zeros(1))}}, recovery, range(10), None, 2, None, None)
    return [loop.rate(share) for share in (0.0, 0.1, 0.55, 1.0)]


def test_learning_rates():
    assert rates() == pytest.approx([2e-4, *(5e-5 + 7.5e-5 * (1 + math.cos(math.pi * s)) for s in (0.1, 0.55)), 5e-5])
    assert rates(warmup=0.1) == pytest.approx([0.0, 2e-4, 1.25e-4, 5e-5])
    # A horizon of half the batches, stepped once per 16 of them: an eighth of the cosine is used.
    released = rates(variant="released_code")
    assert released[-1] == pytest.approx(5e-5 + 7.5e-5 * (1 + math.cos(math.pi / 8))) and released[-1] > 1.9e-4


def test_what_does_not_fit_is_said(samples):
    loaded, layer = TinyLlama().load(), parse_recovery("layer", None, FAST)
    with pytest.raises(RecoveryError, match=r"layers \[1, 3\] stand alone"):
        recover(Plan.drop(loaded.info, [1, 3]), loaded, samples, layer)
    folded = recover(Plan.drop(loaded.info, [2, 3]), loaded, samples, parse_recovery("replaceme"))
    assert isinstance(folded.ops[-1], Fold)
    with pytest.raises(RecoveryError, match="already changes layer 1"):
        recover(folded, loaded, samples, layer)
    with pytest.raises(RecoveryError, match="calibration samples"):
        recover(Plan.drop(loaded.info, [2, 3]), loaded, [], layer)
    empty = recover(Plan.drop(loaded.info, []), loaded, samples, layer)
    assert empty.is_empty and [line for line in empty.provenance.warnings if "nothing to replace" in line]
    loaded.model.half()
    with pytest.raises(RecoveryError, match="--dtype bfloat16 or float32"):
        recover(Plan.drop(loaded.info, [2, 3]), loaded, samples, layer)


def test_what_a_decoder_adds_between_its_layers_is_not_lost_in_silence(samples):
    loaded = TinyLlama().load()
    handle = loaded.layers[3].register_forward_pre_hook(lambda _m, args: (args[0] + 1.0, *args[1:]))
    try:
        for name in ("layer", "replaceme"):
            with pytest.raises(RecoveryError, match="adds something between layers 2 and 3"):
                recover(Plan.drop(loaded.info, [2, 3]), loaded, samples, parse_recovery(name))
    finally:
        handle.remove()


def test_bfloat16_learns_in_float32(samples):
    """Steps far below the last digit of a bfloat16 weight add up instead of vanishing."""
    loaded = TinyLlama().load()
    loaded.model.to(torch.bfloat16)
    slow = parse_recovery("layer", None, {"accumulate": 1, "epochs": 8, "learning_rate": 2e-4, "batch_size": 4})
    plan = recover(Plan.drop(loaded.info, [2, 3]), loaded, samples, slow)
    assert {value.dtype for value in plan.tensors.values()} == {torch.bfloat16}
    notes = plan.provenance.notes["recovery"]
    assert notes["held_out_mse_after"]["2-4"] < 0.97 * notes["held_out_mse_before"]["2-4"]
