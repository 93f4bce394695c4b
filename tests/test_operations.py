"""Every operation equals what a hand makes of the model, leaves no trace once undone, and works with a cache."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from prunebench_models.hf.adapter import TransformersModel
from prunebench_models.hf.families import ALIASES
from prunebench_models.testbed.adapter import Testbed
from prunebench_models.testbed.data import TestbedDataset
from torch import nn

from prunebench import LoadedModel, Plan, prune, pruned
from prunebench.budget import achieved
from prunebench.layer_parts import layer_parts
from prunebench.measure.cost import describe, weight_bytes
from prunebench.surgery_modules import FeedForward
from prunebench.testing.state import ModelState
from tests.models.family_configs import BY_NAME

FAMILIES = ("Llama", "Gemma3-text", "Qwen3.5", "Lfm2", "Qwen3VL", "testbed")
each = pytest.mark.parametrize("name", FAMILIES)


def build(name):
    """A fresh model with its adapter, and inputs of one sample."""
    if name == "testbed":
        loaded = Testbed().load()
        with torch.inference_mode():
            return loaded, loaded.encode(TestbedDataset().samples("test", 2))
    model, adapter = BY_NAME[name].model(), TransformersModel()
    adapter.use(ALIASES[BY_NAME[name].row])
    info = describe(model, adapter, name=name, revision="0" * 64, dtype="float32")
    loaded = LoadedModel(model, adapter, info, torch.device("cpu"))
    with torch.inference_mode():
        return loaded, adapter.encode_batch(loaded, BY_NAME[name].inputs(model, 1), "only")


shared = cache(build)


def logits(loaded, inputs):
    with torch.inference_mode():
        return loaded.adapter.forward(loaded, inputs)


def drop(*parts):
    return [{"op": "drop_sublayer", "layer": layer, "part": part} for layer, part in parts]


def other_values(layer, prefix, seed=0):
    """New values for all parameters of a layer, near the old ones."""
    torch.manual_seed(seed)
    return {f"{prefix}.{name}": p.detach() * (1 + 0.2 * torch.rand_like(p)) for name, p in layer.named_parameters()}


def down_projection(layer):
    """Path of the linear module that ends the MLP."""
    return next(f"{layer_parts(layer)['mlp'].child}.{name}" for name in ("down_proj", "w2") if _has(layer, name))


def _has(layer, name):
    return hasattr(getattr(layer, layer_parts(layer)["mlp"].child), name)


class Zero(nn.Module):
    """Contributes nothing, in the form that the layer expects."""

    def __init__(self, returns):
        super().__init__()
        self.returns = returns

    def forward(self, *args, **kwargs):
        zeros = torch.zeros_like(args[0] if args else kwargs["hidden_states"])
        return zeros if self.returns == 1 else (zeros, None)


class Identity(nn.Module):
    def forward(self, hidden_states, *_args, **_kwargs):
        return hidden_states


ARITY = {"mlp": 1, "feed_forward": 1, "conv": 1, "linear_attn": 1, "self_attn": 2}
CHILDREN = {"attention": ("self_attn", "linear_attn", "conv"), "mlp": ("mlp", "feed_forward")}


def zeroed(loaded, inputs, parts):
    """Logits with modules that return zeros in the place of some parts; the families' wiring is written down here."""
    undo = []
    for number, part in parts:
        layer = loaded.layers[number]
        child = next(name for name in CHILDREN[part] if hasattr(layer, name))
        undo.append((layer, child, getattr(layer, child)))
        setattr(layer, child, Zero(ARITY[child]))
    try:
        return logits(loaded, inputs)
    finally:
        for layer, child, before in undo:
            setattr(layer, child, before)


def by_hand(name, change):
    """Logits of a second model whose layers `change` has worked on; those that it names are left out."""
    loaded, inputs = build(name)
    with torch.no_grad():
        layers = change(loaded.layers)
    for layer in layers:
        loaded.layers[layer] = Identity()
    return logits(loaded, inputs)


def assert_same(name, got, expected):
    """Bit for bit, but where visual features of removed layers are summed before they are added."""
    if name == "Qwen3VL":
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-5)
    else:
        assert torch.equal(got, expected)


# -- each operation against a hand ------------------------------------------------------------------------------------

