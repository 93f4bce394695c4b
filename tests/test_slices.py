"""Narrower layers equal the same layers with zeroed columns, leave no trace, and are counted right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from prunebench_models.videollama2.adapter import VideoLlama2
from torch import nn

from prunebench import LoadOptions, Plan, Sample, prune, pruned
from prunebench.bits import pack
from prunebench.budget import achieved, kv_bytes_per_token
from prunebench.coupled import coupled_groups
from prunebench.errors import PlanError
from prunebench.measure.cost import describe, weight_bytes
from prunebench.testing.state import ModelState
from tests.data.videollama2.weights import write_checkpoint
from tests.models.family_configs import BY_NAME
from tests.test_operations import _grown, build, logits, objects, shared
from tests.thinning import slices, zeroed_columns

FAMILIES = ("Llama", "Qwen2VL", "Qwen3VL", "Gemma3-text", "Lfm2", "testbed")
each = pytest.mark.parametrize("name", FAMILIES)
COUNTS = {"heads": 1, "channels": 13}


def plan_for(loaded, layers=(0, 2, 3), counts=COUNTS, seed=0):
    ops, tensors, keeps = slices(loaded, layers, counts, seed)
    return Plan.of(loaded.info, ops, tensors, kind="width"), keeps


def sizes(loaded):
    """What modules say of themselves."""
    return {
        path: {name: value for name, value in vars(module).items() if type(value) is int}
        for path, module in loaded.model.named_modules()
    }


def cached_steps(loaded, inputs, n=3):
    """Logits after `n` cached steps, and without a cache."""
    with torch.inference_mode():
        step, state = loaded.adapter.prefill(loaded, inputs)
        ids = []
        for _ in range(n):
            ids.append(step.argmax(-1))
            step, state = loaded.adapter.decode_step(loaded, ids[-1], state)
        grown = _grown(loaded, inputs, torch.stack(ids, 1))
        return step, loaded.adapter.forward(loaded, grown, logits_to_keep=1)[:, -1]


@each
def test_a_slice_equals_zeroed_columns_and_is_undone_bit_for_bit(name):
    loaded, inputs = shared(name)
    plan, keeps = plan_for(loaded)
    before, same, dense, said = ModelState.of(loaded), objects(loaded), logits(loaded, inputs), sizes(loaded)
    with zeroed_columns(loaded, keeps):
        expected = logits(loaded, inputs)
    assert len(keeps) >= 4 and not torch.allclose(expected, dense, atol=1e-3)
    with pruned(loaded, plan):
        assert sizes(loaded) != said
        torch.testing.assert_close(logits(loaded, inputs), expected, atol=2e-5, rtol=1e-5)
    assert before.change(ModelState.of(loaded)) is None and objects(loaded) == same and sizes(loaded) == said
    assert torch.equal(logits(loaded, inputs), dense)


@each
def test_cached_decoding_equals_recomputing(name):
    loaded, inputs = shared(name)
    with pruned(loaded, plan_for(loaded)[0]):
        torch.testing.assert_close(*cached_steps(loaded, inputs), atol=3e-4, rtol=1e-4)


@each
def test_all_heads_and_channels_kept_is_no_change(name):
    loaded, inputs = shared(name)
    dense, same = logits(loaded, inputs), objects(loaded)
    found = coupled_groups(loaded.layers[2], loaded.adapter.text_config(loaded.model))
    counts = {word: getattr(found, word).groups for word in ("heads", "channels") if getattr(found, word)}
    plan, _ = plan_for(loaded, (2,), counts)
    with pruned(loaded, plan):
        assert torch.equal(logits(loaded, inputs), dense) and objects(loaded) == same
    assert achieved(loaded.info, ops=plan.ops).params_removed == 0


@each
def test_what_goes_is_what_the_budget_says(name):
    """Against the model in memory, counted anew: parameters, bytes, operations and cache."""
    loaded, _ = build(name)
    plan, _ = plan_for(loaded)
    report, old = achieved(loaded.info, ops=plan.ops), loaded.info
    prune(loaded, plan)
    new = describe(loaded.model, loaded.adapter, name=name, revision="0" * 64, dtype="float32")
    assert old.model_params - new.model_params == report.params_removed > 0
    assert old.lm_params - new.lm_params == report.params_removed
    assert 1 - new.model_bytes / old.model_bytes == pytest.approx(report.bytes)
    assert 1 - new.lm_prefill_flops / old.lm_prefill_flops == pytest.approx(report.prefill_flops)
    assert 1 - new.kv_bytes_per_token / old.kv_bytes_per_token == pytest.approx(report.kv_bytes_per_token)
    assert new.kv_bytes_per_token == kv_bytes_per_token(old, plan.ops)
    assert old.model_bytes - weight_bytes(loaded.model) == round(report.bytes * old.model_bytes)
    assert report.layers_removed == report.params_zeroed == 0


def test_bytes_of_keys_and_values_without_layers_without_attention_and_with_fewer_heads():
    loaded, _ = shared("Llama")
    ops, tensors, _ = slices(loaded, (1, 3), {"heads": 1})
    ops += [{"op": "drop_layer", "layer": 0}, {"op": "drop_sublayer", "layer": 2, "part": "attention"}]
    plan = Plan.of(loaded.info, ops, tensors)
    one = loaded.info.layers[0].kv_bytes_per_token
    assert kv_bytes_per_token(loaded.info, plan.ops) == 2 * one + 2 * (one // 2)
    report = achieved(loaded.info, ops=plan.ops)
    assert report.kv_bytes_per_token == pytest.approx(1 - kv_bytes_per_token(loaded.info, plan.ops) / (6 * one))


def test_groups_of_grouped_query_attention_by_hand():
    loaded, _ = shared("Llama")
    groups = coupled_groups(loaded.layers[0], loaded.model.config)
    heads = {member.module: (member.axis, member.width) for member in groups.heads.members}
    assert heads == {
        "self_attn.q_proj": ("out", 16),
        "self_attn.k_proj": ("out", 8),
        "self_attn.v_proj": ("out", 8),
        "self_attn.o_proj": ("in", 16),
    }
    assert (groups.heads.groups, groups.query_heads, groups.head_dim) == (2, 2, 8)
    assert groups.heads.params_per_group == 32 * (16 + 8 + 8 + 16)
    assert groups.channels.groups == 48 and groups.channels.params_per_group == 3 * 32
    # Biases of query, key and value go with their rows; that of the output stays.
    qwen = coupled_groups(BY_NAME["Qwen2VL"].model().model.language_model.layers[0], loaded.model.config)
    assert qwen.heads.params_per_group == 32 * (16 + 8 + 8 + 16) + 16 + 8 + 8


@pytest.mark.parametrize("variant", ["mistral_clip", "qwen2_av"])
def test_the_video_families_are_narrowed_too(variant, tmp_path):
    loaded = VideoLlama2().load(LoadOptions(path=str(write_checkpoint(variant, tmp_path / "tiny", layers=4))))
    with torch.inference_mode():
        inputs = loaded.encode([Sample("video", "What moves?", video=np.zeros((5, 30, 50, 3), np.uint8))])
    plan, keeps = plan_for(loaded, (0, 1, 3))
    dense = logits(loaded, inputs)
    with zeroed_columns(loaded, keeps):
        expected = logits(loaded, inputs)
    with pruned(loaded, plan):
        torch.testing.assert_close(logits(loaded, inputs), expected, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(*cached_steps(loaded, inputs), atol=3e-4, rtol=1e-4)
    assert not torch.allclose(expected, dense, atol=1e-3) and torch.equal(logits(loaded, inputs), dense)


def test_a_slice_comes_before_folding_setting_and_masking():
    """Matrices and values have the sizes that slicing leaves; the order in the plan does not count."""
    loaded, _ = shared("Llama")
    ops, tensors, keeps = slices(loaded, (1,), {"channels": 12})
    keep = keeps[1, "channels"]
    matrix = torch.randn(12, 12, generator=torch.Generator().manual_seed(0))
    values = torch.randn(12, 32, generator=torch.Generator().manual_seed(1))
    zero = torch.ones(12, 32, dtype=torch.bool)
    zero[:, ::2] = False
    ops += [
        {"op": "fold", "layer": 1, "module": "mlp.down_proj", "side": "in", "tensor": "m"},
        {"op": "set_weights", "layer": 1, "tensors": "w"},
        {"op": "mask", "layer": 1, "tensors": "z", "zeros": 12 * 16},
    ]
    tensors |= {"m": matrix, "w.mlp.up_proj.weight": values, "z.mlp.up_proj.weight": pack(zero)}
    old = loaded.layers[1].mlp
    down, gate = old.down_proj.weight.detach().clone(), old.gate_proj.weight.detach().clone()
    plans = [Plan.of(loaded.info, order, tensors) for order in (ops, ops[::-1])]
    assert plans[0].digest == plans[1].digest
    for plan in plans:
        with pruned(loaded, plan):
            mlp = loaded.layers[1].mlp
            torch.testing.assert_close(mlp.down_proj.weight, down[:, keep] @ matrix)
            assert torch.equal(mlp.gate_proj.weight, gate[keep])
            assert torch.equal(mlp.up_proj.weight, values * zero)


# -- refused -----------------------------------------------------------------------------------------------------------


def sliced(word="channels", count=12, layer=1, **changes):
    """Operation and tensors for the tiny Llama (2 key-value heads, 48 channels)."""
    ops, tensors, _ = slices(shared("Llama")[0], (layer,), {word: count})
    return [{**ops[0], **changes}], tensors


def bits(n, kept):
    return pack(torch.arange(n) < kept)


REFUSED = {
    "other depth": (lambda: sliced(channels=(12, 50)), {"s1.channels": bits(50, 12)}, "has 48 MLP channels, .* 50"),
    "other heads": (lambda: sliced("heads", 1, heads=(1, 4)), {"s1.heads": bits(4, 1)}, "has 2 key-value heads"),
    "other bits": (lambda: sliced(), {"s1.channels": bits(48, 13)}, "keeps 13 of 48, the operation says 12 of 48"),
    "other width": (lambda: sliced(), {"s1.channels": bits(40, 12)}, r"bits of 48 columns are uint8 of width 6"),
    "a matrix": (lambda: sliced(), {"s1.channels": bits(48, 12)[None]}, "keeps"),
    "other count": (lambda: sliced(params_removed=7), None, "removes 3456 parameters, the operation says 7"),
}


@pytest.mark.parametrize(("make", "other", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_is_refused_and_nothing_has_changed(make, other, words):
    loaded, _ = shared("Llama")
    ops, tensors = make()
    before, same = ModelState.of(loaded), objects(loaded)
    first, more, _ = slices(loaded, (0,), COUNTS)  # something that works: it has to be undone too
    plan = Plan.of(loaded.info, [*first, *ops], {**more, **(other or tensors)})
    with pytest.raises(PlanError, match=words) as caught, pruned(loaded, plan):
        pass
    assert "\n" not in str(caught.value)
    assert before.change(ModelState.of(loaded)) is None and objects(loaded) == same


def test_layers_that_cannot_be_narrowed_name_the_module():
    import transformers as hf

    text = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "pad_token_id": 0,
    }  # fmt: skip
    experts = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    cases = [
        (hf.Phi3Config(**text), hf.Phi3ForCausalLM, "heads", "self_attn has no linear q_proj of its own .*qkv_proj"),
        (hf.Phi3Config(**text), hf.Phi3ForCausalLM, "channels", r"mlp \(Phi3MLP\) is no plain MLP.*gate_up_proj"),
        (hf.Qwen2MoeConfig(**text, **experts), hf.Qwen2MoeForCausalLM, "channels", "mlp .* is no plain MLP"),
        (hf.Olmo2Config(**text), hf.Olmo2ForCausalLM, "heads", r"self_attn.q_norm.weight \(32,\) reaches over all"),
        (  # a norm for each head, in a list: after a cut the first ones would serve the heads that stay
            hf.StableLmConfig(**text, qk_layernorm=True),
            hf.StableLmForCausalLM,
            "heads",
            r"self_attn.q_layernorm.norms.0.weight \(8,\) reaches over all",
        ),
        (
            hf.LlamaConfig(**text, num_kv_shared_layers=2),
            hf.LlamaForCausalLM,
            "heads",
            r"keys and values of one layer are read by others \(num_kv_shared_layers=2\)",
        ),
        (
            hf.OPTConfig(**text, ffn_dim=48, word_embed_proj_dim=32),
            hf.OPTForCausalLM,
            "channels",
            "OPTDecoderLayer has",
        ),
    ]
    for config, model_class, word, words in cases:
        with torch.device("meta"):
            model = model_class(config)
        layer = (model.model.decoder if hasattr(model.model, "decoder") else model.model).layers[0]
        with pytest.raises(PlanError, match=f"of layer 0: {words}") as caught:
            coupled_groups(layer, config).need(word, 0)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("where", ["offloaded", "quantised", "shared", "tied"])
def test_weights_that_cannot_be_changed_are_not_sliced(where):
    loaded, _ = build("Llama")
    ops, tensors = sliced()
    plan = Plan.of(loaded.info, ops, tensors)
    words = f"the weights of layer 1 are {where}"
    if where == "offloaded":
        loaded.layers[1].to("meta")
    elif where == "quantised":
        down = loaded.layers[1].mlp.down_proj
        down.weight = nn.Parameter(down.weight.to(torch.int8), requires_grad=False)
    elif where == "shared":
        loaded.layers[1].mlp, words = loaded.layers[2].mlp, "layer 1 shares 'mlp"
    else:
        loaded.layers[1].extra = nn.Linear(32, 48, bias=False)
        loaded.layers[1].extra.weight, words = loaded.layers[1].mlp.up_proj.weight, "is the same parameter as 'extra"
    same = objects(loaded)
    with pytest.raises(PlanError, match=words), pruned(loaded, plan):
        pass
    assert objects(loaded) == same
