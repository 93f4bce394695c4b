"""LLM-Pruner: published parameter counts, which groups go, how a budget becomes widths, and what slicing changes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from prunebench_baselines.llm_pruner import LLMPruner
from prunebench_baselines.width_counts import Room, counts_for_params, counts_for_ratio
from prunebench_models.hf.adapter import TransformersModel
from prunebench_models.hf.families import ALIASES

from prunebench import Budget, LoadedModel, Plan, PlanContext, pruned
from prunebench.bits import unpack
from prunebench.coupled import coupled_groups
from prunebench.errors import BadParameter, BudgetError, PlanError
from prunebench.measure.cost import describe
from prunebench.ops import Slice
from prunebench.probing import Probe
from prunebench.surgery_slices import cut
from prunebench.testing import strategy_checks
from prunebench.testing.tiny import TinyLlama, TinyMedia
from tests.models.family_configs import BY_NAME
from tests.tiny_families import Plain

SAMPLES = TinyMedia().samples("calibration", 6)
ALL = ("taylor_first", "taylor_second", "taylor_mix", "taylor_vectorize", "l2", "l1", "random")
ENDS = {"protect_first": 1, "protect_last": 1}


@pytest.fixture(scope="module")
def llama():
    return TinyLlama().load()


def context(loaded, share, samples=SAMPLES, seed=0):
    probe = Probe(loaded, samples) if samples is not None else None
    return PlanContext(model=loaded.info, budget=Budget(value=share), seed=seed, probe=probe)


def kept(plan, layer, width):
    """(groups,) bool of one slice."""
    op = next(op for op in plan.ops if op.layer == layer)
    return unpack(plan.tensors[f"{op.tensors}.{width}"], getattr(op, width)[1]).numpy()


# -- published counts ------------------------------------------------------------------------------------------------


def on_meta(**config):
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=32, hidden_size=4096, num_attention_heads=32, **config))
    adapter = Plain()
    info = describe(model, adapter, name="meta", revision="0" * 64, dtype="float32")
    return LoadedModel(model, adapter, info, torch.device("meta"))


@pytest.mark.parametrize(
    ("config", "dense", "left"),
    [
        ({"vocab_size": 32000, "intermediate_size": 11008}, 6_738_415_616, 5_422_977_024),
        (
            {"vocab_size": 128256, "intermediate_size": 14336, "num_key_value_heads": 8},
            8_030_261_248,
            6_612_586_496,
        ),
    ],
    ids=["LLaMA-7B", "Llama-3-8B"],
)
def test_published_parameter_counts(config, dense, left):
    """Ratio 0.25 of layers 4..29: what the published code prints, by the plan's own count and by really cutting."""
    loaded = on_meta(**config)
    assert loaded.info.model_params == dense
    plan = LLMPruner(importance="random", ratio_of="range").plan(context(loaded, 0.25, []))
    assert [op.layer for op in plan.ops] == list(range(4, 30)) and plan.kind == "width"
    assert dense - sum(op.params_removed for op in plan.ops) == left
    assert dense - plan.budget.achieved.params_removed == left
    for op in plan.ops:
        layer = loaded.layers[op.layer]
        groups = coupled_groups(layer, loaded.model.config)
        for width in ("heads", "channels"):
            stay = torch.from_numpy(np.flatnonzero(kept(plan, op.layer, width)))
            for name, value in cut(groups, width, layer, stay)[0].items():
                path, _, own = name.rpartition(".")
                setattr(layer.get_submodule(path), own, value)
    assert sum(p.numel() for p in loaded.model.parameters()) == left