PARTS = [
    [(0, "attention")],
    [(2, "mlp")],
    [(0, "attention"), (1, "attention"), (2, "mlp")],
    [(0, "attention"), (2, "attention"), (4, "attention")],
    [(5, "mlp"), (4, "attention"), (0, "mlp")],
]


@each
def test_a_dropped_part_contributes_nothing(name):
    loaded, inputs = shared(name)
    dense = logits(loaded, inputs)
    for parts in PARTS:
        expected = zeroed(loaded, inputs, parts)
        with pruned(loaded, Plan.of(loaded.info, drop(*parts))):
            assert torch.equal(logits(loaded, inputs), expected), parts
        assert not torch.equal(expected, dense)
    assert torch.equal(logits(loaded, inputs), dense)


@each
def test_both_parts_of_a_layer_are_the_layer(name):
    loaded, inputs = shared(name)
    both, whole = Plan.of(loaded.info, drop((3, "mlp"), (3, "attention"))), Plan.drop(loaded.info, (3,))
    assert both.removed_layers == (3,) and both.removed_sublayers == () and both.digest == whole.digest
    assert achieved(loaded.info, ops=both.ops) == achieved(loaded.info, (3,))
    with pruned(loaded, whole):
        expected = logits(loaded, inputs)
    with pruned(loaded, both):
        assert len(loaded.layers) == loaded.info.n_layers - 1
        assert torch.equal(logits(loaded, inputs), expected)


@pytest.mark.parametrize("name", ["Llama", "Gemma3-text", "testbed"])
def test_merging_is_a_sum_of_parameters(name):
    loaded, inputs = shared(name)
    sources, factors = (1, 2, 3), (0.5, 0.75, -0.25)

    def change(layers):
        for parameter, *others in zip(*(layers[source].parameters() for source in sources), strict=True):
            total = factors[0] * parameter.float()
            for factor, other in zip(factors[1:], others, strict=True):
                total = total + factor * other.float()
            parameter.copy_(total)
        return (2, 3)

    plan = Plan.of(loaded.info, [{"op": "merge", "into": 1, "sources": sources, "coefficients": factors}])
    assert plan.removed_layers == (2, 3) and plan.needed_layers == tuple(range(loaded.info.n_layers))
    with pruned(loaded, plan):
        torch.testing.assert_close(logits(loaded, inputs), by_hand(name, change), atol=1e-5, rtol=1e-5)


def test_merging_one_source_is_that_source_and_patterns_leave_the_rest():
    """The last layer of a window with the norms of the first: what a merge that subtracts a running copy comes to."""
    loaded, inputs = shared("Llama")

    def change(layers):
        for part in ("self_attn", "mlp"):
            getattr(layers[1], part).load_state_dict(getattr(layers[3], part).state_dict())
        return (2, 3)

    merge = {"op": "merge", "into": 1, "sources": (3,), "coefficients": (1.0,), "parameters": ("self_attn.*", "mlp.*")}
    plan = Plan.of(loaded.info, [merge, {"op": "drop_layer", "layer": 2}])
    with pruned(loaded, plan):
        assert torch.equal(logits(loaded, inputs), by_hand("Llama", change))


def test_merging_adds_up_in_float32():
    """Steps of 2^-8 are lost one by one in bfloat16, whose numbers above 1 lie 2^-7 apart; together they are one."""
    loaded, _ = build("Llama")
    loaded.model.bfloat16()
    with torch.no_grad():
        for layer, value in ((0, 1.0), (1, 2.0**-8), (2, 2.0**-8)):
            loaded.layers[layer].mlp.down_proj.weight.fill_(value)
    first, *others = (loaded.layers[layer].mlp.down_proj.weight for layer in range(3))
    assert (first + others[0] + others[1] == 1).all()
    plan = Plan.of(loaded.info, [{"op": "merge", "into": 0, "sources": (0, 1, 2), "coefficients": (1, 1, 1)}])
    with pruned(loaded, plan):
        weight = loaded.layers[0].mlp.down_proj.weight
        assert weight.dtype == torch.bfloat16 and (weight == 1 + 2.0**-7).all()


