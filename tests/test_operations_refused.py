"""What the surgery refuses, in one line and with the model as it was; and the cache's places by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunebench import Plan, prune, pruned
from prunebench.cache_slots import cache_kinds, cache_slots
from prunebench.errors import PlanError
from prunebench.layer_parts import gives_tuple, layer_parts
from prunebench.ops import ReplaceBlock
from prunebench.surgery_modules import replacement
from prunebench.testing.state import ModelState
from tests.test_operations import Identity, build, drop, logits, objects, other_values, shared

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"


def replace(module, start=1, stop=3):
    return {"op": "replace_block", "start": start, "stop": stop, "module": module, "tensors": "r"}


def fold(module="mlp.down_proj", side="out"):
    return {"op": "fold", "layer": 1, "module": module, "side": side, "tensor": "m"}


SET = {"op": "set_weights", "layer": 1, "tensors": "w"}


def layer_without(name):
    values = other_values(shared("Llama")[0].layers[1], "r")
    del values[name]
    return values


REFUSED = {
    "no such module": ([fold("mlp.middle")], {"m": torch.eye(32)}, "'mlp.middle' of layer 1, which has no such module"),
    "not linear": ([fold("mlp")], {"m": torch.eye(32)}, "LlamaMLP, which is not linear"),
    "matrix too small": ([fold()], {"m": torch.eye(31)}, r"shape \(31, 31\): side 'out' wants \(32, 32\)"),
    "other side": ([fold(side="in")], {"m": torch.eye(32)}, r"side 'in' wants \(48, 48\)"),
    "no such parameter": ([SET], {"w.mlp.middle": torch.ones(2)}, "layer 1 has no parameter 'mlp.middle'"),
    "parameter of another shape": ([SET], {"w.input_layernorm.weight": torch.ones(31)}, r"wants \(32,\)"),
    "parameter of a dropped part": (
        [SET, *drop((1, "mlp"))],
        {"w.mlp.up_proj.weight": torch.ones(48, 32)},
        "layer 1 has no parameter 'mlp.up_proj.weight'",
    ),
    "layer lacks a parameter": (
        [replace("decoder_layer")],
        lambda: layer_without("r.mlp.up_proj.weight"),
        r"decoder_layer for layer 1 lacks the tensor 'r.mlp.up_proj.weight' \(1 missing\)",
    ),
    "network lacks one map": ([replace("ffn")], {"r.up.weight": torch.ones(4, 32)}, "lacks the tensor 'r.down.weight'"),
    "network has no width": ([replace("ffn")], {"r.down.weight": torch.ones(32, 4)}, "needs the tensor 'r.up.weight'"),
    "map of another size": ([replace("linear")], {"r.weight": torch.eye(31)}, r"shape \(31, 31\), the model wants"),
    "left over": ([replace("linear")], {"r.weight": torch.eye(32), "r.x": torch.ones(1)}, "has no parameter 'x'"),
    "merge names nothing": (
        [{"op": "merge", "into": 1, "sources": (2,), "coefficients": (1,), "parameters": ("moe.*",)}],
        None,
        "no parameter of layer 1 is called 'moe",
    ),
    "one pattern of a merge names nothing": (
        [{"op": "merge", "into": 1, "sources": (2,), "coefficients": (1,), "parameters": ("mlp.*", "mixer.*")}],
        None,
        "no parameter of layer 1 is called 'mixer",
    ),
    "no attention left": (drop(*((layer, "attention") for layer in range(6))), None, "leaves no layer with attention"),
}


@pytest.mark.parametrize(("ops", "tensors", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_is_refused_and_nothing_has_changed(ops, tensors, words):
    loaded, inputs = shared("Llama")
    before, same, dense = ModelState.of(loaded), objects(loaded), logits(loaded, inputs)
    # Something that works comes first: it has to be undone too.
    ops = [{"op": "merge", "into": 4, "sources": (4, 5), "coefficients": (0.5, 0.5)}, *ops]
    if words.startswith("leaves"):
        ops = ops[1:]
    plan = Plan.of(loaded.info, ops, tensors() if callable(tensors) else tensors)
    with pytest.raises(PlanError, match=words) as caught, pruned(loaded, plan):
        pass
    assert "\n" not in str(caught.value)
    assert before.change(ModelState.of(loaded)) is None and objects(loaded) == same
    assert torch.equal(logits(loaded, inputs), dense)


CHANGES = {
    "merge": ([{"op": "merge", "into": 1, "sources": (1, 2), "coefficients": (0.5, 0.5)}], lambda: None),
    "merge from elsewhere": ([{"op": "merge", "into": 1, "sources": (2,), "coefficients": (1,)}], lambda: None),
    "fold": ([fold()], lambda: {"m": torch.eye(32)}),
    "set": ([SET], lambda: {"w.mlp.up_proj.weight": torch.ones(48, 32)}),
    "decoder layer": ([replace("decoder_layer")], lambda: other_values(shared("Llama")[0].layers[1], "r")),
    "linear": ([replace("linear")], lambda: {"r.weight": torch.eye(32)}),
}


@pytest.mark.parametrize(("ops", "tensors"), CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("where", ["offloaded", "quantised"])
def test_weights_that_are_not_plain_numbers_in_memory_are_not_changed(ops, tensors, where):
    """New ones would go to the meta device, or be cut to whole numbers, and nobody would notice."""
    loaded, _ = build("Llama")
    plan = Plan.of(loaded.info, ops, tensors())
    if where == "offloaded":
        loaded.layers[1].to("meta")
    else:
        for module in (loaded.layers[1].mlp.down_proj, loaded.layers[1].mlp.up_proj):
            module.weight = nn.Parameter(module.weight.to(torch.int8), requires_grad=False)
    same = objects(loaded)
    with pytest.raises(PlanError, match=f"the weights of layer 1 are {where}") as caught, pruned(loaded, plan):
        pass
    assert "\n" not in str(caught.value) and objects(loaded) == same


def test_a_weight_beyond_float16_is_refused():
    loaded, _ = build("Llama")
    plan = Plan.of(loaded.info, [SET], {"w.input_layernorm.weight": torch.full((32,), 7e4)})
    loaded.model.half()
    with pytest.raises(PlanError, match="too large for float16: use --dtype bfloat16 or float32"), pruned(loaded, plan):
        pass
    loaded.model.bfloat16()
    with pruned(loaded, plan):
        assert loaded.layers[1].input_layernorm.weight.isfinite().all()


def test_an_interrupt_in_the_middle_leaves_the_model_as_it_was(monkeypatch):
    loaded, inputs = build("Llama")
    before, same, dense = ModelState.of(loaded), objects(loaded), logits(loaded, inputs)

    def interrupted(*_):
        assert before.change(ModelState.of(loaded)) is not None  # the merge has been done
        raise KeyboardInterrupt

    monkeypatch.setattr("prunebench.surgery_weights.folded", interrupted)
    merge = {"op": "merge", "into": 4, "sources": (4, 5), "coefficients": (0.5, 0.5)}
    with pytest.raises(KeyboardInterrupt):
        prune(loaded, Plan.of(loaded.info, [merge, fold()], {"m": torch.eye(32)}))
    assert before.change(ModelState.of(loaded)) is None and objects(loaded) == same
    assert torch.equal(logits(loaded, inputs), dense)


def test_layers_of_different_kinds_are_not_merged():
    for name, words in (("Qwen3.5", "different kinds"), ("Lfm2", "different kinds"), ("Mllama", "different kinds")):
        loaded, _ = shared(name)
        plan = Plan.of(loaded.info, [{"op": "merge", "into": 0, "sources": (0, 1), "coefficients": (0.5, 0.5)}])
        with pytest.raises(PlanError, match=words), pruned(loaded, plan):
            pass


def test_a_hybrid_keeps_a_layer_with_keys():
    loaded, _ = shared("Qwen3.5")
    with pytest.raises(PlanError, match="leaves no layer with attention"):  # the linear ones count no tokens
        prune(loaded, Plan.of(loaded.info, drop((1, "attention"), (3, "attention"), (5, "attention"))))


def test_a_cross_attention_layer_runs_with_its_attention_or_not_at_all():
    loaded, inputs = shared("Mllama")
    plan = Plan.of(loaded.info, [replace("linear", 4, 5)], {"r.weight": torch.eye(32)})
    for each in (plan, Plan.of(loaded.info, drop((1, "attention")))):
        with pytest.raises(PlanError, match="is a cross-attention layer"), pruned(loaded, each):
            pass
    # The MLP of such a layer goes, and attention of layers around it: the places of its own keys stay.
    with pruned(loaded, Plan.of(loaded.info, drop((1, "mlp"), (0, "attention"), (2, "attention")))):
        assert [layer.cross_attn.layer_idx for layer in loaded.layers if hasattr(layer, "cross_attn")] == [1, 4]
        with torch.inference_mode():
            tokens = loaded.adapter.greedy(loaded, inputs, 4)
            step = loaded.adapter.forward(loaded, inputs, logits_to_keep=1)[:, -1].argmax(-1)
        assert tokens[0, 0] == step[0]


def test_a_changed_model_is_not_changed_again():
    loaded, _ = build("Llama")
    plan = Plan.of(loaded.info, [fold()], {"m": torch.eye(32)})
    with pruned(loaded, plan), pytest.raises(PlanError, match="load the dense model"), pruned(loaded, plan):
        pass
    prune(loaded, plan)
    with pytest.raises(PlanError, match="load the dense model"):
        prune(loaded, Plan.drop(loaded.info, (1,)))


def test_a_plan_whose_tensors_lie_elsewhere_is_not_applied():
    loaded, _ = shared("Llama")
    plan = Plan.from_json(Plan.of(loaded.info, [fold()], {"m": torch.eye(32)}).to_json())
    with pytest.raises(PlanError, match=r"not at hand: load it from its file by Plan\.load") as caught:
        prune(loaded, plan)
    assert "\n" not in str(caught.value)


def test_protected_layers_keep_their_parts():
    loaded, _ = build("Llama")
    loaded.info = loaded.info.model_copy(update={"protected": (1,)})
    linear = Plan.of(loaded.info, [replace("linear")], {"r.weight": torch.eye(32)})
    for plan in (linear, Plan.of(loaded.info, drop((1, "mlp")))):
        with pytest.raises(PlanError, match="layer 1 of Llama cannot be removed"):
            prune(loaded, plan)
    prune(loaded, Plan.of(loaded.info, [fold()], {"m": torch.eye(32)}))


# -- parameters and modules that are shared ----------------------------------------------------------------------------


def test_a_parameter_that_two_layers_share_changes_in_one_alone():
    loaded, _ = build("Llama")
    first, second = loaded.layers[1].mlp.down_proj, loaded.layers[2].mlp.down_proj
    second.weight = first.weight
    before = first.weight
    with pruned(loaded, Plan.of(loaded.info, [fold()], {"m": 2 * torch.eye(32)})):
        assert torch.equal(first.weight, 2 * before) and second.weight is before
    assert first.weight is before and second.weight is before


def test_a_parameter_with_two_names_in_one_layer_stays_one():
    loaded, _ = build("Llama")
    mlp = loaded.layers[1].mlp
    mlp.up_proj.weight = mlp.gate_proj.weight
    with pruned(loaded, Plan.of(loaded.info, [SET], {"w.mlp.gate_proj.weight": torch.ones(48, 32)})):
        assert mlp.up_proj.weight is mlp.gate_proj.weight and (mlp.up_proj.weight == 1).all()


def test_a_module_that_two_layers_share_is_not_changed():
    loaded, _ = build("Llama")
    loaded.layers[2].mlp = loaded.layers[1].mlp
    with pytest.raises(PlanError, match=r"layer 1 shares 'mlp\.down_proj' with another layer"):
        prune(loaded, Plan.of(loaded.info, [fold()], {"m": torch.eye(32)}))


# -- layers that are built otherwise -----------------------------------------------------------------------------------


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer_idx, self.linear = 0, nn.Linear(8, 8)

    def forward(self, hidden_states):
        return self.linear(hidden_states)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.mixer, self.ffn = Mixer(), nn.Linear(8, 8)
        self.norm_1, self.norm_2 = nn.LayerNorm(8), nn.LayerNorm(8)


class SideBySide(Layer):
    def forward(self, states, mask):
        normed = self.norm_1(states)
        return (states + self.mixer(normed) + self.norm_2(self.ffn(normed)), None)


class NormedStream(Layer):
    def forward(self, states):
        states = self.norm_1(states + self.mixer(states))
        return self.norm_2(states + self.ffn(states))


class ScaledStream(Layer):
    def forward(self, states):
        states = 0.5 * states + self.mixer(self.norm_1(states))
        return states + self.ffn(self.norm_2(states))


class TwoMixers(Layer):
    def __init__(self):
        super().__init__()
        self.other = Mixer()

    def forward(self, states):
        states = states + self.mixer(self.norm_1(states)) + self.other(states)
        return states + self.ffn(self.norm_2(states))


def test_a_norm_goes_with_the_part_that_it_serves_alone():
    parts = layer_parts(SideBySide())
    assert (parts["attention"].child, parts["attention"].returns, parts["attention"].norms) == ("mixer", 1, ())
    assert (parts["mlp"].child, parts["mlp"].returns, parts["mlp"].norms) == ("ffn", 1, ("norm_2",))


def test_what_stands_for_a_layer_that_returns_a_tuple_returns_one():
    op = ReplaceBlock(start=0, stop=1, module="linear", tensors="r")
    config = type("Config", (), {"hidden_size": 8})()
    states = torch.randn(2, 3, 8)
    for layer, in_tuple in ((SideBySide(), True), (shared("Llama")[0].layers[0], False)):
        assert gives_tuple(layer) == in_tuple
        out = replacement(op, layer, config, {"weight": torch.eye(8)})(states, mask=None)
        assert isinstance(out, tuple) == in_tuple and torch.equal(out[0] if in_tuple else out, states)


def test_what_stands_for_a_layer_has_the_format_of_its_matrices_and_its_kind():
    """A decoder layer may hold its norms in float32, and may be asked for its kind before it is called."""

    class WideNorms(nn.Module):
        attention_type = "sliding_attention"

        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(8)
            self.linear = nn.Linear(8, 8).bfloat16()

    op = ReplaceBlock(start=0, stop=1, module="linear", tensors="r")
    config = type("Config", (), {"hidden_size": 8})()
    new = replacement(op, WideNorms(), config, {"weight": torch.eye(8)})
    assert new.weight.dtype == torch.bfloat16 and new.attention_type == "sliding_attention"
    assert not hasattr(new, "layer_type")


@pytest.mark.parametrize("kind", [NormedStream, ScaledStream, TwoMixers, Identity])
def test_a_layer_whose_residual_stream_does_not_pass_by_has_no_parts(kind):
    assert layer_parts(kind()) == {}
    loaded, _ = build("Llama")
    loaded.layers[1] = kind()
    with pytest.raises(PlanError, match=f"layer 1 \\({kind.__name__}\\) has no attention that can be left out alone"):
        prune(loaded, Plan.of(loaded.info, drop((1, "attention"))))


# -- the cache's places ------------------------------------------------------------------------------------------------


def test_places_by_hand():
    assert cache_slots([True] * 3) == ([0, 1, 2], None)
    assert cache_slots([False, True, False, True]) == ([None, 0, None, 1], None)
    kinds = [SLIDING, FULL, SLIDING, FULL]
    assert cache_slots([True] * 4, kinds) == ([0, 1, 2, 3], tuple(kinds))
    # The first layer has none: the next one takes its place, which becomes one of the next one's kind.
    assert cache_slots([False, True, True, True], kinds) == ([None, 0, 2, 1], (FULL, FULL, SLIDING, FULL))
    assert cache_slots([True, False, True, True], kinds) == ([0, None, 1, 3], (SLIDING, SLIDING, SLIDING, FULL))
    # Tokens are counted by a layer with keys, whatever comes first.
    assert cache_slots([False, True, True], [LINEAR, LINEAR, FULL]) == ([None, 1, 0], (FULL, LINEAR, FULL))
    assert cache_slots([False, True, True, True], pinned=(1,)) == ([None, 1, 0, 2], None)
    for attention, kinds in (([False, False], None), ([True, False], [LINEAR, FULL])):
        with pytest.raises(PlanError, match="no layer with attention"):
            cache_slots(attention, kinds)


def test_keys_that_later_layers_read_stay():
    config = type("Config", (), {})()
    config.layer_types, config.num_kv_shared_layers = [FULL] * 4, 0
    assert cache_kinds(config, 4) == (FULL,) * 4
    config.num_kv_shared_layers = 2
    with pytest.raises(PlanError, match="the last 2 layers of 'Config' read keys and values of layers before them"):
        cache_kinds(config, 4)