# -- how a budget becomes widths -------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.6])
@pytest.mark.parametrize("multiple", [1, 8])
def test_a_share_of_the_decoder_is_met_to_half_a_channel(share, multiple):
    """32 layers of which 26 give: they lose more than the share, the decoder as a whole just that."""
    loaded = on_meta(vocab_size=32, intermediate_size=11008, num_key_value_heads=8)
    plan = LLMPruner(importance="random", channels_multiple=multiple).plan(context(loaded, share, []))
    whole = sum(layer.params for layer in loaded.info.layers)
    removed = sum(op.params_removed for op in plan.ops)
    assert abs(removed - share * whole) <= 0.5 * multiple * 3 * 4096
    heads = {op.heads[0] if op.heads else 8 for op in plan.ops}
    ratio = share * whole / sum(8 * 10 * 128 * 4096 + 11008 * 3 * 4096 for _ in range(26))
    assert heads == {8 - int(ratio * 8 + 0.5)}, "the nearest number of head groups, the same in all layers"
    channels = [op.channels[0] for op in plan.ops]
    assert all(count % multiple == 0 for count in channels) and max(channels) - min(channels) <= multiple
    assert plan.provenance.notes["widths"]["4"]["channels"] == [channels[0], 11008]
    assert plan.provenance.protected == (0, 1, 2, 3, 30, 31)


def test_counts_against_all_there_are():
    """Two small layers: no other number of channels comes nearer, for any share; heads are the nearest."""
    rooms = {3: Room(2, 40, 8, 9, 6), 5: Room(2, 40, 8, 9, 6)}
    for wanted in range(0, 2 * (40 + 8 * 6) + 1):
        found = counts_for_params(rooms, wanted)
        got = sum(heads * 40 + channels * 6 for heads, channels in found.values())
        heads = sum(count for count, _ in found.values())
        near = min(abs(wanted - heads * 40 - 6 * n) for n in range(17))
        assert abs(got - wanted) == near, wanted
        assert all(h <= 1 and c <= 8 for h, c in found.values())


def test_channels_round_to_a_multiple():
    room = Room(4, 1, 1, 50, 1, multiple=16)
    assert {50 - room.channels_near(n) for n in range(51)} == {16, 32, 48, 50}
    for wanted in range(51):
        near = min(abs(50 - k - wanted) for k in (16, 32, 48, 50))
        assert abs(room.channels_near(wanted) - wanted) == near
    assert Room(4, 1, 1, 10, 1, multiple=16).channels_near(7) == 0, "narrower than the multiple: it stays as it is"


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.25, 0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(("heads", "size"), [(32, 128), (8, 128), (2, 8)])
def test_the_published_rounding(ratio, heads, size):
    """n − int(n (1 − r)) rows, whole heads of them; the last group never goes."""
    n = heads * size
    gone = (n - int(n * (1 - ratio))) // size
    channels = 11008 - int(11008 * (1 - ratio))
    assert counts_for_ratio(Room(heads, 1, size, 11008, 1), ratio) == (min(gone, heads - 1), channels)


def test_what_cannot_be_reached_is_said(llama):
    whole = sum(layer.params for layer in llama.info.layers)
    most = sum(1 * (2 * 16 * 32 + 2 * 8 * 32) + 47 * 3 * 32 for _ in range(4))
    reachable = int(1e4 * most / whole) / 1e4
    plan = LLMPruner(importance="l2", **ENDS).plan(context(llama, reachable, []))
    assert all(op.heads == (1, 2) and op.channels[0] <= 2 for op in plan.ops)
    with pytest.raises(BudgetError, match=rf"hold {reachable:.4g} of them.*lower protect_first \(1\)"):
        LLMPruner(importance="l2", **ENDS).plan(context(llama, reachable + 0.01, []))
    with pytest.raises(BudgetError, match=r"protect_last \(1\) or channels_multiple \(60\)$"):
        LLMPruner(importance="l2", channels_multiple=60, **ENDS).plan(context(llama, 0.3, []))
    with pytest.raises(BudgetError, match="leave none of 6 layers"):
        LLMPruner(importance="l2").plan(context(llama, 0.2, []))
    for bad in ({"samples": 0}, {"protect_first": -1}, {"channels_multiple": 0}):
        with pytest.raises(BadParameter):
            LLMPruner(**bad)
    with pytest.raises(BadParameter, match="importance"):
        LLMPruner.from_params({"importance": "taylor"})
    assert LLMPruner(**ENDS).plan(context(llama, 0.0, [])).is_empty


