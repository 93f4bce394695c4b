"""What a configuration has to say once layers are gone: lists, indices, counts, and what cannot be said."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from prunebench.errors import PlanError
from prunebench.layer_config import config_changes, module_changes


def config(**values):
    return SimpleNamespace(**{"model_type": "some", "num_hidden_layers": 6, **values})


KEPT = (0, 2, 3, 5)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("layer_types", ["a", "b", "c", "d", "e", "f"], ["a", "c", "d", "f"]),
        ("no_rope_layers", (1, 1, 1, 0, 1, 0), (1, 1, 0, 0)),
        ("hybrid_override_pattern", "M*M-M*", "MM-*"),
        ("cross_attention_layers", [1, 3, 5], [2, 3]),
        ("full_attn_idxs", (0, 4), (0,)),
        ("mlp_only_layers", [], []),
        ("first_k_dense_replace", 3, 2),
        ("num_dense_layers", 6, 4),
    ],
)
def test_each_kind_of_attribute(name, before, after):
    changes = config_changes(config(**{name: before}), KEPT, 6)
    assert changes == {name: after, "num_hidden_layers": 4}
    assert list(changes)[-1] == "num_hidden_layers"  # transformers checks the lists against it


@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize("only", [[], [3], [0, 5]])
@pytest.mark.parametrize("kept", [(0, 2, 3, 5), (1, 4), (5,), (0, 1, 2, 3, 4)])
def test_a_step_between_expert_layers_keeps_every_layer_of_its_kind(step, only, kept):
    """Reference: the rule that the models themselves apply when they are built."""

    def has_experts(layer, settings):
        return layer not in settings["mlp_only_layers"] and (layer + 1) % settings["decoder_sparse_step"] == 0

    before = {"decoder_sparse_step": step, "mlp_only_layers": only}
    after = {**before, **config_changes(config(**before), kept, 6)}
    assert [has_experts(position, after) for position in range(len(kept))] == [has_experts(i, before) for i in kept]


def test_a_list_of_the_same_length_by_chance_is_left_alone():
    changes = config_changes(config(eos_token_id=[1, 2, 3, 4, 5, 6], sections=(1, 2, 3, 4, 5, 6)), KEPT, 6)
    assert changes == {"num_hidden_layers": 4}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"attn_layer_period": 8}, "attn_layer_period=8"),
        ({"moe_layer_freq": 2}, "moe_layer_freq=2"),
        ({"num_kv_shared_layers": 4}, "num_kv_shared_layers=4"),
        ({"layer_kinds": ["x"] * 6}, "'layer_kinds' in the configuration of 'some'"),
        ({"special_layer_ids": [2, 4]}, "'special_layer_ids'"),
        ({"layer_types": ["conv", "full_attention", "conv", "conv", "conv", "conv"]}, "every attention layer"),
        (
            {"layer_types": ["linear_attention", "full_attention"] + ["linear_attention"] * 4},
            "at least one has to stay",
        ),
    ],
)
def test_what_cannot_be_said_is_refused_in_one_line(values, message):
    with pytest.raises(PlanError, match=message) as caught:
        config_changes(config(**values), KEPT, 6)
    assert "\n" not in str(caught.value)


def test_neutral_values_refuse_nothing():
    neutral = {"attn_layer_period": 1, "moe_layer_freq": 1, "num_kv_shared_layers": 0, "expert_layer_period": None}
    assert config_changes(config(**neutral), KEPT, 6) == {"num_hidden_layers": 4}


def test_attributes_that_follow_from_others_are_not_set():
    class Derived(SimpleNamespace):
        @property
        def hybrid_override_pattern(self):
            return "M" * 6

    found = config_changes(Derived(model_type="x", layers_block_type=["m"] * 5 + ["a"]), (0, 5), 6)
    assert found == {"layers_block_type": ["m", "a"], "num_hidden_layers": 2}


def test_copies_that_the_decoder_holds():
    decoder = SimpleNamespace(cross_attention_layers=[1, 3], layer_types=["a", "b", "c", "d", "e", "f"], other=[1, 3])
    assert module_changes(decoder, KEPT, 6) == {"cross_attention_layers": [2], "layer_types": ["a", "c", "d", "f"]}


def test_the_given_configuration_is_not_changed():
    values = {"layer_types": ["a", "b", "c", "d", "e", "f"], "cross_attention_layers": [1, 3]}
    given = config(**values)
    config_changes(given, KEPT, 6)
    assert vars(given) == vars(config(**values))