@each
@pytest.mark.parametrize("side", ["out", "in"])
def test_folding_is_a_product_of_matrices(name, side):
    loaded, inputs = shared(name)
    path = down_projection(loaded.layers[2])
    module = loaded.layers[2].get_submodule(path)
    size = module.out_features if side == "out" else module.in_features
    matrix = torch.eye(size) + 0.1 * torch.randn(size, size, generator=torch.Generator().manual_seed(3))

    def change(layers):
        weight = layers[2].get_submodule(path).weight
        weight.copy_(matrix @ weight if side == "out" else weight @ matrix)
        return (4,)

    fold = {"op": "fold", "layer": 2, "module": path, "side": side, "tensor": "m"}
    plan = Plan.of(loaded.info, [fold, {"op": "drop_layer", "layer": 4}], {"m": matrix.numpy()})
    with pruned(loaded, plan):
        assert_same(name, logits(loaded, inputs), by_hand(name, change))


def test_folding_takes_the_bias_along():
    loaded, _ = build("Llama")
    down = loaded.layers[1].mlp.down_proj
    down.bias = nn.Parameter(torch.linspace(-1, 1, 32))
    matrix = torch.randn(32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fold = {"op": "fold", "layer": 1, "module": "mlp.down_proj", "side": "out", "tensor": "m"}
    before, states = down.bias, torch.randn(3, 48)
    expected = matrix @ down(states).double().T
    with pruned(loaded, Plan.of(loaded.info, [fold], {"m": matrix})):
        torch.testing.assert_close(down(states).double().T, expected, atol=1e-4, rtol=1e-4)
    assert down.bias is before


@each
def test_a_decoder_layer_stands_for_a_block(name):
    loaded, inputs = shared(name)
    values = other_values(loaded.layers[2], "r")

    def change(layers):
        layers[2].load_state_dict({key.removeprefix("r."): value for key, value in values.items()}, strict=False)
        return (3, 4)

    replace = {"op": "replace_block", "start": 2, "stop": 5, "module": "decoder_layer", "tensors": "r"}
    plan = Plan.of(loaded.info, [replace], values)
    assert plan.removed_layers == (3, 4)
    with pruned(loaded, plan):
        assert_same(name, logits(loaded, inputs), by_hand(name, change))


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "Lfm2"])  # which names no activation
@pytest.mark.parametrize("bias", [False, True])
def test_a_feed_forward_network_stands_for_a_block(name, bias):
    """By a second implementation: two products and the activation, no residual and no norm."""
    loaded, inputs = shared(name)
    d, generator = loaded.info.hidden_size, torch.Generator().manual_seed(1)
    values = {"f.up.weight": torch.randn(20, d, generator=generator) / 5}
    values["f.down.weight"] = torch.randn(d, 20, generator=generator) / 5
    if bias:
        values["f.up.bias"], values["f.down.bias"] = torch.full((20,), 0.1), torch.full((d,), -0.2)
    gelu = "Gemma" in name
    activation = (lambda x: nn.functional.gelu(x, approximate="tanh")) if gelu else nn.functional.silu

    class ByHand(nn.Module):
        def forward(self, states, *_args, **_kwargs):
            inner = activation(states @ values["f.up.weight"].T + values.get("f.up.bias", torch.tensor(0.0)))
            return inner @ values["f.down.weight"].T + values.get("f.down.bias", torch.tensor(0.0))

    def change(layers):
        layers[1] = ByHand()
        return (2, 3)

    replace = {"op": "replace_block", "start": 1, "stop": 4, "module": "ffn", "tensors": "f"}
    plan = Plan.of(loaded.info, [replace], values)
    assert plan.attention_layers == tuple(layer for layer in range(loaded.info.n_layers) if layer not in (1, 2, 3))
    with pruned(loaded, plan):
        assert isinstance(loaded.layers[1], FeedForward)
        torch.testing.assert_close(logits(loaded, inputs), by_hand(name, change), atol=2e-5, rtol=1e-5)


@each
def test_a_linear_map_of_ones_on_the_diagonal_is_no_layer_at_all(name):
    loaded, inputs = shared(name)
    replace = {"op": "replace_block", "start": 0, "stop": 2, "module": "linear", "tensors": "l"}
    with pruned(loaded, Plan.of(loaded.info, [replace], {"l.weight": torch.eye(loaded.info.hidden_size)})):
        got = logits(loaded, inputs)
    with pruned(loaded, Plan.drop(loaded.info, (0, 1))):
        assert_same(name, got, logits(loaded, inputs))


