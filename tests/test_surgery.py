"""Surgery: a pruned model equals the dense one with the dropped layers as identities, and comes back unharmed."""

from __future__ import annotations

import pytest
import torch
from prunebench_models.testbed.adapter import Testbed
from prunebench_models.testbed.data import TestbedDataset

from prunebench import Plan, prune, pruned
from prunebench.errors import PlanError
from tests.tiny_plugin import TinyGemma, TinyLlama, TinyText
from tests.truth import identity_in_place

PATTERNS = {
    6: [(2, 3), (0,), (0, 1), (1, 4), (5,), (0, 2, 3)],
    16: [(2, 3), (0,), (0, 1), (1, 14), (15,), (0, 2, 3, 9)],
}
ADAPTERS = {"tiny-llama": TinyLlama, "tiny-gemma3": TinyGemma, "testbed": Testbed}


@pytest.fixture(scope="module", params=sorted(ADAPTERS))
def loaded(request):
    return ADAPTERS[request.param]().load()


@pytest.fixture(scope="module")
def inputs(loaded):
    dataset = TestbedDataset() if loaded.info.name == "testbed" else TinyText()
    with torch.inference_mode():
        return loaded.encode(dataset.samples("test", 4))


def logits(loaded, inputs):
    with torch.inference_mode():
        return loaded.adapter.forward(loaded, inputs)


def snapshot(loaded):
    """Everything that surgery may touch, by value."""
    model = loaded.model
    config = loaded.adapter.text_config(model)
    return (
        [id(layer) for layer in loaded.layers],
        {name: tensor.detach().clone() for name, tensor in model.state_dict().items()},
        {name: module.layer_idx for name, module in model.named_modules() if hasattr(module, "layer_idx")},
        config.to_dict(),
        model.config.to_dict(),
    )


def same(first, second):
    return (
        first[0] == second[0]
        and first[1].keys() == second[1].keys()
        and all(torch.equal(first[1][name], second[1][name]) for name in first[1])
        and first[2:] == second[2:]
    )


def patterns(loaded):
    return PATTERNS[loaded.info.n_layers]


def test_pruned_equals_identity_in_place(loaded, inputs):
    """The truth test: bit for bit on every drop pattern, positions and per-layer masks included."""
    for drop in patterns(loaded):
        with identity_in_place(loaded, drop):
            expected = logits(loaded, inputs)
        with pruned(loaded, Plan.drop(loaded.info, drop)):
            assert len(loaded.layers) == loaded.info.n_layers - len(drop)
            assert torch.equal(logits(loaded, inputs), expected), drop


def test_dropping_changes_the_output(loaded, inputs):
    dense = logits(loaded, inputs)
    for drop in patterns(loaded):
        with pruned(loaded, Plan.drop(loaded.info, drop)):
            assert not torch.equal(logits(loaded, inputs), dense), drop


def test_cached_generation_equals_recomputing(loaded, inputs):
    """Greedy decoding with a cache equals the argmax of full forward passes, so `layer_idx` fits the cache."""
    for drop in patterns(loaded):
        with pruned(loaded, Plan.drop(loaded.info, drop)), torch.inference_mode():
            adapter = loaded.adapter
            step, state = adapter.prefill(loaded, inputs)
            embeds, mask = inputs.embeds, inputs.attention_mask
            for _ in range(5):
                growing = type(inputs)(embeds, mask, inputs.groups)
                full = adapter.forward(loaded, growing, logits_to_keep=1)[:, -1]
                torch.testing.assert_close(step, full, atol=2e-4, rtol=1e-4)
                token = full.argmax(-1)
                step, state = adapter.decode_step(loaded, token, state)
                embeds = torch.cat([embeds, loaded.model.get_input_embeddings()(token[:, None])], 1)
                mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)


def test_left_padding_changes_nothing(loaded, inputs):
    dataset = TestbedDataset() if loaded.info.name == "testbed" else TinyText()
    with torch.inference_mode():
        for row, sample in enumerate(dataset.samples("test", 4)):
            alone = logits(loaded, loaded.encode([sample]))[0, -1]
            torch.testing.assert_close(logits(loaded, inputs)[row, -1], alone, atol=2e-4, rtol=1e-4)


def test_state_is_restored(loaded):
    before = snapshot(loaded)
    with pruned(loaded, Plan.drop(loaded.info, (1, 3))):
        assert not same(snapshot(loaded), before)
    assert same(snapshot(loaded), before)


