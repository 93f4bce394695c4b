"""What the probe says is what really pruned models do, from fewer layers run, on a model that stays as it was."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from prunebench_models.hf.adapter import TransformersModel
from prunebench_models.hf.deepstack import has_deepstack
from prunebench_models.hf.families import ALIASES
from torch import nn

from prunebench import LoadedModel, Plan, pruned
from prunebench.calibration.samples import Sample
from prunebench.errors import CalibrationError, PlanError
from prunebench.measure.cost import describe
from prunebench.ops import DropSublayer, Merge
from prunebench.probing import Probe, Remembered, balanced
from prunebench.probing.passage import Passage
from prunebench.testing.tiny import TinyGemma, TinyLlama, TinyMedia
from tests.models.family_configs import BY_NAME

SAMPLES = TinyMedia().samples("calibration", 6)


@pytest.fixture(scope="module")
def llama():
    return TinyLlama().load()


@pytest.fixture(scope="module")
def gemma():
    return TinyGemma().load()


def by_hand(loaded, plan, samples=SAMPLES):
    """Mean loss of each sample's answer under a plan: one sample at a time, the whole model, no padding."""
    found = []
    with pruned(loaded, plan), torch.inference_mode():
        for sample in samples:
            answer = loaded.adapter.answer_ids(loaded, sample)
            ids = torch.tensor([answer])
            inputs = loaded.adapter.append_tokens(loaded, loaded.encode([sample]), ids, torch.ones_like(ids))
            logits = loaded.adapter.forward(loaded, inputs).double()[0, -len(answer) - 1 : -1]
            found.append(-logits.log_softmax(-1)[torch.arange(len(answer)), ids[0]].mean().item())
    return np.array(found)


def state(loaded):
    """All that a probe could leave behind."""
    weights = [(p.data_ptr(), p.requires_grad, p.grad, p.detach().clone()) for p in loaded.model.parameters()]
    patched = [name for name, module in loaded.model.named_modules() if "forward" in vars(module)]
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in loaded.model.modules())
    return weights, patched, hooks


def same(before, after):
    return before[1:] == after[1:] and all(
        one[:3] == two[:3] and torch.equal(one[3], two[3]) for one, two in zip(before[0], after[0], strict=True)
    )


@pytest.mark.parametrize("memory", [0, 3000, 1 << 30])
@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_a_layer_left_out_costs_what_pruning_it_costs(family, memory, request):
    loaded = request.getfixturevalue(family)
    probe = Probe(loaded, SAMPLES, batch_size=4, memory=memory)
    order = [SAMPLES.index(sample) for sample in probe.samples]
    found = probe.losses(list(range(6)), removed=(2,))
    for layer in range(6):
        expected = by_hand(loaded, Plan.drop(loaded.info, {2, layer}))[order]
        np.testing.assert_allclose(found[layer], expected, atol=2e-5)
    assert probe._states.used <= memory
    np.testing.assert_allclose(probe.loss(), by_hand(loaded, Plan.drop(loaded.info))[order], atol=2e-5)


def test_parts_of_layers(llama):
    probe = Probe(llama, SAMPLES)
    order = [SAMPLES.index(sample) for sample in probe.samples]
    candidates = [(layer, part) for layer in (0, 3, 5) for part in ("attention", "mlp")]
    found = probe.losses(candidates, removed=[(3, "mlp"), 1])
    for (layer, part), losses in zip(candidates, found, strict=True):
        ops = [{"op": "drop_layer", "layer": 1}, DropSublayer(layer=3, part="mlp")]
        ops += [] if (layer, part) == (3, "mlp") else [DropSublayer(layer=layer, part=part)]
        np.testing.assert_allclose(losses, by_hand(llama, Plan.of(llama.info, ops))[order], atol=2e-5)


def test_only_what_is_behind_runs(llama):
    probe = Probe(llama, SAMPLES)
    probe.losses([4])
    assert probe.layer_forwards == (4 + 1) * 6  # four in front, once; the one behind
    probe.losses([4, (4, "mlp")])
    assert probe.layer_forwards == (5 + 1.5) * 6  # the state in front is kept, and so is the answer about 4
    probe.losses([5], removed=[4])
    assert probe.layer_forwards == (5 + 1.5 + 0) * 6  # without 4 the same state goes into 5
    small = Probe(llama, SAMPLES, memory=0)
    small.losses(list(range(6)))
    assert small.layer_forwards == (5 + 5 + 4 + 3 + 2 + 1 + 0) * 6  # nothing is kept, and nothing runs twice
    assert small.passes == pytest.approx(20 / 6)
    twice = Probe(llama, SAMPLES)
    first, again = twice.losses([4, (4,)])
    assert np.array_equal(first, again) and twice.layer_forwards == (4 + 1) * 6  # one question, asked twice