@each
def test_weights_that_are_set_are_the_weights(name):
    loaded, inputs = shared(name)
    values = other_values(loaded.layers[1], "w", seed=4)
    some = {key: value for i, (key, value) in enumerate(values.items()) if i % 2 == 0}

    def change(layers):
        layers[1].load_state_dict({key.removeprefix("w."): value for key, value in some.items()}, strict=False)
        return (0,)

    plan = Plan.of(
        loaded.info, [{"op": "set_weights", "layer": 1, "tensors": "w"}, {"op": "drop_layer", "layer": 0}], some
    )
    with pruned(loaded, plan):
        assert_same(name, logits(loaded, inputs), by_hand(name, change))


def test_what_is_done_to_one_layer_has_an_order():
    """Merged, then folded, then set: whatever the order in the plan."""
    loaded, _ = shared("Llama")
    matrix, new = torch.diag(torch.arange(1.0, 33.0)), torch.full((32,), 7.0)
    ops = [
        {"op": "set_weights", "layer": 2, "tensors": "w"},
        {"op": "fold", "layer": 2, "module": "mlp.down_proj", "side": "out", "tensor": "m"},
        {"op": "merge", "into": 2, "sources": (2, 3), "coefficients": (0.5, 0.5)},
    ]
    tensors = {"m": matrix, "w.input_layernorm.weight": new}
    old = [loaded.layers[layer].mlp.down_proj.weight for layer in (2, 3)]
    plans = [Plan.of(loaded.info, ops, tensors), Plan.of(loaded.info, ops[::-1], tensors)]
    assert plans[0].digest == plans[1].digest
    for plan in plans:
        with pruned(loaded, plan):
            layer = loaded.layers[2]
            torch.testing.assert_close(layer.mlp.down_proj.weight, matrix @ (0.5 * old[0] + 0.5 * old[1]))
            assert (layer.input_layernorm.weight == 7).all()


# -- everything at once: the cache, the way back, the size -------------------------------------------------------------


def everything(loaded):
    """A plan with all operations."""
    d, values = loaded.info.hidden_size, other_values(loaded.layers[4], "w")
    name = next(iter(values))
    tensors = {name: values[name], "m": torch.eye(d) * 1.1}
    module = "ffn" if hasattr(loaded.adapter.text_config(loaded.model), "hidden_act") else "linear"
    if module == "ffn":
        tensors |= {"f.up.weight": torch.randn(9, d) / 5, "f.down.weight": torch.randn(d, 9) / 5}
    else:
        tensors |= {"f.weight": torch.randn(d, d) / 5}
    ops = [
        {"op": "replace_block", "start": 0, "stop": 1, "module": module, "tensors": "f"},
        {"op": "drop_layer", "layer": 1},
        *drop((2, "attention")),
        *drop((3, "mlp")),
        {"op": "set_weights", "layer": 4, "tensors": "w"},
        {"op": "merge", "into": 5, "sources": (5,), "coefficients": (0.9,)},
        {
            "op": "fold",
            "layer": 5,
            "module": down_projection(loaded.layers[5]),
            "side": "out",
            "tensor": "m",
        },
    ]
    return Plan.of(loaded.info, ops, tensors)


@each
def test_cached_decoding_equals_recomputing(name):
    """Also where the first layers hold no attention: the cache counts its tokens by another one."""
    loaded, inputs = build(name)
    plans = [Plan.of(loaded.info, drop(*parts)) for parts in PARTS] + [everything(loaded)]
    for plan in plans:
        with pruned(loaded, plan), torch.inference_mode():
            step, state = loaded.adapter.prefill(loaded, inputs)
            ids = []
            for _ in range(4):
                ids.append(step.argmax(-1))
                step, state = loaded.adapter.decode_step(loaded, ids[-1], state)
            assert sum(map(_holds_states, state.cache.layers)) == len(plan.attention_layers)
            assert state.cache.get_seq_length() == inputs.embeds.shape[1] + 4
            # The words that were generated, put behind the prompt: the last of their logits are the cached ones.
            grown = _grown(loaded, inputs, torch.stack(ids, 1))
            full = loaded.adapter.forward(loaded, grown, logits_to_keep=1)[:, -1]
            torch.testing.assert_close(step, full, atol=3e-4, rtol=1e-4)