def test_state_is_restored_when_the_body_raises(loaded):
    before = snapshot(loaded)
    with pytest.raises(RuntimeError, match="body"), pruned(loaded, Plan.drop(loaded.info, (0, 2))):
        raise RuntimeError("body")
    assert same(snapshot(loaded), before)


def test_empty_plan_is_a_no_op(loaded, inputs):
    before, dense = snapshot(loaded), logits(loaded, inputs)
    with pruned(loaded, Plan.drop(loaded.info)):
        assert same(snapshot(loaded), before)
        assert torch.equal(logits(loaded, inputs), dense)


def test_nested_plans_are_refused(loaded):
    plan = Plan.drop(loaded.info, (1,))
    with pruned(loaded, plan), pytest.raises(PlanError, match="load the dense model"), pruned(loaded, plan):
        pass


def test_foreign_and_protected_plans_are_refused(loaded):
    other = loaded.info.model_copy(update={"revision": "0" * 64})
    with pytest.raises(PlanError, match="plan anew"), pruned(loaded, Plan.drop(other, (1,))):
        pass
    deeper = loaded.info.model_copy(update={"n_layers": 40})
    with pytest.raises(PlanError, match="40 decoder layers"), pruned(loaded, Plan.drop(deeper, (1,))):
        pass
    plan, info = Plan.drop(loaded.info, (1,)), loaded.info
    loaded.info = info.model_copy(update={"protected": (1,)})
    try:
        with pytest.raises(PlanError, match="cannot be removed"), pruned(loaded, plan):
            pass
    finally:
        loaded.info = info


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_permanent_form_saves_and_reloads(name, tmp_path):
    """A pruned model saved and loaded by plain `from_pretrained`: no key missing or left over, equal logits."""
    loaded = ADAPTERS[name]().load()
    dataset = TestbedDataset() if name == "testbed" else TinyText()
    with torch.inference_mode():
        inputs = loaded.encode(dataset.samples("test", 3))
    drop = (1, 4)
    prune(loaded, Plan.drop(loaded.info, drop))
    expected = logits(loaded, inputs)
    loaded.model.save_pretrained(tmp_path)
    again, report = type(loaded.model).from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert again.config.prunebench["removed_layers"] == list(drop)
    assert len(again.get_decoder().layers) == loaded.info.n_layers - len(drop)
    loaded.model = again.eval()
    assert torch.equal(logits(loaded, inputs), expected)


def test_ids_are_counted_from_the_model_that_was_never_pruned():
    """Pruning what was pruned before: the lists in the configuration compose."""
    loaded = TinyLlama().load()
    prune(loaded, Plan.drop(loaded.info, (1, 4)))
    assert loaded.model.config.prunebench["kept_layers"] == [0, 2, 3, 5]
    loaded.info = loaded.info.model_copy(update={"n_layers": 4})
    prune(loaded, Plan.drop(loaded.info, (1, 3)))
    found = loaded.model.config.prunebench
    assert (found["kept_layers"], found["removed_layers"]) == ([0, 3], [1, 2, 4, 5])


def test_an_adapter_s_own_step_is_undone_too():
    calls = []

    class WithStep(TinyLlama):
        def layers_removed(self, model, kept):
            calls.append(tuple(kept))
            return lambda: calls.append("undone")

    loaded = WithStep().load()
    with pruned(loaded, Plan.drop(loaded.info, (1, 4))):
        assert calls == [(0, 2, 3, 5)]
    assert calls == [(0, 2, 3, 5), "undone"]


def test_a_step_that_cannot_be_undone_leaves_no_plan_behind():
    class Fails(TinyLlama):
        def layers_removed(self, model, kept):
            def undo():
                raise RuntimeError("no way back")

            return undo

    loaded = Fails().load()
    before = snapshot(loaded)
    with pytest.raises(RuntimeError, match="no way back"), pruned(loaded, Plan.drop(loaded.info, (1, 4))):
        pass
    assert same(snapshot(loaded), before)


def test_a_failing_step_leaves_the_model_as_it_was():
    class Fails(TinyLlama):
        def layers_removed(self, model, kept):
            raise PlanError("no")

    loaded = Fails().load()
    before = snapshot(loaded)
    with pytest.raises(PlanError, match="no"), pruned(loaded, Plan.drop(loaded.info, (1, 4))):
        pass
    assert same(snapshot(loaded), before)