def test_what_was_asked_before_is_not_run_again_and_costs_the_same(llama):
    def ask(probe):
        return [
            probe.losses([0, 1, (3, "mlp")]),
            probe.losses([2, 4], removed=[1]),
            probe.losses([2, (3, "mlp")], removed=[1]),
            probe.changes([0, 1], metric="kl"),
            probe.changes([0, 1], metric="norm"),
            probe.take(2).losses([0, 1]),
            probe.take(2, held_out=True).losses([0, 1]),
        ]

    ran = []
    handles = [layer.register_forward_hook(lambda *_: ran.append(1)) for layer in llama.layers]
    remembered = Remembered()
    alone, first, second = Probe(llama, SAMPLES), *(Probe(llama, SAMPLES, remembered=remembered) for _ in range(2))
    try:
        expected, found = ask(alone), ask(first)
        so_far = len(ran)
        again = ask(second)
    finally:
        for handle in handles:
            handle.remove()
    assert so_far and len(ran) == so_far
    for one, two, three in zip(expected, found, again, strict=True):
        assert np.array_equal(one, two) and np.array_equal(two, three)
    assert alone.counts.layer_forwards == first.counts.layer_forwards == second.counts.layer_forwards
    assert alone.counts.tokens == first.counts.tokens == second.counts.tokens
    assert first.counts.recalled_seconds == 0 < second.counts.recalled_seconds


def test_a_layer_that_is_left_out_before_any_has_run_returns_what_its_kind_returns():
    loaded = TinyLlama().load()
    kind = type(loaded.layers[0])

    class InTuple(kind):
        def forward(self, *args, **kwargs):
            return (super().forward(*args, **kwargs),)

    hidden, passage = torch.zeros(1, 2, 8), Passage(loaded)
    assert passage._alike(hidden, loaded.layers[0]) is hidden
    loaded.layers[0].__class__ = InTuple
    found = passage._alike(hidden, loaded.layers[0])
    assert isinstance(found, tuple) and len(found) == 1 and found[0] is hidden


NAMES = ("Llama", "Gemma3", "PaliGemma2", "Qwen2VL", "Qwen3VL", "Qwen3.5", "Mllama")


def build(name):
    family = BY_NAME[name]
    model, adapter = family.model(), TransformersModel()
    adapter.use(ALIASES[family.row])
    loaded = LoadedModel(
        model,
        adapter,
        describe(model, adapter, name=name, revision="0" * 64, dtype="float32"),
        torch.device("cpu"),
    )
    with torch.inference_mode():
        return loaded, adapter.encode_batch(loaded, family.inputs(model, 1), "only")


@pytest.mark.parametrize("name", NAMES)
def test_families(name):
    loaded, inputs = build(name)
    ids = torch.tensor([[11, 12, 2]])
    with torch.inference_mode():
        longer = loaded.adapter.append_tokens(loaded, inputs, ids, torch.ones_like(ids))
        # Token by token with a cache is what an answer really is.
        logits, cache = loaded.adapter.prefill(loaded, inputs)
        steps = [logits]
        for token in ids[0]:
            logits, cache = loaded.adapter.decode_step(loaded, token[None], cache)
            steps.append(logits)
        whole = loaded.adapter.forward(loaded, longer, logits_to_keep=4)
        torch.testing.assert_close(whole[0], torch.cat(steps), atol=3e-5, rtol=1e-4)
        passage = Passage(loaded)
        states = passage.states(longer, [1, 3, 4], left={})
        for layers in ((1,), (3, 4), (4,), (1, 3)):
            left = {layer: frozenset({"attention", "mlp"}) for layer in layers}
            start = layers[0]
            found = passage.logits(longer, 4, start=start, state=states[start], left=left)
            with pruned(loaded, Plan.drop(loaded.info, layers)):
                expected = loaded.adapter.forward(loaded, longer, logits_to_keep=4)
            close = {"atol": 2e-5, "rtol": 1e-5} if has_deepstack(loaded.decoder) else {"atol": 0.0, "rtol": 0.0}
            torch.testing.assert_close(found, expected, **close)
            assert not torch.equal(found, whole)