def _holds_states(place):
    """Whether anything was put into this place of the cache."""
    found = [value for value in vars(place).values() if not isinstance(value, dict)]
    found += [item for value in vars(place).values() if isinstance(value, dict) for item in value.values()]
    return any(isinstance(value, torch.Tensor) and value.dim() > 1 for value in found)


def _grown(loaded, inputs, ids):
    grown = copy.copy(inputs)
    grown.embeds = torch.cat([inputs.embeds, loaded.model.get_input_embeddings()(ids)], 1)
    grown.attention_mask = torch.cat([inputs.attention_mask, torch.ones_like(ids)], 1)
    grown.extra = dict(inputs.extra)
    if (positions := grown.extra.get("position_ids")) is not None:
        more = positions[..., -1:] + torch.arange(1, ids.shape[1] + 1)
        grown.extra["position_ids"] = torch.cat([positions, more], -1)
    if (places := grown.extra.get("visual_pos_masks")) is not None:
        grown.extra["visual_pos_masks"] = torch.cat([places, torch.zeros_like(ids, dtype=torch.bool)], 1)
    return grown


def objects(loaded):
    return [id(part) for part in (*loaded.model.modules(), *loaded.model.parameters())]


@each
def test_undoing_leaves_the_very_same_model(name):
    loaded, inputs = build(name)
    plan = everything(loaded)
    before, same, dense = ModelState.of(loaded), objects(loaded), logits(loaded, inputs)
    with torch.inference_mode():
        answer = loaded.adapter.greedy(loaded, inputs, 5).tolist()
    with pruned(loaded, plan):
        assert before.change(ModelState.of(loaded)) is not None
        assert not torch.equal(logits(loaded, inputs), dense)
    with pytest.raises(RuntimeError, match="body"), pruned(loaded, plan):
        raise RuntimeError("body")
    assert before.change(ModelState.of(loaded)) is None and objects(loaded) == same
    assert torch.equal(logits(loaded, inputs), dense)
    with torch.inference_mode():
        assert loaded.adapter.greedy(loaded, inputs, 5).tolist() == answer


@each
def test_what_goes_is_what_the_budget_says(name):
    """Bytes of the model in memory after the operation for good, against the plan's account of it."""
    for make in (everything, lambda loaded: Plan.of(loaded.info, drop((0, "attention"), (2, "mlp"), (2, "attention")))):
        loaded, _ = build(name)
        plan = make(loaded)
        report = achieved(loaded.info, ops=plan.ops, tensors=plan.tensors)
        params = sum(p.numel() for p in loaded.model.parameters())
        prune(loaded, plan)
        assert params - sum(p.numel() for p in loaded.model.parameters()) == report.params_removed
        gone = loaded.info.model_bytes - weight_bytes(loaded.model)
        assert gone == pytest.approx(report.bytes * loaded.info.model_bytes, abs=64)  # small buffers of the layers
        assert loaded.model.config.prunebench["kept_layers"] == list(plan.kept_layers)
        words = {"drop_sublayer"} if make is not everything else {"drop_sublayer", "fold", "merge", "replace_block"}
        assert words <= set(loaded.model.config.prunebench["operations"])


def test_parts_and_the_whole_layer_cost_the_same():
    for name in FAMILIES:
        info = shared(name)[0].info
        for cost in info.layers:
            for field in ("params", "prefill_flops", "kv_bytes_per_token"):
                assert getattr(cost.attention, field) + getattr(cost.mlp, field) == getattr(cost, field)
    cost = shared("Llama")[0].info.layers[0]
    assert cost.attention.params == 2 * 32 * 32 + 2 * 32 * 16 + 32 and cost.mlp.params == 3 * 32 * 48 + 32
    assert cost.mlp.kv_bytes_per_token == 0 and cost.mlp.prefill_flops == 2 * 1024 * 3 * 32 * 48


def test_the_empty_plan_changes_nothing():
    loaded, inputs = build("Llama")
    before, dense = ModelState.of(loaded), logits(loaded, inputs)
    with pruned(loaded, Plan.of(loaded.info, [])):
        assert before.change(ModelState.of(loaded)) is None and torch.equal(logits(loaded, inputs), dense)