# -- which groups go -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("importance", ALL[:-1])
def test_the_lowest_go_first_and_the_model_is_untouched(llama, importance):
    before = [p.detach().clone() for p in llama.model.parameters()]
    asked = context(llama, 0.3)
    plan = LLMPruner(importance=importance, samples=4, **ENDS).plan(asked)
    probe = Probe(llama, asked.probe.samples[:4])
    values = probe.group_importance(importance, range(1, 5))
    for op in plan.ops:
        for width, (stay, of) in op.widths().items():
            bits = kept(plan, op.layer, width)
            assert bits.sum() == stay and len(bits) == of
            assert values[op.layer][width][~bits].max() <= values[op.layer][width][bits].min()
    assert all(torch.equal(a, b) for a, b in zip(before, llama.model.parameters(), strict=True))
    assert plan.budget.achieved.params_removed == sum(op.params_removed for op in plan.ops)
    whole = sum(layer.params for layer in llama.info.layers)
    assert plan.budget.achieved.params_removed / whole == pytest.approx(0.3, abs=48 / whole + 1e-9)
    if importance.startswith("taylor"):
        assert plan.provenance.notes["probe"]["samples"] == 4 and asked.probe.counts.backward_passes == 4


def test_layers_that_no_gradient_reaches_are_said():
    """As cross-attention layers on samples without media: all of their groups weigh nothing."""
    loaded = TinyLlama().load()
    asked = context(loaded, 0.3)
    LLMPruner(samples=2, **ENDS).plan(asked)
    assert not any("no gradient" in line for line in asked.warnings)
    loaded.layers[2].forward = lambda hidden_states, *_args, **_kwargs: hidden_states
    asked = context(loaded, 0.3)
    plan = LLMPruner(samples=2, **ENDS).plan(asked)
    assert [op.layer for op in plan.ops] == [1, 2, 3, 4]
    assert [line for line in asked.warnings if "no gradient reached layers [2]," in line]


def test_random_follows_the_seed(llama):
    plans = [LLMPruner(importance="random", **ENDS).plan(context(llama, 0.3, [], seed=n)) for n in (1, 1, 2)]
    assert plans[0].digest == plans[1].digest != plans[2].digest
    assert [op.params_removed for op in plans[0].ops] == [op.params_removed for op in plans[2].ops]
    assert [name for name in ALL if LLMPruner(importance=name).stochastic] == ["random"], "a run makes several draws"
    checks = strategy_checks(LLMPruner, params={"importance": "random", **ENDS})
    found = [check() for check in checks if check.__name__.startswith("seeds")]
    assert len(found) == 2, "each raises where it fails"


def test_what_reads_no_sample():
    assert [name for name in ALL if LLMPruner(importance=name).weights_only] == ["l2", "l1", "random"]


def dead(loaded, layer, head, channels):
    """Weights of a key-value head with its two query heads of size 8, and of some channels, are zero."""
    attention, mlp = loaded.layers[layer].self_attn, loaded.layers[layer].mlp
    queries, keys = slice(16 * head, 16 * head + 16), slice(8 * head, 8 * head + 8)
    with torch.no_grad():
        attention.q_proj.weight[queries] = 0
        attention.k_proj.weight[keys] = attention.v_proj.weight[keys] = 0
        attention.o_proj.weight[:, queries] = 0
        mlp.gate_proj.weight[channels] = mlp.up_proj.weight[channels] = 0
        mlp.down_proj.weight[:, channels] = 0