class Reader(TinyLlama):
    """Takes every sample as running text."""

    def text_ids(self, loaded, sample):
        return [1, *(int(word[1:]) for word in sample.instruction.split())]


def test_running_text_counts_every_token_but_the_first():
    loaded = Reader().load()
    samples = [Sample(id=str(i), instruction=text) for i, text in enumerate(["w5 w9 w7 w5", "w8 w8", "w30 w4 w6"])]
    probe = Probe(loaded, samples)
    assert probe.counted_tokens.tolist() == [4, 2, 3]
    for sample, losses in zip(samples, probe.token_losses([3]), strict=True):
        ids = torch.tensor([loaded.adapter.text_ids(loaded, sample)])
        with pruned(loaded, Plan.drop(loaded.info, [3])), torch.inference_mode():
            logits = loaded.model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        expected = -logits[torch.arange(ids.shape[1] - 1), ids[0, 1:]]
        np.testing.assert_allclose(losses, expected.numpy(), atol=1e-5)
    probe.samples = [dataclasses.replace(samples[0], instruction="w5 w9 w7"), *samples[1:]]
    probe._asked = None
    loaded.adapter.text_ids = lambda _loaded, _sample: [1, 5, 9, 9]
    with pytest.raises(CalibrationError, match="more around a text than the text itself"):
        probe.loss()


def test_gradient_sums_are_those_of_autograd(llama):
    before = state(llama)
    probe = Probe(llama, SAMPLES, batch_size=4)
    found = probe.gradients()
    assert same(before, state(llama))
    model = llama.model
    total = 0.0
    for sample in SAMPLES:  # one by one, as a single sum
        answer = torch.tensor([llama.adapter.answer_ids(llama, sample)])
        with torch.no_grad():
            inputs = llama.adapter.append_tokens(llama, llama.encode([sample]), answer, torch.ones_like(answer))
        logits = model(inputs_embeds=inputs.embeds).logits[0, -answer.shape[1] - 1 : -1]
        total = total + nn.functional.cross_entropy(logits, answer[0]) / len(SAMPLES)
    total.backward()
    try:
        for number, layer in enumerate(model.model.layers):
            expected = sum((p * p.grad).abs().sum().item() for p in layer.parameters())
            assert found["layer"][number] == pytest.approx(expected, rel=1e-3)
            parts = {"attention": layer.self_attn, "mlp": layer.mlp}
            for name, part in parts.items():
                expected = sum((p * p.grad).abs().sum().item() for p in part.parameters())
                assert found[name][number] == pytest.approx(expected, rel=1e-3)
    finally:
        model.zero_grad(set_to_none=True)
    assert (probe.counts.backward_passes, probe.passes) == (6, 1.0)
    sizes = [sum(p.abs().sum().item() for p in layer.parameters()) for layer in model.model.layers]
    np.testing.assert_allclose(probe.weights()["layer"], sizes, rtol=1e-5)


def test_an_interrupted_probe_leaves_nothing_behind(llama):
    before, calls = state(llama), 0

    def encode(samples):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return llama.encode(samples)

    probe = Probe(llama, SAMPLES, batch_size=3, encode=encode)
    with pytest.raises(KeyboardInterrupt):
        probe.losses([1, (2, "mlp")])
    calls = 0
    with pytest.raises(KeyboardInterrupt):
        probe.gradients()
    llama.layers[4].mlp.forward = lambda *_args: 1 / 0
    try:
        with pytest.raises(ZeroDivisionError):
            Probe(llama, SAMPLES).losses([1, (2, "mlp")])
    finally:
        del llama.layers[4].mlp.forward
    assert same(before, state(llama))


def test_changes_of_the_output(llama):
    probe = Probe(llama, SAMPLES)
    dense = probe._passage
    for metric in ("kl", "cosine", "norm"):
        found = probe.changes([(), 1, (4, "attention")], metric=metric)
        np.testing.assert_allclose(found[0], 0.0, atol=1e-6)
        assert (found[1:] > 1e-5).all()
    batch = next(probe.batches())
    with torch.inference_mode():
        before = dense.logits(batch.inputs, batch.keep).double().log_softmax(-1)
        left = {1: frozenset({"attention", "mlp"})}
        after = dense.logits(batch.inputs, batch.keep, left=left).double().log_softmax(-1)
    divergence = (before.exp() * (before - after)).sum(-1)
    rows = [divergence[row][batch.targets[row] >= 0].mean().item() for row in range(len(batch.rows))]
    np.testing.assert_allclose(probe.changes([1], metric="kl")[0], rows, rtol=1e-4)


def test_similarity_of_a_merged_model(llama):
    probe = Probe(llama, SAMPLES, batch_size=4)
    np.testing.assert_allclose(probe.similarity(Plan.of(llama.info, [])), 1.0, atol=1e-6)
    plan = Plan.of(llama.info, [Merge(into=3, sources=(3, 4), coefficients=(0.25, 0.75))])
    found, norm = probe.similarity(plan), llama.decoder.norm
    for row, sample in enumerate(probe.samples):
        answer = torch.tensor([llama.adapter.answer_ids(llama, sample)])
        states = []
        handle = norm.register_forward_hook(lambda _m, _a, output, states=states: states.append(output.double()))
        with torch.inference_mode():
            inputs = llama.adapter.append_tokens(llama, llama.encode([sample]), answer, torch.ones_like(answer))
            llama.adapter.forward(llama, inputs)
            with pruned(llama, plan):
                llama.adapter.forward(llama, inputs)
        handle.remove()
        first, second = (states[i].flatten() for i in (0, 1))
        assert found[row] == pytest.approx((first @ second / first.norm() / second.norm()).item(), abs=1e-5)


@pytest.mark.parametrize("layers", [[5], [4, 5], [4], [0], [1, 5]])
def test_similarity_of_a_model_without_layers(llama, layers):
    probe = Probe(llama, SAMPLES[:2])
    found = probe.similarity(Plan.drop(llama.info, layers))
    batch, states = next(probe.batches()), []
    handle = llama.decoder.norm.register_forward_hook(lambda _m, _a, output: states.append(output.double()))
    try:
        with torch.inference_mode():
            llama.adapter.forward(llama, batch.inputs)
            with pruned(llama, Plan.drop(llama.info, layers)):
                llama.adapter.forward(llama, batch.inputs)
    finally:
        handle.remove()
    for row, real in enumerate(batch.inputs.attention_mask.bool()):
        first, second = (each[row][real].flatten() for each in states)
        assert found[row] == pytest.approx((first @ second / first.norm() / second.norm()).item(), abs=1e-5)


def test_parts_of_a_probe_share_the_count_and_take_turns(llama):
    probe = Probe(llama, SAMPLES)
    few, last = probe.take(2), probe.take(2, held_out=True)
    assert few is probe.take(2) and [s.id for s in few.samples] != [s.id for s in last.samples]
    few.loss()
    last.loss()
    assert probe.layer_forwards == 4 * 6 and probe.take(100).n_samples == 6
    domains = [sample.domain for sample in balanced([Sample("1", "", domain=d) for d in "aaabbc"])]
    assert domains == ["a", "b", "c", "a", "b", "a"]
    cost = probe.counts.added_to(Plan.drop(llama.info).cost)
    assert (cost.forward_passes, cost.backward_passes) == (4, 0)


def test_what_cannot_be_asked_is_said_in_a_line(llama):
    probe = Probe(llama, SAMPLES)
    with pytest.raises(PlanError, match="at least one has to stay"):
        probe.loss(range(6))
    with pytest.raises(PlanError, match="layer 6 does not exist"):
        probe.losses([6])
    with pytest.raises(CalibrationError, match="'q' has no answer"):
        Probe(llama, [Sample(id="q", instruction="w5")]).loss()
    remembered = Remembered()
    Probe(llama, SAMPLES, remembered=remembered).loss()
    for known in (None, remembered):  # what others have asked is no answer about no samples
        with pytest.raises(CalibrationError, match="no calibration samples"):
            Probe(llama, [], remembered=known).loss()
    with pruned(llama, Plan.drop(llama.info, [1])), pytest.raises(PlanError, match="load the dense one"):
        Probe(llama, SAMPLES)
    half = TinyLlama().load()
    half.model.half()
    with pytest.raises(CalibrationError, match="float16"):
        Probe(half, SAMPLES).gradients()
    half.layers[2].to("meta")
    with pytest.raises(CalibrationError, match="offloaded"):
        Probe(half, SAMPLES).weights()
    broken = TinyLlama().load()
    broken.layers[5].mlp.down_proj.weight.data.fill_(float("nan"))
    with pytest.raises(CalibrationError, match="not finite"):
        Probe(broken, SAMPLES).loss()