@pytest.mark.parametrize(("importance", "head"), list(itertools.product(ALL[:-1], (0, 1))))
def test_what_is_dead_goes_and_changes_no_logit(importance, head):
    loaded = TinyLlama().load()
    channels = [3, 17, 29, 30, 44]
    params = 0
    for layer in range(1, 5):
        dead(loaded, layer, head, channels)
        params += 2 * 16 * 32 + 2 * 8 * 32 + 5 * 3 * 32
    share = params / sum(layer.params for layer in loaded.info.layers)
    plan = LLMPruner(importance=importance, samples=6, **ENDS).plan(context(loaded, share))
    for layer in range(1, 5):
        assert np.flatnonzero(~kept(plan, layer, "heads")).tolist() == [head]
        assert np.flatnonzero(~kept(plan, layer, "channels")).tolist() == channels
    inputs = loaded.encode(SAMPLES)
    with torch.inference_mode():
        expected = loaded.adapter.forward(loaded, inputs)
        with pruned(loaded, plan):
            found = loaded.adapter.forward(loaded, inputs)
            assert tuple(loaded.layers[1].self_attn.q_proj.weight.shape) == (16, 32), "both query heads went along"
            assert tuple(loaded.layers[1].mlp.down_proj.weight.shape) == (32, 43)
        real = inputs.attention_mask.bool()
        torch.testing.assert_close(found[real], expected[real], rtol=1e-4, atol=1e-5)
        assert torch.equal(loaded.adapter.forward(loaded, inputs), expected)


@pytest.mark.parametrize("name", ["LlavaNext", "Qwen2.5VL", "Qwen2VL-video", "Qwen2Audio"])
def test_families_with_images_clips_and_sounds(name):
    """A plan made on media-conditioned inputs; the sliced model equals one with those groups zeroed in place."""
    family = BY_NAME[name]
    model, adapter = family.model(), TransformersModel()
    adapter.use(ALIASES[family.row])
    info = describe(model, adapter, name=name, revision="0" * 64, dtype="float32")
    loaded = LoadedModel(model, adapter, info, torch.device("cpu"))
    batch = family.inputs(model, 1)
    adapter.text_ids, adapter.answer_ids = (lambda *_: None), (lambda *_: [11, 12])
    adapter.batching = False
    with torch.inference_mode():
        inputs = adapter.encode_batch(loaded, batch, "only")
    samples = [sample for sample in SAMPLES if sample.answer][:2]
    probe = Probe(loaded, samples, encode=lambda part: adapter.encode_batch(loaded, batch, part[0].id))
    asked = PlanContext(model=info, budget=Budget(value=0.3), probe=probe)
    plan = LLMPruner(importance="taylor_mix", samples=2, **ENDS).plan(asked)
    assert len(plan.ops) == info.n_layers - 2 and asked.probe.counts.backward_passes == 2
    with torch.inference_mode(), pruned(loaded, plan):
        found = adapter.forward(loaded, inputs)
    for op in plan.ops:
        groups = coupled_groups(loaded.layers[op.layer], adapter.text_config(model))
        for width in op.widths():
            out = getattr(groups, width).members[-1]
            gone = np.repeat(~kept(plan, op.layer, width), out.width)
            loaded.layers[op.layer].get_submodule(out.module).weight.data[:, torch.from_numpy(gone)] = 0
    with torch.inference_mode():
        torch.testing.assert_close(found, adapter.forward(loaded, inputs), rtol=1e-4, atol=1e-5)


def test_other_attentions_and_mlps_are_said_in_a_line():
    loaded = TinyLlama().load()
    loaded.layers[2].mlp.gate_proj = torch.nn.Bilinear(2, 2, 2)
    with pytest.raises(PlanError, match="layer 2") as caught:
        LLMPruner(importance="l2", **ENDS).plan(context(loaded, 0.2, []))
    assert "\n" not in str(caught.value)


def test_a_plan_saves_and_loads(llama, tmp_path):
    plan = LLMPruner(importance="l2", **ENDS).plan(context(llama, 0.4, []))
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again.digest == plan.digest and all(isinstance(op, Slice) for op in again.ops)
    inputs = llama.encode(SAMPLES)
    with torch.inference_mode():
        with pruned(llama, plan):
            expected = llama.adapter.forward(llama, inputs)
        with pruned(llama, again):
            assert torch.equal(llama.adapter.forward(llama, inputs), expected)
